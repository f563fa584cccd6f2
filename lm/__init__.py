"""Asking a language model: load it, generate, score, search, and see what else it could have said."""


def load(init_from='tiny-stories', out_dir='out', device=None, dtype=None, quantize=None, bos=None, rows=1):
    """Return (model, tokenizer), optimised for inference: as fast as the scripts, but no longer trainable.

    init_from: 'tiny-stories', 'tiny', 'gpt2' (any size), a name on the hub, a folder, or 'resume' for the run in
    out_dir. device: None for the best available. dtype: 'float32' (None), 'bfloat16' or 'float16'. quantize: None or
    'int8'. bos: whether to put the token that begins a text before each text; None for what its tokenizer does. rows:
    how many tokens will mostly be computed at a time; 1 to generate a text, 64 or more to score.
    To train or save a model, load it with `lm.checkpoint.load_model`.
    Raises UserError if the model or its tokenizer is missing, damaged or not supported.
    """
    from lm import fast  # here, so that importing a tokenizer does not import torch
    from lm.checkpoint import load_model, require_tokenizer
    from lm.roles import choose_front

    model, tokenizer, _ = load_model(init_from, out_dir, device, dtype, to_pack=True)
    choose_front(require_tokenizer(tokenizer, init_from), bos, init_from)
    return fast.pack(model, quantize, rows), tokenizer
