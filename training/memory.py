"""About how much memory training takes: what cannot fit is refused, a new model even before it is made."""

from lm.hardware import pick_training_dtype
from lm.memory import require_memory

WEIGHT = 16  # bytes: a weight, its gradient and AdamW's two running means, in float32
LAYER = 30_000  # bytes of Python objects
ACTIVATIONS = 24  # numbers per channel that a layer takes for each token: it keeps 17; the rest is measured
SHAPE = ('n_layer', 'n_embd', 'block_size')


def require_training_memory(settings, device, vocab_size, model=None):
    """Raise UserError if training cannot fit into the device's memory.

    model: the GPT to train, which has its shape and is in memory already; None for a new one of the settings' shape.
    """
    shape = {name: getattr(settings if model is None else model.config, name) for name in SHAPE}
    frozen = settings.lora_rank > 0 or settings.freeze is not None or settings.eval_only
    number = pick_training_dtype(device, settings.dtype).itemsize
    in_memory = 4 * model.get_num_params() if model is not None else 0

    def estimate(**values):
        weights, tokens = bytes_of_training(vocab_size, settings.gradient_checkpointing, number, **{**shape, **values})
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
