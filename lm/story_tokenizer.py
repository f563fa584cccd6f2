"""A tokenizer made for stories: words, the gaps between them, marks for unexpected case, and pieces for what is rare.

lessons/story_tokenizer.py explains it and compares it with byte-pair encoding. Any text, even any bytes, can be encoded
and comes back exactly. What an id adds to a text depends on the ids before it: a single space between two words has no
token, and the first word of a sentence is written with a capital.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import chain, repeat

import numpy as np

from common.errors import UserError
from common.strings import replace_surrogates
from lm.byte_level import byte_level_bpe, letters_of_bytes
from lm.tokenizer_base import EOT, Tokenizer

WORD = re.compile(r"([^\W_]+(?:['’][^\W_]+)*)")  # letters and digits of any script, with apostrophes inside
CASES = {'⇧': lambda word: word[:1].upper() + word[1:], '⇪': str.upper, '⇩': str}  # mark -> how it changes a word
LETTERS = letters_of_bytes()  # `tokenizers` writes bytes as letters
MAX_CACHED = 2**18  # words whose ids are remembered, because most words occur again


class StoryTokenizer(Tokenizer):
    """Words, gaps and case marks, and pieces for everything rare.

    merges: pairs of texts, which spell the pieces, as in BPE; in them, a letter stands for a byte, as in a
    tokenizer.json. words: as written inside a sentence. gaps: {gap: the mark expected after it}.
    """

    joins_bytes = False  # case marks, and spaces between words

    def __init__(self, merges=(), words=(), gaps=()):
        self._merges, self._words, self.expected_after = [tuple(pair) for pair in merges], list(words), dict(gaps)
        pieces = dict.fromkeys([*sorted(LETTERS.values()), *map(''.join, self._merges)])  # bytes in the order of GPT-2
        self._speller = byte_level_bpe({piece: id for id, piece in enumerate(pieces)}, self._merges).model
        bytes_of = {letter: byte for byte, letter in LETTERS.items()}
        self.tokens = [('piece', bytes(map(bytes_of.get, piece))) for piece in pieces]  # id -> (kind, bytes)
        self.ids = defaultdict(dict)  # kind -> {text: id}
        kinds = {'case': CASES, 'word': ('', *self._words), 'gap': ('', *self.expected_after), 'special': (EOT,)}
        for kind, text in ((kind, text) for kind, texts in kinds.items() for text in texts):
            self.ids[kind][text.lower() if kind == 'word' else text] = len(self.tokens)
            self.tokens.append((kind, text.encode()))
        self.vocab_size, self.eot = len(self.tokens), len(self.tokens) - 1
        self._cache = {}  # (word, expected mark) -> ids

    @classmethod
    def train(cls, texts, vocab_size, share=0.2):
        """Learn `vocab_size` tokens from texts, or as many as they have; at least a share of them are pieces."""
        pairs, gaps = Counter(), Counter()  # pairs: (gap, the word after it)
        for text in [texts] if isinstance(texts, str) else texts:
            for part in replace_surrogates(text).split(EOT):
                *units, last_gap = WORD.split(part)  # gap, word, gap, word, ...
                pairs.update(zip(units[::2], units[1::2]))
                gaps[last_gap] += 1
        words, capitals = Counter(), Counter()
        for (gap, word), n in pairs.items():
            gaps[gap] += n
            words[word.lower()] += n
            capitals[gap, word[0].isupper()] += n
        expected = {gap: '⇧' if capitals[gap, True] > capitals[gap, False] or not gap else '⇩' for gap in gaps}
        # Without words that occur once: a model that never sees a word spelled does not learn to spell.
        frequent = sorted((-n, unit) for unit, n in (words + gaps).items() if n > 1 and unit not in ('', ' '))
        room = vocab_size - cls().vocab_size  # beyond the bytes, the marks and everything else that is always there
        kept = [unit for _, unit in frequent[: max(0, room - round(share * vocab_size))]]
        forms = {word: Counter() for word in kept if word in words}
        for (gap, word), n in pairs.items():
            if expected[gap] == '⇩' and word.lower() in forms:
                forms[word.lower()][word] += n  # if it is capitalised here, the capital is its own
        written = [max(counts, key=lambda form: (counts[form], form), default=word) for word, counts in forms.items()]
        rare = {word: n for word, n in words.items() if word not in forms}
        return cls(learn_pieces(rare, room - len(kept)), written, {gap: expected[gap] for gap in kept if gap in gaps})

    @classmethod
    def from_contents(cls, merges, words, gaps):
        """Return the tokenizer that `contents` describe. Raises UserError if they describe none."""
        try:
            gaps = dict(gaps)
            texts = [*words, *gaps, *chain.from_iterable(merges)]
            if not all(isinstance(text, str) for text in texts) or not set(gaps.values()) <= set(CASES):
                raise UserError('its words, gaps or marks are not texts')
            tokenizer = cls(merges, words, gaps)
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f'its description of a story tokenizer is damaged: {error}') from error
        if len(tokenizer.ids['word']) + len(tokenizer.ids['gap']) != 2 + len(words) + len(gaps):
            raise UserError('its description of a story tokenizer is damaged: a word or gap is in it twice')
        return tokenizer

    # Text to ids ----------------------------------------------------------------------------------------------------

    def encode(self, text, specials=True):
        """Return the ids of a text or of any bytes; specials=False treats <|endoftext|> as ordinary text."""
        return self._limited(list(self._iterate_ids(text, specials)))

    def encode_after(self, before, text):
        """Return the ids of a text that follows these ids: a space between two words has no token, for example."""
        return self._limited(list(self._iterate_ids(text, True, before)))

    def encode_array(self, text, dtype):
        """Return the token ids of a text as a NumPy array, without making a list of them."""
        return np.fromiter(self._iterate_ids(text), dtype)

    def encode_batch(self, texts):
        """Return the token ids of many texts."""
        return [self.encode(text) for text in texts]

    def _iterate_ids(self, text, specials=True, before=()):
        text = replace_surrogates(text) if isinstance(text, str) else text.decode('utf-8', 'surrogateescape')
        spelled = self._read(before)
        kind, expected = spelled.kind, spelled.expected
        for number, part in enumerate(text.split(EOT) if specials else [text]):
            if number:
                yield self.eot
                kind, expected = 'special', '⇧'
            start = 0
            for match in WORD.finditer(part):
                gap, start = part[start : match.start()], match.end()
                if gap != (' ' if kind == 'word' else ''):  # otherwise it needs no token
                    yield from self._encode_gap(gap)
                    expected = self.expected_after.get(gap, '⇩')
                word = match[0]
                yield from self._cache.get((word, expected)) or self._encode_word(word, expected)
                kind, expected = 'word', '⇩'
            if start < len(part):
                yield from self._encode_gap(part[start:])

    def _encode_gap(self, gap):
        return min(self._list_spellings(gap, self.ids['gap']), key=len)

    def _list_spellings(self, unit, ids):
        """Return the spellings of a word or gap: a token that it begins with, the longest first, then pieces."""
        starts = [at for at in range(min(len(unit), max(map(len, ids))), -1, -1) if unit[:at] in ids]
        return [[ids[unit[:at]], *self._spell(unit[at:])] for at in starts]

    def _spell(self, text):
        """Return the ids of the pieces that spell a text."""
        letters = ''.join(LETTERS[byte] for byte in text.encode('utf-8', 'surrogateescape'))
        return [token.id for token in self._speller.tokenize(letters)]

    def _encode_word(self, word, expected):
        """Return the fewest ids that decode to the word; no mark produces McX or ß, so these are spelled exactly."""
        known = self.ids['word']
        spellings = [*self._list_spellings(word.lower(), known), [known[''], *self._spell(word)]]
        marks = {mark: [] if mark == expected else [self.ids['case'][mark]] for mark in CASES}
        data = word.encode('utf-8', 'surrogateescape')
        ids = min((marks[m] + ids for ids in spellings for m in CASES if self._spell_out(ids, m) == data), key=len)
        if len(self._cache) < MAX_CACHED:
            self._cache[word, expected] = ids
        return ids

    def _spell_out(self, ids, mark):
        """Return the bytes of one word that comes after a mark."""
        spelled = SpelledText(self.expected_after)
        spelled.mark = mark
        return b''.join(spelled.add(self.tokens[id] for id in ids))

    # Ids to text ----------------------------------------------------------------------------------------------------

    def split_bytes(self, ids, after=()):
        """Return the bytes that each id adds to a text; ids may come in any order, since a model may write them."""
        spelled = self._read(after)
        return spelled.add(self.tokens[id] for id in self._check(ids))

    def byte_sizes(self, ids, after=()):
        """Return how many bytes each of these ids adds to the text of those that they follow: a NumPy array, (n,)."""
        return np.array([len(data) for data in self.split_bytes(ids, after)], np.int64)

    def _read(self, ids):
        """Return the SpelledText of ids. Only the last two words, gaps or special tokens matter for what follows."""
        start, n_units = len(ids), 0
        while start and n_units < 2:
            start -= 1
            n_units += self.tokens[ids[start]][0] not in ('piece', 'case')
        spelled = SpelledText(self.expected_after)
        spelled.add(self.tokens[id] for id in ids[start:])
        return spelled

    def _bytes_of(self, id):
        kind, token = self.tokens[id]
        return token or {'word': '•', 'gap': '◦'}[kind].encode()  # a word, or gap, that starts with no known one

    def pieces(self, ids):
        """Return each token made visible, with + before pieces that continue a word or gap."""
        ids = self._check(ids)
        return ['+' * (self.tokens[id][0] == 'piece') + piece for id, piece in zip(ids, super().pieces(ids))]

    def show(self, ids):
        """Return the tokens made visible on one line, with spaces between them, since words have none of their own."""
        return ' '.join(self.pieces(ids))

    # What others need to know about it ------------------------------------------------------------------------------

    @property
    def contents(self):
        """What a checkpoint stores of it: merges, words, and gaps with the marks expected after them."""
        merges, gaps = map(list, self._merges), map(list, self.expected_after.items())
        return self._complete({'kind': 'story', 'merges': [*merges], 'words': self._words, 'gaps': [*gaps]})

    @property
    def fingerprint(self):
        """SHA-256 of the contents, which decide about all ids."""
        described = {name: value for name, value in self.contents.items() if name != 'roles'}
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def id_of_text(self, text):
        """Return the id of <|endoftext|>; other tokens are not written in one way only."""
        return self.eot if text == EOT else None

    def save(self, folder):
        """Raise UserError: transformers has nothing like it."""
        raise UserError(
            'a story tokenizer cannot be exported, since transformers has none that knows words, gaps and case marks. '
            'Use the checkpoint with sample.py and eval.py, or train on a dataset prepared with --train_bpe or '
            '--tokenizer=gpt2, and export that model'
        )


class SpelledText:
    """A text that grows token by token: what is known of it when the next token comes."""

    def __init__(self, expected_after):
        self.kind = 'special'  # of the last unit: word, gap or special; a text begins as after <|endoftext|>
        self.mark = None  # a case mark that is waiting for its word
        self._unit = bytearray()  # the last unit
        self._change = CASES['⇩']  # what happens to further pieces of a word
        self._expected_after = expected_after

    @property
    def expected(self):
        """The mark that holds for the next word."""
        if self.mark is not None:
            return self.mark
        if self.kind == 'gap':
            return self._expected_after.get(self._unit.decode('utf-8', 'surrogateescape'), '⇩')
        return '⇧' if self.kind == 'special' else '⇩'

    def add(self, tokens):
        """Add tokens, (kind, bytes) each, and return the bytes that each adds to the text."""
        added = []
        for kind, token in tokens:
            if kind == 'case':
                self.mark = token.decode()
                added.append(b'')
                continue
            space = b''
            if kind == 'piece':  # it belongs to the unit before it
                self._unit += token
            else:
                if kind == 'word':
                    space, self._change = b' ' * (self.kind == 'word'), CASES[self.mark or self.expected]
                self.kind, self._unit = kind, bytearray(token)
            self.mark = None
            if self.kind == 'word' and self._change is not CASES['⇩']:  # half a character has no case
                changed = self._change(token.decode('utf-8', 'surrogateescape'))
                if token and self._change is CASES['⇧']:
                    self._change = CASES['⇩']  # only the first letter
                token = changed.encode('utf-8', 'surrogateescape')
            added.append(space + token)
        return added


def learn_pieces(words, number):
    """Return `number` merges learned from words, {word: occurrences}, or as many as they have; pairs of letters."""
    if number < 1:
        return []
    from tokenizers import pre_tokenizers, trainers

    bpe = byte_level_bpe()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # each word is one word
    size = len(LETTERS) + number
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=[*LETTERS.values()], show_progress=False)
    bpe.train_from_iterator(chain.from_iterable(repeat(word, n) for word, n in words.items()), trainer)
    return json.loads(bpe.to_str())['model']['merges']
