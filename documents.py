"""Documents: read from text files, tables (.jsonl, .csv, .parquet) or the Hugging Face hub, and shared out to splits.

A text file holds documents with a separator between them; in a table every row is one. However large the source, only
a few megabytes of it are in memory: a document longer than LONGEST characters is cut into several.
"""

import codecs
import csv
import difflib
import glob
import io
import json
import re
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import UserError, find
from tokenizer import without_surrogates

SPLITS = ('train', 'val', 'test')
CHUNK = 2**16  # bytes that are read at once; with more, freed memory lies in pieces that are hard to use again
LONGEST = 2**22  # characters of the longest document: about eight novels
LONGEST_ROW = 2**27  # characters of the longest row of a table, which has to be held as a whole
PIECE = 2**18  # characters that a tokenizer is given at a time; some take memory or time out of proportion to more
PEEK = 100  # rows that say which columns a table has


def input_paths(text):
    """Return the files that a comma-separated list of names, folders and patterns such as 'books/*.txt' means.

    Of a folder, all files below it that can be read, sorted by path; hidden ones stay out. Raises UserError for a file
    that is not there or of a kind that is not read.
    """
    paths = []
    for name in [text] if text and find(text).exists() else filter(None, text.split(',')):
        for path in map(Path, sorted(glob.glob(name, recursive=True)) or [find(name)]):
            paths += files_below(path) if path.is_dir() else [path]
    for path in paths:
        if not path.exists():
            raise UserError(f'{path} cannot be read: No such file or directory')
        if path.suffix.lower() not in KINDS:
            raise UserError(f'{path} is of a kind that is not read; those that are: {", ".join(KINDS)}')
    return list({path.resolve(): path for path in paths}.values())  # once each, or val would hold what train holds


def files_below(folder):
    """Return the files in a folder and its folders that can be read, sorted by path, without hidden ones."""
    found = {path.relative_to(folder): path for path in folder.rglob('*') if path.suffix.lower() in KINDS}
    names = [name for name in found if found[name].is_file() and not any(part.startswith('.') for part in name.parts)]
    if not names:
        raise UserError(f'there is nothing to read in the folder {folder}: no {", ".join(KINDS)}')
    return [found[name] for name in sorted(names, key=Path.as_posix)]


def from_files(paths, separator, column=''):
    """Yield the documents of files, in order, as text; '' for a row of a table that has none.

    column: the one that holds the text, where the file is a table; '' for the only one that there is.
    Raises UserError for what cannot be read, with the file and the place in it.
    """
    for path in paths:
        try:
            if path.suffix.lower() == '.txt':
                yield from split_documents(read_text(path), separator)
            else:
                read = TABLES[path.suffix.lower()]
                yield from row_documents(read(path, column), column, path)
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror or error}') from error


def from_hub(name, config='', split='train', column=''):
    """Return the documents of a dataset on the hub, an iterator of text, and a dict that says where they are from.

    Raises UserError, also while reading, for whatever the hub cannot give.
    """
    rows, revision = hub_table(name, config, split)
    source = {'hf_dataset': name, 'config': config or None, 'split': split, 'revision': revision}
    return row_documents(rows, column, name), source


def hub_table(name, config='', split='train'):
    """Return the rows of a dataset on the hub, an iterator of dicts by column, and the revision that they are of.

    Rows are streamed as they are needed, always those of that revision (None for a local folder, which may stand in for
    a name). Raises UserError, also while reading, for whatever the hub cannot give.
    """
    asked = f'--hf_dataset={name}{f" --hf_config={config}" if config else ""} --hf_split={split}'
    with hub_errors(asked):
        import datasets  # here, because it takes a second
        from huggingface_hub import HfApi

        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is said once, by us
        datasets.disable_progress_bars()
        # The hub's answer is asked for first: load_dataset tries for half a minute before it says that there is none.
        revision = None if Path(name).exists() else HfApi().dataset_info(name).sha
        rows = datasets.load_dataset(name, config or None, split=split, revision=revision, streaming=True)
        if rows.features:
            rows = rows.decode(False)  # pictures and sounds in other columns stay as they are
    return hub_rows(rows, asked), revision


