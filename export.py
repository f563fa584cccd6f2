"""Write a model as a folder that `transformers` can load, with a model card, and push it to the Hugging Face hub.

    python export.py --out_dir=out-mine                              the model trained there, into out-export/
    python export.py --init_from=tiny-stories --dtype=float16        half the size, slightly different numbers
    python export.py --out_dir=out-mine --push_to=my-stories         also publish it under your name

Pushing needs a token with write permission, from the environment (HF_TOKEN) or from `hf auth login`. It is never
printed.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import configurator
from common.errors import UserError
from common.files import atomic_write, expand_path
from common.folders import finish_replacing, lock_folder, remove_leftovers, replace_together
from lm import checkpoint as checkpoints
from lm.checkpoint import MODEL_FILES as FILES
from lm.hardware import pick_dtype
from lm.hub_download import split_revision
from lm.settings import ModelChoice, choose_model
from model import GPT

PUBLISHED = {  # name here -> name on the hub
    **{name: f'openai-community/{name}' for name in ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')},
    'distilgpt2': 'distilbert/distilgpt2',
}
SHIPPED = ('tiny', 'tiny-stories')


@dataclass
class Settings(ModelChoice):
    """Write a model as a folder for transformers, with a model card; with --push_to, publish it on the hub."""

    folder: str = 'out-export'  # the model folder to write
    overwrite: bool = False  # replace a model that is already in the folder
    dtype: str = 'float32'  # of the saved weights: float32, or float16 or bfloat16 at half the size
    about: str = ''  # for the card: which texts the model learned from, and what their authors allow
    license: str = ''  # for the card, by its name on the hub: mit, apache-2.0, cc-by-4.0, ...; '' names none
    push_to: str = ''  # publish the model on the Hugging Face hub under this name: my-model, or me/my-model
    private: bool = False  # make a new model on the hub visible only to you


def main(settings):
    """Load the model, write the folder, compare it with the model, and push it if the settings say so."""
    settings = choose_model(settings)
    token = check_export_settings(settings)
    model, tokenizer, checkpoint = checkpoints.load_model(settings.init_from, settings.out_dir, 'cpu')
    if tokenizer is None:
        raise UserError(f'{settings.init_from} has no tokenizer, so the exported model could not be used')
    folder = expand_path(settings.folder)
    with lock_folder(folder, 'choose another --folder'):
        finish_replacing(folder, FILES, is_locked=True)
        refuse_to_overwrite(folder, settings.overwrite)
        write_and_push(folder, model, tokenizer, checkpoint, settings, token)


def write_and_push(folder, model, tokenizer, checkpoint, settings, token):
    """Write the folder, compare it with the model, and push it if the settings say so."""
    card = write_card(folder.name, model, tokenizer, checkpoint, settings)
    write_model_folder(folder, model, tokenizer, card, settings.dtype)
    size = sum((folder / name).stat().st_size for name in FILES if (folder / name).exists())
    count = format_parameter_count(model)
    print(f'{folder}: {count} parameters in {settings.dtype}, {size / 1e6:.1f} MB with the tokenizer')
    print(f'read back: no logprob after random tokens differs by more than {largest_difference(model, folder):.2g}')
    print(f"in transformers: AutoModelForCausalLM.from_pretrained('{folder}'), and AutoTokenizer likewise")
    print(f'here: python sample.py --init_from={folder}')
    if settings.push_to:
        push_to_hub(folder, lambda name: write_card(name, model, tokenizer, checkpoint, settings), settings, token)


def check_export_settings(settings):
    """Return the token for the hub, None if it is not needed; raise UserError for invalid settings, before any work."""
    pick_dtype(settings.dtype)
    folder = expand_path(settings.folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f'--folder={folder} is a file, not a folder')
    refuse_to_overwrite(folder, settings.overwrite)
    source = Path(settings.init_from)
    if source.is_dir() and folder.exists() and folder.samefile(source):
        raise UserError(f'--folder={folder} is the folder of the model itself; choose another')
    if not settings.push_to:
        return None
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(settings.push_to)
    except HFValidationError as error:
        raise UserError(f'--push_to={settings.push_to} is not a valid name for a model on the hub: {error}') from error
    token = get_token()
    if token is None:
        raise UserError(
            'pushing needs a token with write permission, from https://huggingface.co/settings/tokens: set the '
            'environment variable HF_TOKEN, or run `hf auth login` once'
        )
    return token


def refuse_to_overwrite(folder, overwrite):
    """Raise UserError if a folder holds files of a model, which may not be replaced."""
    if not overwrite and (present := [name for name in reversed(FILES) if (folder / name).exists()]):
        raise UserError(f'{folder} contains {present[0]}: choose another --folder, or replace it (--overwrite=True)')


def write_model_folder(folder, model, tokenizer, card, dtype):
    """Write the files of a model, all of them or none, and remove those of an older model; the folder is locked."""
    remove_leftovers(folder, 'new', *FILES)
    with replace_together(folder, FILES) as new:
        checkpoints.write_model_files(model, new, tokenizer, pick_dtype(dtype))
        (new / 'README.md').write_text(card, encoding='utf-8')


@torch.no_grad()
def largest_difference(model, folder):
    """Return the largest difference between logprobs of a model and of the folder written from it, in nats.

    It compares the whole vocabulary after each of up to 64 random tokens.
    """
    exported = checkpoints.load_model(folder, device='cpu')[0]
    length, generator = min(64, model.block_size), torch.Generator().manual_seed(0)
    ids = torch.randint(model.n_ids, (1, length), generator=generator)
    ours, theirs = (m(ids, ids)[0][..., : model.n_ids].log_softmax(-1) for m in (model, exported))  # (1, T, n_ids)
    return (ours - theirs).abs().max().item()


# The model card -----------------------------------------------------------------------------------------------------


CARD = """---
{data}
---

