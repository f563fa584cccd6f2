"""About how much memory training takes: what cannot fit is refused, a new model even before it is made."""

from functools import partial

import torch

from lm.hardware import pick_training_dtype
from lm.hub_internals import find_blocks
from lm.memory import require_memory
from model import GPT

WEIGHT = 16  # bytes: a weight, its gradient and AdamW's two running means, in float32
LAYER = 30_000  # bytes of Python objects
ACTIVATIONS = 24  # numbers per channel that a layer takes for each token: it keeps 17; the rest is measured
SHAPE = ('n_layer', 'n_embd', 'block_size')


def require_training_memory(settings, device, vocab_size, model=None):
    """Raise UserError if training cannot fit into the device's memory.

    model: the model to train, which has its shape and is in memory already; None for a new one of the settings' shape.
    """
    frozen = settings.lora_rank > 0 or settings.freeze is not None or settings.eval_only
    number = pick_training_dtype(device, settings.dtype).itemsize
    in_memory = 4 * model.get_num_params() if model is not None else 0
    if model is None or isinstance(model, GPT):
        shape = {name: getattr(settings if model is None else model.config, name) for name in SHAPE}
        bytes_of = partial(bytes_of_training, vocab_size)
    else:
        shape, bytes_of = {}, partial(bytes_of_fine_tuning, model)

    def estimate(**values):
        weights, tokens = bytes_of(settings.gradient_checkpointing, number, **{**shape, **values})
        return (weights / 4 if frozen else weights) - in_memory + (0 if settings.eval_only else tokens)

    values = {**(shape if model is None else {}), 'batch_size': settings.batch_size}
    require_memory(device, estimate, {'n_embd': settings.n_head}, **values)


def bytes_of_training(vocab_size, gradient_checkpointing, number, n_layer, n_embd, block_size, batch_size):
    """Return about how many bytes the training of a GPT takes, for its weights and for a batch.

    number: the bytes of a number in the dtype that it computes in.
    """
    weights = (vocab_size + block_size) * n_embd + 12 * n_layer * n_embd**2
    kept = n_layer + ACTIVATIONS if gradient_checkpointing else n_layer * ACTIVATIONS
    token = 4 * 8 + number * n_embd * kept  # ids and targets of two batches; what the layers keep
    return WEIGHT * weights + LAYER * n_layer, batch_size * block_size * token


def bytes_of_fine_tuning(model, gradient_checkpointing, number, batch_size):
    """Return the same for a model of transformers.

    What its layers keep is estimated from the sizes of their matrices: those of a GPT read and write 16 numbers for
    each channel.
    """
    blocks, width = find_blocks(model), model.network.get_input_embeddings().embedding_dim
    matrices = [module for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
    layers = ACTIVATIONS / 16 * sum(matrix.in_features + matrix.out_features for matrix in matrices)
    kept = len(blocks) * width + layers / len(blocks) if gradient_checkpointing else layers
    logits = model.n_ids * 12 if model.whole else 0  # the lean loss keeps none
    token = 4 * 8 + number * kept + logits
    return WEIGHT * model.get_num_params() + LAYER * len(blocks), batch_size * model.block_size * token
