"""Read the rows of a JSON file, in any of the forms that people have, and find the prompt and response of a row.

The rows are an array, or one JSON value per line, or they are inside an object: {"data": [...]}, {"results": [...]}, a
list under any other key if there is only one, a table as pandas writes it, or objects by their ids. Lines and arrays
are read row by row, so the file may be larger than the memory.
"""

import json
import re
from typing import NamedTuple

from common.errors import UserError
from common.files import expand_path
from common.notes import note
from common.text_files import read_text, read_text_chunks, text_kind

LONGEST_ROW = 2**27  # characters of the longest row, which is in memory as a whole
LONG_LINE = 2**20  # an array on one line that is longer is read item by item
WHITE_SPACE = re.compile(r'[ \t\n\r]*')

LIST_KEYS = ('data', 'results', 'rows', 'examples', 'instances', 'pairs', 'items')  # rows, if there are other lists too
PROMPT_KEYS = ('prompt', 'instruction', 'question', 'query', 'input')
RESPONSE_KEYS = ('response', 'completion', 'output', 'answer')
CONTEXT_KEYS = ('input', 'context')  # may follow an instruction: Alpaca's `input`, Dolly's `context`
ROW_KEYS = {'text', 'content', *PROMPT_KEYS, *RESPONSE_KEYS}  # an object with a text under one of these is a row


class BadRow(ValueError):
    """Stands for a line that is not JSON. The message continues 'line 3 ...' or 'pair 3 ...'."""

    def __init__(self, message, line):
        super().__init__(message)
        self.line = line  # counted from 1


class PairKeys(NamedTuple):
    """The keys of a row that contain its prompt and its response."""

    prompt: tuple[str, ...]  # their texts are joined with an empty line in between
    response: str


# Rows -----------------------------------------------------------------------------------------------------------------


def read_json_rows(path):
    """Yield (index, item) for each row of a JSON file, counted from 0; the item of a line that is not JSON is a BadRow.

    Raises UserError if the file cannot be read, if it is damaged, or if it is an object in which no rows are found.
    """
    yield from enumerate(_rows(expand_path(path)))


def _rows(path):
    """Yield the rows of a file; its first two lines show which form it has."""
    first, second = _peek(path)
    is_jsonl = text_kind(path) == '.jsonl'
    if not first:
        return
    if not second and (is_jsonl or _is_json(first)):
        value = _parse_line(first, 1)
        rows = [value] if isinstance(value, BadRow) else _unwrap(value, path, is_jsonl)
    elif second and _are_separate(first, second):
        rows = (_parse_line(line, number) for number, line in enumerate(read_lines(path), 1) if line.strip())
    elif first.startswith('['):
        rows = _array_items(read_text_chunks(path), path)
    else:
        values = _read_values(path)
        rows = values if len(values) > 1 else _unwrap(values[0], path, is_jsonl)
    yield from rows


def _peek(path):
    """Return the first two lines that are not blank; '' if there are none. A very long first line may be cut."""
    text = ''
    for chunk in read_text_chunks(path):
        text += chunk
        if '\n' in chunk:
            lines = [line.strip() for line in text.split('\n') if line.strip()]
            if len(lines) > 1:
                return lines[0], lines[1]
        is_array = text.lstrip().startswith('[')
        if is_array and len(text) > LONG_LINE:
            break
        if len(text) > LONGEST_ROW:
            raise _too_long(path)
    return text.strip(), ''


def _are_separate(first, second):
    """Return whether the first two lines are a row each, and not the beginning of one value over several lines."""
    return first[0] not in '[{' or _is_json(first) or (second[0] == first[0] and first[-1] not in ':,[{')


def read_lines(path):
    """Yield the lines of a text file without their ends. (str.splitlines would also split at U+2028.)"""
    rest = ''
    for chunk in read_text_chunks(path):
        *lines, rest = (rest + chunk).split('\n')
        yield from lines
        if len(rest) > LONGEST_ROW:
            raise _too_long(path)
    if rest:
        yield rest


def _too_long(path):
    return UserError(f'{path} has a line of more than {LONGEST_ROW:,} characters; each row must be one line')


def _parse_line(line, number):
    """Return the value of a line, or a BadRow. A comma after it, as in a list, is left out."""
    try:
        return json.loads(line.rstrip().removesuffix(','))
    except (ValueError, RecursionError) as error:
        return BadRow(f'is not JSON: {error}', number)


def _is_json(line):
    return not isinstance(_parse_line(line, 0), BadRow)


