"""The texts that the models learn from and are measured on: sources, licences, sizes, SHA-256; checking and building.

    python -m lab.corpora                       every text: what it is, whose, its licence, its size and its SHA-256
    python -m lab.corpora --check=data/corpora  are the files in this folder these, and was no text that models are
                                                measured on seen in training?
    python -m lab.corpora --build=data/corpora  write those that can be built from the Hugging Face hub into a folder

The texts are not part of this project. What is built from the hub comes from the same sources as the files listed
here, but is not the same selection: models trained on it have other numbers.
"""

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

import configurator
from common.errors import UserError
from common.files import PROJECT, atomic_write, expand_path, file_sha256
from common.text_files import read_text_chunks
from texts.hub_datasets import open_hub_table
from texts.plain_text import split_documents

SEPARATOR = '\n\n\n'  # between documents
RUN = 12  # words in a row; see find_seen_documents
MOST_SEEN = 0.1  # a text in which more of these runs are also in a training text counts as seen


@dataclass
class Settings:
    """List the texts that the models learn from and are measured on, check a copy of them, or build one."""

    check: str = ''  # a folder: compare its files with the list, and look for measured texts in the training texts
    build: str = ''  # a folder: write what the Hugging Face hub has into it; files that exist are kept
    stories: int = 8337  # TinyStories to train on, of the hub's two million, when building
    heldout_stories: int = 541  # TinyStories to measure on, from its validation split, when building


class Source(NamedTuple):
    """Where a text comes from."""

    what: str
    licence: str
    where: str


class Corpus(NamedTuple):
    """A text file: documents with two empty lines between them."""

    name: str
    what: str
    training: bool  # or only for measuring
    size: int  # bytes
    sha256: str
    sources: tuple[Source, ...]


GUTENBERG = 'public domain in the USA'
TINYSTORIES = Source(
    'TinyStories, written by GPT-3.5 and GPT-4 (Eldan & Li 2023, https://arxiv.org/abs/2305.07759)',
    'CDLA-Sharing-1.0, which does not restrict what is learned from the data',
    'hub: roneneldan/TinyStories; the parts of it in the public repositories czhou578/train-gpt2, '
    'mines-opt-ml/decoding-gpt, Aditya584cloud/small-scale-gpt2-type-from-scratch, yuninxia/moe-routing-bench, '
    'biggs-100/MoRE, s-ajaykumar/smallGPT and EinfachSim/muGPT, without exact duplicates; some are from its '
    'validation split',
)
FAIRYTALEQA = Source(
    'FairytaleQA (Xu et al. 2022, https://arxiv.org/abs/2203.13947); its tales are from Project Gutenberg',
    f'Apache-2.0; the tales: {GUTENBERG}',
    'hub: WorkInTheDark/FairytaleQA',
)
CORPORA = (
    Corpus(
        'novels.txt',
        'English novels in 305 chapters: Austen, Melville, Edgeworth, Chesterton',
        True,
        5_319_782,
        '7340db7efc6c6cd5678bec495d1ad7f65ac6a8d98c4ac260a69968470d99e31d',
        (Source('Project Gutenberg', GUTENBERG, "NLTK's gutenberg corpus, spaces around punctuation mended"),),
    ),
    Corpus(
        'victorian_children.txt',
        "1,310 chapters of children's books of the 19th century",
        True,
        23_802_574,
        '14c805423cb10e6fa5a4f68e0c25f9e7183b177fb76f2089e3ecbcf2c4f25dfb',
        (
            Source(
                'Project Gutenberg', GUTENBERG, 'ChiLit in birmingham-ccr/corpora, without chapters of the other files'
            ),
        ),
    ),
    Corpus(
        'childrens_stories.txt',
        "332 pieces of children's books",
        True,
        4_059_512,
        'd8b21aa380eeafcfd83abddb9b98154da1fdd4044a14754f7190050277abb83a',
        (
            Source(
                'Project Gutenberg',
                GUTENBERG,
                'hub: deven367/babylm-100M-children-stories; the last fifth of the Children Stories Text Corpus',
            ),
        ),
    ),
    Corpus(
        'fairytales.txt',
        '216 fairy tales: the training split of FairytaleQA, without tales of the other files',
        True,
        2_361_264,
        'a6ebc5fbbad07b84f95748d69b2741bedac914810c149edd48088c73ac4a76b1',
        (FAIRYTALEQA,),
    ),
    Corpus(
        'simple_stories.txt',
        '1,876 simple stories, of people and of language models',
        True,
        3_412_272,
        'dc6bb1b1c7f670b076edf786dbd2edaf5b69dba7ef245ed5a2a34697698d22ab',
        (
            Source('Pratham StoryWeaver', 'CC BY 4.0', 'global-asp/pb-source'),
            Source('African Storybook', 'CC BY', 'global-asp/asp-source'),
            Source('Book Dash', 'CC BY 4.0', 'bookdash/bookdash-books'),
            Source('The Aesop for Children (1919)', 'public domain', 'Project Gutenberg'),
            Source('fables written by Mistral, Qwen, Phi-3 and SmolLM2', 'MIT', 'klusai/tinyfabulist'),
        ),
    ),
    Corpus(
        'tinystories.txt',
        '8,337 simple stories',
        True,
        6_952_761,
        'eb841dfefce83d239cce92805771f482bfd89925e37acc209764fb7ed0c7260a',
        (TINYSTORIES,),
    ),
    Corpus(
        'tinystories_heldout.txt',
        '541 more of them',
        False,
        465_041,
        '66cfd0907763d4d214797ae7b5096231ba742ea483a4efaa270cc65cfb9a6910',
        (TINYSTORIES,),
    ),
    Corpus(
        'fairytales_heldout.txt',
        '23 fairy tales: the validation split of FairytaleQA',
        False,
        288_491,
        '5aefb9f2d235ed9922b17a23f90da70048fc6cdc74368fd68ac10f9fb18ce6c9',
        (FAIRYTALEQA,),
    ),
)