# {name}

A {kind} of {parameters} parameters, exported by nanoGPT-probs. {origin}

| | |
| --- | --- |
| shape | {shape} |
| context | {model.block_size:,} tokens |
| tokenizer | {tokenizer}, {vocab_size:,} tokens |
| weights | `model.safetensors`, {dtype} |
{training}
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained('{name}')
model = AutoModelForCausalLM.from_pretrained('{name}', dtype='float32')
```

nanoGPT-probs also shows the alternatives at every step, and how likely any response is:

```bash
python sample.py --init_from={name} --show_probs=True
```

## Training texts

{about}

The model imitates these texts, with their mistakes and prejudices, and does not know what is true.
"""
UNKNOWN_TEXTS = 'Which texts the model learned from, and what their authors allow, is not stated.'
TOKENIZERS = {
    'gpt2': "GPT-2's byte-level BPE",
    'bpe': 'byte-level BPE',
    'pieces': 'pieces, in the manner of SentencePiece',
    'char': 'characters',
    'story': 'words, gaps and case marks',
}


def write_card(name, model, tokenizer, checkpoint, settings):
    """Return the text of README.md: a header for the hub, then a page for people."""
    from huggingface_hub import ModelCardData

    base_model, origin = describe_origin(checkpoint, settings)
    is_gpt, config = isinstance(model, GPT), model.config
    architecture = 'gpt2' if is_gpt else config.model_type
    names = ('n_layer', 'n_head', 'n_embd') if is_gpt else ('num_hidden_layers', 'num_attention_heads', 'hidden_size')
    sizes = [getattr(config, name, '?') for name in names]
    data = ModelCardData(
        license=settings.license or None,
        library_name='transformers',
        pipeline_tag='text-generation',
        base_model=base_model,
        tags=[architecture, 'nanogpt-probs'],
    )
    return CARD.format(
        data=data.to_yaml(),
        name=name,
        parameters=format_parameter_count(model),
        origin=origin,
        kind='GPT-2' if is_gpt else f'model of type `{architecture}`',
        shape=f'{sizes[0]} layers, {sizes[1]} heads, width {sizes[2]}',
        model=model,
        tokenizer=TOKENIZERS[tokenizer.contents['kind']],
        vocab_size=tokenizer.vocab_size,
        dtype=settings.dtype,
        training=describe_training(checkpoint) if checkpoint else '',
        about=settings.about or UNKNOWN_TEXTS,
    )


def describe_origin(checkpoint, settings):
    """Return the name of the base model on the hub, None if unknown, and a sentence about it."""
    base = settings.init_from
    if checkpoint:
        base = checkpoint.get('begun_from', (checkpoint.get('config') or {}).get('init_from'))
    verb = 'Fine-tuned from' if checkpoint else 'The weights are those of'
    if base == 'scratch':
        return None, 'Trained from random weights.'
    if base in SHIPPED:
        return None, f'{verb} `{base}`, which comes with nanoGPT-probs.'
    name, revision = split_revision(base or '')
    on_hub = re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name) and not Path(base).exists()
    name = PUBLISHED.get(name, name if on_hub else None)
    if name is None:  # a local path means nothing on another machine
        return None, ''
    at = f', revision `{revision}`' if revision else ''
    return name, f'{verb} [{name}](https://huggingface.co/{name}){at}.'


def describe_training(checkpoint):
    """Return the card's section on training, with as much as the checkpoint contains."""
    settings = checkpoint.get('config') or {}
    rows = {name.replace('_', ' '): settings.get(name) for name in ('learning_rate', 'dropout', 'lora_rank')}
    sizes = [settings.get(name) for name in ('batch_size', 'gradient_accumulation_steps', 'block_size')]
    if checkpoint.get('iter_num') is not None:
        of_tokens = f' of {math.prod(sizes):,} tokens' if all(sizes) else ''
        rows['steps'] = f'{checkpoint["iter_num"]:,}{of_tokens}'
    loss = float(checkpoint.get('best_val_loss', math.inf))
    if loss < 700:  # the exponential of a larger one overflows
        of_pairs = 'val.mask' in (checkpoint.get('data_sha256') or {})
        of = ' of the responses' if of_pairs else ''  # of a run on pairs, in which nothing else counts
        rows['best validation loss'] = f'{loss:.4f} nats per token{of} (perplexity {math.exp(loss):.2f})'
    lines = [f'| {name} | {value} |' for name, value in rows.items() if value]
    return '\n'.join(['\n## Training\n', '| | |', '| --- | --- |', *lines, '']) if lines else ''


def format_parameter_count(model):
    """Return the number of the weights in a model's folder, in millions: a GPT's without those of padding ids."""
    padding = (model.config.vocab_size - model.n_ids) * model.config.n_embd if isinstance(model, GPT) else 0
    return f'{(model.get_num_params(non_embedding=False) - padding) / 1e6:.2f} million'


# The hub ------------------------------------------------------------------------------------------------------------


def push_to_hub(folder, card_for, settings, token):
    """Publish the files of a folder as one commit, with the model's full name on the hub in the card."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    api = HfApi(token=token)
    try:
        name = api.create_repo(settings.push_to, private=settings.private or None, exist_ok=True).repo_id
        if settings.private and not api.model_info(name).private:  # an existing one stays as it is
            raise UserError(f'{name} already exists on the hub and is public, so nothing was pushed')
        with atomic_write(folder / 'README.md') as path:
            path.write_text(card_for(name), encoding='utf-8')
        files = [file for file in FILES if (folder / file).exists()]
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=files,
            delete_patterns=[file for file in FILES if file not in files],  # of an older model
            commit_message='Export from nanoGPT-probs',
        )
    except UserError:
        raise
    except Exception as error:  # anything: huggingface_hub and its HTTP client have their own
        reason = ' '.join(str(error).replace(token, '(token)').split())[:300] or type(error).__name__
        raise UserError(
            f'the model is in {folder}, but it could not be pushed to {settings.push_to}: {reason}; to try again, '
            'repeat the command with --overwrite=True'
        ) from error
    print(f'pushed to {commit.commit_url}')
    cached = try_to_load_from_cache(name, 'config.json')
    if isinstance(cached, str):  # an older version is there, which would be loaded
        with suppress(Exception):  # the push has succeeded, even if the download fails
            snapshot_download(name, allow_patterns=files, token=token)
    print(f'anyone with access: python sample.py --init_from={name}')


if __name__ == '__main__':
    configurator.run(main, Settings)
