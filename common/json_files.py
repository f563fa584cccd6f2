"""JSON files, which may be missing, damaged or hostile: one way to read them, and one line for what is wrong."""

import json

from common.errors import UserError
from common.files import check_regular, is_there
from common.text_files import read_text

LARGEST = 2**29  # bytes; a tokenizer.json of a large vocabulary has 2**25


def read_json(path):
    """Return what a JSON file holds. Raises UserError, with the reason, if it cannot be read or is not JSON."""
    if check_regular(path) > LARGEST:
        raise UserError(f'{path} has more than {LARGEST >> 20} MiB, too much for a JSON file of its kind')
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f'{path} is damaged: {error}') from error


def read_json_object(path, missing=None):
    """Return the dict that a JSON file holds. Raises UserError as `read_json` does, and for any other value.

    missing: what to return if there is no such file; None: that is an error, too.
    """
    if missing is not None and not is_there(path):
        return missing
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f'{path} is damaged: it holds {describe_type(found)}, not a JSON object')
    return found


def parse_json(text):
    """Return the value of a JSON text. Raises ValueError, with the reason, if it is not JSON or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('it is not JSON that can be read: it is nested too deeply') from None
    except ValueError as error:
        raise ValueError(f'it is not JSON ({error})') from error


def parse_json_lines(file):
    """Yield each line of an open file, bytes, with the object that it holds: None if it is damaged or holds another.

    That is what is left where a machine stopped. NaN and Infinity, which are not JSON, count as damage.
    """
    for line in _read_lines(file):
        try:
            value = json.loads(line.decode('utf-8'), parse_constant=_refuse)
        except (ValueError, RecursionError):
            value = None
        yield line, value if isinstance(value, dict) else None


def _read_lines(file):
    try:
        for line in file:  # noqa: UP028 (yield from would close the file when its reader stops early)
            yield line
    except OSError as error:
        raise UserError(f'cannot read {file.name}: {error.strerror}') from error


def _refuse(constant):
    raise ValueError(f'{constant} is not JSON')


def describe_type(value):
    """Return what kind of JSON value this is, with its article."""
    kinds = {dict: 'an object', list: 'a list', str: 'a text', bool: 'true or false', type(None): 'null'}
    return kinds.get(type(value), 'a number')
