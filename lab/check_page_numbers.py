"""Numbers on Markdown pages, compared with the JSON files they come from.

A comment after a paragraph or a table, which readers of the page do not see, says where its numbers come from:

    51 of 64 responses became likelier, by +4.79 on average.
    <!-- fine_tuning/pairs/summary.json: 51 = comparison/rose; 64 = rows; +4.79 = comparison/mean_log_ratio/value -->

A file's path is relative to the page; the path after = leads through its keys and list positions. The numbers are in
the order of the paragraph. A number that was chosen, not measured, is `given`: <!-- given: 0.8; 200 -->.
`find_disagreements` lists the numbers that disagree with their source, `refresh_numbers` corrects them.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

COMMENT = re.compile(r'<!-- (?P<source>[\w./-]+\.json|given):\s(?P<entries>.*?) -->', re.DOTALL)
ENTRY = re.compile(r'\s*(?P<shown>.+?)\s+=\s+(?P<path>\S.*?)\s*')
# Where numbers need no source: code, headings, links to headings, targets of other links, tags.
EXEMPT = re.compile(
    r'^```.*?^```|`[^`\n]*`|^#+ [^\n]*|\[[^]]*\]\(#[^)]*\)|\]\([^)]*\)|<[^>]*>', re.DOTALL | re.MULTILINE
)
# A number, possibly with a sign, thousands separators, decimals, an exponent or a percent sign.
NUMBER = re.compile(r'(?<![\w.,])[+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?(?: ?%)?(?![\w,]*\d)')
GENERATED = re.compile(r'<!-- generated: .*?<!-- end -->', re.DOTALL)  # tables that code writes: experiment_pages.py
SCALES = {'%': 0.01, 'M': 1e6, 'million': 1e6, 'MB': 1e6, 'KB': 1e3, 'thousand': 1e3}


@dataclass
class Quotation:
    """A number as a page shows it, and its source."""

    page: Path
    line: int  # of the comment
    shown: str
    source: Path | None  # the JSON file; None if the number is given
    path: str  # keys and list positions, separated by /

    @property
    def value(self):
        """The number in the file. Raises OSError, KeyError or IndexError if it is missing."""
        found = json.loads(self.source.read_text(encoding='utf-8'))
        for key in self.path.split('/'):
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found


def format_like(value, shown):
    """Format a number like `shown`: decimals, sign, thousands, exponent, unit; text in backticks if `shown` is."""
    if isinstance(value, str):
        return f'`{value}`' if shown.startswith('`') else value
    match = re.fullmatch(r'(?P<sign>[+−-]?)(?P<number>[\d,.]+(?:e[+-]?\d+)?)(?P<unit> ?(?:%|[A-Za-z]+))?', shown)
    if match is None:
        raise ValueError(f'{shown} is not a number')
    sign, number, unit = match['sign'], match['number'], match['unit'] or ''
    value = value / SCALES[unit.strip()] if unit else value
    mantissa, has_exponent, _ = number.partition('e')
    decimals = len(mantissa.partition('.')[2])
    separator = ',' if ',' in number or (decimals == 0 and abs(value) >= 10_000) else ''
    text = f'{abs(value):{separator}.{decimals}{"e" if has_exponent else "f"}}'
    if has_exponent:  # at least two digits, as Python writes it
        mantissa, _, exponent = text.partition('e')
        text = f'{mantissa}e{int(exponent):+03d}'
    minus = '−' if '−' in shown or '-' not in shown else '-'
    return (minus if value < 0 else '+' if sign == '+' else '') + text + unit


def read_quotations(page):
    """Yield (paragraph, the paragraph with the comments after it, its Quotations) of a page."""
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
                    raise ValueError(f'{page}:{line}: {entry.strip()!r} must be NUMBER = PATH')
                else:
                    found.append(Quotation(page, line, match['shown'], source, match['path']))
        yield part[0][: COMMENT.search(part[0]).start()].rstrip(), part[0], found


def find_disagreements(page, all_sourced=True):
    """Return one line for each number that disagrees with its source and, if all must have one, that has none."""
    complaints, sourced = [], {}
    for paragraph, _, found in read_quotations(page):
        sourced.setdefault(paragraph, []).extend(quotation.shown for quotation in found)
        for quotation, span in zip(found, find_spans(paragraph, found)):
            where = f'{page}:{quotation.line}: {quotation.shown}'
            if span is None:
                complaints.append(f'{where} is not in the paragraph above, or not in this order')
            if quotation.source is not None:
                try:
                    right = format_like(quotation.value, quotation.shown)
                except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
                    complaints.append(f'{where} has no source: {type(error).__name__} {error}')
                    continue
                if right != quotation.shown:
                    complaints.append(f'{where} is {right} in {quotation.source}: {quotation.path}')
    if all_sourced:
        text = GENERATED.sub('', page.read_text(encoding='utf-8'))
        text = EXEMPT.sub(' ', COMMENT.sub('', text))
        known = {EXEMPT.sub(' ', paragraph).strip(): shown for paragraph, shown in sourced.items()}
        for paragraph in re.split(r'\n\n+', text):
            shown = {
                strip_sign_and_unit(number)
                for entry in known.get(paragraph.strip(), [])
                for number in NUMBER.findall(entry)
            }
            for number in NUMBER.findall(paragraph):
                if re.search('[.,e%]', number) and strip_sign_and_unit(number) not in shown:
                    complaints.append(f'{page}: {number} has no source: {" ".join(paragraph.split())[:80]}')
    return complaints


def strip_sign_and_unit(number):
    """Return a number as text without its sign and unit."""
    return number.strip('+−- %')


def refresh_numbers(page):
    """Return the page's text with every sourced number as it is in its file now."""
    text = page.read_text(encoding='utf-8')
    for paragraph, part, found in read_quotations(page):
        changes = []  # (start, end, new text), in the paragraph and in its comments
        for where, offset in ((paragraph, 0), (part[len(paragraph) :], len(paragraph))):
            for quotation, span in zip(found, find_spans(where, found)):
                if span is not None and quotation.source is not None:
                    changes.append((offset + span[0], offset + span[1], format_like(quotation.value, quotation.shown)))
        right = part
        for start, end, new in sorted(changes, reverse=True):
            right = right[:start] + new + right[end:]
        text = text.replace(part, right, 1)
    return text


def find_spans(text, found):
    """Return where each quotation is in a text: (start, end), or None if it is missing.

    The entries of a comment are in the order of the numbers, so that the same number can be quoted twice. For each
    comment the search starts at the beginning of the text.
    """
    ends, spans = {}, []
    for quotation in found:
        number = re.compile(rf'(?<![\w.,/]){re.escape(quotation.shown)}(?![\d,.]*\d)')
        match = number.search(text, ends.get(quotation.line, 0))
        if match is not None:
            ends[quotation.line] = match.end()
        spans.append(match and match.span())
    return spans
