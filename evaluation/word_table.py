"""How surprising each word is: from texts, or from the table of an experiment, to words.csv."""

import csv
import itertools
import math
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from common.errors import UserError
from common.files import atomic_write, create_run_folder, make_folder, resolve_path
from common.notes import note
from common.strings import show_invisible
from common.text_files import text_kind
from evaluation.result_folder import result_path
from evaluation.running_text import open_text, share_context
from lm.settings import model_name
from lm.words import score_words
from texts.plain_text import split_documents
from texts.tables import TABLES

TEXTS = ('text', 'sentence')  # names of a column with a whole text in each row
WORDS = ('word', 'token', 'region_text')  # names of a column with one word in each row
READERS = ('participant', 'subject', 'subj', 'worker')  # of whom several may have read the same item
GROUPS = ('item', 'condition', 'sentence_id', 'text_id', 'story', 'passage', 'list', 'trial')
COLUMNS = ('tokens', 'surprisal_sum_bits', 'surprisal_corrected_bits', 'entropy_bits', 'rank')
MEANINGS = """
surprisal_sum_bits: minus log2 of the probability of the word's tokens, which include the space before it
surprisal_corrected_bits: the space after a word counts to it, not the one before it (Pimentel & Meister 2024)
entropy_bits: of the model's distribution before the word's first token; rank: of that token
""".strip()


class Item(NamedTuple):
    """A text, and the rows of the output that its words go into."""

    text: str
    rows: list  # the columns to copy: one dict for all words, or one for each row that has words of its own
    sizes: list | None  # how many words each row has; None if every word has a row of its own


def measure_words(settings, subjects):
    """Write words.csv for a text or the items of an experiment, print its first rows, and return all of them."""
    if settings.save and (result_path(settings) / 'words.csv').exists():
        raise UserError(f'{result_path(settings)} contains words.csv: choose another --save')
    block_sizes = [subject.model.block_size for subject in subjects]
    block_sizes = share_context([subject.tokenizer for subject in subjects], block_sizes)
    longest = min(block_sizes)
    if settings.stride is not None and not 1 <= settings.stride <= longest:
        raise UserError(f'--stride={settings.stride}: it must be 1 to {longest} tokens, the context of the model')
    items = list(read_items(settings))
    if clash := {name for item in items for row in item.rows for name in row if name.startswith(COLUMNS)}:
        raise UserError(f'{settings.items} has the columns {", ".join(sorted(clash))}, which this writes: rename them')
    if settings.punctuation not in ('attached', 'apart'):
        raise UserError(f'--punctuation={settings.punctuation} is neither attached nor apart')
    if settings.punctuation == 'apart' and any(item.sizes for item in items):
        raise UserError(f'--punctuation=apart: the rows of {settings.items} already say what the words are')
    texts = [item.text for item in items]
    scored = [
        list(score_words(subject.model, subject.tokenizer, texts, settings.punctuation, settings.stride, block_size))
        for subject, block_size in zip(subjects, block_sizes)
    ]
    rows = []
    for number, item, *words in zip(itertools.count(1), items, *scored):
        rows += item_rows(number, item, words)
    if settings.save:
        make_folder(folder := result_path(settings))
    else:
        folder = create_run_folder(settings.plot_dir, f'words-{model_name(settings)}')
    with atomic_write(Path(folder) / 'words.csv') as path, open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(itertools.chain(*rows))), restval='')
        writer.writeheader()
        writer.writerows(rows)
    print_words(rows[: settings.show])
    print(MEANINGS)
    print(f'{len(rows):,} words of {len(items):,} text{"" if len(items) == 1 else "s"}: {folder}/words.csv')
    return rows


