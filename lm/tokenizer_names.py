"""Which tokenizer a name stands for: that of a model, a dataset, a run or a file.

Preparing texts needs a tokenizer and no torch, so what is slow to import is imported where it is needed.
"""

import json
from pathlib import Path

from common.errors import UserError
from common.files import is_there, resolve_path
from common.json_files import read_json_object
from common.text_files import read_text
from lm.bpe_files import OtherTokenizer
from lm.roles import choose_front, give_roles
from lm.tokenizer import (
    GPT2Tokenizer,
    note_changes,
    read_tokenizer_file,
    tokenizer_from_contents,
    tokenizer_from_folder,
)


def tokenizer_from_name(name):
    """Return the tokenizer of a name: gpt2, a model's name or folder, a dataset's or run's folder, or a .json file."""
    if name == 'gpt2':
        return GPT2Tokenizer()
    shipped = resolve_path(Path('models') / name)
    path = shipped if shipped.is_dir() else resolve_path(name)
    if not is_there(path) and not name.startswith(('.', '/', '~')) and name.partition('@')[0].count('/') == 1:
        from lm.locate import locate_model

        path = locate_model(name)
    if not is_there(path):
        raise UserError(
            f'there is no tokenizer {name!r}; name gpt2, tiny, tiny-stories, a folder, a .json file or a model on the '
            'hub, with its owner'
        )
    if not path.is_dir():
        found = note_changes(give_roles(read_tokenizer_file(path), path.parent), path)
    elif is_there(path / 'ckpt.pt'):
        found = _from_checkpoint(path / 'ckpt.pt')
    else:
        found = tokenizer_of_model(path)
    if found is None:
        raise UserError(
            f'the folder {path} has no tokenizer: no tokenizer.json, vocab.json with merges.txt or meta.pkl'
        )
    choose_front(found, None, name)
    return found


def tokenizer_of_model(folder):
    """Return the tokenizer of a model folder, or of one with an adapter; None if there is none.

    A byte-level BPE beside a GPT-2 is read here, and so are the tokenizers of this project; others are loaded by
    transformers.
    """
    folder, base = Path(folder), None
    if is_there(folder / 'adapter_config.json'):
        from lm.adapter import adapted_model
        from lm.locate import locate_model

        base = locate_model(adapted_model(folder))
    load = _read_or_load
    if read_json_object((base or folder) / 'config.json', missing={}).get('model_type', 'gpt2') != 'gpt2':
        from lm.hub_tokenizer import load_hub_tokenizer as load
    return load(folder) or (base and load(base))


def _read_or_load(folder):
    """Return the tokenizer beside a GPT-2, with its chat template, if it has one; None if there is no tokenizer."""
    try:
        tokenizer = tokenizer_from_folder(folder)
    except OtherTokenizer:
        from lm.hub_tokenizer import load_hub_tokenizer

        return load_hub_tokenizer(folder)
    config = read_json_object(folder / 'tokenizer_config.json', missing={})
    if is_there(folder / 'chat_template.jinja'):
        config['chat_template'] = read_text(folder / 'chat_template.jinja')
    if tokenizer is not None and config.get('chat_template'):
        tokenizer.config = json.dumps(config, indent=2, ensure_ascii=False) + '\n'
    return tokenizer


def _from_checkpoint(path):
    """Return the tokenizer in a checkpoint, or else in its folder; None if there is none."""
    from lm.weight_files import load_torch_file

    checkpoint = load_torch_file(path)
    contents = checkpoint.get('tokenizer') if isinstance(checkpoint, dict) else None
    if contents is None:
        return tokenizer_from_folder(path.parent)
    return note_changes(tokenizer_from_contents(contents), path)
