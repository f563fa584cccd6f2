"""TODO."""

from common.strings import shorten
from pictures.style import allow_missing_glyphs, save_figure, text_colour

SCALES = {  # where values lie -> their colours, the lowest and the highest as multiples of the largest, open ends
    'around 0': ('RdBu', -1, 1, 'both'),  # red below, blue above
    'below 0': ('YlOrRd_r', -1, 0, 'min'),  # dark red is the lowest
    'above 0': ('Blues', 0, 1, 'max'),  # dark blue is the highest
}


def draw_token_sheet(path, lines, meaning, scale):
    """Write a sheet of texts in which every token stands on the colour of its value.

    lines: (what stands before, pieces, a value for each piece). meaning: what the values are, for the colour bar.
    scale: one of SCALES.
    """
    from matplotlib import colormaps, pyplot
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    allow_missing_glyphs()
    width = 118  # characters in a line
    margin = 44 if any(before for before, _, _ in lines) else 0  # of them for what stands before
    sizes = sorted(abs(value) for _, _, values in lines for value in values)
    largest = max(sizes[int(0.97 * (len(sizes) - 1))] if sizes else 0, 0.1)  # a single extreme would pale all others
    colour_map, low, high, open_ends = SCALES[scale]
    colours = ScalarMappable(Normalize(low * largest, high * largest), colormaps[colour_map])

    placed, y = [], 0  # (x, y, text, value), in characters and lines
    for before, pieces, values in lines:
        placed.append((0, y, shorten(before, margin - 2, from_end=True), None))
        x = margin
        for piece, value in zip(pieces, values, strict=True):
            piece = piece[: width - margin]
            if x + len(piece) > width:
                x, y = margin, y + 1
            placed.append((x, y, piece, value))
            x += len(piece)
        y += 1.4
    size = 8  # points; a character of DejaVu Sans Mono is 0.602 of that wide
    top = 5  # lines for the colour bar
    inches = (width * size * 0.602 / 72, (y + top) * size * 1.5 / 72)
    figure = pyplot.figure(figsize=inches)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(y, -top))
    axes.set_axis_off()
    for x, y, text, value in placed:
        colour, background = '#666666', None
        if value is not None:
            background = colours.to_rgba(value)
            colour = text_colour(background)
            axes.add_patch(
                Rectangle((x, y - 0.5), len(text), 1, facecolor=background, edgecolor='white', linewidth=0.6)
            )
        axes.text(x, y, text, color=colour, fontsize=size, family='monospace', va='center', parse_math=False)
    bar = figure.add_axes((0.5, 1 - 1.3 / (inches[1] * 72 / size), 0.45, 0.6 / (inches[1] * 72 / size)))
    figure.colorbar(colours, cax=bar, orientation='horizontal', extend=open_ends)
    bar.tick_params(labelsize=7)
    bar.set_xlabel(meaning, fontsize=8)
    save_figure(figure, path)
    pyplot.close(figure)
