"""Makers of damaged and hostile files: each takes a folder with a whole model, run or dataset and spoils one thing."""

import base64
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import torch
from helpers.models import random_gpt
from helpers.tokenizers import CODE, PROSE
from safetensors.torch import load_file, save_file

from lm.checkpoint import save_checkpoint, save_pretrained
from lm.tokenizer import train_bpe

DEEP = '[' * 200_000
SIZE = {'vocab_size': 400, 'block_size': 32, 'n_layer': 2, 'n_head': 2, 'n_embd': 16}


def make_model_folder(folder):
    """Write a small model folder; return its tokenizer."""
    tokenizer = train_bpe([PROSE, CODE], SIZE['vocab_size'])
    save_pretrained(random_gpt(**SIZE), folder, tokenizer)
    return tokenizer


def make_run(folder):
    """Write a ckpt.pt with its tokenizer inside."""
    save_checkpoint(folder / 'ckpt.pt', random_gpt(**SIZE), train_bpe([PROSE, CODE], SIZE['vocab_size']))


# JSON files -----------------------------------------------------------------------------------------------------------


def change_json(name, **changes):
    """Return a maker that changes keys of a JSON file; None removes one. A key a.b is b in a."""

    def spoil(folder):
        path = folder / name
        found = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
        for key, value in changes.items():
            *above, last = key.split('__')
            place = found
            for part in above:
                place = place[part]
            if value is None:
                place.pop(last, None)
            else:
                place[last] = value
        path.write_text(json.dumps(found), encoding='utf-8')

    return spoil


def edit_json(name, edit):
    """Return a maker that calls edit(contents) of a JSON file."""

    def spoil(folder):
        found = json.loads((folder / name).read_text(encoding='utf-8'))
        edit(found)
        (folder / name).write_text(json.dumps(found), encoding='utf-8')

    return spoil


def write(name, contents):
    """Return a maker that writes a file: text or bytes."""
    data = contents.encode('utf-8', 'surrogatepass') if isinstance(contents, str) else contents

    def spoil(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return spoil


# Files that are none --------------------------------------------------------------------------------------------------


def replace(name, kind):
    """Return a maker that puts something else in a file's place: a pipe, folder, device, link to nothing or itself."""

    def spoil(folder):
        path = folder / name
        path.unlink(missing_ok=True)
        match kind:
            case 'pipe':
                os.mkfifo(path)
            case 'folder':
                path.mkdir()
            case 'device':
                path.symlink_to('/dev/zero')
            case 'broken link':
                path.symlink_to(folder / 'nowhere')
            case 'loop':
                path.symlink_to(path)
            case 'empty':
                path.write_bytes(b'')
            case 'hole':
                with open(path, 'wb') as file:
                    file.truncate(2**42)

    return spoil


def cut(name, part=0.5):
    """Return a maker that keeps only the first part of a file."""

    def spoil(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * part)])

    return spoil


# Weights --------------------------------------------------------------------------------------------------------------


def change_weights(change):
    """Return a maker that changes the dict of a folder's weights in model.safetensors."""

    def spoil(folder):
        state = load_file(folder / 'model.safetensors')
        save_file(change(state) or state, folder / 'model.safetensors')

    return spoil


def cast_weights(dtype):
    """Return a maker that stores all weights as another type of number."""
    return change_weights(lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})


def scale_weights(factor):
    """Return a maker that multiplies all weights, so that they are finite and the logits are not."""
    return change_weights(lambda state: {name: tensor * factor for name, tensor in state.items()})


