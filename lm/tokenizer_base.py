"""What all kinds of tokenizer have in common: decoding, pairs, the roles of tokens, tokens made visible."""

import functools
import hashlib

import numpy as np

from common.errors import UserError
from common.json_files import parse_json
from lm.boundary import split_pair
from lm.roles import Roles

EOT = '<|endoftext|>'
VISIBLE = {' ': '·', '\n': '⏎', '\t': '⇥', '\r': '␍'}


class Tokenizer:
    """What all kinds have in common."""

    eot = None
    limit = None  # how many ids the model has, if it has fewer than the tokenizer
    front = ()  # the ids that it puts before each text, such as the one of <s>
    config = None  # the text of a tokenizer_config.json for transformers, if the tokenizer came from there
    chat = None  # an lm.chat.Chat, if prompts and pairs go through a chat template
    joins_bytes = True  # whether a text is what its tokens spell, one after the other
    can_be_cut = False  # whether the ids stay the same if a text is cut before any space or newline in it
    _roles = None

    @property
    def roles(self):
        """The ids that begin a text, end it and pad it; unless a model says otherwise, it is <|endoftext|>."""
        if self._roles is not None:
            return self._roles
        return Roles() if self.eot is None else Roles(self.eot, (self.eot,))

    @roles.setter
    def roles(self, roles):
        if roles != self.roles:
            self._roles = roles
            self.eot = roles.ends[0] if roles.ends else self.eot

    @property
    def start(self):
        """The id to begin a text with; None if there is none."""
        return self.eot if self.roles.bos is None else self.roles.bos

    def decode(self, ids, after=()):
        """Return the text of token ids; bytes that are not UTF-8 (such as half a character) become U+FFFD.

        after: the ids that they follow. A story tokenizer writes a word differently after different ids.
        """
        if not len(after) and self.front and tuple(ids[: len(self.front)]) == self.front:
            ids, after = ids[len(self.front) :], self.front  # they do not belong to the text
        return self.decode_bytes(ids, after).decode('utf-8', errors='replace')

    def decode_bytes(self, ids, after=()):
        """Return the UTF-8 bytes of token ids that follow others. Raises UserError for unknown ids."""
        return b''.join(self.split_bytes(ids, after))

    def split_bytes(self, ids, after=()):
        """Return the UTF-8 bytes that each of these ids adds to the text of those that they follow."""
        return [self._bytes_of(id) for id in self._check(ids)]

    def pieces(self, ids):
        """Return each token made visible: · for a space, ⏎ for a newline, ‹e2 80› for part of a character."""
        return [make_visible(self._bytes_of(id)) for id in self._check(ids)]

    def byte_sizes(self, ids, after=()):
        """Return how many bytes each of these ids adds to the text of those that they follow: a NumPy array, (n,)."""
        unique, which = np.unique(ids, return_inverse=True)
        return np.array([len(self._bytes_of(id)) for id in self._check(unique)], np.int64)[which]

    def show(self, ids):
        """Return a text of tokens on one line, with its white space made visible."""
        return ''.join(self.pieces(ids))

    @property
    def fingerprint(self):
        """SHA-256 of all tokens in order: the same for tokenizers that give the same ids, in whatever file format."""
        tokens = [self._bytes_of(id).hex() if self._has(id) else '' for id in range(self.vocab_size)]
        return hashlib.sha256('\n'.join(tokens).encode()).hexdigest()

    def _has(self, id):
        return True

    @functools.cached_property
    def token_bytes(self):
        """What each id spells in a text; None for ids that spell nothing: special tokens, gaps in the vocabulary."""
        return [
            self._bytes_of(id) if self._has(id) and not self.is_special(id) else None for id in range(self.vocab_size)
        ]

    def drops_space(self, after):
        """Return whether a space at the beginning of the token that follows these ids does not belong to the text."""
        return False

    def is_special(self, id):
        """Return whether a token stands for something that is no text, such as the end of a text."""
        return id == self.eot or id == self.roles.bos or id == self.roles.pad or id in self.roles.ends

    def id_of_text(self, text):
        """Return the id of the token that is written like this, None if there is none."""

    def is_added(self, id):
        """Return whether a token was added after the tokenizer was trained."""
        return False

    def with_names_up_to(self, last):
        """Return a tokenizer in which every id up to `last` has a name."""
        raise UserError(f'the model ends or begins texts with id {last}, but its tokenizer has only {self.vocab_size}')

    def _limited(self, ids):
        """Return the ids; raise UserError if the model does not have some of them."""
        if self.limit is not None and any(id >= self.limit for id in ids):
            unknown = sorted({id for id in ids if id >= self.limit})[:5]
            names = ', '.join(self._bytes_of(id).decode('utf-8', 'replace') for id in unknown)
            raise UserError(f'the text has tokens that the model lacks: {names} (its ids end at {self.limit - 1})')
        return ids

    def _complete(self, contents):
        """Return the contents with what is unusual: its roles, what it puts before each text, its tokenizer_config."""
        contents = dict(contents)
        if self._roles is not None:
            bos, ends, pad = self._roles
            contents['roles'] = {'bos': bos, 'eos': list(ends), 'pad': pad}
        if self.front:
            contents['front'] = list(self.front)
        if self.config is not None:
            contents['config'] = self.config
        return contents

    def restore(self, contents):
        """Take over what is unusual from `contents`. Raises UserError if it does not fit the tokenizer."""
        match contents.get('roles'):
            case {'bos': int() | None as bos, 'eos': list(ends), 'pad': int() | None as pad}:
                self.roles = Roles(bos, tuple(ends), pad)
        front, config = contents.get('front', []), contents.get('config')
        if not isinstance(front, list) or not all(type(id) is int and 0 <= id < self.vocab_size for id in front):
            raise UserError('what it puts before each text is not a list of its ids')
        try:
            if config is not None and not isinstance(parse_json(config), dict):
                raise ValueError('it is not a JSON object')
        except (TypeError, ValueError) as error:
            raise UserError(f'its tokenizer_config cannot be read: {error}') from error
        self.front, self.config = tuple(front), config

    def encode_after(self, before, text):
        """Return the ids of a text that follows these ids and is encoded apart from them."""
        return self.encode(text)

    def encode_array(self, text, dtype):
        """Return the token ids of a text as a NumPy array, as fast as possible."""
        return np.array(self.encode(text), dtype)

    def encode_pair(self, prompt, response, boundary='joint'):
        """Return (prompt ids, response ids). Only this method decides where a response begins.

        boundary: 'joint' is lm-evaluation-harness's rule wherever it loses nothing. White space at the end of the
        prompt moves to the response, both are encoded as one text, and as many tokens as the prompt alone has are cut
        off its beginning: the rest is the response. If the rest does not spell the response, because a token of the
        whole text crosses the boundary ("gi" and "rl" are one token in "girl"), the prompt keeps its own tokens and
        the response is encoded by itself. 'separate' encodes each by itself always.
        Prompt ids and response ids spell the text. `split_pair` also tells whether a token was cut in two.
        An empty prompt becomes the id that begins a text, mostly <|endoftext|>. If there is none, the first token of
        the response has no probability, and becomes the prompt. An empty response has no ids.
        """
        return self.split_pair(prompt, response, boundary)[:2]

    def split_pair(self, prompt, response, boundary='joint'):
        """Return an EncodedPair: the ids of `encode_pair`, and a note if their boundary or spelling is unusual."""
        if self.chat is not None:
            return self.chat.split_pair(prompt, response, boundary)
        return split_pair(self, prompt, response, boundary)

    def encode_prompt(self, prompt):
        """Return the ids of a prompt to continue; an empty one becomes the id that begins a text.

        Raises UserError for an empty one if there is no such id.
        """
        if self.chat is not None:
            return self.chat.encode_prompt(prompt)
        ids = self.start_ids(self.encode(prompt))
        if not ids:
            raise UserError(
                f'the prompt is empty, and this tokenizer has no token that begins a text, such as {EOT}, so nothing '
                'says how likely a first token is; give the text a beginning'
            )
        return ids

    def start_ids(self, ids=()):
        """Return the ids of a prompt with those that stand before each text, or those that stand for an empty one.

        There may be none of either.
        """
        if self.front and tuple(ids[: len(self.front)]) != self.front:
            return [*self.front, *ids]
        return list(ids) or ([] if self.start is None else [self.start])

    def _check(self, ids):
        unknown = sorted({int(id) for id in ids if not 0 <= id < self.vocab_size})
        if unknown:
            raise UserError(f'unknown token ids {unknown[:5]}; this tokenizer has {self.vocab_size}')
        return [int(id) for id in ids]


def make_visible(token):
    """Return the bytes of one token in visible characters."""
    try:
        text = token.decode('utf-8')
    except UnicodeDecodeError:
        return f'‹{token.hex(" ")}›'
    return ''.join(VISIBLE.get(char) or (char if char.isprintable() else f'‹U+{ord(char):04X}›') for char in text)
