"""A tokenizer of pieces in which ▁ stands for a space, in the manner of SentencePiece: BPE with bytes, or Unigram."""

import json
import re

from common.errors import UserError
from common.strings import replace_surrogates
from lm.bpe_files import parse_tokenizer_json
from lm.tokenizer import BPETokenizer
from lm.tokenizer_check import report_panics

SPACE = '▁'
BYTE = re.compile('<0x([0-9A-F]{2})>')


class PieceTokenizer(BPETokenizer):
    """A BPE or Unigram model over pieces, in which ▁ stands for a space, as in Llama 2, Gemma or XGLM.

    Most put a space before each text, so that a word has the same piece at the beginning as elsewhere; it does not
    belong to the text. What they have no piece for, they spell in bytes, <0x0A>, or replace by <unk>.
    """

    kind = 'pieces'

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self._has_bytes = bool(json.loads(tokenizer.to_str())['model'].get('byte_fallback'))
        self._puts_space = b''.join(map(self._bytes_of, self.encode('x'))).startswith(b' ')
        self._continuing = without_space(tokenizer) if self._puts_space else tokenizer

    @classmethod
    def from_json(cls, text):
        """Return the tokenizer that the text of a tokenizer.json describes."""
        return cls(parse_tokenizer_json(text, byte_level=False))

    def encode_after(self, before, text):
        """Return the ids of a text that follows these ids and is encoded apart from them: no space is put before it."""
        if not before:
            return self.encode(text)
        with report_panics('this text cannot be encoded'):
            ids = self._continuing.encode(replace_surrogates(text), add_special_tokens=False).ids
        return self._limited(ids)

    def split_bytes(self, ids, after=()):
        """Return the UTF-8 bytes that each of these ids adds to the text of those that they follow."""
        parts = super().split_bytes(ids, after)
        if (first := self._place_of_space(ids, after)) is not None:
            parts[first] = parts[first].removeprefix(b' ')
        return parts

    def byte_sizes(self, ids, after=()):
        """Return how many bytes each of these ids adds to the text of those that they follow: a NumPy array, (n,)."""
        sizes = super().byte_sizes(ids, after)
        if (first := self._place_of_space(ids, after)) is not None:
            sizes[first] = len(self._bytes_of(int(ids[first])).removeprefix(b' '))
        return sizes

    def _place_of_space(self, ids, after):
        """Return the place of the first piece of a text, whose space does not belong to it; None if it has none."""
        if not self.drops_space(after):
            return None
        return next((place for place, id in enumerate(ids) if not self.is_added(id)), None)

    def drops_space(self, after):
        """Return whether a space at the beginning of the token that follows these ids does not belong to the text."""
        return self._puts_space and all(self.is_added(id) for id in after)

    def is_added(self, id):
        """Return whether a token was added after the tokenizer was trained."""
        return id in self._special and not self._is_byte(self._special[id])

    def _is_byte(self, piece):
        return self._has_bytes and BYTE.fullmatch(piece)

    def _bytes_of(self, id):
        piece = self._tokenizer.id_to_token(id)
        if piece is None:
            raise UserError(f'unknown token ids [{id}]; the vocabulary of this tokenizer leaves them out')
        if byte := self._is_byte(piece):
            return bytes.fromhex(byte[1])
        return (piece if self.is_added(id) else piece.replace(SPACE, ' ')).encode()


def without_space(tokenizer):
    """Return the same tokenizer without the space that it puts before a text."""
    described = json.loads(tokenizer.to_str())
    described['normalizer'] = _without_prepend(described['normalizer'])
    pre_tokenizer = described['pre_tokenizer']
    for part in (pre_tokenizer or {}).get('pretokenizers', [pre_tokenizer]):
        if part and part['type'] == 'Metaspace':
            part['prepend_scheme'] = 'never'
    return type(tokenizer).from_str(json.dumps(described))


def _without_prepend(normalizer):
    """Return the description of a normaliser without what it puts before a text; None if nothing is left."""
    if normalizer is None or normalizer['type'] == 'Prepend':
        return None
    if normalizer['type'] == 'Sequence':
        normalizer['normalizers'] = [part for part in normalizer['normalizers'] if part['type'] != 'Prepend']
    return normalizer
