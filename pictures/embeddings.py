"""Draws which tokens are similar: token embeddings in two dimensions, with their nearest neighbours."""

from dataclasses import dataclass

import numpy as np
import torch
from rich.text import Text

from common.errors import UserError
from common.strings import shorten
from lm import internals
from pictures.canvas import make_figure, place_axes, save_pictures
from pictures.inputs import PictureSettings, load_named_model, pieces_of_ids, to_numpy
from pictures.style import CHOSEN, hide_spines
from pictures.terminal import new_table, print_parts

METHODS = {'pca': 'PCA', 'tsne': 't-SNE by cosine', 'umap': 'UMAP by cosine'}
PACKAGES = {'tsne': 'scikit-learn', 'umap': 'umap-learn'}
MAX_GREY = 20  # neighbours of each word; more would not fit in the picture
WORDS = (
    'king,queen,prince,princess,son,daughter,brother,sister,father,mother,man,woman,boy,girl,dog,cat,horse,bird,wolf,'
    'bear,fish,tree,forest,garden,house,castle,city,gold,silver,money,good,bad,happy,sad,said,cried,asked,answered,'
    'went,came,ran,one,two,three'
)


@dataclass
class EmbeddingsSettings(PictureSettings):
    """Which tokens are similar: token embeddings in two dimensions, and nearest neighbours by cosine."""

    words: str = WORDS  # at least three words of one token each, separated by commas
    method: str = 'pca'  # pca, or tsne (needs scikit-learn) or umap (needs umap-learn)
    neighbours: int = 5  # how many nearest tokens to list for each word
    grey: int = 2  # how many of them to draw in grey, at most 20
    seed: int = 1337  # of the random numbers of tsne and umap; at least 0 and below 2^32


# What is computed and printed -----------------------------------------------------------------------------------------


def show_embeddings(settings):
    """Draw token embeddings in two dimensions, and list nearest neighbours."""
    check_embeddings_settings(settings)
    model, tokenizer, name = load_named_model(settings)
    ids = read_words(settings.words, tokenizer)
    embeddings = internals.token_embeddings(model)  # (V, C)
    if embeddings.size(1) < 2:
        raise UserError(f'the embeddings of {name} have one dimension, and a picture needs two')
    count = max(settings.neighbours, settings.grey)
    near_ids, cosines = internals.nearest_neighbours(embeddings, torch.tensor(ids, device=embeddings.device), count)
    near_ids, cosines = near_ids.tolist(), cosines.tolist()
    grey_ids = list(dict.fromkeys(id for row in near_ids for id in row[: settings.grey] if id not in ids))
    words, grey = (embeddings[torch.tensor(chosen, dtype=torch.long)].cpu() for chosen in (ids, grey_ids))

    axis_labels, notes = None, []
    if settings.method == 'pca':
        plane = internals.pca(words)
        points, grey_points = plane.points, plane.project(grey)
        axis_labels = [
            f'{which} principal component ({share:.1%} of the variance of these words)'
            for which, share in zip(('first', 'second'), plane.shares.tolist())
        ]
        share = plane.shares.sum().item()
        notes = [Text(f'the plane holds {share:.1%} of the variance of these {len(ids)} embeddings')]
    else:
        layout = lay_out_words(torch.cat([words, grey]), settings)
        points, grey_points = layout[: len(ids)], layout[len(ids) :]
    print_parts(neighbours_table(name, tokenizer, settings.neighbours, ids, near_ids, cosines), *notes)

    title = f'{name}: {len(ids)} token embeddings, {METHODS[settings.method]}'
    title += ' (grey: their nearest tokens)' if grey_ids else ''
    labels, grey_labels = pieces_of_ids(tokenizer, ids), pieces_of_ids(tokenizer, grey_ids)
    figure = draw_embeddings(title, to_numpy(points), labels, to_numpy(grey_points), grey_labels, axis_labels)
    save_pictures({'embeddings': figure}, settings, 'embeddings', f'{name}-{settings.method}')


def check_embeddings_settings(settings):
    """Raise UserError for invalid values."""
    if settings.method not in METHODS:
        raise UserError(f'--method={settings.method}: it must be pca, tsne or umap')
    if settings.neighbours < 1:
        raise UserError(f'--neighbours={settings.neighbours}: it must be at least 1')
    if not 0 <= settings.grey <= MAX_GREY:
        raise UserError(f'--grey={settings.grey}: it must be a number from 0 to {MAX_GREY}')
    if settings.method != 'pca' and not 0 <= settings.seed < 2**32:
        raise UserError(f'--seed={settings.seed}: for {settings.method} it must be a number from 0 to {2**32 - 1}')


