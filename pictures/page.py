"""Makes an HTML page of texts whose tokens are coloured by how likely they were, and show what else was likely.

The idea is that of GLTR (Gehrmann, Strobelt and Rush 2019, https://arxiv.org/abs/1906.04043). page.html is the
template; it decides what the page looks like and how it behaves. The finished page is one file, with its styles, its
script and its numbers inside, and its Content-Security-Policy blocks everything else. It needs a browser from mid-2024
or later, since its colours use light-dark().
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
from common.strings import show_invisible
from lm.alternatives import TokenRecord

TEMPLATE = Path(__file__).with_name('page.html')
DIGITS = 7  # significant digits of probabilities and entropies, which were computed in float32
LOGPROB_DIGITS = 9  # of logprobs: enough for a float32, and for the probability that it stands for
TOTAL_DIGITS = 12  # of a text's logprob, so that its probability has the six digits that sample.py prints


@dataclass
class Side:
    """One model's view of a text: a record for each token, and the tokens made visible."""

    records: list[TokenRecord]
    pieces: dict[int, str]  # every id in the records -> what tokenizer.pieces returns for it


def make_side(records, tokenizer):
    """Return the Side of some TokenRecords."""
    ids = sorted({other.id for record in records for other in record.alternatives_and_token})
    return Side(records, dict(zip(ids, tokenizer.pieces(ids))))


@dataclass
class PageText:
    """A prompt and its response, as each model sees them."""

    label: str  # 'sample 1', 'pair 7'
    prompt: str
    sides: list[Side]  # one for each model of the page, in the same order


@dataclass
class Page:
    """Everything that a page shows."""

    title: str
    about: list[str]  # lines about how it was made: the command, the settings
    models: list[str]  # one name, or two: the model, and the model it is compared to
    sampler: str | None  # 'temperature 0.8, top_k 200'; None to show model probabilities only
    texts: list[PageText]


def write_page(page, path):
    """Write a page as one HTML file, atomically; raises UserError if that fails."""
    document = render_page(page)  # may raise, so before the file is touched
    with atomic_write(path) as temporary:
        temporary.write_text(document, encoding='utf-8')


def render_page(page):
    """Return the HTML of a page. Raises ValueError if a number is nan or the sides do not match the models."""
    template = TEMPLATE.read_text(encoding='utf-8')
    parts = {
        'policy': content_security_policy(template),
        'title': escape_html(page.title),
        'about': '\n'.join(f'<li dir="auto">{escape_html(line)}</li>' for line in page.about),
        'plain': '\n'.join(plain_html(text, page.models) for text in page.texts),
        'data': embed_json(page_data(page)),
    }
    # All in one pass, so that a {{data}} in somebody's text is not replaced.
    return re.sub(r'\{\{(\w+)\}\}', lambda place: parts[place[1]], template)


def page_data(page):
    """Return the numbers and texts that are embedded in the page, in types that JSON has.

    A side is a set of columns, each a list with a value for every token. A piece is a place in the one table of pieces.
    Probabilities and entropies are rounded to DIGITS significant digits, logprobs to LOGPROB_DIGITS, and the sums of a
    side, `logprob` and `sampler_logprob`, to TOTAL_DIGITS. Infinities are the words 'Infinity' and '-Infinity', which
    JavaScript's Number reads. Without a sampler, its columns and its sum are None.
    """
    if len(page.models) not in (1, 2):
        raise ValueError(f'{len(page.models)} models: a page shows one, or compares two')
    places = {}  # piece -> its place in the table
    texts = []
    for text in page.texts:
        if len(text.sides) != len(page.models):
            raise ValueError(f'{text.label} has {len(text.sides)} sides, but there are {len(page.models)} models')
        sides = [side_data(side, page.sampler is not None, places) for side in text.sides]
        texts.append({'label': show_invisible(text.label), 'prompt': show_invisible(text.prompt), 'sides': sides})
    return {
        'title': show_invisible(page.title),
        'about': [show_invisible(line) for line in page.about],
        'models': [show_invisible(name) for name in page.models],
        'sampler': None if page.sampler is None else show_invisible(page.sampler),
        'texts': texts,
        'pieces': list(places),
    }


def side_data(side, with_sampler, places):
    """Return the columns and sums of a Side; new pieces are added to places, {piece: place}."""
    records = side.records
    alternatives = [record.alternatives for record in records]

    def place_of(token):
        return places.setdefault(show_invisible(side.pieces[token.id]), len(places))

    data = {
        'logprob': sum_logprobs(record.model_logprob for record in records),
        'sampler_logprob': None,
        'pieces': [place_of(record) for record in records],
        'logprobs': [round_number(record.model_logprob, LOGPROB_DIGITS) for record in records],
        'sampler_logprobs': None,
        'ranks': [record.rank for record in records],
        'entropies': [round_number(record.entropy) for record in records],
        'alternatives': [[place_of(other) for other in others] for others in alternatives],
        'probs': [[round_number(math.exp(other.model_logprob)) for other in others] for others in alternatives],
        'sampler_probs': None,
    }
    if with_sampler:
        data['sampler_logprob'] = sum_logprobs(record.sampler_logprob for record in records)
        data['sampler_logprobs'] = [round_number(record.sampler_logprob, LOGPROB_DIGITS) for record in records]
        data['sampler_probs'] = [
            [round_number(math.exp(other.sampler_logprob)) for other in others] for others in alternatives
        ]
    return data


def sum_logprobs(logprobs):
    """Return the logprob of a text, rounded."""
    return round_number(math.fsum(logprobs), TOTAL_DIGITS)


def round_number(value, digits=DIGITS):
    """Round to significant digits; infinities become words. Raises ValueError for nan."""
    if math.isnan(value):
        raise ValueError('nan among the numbers of a page')
    if math.isinf(value):
        return 'Infinity' if value > 0 else '-Infinity'
    return float(f'{value:.{digits}g}')


def escape_html(text):
    """Return a text as HTML, for an element or an attribute."""
    return html.escape(show_invisible(text))


def embed_json(content):
    """Return JSON that is safe inside a <script>: plain ASCII that can neither end the element nor open another."""
    text = json.dumps(content, separators=(',', ':'), allow_nan=False)
    for char in '<>&':
        text = text.replace(char, f'\\u{ord(char):04x}')  # these occur in strings only
    return text


def plain_html(text, models):
    """Return what a browser without JavaScript shows of a text: the prompt, the pieces and how likely they are."""
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
    """Return the Content-Security-Policy of a page: it allows its own style and its own script, by their hashes."""
    style, script = (
        base64.b64encode(hashlib.sha256(re.search(f'<{tag}>(.*?)</{tag}>', template, re.DOTALL)[1].encode()).digest())
        for tag in ('style', 'script')
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style.decode()}'; script-src 'sha256-{script.decode()}'; "
        "base-uri 'none'; form-action 'none'"
    )