def main(settings):
    """List the texts, check those in a folder, or build some of them."""
    if settings.check and settings.build:
        raise UserError('give --check for a folder that has the texts, or --build for a new one, but not both')
    for name in ('stories', 'heldout_stories'):
        if getattr(settings, name) < 1:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be at least 1')
    if settings.check:
        check_folder(expand_path(settings.check))
    elif settings.build:
        build_folder(expand_path(settings.build), settings.stories, settings.heldout_stories)
    else:
        print('\n\n'.join(map(describe_corpus, CORPORA)))


def describe_corpus(corpus):
    """Return the name, source, licence, size and SHA-256 of a text, as a few lines to print."""
    lines = [
        f'{corpus.name}: {corpus.what}',
        f'  used for   {"training" if corpus.training else "measuring; never train on it"}',
    ]
    for source in corpus.sources:
        lines += [f'  source     {source.what}', f'  licence    {source.licence}', f'  where      {source.where}']
    return '\n'.join([*lines, f'  bytes      {corpus.size:,}', f'  SHA-256    {corpus.sha256}'])


# Checking -----------------------------------------------------------------------------------------------------------


def check_folder(folder):
    """Compare the files in a folder with the list, and look for measured texts in the training texts.

    Raises UserError if there is no such folder, or if a model trained on these files has seen what it is measured on.
    """
    if not folder.is_dir():
        raise UserError(f'there is no folder {folder}; python -m lab.corpora --build={folder} makes one from the hub')
    for corpus in CORPORA:
        print(f'{corpus.name}: {compare_file(folder / corpus.name, corpus)}')
    present = [corpus for corpus in CORPORA if (folder / corpus.name).is_file()]
    training = [folder / corpus.name for corpus in present if corpus.training]
    if not training:
        raise UserError(f'{folder} has none of the training texts')
    measured = {corpus.name: list(documents_of(folder / corpus.name)) for corpus in present if not corpus.training}
    measured |= project_texts()
    seen = 0
    for name, shares in find_seen_documents(measured, training).items():
        seen += int((shares > MOST_SEEN).sum())
        most = f'more than {shares.max():.1%} of its runs of {RUN} words' if shares.max() else f'a run of {RUN} words'
        print(f'{name}: of {len(shares):,} texts, none shares {most} with the training texts')
    if seen:
        raise UserError(
            f'{seen} of the texts that models are measured on share more than {MOST_SEEN:.0%} of their runs of {RUN} '
            'words with the training texts: take them out of one or the other'
        )


def compare_file(path, corpus):
    """Return in a few words whether a file is the one in the list."""
    if not path.is_file():
        return 'missing'
    if path.stat().st_size == corpus.size and file_sha256(path) == corpus.sha256:
        return 'the same file'
    return f'another text: {path.stat().st_size:,} bytes instead of {corpus.size:,}, SHA-256 {file_sha256(path)}'


def project_texts():
    """Return the project's own texts, which no model has seen: {file: texts}. A question counts with each choice."""
    stories = 'data/childrens_stories/childrens_stories.txt'
    texts = {stories: list(documents_of(PROJECT / stories))}
    for name in ('eval_data.json', 'data/story_questions.json'):
        pairs = json.loads((PROJECT / name).read_text(encoding='utf-8'))
        texts[name] = [
            pair['prompt'] + choice for pair in pairs for choice in (pair['response'], *pair.get('distractors', ()))
        ]
    return texts


def documents_of(path):
    """Yield the documents of a text file."""
    return split_documents(read_text_chunks(path), SEPARATOR)


