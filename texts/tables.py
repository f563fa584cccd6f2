"""Read tables, in which every row is a document: .json, .jsonl, .csv, .tsv and .parquet files, and hub datasets."""

import difflib
import re
from itertools import chain, islice

from common.errors import UserError
from common.notes import note
from common.strings import replace_surrogates, separator_between, shorten
from texts.csv_rows import is_data, read_csv_rows
from texts.json_rows import BadRow, PairKeys, find_pair_keys, read_json_rows
from texts.plain_text import cut_long, empty_blank_lines

PEEK = 100  # rows to look at to find the columns of a table


# One reader for each format: (path, column) -> rows, dicts by column --------------------------------------------------


def read_json_table(path, column=''):
    """Yield the rows of a JSON or JSON Lines file; a text gets the column `text`, a list of two texts is a pair."""
    for index, item in read_json_rows(path):
        if isinstance(item, BadRow):
            raise UserError(f'{path}, line {item.line} {item}')
        if isinstance(item, str):
            item = {'text': item}
        elif isinstance(item, list) and [type(value) for value in item] == [str, str]:
            item = dict(zip(('prompt', 'response'), item))
        if not isinstance(item, dict):
            raise UserError(f'{path}: row {index + 1} is neither a text nor an object such as {{"text": "..."}}')
        yield item


def read_parquet(path, column=''):
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


TABLES = {
    '.json': read_json_table,
    '.jsonl': read_json_table,
    '.csv': read_csv_rows,
    '.tsv': read_csv_rows,
    '.parquet': read_parquet,
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
    for row in chain(first, rows):
        text = replace_surrogates(row_text(row, columns, source))  # JSON can contain lone surrogates
        yield from cut_long(empty_blank_lines(text.replace('\r\n', '\n').replace('\r', '\n')))


def row_text(row, columns, source):
    """Return the text of a row: of its one column, or its prompt and response together; '' if it has none."""
    texts = [row.get(name) for name in all_columns(columns)]
    for name, text in zip(all_columns(columns), texts):
        if not isinstance(text, str | None):
            raise UserError(f'{source}: the column {name!r} contains {shorten_value(text)}, which is not text')
    if not isinstance(columns, PairKeys):
        return texts[0] or ''
    prompt, response = '\n\n'.join(filter(None, texts[:-1])), texts[-1] or ''
    return prompt + separator_between(prompt, response) + response


def all_columns(columns):
    """Return the names of the columns that are read."""
    return (*columns.prompt, columns.response) if isinstance(columns, PairKeys) else columns


def choose_columns(rows, column, source):
    """Return the columns that contain the text: (column,), or the PairKeys of a prompt and a response.

    The column is the named one or, if none is named, the only one with text.
    """
    columns = list(dict.fromkeys(chain.from_iterable(rows)))
    values = {name: [row[name] for row in rows if row.get(name) not in (None, '')] for name in columns}
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
    if not examples:
        nested = [name for name in columns if any(isinstance(value, list | dict) for value in values[name])]
        way_out = f'make each {nested[0]!r} one text first' if nested else '--text_column names one'
        raise UserError(f'{source} has no text column (its columns: {list_names(columns)}); {way_out}')
    if len(examples) > 1:
        listed = ', '.join(f'{name} ({shorten_value(example)})' for name, example in examples.items())
        raise UserError(f'{source} has several text columns, choose one with --text_column: {listed}')
    return tuple(examples)


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
