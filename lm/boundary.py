"""Where a prompt ends and its response begins, in text and in token ids."""

from typing import NamedTuple

from common.errors import UserError
from common.strings import replace_surrogates, separator_between


class EncodedPair(NamedTuple):
    """A prompt and its response as token ids, and whether anything about them is unusual."""

    prompt_ids: list[int]
    response_ids: list[int]
    # 'split': a token was cut in two; 'respelled': the ids spell another text; 'first': the first token is not scored
    boundary: str | None = None
    note: str | None = None  # the same as a sentence, with the tokens or the text that is scored


def join_response(prompt, response, separator=' '):
    """Return the response as it follows the prompt: with a separator before it if the two would run together.

    lm-evaluation-harness calls the separator `target_delimiter`. Callers tell the person: see `describe_join`.
    """
    return separator_between(prompt, response, separator) + response


def describe_join(separator, setting='--separator'):
    """Return the text of a note that the separator was put between a prompt and its response."""
    named = {' ': 'a space'}.get(separator, repr(separator))
    return f'{named} was put between prompt and response, which would run together; {setting}= leaves it out'


def split_pair(tokenizer, prompt, response, boundary='joint'):
    """Return the EncodedPair of a prompt and a response. `Tokenizer.encode_pair` describes the rules."""
    if boundary not in ('joint', 'separate'):
        raise UserError(f'boundary={boundary!r}: it must be joint or separate')
    if boundary == 'separate' or not response:
        prompt_ids = tokenizer.encode(prompt)
        response_ids = tokenizer.encode_after(prompt_ids, response)
        return _finish_pair(tokenizer, prompt, response, prompt_ids, response_ids)
    stripped = prompt.rstrip()
    whole, prompt_ids = tokenizer.encode(prompt + response), tokenizer.encode(stripped)
    response_ids, n = whole[len(prompt_ids) :], len(prompt_ids)
    if whole[:n] == prompt_ids and response_ids:
        return _finish_pair(tokenizer, prompt, response, prompt_ids, response_ids)
    moved = prompt[len(stripped) :]  # white space at the prompt's end
    alone = tokenizer.encode_after(prompt_ids, moved + response)
    if response_ids and tokenizer.decode_bytes(response_ids, prompt_ids) == tokenizer.decode_bytes(alone, prompt_ids):
        return _finish_pair(tokenizer, prompt, response, prompt_ids, response_ids)
    pieces = [*tokenizer.pieces(prompt_ids[-1:]), *tokenizer.pieces(alone[:1])]
    note = f'prompt and response meet inside a token; they were encoded separately, as …{"|".join(pieces)}…'
    return _finish_pair(tokenizer, prompt, response, prompt_ids, alone, 'split', note)


def _finish_pair(tokenizer, prompt, response, prompt_ids, response_ids, boundary=None, note=None):
    """Return the EncodedPair, with what begins a text; if its ids do not spell the text, it says what they spell."""
    spelled = tokenizer.decode_bytes([*prompt_ids, *response_ids])
    if spelled not in spellings(prompt, response):
        boundary = 'respelled'
        note = f'this tokenizer changes the text; scored was {spelled.decode("utf-8", "replace")!r}'
    prompt_ids = tokenizer.start_ids(prompt_ids)
    if prompt_ids:
        return EncodedPair(prompt_ids, response_ids, boundary, note)
    # Nothing comes before the response, so its first token takes the place of a prompt.
    why = 'the prompt is empty or only white space, and this tokenizer has no token that begins a text'
    if len(response_ids) < 2:
        raise UserError(f'{why}, so a first token has no probability; there is no other to score')
    first = f'{why}: the first token, {tokenizer.show(response_ids[:1])}, has no probability and is not counted'
    return EncodedPair(response_ids[:1], response_ids[1:], boundary or 'first', f'{note}; {first}' if note else first)


def spellings(prompt, response):
    """Return the bytes that may spell a text: as it is, or with lone surrogates, which have no UTF-8, replaced."""
    replaced = replace_surrogates(prompt) + replace_surrogates(response)
    return (prompt + response).encode('utf-8', 'surrogatepass'), replaced.encode('utf-8')