def write_header(header, body=b'', size=None):
    """Return a maker of a model.safetensors with this header, a dict or bytes, that says it has `size` bytes."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return write('model.safetensors', struct.pack('<Q', len(data) if size is None else size) + data + body)


def tensor_header(shape, offsets, dtype='F32'):
    """Return the header of a safetensors file with one tensor."""
    return {'transformer.wte.weight': {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}}


def index_of(value):
    """Return a maker of an index that says where each weight is, in place of model.safetensors."""

    def spoil(folder):
        (folder / 'model.safetensors').rename(folder / 'part.safetensors')
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / 'model.safetensors.index.json').write_text(text, encoding='utf-8')

    return spoil


def as_torch_file(change=lambda state: state):
    """Return a maker that stores the weights as pytorch_model.bin, changed."""

    def spoil(folder):
        state = load_file(folder / 'model.safetensors')
        (folder / 'model.safetensors').unlink()
        torch.save(change(state), folder / 'pytorch_model.bin')

    return spoil


# Checkpoints ----------------------------------------------------------------------------------------------------------


def change_checkpoint(change, name='ckpt.pt'):
    """Return a maker that changes what a checkpoint holds: change(checkpoint) returns it, or changes it in place."""

    def spoil(folder):
        checkpoint = torch.load(folder / name, weights_only=True)
        changed = change(checkpoint)
        torch.save(checkpoint if changed is None else changed, folder / name)

    return spoil


def set_checkpoint(**values):
    """Return a maker that sets entries of a checkpoint."""
    return change_checkpoint(lambda checkpoint: {**checkpoint, **values})


def set_shape(**values):
    """Return a maker that sets entries of a checkpoint's model_args."""
    return change_checkpoint(lambda checkpoint: checkpoint['model_args'].update(values))


def set_weight(make, name='transformer.wte.weight'):
    """Return a maker that puts make(tensor) in place of one of a checkpoint's weights."""
    return change_checkpoint(lambda checkpoint: checkpoint['model'].update({name: make(checkpoint['model'][name])}))


def compress_checkpoint(folder):
    """Store 8 GB of zeros in a checkpoint of some megabytes: torch reads compressed archives, but writes none."""
    small = folder / 'small.pt'
    torch.save({'model': {'transformer.wte.weight': torch.zeros(4)}, 'model_args': dict(SIZE)}, small)
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(folder / 'ckpt.pt', 'w', zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            if entry.filename.endswith('data/0'):
                with target.open(entry.filename, 'w', force_zip64=True) as file:
                    for _ in range(512):
                        file.write(bytes(2**20))
            else:
                target.writestr(entry.filename, source.read(entry))


class _Calls:
    """Pickles as a call of a function with these arguments."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def pickle_calling(function, *arguments):
    """Return a maker of a checkpoint that calls a function when it is read carelessly."""

    def spoil(folder):
        path = folder / 'ckpt.pt'
        path.unlink()
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('archive/data.pkl', pickle.dumps({'model': _Calls(function, *arguments)}, protocol=2))
            file.writestr('archive/version', '3\n')

    return spoil


def laughs(levels=60):
    """Return a list of lists that would have 2 ** levels items if it were written out."""
    found = [1]
    for _ in range(levels):
        found = [found, found]
    return found


# Tokenizers -----------------------------------------------------------------------------------------------------------


def set_tokenizer(**changes):
    """Return a maker that changes keys of tokenizer.json; a__b is b in a."""
    return change_json('tokenizer.json', **changes)


def charsmap(data):
    """Return the normaliser Precompiled with these bytes as its map."""
    return {'type': 'Precompiled', 'precompiled_charsmap': base64.b64encode(data).decode()}


def split_by(pattern):
    """Return a pre-tokenizer that splits texts by a regular expression before it takes bytes."""
    split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
    level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
    return {'type': 'Sequence', 'pretokenizers': [split, level]}


def give_same_id(contents):
    """Let two tokens have one id."""
    vocab = contents['model']['vocab']
    first, second, *_ = [token for token, id in vocab.items() if id > 300]
    vocab[first] = vocab[second]


def move_last_id(id):
    """Return a change that gives the last token another id."""

    def edit(contents):
        vocab = contents['model']['vocab']
        vocab[max(vocab, key=vocab.get)] = id

    return edit


def as_vocab_and_merges(vocab=None, merges=None):
    """Return a maker that stores the tokenizer as vocab.json and merges.txt; arguments replace either text."""

    def spoil(folder):
        model = json.loads((folder / 'tokenizer.json').read_text(encoding='utf-8'))['model']
        (folder / 'tokenizer.json').unlink()
        lines = '\n'.join(' '.join(merge) for merge in model['merges'])
        text = json.dumps(model['vocab']) if vocab is None else vocab
        (folder / 'vocab.json').write_text(text, encoding='utf-8')
        (folder / 'merges.txt').write_text(lines if merges is None else merges, encoding='utf-8')

    return spoil


def copy_tree(source, target):
    """Copy a folder, replacing what is there."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))
