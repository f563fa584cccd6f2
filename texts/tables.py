"""Read tables, in which every row is a document: .jsonl, .csv and .parquet files, and rows from a hub dataset."""

import csv
import difflib
import json
from itertools import chain, islice

from common.errors import UserError
from common.strings import replace_surrogates, shorten
from texts.plain_text import cut_long, empty_blank_lines, read_text

LONGEST_ROW = 2**27  # characters of the longest row, which is in memory as a whole
PEEK = 100  # rows to look at to find the columns of a table


# One reader for each format: (path, column) -> rows, dicts by column --------------------------------------------------


def read_jsonl(path, column):
    """Yield the rows of a JSON Lines file."""
    for number, line in enumerate(read_lines(path), 1):
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
    """Yield the rows of a CSV file whose first line names the columns."""
    csv.field_size_limit(LONGEST_ROW)  # the default is 128 KiB
    rows = csv.DictReader((line + '\n' for line in read_lines(path)), strict=True)
    try:
        for row in rows:
            if None in row:  # the csv module's key for fields without a column
                raise UserError(f'{path}, line {rows.line_num} has more fields than the first line has names')
            yield row
    except csv.Error as error:
        raise UserError(f'{path}, line {rows.line_num + 1} is not CSV: {error}') from error  # where the row begins


def read_parquet(path, column):
    """Yield the rows of a Parquet file; only the named column if the file has it."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:  # or a whole row group would be in memory
            columns = [column] if column in file.schema_arrow.names else None
            for batch in file.iter_batches(batch_size=PEEK, columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f'{path} cannot be read as Parquet: {error}') from error


TABLES = {'.jsonl': read_jsonl, '.csv': read_csv, '.parquet': read_parquet}


def read_lines(path):
    """Yield the lines of a UTF-8 file without their ends. (str.splitlines would also split at U+2028.)"""
    rest = ''
    for chunk in read_text(path):
        *lines, rest = (rest + chunk).split('\n')
        yield from lines
        if len(rest) > LONGEST_ROW:
            raise UserError(f'{path} has a line of more than {LONGEST_ROW:,} characters; each row must be one line')
    if rest:
        yield rest


# Rows to documents ----------------------------------------------------------------------------------------------------


def row_documents(rows, column, source):
    """Yield the text of each row as documents; '' for a row without text.

    rows: dicts by column. column: the one to read; '' if there is only one with text. source: the file or dataset, for
    error messages. The first rows show which columns there are. Raises UserError if the column does not exist or, if
    none is named, unless exactly one contains text.
    """
    rows = iter(rows)
    first = list(islice(rows, PEEK))
    if first:
        column = choose_column(first, column, source)
    for row in chain(first, rows):
        text = row.get(column)
        if not isinstance(text, str | None):
            raise UserError(f'{source}: the column {column!r} contains {shorten_value(text)}, which is not text')
        text = replace_surrogates(text or '')  # JSON can contain lone surrogates
        yield from cut_long(empty_blank_lines(text.replace('\r\n', '\n').replace('\r', '\n')))


def choose_column(rows, column, source):
    """Return the named column or, if none is named, the only one that contains text."""
    columns = dict.fromkeys(chain.from_iterable(rows))
    if column in columns:
        return column
    if column:
        near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
        hint = f'did you mean {near[0]}?' if near else f'there are: {", ".join(columns)}'
        raise UserError(f'{source} has no column --text_column={column}; {hint}')
    examples = {name: [row[name] for row in rows if row.get(name) not in (None, '')] for name in columns}
    examples = {name: values[0] for name, values in examples.items() if are_texts(values)}
    if not examples:
        raise UserError(f'{source} has no text column (its columns: {", ".join(columns)}); --text_column names one')
    if len(examples) > 1:
        listed = ', '.join(f'{name} ({shorten_value(example)})' for name, example in examples.items())
        raise UserError(f'{source} has several text columns, choose one with --text_column: {listed}')
    return next(iter(examples))


def are_texts(values):
    """Return whether the values of a column are strings and not all numbers, which a CSV file stores as strings."""
    return all(isinstance(value, str) for value in values) and not all(map(is_number, values))


def is_number(text):
    """Return whether a string is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def shorten_value(value, length=30):
    """Return a value on one line, in quotes, shortened to `length` characters."""
    return repr(shorten(' '.join(str(value).split()), length))
