"""A Markdown page as a document to hand in: one HTML file with its pictures in it, and that printed as PDF.

markdown-it-py reads the Markdown, Pygments colours the code, matplotlib draws the formulas, and a browser (Chromium,
Chrome or Edge) prints. Links to other files become their names, since those files do not travel with the document.
"""

import base64
import html
import io
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from common.browser import find_browser
from common.errors import UserError
from common.files import PROJECT, atomic_write

try:
    import pygments
    from markdown_it import MarkdownIt
    from mdit_py_plugins.anchors import anchors_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from PIL import Image
    from pygments import lexers
    from pygments.formatters import HtmlFormatter
    from pygments.util import ClassNotFound
except ImportError as error:
    raise UserError(f'{error.name} is missing: pip install -r requirements-report.txt') from error

TEXT_WIDTH, CHARACTER = 170 / 25.4 * 72, 0.602  # of a page, in points; of a character, in parts of the font size
CODE_SIZE = 7.2  # points, for lines that fit
SHORT_TABLE, SHORT_CODE = 900, 20  # characters and lines that are kept on one page
PRINTED = 0.67  # the size of a figure on paper; one of ten inches is as wide as the text
LONGEST_WORD = 60  # characters of code that are kept on one line
SECONDS_TO_PRINT = 120
DRAWN_TABLE = re.compile(r'^┏.*?^└[^\n]*', re.DOTALL | re.MULTILINE)  # in the output of a script
STYLE = Path(__file__).with_name('report.css')


def write_html(page, path):
    """Write a Markdown page as one HTML file that needs no other file."""
    text = page.read_text(encoding='utf-8')
    heading = re.search(r'^# (.+)$', text, re.MULTILINE)
    body = read_markdown(page.parent).render(re.sub(r'<!--.*?-->', '', text, flags=re.DOTALL))
    title = html.escape(heading[1] if heading else page.stem)
    style = STYLE.read_text(encoding='utf-8') + HtmlFormatter(style='default').get_style_defs('pre')
    with atomic_write(path) as temporary:
        temporary.write_text(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
            f'<style>{style}</style></head>\n<body>\n{body}</body></html>\n',
            encoding='utf-8',
        )


def write_pdf(page, path):
    """Print a Markdown page as PDF. Raises UserError if there is no browser, or if it fails.

    The HTML that is printed stays beside the PDF only if there is no browser: any browser can print it by hand.
    """
    browser = find_browser()
    if browser is None:
        by_hand = path.with_suffix('.html')
        write_html(page, by_hand)
        raise UserError(
            f'no Chromium, Chrome or Edge is installed to print {path.name}: install one, or open {by_hand} in any '
            'browser and print it to a PDF'
        )
    with tempfile.TemporaryDirectory() as folder:
        source, printed = Path(folder) / 'page.html', Path(folder) / 'page.pdf'
        write_html(page, source)
        flags = ['--headless', '--disable-gpu', '--no-first-run', '--no-pdf-header-footer', f'--user-data-dir={folder}']
        if hasattr(os, 'geteuid') and os.geteuid() == 0:
            flags.append('--no-sandbox')  # Chromium refuses to run as root with its sandbox
        command = [browser, *flags, '--generate-pdf-document-outline', f'--print-to-pdf={printed}', source.as_uri()]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_PRINT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f'{browser} could not print {path.name}: {error}') from error
        if not printed.is_file():
            raise UserError(f'{browser} printed no {path.name}: {process.stderr[-300:]}')
        with atomic_write(path) as temporary:
            shutil.copyfile(printed, temporary)


# Markdown to HTML -----------------------------------------------------------------------------------------------------


def read_markdown(folder):
    """Return a MarkdownIt for a page in a folder: tables, formulas, coloured code, pictures embedded."""
    reader = MarkdownIt('commonmark', {'html': False, 'highlight': None, 'typographer': False}).enable('table')
    reader.use(anchors_plugin, max_level=3, slug_func=make_anchor)
    reader.use(dollarmath_plugin, allow_labels=False, double_inline=True)
    rules = {
        'fence': render_code,
        'code_inline': render_inline_code,
        'table_open': open_table,
        'image': lambda tokens, place, *_: embed_picture(tokens[place], folder),
        'link_open': lambda tokens, place, *_: open_link(tokens, place, folder),
        'link_close': lambda tokens, place, *_: close_link(tokens, place, folder),
        'math_inline': lambda tokens, place, *_: draw_formula(tokens[place].content),
        'math_inline_double': lambda tokens, place, *_: draw_display(tokens[place].content),
        'math_block': lambda tokens, place, *_: draw_display(tokens[place].content),
    }
    reader.renderer.rules |= rules
    return reader


