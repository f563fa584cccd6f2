"""Turn text files into the token files that train.py reads: data/<dataset>/train.bin, val.bin and meta.json.

    python prepare_bin.py --input=my_stories.txt --dataset=my_stories
    python prepare_bin.py --input='books/*.txt' --dataset=books --train_bpe=4096

A .bin file is the tokens of its documents one after another, 16 bits each (32 where the vocabulary needs them), with
<|endoftext|> before, between and after the documents; a character tokenizer has none and gets the separator instead.
"""

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import configurator
from common import UserError, find, sha256, written_whole
from tokenizer import CharTokenizer, from_name, train_bpe


@dataclass
class Settings:
    """Turn text files into the token files that train.py reads."""

    input: str = ''  # text files (UTF-8), separated by commas; patterns such as 'books/*.txt' are understood
    dataset: str = ''  # name of the dataset: its files go to data/<dataset>/
    tokenizer: str = 'gpt2'  # gpt2, char, a shipped model (tiny), a model folder, or a tokenizer.json
    train_bpe: int | None = None  # train a BPE of this many tokens on the training part first, and use that
    separator: str = '\\n\\n\\n'  # what stands between documents; the default is two empty lines
    val_fraction: float = 0.1  # share of the text, in whole documents, that is kept for validation
    seed: int = 1337  # decides which documents are kept for validation


def main(settings):
    """Read, split, encode and write."""
    if not settings.input or not settings.dataset:
        raise UserError('say what to read and what to call it: --input=stories.txt --dataset=my_stories')
    if not 0 <= settings.val_fraction <= 1:
        raise UserError(f'--val_fraction={settings.val_fraction}: it is a share, from 0 to 1')
    if settings.seed < 0:
        raise UserError(f'--seed={settings.seed}: it cannot be negative')
    separator = read_separator(settings.separator)
    paths = input_paths(settings.input)
    documents = [document for path in paths for document in split_documents(read_text(path), separator)]
    if not documents:
        raise UserError(f'there is no text in {settings.input}')
    parts = dict(zip(('train', 'val'), hold_out(documents, settings.val_fraction, settings.seed), strict=True))
    tokenizer = choose_tokenizer(settings, documents, parts['train'], separator)

    folder = Path('data') / settings.dataset
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    meta = {
        'tokenizer': tokenizer.contents,
        'vocab_size': tokenizer.vocab_size,
        'dtype': dtype.name,
        'sources': [{'name': path.name, 'bytes': path.stat().st_size, 'sha256': sha256(path)} for path in paths],
    }
    encoded = {split: encode_documents(part, tokenizer, separator, split) for split, part in parts.items()}
    for split, part in parts.items():
        ids = encoded[split]
        with written_whole(folder / f'{split}.bin') as path:
            np.array(ids, dtype=dtype).tofile(path)
        meta[split] = {
            'documents': len(part),
            'bytes': sum(len(document.encode()) for document in part),
            'tokens': len(ids),
            'sha256': sha256(folder / f'{split}.bin'),
        }
        print(f'{folder / split}.bin: {len(part):,} documents, {meta[split]["bytes"]:,} bytes, {len(ids):,} tokens')
    with written_whole(folder / 'meta.json') as path:
        path.write_text(json.dumps(meta, indent=1) + '\n', encoding='utf-8')
    if all(parts.values()):
        by_tokenizer = {'gpt2': 'finetune_stories', 'tiny': 'finetune_own_text', 'tiny-stories': 'finetune_own_text'}
        config = by_tokenizer.get('' if settings.train_bpe else settings.tokenizer, 'train_tiny')
        print(f'train on it with: python train.py config/{config}.py --dataset={settings.dataset}')


def read_separator(text):
    """Return the separator that --separator means, \\n and other escapes as Python writes them."""
    try:
        separator = text.encode('latin-1', 'backslashreplace').decode('unicode_escape')
    except UnicodeDecodeError as error:
        raise UserError(f'--separator={text}: {error.reason}; a backslash is written as two') from error
    if not separator:
        raise UserError('--separator is empty; say what stands between documents')
    return separator


def input_paths(text):
    """Return the files that a comma-separated list of names and patterns means."""
    paths = []
    for name in text.split(','):
        found = sorted(glob.glob(name, recursive=True)) or [find(name)]
        paths += [Path(path) for path in found]
    return list({path.resolve(): path for path in paths}.values())  # once each, or val would hold what train holds


def read_text(path):
    """Read a UTF-8 file, its line ends made \\n."""
    try:
        return path.read_text(encoding='utf-8-sig')
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(
            f'{path} is not UTF-8 text (byte {error.start}); convert it, for example with iconv -t UTF-8'
        ) from error


def split_documents(text, separator):
    """Return the documents of a text, without the empty lines around them.

    Lines that hold nothing but white space count as empty.
    """
    text = re.sub(r'^[ \t]+$', '', text, flags=re.MULTILINE)
    documents = (document.strip('\n') for document in text.split(separator))
    return [document for document in documents if document]


def hold_out(documents, fraction, seed):
    """Split documents into (train, val), whole ones, until val has its fraction of the characters, one at the least.

    A single document is cut in two, at the end of a paragraph if there is one near where the fraction begins.
    """
    if len(documents) == 1 and 0 < fraction < 1:
        return cut(documents[0], 1 - fraction)
    goal = fraction * sum(map(len, documents))
    val, size = set(), 0
    for index in np.random.default_rng(seed).permutation(len(documents)):
        # One more document only if that brings the size nearer to the goal; and never the last one, unless asked to.
        if size + len(documents[index]) / 2 <= goal and (fraction == 1 or len(val) < len(documents) - 1):
            val.add(index)
            size += len(documents[index])
    if fraction > 0 and not val:
        val.add(min(range(len(documents)), key=lambda index: len(documents[index])))
    train = [document for index, document in enumerate(documents) if index not in val]
    return train, [documents[index] for index in sorted(val)]


def cut(text, fraction):
    """Cut one text in two at the end of a paragraph, else of a line, else of a word, else anywhere.

    A place counts only if it makes the smaller part at most half as large again, and at least half as large, as asked.
    """
    goal = fraction * len(text)
    near = min(fraction, 1 - fraction) * len(text) / 2
    for end in ('\n\n', '\n', ' ', ''):
        places = [match.end() for match in re.finditer(re.escape(end), text) if 0 < match.end() < len(text)]
        places = [place for place in places if abs(place - goal) <= near or not end]
        if places:
            at = min(places, key=lambda place: abs(place - goal))
            return [text[:at]], [text[at:]]
    return [text], []


def choose_tokenizer(settings, documents, train, separator):
    """Return the tokenizer that the settings name, or train the one that they ask for."""
    if settings.train_bpe is not None:
        return train_bpe(train, settings.train_bpe)
    if settings.tokenizer == 'char':
        return CharTokenizer(sorted(set(separator).union(*documents)))
    return from_name(settings.tokenizer)


def encode_documents(documents, tokenizer, separator, label, batch=64):
    """Return the ids of all documents, one list, marked off from each other."""
    between = [tokenizer.eot] if tokenizer.eot is not None else tokenizer.encode(separator)
    ids = list(between) if documents else []
    with tqdm(total=len(documents), desc=label, unit='document', leave=False, disable=None) as progress:
        for first in range(0, len(documents), batch):
            for encoded in tokenizer.encode_batch(documents[first : first + batch]):
                ids += encoded + between
                progress.update()
    return ids


if __name__ == '__main__':
    configurator.run(main, Settings)
