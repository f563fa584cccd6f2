"""TODO."""

from dataclasses import dataclass

import numpy as np
import torch
from rich.text import Text

from common.errors import UserError
from common.strings import shorten
from lm import internals
from pictures.canvas import new_sheet, place_axes
from pictures.reading import ModelSettings, load_for_picture, save_pictures, to_numpy, visible_pieces
from pictures.style import CHOSEN, hide_spines
from pictures.terminal import new_table, print_parts

# Embeddings -----------------------------------------------------------------------------------------------------------


def draw_embeddings(title, points, labels, others, other_labels, axis_labels):
    """Draw words as points of a plane, (N, 2), and others, (M, 2), in grey, their labels beside one another.

    axis_labels: what its two directions are; None where neither they nor distances mean anything.
    """
    size = min(12, 5.5 + len(points) / 14)
    figure = new_sheet(size * 1.25, size + 0.4, title)
    axes = place_axes(figure, 0.75, 0.75, size * 1.25 - 1.0, size - 1.0)
    if len(others):
        axes.scatter(*others.T, s=12, color='#bdbdbd', zorder=1)
    axes.scatter(*points.T, s=34, color=CHOSEN, edgecolor='white', zorder=3)
    axes.margins(0.09)
    if axis_labels is None:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel('directions and distances mean nothing here, only which tokens are near', fontsize=9)
    else:
        axes.axhline(0, color='#e4e4e4', linewidth=0.8, zorder=0)
        axes.axvline(0, color='#e4e4e4', linewidth=0.8, zorder=0)
        axes.set_xlabel(axis_labels[0], fontsize=9)
        axes.set_ylabel(axis_labels[1], fontsize=9)
        axes.tick_params(labelsize=8)
        hide_spines(axes, 'top', 'right')
    figure.canvas.draw()
    everything = np.concatenate([points, others]) if len(others) else points
    dots = axes.transData.transform(everything)
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for number, text in enumerate([*labels, *other_labels]):
        named = number < len(labels)
        style = {'fontsize': 10.5, 'color': 'black', 'zorder': 4} if named else {'fontsize': 7.5, 'color': '#8a8a8a'}
        put_label(axes, dots[number], shorten(text, 20), taken, optional=not named, **style)
    return figure


def put_label(axes, dot, text, taken, optional, **style):
    """Write a label beside a dot where it covers least of what is taken; if optional, only where it fits."""
    written = axes.annotate(text, (0, 0), xycoords='figure pixels', parse_math=False, **style)
    box = written.get_window_extent()
    width, height, off = box.width, box.height, 6
    inside = axes.get_window_extent()
    best = None
    for reach in (off, off + 9, off + 20, off + 30):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            x = dot[0] + dx * reach - (width if dx < 0 else width / 2 if dx == 0 else 0)
            y = dot[1] + dy * reach - (height if dy < 0 else height / 2 if dy == 0 else 0)
            covers = sum(
                max(0, min(x + width, right) - max(x, left)) * max(0, min(y + height, top) - max(y, bottom))
                for left, bottom, right, top in taken
            )
            outside = x < inside.x0 or x + width > inside.x1 or y < inside.y0 or y + height > inside.y1
            cost = 20 * covers + 1e5 * outside + reach  # rather a little further off than on anything
            if best is None or cost < best[0]:
                best = (cost, x, y, covers, outside)
    cost, x, y, covers, outside = best
    if optional and (covers > 0 or outside):
        written.remove()
        return
    written.set_position((x, y))
    written.xyann = (x, y)
    written.set_verticalalignment('bottom')
    taken.append((x, y, x + width, y + height))


MOST_GREY = 20  # neighbours of each word that still find room in the embeddings picture
WORDS = (
    'king,queen,prince,princess,son,daughter,brother,sister,father,mother,man,woman,boy,girl,dog,cat,horse,bird,wolf,'
    'bear,fish,tree,forest,garden,house,castle,city,gold,silver,money,good,bad,happy,sad,said,cried,asked,answered,'
    'went,came,ran,one,two,three'
)


@dataclass
class EmbeddingsSettings(ModelSettings):
    """Which tokens are near which: token embeddings in two dimensions, and nearest neighbours by cosine."""

    words: str = WORDS  # at least three words of one token each, with commas between
    method: str = 'pca'  # pca, or tsne (needs scikit-learn) or umap (needs umap-learn)
    neighbours: int = 5  # how many nearest tokens are listed for each word
    grey: int = 2  # so many of them are drawn in grey, at most 20
    seed: int = 1337  # tsne and umap begin with random numbers; at least 0 and below 2^32


# Embeddings -----------------------------------------------------------------------------------------------------------


