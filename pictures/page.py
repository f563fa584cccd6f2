"""Numbers to one HTML page: texts whose tokens are coloured by their probability and tell what else was likely.

In the manner of GLTR (Gehrmann, Strobelt and Rush 2019, https://arxiv.org/abs/1906.04043). Nothing here knows where the
numbers came from; what the page looks like and does is in page.html. The file that is written stands alone: it has its
styles, its script and its numbers inside, and its Content-Security-Policy lets nothing else in. Any browser since the
middle of 2024 shows it (older ones do not know the colours' light-dark()).
"""

import base64
import hashlib
import html
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from common.files import atomic_write
from lm.alternatives import TokenRecord

TEMPLATE = Path(__file__).with_name('page.html')
DIGITS = 7  # significant digits of probabilities and entropies; they were computed in float32
LOGPROB_DIGITS = 9  # of logprobs: what is left of a float32 and, exponentiated, of a probability
TOTAL_DIGITS = 12  # of a text's logprob, so that its probability has the six that sample.py prints
# What would not show, or would turn the text around it: control characters but tab and newline, the soft hyphen, the
# byte order mark, halves of characters that UTF-16 writes in two, marks that set the direction of writing. The joiners
# U+200C and U+200D stay: letters and emoji are shaped by them.
INVISIBLE = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]'
)


@dataclass
class Side:
    """What one model says about a text: a record for each token, and the tokens made visible."""

    records: list[TokenRecord]
    pieces: dict[int, str]  # of every id in the records, as tokenizer.pieces makes it visible


def make_side(records, tokenizer):
    """Return a Side of some TokenRecords."""
    ids = sorted({other.id for record in records for other in record.alternatives_and_itself})
    return Side(records, dict(zip(ids, tokenizer.pieces(ids))))


@dataclass
class PageText:
    """A prompt, and its response as each model sees it."""

    label: str  # 'sample 1', 'pair 7'
    prompt: str
    sides: list[Side]  # one for each of the page's models, in their order


@dataclass
class Page:
    """All that a page shows."""

    title: str
    about: list[str]  # lines that say how it was made: the command, the settings
    models: list[str]  # one name, or two: the model, and the one it is compared to
    sampler: str | None  # 'temperature 0.8, top_k 200'; None if there are only model probabilities
    texts: list[PageText]


def write_page(page, path):
    """Write a page as one HTML file, whole or not at all; raises UserError where that cannot be."""
    document = render_page(page)  # before the file is touched
    with atomic_write(path) as temporary:
        temporary.write_text(document, encoding='utf-8')


def render_page(page):
    """Return the HTML of a page. Raises ValueError for numbers that are nan, or sides that do not fit the models."""
    template = TEMPLATE.read_text(encoding='utf-8')
    parts = {
        'policy': content_security_policy(template),
        'title': escape_html(page.title),
        'about': '\n'.join(f'<li dir="auto">{escape_html(line)}</li>' for line in page.about),
        'plain': '\n'.join(plain_html(text, page.models) for text in page.texts),
        'data': embed_json(page_data(page)),
    }
    # One pass, so that a text with {{data}} in it stays a text.
    return re.sub(r'\{\{(\w+)\}\}', lambda place: parts[place[1]], template)


