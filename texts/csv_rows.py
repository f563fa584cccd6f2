"""Read .csv and .tsv files as people have them: exports of spreadsheets, databases and other programs.

The first rows show how a file is written: what separates the fields, how quotation marks are written, and whether the
first line names the columns.
"""

import csv
import re
from itertools import chain, islice, zip_longest
from statistics import median

from common.errors import UserError
from common.notes import note
from common.text_files import text_kind
from texts.json_rows import LONGEST_ROW, read_lines

SAMPLE_ROWS, SAMPLE_CHARS = 100, 2**20  # to look at
DELIMITERS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'vertical bars'}

# How fields are written: arguments of csv.reader.
USUAL = {}  # in quotation marks if necessary, with those inside doubled
SPACED = {'skipinitialspace': True}  # with a space before each
ESCAPED = {'escapechar': '\\', 'doublequote': False}  # with a backslash before quotation marks inside
UNQUOTED = {'quoting': csv.QUOTE_NONE}  # with quotation marks as part of the text

# Common names of columns. One of them in the first line is enough to see that the line has names.
COMMON_NAMES = """
    id index text texts word item content body story poem lyrics document article abstract sentence review comment tweet
    message title headline name author date timestamp label class category sentiment url prompt response instruction
    input output completion question answer context query target source language
"""


def read_csv_rows(path, column=''):
    """Yield the rows of a CSV or TSV file as dicts by column; without names, the columns are '1', '2', ...

    column: a name that is known to be in the first line, if it names the columns. Notes on stderr say what was found if
    it is unusual. Raises UserError, with the line, if the file is damaged, or if its form is not clear.
    """
    csv.field_size_limit(LONGEST_ROW)  # the default is 128 KiB
    sample, is_whole = take_sample(path)
    if sample and sample[0].lstrip().lower().startswith(('<!doctype html', '<html')):
        raise UserError(f'{path} is a web page, not a table; download the file itself')
    declared = declared_delimiter(sample)
    usual = '\t' if text_kind(path) == '.tsv' else ','
    dialect = find_dialect(path, sample[bool(declared) :], is_whole, declared, usual)
    if dialect['delimiter'] != usual:
        note(f'{path}: its fields are separated by {name_of(dialect["delimiter"])}')
    rows = numbered_rows(path, bool(declared), dialect)
    first = list(islice(rows, SAMPLE_ROWS))
    names = find_names([row for _, row in first], column)
    if names is not None:
        first = first[1:]
    elif first:
        note(f'{path}: its first line is taken for a row, since it does not look like names of columns')
        names = [str(number) for number in range(1, len(first[0][1]) + 1)]
    for line, row in chain(first, rows):
        if any(row[len(names) :]):
            raise UserError(
                f'{path}, line {line} has more fields than the first line ({len(row)}, not {len(names)}); a text that '
                f'contains {name_of(dialect["delimiter"])} must be in quotation marks'
            )
        yield dict(zip(names, row))


def take_sample(path):
    """Return the first lines of a file, and whether they are all of it."""
    lines, size = [], 0
    for line in read_lines(path):
        if size > SAMPLE_CHARS and len(lines) > 1:
            return lines, False
        lines.append(line)
        size += len(line)
    return lines, True


def declared_delimiter(lines):
    """Return the delimiter that a first line `sep=;` declares, as Excel writes and reads it, or else None."""
    line = lines[0].strip('" ') if lines else ''
    return line[4] if len(line) == 5 and line.startswith('sep=') else None


def name_of(delimiter):
    return DELIMITERS.get(delimiter, repr(delimiter))


def numbered_rows(path, skip, dialect):
    """Yield (line number, fields) for each row that is not blank. skip: how many lines come before the first row."""
    rows = csv.reader((line + '\n' for line in islice(read_lines(path), skip, None)), strict=True, **dialect)
    while True:
        line = skip + rows.line_num + 1  # where the row begins
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            hint = '; a quotation mark inside a text must be doubled' if 'expected' in str(error) else ''
            raise UserError(f'{path}, line {line} is not CSV: {error}{hint}') from error
        if any(map(str.strip, row)):
            yield line, row


# What separates the fields --------------------------------------------------------------------------------------------


