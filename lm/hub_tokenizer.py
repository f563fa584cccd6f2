"""Tokenizers of models of transformers: byte-level BPE, and pieces in the manner of SentencePiece.

A folder's files may say one thing and the class that transformers has for them do another, so the tokenizer is taken
from transformers as it stands there. All that is added here is what each token spells, in bytes.
"""

import json
import re
from pathlib import Path

from common.errors import UserError
from common.notes import note
from common.strings import replace_surrogates
from lm.hub_model import quiet_transformers
from lm.roles import give_roles
from lm.tokenizer import BPETokenizer
from lm.tokenizer_check import note_changed_texts, report_panics
from lm.weight_files import first_line

SPACE = '▁'
BYTE = re.compile('<0x([0-9A-F]{2})>')
FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'spiece.model', 'sentencepiece.bpe.model')


class PieceTokenizer(BPETokenizer):
    """A BPE or Unigram model over pieces, in which ▁ stands for a space, as in Llama 2, Gemma or XGLM.

    Most put a space before each text, so that a word has the same piece at the beginning as elsewhere; it does not
    belong to the text. What they have no piece for, they spell in bytes, <0x0A>, or replace by <unk>.
    """

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self._has_bytes = bool(json.loads(tokenizer.to_str())['model'].get('byte_fallback'))
        self._puts_space = b''.join(map(self._bytes_of, self.encode('x'))).startswith(b' ')
        self._continuing = without_space(tokenizer) if self._puts_space else tokenizer

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
        if self._puts_space and all(self.is_added(id) for id in after):
            first = next((place for place, id in enumerate(ids) if not self.is_added(id)), None)
            if first is not None:
                parts[first] = parts[first].removeprefix(b' ')
        return parts

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


def load_hub_tokenizer(folder):
    """Return the tokenizer of a model folder as transformers uses it; None if the folder has none.

    Raises UserError, by name, for a kind that cannot give back what it is given.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).exists() for name in FILES):
        return None
    try:
        with quiet_transformers(), report_panics(f'{folder}: its tokenizer cannot be used'):
            theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # each class has errors of its own
        raise UserError(f'{folder}: transformers cannot load its tokenizer: {first_line(error)}') from error
    backend = getattr(theirs, 'backend_tokenizer', None)
    if backend is None:
        raise UserError(f'{folder}: its tokenizer, a {type(theirs).__name__}, has no tokenizer.json and cannot be used')
    described = json.loads(backend.to_str())
    kind = described['model']['type']
    if kind not in ('BPE', 'Unigram'):
        raise UserError(
            f'{folder}: its tokenizer is a {kind}, which drops the white space of a text and cannot give it back'
        )
    is_byte_level = 'ByteLevel' in json.dumps([described['pre_tokenizer'], described['decoder']])
    tokenizer = give_roles((BPETokenizer if is_byte_level else PieceTokenizer)(backend), folder)
    note_changed_texts(tokenizer, folder)
    if front := find_front(theirs, folder):
        note(f'{folder}: its tokenizer puts {tokenizer.show(front)} before each text, and so it is here')
        tokenizer.front = front
    return tokenizer


def find_front(theirs, folder):
    """Return the ids that a tokenizer of transformers puts before each text, mostly none or the one of <s>."""
    plain, whole = theirs.encode('x', add_special_tokens=False), theirs.encode('x')
    place = next((at for at in range(len(whole) + 1) if whole[at : at + len(plain)] == plain), None)
    if place is None:
        raise UserError(f'{folder}: its tokenizer cuts a text otherwise when it puts its special tokens around it')
    if behind := whole[place + len(plain) :]:
        names = ', '.join(theirs.convert_ids_to_tokens(behind))
        note(f'{folder}: its tokenizer puts {names} after each text, too; that is left out, since texts go on here')
    return tuple(whole[:place])
