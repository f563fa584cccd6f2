"""Pages with random or given numbers, and the colours of the page, for the tests of pictures/page.py."""

import json
import math
import re

import numpy as np
import pytest

from lm.alternatives import Alternative, TokenRecord
from pictures import page as pages
from pictures.page import Page, PageText, Side

# Pieces that would break a page that is put together carelessly.
NASTY = [
    '</script>',
    '<!--<script>',
    '"\'&amp;\\',
    '<img·src=x·onerror=hacked=1>',
    '{{data}}',
    'a\u2028b\u2029c',
    '\x00\x1b\x7f',
    '\ud83d',
    '·🙂',
    '·שלום',
    '</style>]]>',
    '${hacked=1}',
    '__proto__',
]
WORDS = [
    *NASTY,
    '·king',
    '·the',
    '⏎',
    '·',
    '·a',
    ',',
    '.',
    's',
    '·princess',
    '·wood',
    'cutter',
    '·on',
    '·disproportionately',
]
IDS = {}  # piece -> its id, given when the piece is first used


def id_of(piece):
    """Return the id of a piece."""
    return IDS.setdefault(piece, len(IDS))


def piece_of(token):
    """Return the piece of a record or an alternative."""
    return next(piece for piece, id in IDS.items() if id == token.id)


def side_of(records):
    """Return a Side of some records that were made here."""
    return Side(list(records), {id: piece for piece, id in IDS.items()})


def alternative(piece, prob, sampler_prob=None):
    """Return an Alternative; if no sampler probability is given, it is the model's."""
    sampler_prob = prob if sampler_prob is None else sampler_prob
    return Alternative(id_of(piece), math.log(prob), math.log(sampler_prob) if sampler_prob else -math.inf)


def a_token(piece='·king', logprob=-1.0, rank=2, alternatives=(), sampler_logprob=None, entropy=1.0):
    """Return a TokenRecord; if no sampler logprob is given, it is the model's."""
    sampler_logprob = logprob if sampler_logprob is None else sampler_logprob
    return TokenRecord(id_of(piece), logprob, sampler_logprob, rank, entropy, list(alternatives))


def random_token(random, words, temperature=None):
    """Return a TokenRecord of a token drawn from a random distribution over words, with NumPy's numbers."""
    logits = random.normal(0, 2.5, len(words))

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum()

    model = softmax(logits)
    sampler = softmax(logits / (temperature or 1.0))
    chosen = random.integers(len(words))
    order = np.argsort(-model, kind='stable')
    return TokenRecord(
        id=id_of(words[chosen]),
        model_logprob=float(np.log(model[chosen])),
        sampler_logprob=float(np.log(sampler[chosen])),
        rank=int(np.flatnonzero(order == chosen)[0]) + 1,
        entropy=float(-(model * np.log(model)).sum()),
        alternatives=[
            Alternative(id_of(words[place]), float(np.log(model[place])), float(np.log(sampler[place])))
            for place in order[:10]
        ],
    )


def a_page(texts=2, tokens=12, models=1, sampler=None, words=WORDS, same_pieces=True, seed=0, **changes):
    """Return a page of random texts; two models split them into the same tokens unless same_pieces is False."""
    random = np.random.default_rng(seed)
    temperature = None if sampler is None else 0.8
    made = []
    for number in range(texts):
        sides = [side_of([random_token(random, words, temperature) for _ in range(tokens)]) for _ in range(models)]
        if models == 2 and same_pieces:
            for one, other in zip(sides[0].records, sides[1].records):
                other.id = one.id
                other.rank = 12 + number  # so it need not be among the ten likeliest
        made.append(
            PageText(f'sample {number + 1}', f'Once upon\ta time </p> {NASTY[number % len(NASTY)]}\nand', sides)
        )
    values = {
        'title': 'A title with <b> & "quotes" </title>',
        'about': ['python sample.py --start="</script>"', 'seed 1'],
        'models': ['after <i>', 'before'][:models],
        'sampler': sampler,
        'texts': made,
    }
    return Page(**(values | changes))


def written(page, folder):
    """Write a page into a folder; return its path."""
    path = folder / 'page.html'
    pages.write_page(page, path)
    return path


def json_of(document):
    """Return the data that is embedded in a page."""
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', document, re.DOTALL)
    return json.loads(content, parse_constant=lambda word: pytest.fail(f'{word} is not JSON'))


# Colours --------------------------------------------------------------------------------------------------------------


def palette(scheme):
    """Return the page's colours, name -> '#rrggbb', in the light (0) or the dark (1) scheme."""
    template = pages.TEMPLATE.read_text(encoding='utf-8')
    pairs = re.findall(r'--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);', template)
    return {name: both[scheme] for name, *both in pairs}


def linear(colour):
    """Return linear red, green and blue, 0 to 1, of '#rrggbb' (sRGB, IEC 61966-2-1)."""
    values = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """Return WCAG 2's contrast ratio of two colours."""
    dark, light = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)
