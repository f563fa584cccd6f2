"""Colours the tokens of any text, with their ids: in the terminal, as a picture, and as a page for a browser.

This is what pages such as tiktokenizer show. `python -m lessons.bpe --text="Your own text"` calls it, with the tokens
of that lesson, of GPT-2 or of any model. A piece is a token made visible: `·` is a space, `⏎` a newline, `‹f0 9f›` are
bytes that are only part of a character. Neighbours have different colours, so that one sees where a token ends; a
colour means nothing else. Below each piece is its id, the number that a model gets instead of the text.
"""

import html
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from common.errors import UserError
from common.files import atomic_write, resolve_path
from common.notes import note
from common.strings import replace_surrogates
from common.text_files import read_text
from lm.checkpoint import load_model, require_tokenizer
from lm.tokenizer import tokenizer_from_folder
from lm.tokenizer_names import tokenizer_from_name
from pictures.style import MARK
from pictures.token_sheet import COLOURS, draw_token_ids

MAX_DRAWN = 600  # tokens in a picture; the terminal and the page show all
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tokens</title>
<style>
body {{ font: 16px/1.4 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: {ink};
  background: white }}
.t {{ display: inline-block; font-family: monospace; white-space: pre-wrap; overflow-wrap: anywhere; padding: 0 .15em;
  margin: 0 1px .3em 0; text-align: center; vertical-align: top }}
.t small {{ display: block; background: white; color: #555; font-size: .7em; padding: 0 .2em }}
{rules}
#ids:not(:checked) ~ section small {{ display: none }}
</style></head><body>
<h1>Tokens</h1>
<input type="checkbox" id="ids" checked> <label for="ids">show the ids</label>
{sections}
</body></html>
"""


def colour_text(text, names, folder, learn):
    """Colour the tokens of a text, or of FILE:path, in the terminal, and in tokens.png and tokens.html in a folder.

    names: of tokenizers, with commas. learn: a function that returns the BPE called 'ours'.
    """
    text = replace_surrogates(read_text(text.removeprefix('FILE:')) if text.startswith('FILE:') else text)
    console, sections = Console(markup=False, emoji=False, highlight=False), []
    for name in filter(None, map(str.strip, names.split(','))):
        tokenizer = learn() if name == 'ours' else find_tokenizer(name)
        ids = tokenizer.encode(text)
        pieces = tokenizer.pieces(ids)
        heading = count_tokens(f'ours, {len(tokenizer.merges):,} merges' if name == 'ours' else name, text, ids)
        console.print(heading, *align_ids(pieces, ids, console.width), '', sep='\n')
        sections.append((heading, pieces, ids))
    if not sections:
        raise UserError('--tokenizer is empty: name ours, gpt2, a model or a .json file')
    save_colours(folder, sections)
    console.print(f'saved in {folder}: tokens.png and tokens.html')


def colour_pieces(pieces):
    """Return pieces in alternating colours, separated by lines for output without colours."""
    return Text('│').join(Text(piece, f'{MARK} on {COLOURS[n % 3]}') for n, piece in enumerate(pieces))


def align_ids(pieces, ids, width):
    """Yield lines for a terminal of this width, two at a time: coloured pieces, and their ids below them."""
    above, below = Text(), Text()
    for number, (piece, id) in enumerate(zip(pieces, ids, strict=True)):
        cells = max(cell_len(piece), len(str(id)))
        if above and above.cell_len + cells + 1 > width:
            yield from (above, below)
            above, below = Text(), Text()
        above.append(piece, f'{MARK} on {COLOURS[number % 3]}')
        above.append(' ' * (cells - cell_len(piece)) + ' ')
        below.append(f'{id!s:{cells}} ')
    yield from (above, below)


def count_tokens(name, text, ids):
    """Return a sentence: how many tokens a text has, and how long they are."""
    n_bytes = len(text.encode('utf-8', 'surrogateescape'))
    average = f', {n_bytes / len(ids):.2f} bytes per token' if ids else ''
    return f'{name}: {len(ids):,} tokens for {len(text):,} characters, {n_bytes:,} bytes{average}'


def find_tokenizer(name):
    """Return the tokenizer of a name: gpt2, a .json file, or whatever --init_from takes. Raises UserError."""
    path = resolve_path(Path('models') / name) if not resolve_path(name).exists() else resolve_path(name)
    if name == 'gpt2' or (path.is_file() and path.suffix == '.json') or (path.is_dir() and tokenizer_from_folder(path)):
        return tokenizer_from_name(name)
    return require_tokenizer(load_model(name, device='cpu')[1], name)


def save_colours(folder, sections):
    """Write tokens.png and tokens.html into a folder. sections: (heading, pieces, ids) of each tokenizer."""
    folder = Path(folder)
    if any(len(ids) > MAX_DRAWN for _, _, ids in sections):
        note(f'tokens.png shows the first {MAX_DRAWN} tokens of each tokenizer; tokens.html shows all')
    drawn = [(heading, pieces[:MAX_DRAWN], ids[:MAX_DRAWN]) for heading, pieces, ids in sections]
    draw_token_ids(folder / 'tokens.png', drawn)
    rules = '\n'.join(f'.c{n} {{ background: {colour} }}' for n, colour in enumerate(COLOURS))
    written = '\n'.join(write_section(*section) for section in sections)
    with atomic_write(folder / 'tokens.html') as path:
        path.write_text(PAGE.format(ink=MARK, rules=rules, sections=written), encoding='utf-8', errors='replace')


def write_section(heading, pieces, ids):
    """Return the HTML of one tokenizer's tokens. A line of the text ends where a piece ends with a newline."""
    tokens = ''.join(
        f'<span class="t c{n % 3}">{html.escape(piece)}<small>{id}</small></span>' + '<br>' * piece.endswith('⏎')
        for n, (piece, id) in enumerate(zip(pieces, ids, strict=True))
    )
    return f'<section><h2>{html.escape(heading)}</h2><p>{tokens}</p></section>'