def find_dialect(path, lines, is_whole, declared, usual):
    """Return the arguments of csv.reader with which all rows of the sample have the same number of fields.

    If there are none, the delimiter is the usual one, unless the first line contains only another one.
    """
    delimiters = [declared] if declared else list(DELIMITERS)
    styles = [USUAL, SPACED, *([ESCAPED] if any('\\"' in line for line in lines) else [])]  # it hides other errors
    fits = []  # (arguments, whether the first row names the columns)
    for delimiter in delimiters:
        for style in [*styles, UNQUOTED] if delimiter == '\t' else styles:
            dialect = {'delimiter': delimiter, **style}
            rows = parse_sample(lines, is_whole, dialect)
            if rows and are_regular(rows):
                has_names = find_names(rows) is not None
                if are_spaced(rows):  # a space after each delimiter: a table if anything else is like one, or prose
                    if not has_names and not any(all(map(is_number, fields)) for fields in zip(*rows)):
                        continue
                    dialect |= SPACED
                fits.append((dialect, has_names))
                break
    fits = [fit for fit in fits if fit[1]] or fits
    fits = [fit for fit in fits if fit[0]['delimiter'] == usual == '\t'] or fits  # tabs are rare in texts
    if len(fits) > 1:
        marks = [dialect['delimiter'] for dialect, _ in fits]
        raise UserError(
            f'{path}: its fields may be separated by {" or by ".join(map(name_of, marks))}; add a first line that says '
            f'which, such as sep={marks[0]}'
        )
    if fits:
        return fits[0][0]
    check_whole_lines(path, lines)
    in_first = [mark for mark in delimiters if lines and mark in lines[0]]
    delimiter = in_first[0] if len(in_first) == 1 else declared or usual
    style = next((style for style in styles if parse_sample(lines, is_whole, {'delimiter': delimiter, **style})), USUAL)
    return {'delimiter': delimiter, **style}


def check_whole_lines(path, lines):
    """Raise UserError if lines are in quotation marks as a whole, as when a spreadsheet has saved a file twice."""
    for mark in DELIMITERS:
        names = lines[0].strip('"').split(mark) if lines and lines[0].startswith('"') else []
        if len(names) > 1 and not any('"' in name for name in names) and is_common_name(*names):
            raise UserError(
                f'{path}: each line is in quotation marks as a whole; remove them, or export the file again'
            )


def parse_sample(lines, is_whole, dialect):
    """Return the rows of the sample that are not blank, without a last one that may not be complete; [] if damaged."""
    rows = []
    try:
        for row in csv.reader((line + '\n' for line in lines), strict=True, **dialect):
            rows.append(row)
    except csv.Error as error:
        if is_whole or 'unexpected end' not in str(error):
            return []
    else:
        rows = rows if is_whole else rows[:-1]
    return [row for row in rows if any(map(str.strip, row))]


def are_regular(rows):
    """Return whether all rows have as many fields as the first, at least two. Empty fields may follow."""
    width = len(rows[0])
    return width > 1 and all(len(row) >= width and not any(row[width:]) for row in rows)


def are_spaced(rows):
    return all(field.startswith(' ') for row in rows for field in row[1:])


# Names of columns -----------------------------------------------------------------------------------------------------


def find_names(rows, column=''):
    """Return the names of the columns if the first row contains names, else None. column: a name that may be there."""
    if not rows:
        return None
    first, body = [field.strip() for field in rows[0]], rows[1:]
    named = [name for name in first if name]
    columns = [(name, list(filter(str.strip, fields))) for name, *fields in zip_longest(first, *body, fillvalue='')]
    columns = [(name, fields) for name, fields in columns if name and fields]
    are_like_names = all(map(is_like_a_name, named))
    is_header = (
        (column and column in first)
        or (are_like_names and is_common_name(*named))
        or (are_like_names and any(median(map(len, fields)) > max(20, 3 * len(name)) for name, fields in columns))
        or (len(body) > 1 and not any(map(is_data, named)) and any(all(map(is_data, fields)) for _, fields in columns))
        # pandas gives running numbers to columns without names
        or (named == [str(number) for number in range(len(named))] and not all(map(is_number, chain(*body))))
    )
    return make_unique(first) if is_header else None


def is_common_name(*names):
    """Return whether any of these is a common name of a column, or a number that a program gives to one."""
    return any(
        name.strip().casefold() in COMMON_NAMES.split() or re.fullmatch(r'(?i)(column|field|unnamed:|v) ?\d+', name)
        for name in names
    )


def is_like_a_name(field):
    return len(field) <= 40 and len(field.split()) <= 4 and field[-1] not in '.,;:!?"”…' and not is_number(field)


def make_unique(names):
    """Return the names, each one once: as in pandas, the next column called `text` is `text.1`, and so on."""
    unique = []
    for name in names:
        count = sum(name == earlier for earlier in names[: len(unique)])
        unique.append(f'{name}.{count}' if count else name)
    return unique


def is_number(text):
    """Return whether a string is a number."""
    try:
        float(text.replace(',', '.'))
    except ValueError:
        return False
    return True


def is_data(text):
    """Return whether a string is a number, a date, an address or a truth value, as a CSV file stores them."""
    return (
        not any(map(str.isalpha, text))
        or is_number(text)
        or re.fullmatch(r'\d{4}-\d\d-\d\d([ T][\d:.,+Z-]*)?|https?://\S+', text.strip()) is not None
        or text.strip().casefold() in ('true', 'false', 'yes', 'no', 'null', 'none', 'n/a')
    )