def _array_items(chunks, path):
    """Yield the items of a JSON array that arrives in chunks."""
    decoder, chunks = json.JSONDecoder(), iter(chunks)
    text, start, line = '', 0, 1  # start: of the next item in `text`; line: of the start of `text`
    while '[' not in text:
        text += next(chunks)
    start = text.index('[') + 1
    while (start := _skip_space(text, start)) == len(text) or text[start] != ']':
        try:
            item, end = decoder.raw_decode(text, start)
            end = _skip_space(text, end)
            if text[end : end + 1] not in (',', ']'):  # '' if the item may go on in the next chunk
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        except (ValueError, RecursionError) as error:
            at = getattr(error, 'pos', start)
            more = '' if isinstance(error, RecursionError) else _read_as_much(chunks, len(text) - start)
            if not more or len(text) - start > LONGEST_ROW:
                raise _damaged(path, line + text.count('\n', 0, at), error) from error
            line += text.count('\n', 0, start)
            text, start = text[start:] + more, 0
        else:
            yield item
            start = end + (text[end] == ',')
    if text[start + 1 :].strip() or any(chunk.strip() for chunk in chunks):
        raise _damaged(path, line + text.count('\n', 0, start), 'there is more after the end of the array')


def _skip_space(text, start):
    return WHITE_SPACE.match(text, start).end()


def _read_as_much(chunks, size):
    """Return the next chunks, at least `size` characters if there are so many: then long items take linear time."""
    parts, count = [], 0
    for chunk in chunks:
        parts.append(chunk)
        count += len(chunk)
        if count > size:
            break
    return ''.join(parts)


def _read_values(path):
    """Return the values of a file as a list: usually one, which may take several lines."""
    text, values, place = read_text(path), [], 0
    while (place := _skip_space(text, place)) < len(text):
        try:
            value, place = json.JSONDecoder().raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, 1 + text.count('\n', 0, getattr(error, 'pos', place)), error) from error
        values.append(value)
    return values


def _damaged(path, line, error):
    message = getattr(error, 'msg', error)
    at_quote = isinstance(error, json.JSONDecodeError) and error.doc[error.pos : error.pos + 1] == "'"
    hint = '; write texts in ", not in \': in Python, with json.dump' if at_quote else ''
    return UserError(f'{path}, line {line} is not JSON: {message}{hint}')


# Objects that contain rows --------------------------------------------------------------------------------------------


def _unwrap(value, path, is_jsonl):
    """Return the rows in the only value of a file. is_jsonl: in doubt, the value is a row."""
    if isinstance(value, list) and not (is_jsonl and value and not _has_containers(value)):
        return value
    if not isinstance(value, dict) or any(isinstance(value.get(key), str) for key in ROW_KEYS):
        return [value]
    if is_jsonl and isinstance(value.get('messages'), list):
        return [value]
    rows, taken_for = _find_rows(value)
    if rows is not None:
        note(f'{path}: {taken_for}')
        return rows
    if is_jsonl or not any(isinstance(inner, list | dict) for inner in value.values()):
        return [value]
    raise UserError(
        f'{path} is an object with the keys {_name_keys(value)}, and which of them contains the rows is not clear; '
        'make the file a list of texts or of objects such as {"text": "..."}'
    )


def _find_rows(table):
    """Return the rows in an object, and what it was taken for; (None, None) if that is not clear."""
    lists = {key: value for key, value in table.items() if isinstance(value, list)}
    objects = {key: value for key, value in table.items() if isinstance(value, dict)}
    if 'columns' in lists and 'data' in lists and all(isinstance(row, list) for row in lists['data']):
        return [dict(zip(lists['columns'], row)) for row in lists['data']], 'a table with its columns under "columns"'
    if len(lists) == len(table) > 1 and _are_columns(lists.values()):
        return [dict(zip(lists, row)) for row in zip(*lists.values())], 'each key is a column'
    known = [key for key in LIST_KEYS if key in lists]
    full = [key for key, value in lists.items() if _has_containers(value)]
    for keys in (known, full, list(lists) if len(table) == 1 else []):
        if len(keys) == 1:
            return lists[keys[0]], f'the rows are taken from "{keys[0]}"'
        if keys:
            return None, None
    if objects and len(objects) == len(table):
        inner = list(objects.values())
        if all(list(value) == list(inner[0]) and _are_numbers(value) for value in inner):
            return [{key: value[row] for key, value in objects.items()} for row in inner[0]], 'each key is a column'
        if len(objects) > 1:
            return inner, 'each key is taken for the id of a row'
    if len(objects) == 1 and not lists:
        (key,) = objects
        rows, taken_for = _find_rows(objects[key])
        return rows, f'inside "{key}", {taken_for}'
    if table and _are_numbers(table):
        return list(table.values()), 'each key is taken for the number of a row'
    return None, None


