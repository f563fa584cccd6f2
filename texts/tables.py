"""Read tables, in which every row is a document: files of JSON, CSV, Parquet and Arrow, and hub datasets."""

import difflib
import math
import re
from itertools import chain, islice
from pathlib import Path

from common.errors import UserError
from common.files import check_regular
from common.notes import note
from common.strings import replace_surrogates, separator_between, shorten
from common.text_files import text_kind
from texts.csv_rows import is_data, read_csv_rows
from texts.json_rows import ROW_KEYS, BadRow, PairKeys, find_pair_keys, read_json_rows
from texts.plain_text import cut_long, empty_blank_lines

PEEK = 100  # rows to look at to find the columns of a table
MOST_COLUMNS = 8  # to show with examples
MISSING = ('nan', 'NaN', 'None', 'null', 'NULL', '<NA>', '#N/A')  # how programs write an empty cell of a CSV file


# One reader for each format: (path, column) -> rows, dicts by column --------------------------------------------------


def read_json_table(path, column=''):
    """Yield the rows of a JSON or JSON Lines file; a text gets the column `text`, a list of two texts is a pair."""
    for index, item in read_json_rows(path):
        if isinstance(item, BadRow):
            raise UserError(f'{path}, line {item.line} {item}')
        if isinstance(item, str):
            item = {'text': item}
        elif isinstance(item, list) and len(item) < 3 and all(isinstance(value, str) for value in item):
            item = dict(zip(('prompt', 'response') if len(item) == 2 else ('text',), item))
        if not isinstance(item, dict):
            raise UserError(f'{path}: row {index + 1} is neither a text nor an object such as {{"text": "..."}}')
        yield item


def read_parquet(path, column=''):
    """Yield the rows of a Parquet file; only the named column if the file has it."""
    import pyarrow
    import pyarrow.parquet

    check_regular(path)
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:  # or a whole row group would be in memory
            columns = [column] if column in file.schema_arrow.names else None
            for batch in file.iter_batches(batch_size=PEEK, columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f'{path} cannot be read as Parquet: {error}') from error


def read_arrow(path, column=''):
    """Yield the rows of a file that `datasets` has saved (Arrow's stream format), or pandas (its file format)."""
    import pyarrow

    check_regular(path)
    try:
        with pyarrow.memory_map(str(path)) as file:
            if file.read(6) == b'ARROW1':
                table = pyarrow.ipc.open_file(file)
                batches = map(table.get_batch, range(table.num_record_batches))
            else:
                file.seek(0)
                batches = pyarrow.ipc.open_stream(file)
            for batch in batches:
                for start in range(0, len(batch), PEEK):
                    yield from batch.slice(start, PEEK).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f'{path} cannot be read as Arrow: {error}') from error


TABLES = {
    '.json': read_json_table,
    '.jsonl': read_json_table,
    '.csv': read_csv_rows,
    '.tsv': read_csv_rows,
    '.parquet': read_parquet,
    '.arrow': read_arrow,
    '.feather': read_arrow,
}


# Rows to documents ----------------------------------------------------------------------------------------------------


def row_documents(rows, column, source, shown=None):
    """Yield the text of each row as documents; '' for a row without text.

    rows: dicts by column. column: the one to read; '' if it is clear which one contains the text, or if two contain a
    prompt and a response, which are joined; or the PairKeys of those two, '' for a common name. source: the file or
    dataset, for messages. shown: the columns of which an earlier source has already shown an example. The first rows
    show which columns there are. Raises UserError if the column does not exist or, if none is named, unless it is
    clear.
    """
    rows = iter(rows)
    first = list(islice(rows, PEEK))
    if not first:
        return
    columns = choose_columns(first, column, source)
    shown = set() if shown is None else shown
    if columns not in shown:
        shown.add(columns)
        names = ', '.join(f'"{name}"' for name in all_columns(columns))
        names = f'column{"s" if len(all_columns(columns)) > 1 else ""} {names}'
        example = next(filter(str.strip, (row_text(row, columns, source) for row in first)), '')
        note(f'{source}: the text is in the {names}, such as {shorten_value(example, 60)}')
    may_be_missing = MISSING if isinstance(source, Path) and text_kind(source) in ('.csv', '.tsv') else ()
    for row in chain(first, rows):
        text = replace_surrogates(row_text(row, columns, source))  # JSON can contain lone surrogates
        if text in may_be_missing:
            note(f'{source}: a text is only {text!r}, as programs write an empty cell; if so, delete the row')
        yield from cut_long(empty_blank_lines(text.replace('\r\n', '\n').replace('\r', '\n')))


