"""Draws texts token by token, each token on the colour of its value."""

from common.strings import shorten
from pictures.style import BAR, CHOSEN, GREY, MARK, allow_missing_glyphs, save_figure, text_colour

SCALES = {  # range of the values -> colour map, limits as multiples of the largest value, open ends
    'around 0': ('RdBu', -1, 1, 'both'),  # red below, blue above
    'below 0': ('YlOrRd_r', -1, 0, 'min'),  # dark red is the lowest
    'above 0': ('Blues', 0, 1, 'max'),  # dark blue is the highest
}
COLOURS = (BAR, CHOSEN, GREY)  # of neighbouring tokens, where colours mean nothing else
LINE_LENGTH, MARGIN = 118, 44  # characters in a line; how many of them are for the text before the tokens
FONT_SIZE = 8  # points
CHARACTER_WIDTH, LINE_HEIGHT = FONT_SIZE * 0.602 / 72, FONT_SIZE * 1.5 / 72  # inches, in DejaVu Sans Mono
COLOUR_BAR_LINES = 5


def draw_token_sheet(path, lines, meaning, scale):
    """Write a picture of texts, each token on the colour of its value.

    lines: (text before the tokens, pieces, a value for each piece). meaning: of the values, for the colour bar.
    scale: a key of SCALES.
    """
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    allow_missing_glyphs()
    colours = make_colours([value for _, _, values in lines for value in values], scale)
    placed, height = place_tokens(lines)
    inches = (LINE_LENGTH * CHARACTER_WIDTH, (height + COLOUR_BAR_LINES) * LINE_HEIGHT)
    figure = pyplot.figure(figsize=inches)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, LINE_LENGTH), ylim=(height, -COLOUR_BAR_LINES))
    axes.set_axis_off()
    for x, y, text, value in placed:
        ink = '#666666'
        if value is not None:
            background = colours.to_rgba(value)
            ink, style = text_colour(background), {'facecolor': background, 'edgecolor': 'white', 'linewidth': 0.6}
            axes.add_patch(Rectangle((x, y - 0.5), len(text), 1, **style))
        axes.text(x, y, text, color=ink, fontsize=FONT_SIZE, family='monospace', va='center', parse_math=False)
    line = FONT_SIZE / 72 / inches[1]  # as a share of the figure
    bar = figure.add_axes((0.5, 1 - 1.3 * line, 0.45, 0.6 * line))
    figure.colorbar(colours, cax=bar, orientation='horizontal', extend=SCALES[scale][-1])
    bar.tick_params(labelsize=7)
    bar.set_xlabel(meaning, fontsize=8)
    save_figure(figure, path)
    pyplot.close(figure)


def make_colours(values, scale):
    """Return the mapping from values to colours. A few extreme values would make all others pale, so they are cut."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    sizes = sorted(map(abs, values))
    largest = max(sizes[int(0.97 * (len(sizes) - 1))] if sizes else 0, 0.1)
    colour_map, low, high, _ = SCALES[scale]
    return ScalarMappable(Normalize(low * largest, high * largest), colormaps[colour_map])


def place_tokens(lines):
    """Return [(x, y, text, value)] of all texts and tokens, in characters and lines, and the height in lines.

    The value of a text before the tokens is None.
    """
    margin = MARGIN if any(before for before, _, _ in lines) else 0
    placed, y = [], 0
    for before, pieces, values in lines:
        placed.append((0, y, shorten(before, margin - 2, from_end=True), None))
        x = margin
        for piece, value in zip(pieces, values, strict=True):
            piece = piece[: LINE_LENGTH - margin]
            if x + len(piece) > LINE_LENGTH:
                x, y = margin, y + 1
            placed.append((x, y, piece, value))
            x += len(piece)
        y += 1.4
    return placed, y


def draw_token_ids(path, sections):
    """Write a picture of texts token by token: neighbours in different colours, and below each token its id.

    sections: (heading, pieces, ids) of each text.
    """
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    allow_missing_glyphs()
    placed, y = [], 0.0  # (x, y, text, width of the background, its colour or None), in characters and lines
    for heading, pieces, ids in sections:
        placed.append((0, y, heading, 0, None))
        x, y = 0, y + 1.6
        for number, (piece, id) in enumerate(zip(pieces, ids, strict=True)):
            piece = shorten(piece, LINE_LENGTH - 2)
            width = max(len(piece), len(str(id)))
            if x and x + width > LINE_LENGTH - 2:
                x, y = 0, y + 2.6
            placed += [(x, y, piece, width, COLOURS[number % len(COLOURS)]), (x, y + 1, str(id), 0, None)]
            x += width + 1
        y += 3.4
    figure = pyplot.figure(figsize=(LINE_LENGTH * CHARACTER_WIDTH, (y + 1) * LINE_HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-1, LINE_LENGTH - 1), ylim=(y, -1))
    axes.set_axis_off()
    for x, y, text, width, colour in placed:
        if colour:
            axes.add_patch(Rectangle((x, y - 0.5), width, 1, facecolor=colour))
        ink = MARK if colour else '#555555'
        axes.text(x, y, text, color=ink, fontsize=FONT_SIZE, family='monospace', va='center', parse_math=False)
    save_figure(figure, path)
    pyplot.close(figure)