def _has_containers(values):
    return any(isinstance(value, list | dict) for value in values)


def _are_columns(columns):
    """Return whether lists are as long as each other and contain no lists or objects."""
    return len({len(column) for column in columns}) == 1 and not any(map(_has_containers, columns))


def _are_numbers(keys):
    return all(key.isdecimal() for key in keys)


def _name_keys(row, most=20):
    """Return the keys of a row, for an error message."""
    names = [key if key.isprintable() and key.strip() else repr(key) for key in row]
    return ', '.join(names[:most]) + (', ...' if len(names) > most else '') or '(none)'


# Pairs ----------------------------------------------------------------------------------------------------------------


def find_pair_keys(item, prompt_key=None, response_key=None):
    """Return the PairKeys of a row: those named, or the common ones, in upper or lower case.

    Raises UserError, whose message continues 'pair 3 ...' and names the keys that are there.
    """
    if not isinstance(item, dict):
        raise UserError('is not an object with a prompt and a response')
    prompt, response = (
        _find_key(item, key, common, setting)
        for key, common, setting in (
            (prompt_key, PROMPT_KEYS, '--prompt_key'),
            (response_key, RESPONSE_KEYS, '--response_key'),
        )
    )
    prompts = [prompt]
    if not prompt_key and prompt.casefold() == 'instruction':
        prompts += [key for key in item if key.casefold() in CONTEXT_KEYS and key != response]
    return PairKeys(tuple(prompts), response)


def _find_key(item, named, common, setting):
    """Return the named key of a row or, if none is named, the first of the common ones, preferably one with a text."""
    if named and named not in item:
        raise UserError(f'has no key {setting}={named}; its keys are {_name_keys(item)}')
    if named:
        return named
    known = {key.casefold(): key for key in reversed(item)}  # of keys that differ in case only, the first
    found = [known[key] for key in common if key in known]
    if not found:
        raise UserError(
            f'has none of the keys {", ".join(common)}; name another with {setting}, its keys are {_name_keys(item)}'
        )
    return next((key for key in found if isinstance(item[key], str)), found[0])


def pair_texts(item, keys):
    """Return the prompt and the response of a row. Raises UserError, whose message continues 'pair 3 ...'."""
    for key in (*keys.prompt, keys.response):
        value = item.get(key)
        if not isinstance(value, str) and not (value is None and key in keys.prompt[1:]):
            raise UserError(f'has no "{key}"' if key not in item else f'has a "{key}" that is not text')
    return '\n\n'.join(filter(None, map(item.get, keys.prompt))), item[keys.response]


def find_conversation(item, prompt_key=None, response_key=None):
    """Return (messages, response) of a row with a list of messages, {"role", "content"} each; None if it has none.

    The response is a text of its own, or a list of one message, or else the last message, which must be the
    assistant's. Raises UserError, whose message continues 'pair 3 ...', for a list of anything else.
    """
    prompts = (prompt_key,) if prompt_key else (*PROMPT_KEYS, 'messages')
    responses = (response_key,) if response_key else RESPONSE_KEYS
    key = next((key for key in prompts if isinstance(item.get(key), list)), None)
    answer = next((key for key in responses if isinstance(item.get(key), str | list)), None)
    has_texts = answer is not None and any(isinstance(item.get(key), str) for key in prompts)
    if key is None or has_texts or (response_key and answer is None):
        return None
    messages, response = item[key], [] if answer is None else item[answer]
    if isinstance(response, str):
        response = [{'role': 'assistant', 'content': response}]
    if not all(
        isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ('role', 'content'))
        for message in (*messages, *response)
    ):
        raise UserError(f'has a "{key}" that is not all messages, {{"role": ..., "content": a text}}')
    if answer is None:
        messages, response = messages[:-1], messages[-1:]
    if not messages or [message['role'] for message in response] != ['assistant']:
        raise UserError(f'has a "{key}" that does not end with one message of the assistant, the response')
    if messages[-1]['role'] == 'assistant':
        raise UserError(f'has a "{key}" that ends with a message of the assistant, and "{answer}" besides')
    return messages, response[0]['content']