def show_embeddings(settings):
    """Draw token embeddings in two dimensions, and list nearest neighbours."""
    if settings.method not in ('pca', 'tsne', 'umap'):
        raise UserError(f'--method={settings.method}: it is pca, tsne or umap')
    if settings.neighbours < 1:
        raise UserError(f'--neighbours={settings.neighbours}: it must be at least 1')
    if not 0 <= settings.grey <= MOST_GREY:
        raise UserError(f'--grey={settings.grey}: it is a number from 0 to {MOST_GREY}')
    if settings.method != 'pca' and not 0 <= settings.seed < 2**32:
        raise UserError(f'--seed={settings.seed}: {settings.method} takes one from 0 to {2**32 - 1}')
    model, tokenizer, name = load_for_picture(settings)
    ids = read_words(settings.words, tokenizer)
    table_of_tokens = model.transformer.wte.weight.detach()[: model.n_ids]  # (V, C)
    if table_of_tokens.size(1) < 2:
        raise UserError(f'{name} has embeddings of one number each, and a picture needs two')
    near, cosines = internals.nearest_neighbours(
        table_of_tokens, torch.tensor(ids, device=table_of_tokens.device), max(settings.neighbours, settings.grey)
    )
    grey = list(dict.fromkeys(id for row in near[:, : settings.grey].tolist() for id in row if id not in ids))
    words, others = (table_of_tokens[torch.tensor(of, dtype=torch.long)].cpu() for of in (ids, grey))
    axis_labels = None
    if settings.method == 'pca':
        plane = internals.pca(words)
        points, other_points = plane.points, plane.project(others)
        axis_labels = [
            f'{which} principal component ({share:.1%} of the variance of these words)'
            for which, share in zip(('first', 'second'), plane.shares.tolist())
        ]
    else:
        laid_out = lay_out_words(torch.cat([words, others]), settings)
        points, other_points = laid_out[: len(ids)], laid_out[len(ids) :]

    rows = new_table(f'{name}: nearest tokens by cosine of the embeddings', 'token', '>id', 'nearest')
    for id, row, values in zip(ids, near.tolist(), cosines.tolist()):
        nearest = zip(visible_pieces(tokenizer, row[: settings.neighbours]), values)
        rows.add_row(
            Text(visible_pieces(tokenizer, [id])[0]), str(id), Text(', '.join(f'{p} {v:.2f}' for p, v in nearest))
        )
    print_parts(rows)
    if settings.method == 'pca':
        print_parts(
            Text(f'the plane holds {plane.shares.sum().item():.1%} of the variance of these {len(ids)} embeddings')
        )
    from pictures.embeddings import draw_embeddings

    method = {'pca': 'PCA', 'tsne': 't-SNE by cosine', 'umap': 'UMAP by cosine'}[settings.method]
    title = f'{name}: {len(ids)} token embeddings, {method}' + (' (grey: their nearest tokens)' if grey else '')
    figure = draw_embeddings(
        title,
        to_numpy(points),
        visible_pieces(tokenizer, ids),
        to_numpy(other_points),
        visible_pieces(tokenizer, grey),
        axis_labels,
    )
    save_pictures({'embeddings': figure}, settings, 'embeddings', f'{name}-{settings.method}')


def read_words(text, tokenizer):
    """Return the token id of each word of --words, taken as in running text, behind a space, where that is a token."""
    words = list(dict.fromkeys(word.strip() for word in text.split(',') if word.strip()))
    ids, wrong = [], []
    for word in words:
        cuts = []
        for written in (f' {word}', word):
            try:
                cuts.append(tokenizer.encode(written))
            except UserError:  # a character tokenizer need not know every character, a space say
                continue
        single = next((cut[0] for cut in cuts if len(cut) == 1), None)
        if single is None:
            wrong.append(f'{word} ({" ".join(tokenizer.pieces(cuts[0])) if cuts else "characters it does not know"})')
        else:
            ids.append(single)
    if wrong and text != WORDS:  # of its own choice, a model with other tokens draws those that it has
        more = f' and {len(wrong) - 8} more' if len(wrong) > 8 else ''
        raise UserError(
            f'--words: only single tokens have an embedding, and these are not: {", ".join(wrong[:8])}{more}'
        )
    ids = list(dict.fromkeys(ids))
    if len(ids) < 3:
        raise UserError(f'--words={text}: a plane needs at least three different words of one token each')
    return ids


def lay_out_words(x, settings):
    """Return t-SNE's or UMAP's layout of embeddings; raise UserError where the package is missing."""
    try:
        return internals.lay_out(x, settings.method, settings.seed)
    except ImportError as error:
        package = {'tsne': 'scikit-learn', 'umap': 'umap-learn'}[settings.method]
        raise UserError(
            f'--method={settings.method} needs {package}: pip install {package}, or take --method=pca'
        ) from error