def read_items(settings):
    """Yield an Item for each text of --text, whose documents are two empty lines apart, or of the table --items."""
    if not settings.items:
        _, chunks, *_ = open_text(settings.text)
        for text in split_documents(chunks(), '\n\n\n'):
            yield Item(text, [{}], None)
        return
    path = resolve_path(settings.items)
    if not path.exists():
        raise UserError(f'there is no file {path}, which --items names')
    if not path.is_file() or text_kind(path) not in TABLES:
        raise UserError(f'--items={settings.items} is no table; it should be a file such as items.csv')
    rows = list(TABLES[text_kind(path)](path, settings.items_column))
    names = [settings.items_column] if settings.items_column else [*WORDS, *TEXTS]
    column = next((name for name in names if rows and name in rows[0]), None)
    if column is None:
        raise UserError(
            f'{path} has no column {" or ".join(names)}; --items_column=NAME names the one with the texts, or with one '
            f'word in each row; its columns are {", ".join(rows[0]) if rows else "missing"}'
        )
    texts = [str(row.get(column) or '') for row in rows]  # a row of a JSON file may lack it
    has_texts = column in TEXTS or (column not in WORDS and any(' ' in text.strip() for text in texts))
    kind = 'a text' if has_texts else 'a word or a region of a text'
    note(f'{path}: each row is {kind}, in the column {column!r}')
    if has_texts:
        for text, row in zip(texts, rows, strict=True):
            yield Item(text, [row], None)
        return
    groups = [name for name in GROUPS if name in rows[0]]
    if not groups:
        raise UserError(f'{path} has one word in each row, but no column {" or ".join(GROUPS)} to tell the texts apart')
    for of_text in group_rows(rows, [*groups, *(name for name in READERS if name in rows[0])], path):
        words = [str(row.get(column) or '').split() for row in of_text]
        yield Item(' '.join(itertools.chain(*words)), of_text, [len(of_row) for of_row in words])


def group_rows(rows, names, path):
    """Return lists of rows, one for each text: rows that follow one another with the same values in these columns."""

    def values(row):
        return tuple(str(row.get(name)) for name in names)

    texts = [list(of_text) for _, of_text in itertools.groupby(rows, key=values)]
    same = f'{path}: rows that follow one another with the same {", ".join(names)}'
    note(f'{same} are one text, so there are {len(texts):,}')
    if again := len(texts) - len({values(of_text[0]) for of_text in texts}):
        note(f'{path}: {again:,} of them are like an earlier one in these columns; sort the rows if a text is torn')
    return texts


def item_rows(number, item, words_of):
    """Return the rows of words.csv for an item. words_of: its Words under each model."""
    rows, place = [], 0
    for row_number, size in enumerate(item.sizes or [1] * len(words_of[0]), 1):
        of_row = [words[place : place + size] for words in words_of]
        place += size
        row = {'item': number, 'word_number': row_number, 'word': ' '.join(word.text for word in of_row[0])}
        row |= item.rows[row_number - 1 if item.sizes else 0]  # its own item and word count first
        for suffix, words in zip(('', '_before'), of_row):
            row |= {f'{name}{suffix}': value for name, value in zip(COLUMNS, combine_words(words))}
        rows.append(row)
    return rows


def combine_words(words):
    """Return the values of COLUMNS for the words of a row, mostly one; none for a word without a token of its own."""
    words = [word for word in words if word.tokens]
    if not words:
        return [0, '', '', '', '']
    bits, corrected = (math.fsum(getattr(word, name) for word in words) for name in ('surprisal', 'corrected'))
    values = [bits, corrected, words[0].entropy, words[0].rank]
    return [sum(word.tokens for word in words), *('' if math.isnan(value) else value for value in values)]


def print_words(rows):
    """Print the first rows, without the columns that were copied."""
    table = Table()
    names = ['item', 'word_number', 'word', *(name for name in rows[0] if name.startswith(COLUMNS))] if rows else []
    for name in names:
        table.add_column(name.replace('_', '\n'), justify='left' if name == 'word' else 'right')
    for row in rows:
        values = (row[name] for name in names)
        table.add_row(*(f'{value:.2f}' if isinstance(value, float) else show_invisible(str(value)) for value in values))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