def hub_rows(rows, asked):
    """Yield rows; the network may go at any of them."""
    with hub_errors(asked):
        yield from rows


@contextmanager
def hub_errors(asked):
    """Make whatever goes wrong at the hub one line."""
    try:
        yield
    except Exception as error:  # almost anything: datasets, huggingface_hub, httpx and pyarrow have their own
        reason = ' '.join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f'{asked} cannot be read from the Hugging Face hub: {reason}; files on this disk are read with --input'
        ) from error


# Text files ----------------------------------------------------------------------------------------------------------


def read_text(path):
    """Yield a UTF-8 file in chunks of text, its line ends made \\n. Raises UserError if it is none, with the byte."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder('utf-8-sig')(), translate=True)
    with open(path, 'rb') as file:
        final = False
        while not final:
            data = file.read(CHUNK)
            final = not data
            try:
                yield decoder.decode(data, final)
            except UnicodeDecodeError as error:
                at = file.tell() - len(error.object) + error.start  # the object is the end of what has been read
                raise UserError(
                    f'{path} is not UTF-8 text (byte {at}); convert it, for example with iconv -t UTF-8'
                ) from error


def split_documents(chunks, separator):
    """Yield the documents of a text that comes in chunks, without the empty lines around them."""
    text = ''
    for lines in whole_lines(chunks):
        *documents, text = (text + empty_blank_lines(lines)).split(separator)
        while len(text) > LONGEST + len(separator):  # so that a separator that has only half arrived is not cut
            at = place_to_cut(text, 0)
            documents.append(text[:at])
            text = text[at:]
        yield from filter(None, chain.from_iterable(map(cut_long, documents)))
    yield from filter(None, cut_long(text))


def whole_lines(chunks):
    """Yield the text of chunks cut at the ends of lines, unless a line is too long to wait for its end."""
    rest = ''
    for chunk in chunks:
        lines, newline, rest = (rest + chunk).rpartition('\n')
        yield lines + newline
        if len(rest) > LONGEST:
            yield rest
            rest = ''
    yield rest


def empty_blank_lines(text):
    """Make lines that hold nothing but white space empty."""
    return re.sub(r'\n[ \t]+(?=\n)', '\n', f'\n{text}\n')[1:-1]  # a pattern that begins with a letter is a fast one


def cut_long(text):
    """Yield the parts of a text, LONGEST characters at the most, without the empty lines around them."""
    start = 0
    while len(text) - start > LONGEST:
        end = place_to_cut(text, start)
        yield text[start:end].strip('\n')
        start = end
    yield text[start:].strip('\n')


def place_to_cut(text, start):
    """Return where the part of a long text that begins at `start` ends: after a line, else a word, else anywhere."""
    least, most = start + LONGEST // 2, start + LONGEST
    return next((end for mark in '\n ' if (end := text.rfind(mark, least, most) + 1)), most)


# Tables --------------------------------------------------------------------------------------------------------------


def row_documents(rows, column, where):
    """Yield the text of each row, dicts by column, as documents; '' where there is none.

    where: the file or dataset, for errors. Raises UserError if there is no such column or, with none named, no text
    column or several: the first rows decide.
    """
    rows = iter(rows)
    first = list(islice(rows, PEEK))
    if first:
        column = choose_column(first, column, where)
    for row in chain(first, rows):
        text = row.get(column)
        if not isinstance(text, str | None):
            raise UserError(f'{where}: the column {column!r} holds {shortened(text)}, which is not text')
        text = without_surrogates(text or '')  # JSON can write them
        yield from cut_long(empty_blank_lines(text.replace('\r\n', '\n').replace('\r', '\n')))


def choose_column(rows, column, where):
    """Return the column that is named, or the only one that holds text."""
    columns = dict.fromkeys(chain.from_iterable(rows))
    if column in columns:
        return column
    if column:
        near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
        hint = f'did you mean {near[0]}?' if near else f'there are: {", ".join(columns)}'
        raise UserError(f'{where} has no column --text_column={column}; {hint}')
    examples = {name: [row[name] for row in rows if row.get(name) not in (None, '')] for name in columns}
    examples = {name: values[0] for name, values in examples.items() if hold_text(values)}
    if not examples:
        raise UserError(f'{where} has no text column (its columns: {", ".join(columns)}); --text_column names one')
    if len(examples) > 1:
        listed = ', '.join(f'{name} ({shortened(example)})' for name, example in examples.items())
        raise UserError(f'{where} has several text columns, choose one with --text_column: {listed}')
    return next(iter(examples))


def hold_text(values):
    """Say whether the values of a column are text: strings, and not numbers written as strings, as all are in a CSV."""
    return all(isinstance(value, str) for value in values) and not all(map(is_number, values))


def is_number(text):
    """Say whether a string is how a number is written."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def shortened(value, most=30):
    """Show a value on one line, cut short."""
    text = ' '.join(str(value).split())
    return repr(text if len(text) <= most else text[: most - 1] + '…')


