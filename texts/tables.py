"""TODO."""

import csv
import difflib
import json
from itertools import chain, islice

from common.errors import UserError
from common.strings import replace_surrogates
from texts.documents import cut_long, empty_blank_lines, read_text

LONGEST_ROW = 2**27  # characters of the longest row of a table, which has to be held as a whole
PEEK = 100  # rows that say which columns a table has


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
            raise UserError(f'{where}: the column {column!r} holds {shorten_value(text)}, which is not text')
        text = replace_surrogates(text or '')  # JSON can write them
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
        listed = ', '.join(f'{name} ({shorten_value(example)})' for name, example in examples.items())
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


def shorten_value(value, most=30):
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