def read_words(text, tokenizer):
    """Return the token id of each word in --words, preferably of the word after a space, as in running text.

    Raises UserError for a word that is not a single token; the default words that are not are skipped.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(',') if word.strip()))
    ids, wrong = [], []
    for word in words:
        encodings = []
        for written in (f' {word}', word):
            try:
                encodings.append(tokenizer.encode(written))
            except UserError:  # a character tokenizer may lack a character, such as the space
                continue
        single = next((encoding[0] for encoding in encodings if len(encoding) == 1), None)
        if single is None:
            tokens = ' '.join(tokenizer.pieces(encodings[0])) if encodings else 'unknown characters'
            wrong.append(f'{word} ({tokens})')
        else:
            ids.append(single)
    if wrong and text != WORDS:
        more = f' and {len(wrong) - 8} more' if len(wrong) > 8 else ''
        raise UserError(
            f'--words: only single tokens have an embedding, and these are not: {", ".join(wrong[:8])}{more}'
        )
    ids = list(dict.fromkeys(ids))
    if len(ids) < 3:
        raise UserError(f'--words={text}: give at least three different words of one token each')
    return ids


def neighbours_table(name, tokenizer, count, ids, near_ids, cosines):
    """Return a table of the `count` nearest tokens of each id, with their cosines."""
    table = new_table(f'{name}: nearest tokens by cosine of the embeddings', 'token', '>id', 'nearest')
    for id, row, values in zip(ids, near_ids, cosines):
        pieces = pieces_of_ids(tokenizer, row[:count])
        nearest = ', '.join(f'{piece} {value:.2f}' for piece, value in zip(pieces, values))
        table.add_row(Text(pieces_of_ids(tokenizer, [id])[0]), str(id), Text(nearest))
    return table


def lay_out_words(embeddings, settings):
    """Return the t-SNE or UMAP layout of embeddings; raise UserError if the package is missing."""
    try:
        return internals.lay_out(embeddings, settings.method, settings.seed)
    except ImportError as error:
        package = PACKAGES[settings.method]
        raise UserError(
            f'--method={settings.method} needs {package} ({error}): pip install {package}, or use --method=pca'
        ) from error


# The figure -----------------------------------------------------------------------------------------------------------


def draw_embeddings(title, points, labels, grey_points, grey_labels, axis_labels):
    """Return a figure of words as points, (N, 2), and others in grey, (M, 2), with labels that do not overlap.

    axis_labels: of both directions; None if neither directions nor distances mean anything.
    """
    size = min(12, 5.5 + len(points) / 14)
    figure = make_figure(size * 1.25, size + 0.4, title)
    axes = place_axes(figure, 0.75, 0.75, size * 1.25 - 1.0, size - 1.0)
    if len(grey_points):
        axes.scatter(*grey_points.T, s=12, color='#bdbdbd', zorder=1)
    axes.scatter(*points.T, s=34, color=CHOSEN, edgecolor='white', zorder=3)
    axes.margins(0.09)
    if axis_labels is None:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel('only closeness means something here, not directions or distances', fontsize=9)
    else:
        axes.axhline(0, color='#e4e4e4', linewidth=0.8, zorder=0)
        axes.axvline(0, color='#e4e4e4', linewidth=0.8, zorder=0)
        axes.set_xlabel(axis_labels[0], fontsize=9)
        axes.set_ylabel(axis_labels[1], fontsize=9)
        axes.tick_params(labelsize=8)
        hide_spines(axes, 'top', 'right')
    figure.canvas.draw()
    all_points = np.concatenate([points, grey_points]) if len(grey_points) else points
    dots = axes.transData.transform(all_points)  # in pixels
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for number, text in enumerate([*labels, *grey_labels]):
        is_grey = number >= len(labels)
        style = {'fontsize': 7.5, 'color': '#8a8a8a'} if is_grey else {'fontsize': 10.5, 'color': 'black', 'zorder': 4}
        place_label(axes, dots[number], shorten(text, 20), taken, optional=is_grey, **style)
    return figure


def place_label(axes, dot, text, taken, optional, **style):
    """Write a label beside a dot where it overlaps least, and add its box to `taken`; if optional, only where it fits.

    dot: (x, y) in pixels. taken: boxes, (left, bottom, right, top) in pixels, of all dots and labels so far.
    """
    label = axes.annotate(text, (0, 0), xycoords='figure pixels', parse_math=False, **style)
    extent, inside = label.get_window_extent(), axes.get_window_extent()
    width, height = extent.width, extent.height
    best = None
    for distance in (6, 15, 26, 36):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            x = dot[0] + dx * distance - (width if dx < 0 else width / 2 if dx == 0 else 0)
            y = dot[1] + dy * distance - (height if dy < 0 else height / 2 if dy == 0 else 0)
            overlap = sum(
                max(0, min(x + width, right) - max(x, left)) * max(0, min(y + height, top) - max(y, bottom))
                for left, bottom, right, top in taken
            )
            is_outside = x < inside.x0 or x + width > inside.x1 or y < inside.y0 or y + height > inside.y1
            cost = 20 * overlap + 1e5 * is_outside + distance  # better far off than on top of something
            if best is None or cost < best[0]:
                best = (cost, x, y, overlap > 0 or is_outside)
    _, x, y, is_bad = best
    if optional and is_bad:
        label.remove()
        return
    label.set_position((x, y))
    label.xyann = (x, y)
    label.set_verticalalignment('bottom')
    taken.append((x, y, x + width, y + height))
