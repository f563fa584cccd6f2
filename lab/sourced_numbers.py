"""Numbers in Markdown pages, held against the JSON files that they come from.

After a paragraph or a table, a comment, which readers of the page do not see, says where its numbers are from:

    51 of 64 responses became likelier, by +4.79 on average.
    <!-- fine_tuning/pairs/summary.json: 51 = comparison/rose; 64 = rows; +4.79 = comparison/mean_log_ratio/value -->

A path leads from the page's folder to the file, and then through its keys and places. The numbers stand in the order of
the paragraph. What was chosen rather than measured is `given`: <!-- given: 0.8; 200 -->. `check` tells what does not
agree, `refreshed` puts it right.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

COMMENT = re.compile(r'<!-- (?P<source>[\w./-]+\.json|given):\s(?P<entries>.*?) -->', re.DOTALL)
ENTRY = re.compile(r'\s*(?P<shown>.+?)\s+=\s+(?P<path>\S+)\s*')
# Where numbers need no source: code, headings and links to them, the targets of other links, tags.
EXEMPT = re.compile(
    r'^```.*?^```|`[^`\n]*`|^#+ [^\n]*|\[[^]]*\]\(#[^)]*\)|\]\([^)]*\)|<[^>]*>', re.DOTALL | re.MULTILINE
)
# What has to be sourced: a number with a decimal point, thousands, an exponent or a percent sign.
NUMBER = re.compile(r'(?<![\w.,])[+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?(?: ?%)?(?![\w,]*\d)')
SCALES = {'%': 0.01, 'M': 1e6, 'million': 1e6, 'MB': 1e6, 'KB': 1e3, 'thousand': 1e3}


@dataclass
class Quotation:
    """A number as a page shows it, and where it comes from."""

    page: Path
    line: int  # of the comment
    shown: str
    source: Path | None  # the JSON file; None for what is given
    path: str  # through its keys

    @property
    def value(self):
        """The number in the file. Raises KeyError, IndexError or OSError where there is none."""
        found = _contents(self.source)
        for key in self.path.split('/'):
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found


@lru_cache
def _contents(path):
    return json.loads(path.read_text(encoding='utf-8'))


def like(value, shown):
    """Return a value written as `shown` is: decimals, sign, thousands, exponent, unit; text as it is, or as code."""
    if isinstance(value, str):
        return f'`{value}`' if shown.startswith('`') else value
    match = re.fullmatch(r'(?P<sign>[+−-]?)(?P<number>[\d,.]+(?:e[+-]?\d+)?)(?P<unit> ?(?:%|[A-Za-z]+))?', shown)
    if match is None:
        raise ValueError(f'{shown} is no number')
    sign, number, unit = match['sign'], match['number'], match['unit'] or ''
    value = value / SCALES[unit.strip()] if unit else value
    mantissa, has_exponent, _ = number.partition('e')
    decimals = len(mantissa.partition('.')[2])
    separator = ',' if ',' in number or (decimals == 0 and abs(value) >= 10_000) else ''
    text = f'{abs(value):{separator}.{decimals}{"e" if has_exponent else "f"}}'
    if has_exponent:  # 9.0e-109 stays as Python writes it
        mantissa, _, exponent = text.partition('e')
        text = f'{mantissa}e{int(exponent):+03d}'
    minus = '−' if '−' in shown or '-' not in shown else '-'
    return (minus if value < 0 else '+' if sign == '+' else '') + text + unit


def quotations(page):
    """Yield (paragraph, the text from its first letter to the end of the comments below, Quotations) of a page."""
    text = page.read_text(encoding='utf-8')
    for part in re.finditer(r'(?:[^\n]+\n)+(?:\s*<!-- (?:[\w./-]+\.json|given):\s.*?-->)+', text, re.DOTALL):
        found = []
        for comment in COMMENT.finditer(part[0]):
            line = text.count('\n', 0, part.start() + comment.start()) + 1
            source = None if comment['source'] == 'given' else page.parent / comment['source']
            for entry in re.split(r';\s', comment['entries']):
                if source is None:
                    found.append(Quotation(page, line, ' '.join(entry.split()), None, ''))
                elif (match := ENTRY.fullmatch(entry)) is None:
                    raise ValueError(f'{page}:{line}: {entry.strip()!r} is not NUMBER = PATH')
                else:
                    found.append(Quotation(page, line, match['shown'], source, match['path']))
        yield part[0][: COMMENT.search(part[0]).start()].rstrip(), part[0], found


def find_disagreements(page, all_sourced=True):
    """Return what does not agree, a line each: numbers unlike their source and, if wanted, numbers without one."""
    complaints, sourced = [], {}
    for paragraph, _, found in quotations(page):
        sourced.setdefault(paragraph, []).extend(quotation.shown for quotation in found)
        for quotation, place in zip(found, places(paragraph, found)):
            where = f'{page}:{quotation.line}: {quotation.shown}'
            if place is None:
                complaints.append(f'{where} is not in the paragraph above, or not in this order')
            if quotation.source is not None:
                try:
                    right = like(quotation.value, quotation.shown)
                except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
                    complaints.append(f'{where} has no source: {type(error).__name__} {error}')
                    continue
                if right != quotation.shown:
                    complaints.append(f'{where} is {right} in {quotation.source}: {quotation.path}')
    if all_sourced:
        text = EXEMPT.sub(' ', COMMENT.sub('', page.read_text(encoding='utf-8')))
        known = {EXEMPT.sub(' ', paragraph).strip(): shown for paragraph, shown in sourced.items()}
        for paragraph in re.split(r'\n\n+', text):
            shown = {bare(number) for entry in known.get(paragraph.strip(), []) for number in NUMBER.findall(entry)}
            for number in NUMBER.findall(paragraph):
                if re.search('[.,e%]', number) and bare(number) not in shown:
                    complaints.append(f'{page}: {number} has no source: {" ".join(paragraph.split())[:80]}')
    return complaints


def bare(number):
    """Return a number without its sign and unit."""
    return number.strip('+−- %')


def refresh_numbers(page):
    """Return the page's text with every sourced number as its file has it now."""
    text = page.read_text(encoding='utf-8')
    for paragraph, part, found in quotations(page):
        changes = []  # (start, end, new) in the paragraph, and in its comments, where they come in the same order
        for where, offset in ((paragraph, 0), (part[len(paragraph) :], len(paragraph))):
            for quotation, place in zip(found, places(where, found)):
                if place is not None and quotation.source is not None:
                    changes.append((offset + place[0], offset + place[1], like(quotation.value, quotation.shown)))
        right = part
        for start, end, new in sorted(changes, reverse=True):
            right = right[:start] + new + right[end:]
        text = text.replace(part, right, 1)
    return text


def places(text, found):
    """Return where each quotation of a paragraph stands in a text, (start, end), or None where it does not.

    The entries of a comment stand in the order of the numbers, so that one number can be quoted twice; each comment
    begins anew at the text's beginning.
    """
    ends, spans = {}, []
    for quotation in found:
        number = re.compile(rf'(?<![\w.,/]){re.escape(quotation.shown)}(?![\d,.]*\d)')
        match = number.search(text, ends.get(quotation.line, 0))
        if match is not None:
            ends[quotation.line] = match.end()
        spans.append(match and match.span())
    return spans