def find_seen_documents(measured, training):
    """Return how much of each measured document is in the training texts: {name: shares}.

    measured: {name: documents}. training: paths. A document's share is the part of its runs of RUN words, without case
    and punctuation, that are anywhere in a training text; 0 if it is shorter than a run.
    """
    numbers = {}  # word -> number
    runs = {name: [number_runs(text, numbers) for text in documents] for name, documents in measured.items()}
    above = np.array([2**64 - 1], np.uint64)  # so that searchsorted always finds a place
    wanted = np.unique(np.concatenate([above, *(each for several in runs.values() for each in several)]))
    found = np.zeros(len(wanted), bool)
    for path in training:
        for text in documents_of(path):
            mine = number_runs(text, numbers)
            places = np.searchsorted(wanted, mine)
            found[places[wanted[places] == mine]] = True
    return {
        name: np.array([found[np.searchsorted(wanted, each)].mean() if len(each) else 0.0 for each in several])
        for name, several in runs.items()
    }


def number_runs(text, numbers):
    """Return a 64-bit number for each run of RUN words in a text, the same for the same words. numbers: of words."""
    words = re.findall(r"\w+(?:['’]\w+)*", text.casefold())
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.uint64) + np.uint64(1)
    n = max(0, len(ids) - RUN + 1)
    factors = np.random.default_rng(0).integers(2**63, 2**64 - 1, RUN, dtype=np.uint64)
    return sum((ids[place : place + n] * factor for place, factor in enumerate(factors)), np.zeros(n, np.uint64))


# Building -----------------------------------------------------------------------------------------------------------


def build_folder(folder, n_stories, n_heldout):
    """Write the texts that the hub has into a folder, except those that are there already.

    Raises UserError if the hub cannot deliver; the same command then goes on where it stopped.
    """
    training = {
        'tinystories.txt': partial(read_stories, 'train', n_stories),
        'fairytales.txt': partial(read_tales, 'train'),
        'childrens_stories.txt': read_childrens_stories,
    }
    measured = {
        'tinystories_heldout.txt': partial(read_stories, 'validation', n_heldout),
        'fairytales_heldout.txt': partial(read_tales, 'validation'),
    }
    for name, read in (training | measured).items():
        if (folder / name).exists():
            print(f'{folder / name} exists and is kept')
        elif name in training:
            write_documents(folder / name, read())
        else:
            documents = list(read())
            shares = find_seen_documents({name: documents}, [folder / name for name in training])[name]
            write_documents(folder / name, [text for text, share in zip(documents, shares) if share <= MOST_SEEN])
            if left_out := int((shares > MOST_SEEN).sum()):
                print(f'left out, since they are also in the training texts: {left_out:,}')
    for corpus in CORPORA:
        if corpus.name not in training | measured:
            places = ', '.join(source.where for source in corpus.sources)
            print(f'{corpus.name} is not on the hub; it comes from {places}')
    print(f'to compare them with the texts of the shipped models: python -m lab.corpora --check={folder}')


def write_documents(path, documents):
    """Write a text file, document by document; say how large it is."""
    documents = iter(documents)
    first = next(documents, '')  # if the hub has no answer, no folder is made
    with atomic_write(path) as temporary, open(temporary, 'w', encoding='utf-8', newline='\n') as file:
        file.write(first)
        file.writelines(f'{SEPARATOR}{text}' for text in documents)
    print(f'{path}: {path.stat().st_size:,} bytes, SHA-256 {file_sha256(path)}', flush=True)


def read_rows(name, split):
    """Yield the rows of a dataset on the hub, dicts by column; raise UserError if the hub cannot deliver."""
    rows, _ = open_hub_table(
        name,
        split=split,
        request=f'{name} ({split})',
        way_out='connect to the network and repeat the command: it goes on where it stopped',
    )
    yield from rows


def read_stories(split, count):
    """Yield the first `count` different TinyStories of a split."""
    seen = set()
    for row in read_rows('roneneldan/TinyStories', split):
        story = clean(row['text'])
        if len(seen) == count:
            return
        if story and story not in seen:
            seen.add(story)
            yield story


def read_tales(split):
    """Yield the tales of FairytaleQA, put together from the sections that its questions are about.

    A question about several sections has them all as one text, which is left out where these sections are already
    known.
    """
    tales = {}
    for row in read_rows('WorkInTheDark/FairytaleQA', split):
        tales.setdefault(row['story_name'], {})[clean(row['story_section'])] = None
    for sections in tales.values():
        yield '\n'.join(text for text in sections if not any(other != text and other in text for other in sections))


def read_childrens_stories():
    """Yield the last fifth of the Children Stories Text Corpus, cut before headings, which are lines of capitals."""
    text = '\n'.join(row['text'] for row in read_rows('deven367/babylm-100M-children-stories', 'train'))
    text = text[text.find('\n', len(text) * 4 // 5) + 1 :]
    yield from filter(None, map(clean, re.split(r"\n\s*(?=[A-Z][A-Z .,;:'’!?-]{3,}\n)", text)))


def clean(text):
    """Return a document without empty lines around it, and at most one inside it: two separate documents."""
    return re.sub(r'\n[ \t]*(?:\n[ \t]*)+\n', '\n\n', text.replace('\r\n', '\n')).strip()


if __name__ == '__main__':
    configurator.run(main, Settings)
