"""Files of pairs: JSON or CSV in any of the forms that people have, checked pair by pair."""

from typing import NamedTuple

from common.errors import UserError
from common.files import resolve_path
from common.notes import note
from common.strings import replace_surrogates
from common.text_files import read_text_chunks, text_kind
from texts.json_rows import find_conversation, find_pair_keys, pair_texts, read_json_rows
from texts.tables import TABLES

FORMS = 'a JSON list or JSON lines of {"prompt": ..., "response": ...} or [prompt, response], or a table (CSV, Parquet)'


class Pair(NamedTuple):
    """A prompt, a response to score and, for a multiple-choice question, the wrong responses."""

    index: int  # its position in the file, from 0
    id: str | None
    prompt: str | list[dict]  # or messages, {"role", "content"} each, for a chat template
    response: str
    distractors: list[str]


class KeyChoice(NamedTuple):
    """The keys that --prompt_key and --response_key name; None for the common ones."""

    prompt: str | None = None
    response: str | None = None


COMMON_KEYS = KeyChoice()


def read_pairs(path, on_bad, keys=COMMON_KEYS):
    """Yield the Pairs of a file, one by one: a large file need not fit into memory.

    A pair is an object with a prompt and a response, under `keys` or the common ones (see `texts.json_rows`), and
    optionally `id` and `distractors`, a list of texts; or it is a list of prompt and response. A good and a bad text,
    as in BLiMP, are a response and its distractor, without a prompt. A prompt may be a list of messages, and "messages"
    may hold both. on_bad: called with the reason for each item that is neither or repeats an earlier id; if it returns,
    that item is left out. Raises UserError for a file that cannot be read or has no pairs.
    """
    path = resolve_path(path)
    ids = set()
    index = None
    kind = text_kind(path)
    if kind in TABLES and kind not in ('.json', '.jsonl'):
        rows = enumerate(TABLES[kind](path, (keys.prompt or '') if kind in ('.csv', '.tsv') else ''))
    else:
        check_beginning(path)
        rows = read_json_rows(path)
    for index, item in rows:
        try:
            pair = _pair(index, item, keys, path)
            if pair.id is not None and pair.id in ids:
                raise ValueError(f'has the id {pair.id!r} of an earlier pair')
        except ValueError as error:
            on_bad(f'{path}: pair {index} {error}')
            continue
        ids.add(pair.id)
        yield pair
    if index is None:
        raise UserError(f'{path} has no pairs; it should be {FORMS}')


def check_beginning(path):
    """Raise UserError for a file that does not begin like JSON: a running text, or another kind."""
    beginning = next(filter(str.strip, read_text_chunks(path)), '').lstrip()
    if beginning and beginning[0] not in '[{"':
        begins = ' '.join(beginning[:100].split()[:4])
        raise UserError(
            f'{path} is not a file of pairs, since it begins with {begins!r}; it should be {FORMS}. Running text is '
            f'scored with --text={path}'
        )


def _pair(index, item, keys, path):
    """Return the Pair of an item. Raises a ValueError whose text continues 'pair 3 ...'."""
    if isinstance(item, Exception):
        raise item
    if isinstance(item, list):
        if len(item) != 2:
            raise ValueError(f'is a list of {len(item)}; a list must be [prompt, response]')
        if not all(isinstance(text, str) for text in item):
            raise ValueError('is a list of something other than two texts')
        return Pair(index, None, *map(replace_surrogates, item), [])
    if not isinstance(item, dict):
        raise ValueError('is neither {"prompt": ..., "response": ...} nor [prompt, response]')
    distractors = item.get('distractors') or []
    if (conversation := find_conversation(item, *keys)) is not None:
        prompt, response = conversation
    elif (minimal := _good_and_bad(item)) is not None and keys == COMMON_KEYS:
        prompt, response, distractors = '', minimal[0], [minimal[1]]
        note(f'{path}: each pair of a good and a bad text is a question: which is likelier, after the start token?')
    else:
        prompt, response = _prompt_and_response(item, keys, path)
    if not isinstance(distractors, list) or not all(isinstance(text, str) for text in distractors):
        raise ValueError('has "distractors" that are not a list of texts')
    id = item.get('id')
    if isinstance(id, bool) or not isinstance(id, (str, int, float, type(None))):
        raise ValueError('has an "id" that is neither text nor a number')
    response, *distractors = map(replace_surrogates, (response, *distractors))
    prompt = replace_surrogates(prompt) if isinstance(prompt, str) else prompt
    return Pair(index, None if id is None else str(id), prompt, response, distractors)


def _good_and_bad(item):
    """Return the two texts of a minimal pair, as BLiMP (Warstadt et al. 2020) has them; None if it is none."""
    for good, bad in (('good', 'bad'), ('sentence_good', 'sentence_bad')):
        if isinstance(item.get(good), str) and isinstance(item.get(bad), str):
            return item[good], item[bad]
    return None


def _prompt_and_response(item, keys, path):
    """Return the two texts of an item, and say where they are if that is unusual."""
    found = find_pair_keys(item, *keys)
    prompt, response = pair_texts(item, found)
    if (found.prompt, found.response) != (('prompt',), 'response') and keys == COMMON_KEYS:
        names = ' and '.join(f'"{key}"' for key in found.prompt)
        note(f'{path}: prompts are read from {names}, responses from "{found.response}"')
    return prompt, response