def make_anchor(heading):
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


def render_code(tokens, place, *_):
    """Return a block of code, coloured, in a size at which its longest line fits the page."""
    language, text = tokens[place].info.strip(), tokens[place].content.rstrip('\n')
    lines = [line.rstrip() for line in text.split('\n')]
    size = min(CODE_SIZE, (TEXT_WIDTH - 20) / CHARACTER / max(map(len, lines)))
    short = ' class="short"' if len(lines) <= SHORT_CODE else ''
    try:
        lexer = lexers.get_lexer_by_name(language or 'text', stripnl=False)
    except ClassNotFound:
        lexer = lexers.get_lexer_by_name('text', stripnl=False)
    coloured = pygments.highlight('\n'.join(lines), lexer, HtmlFormatter(nowrap=True))
    coloured = DRAWN_TABLE.sub(r'<span class="whole">\g<0></span>', coloured)
    return f'<pre{short} style="font-size: {size:.2f}pt">{coloured.rstrip()}</pre>\n'


def render_inline_code(tokens, place, *_):
    """Return code in a line of text, with line breaks only at its spaces: never between `--` and the option's name."""
    words = [html.escape(word) for word in tokens[place].content.split(' ')]
    return f'<code>{" ".join(f"<span>{word}</span>" if len(word) <= LONGEST_WORD else word for word in words)}</code>'


def open_table(tokens, place, *_):
    """Return the beginning of a table; a short one is kept on one page."""
    end = next(end for end in range(place, len(tokens)) if tokens[end].type == 'table_close')
    characters = sum(len(token.content) for token in tokens[place:end] if token.type == 'inline')
    return f'<table{" class=short" if characters <= SHORT_TABLE else ""}>\n'


def embed_picture(token, folder):
    """Return a picture as part of the page. Raises UserError if its file is missing."""
    path = folder / token.attrGet('src')
    if not path.is_file():
        raise UserError(f'{path} is missing; the page shows it')
    with Image.open(path) as picture:
        inches = picture.width / picture.info.get('dpi', (100,))[0]
    data, width = base64.b64encode(path.read_bytes()).decode(), f'width: {PRINTED * inches:.2f}in'
    return f'<img alt="{html.escape(token.content)}" style="{width}" src="data:image/png;base64,{data}">'


def leads_out(tokens, place):
    """Return whether the link that opens at a place leads to another file of the project."""
    return not re.match('#|https?:', tokens[place].attrGet('href') or '')


def open_link(tokens, place, folder):
    """Return the beginning of a link: none if it leads to a file."""
    return '' if leads_out(tokens, place) else f'<a href="{html.escape(tokens[place].attrGet("href"))}">'


def close_link(tokens, place, folder):
    """Return the end of a link: the name of the file that it leads to."""
    start = next(before for before in range(place, -1, -1) if tokens[before].type == 'link_open')
    if not leads_out(tokens, start):
        return '</a>'
    target = (folder / tokens[start].attrGet('href').partition('#')[0]).resolve()
    name = target.relative_to(PROJECT) if target.is_relative_to(PROJECT) else target.name
    return f' <span class="file">({html.escape(Path(name).as_posix())})</span>'


def draw_display(formula):
    """Return formulas that stand by themselves, parts that are set apart by a wide space beside each other."""
    parts = ' '.join(formula.split()).replace(r'\frac', r'\dfrac').split(r'\qquad')
    return f'<div class="formula">{"".join(draw_formula(part.strip(), 10.5) for part in parts)}</div>\n'


def draw_formula(formula, size=9.5):
    """Return a formula as a picture that stands on the line, drawn by matplotlib. size: of its letters, in points."""
    from matplotlib import mathtext, rc_context

    picture = io.BytesIO()
    with rc_context({'mathtext.fontset': 'stix', 'svg.fonttype': 'path'}):
        properties = mathtext.FontProperties(size=size)
        depth = mathtext.math_to_image(f'${formula}$', picture, prop=properties, dpi=72, format='svg')
    source = f'data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}'
    return f'<img alt="{html.escape(formula)}" style="vertical-align: -{depth:.1f}pt" src="{source}">'