def page_data(page):
    """Return what is embedded in the page, in types that JSON has.

    A side is written in columns, a list of values for all of its tokens. Pieces are places in one table, `pieces`,
    which holds each once. Probabilities and entropies are rounded to DIGITS significant digits, logprobs to
    LOGPROB_DIGITS, each side's sums, `logprob` and `sampler_logprob`, to TOTAL_DIGITS. Infinities are the words
    'Infinity' and '-Infinity', which JavaScript's Number reads. Without a sampler, its columns and sum are null.
    """
    if len(page.models) not in (1, 2):
        raise ValueError(f'{len(page.models)} models: a page shows one, or compares two')
    pieces = {}  # piece -> its place in the table

    def place_of(piece):
        return pieces.setdefault(show_invisible(piece), len(pieces))

    def columns(side):
        records = side.records
        alternatives = [record.alternatives for record in records]

        def sampler(values):
            return values if page.sampler is not None else None

        return {
            'logprob': round_number(math.fsum(record.model_logprob for record in records), TOTAL_DIGITS),
            'sampler_logprob': sampler(
                round_number(math.fsum(record.sampler_logprob for record in records), TOTAL_DIGITS)
            ),
            'pieces': [place_of(side.pieces[record.id]) for record in records],
            'logprobs': [round_number(record.model_logprob, LOGPROB_DIGITS) for record in records],
            'sampler_logprobs': sampler([round_number(record.sampler_logprob, LOGPROB_DIGITS) for record in records]),
            'ranks': [record.rank for record in records],
            'entropies': [round_number(record.entropy) for record in records],
            'alternatives': [[place_of(side.pieces[other.id]) for other in others] for others in alternatives],
            'probs': [[round_number(math.exp(other.model_logprob)) for other in others] for others in alternatives],
            'sampler_probs': sampler(
                [[round_number(math.exp(other.sampler_logprob)) for other in others] for others in alternatives]
            ),
        }

    texts = []
    for text in page.texts:
        if len(text.sides) != len(page.models):
            raise ValueError(f'{text.label} has {len(text.sides)} sides, and there are {len(page.models)} models')
        sides = [columns(side) for side in text.sides]
        texts.append({'label': show_invisible(text.label), 'prompt': show_invisible(text.prompt), 'sides': sides})
    return {
        'title': show_invisible(page.title),
        'about': [show_invisible(line) for line in page.about],
        'models': [show_invisible(name) for name in page.models],
        'sampler': None if page.sampler is None else show_invisible(page.sampler),
        'texts': texts,
        'pieces': list(pieces),
    }


def round_number(value, digits=DIGITS):
    """Round to significant digits; None stays, infinities become words. Raises ValueError for nan."""
    if value is None:
        return None
    if math.isnan(value):
        raise ValueError('nan among the numbers of a page')
    if math.isinf(value):
        return 'Infinity' if value > 0 else '-Infinity'
    return float(f'{value:.{digits}g}')


def show_invisible(text):
    """Write characters that would not show as their code points, as tokenizer.pieces does: ‹U+0000›."""
    return INVISIBLE.sub(lambda char: f'‹U+{ord(char[0]):04X}›', text)


def escape_html(text):
    """Return a text as HTML, in an element or an attribute."""
    return html.escape(show_invisible(text))


def embed_json(content):
    """Return JSON that may stand in a <script>: plain ASCII in which nothing can end the element or open another."""
    text = json.dumps(content, separators=(',', ':'), allow_nan=False)
    for char in '<>&':
        text = text.replace(char, f'\\u{ord(char):04x}')  # such a character stands in strings only
    return text


def plain_html(text, models):
    """Return what a browser without JavaScript shows of a text: the prompt, the pieces, how likely they were."""
    lines = [f'<h2>{escape_html(text.label)}</h2>', f'<p class="prompt" dir="auto">{escape_html(text.prompt)}</p>']
    for name, side in zip(models, text.sides, strict=True):
        pieces = ' '.join(side.pieces[record.id] for record in side.records)
        total = math.fsum(record.model_logprob for record in side.records)
        lines += [
            f'<p dir="auto">{escape_html(pieces)}</p>',
            f'<p>{escape_html(name)}: model logprob {total:.4f}, {len(side.records)} tokens</p>',
        ]
    return '\n'.join(lines)


def content_security_policy(template):
    """Return the Content-Security-Policy of a page: its own style and its own script, known by their hashes."""
    style, script = (
        base64.b64encode(hashlib.sha256(re.search(f'<{tag}>(.*?)</{tag}>', template, re.DOTALL)[1].encode()).digest())
        for tag in ('style', 'script')
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style.decode()}'; script-src 'sha256-{script.decode()}'; "
        "base-uri 'none'; form-action 'none'"
    )
