"""Asking a language model: load it, generate, score, search, and see what else it could have said."""


def load(init_from='tiny-stories', out_dir='out', device=None, dtype=None, quantize=None):
    """Return (model, tokenizer), optimised for inference: as fast as the scripts, but no longer trainable.

    init_from: 'tiny-stories', 'tiny', 'gpt2' (any size), a name on the hub, a folder, or 'resume' for the run in
    out_dir. device: None for the best available. dtype: 'float32' (None), 'bfloat16' or 'float16'. quantize: None or
    'int8'.
    To train or save a model, load it with `lm.checkpoint.load_model`.
    Raises UserError if the model or its tokenizer is missing, damaged or not supported.
    """
    from lm import fast  # here, so that importing a tokenizer does not import torch
    from lm.checkpoint import load_model, require_tokenizer

    model, tokenizer, _ = load_model(init_from, out_dir, device, dtype)
    return fast.pack(model, quantize), require_tokenizer(tokenizer, init_from)
