"""Texts that are hard for a tokenizer, strategies that make more of them, and one tokenizer of each kind."""

import functools
import string

from hypothesis import strategies as st

from lm.story_tokenizer import StoryTokenizer
from lm.tokenizer import EOT, CharTokenizer, GPT2Tokenizer, train_bpe

PROSE = """\
The lighthouse keeper's daughter counted the boats each evening, and each evening there was one too many. "It's the
fog," said her father, who didn't look up from his soup. "Fog can't count." But she'd seen it: a little grey boat that
cast no shadow, tied to the third post where nobody ever tied anything.

On Thursday she took a lantern and went down. The boat was there. In it sat an old woman, knitting something long and
grey that trailed over the side, into the water, and on, and out, and up.

"So you're making it," the girl said. "The fog."

"Somebody has to, dear," said the old woman. "Hold this end, would you? We'll be done by morning."
"""
CODE = 'def f(x, *, n=10):\n    if x >= n:\n\t\treturn [x**2 for _ in range(0x1F)]  # TODO: why?\n\n\nprint(f(3)!=4)\n'
VARIED = [
    PROSE,
    CODE,
    '',
    ' ',
    'a',
    '1234567890 3.14159 1,000,000 ½ ² ٣ 2024-02-29T12:00Z',
    'naïve café Ærøskøbing Łódź ÑANDÚ e\u0301 ﬁ ß ẞ',
    '日本語のテキスト 中文，标点。 한국어 עברית العربية ไทย हिन्दी',
    '🙂 👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f1f3\U0001f1f1 \U0001d54f',
    '   leading, trailing   ',
    'runs  of   white    space\t\t\ttabs\n\n\n\nlines \n \n\r\n\r\n\u00a0\u2003\u3000\u2028x',
    "don't DON'T we'll WE'LL 'tis it''s 's",
    '\x00\x01\x1b[0m\x7f\x85\ufeff\ufffd\u200b\u202e',
    f'one{EOT}two {EOT} {EOT}{EOT}',
    '<|endoftext <|endoftext|',
]
# Pieces of text that merge with each other, or stand where white space and merges make a boundary hard.
FRAGMENTS = [
    *' \n\t\r.,\'"-abehinorstuwIT0129éö中文🙂\x1f\x85\u00a0\u2003\u2028\u3000\u200d\u0301',
    *('the', ' the', 'The', 'ing', ' on', 'er', 'un', 'ther', "n't", "'s", ' in', '  ', '    ', '\n\n', ' \n', '\r\n'),
    *('fog', ' lighthouse', 'keeper', 'there', ' Thursday', '👩\u200d👧', EOT),
]
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map(''.join)
any_text = st.text() | fragments
# Words that have quite other tokens when their ends are cut off, and some prose: to be cut in two anywhere.
WORDS = f'Accordingly the Colonel heard absolute ANSWERS; hunger, eight Eastern armours absently. {PROSE}'
places = st.tuples(*[st.integers(0, len(WORDS))] * 3).map(sorted)
halves = st.tuples(fragments, fragments) | places.map(lambda abc: (WORDS[abc[0] : abc[1]], WORDS[abc[1] : abc[2]]))
CHARS = sorted(set(string.ascii_letters).union(WORDS, *FRAGMENTS))


@functools.cache
def gpt2_tokenizer():
    return GPT2Tokenizer()


@functools.cache
def bpe_tokenizer():
    return train_bpe([PROSE, CODE], 400)


@functools.cache
def char_tokenizer():
    return CharTokenizer(CHARS)


@functools.cache
def story_tokenizer():
    return StoryTokenizer.train([PROSE, WORDS, CODE], 400)


MAKE = {'gpt2': gpt2_tokenizer, 'bpe': bpe_tokenizer, 'char': char_tokenizer, 'story': story_tokenizer}
