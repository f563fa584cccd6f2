"""Write any model as a folder that `transformers` reads, with a model card, and push it to the Hugging Face hub.

    python export.py --out_dir=out-mine                              what was trained there, into out-export/
    python export.py --init_from=tiny-stories --dtype=float16        half the size, and slightly other numbers
    python export.py --out_dir=out-mine --push_to=my-stories         and publish it under your name

Pushing needs a token with write permission, from the environment (HF_TOKEN) or from `hf auth login`; it is never
printed.
"""

import math
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import configurator
from common.errors import UserError
from common.files import atomic_write
from lm import checkpoint as checkpoints
from lm.hardware import pick_dtype
from lm.settings import choose_model

# What may lie in a model folder; an export into a folder that holds another takes away what it does not replace.
FILES = (
    *('config.json', 'model.safetensors', 'README.md', 'tokenizer.json', 'tokenizer_config.json', 'characters.json'),
    *('pytorch_model.bin', 'model.safetensors.index.json', 'vocab.json', 'merges.txt', 'special_tokens_map.json'),
    *('generation_config.json', 'added_tokens.json', 'chat_template.jinja'),
)
PUBLISHED = {'gpt2': 'openai-community/gpt2', 'distilgpt2': 'distilbert/distilgpt2'}  # where the short names lead
PUBLISHED |= {f'gpt2-{size}': f'openai-community/gpt2-{size}' for size in ('medium', 'large', 'xl')}
SHIPPED = ('tiny', 'tiny-stories')


@dataclass
class Settings:
    """Write a model as a folder for transformers, with a model card, and push it to the hub if --push_to says where."""

    init_from: str | None = None  # resume (out_dir), tiny, tiny-stories, gpt2 (any size), a folder, a name on the hub
    out_dir: str | None = None  # where resume finds ckpt.pt (None: out); given alone, it means resume
    folder: str = 'out-export'  # the model folder to write
    overwrite: bool = False  # write into a folder that holds a model, which is lost
    dtype: str = 'float32'  # of the weights in it: float32, or with half the size float16 or bfloat16
    about: str = ''  # for the card: which texts it learned from, and what their authors allow
    license: str = ''  # for the card, as the hub names it: mit, apache-2.0, cc-by-4.0 ...; '' says nothing of it
    push_to: str = ''  # publish it on the Hugging Face hub under this name: my-model, or me/my-model
    private: bool = False  # for a new name there: only you can see it


def main(settings):
    """Load the model, write the folder, read it back to compare, and push it if that is asked for."""
    settings = choose_model(settings)
    token = check_export_settings(settings)
    model, tokenizer, checkpoint = checkpoints.load_model(settings.init_from, settings.out_dir, 'cpu')
    if tokenizer is None:
        raise UserError(f'{settings.init_from} has no tokenizer: nobody could ask it anything')
    folder = Path(settings.folder)
    write_model_folder(
        folder, model, tokenizer, card(folder.name, model, tokenizer, checkpoint, settings), settings.dtype
    )
    size = sum((folder / name).stat().st_size for name in FILES if (folder / name).exists())
    print(f'{folder}: {parameters(model)} parameters in {settings.dtype}, {size / 1e6:.1f} MB with the tokenizer')
    print(f'read back, no logprob after random tokens is off by more than {largest_difference(model, folder):.2g}')
    print(f"in transformers: AutoModelForCausalLM.from_pretrained('{folder}'), and AutoTokenizer alike")
    print(f'here: python sample.py --init_from={folder}')
    if settings.push_to:
        push_to_hub(folder, lambda name: card(name, model, tokenizer, checkpoint, settings), settings, token)


