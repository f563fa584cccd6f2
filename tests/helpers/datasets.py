"""Stories, and the datasets that prepare_bin.py makes from them."""

import itertools
import json
from pathlib import Path

import numpy as np

import prepare_bin
from helpers.scripts import PROJECT
from lm.tokenizer import tokenizer_from_contents, train_bpe
from lm.tokenizer_base import Tokenizer
from prepare_bin import Settings
from texts.plain_text import split_documents

STORIES = [
    f'The Tale of {name}\n\n'
    + '\n\n'.join(f'{name} went {way}, {number} times, and met a {beast}.' for number, way in enumerate(ways, 2))
    for name, beast, ways in [
        ('Ada', 'newt', ['up', 'down', 'out']),
        ('Bo', 'goose', ['home']),
        ('Cy', 'snail 🐌', ['slowly', 'on', 'and on', 'past the “inn”', 'under']),
        ('Dot', 'dragon', ['by', 'in']),
        ('Élan', 'hare', ['off', 'far', 'very far', 'back']),
        ('Flo', 'crow', ['up']),
        ('Gus', 'goat', ['over', 'around', 'through', 'up', 'down', 'home']),
        ('Hal', 'hen', ['to bed', 'to sea']),
        ('Ivy', 'ibis', ['aboard', 'ashore']),
        ('Jo', 'jackdaw', ['by train', 'by boat', 'on foot']),
        ('Kit', 'kite', ['up', 'up', 'up']),
        ('Lu', 'lynx', ['nowhere']),
    ]
]
TEXT = '\n\n\n'.join(STORIES) + '\n'
CORPUS = PROJECT / 'data' / 'childrens_stories'


def corpus():
    """Return the text of the shipped stories."""
    return (CORPUS / 'childrens_stories.txt').read_text(encoding='utf-8')


def stories_of(text):
    """Return the stories of a text."""
    return list(split_documents([text], '\n\n\n'))


def save_small_bpe(folder):
    """Save a small tokenizer that has <|endoftext|>; return the folder."""
    train_bpe(STORIES, 300).save(folder)
    return folder


def prepare(text=TEXT, **settings):
    """Run prepare_bin.py on a text in the current folder; return the folder of the dataset."""
    if text is not None:
        Path('stories.txt').write_bytes(text.encode())
    prepare_bin.main(Settings(**{'input': 'stories.txt', 'dataset': 'tales'} | settings))
    return Path('data/tales')


def meta_of(folder):
    """Return the contents of a dataset's meta.json."""
    return json.loads((folder / 'meta.json').read_text(encoding='utf-8'))


def ids_of(folder, split):
    """Return the token ids in a .bin file."""
    return np.fromfile(folder / f'{split}.bin', dtype=meta_of(folder)['dtype']).tolist()


def documents_of(folder, split):
    """Return the documents in a .bin file; check that <|endoftext|> is before, between and after them."""
    tokenizer = tokenizer_from_contents(meta_of(folder)['tokenizer'])
    ids = ids_of(folder, split)
    if not ids:
        return []
    assert ids[0] == ids[-1] == tokenizer.eot
    marks = [place for place, id in enumerate(ids) if id == tokenizer.eot]
    return [tokenizer.decode(ids[start + 1 : end]) for start, end in itertools.pairwise(marks)]


def both_of(folder):
    """Return the documents of train and of val."""
    return documents_of(folder, 'train'), documents_of(folder, 'val')


def assert_whole_and_apart(train, val, documents):
    """Check that every document is in exactly one split, in the order of the text."""
    assert sorted(train + val) == sorted(documents)
    assert train == [document for document in documents if document in train]
    assert val == [document for document in documents if document in val]


class CodePoints(Tokenizer):
    """A tokenizer whose ids are Unicode code points."""

    can_be_cut = True

    def __init__(self, vocab_size, eot):
        self.vocab_size, self.eot, self.contents = vocab_size, eot, {'kind': 'code points'}

    def encode(self, text):
        return [ord(char) for char in text]

    def encode_array(self, text, dtype):
        return np.array(self.encode(text), dtype)