def lines_of(path):
    """Yield the lines of a UTF-8 file without their ends. (str.splitlines would split at U+2028 too.)"""
    rest = ''
    for chunk in read_text(path):
        *lines, rest = (rest + chunk).split('\n')
        yield from lines
        if len(rest) > LONGEST_ROW:
            raise UserError(f'{path} has a line of more than {LONGEST_ROW:,} characters; in a table a row is a line')
    if rest:
        yield rest


def read_jsonl(path, column):
    """Yield the rows of a JSON-lines file."""
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f'{path}, line {number} is not JSON: {error}') from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number} is not a JSON object such as {{"text": "..."}}')
        yield row


def read_csv(path, column):
    """Yield the rows of a CSV file whose first line names its columns."""
    csv.field_size_limit(LONGEST_ROW)  # it would be 128 KiB
    rows = csv.DictReader((line + '\n' for line in lines_of(path)), strict=True)
    try:
        for row in rows:
            if None in row:  # where the module puts fields that have no column
                raise UserError(f'{path}, line {rows.line_num} has more fields than the first line has names')
            yield row
    except csv.Error as error:
        raise UserError(f'{path}, line {rows.line_num + 1} is not CSV: {error}') from error  # where the row begins


def read_parquet(path, column):
    """Yield the rows of a Parquet file, only the column that is named if it is there."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:  # or a row group is in memory as a whole
            columns = [column] if column in file.schema_arrow.names else None
            for batch in file.iter_batches(batch_size=PEEK, columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f'{path} cannot be read as Parquet: {error}') from error


TABLES = {'.jsonl': read_jsonl, '.csv': read_csv, '.parquet': read_parquet}
KINDS = ('.txt', *TABLES)


# One file of them all -------------------------------------------------------------------------------------------------


@dataclass
class Corpus:
    """Documents in a file, one after another; of each the byte it starts at, the one it ends before, its characters.

    These are all that is in memory: 20 bytes a document, and 80 at the peak, when digests are sorted for duplicates.
    """

    path: Path
    starts: np.ndarray  # (n,) int64
    ends: np.ndarray  # (n,) int64
    chars: np.ndarray  # (n,) uint32

    def texts(self, which):
        """Yield the documents of these indices, in pieces that a tokenizer can take."""
        return chain.from_iterable(map(pieces, read(self.path, self.starts[which], self.ends[which])))


def gather(documents, path, keep_duplicates):
    """Write documents to a file, the first of equal ones; return (Corpus, how many were left out for which reason)."""
    sizes, chars, digests, empty = array('I'), array('I'), bytearray(), 0
    with open(path, 'wb') as file:
        for document in tqdm(documents, desc='reading', unit='document', leave=False, disable=None):
            if not document:
                empty += 1
                continue
            data = document.encode()
            file.write(data)
            sizes.append(len(data))
            chars.append(len(document))
            digests += blake2b(data, digest_size=16).digest()
    kept = np.arange(len(sizes))
    if kept.size and not keep_duplicates:
        _, first = np.unique(np.frombuffer(digests, 'S16'), return_index=True)
        kept = np.sort(first)
    ends = np.cumsum(sizes, dtype=np.int64)
    corpus = Corpus(path, (ends - sizes)[kept], ends[kept], np.array(chars)[kept])
    return corpus, {'duplicates_dropped': len(sizes) - len(kept), 'empty_skipped': empty}


def read(path, starts, ends):
    """Yield the documents between these bytes of a file."""
    with open(path, 'rb') as file:
        for start, end in zip(map(int, starts), map(int, ends), strict=True):
            file.seek(start)
            yield file.read(end - start).decode()


def pieces(text):
    """Yield a text in pieces of PIECE characters at the most, whose tokens are together those of the text.

    A byte-level BPE begins a new word before any white space, and tokens end where words do. So that is where to cut;
    only a run of PIECE characters without a space is cut elsewhere.
    """
    start = 0
    while len(text) - start > PIECE:
        found = re.compile(r'(?s:.*)\S(?=[ \n])').match(text, start, start + PIECE)
        end = found.end() if found else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


# Splits ------------------------------------------------------------------------------------------------------------


def share_out(corpus, shares, seed):
    """Return the split of each document, its index in SPLITS. One document alone is cut to make as many as needed."""
    wanted = [number for number, share in enumerate(shares) if share > 0]
    if len(corpus.starts) == 1:
        (text,) = read(corpus.path, corpus.starts, corpus.ends)
        parts = cut_to_shares(text, [shares[number] for number in wanted])
        sizes = np.array([len(part.encode()) for part in parts])
        corpus.ends = corpus.starts[0] + np.cumsum(sizes)
        corpus.starts = corpus.ends - sizes
        split = np.array(wanted[: len(parts)])
    else:
        split = hold_out(corpus.chars, shares, seed)
    lacking = [SPLITS[number] for number in wanted if number not in split]
    if lacking:
        few = f'{len(corpus.starts)} document{"s"[: len(corpus.starts) > 1]}'
        raise UserError(
            f'{few}: too little for {", ".join(SPLITS[number] for number in wanted)}, nothing is left for '
            f'{", ".join(lacking)}; more text helps, another --separator, or --val_fraction=0'
        )
    return split


def hold_out(chars, shares, seed):
    """Return the split of each document: whole ones, until val and test have their share of the characters.

    chars: (n,) characters of each. Every split that is asked for has one document at the least, while there are any.
    """
    split = np.zeros(len(chars), np.uint8)
    order = np.random.default_rng(seed).permutation(len(chars))
    for number, share in enumerate(shares[1:], 1):
        others = sum(other > 0 for other in (shares[0], *shares[number + 1 :]))
        spare = int((split == 0).sum()) - others  # each of the others needs one
        goal, size = share * int(chars.sum(dtype=np.int64)), 0
        for index in order if share > 0 else ():
            # One more document only if that brings the size nearer to the goal.
            if spare and not split[index] and size + chars[index] / 2 <= goal:
                split[index] = number
                size += int(chars[index])
                spare -= 1
        if share > 0 and not size and spare:
            left = np.flatnonzero(split == 0)
            split[left[np.argmin(chars[left])]] = number
    if shares[0] == 0:
        split[split == 0] = 2 if shares[2] > 0 else 1
    return split


def cut_to_shares(text, shares):
    """Cut one text in as many parts as there are shares, or in fewer if it is too short."""
    if len(shares) == 1 or len(text) == 1:
        return [text]
    at = place_to_halve(text, shares[0] / sum(shares))
    return [text[:at], *cut_to_shares(text[at:], shares[1:])]


def place_to_halve(text, fraction):
    """Return where to cut a text in two: after a paragraph, else a line, else a word, else anywhere.

    A place counts only if it makes the smaller part at most half as large again, and at least half as large, as asked.
    """
    goal = fraction * len(text)
    near = min(fraction, 1 - fraction) * len(text) / 2
    for end in ('\n\n', '\n', ' '):
        places = [match.end() for match in re.finditer(end, text) if 0 < match.end() < len(text)]
        places = [place for place in places if abs(place - goal) <= near]
        if places:
            return min(places, key=lambda place: abs(place - goal))
    return min(max(round(goal), 1), len(text) - 1)