def check_export_settings(settings):
    """Raise UserError for what cannot be done, before any work; return the hub's token, None if none is needed."""
    pick_dtype(settings.dtype)
    folder = Path(settings.folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f'--folder={folder} is a file; name a folder')
    if not settings.overwrite and (there := [name for name in FILES if (folder / name).exists()]):
        raise UserError(f'{folder} holds {there[0]}: choose another --folder, or replace it (--overwrite=True)')
    source = Path(settings.init_from)
    if source.is_dir() and folder.exists() and folder.samefile(source):
        raise UserError(f'--folder={folder} is the folder that the model is read from; choose another')
    if not settings.push_to:
        return None
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(settings.push_to)
    except HFValidationError as error:
        raise UserError(
            f'--push_to={settings.push_to} is not a name that a model on the hub can have: {error}'
        ) from error
    token = get_token()
    if token is None:
        raise UserError(
            'pushing needs a token with write permission, from https://huggingface.co/settings/tokens: put it into the '
            'environment as HF_TOKEN, or run `hf auth login` once'
        )
    return token


def write_model_folder(folder, model, tokenizer, text_of_card, dtype):
    """Write the files beside the folder and then give them their places: a failure in writing leaves what was there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as temporary:
            checkpoints.save_pretrained(model, temporary, tokenizer, pick_dtype(dtype))
            (Path(temporary) / 'README.md').write_text(text_of_card, encoding='utf-8')
            folder.mkdir(exist_ok=True)
            for name in FILES:
                if (Path(temporary) / name).exists():
                    (Path(temporary) / name).replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {folder}: {error.strerror or error}') from error


@torch.no_grad()
def largest_difference(model, folder):
    """Return the largest difference, in nats, between logprobs of a model and of the folder that was made of it.

    Looked at are those of every token of the vocabulary, after each of at most 64 tokens drawn at random.
    """
    again = checkpoints.load_model(folder, device='cpu')[0]
    length, generator = min(64, model.config.block_size), torch.Generator().manual_seed(0)
    ids = torch.randint(model.n_ids, (1, length), generator=generator)
    both = [one(ids, ids)[0][..., : model.n_ids].log_softmax(-1) for one in (model, again)]  # (1, T, n_ids)
    return (both[0] - both[1]).abs().max().item()


# The model card -----------------------------------------------------------------------------------------------------


CARD = """---
{data}
---

# {name}

A GPT-2 of {parameters} parameters, written by nanoGPT-probs. {origin}

