"""About how much memory training takes: what cannot fit is refused, a new model even before it is made."""

from functools import partial

import torch

from lm.hardware import training_dtypes
from lm.hub_internals import find_blocks
from lm.memory import require_memory
from model import GPT
from training.lean_loss import LeanLoss

WEIGHT = 16  # bytes: a weight, its gradient and AdamW's two running means, in float32
LAYER = 30_000  # bytes of Python objects
ACTIVATIONS = 24  # numbers per channel that a layer takes for each token: it keeps 17; the rest is measured
MEASURED = 256  # tokens of the text that is measured
SHAPE = ('n_layer', 'n_embd', 'block_size')


def require_training_memory(settings, device, vocab_size, model=None):
    """Raise UserError if training cannot fit into the device's memory.

    model: the model to train, which has its shape and is in memory already; None for a new one of the settings' shape.
    """
    frozen = settings.lora_rank > 0 or settings.freeze is not None or settings.eval_only
    number = max(dtype.itemsize for dtype in training_dtypes(device, settings.dtype))
    in_memory = 4 * model.get_num_params() if model is not None else 0
    if model is None or isinstance(model, GPT):
        shape = {name: getattr(settings if model is None else model.config, name) for name in SHAPE}
        bytes_of = partial(bytes_of_training, vocab_size)
    else:
        kept = 0 if settings.eval_only else measure_kept_numbers(model)
        shape, bytes_of = {}, partial(bytes_of_fine_tuning, model, kept)

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


def bytes_of_fine_tuning(model, kept, gradient_checkpointing, number, batch_size):
    """Return the same for a model of transformers. kept: how many numbers its layers keep of each token."""
    blocks, width = find_blocks(model), model.network.get_input_embeddings().embedding_dim
    if gradient_checkpointing:
        kept = len(blocks) * width + kept / len(blocks)
    weights = WEIGHT * model.get_num_params() + LAYER * len(blocks)
    return weights, batch_size * model.block_size * (4 * 8 + number * kept)


def measure_kept_numbers(model):
    """Return how many numbers a model in float32 keeps of each token for the backward pass, on a short text."""
    T, parameters = min(model.block_size, MEASURED), {parameter.data_ptr() for parameter in model.parameters()}
    idx, kept = torch.arange(T, device=model.device)[None] % model.n_ids, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # alive, so that its address is not used again
        return tensor

    was_training = model.training
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LeanLoss(model.train())(idx, idx)
    model.train(was_training)
    return sum(storage.nbytes() for storage in kept.values()) / 4 / T