def row_text(row, columns, source):
    """Return the text of a row: of its one column, or its prompt and response together; '' if it has none."""
    texts = [None if is_missing(row.get(name)) else row[name] for name in all_columns(columns)]
    for name, text in zip(all_columns(columns), texts):
        if not isinstance(text, str | None):
            raise UserError(f'{source}: the column {name!r} contains {shorten_value(text)}, which is not text')
    if not isinstance(columns, PairKeys):
        return texts[0] or ''
    prompt, response = '\n\n'.join(filter(None, texts[:-1])), texts[-1] or ''
    return prompt + separator_between(prompt, response) + response


def is_missing(value):
    """Return whether a row has no value: None or, in JSON from Python and in pandas, NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def all_columns(columns):
    """Return the names of the columns that are read."""
    return (*columns.prompt, columns.response) if isinstance(columns, PairKeys) else columns


def choose_columns(rows, column, source):
    """Return the columns that contain the text: (column,), or the PairKeys of a prompt and a response.

    The column is the named one or, if none is named, the only one with text.
    """
    columns = list(dict.fromkeys(chain.from_iterable(rows)))
    values = {
        name: [row[name] for row in rows if row.get(name) != '' and not is_missing(row.get(name))] for name in columns
    }
    if isinstance(column, PairKeys):
        try:
            return find_pair_keys(
                {name: (values[name] or [''])[0] for name in columns}, *column.prompt, column.response
            )
        except UserError as error:
            raise UserError(f'{source} {error}') from error
    if column in columns and column:
        return (column,)
    if column:
        near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
        hint = f'did you mean {near[0]}?' if near else f'there are: {list_names(columns)}'
        raise UserError(f'{source} has no column --text_column={column}; {hint}')
    examples = {name: found[0] for name, found in values.items() if are_texts(found) and not are_ids(name, found)}
    strings = {name: found for name, found in values.items() if all(isinstance(value, str) for value in found)}
    pair = find_pair({name: ''.join(found[:1]) for name, found in strings.items()})
    if pair and not any(name.casefold() == 'text' for name in examples):
        return pair
    nested = {name: sum(map(count_characters, values[name])) for name in columns if has_containers(values[name])}
    if not examples:
        refuse_without_text(values, nested, source)
    if len(examples) > 1:
        longest = sorted(examples, key=lambda name: -sum(map(len, values[name])))
        listed = ', '.join(f'{name} ({shorten_value(examples[name])})' for name in longest[:MOST_COLUMNS])
        more = f', and {len(examples) - MOST_COLUMNS} others' if len(examples) > MOST_COLUMNS else ''
        raise UserError(f'{source} has several text columns, choose one with --text_column: {listed}{more}')
    (name,) = examples
    inner = max(nested, key=nested.get, default=None)
    if nested and name.casefold() not in ROW_KEYS and nested[inner] > sum(map(len, values[name])):
        raise UserError(
            f'{source}: most of its text is inside {inner!r}; make each {inner!r} one text first, or choose '
            f'--text_column={name} ({shorten_value(examples[name])})'
        )
    return (name,)


def refuse_without_text(values, nested, source):
    """Raise the UserError for a table without a text column: the values of each column, and those that are nested."""
    for name, found in values.items():
        other = [value for value in found if not isinstance(value, str)]
        if other and any(isinstance(value, str) and len(value.split()) > 1 for value in found):
            raise UserError(f'{source}: the column {name!r} contains {shorten_value(other[0])}, which is not text')
    way_out = f'make each {next(iter(nested))!r} one text first' if nested else '--text_column names one'
    raise UserError(f'{source} has no text column (its columns: {list_names(values)}); {way_out}')


def has_containers(values):
    return any(isinstance(value, list | dict) for value in values)


def count_characters(value):
    """Return how many characters of text are in a value, and in the lists and objects inside it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return sum(map(count_characters, value))
    return len(value) if isinstance(value, str) else 0


def find_pair(examples):
    """Return the PairKeys of a row with a prompt and a response, None if it does not have both."""
    try:
        keys = find_pair_keys(examples)
    except UserError:
        return None
    return keys if examples[keys.prompt[0]] and examples[keys.response] else None


def list_names(columns):
    """Return the names of columns for a message; a CSV file may have one without a name."""
    return ', '.join(name if name.strip() else repr(name) for name in columns)


def are_texts(values):
    """Return whether the values of a column are strings, and not all numbers, dates, addresses or yes and no."""
    return all(isinstance(value, str) for value in values) and not all(map(is_data, values))


def are_ids(name, values):
    """Return whether a column is an index: it has no name or that of an index, and its values are single words."""
    is_index = re.fullmatch(r'|unnamed: \d+|index|idx|(.*[ _.-])?(id|uuid|guid)', name.strip(), re.IGNORECASE)
    return is_index is not None and not any(len(value.split()) > 1 for value in values)


def shorten_value(value, length=30):
    """Return a value on one line, in quotes, shortened to `length` characters."""
    return repr(shorten(' '.join(str(value).split()), length))