| | |
| --- | --- |
| shape | {config.n_layer} layers, {config.n_head} heads, width {config.n_embd} |
| context | {config.block_size:,} tokens |
| tokenizer | {tokenizer}, {vocab_size:,} tokens |
| weights | `model.safetensors`, {dtype} |
{training}
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained('{name}')
model = AutoModelForCausalLM.from_pretrained('{name}', dtype='float32')
```

nanoGPT-probs also shows what it nearly said at every step, and how likely any response is:

```bash
python sample.py --init_from={name} --show_probs=True
```

## Its texts

{about}

It writes what resembles them, with their mistakes and prejudices, and does not know what is true.
"""
NOT_TOLD = 'Which texts it learned from, and what their authors allow, has not been told.'
TOKENIZERS = {'gpt2': "GPT-2's byte-level BPE", 'bpe': 'byte-level BPE', 'char': 'characters'}


def card(name, model, tokenizer, checkpoint, settings):
    """Return the text of README.md: what the hub reads about a model, then what a person does."""
    from huggingface_hub import ModelCardData

    base, origin = origin_of(checkpoint, settings)
    data = ModelCardData(
        license=settings.license or None,
        library_name='transformers',
        pipeline_tag='text-generation',
        base_model=base,
        tags=['gpt2', 'nanogpt-probs'],
    )
    return CARD.format(
        data=data.to_yaml(),
        name=name,
        parameters=parameters(model),
        origin=origin,
        config=model.config,
        tokenizer=TOKENIZERS[tokenizer.contents['kind']],
        vocab_size=tokenizer.vocab_size,
        dtype=settings.dtype,
        training=training(checkpoint) if checkpoint else '',
        about=settings.about or NOT_TOLD,
    )


def origin_of(checkpoint, settings):
    """Return the model on the hub that this one stems from, None if it is not known, and a sentence about it."""
    begun_from = settings.init_from
    if checkpoint:
        begun_from = checkpoint.get('begun_from', (checkpoint.get('config') or {}).get('init_from'))
    if begun_from == 'scratch':
        return None, 'Trained from random weights.'
    if begun_from in SHIPPED:
        base, named = None, f'`{begun_from}`, which comes with that program'
    else:
        on_hub = begun_from and re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', begun_from) and not Path(begun_from).exists()
        base = PUBLISHED.get(begun_from, begun_from if on_hub else None)
        named = f'[{base}](https://huggingface.co/{base})'
    if base is None and begun_from not in SHIPPED:  # a folder here, whose name tells nobody anything
        return None, ''
    return base, f'Fine-tuned from {named}.' if checkpoint else f'The weights are those of {named}.'


def training(checkpoint):
    """Return the part of the card that tells how a checkpoint was trained: as much of it as the checkpoint says."""
    settings = checkpoint.get('config') or {}
    rows = {name.replace('_', ' '): settings.get(name) for name in ('learning_rate', 'dropout', 'lora_rank')}
    sizes = [settings.get(name) for name in ('batch_size', 'gradient_accumulation_steps', 'block_size')]
    if checkpoint.get('iter_num') is not None:
        of_tokens = f' of {math.prod(sizes):,} tokens' if all(sizes) else ''
        rows['steps'] = f'{checkpoint["iter_num"]:,}{of_tokens}'
    loss = float(checkpoint.get('best_val_loss', math.inf))
    if loss < 700:  # beyond, a float has no perplexity
        rows['best validation loss'] = f'{loss:.4f} nats per token (perplexity {math.exp(loss):.2f})'
    told = [f'| {name} | {value} |' for name, value in rows.items() if value]
    return '\n'.join(['\n## Training\n', '| | |', '| --- | --- |', *told, '']) if told else ''


def parameters(model):
    """Return the number of a model's weights, those of padding ids left out, as a person says it."""
    padding = (model.config.vocab_size - model.n_ids) * model.config.n_embd
    return f'{(model.get_num_params(non_embedding=False) - padding) / 1e6:.2f} million'


# The hub ------------------------------------------------------------------------------------------------------------


def push_to_hub(folder, card_for, settings, token):
    """Publish the files of a folder as one commit; the card gets the name that the hub gives to the model."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    api = HfApi(token=token)
    try:
        name = api.create_repo(settings.push_to, private=settings.private or None, exist_ok=True).repo_id
        if settings.private and not api.model_info(name).private:  # a name that is there stays as it is
            raise UserError(f'{name} is on the hub already and everybody can see it, so nothing was pushed there')
        with atomic_write(folder / 'README.md') as path:
            path.write_text(card_for(name), encoding='utf-8')
        ours = [file for file in FILES if (folder / file).exists()]
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=ours,
            delete_patterns=[file for file in FILES if file not in ours],  # of a model that was there before
            commit_message='Export from nanoGPT-probs',
        )
    except UserError:
        raise
    except Exception as error:  # whatever can go wrong on the way to a server, in that library's and its client's words
        reason = ' '.join(str(error).replace(token, '(token)').split())[:300] or type(error).__name__
        raise UserError(
            f'the model is in {folder}, but it could not be pushed to {settings.push_to}: {reason}; the same command '
            'with --overwrite=True tries again'
        ) from error
    print(f'pushed to {commit.commit_url}')
    if isinstance(try_to_load_from_cache(name, 'config.json'), str):  # `load` would go on taking what was there before
        with suppress(Exception):  # it is there to be had, but perhaps not now
            snapshot_download(name, allow_patterns=ours, token=token)
    print(f'anyone who may see it: python sample.py --init_from={name}')


if __name__ == '__main__':
    configurator.run(main, Settings)
