"""Tokens as OpenAI writes them: by their text, with the place of each in the whole text.

A token that is only a part of a character is written in bytes, `bytes:\\xe2\\x80`. Its place is that of the character.
"""

import codecs


class TokenTexts:
    """Writes tokens one after the other, each as it stands after those before it."""

    def __init__(self, tokenizer, before=(), as_ids=False):
        """before: ids before the first one. as_ids: write `token_id:5` instead of a text, as vLLM does if asked."""
        self._tokenizer, self._ids, self._as_ids = tokenizer, list(before), as_ids
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
        self._place = 0  # characters before the next token

    def add(self, id, record=None, is_text=True):
        """Return (the token, its place, {token: logprob} of the record's alternatives and itself).

        record: its TokenRecord; None if nothing says how likely it is. is_text: whether it belongs to the text.
        """
        (data,) = self._tokenizer.split_bytes([id], self._ids)
        place, names = self._place, {id: self._name(id, data)}
        if data and not 0x80 <= data[0] < 0xC0:  # it does not go on with the character that is incomplete, if one is
            place += len(self._decoder.getstate()[0].decode('utf-8', 'replace'))
        top = None
        if record is not None:
            for other in record.alternatives:
                if other.id != id:
                    names[other.id] = self._name(other.id, *self._tokenizer.split_bytes([other.id], self._ids))
            top = name_alternatives(record, names)
        if is_text:
            self._place += len(self._decoder.decode(data))
        self._ids.append(id)
        return names[id], place, top

    def _name(self, id, data):
        if self._as_ids:
            return f'token_id:{id}'
        return name_bytes(data) if data else self._tokenizer.pieces([id])[0]  # a mark of case adds nothing by itself


def name_bytes(data):
    """Return the bytes of a token as a text: `bytes:` and escapes if they are no whole characters."""
    try:
        return data.decode('utf-8')
    except UnicodeDecodeError:
        return 'bytes:' + ''.join(chr(byte) if 0x20 <= byte < 0x7F else f'\\x{byte:02x}' for byte in data)


def name_alternatives(record, names):
    """Return {token: logprob}, the likeliest first; of two ids with one text, the less likely is written by its id."""
    top, chosen = {}, names[record.id]
    for other in record.alternatives_and_token:
        name = names[other.id]
        if name in top or (name == chosen and other.id != record.id):
            name = f'token_id:{other.id}'
        top[name] = other.model_logprob
    return top
