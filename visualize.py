"""See what a model does while it reads: five pictures, each with its main numbers in the terminal.

    python visualize.py temperature --start='The old king had a'     what temperature, top-k and top-p do
    python visualize.py attention --start='...' --layer=2 --head=1   which token looks at which
    python visualize.py embeddings --words=king,queen,dog,cat        which tokens are near which
    python visualize.py layers --start='...'                         what each layer would have said
    python visualize.py trace --start='...'                          every step of one forward pass

`python visualize.py --help` lists the pictures, `python visualize.py attention --help` the settings of one.
"""

import difflib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

import configurator
import inside
from common import UserError
from model import GPT, logits_to_logprobs
from plots import in_three_digits, new_folder, save, shortened
from sampling import load_model, name_of, precision, read_start, with_model
from tokenizer import Tokenizer

ALTERNATIVES = 12  # tokens whose bars the temperature picture shows
MODEL_PROBABILITY = 'model probability (softmax of the raw logits)'
HOTTEST = 1e30  # temperatures above it, hardly less than the largest float32, are refused
MOST_GREY = 20  # neighbours of each word that still find room in the embeddings picture
WORDS = (
    'king,queen,prince,princess,son,daughter,brother,sister,father,mother,man,woman,boy,girl,dog,cat,horse,bird,wolf,'
    'bear,fish,tree,forest,garden,house,castle,city,gold,silver,money,good,bad,happy,sad,said,cried,asked,answered,'
    'went,came,ran,one,two,three'
)


@dataclass
class ModelSettings:
    """What all pictures need: a model, and a place for the picture."""

    init_from: str | None = None  # tiny-stories (None), tiny, gpt2 (any size), a name on the hub, a folder, resume
    out_dir: str | None = None  # where resume finds ckpt.pt (None: out); given alone, it means resume
    device: str | None = None  # cpu, cuda, cuda:1, mps; None for the best there is
    dtype: str | None = None  # float32 (None), bfloat16 or float16
    save: str | None = None  # the PNG to write; None for a new folder in plot_dir
    plot_dir: str = 'results'  # a new folder in here gets the picture


@dataclass
class PromptSettings(ModelSettings):
    """What the pictures of one text need besides."""

    start: str = 'Once upon a time there was an old king who had a'  # the text, or FILE:path; '' is <|endoftext|>


@dataclass
class TemperatureSettings(PromptSettings):
    """What temperature, top-k and top-p do to one distribution over the next token."""

    temperatures: str = '0.2,0.7,1.0,1.5'  # to compare, with commas between; 0 is greedy
    top_k: int | None = 10  # show where this many of the likeliest tokens end; None for no such cut
    top_p: float | None = (
        0.9  # show where the likeliest reach this probability; with both, top-k cuts first, then top-p
    )


@dataclass
class AttentionSettings(PromptSettings):
    """Which token looks at which: attention weights of every head, and attention rollout."""

    layer: int | None = None  # this layer only, the first is 0; None for all
    head: int | None = None  # this head only, the first is 0; None for all
    save: str | None = None  # the PNG to write, X.png, and a second one beside it, X-rollout.png; None as in plot_dir


@dataclass
class EmbeddingsSettings(ModelSettings):
    """Which tokens are near which: token embeddings in two dimensions, and nearest neighbours by cosine."""

    words: str = WORDS  # at least three words of one token each, with commas between
    method: str = 'pca'  # pca, or tsne (needs scikit-learn) or umap (needs umap-learn)
    neighbours: int = 5  # how many nearest tokens are listed for each word
    grey: int = 2  # so many of them are drawn in grey, at most 20
    seed: int = 1337  # tsne and umap begin with random numbers; at least 0 and below 2^32


@dataclass
class LayersSettings(PromptSettings):
    """What each layer would have said next after every token: the logit lens."""


@dataclass
class TraceSettings(PromptSettings):
    """Every step of one forward pass, with the lines of model.py, shapes and a few values."""

    layer: int = 0  # the block that is shown in full


class Scene(NamedTuple):
    """A model that has been given a text to read."""

    model: GPT
    tokenizer: Tokenizer
    name: str  # of the model, with its precision unless that is float32
    idx: torch.Tensor  # (1, T)
    pieces: list[str]  # of the T tokens
    text: str


# What the five have in common -----------------------------------------------------------------------------------------


def load(settings):
    """Return (model, tokenizer, name) of the settings; raise UserError for a place that can take no picture."""
    if settings.save is not None:
        if Path(settings.save).suffix.lower() != '.png':  # nor does .png, a name without an ending, get through
            raise UserError(f'--save={settings.save}: pictures are PNG files: give a name that ends in .png')
        if Path(settings.save).is_dir():
            raise UserError(f'--save={settings.save} is a folder; name a file in it')
    settings = with_model(settings)
    model, tokenizer = load_model(settings)
    name = name_of(settings)
    return model, tokenizer, shortened(name, 40, from_end=True) + precision(settings.dtype)


def read(settings):
    """Return the Scene of the settings; raise UserError for a text that does not fit into the model."""
    text = read_start(settings.start)
    model, tokenizer, name = load(settings)
    ids, room = tokenizer.encode_prompt(text), model.config.block_size
    if len(ids) > room:
        raise UserError(f'the text has {len(ids):,} tokens, and {name} reads at most {room:,}: shorten --start')
    idx = torch.tensor([ids], device=model.transformer.wte.weight.device)
    return Scene(model, tokenizer, name, idx, named(tokenizer, ids), tokenizer.decode(ids))


def named(tokenizer, ids):
    """Return the pieces of ids; one that the tokenizer's vocabulary leaves out is ‹its number›."""
    try:
        return tokenizer.pieces(ids)
    except UserError:
        return [f'‹{ids[0]}›'] if len(ids) == 1 else [piece for id in ids for piece in named(tokenizer, [id])]


def check_place(flag, number, count, name):
    """Raise UserError for a layer or a head that a model does not have."""
    if number is not None and not 0 <= number < count:
        there_is = f'{flag}s 0 to {count - 1}' if count > 1 else f'only {flag} 0'
        raise UserError(f'--{flag}={number}: {name} has {there_is}')


def numpy(tensor):
    """Return a tensor as a float32 array for drawing."""
    return tensor.detach().float().cpu().numpy()


def keep(figures, settings, picture, about):
    """Save figures, {name: figure}, where the settings say, and print their paths."""
    if settings.save is None:
        folder = new_folder(settings.plot_dir, f'{picture}-{about}')
        paths = {name: folder / f'{name}.png' for name in figures}
    else:
        first = Path(settings.save)
        paths = {name: first if name == picture else first.with_stem(f'{first.stem}-{name}') for name in figures}
    for name, figure in figures.items():
        save(figure, paths[name])
        print(f'{name}: {paths[name]}')


def show(*parts):
    """Print texts and tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # in a file or a pipe there is no window to fit
    with console.capture() as capture:  # rich ends the program where a pipe is closed; print leaves that to us
        for part in parts:
            console.print(part, highlight=False, soft_wrap=isinstance(part, Text))
    print(capture.get(), end='')


def table(title, *columns):
    """Return an empty table; a column whose name starts with > has numbers and stands to the right."""
    made = Table(title=Text(title, style='table.title'), title_justify='left')
    for column in columns:
        made.add_column(column.removeprefix('>'), justify='right' if column.startswith('>') else 'left')
    return made


def weighted(pieces, numbers, count):
    """Return the pieces of the largest numbers, largest first: '·king 0.45, ·old 0.20'."""
    best = sorted(range(len(pieces)), key=lambda place: -numbers[place])[:count]
    return ', '.join(f'{pieces[place]} {numbers[place]:.2f}' for place in best)


# Temperature ----------------------------------------------------------------------------------------------------------


def temperature(settings):
    """Draw one distribution at several temperatures."""
    temperatures = read_temperatures(settings.temperatures)
    try:
        logits_to_logprobs(torch.zeros(1), 1.0, settings.top_k, settings.top_p)  # before the model is waited for
    except ValueError as error:
        raise UserError(f'--{error}') from error
    scene = read(settings)
    model, tokenizer = scene.model, scene.tokenizer
    with torch.no_grad():
        logits = model(scene.idx)[0][0, -1].float().cpu()  # (V,)
    order = logits.argsort(descending=True, stable=True)[: model.n_ids]
    pieces = named(tokenizer, order[:ALTERNATIVES].tolist())
    all_of = [inside.tempered(logits, one, settings.top_k, settings.top_p) for one in temperatures]

    about = shortened(scene.text, 50, from_end=True)
    rows = table(
        f'what comes after “{about}”: {scene.name}, sampler probability before any cut',
        '>temperature',
        '>entropy, nats',
        '>bits',
        '>effective choices',
        'likeliest',
        '>top-k keeps',
        '>top-p keeps',
        '>both, k then p',
        '>entropy then',
    )
    for of in all_of:
        rows.add_row(*temperature_row(of, settings, f'{pieces[0]} {of.probs[order[0]]:.3f}'))
    show(rows)
    from plots_inside import Panel, temperature_figure

    panels = [
        Panel(
            of.temperature,
            numpy(of.probs[order]),
            of.entropy,
            None if settings.top_k is None else of.by_top_k.tokens,
            None if settings.top_p is None else of.by_top_p.tokens,
            of.by_both.tokens,
            cut_texts(settings, of),
        )
        for of in all_of
    ]
    curve = openness(logits, temperatures)
    title = f'{scene.name}: what comes after “{about}”'
    figure = temperature_figure(title, pieces, panels, settings.top_k, settings.top_p, curve)
    keep({'temperature': figure}, settings, 'temperature', f'{scene.name}-{scene.text}')


def temperature_row(of, settings, likeliest):
    """Return the cells of one row of the table: what an inside.Tempered says, — for a cut that was not asked for."""
    asked = [settings.top_k is not None, settings.top_p is not None, True]
    cuts = [of.by_top_k, of.by_top_p, of.by_both]
    return [
        f'{of.temperature:g}',
        f'{of.entropy:.3f}',
        f'{of.entropy / math.log(2):.3f}',
        f'{math.exp(of.entropy):,.1f}',
        Text(likeliest),
        *(f'{cut.tokens:,} ({cut.share:.1%})' if is_asked else '—' for is_asked, cut in zip(asked, cuts)),
        f'{of.entropy_of_both:.3f}',
    ]


def openness(logits, temperatures):
    """Return temperatures from 0 on, those asked for among them, and the effective number of choices at each."""
    highest = max(2.0, *temperatures)
    steps = [highest / 60 * (number + 1) for number in range(60)]
    if highest > 10:  # drawn on a logarithmic axis
        steps = [number / 20 for number in range(20)] + [highest ** (number / 60) for number in range(61)]
    points = sorted({0.0, *temperatures, *steps})
    return points, [math.exp(inside.entropy(logits_to_logprobs(logits, point)).item()) for point in points]


def read_temperatures(text):
    """Return the numbers of --temperatures."""
    numbers = []
    for part in text.split(','):
        try:
            number = float(part)
        except ValueError:
            raise UserError(f'--temperatures={text}: {part.strip()!r} is no number; write 0.5,1,2') from None
        if not 0 <= number < math.inf:
            raise UserError(f'--temperatures={text}: {part.strip()} is neither 0 (greedy) nor a positive number')
        if number > HOTTEST:
            raise UserError(f'--temperatures={text}: {part.strip()} is too hot; the highest is {HOTTEST:g}')
        numbers.append(number)
    if len(numbers) > 8:
        raise UserError(f'--temperatures={text}: {len(numbers)} are too many for one picture; give at most 8')
    return numbers


def cut_texts(settings, of):
    """Say what top-k, top-p and both would leave, a line each."""
    both = settings.top_k is not None and settings.top_p is not None
    alone = ' alone' if both else ''
    texts = []
    if settings.top_k is not None:
        texts.append(f'top-k {settings.top_k:,}{alone}: {kept_text(of.by_top_k)}')
    if settings.top_p is not None:
        texts.append(f'top-p {settings.top_p:g}{alone}: {kept_text(of.by_top_p)}')
    if both:
        texts.append(f'both, k then p: {kept_text(of.by_both)}')
    if texts:
        texts.append(f'entropy of what is left: {of.entropy_of_both:.2f} nats')
    return texts


def kept_text(cut):
    """Write what a cut leaves: '12 tokens, 90.3%'."""
    return f'{cut.tokens:,} token{"s" * (cut.tokens > 1)}, {cut.share:.1%}'


# Attention ------------------------------------------------------------------------------------------------------------


def attention(settings):
    """Draw the attention weights of all heads, one layer's or one head's, and attention rollout."""
    scene = read(settings)
    config, pieces = scene.model.config, scene.pieces
    check_place('layer', settings.layer, config.n_layer, scene.name)
    check_place('head', settings.head, config.n_head, scene.name)
    layers = range(config.n_layer) if settings.layer is None else [settings.layer]
    heads = range(config.n_head) if settings.head is None else [settings.head]
    drawn, means = [], []
    for layer, weights in enumerate(inside.attentions(scene.model, scene.idx)):  # (1, nh, T, T)
        means.append(weights.mean(1))
        if layer in layers:
            drawn.append(weights[0, list(heads)])
    shown = torch.stack(drawn)  # (layers, heads, T, T)
    shares = inside.rollout(means)[:, 0]  # (L, T, T)

    show(attention_table(scene, shown, layers, heads))
    last = shares[-1, -1].tolist()
    show(Text(f'rollout: what the last token, {pieces[-1]}, holds comes from {weighted(pieces, last, 5)}'))
    from plots_inside import attention_figure, rollout_figure

    if settings.layer is None and settings.head is None:
        which = 'every head of every layer'
    else:
        places = {'layer': settings.layer, 'head': settings.head}
        which = ', '.join(f'every {name}' if number is None else f'{name} {number}' for name, number in places.items())
    figures = {
        'attention': attention_figure(f'{scene.name}: attention, {which}', numpy(shown), layers, heads, pieces),
        'rollout': rollout_figure(f'{scene.name}: attention rollout', numpy(shares), pieces),
    }
    keep(figures, settings, 'attention', f'{scene.name}-{scene.text}')


def attention_table(scene, weights, layers, heads):
    """Return a table of what is looked at: by every token for one head, else by the last token in every head."""
    pieces = scene.pieces
    if weights.shape[:2] == (1, 1):
        rows = table(f'{scene.name}, layer {layers[0]}, head {heads[0]}: attention weights', '>', 'token', 'looks at')
        for place, piece in enumerate(pieces):
            seen = weights[0, 0, place, : place + 1].tolist()
            rows.add_row(str(place), Text(piece), Text(weighted(pieces[: place + 1], seen, 4)))
        return rows
    if len(layers) > 1:
        title = f'{scene.name}: what the last token, {pieces[-1]}, looks at most'
        rows = table(title, '>layer', *(f'head {head}' for head in heads))
        for layer, of in zip(layers, weights[:, :, -1].tolist()):
            rows.add_row(str(layer), *(Text(weighted(pieces, row, 1)) for row in of))
        return rows
    rows = table(
        f'{scene.name}, layer {layers[0]}: attention weights, the first four as means over all tokens',
        '>head',
        '>itself',
        '>the one before',
        '>the first',
        '>tokens back',
        'the last token looks at',
    )
    for head, of in zip(heads, weights[0]):
        back = torch.arange(len(of)).to(of)
        mean_back = (of * (back[:, None] - back)).sum(-1).mean()
        before = of.diagonal(-1).mean() if len(of) > 1 else torch.tensor(0.0)
        means = [of.diagonal().mean(), before, of[:, 0].mean()]
        last = Text(weighted(pieces, of[-1].tolist(), 3))
        rows.add_row(str(head), *(f'{mean.item():.2f}' for mean in means), f'{mean_back.item():.1f}', last)
    return rows


# Embeddings -----------------------------------------------------------------------------------------------------------


def embeddings(settings):
    """Draw token embeddings in two dimensions, and list nearest neighbours."""
    if settings.method not in ('pca', 'tsne', 'umap'):
        raise UserError(f'--method={settings.method}: it is pca, tsne or umap')
    if settings.neighbours < 1:
        raise UserError(f'--neighbours={settings.neighbours}: it must be at least 1')
    if not 0 <= settings.grey <= MOST_GREY:
        raise UserError(f'--grey={settings.grey}: it is a number from 0 to {MOST_GREY}')
    if settings.method != 'pca' and not 0 <= settings.seed < 2**32:
        raise UserError(f'--seed={settings.seed}: {settings.method} takes one from 0 to {2**32 - 1}')
    model, tokenizer, name = load(settings)
    ids = read_words(settings.words, tokenizer)
    table_of_tokens = model.transformer.wte.weight.detach()[: model.n_ids]  # (V, C)
    if table_of_tokens.size(1) < 2:
        raise UserError(f'{name} has embeddings of one number each, and a picture needs two')
    near, cosines = inside.neighbours(
        table_of_tokens, torch.tensor(ids, device=table_of_tokens.device), max(settings.neighbours, settings.grey)
    )
    grey = list(dict.fromkeys(id for row in near[:, : settings.grey].tolist() for id in row if id not in ids))
    words, others = (table_of_tokens[torch.tensor(of, dtype=torch.long)].cpu() for of in (ids, grey))
    axis_labels = None
    if settings.method == 'pca':
        plane = inside.pca(words)
        points, other_points = plane.points, plane.project(others)
        axis_labels = [
            f'{which} principal component ({share:.1%} of the variance of these words)'
            for which, share in zip(('first', 'second'), plane.shares.tolist())
        ]
    else:
        laid_out = spread(torch.cat([words, others]), settings)
        points, other_points = laid_out[: len(ids)], laid_out[len(ids) :]

    rows = table(f'{name}: nearest tokens by cosine of the embeddings', 'token', '>id', 'nearest')
    for id, row, values in zip(ids, near.tolist(), cosines.tolist()):
        nearest = zip(named(tokenizer, row[: settings.neighbours]), values)
        rows.add_row(Text(named(tokenizer, [id])[0]), str(id), Text(', '.join(f'{p} {v:.2f}' for p, v in nearest)))
    show(rows)
    if settings.method == 'pca':
        show(Text(f'the plane holds {plane.shares.sum().item():.1%} of the variance of these {len(ids)} embeddings'))
    from plots_inside import embeddings_figure

    method = {'pca': 'PCA', 'tsne': 't-SNE by cosine', 'umap': 'UMAP by cosine'}[settings.method]
    title = f'{name}: {len(ids)} token embeddings, {method}' + (' (grey: their nearest tokens)' if grey else '')
    figure = embeddings_figure(
        title, numpy(points), named(tokenizer, ids), numpy(other_points), named(tokenizer, grey), axis_labels
    )
    keep({'embeddings': figure}, settings, 'embeddings', f'{name}-{settings.method}')


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


def spread(x, settings):
    """Return t-SNE's or UMAP's layout of embeddings; raise UserError where the package is missing."""
    try:
        return inside.spread(x, settings.method, settings.seed)
    except ImportError as error:
        package = {'tsne': 'scikit-learn', 'umap': 'umap-learn'}[settings.method]
        raise UserError(
            f'--method={settings.method} needs {package}: pip install {package}, or take --method=pca'
        ) from error


# Layer by layer -------------------------------------------------------------------------------------------------------


def layers(settings):
    """Draw what each layer would have said after every token."""
    scene = read(settings)
    lens = inside.logit_lens(scene.model, scene.idx)
    tops = [named(scene.tokenizer, row) for row in lens.ids[:, 0].tolist()]
    probs = lens.logprobs[:, 0].exp()  # (L + 1, T)
    ranks, next_logprobs = lens.next_ranks[:, 0], lens.next_logprobs[:, 0].double()  # (L + 1, T - 1)

    rows = table(
        f'{scene.name}: what each layer would have said after “{shortened(scene.text, 50, from_end=True)}”; '
        'probability read out at this layer; of the last it is the model probability',
        'after',
        'likeliest next',
        '>probability',
        '>rank of what came: median',
        '>its probability: geometric mean',
        '>guessed',
    )
    names = ['embedding', *(f'layer {layer}' for layer in range(len(tops) - 1))]
    for layer, name in enumerate(names):
        came = ['—'] * 3
        if len(scene.pieces) > 1:
            guessed = (ranks[layer] == 1).sum().item()
            median = ranks[layer].double().quantile(0.5).item()
            came = [
                f'{median:,g}',
                in_three_digits(next_logprobs[layer].mean().item()),
                f'{guessed} of {ranks.size(1)}',
            ]
        rows.add_row(name, Text(tops[layer][-1]), f'{probs[layer, -1]:.3f}', *came)
    show(rows)
    from plots_inside import POSITIONS, layers_figure

    T = len(scene.pieces)
    end = f', the last {POSITIONS} of {T:,} tokens' if T > POSITIONS else ''
    title = f'{scene.name}: what each layer would say next (logit lens){end}'
    figure = layers_figure(title, scene.pieces, tops, numpy(probs), ranks.cpu().numpy(), next_logprobs.cpu().numpy())
    keep({'layers': figure}, settings, 'layers', f'{scene.name}-{scene.text}')


# Trace ----------------------------------------------------------------------------------------------------------------


def trace(settings):
    """Print every step of one forward pass, and draw how the data flows."""
    scene = read(settings)
    config = scene.model.config
    check_place('layer', settings.layer, config.n_layer, scene.name)
    steps = inside.trace(scene.model, scene.idx)
    show(*trace_lines(scene, steps, settings.layer))

    *_, logprobs = steps
    best = logprobs.value[0, -1].topk(min(5, scene.model.n_ids))
    pieces = named(scene.tokenizer, best.indices.tolist())
    probs = best.values.exp().tolist()
    answer = [f'{prob:.3f}  {piece}' for piece, prob in zip(pieces, probs)]
    show(Text(f'\nnext: {", ".join(answer)}   {MODEL_PROBABILITY}'))
    from plots_inside import trace_figure

    in_boxes = [one for one in steps if one.layer in (None, settings.layer)]
    boxes = {one.name: (shape_text(one.value), f'line {one.line}') for one in in_boxes}
    stream = [one for one in steps if one.name == 'x']
    stops = ['wte + wpe', *(f'h[{layer}] + {what}' for layer in range(config.n_layer) for what in ('attn', 'mlp'))]
    norms = torch.stack([one.value[0].float().norm(dim=-1) for one in stream])  # (2 L + 1, T)
    title = f'{scene.name}: one forward pass over {len(scene.pieces)} token{"s" * (len(scene.pieces) > 1)}'
    figure = trace_figure(
        title,
        boxes,
        settings.layer,
        config.n_layer,
        stops,
        numpy(norms),
        scene.pieces,
        ['next, model probability:', *answer],
    )
    keep({'trace': figure}, settings, 'trace', f'{scene.name}-{scene.text}')


def trace_lines(scene, steps, unfolded):
    """Return what to print of a trace: sizes and tokens, then every line of model.py with what it computes."""
    config, pieces = scene.model.config, scene.pieces
    sizes = {
        'B': 1,
        'T': len(pieces),
        'C': config.n_embd,
        'nh': config.n_head,
        'hs': config.n_embd // config.n_head,
        'V': config.vocab_size,
    }
    head = Text(f'{scene.name} reads ')
    head.append(' │ '.join(pieces), style='bold')
    head.append(f'\n{", ".join(f"{letter} = {size:,}" for letter, size in sizes.items())}; ')
    head.append(f'values: the last six ids, and the first four numbers of the last token, {pieces[-1]}, in head 0')
    parts, layer, function, line = [head], None, None, None
    for step in steps:
        if step.layer not in (None, unfolded) and step.name != 'x':
            continue
        if step.layer != layer and step.layer is not None:
            more = '' if step.layer == unfolded else f', in short: --layer={step.layer} unfolds it'
            parts.append(Text(f'\ntransformer.h[{step.layer}]{more}', style='bold'))
            function = None
        if step.function != function:
            parts.append(Text(f'model.py, {step.function}', style='cyan'))
        if (step.function, step.line) != (function, line):
            parts.append(Text(f'{step.line:5}  {step.code}', style='green'))
        layer, function, line = step.layer, step.function, step.line
        shape = f'({step.letters}) = {shape_text(step.value)}'
        row = Table.grid(padding=(0, 1))
        for width in (8, 22, 35, 36, 34):
            row.add_column(width=width)
        row.add_row('', Text(step.name, style='bold'), Text(step.meaning), shape, few(step.value))
        parts.append(row)
    return parts


def shape_text(value):
    """Write the shape of a tensor."""
    return str(tuple(value.shape)).replace(',)', ')')


def few(value):
    """Write the last few ids, or the first few numbers of the last token."""
    if not value.is_floating_point():
        return '… ' * (value.size(-1) > 6) + ' '.join(map(str, value.flatten()[-6:].tolist()))
    row = value.reshape(-1, *value.shape[-2:])[0, -1]
    return ' '.join(f'{number:7.3f}' for number in row[:4].tolist()) + ' …' * (len(row) > 4)


# The command line -----------------------------------------------------------------------------------------------------


PICTURES = {
    'temperature': (temperature, TemperatureSettings),
    'attention': (attention, AttentionSettings),
    'embeddings': (embeddings, EmbeddingsSettings),
    'layers': (layers, LayersSettings),
    'trace': (trace, TraceSettings),
}


@dataclass
class NoSettings:
    """Where no picture is named, there is nothing to set."""


def chosen(argv):
    """Return what draws the picture that the command line names, and its settings; take the name out of argv.

    Where it names none, what is returned prints the help or raises UserError.
    """
    name = argv[1].lower() if len(argv) > 1 else ''
    if name in PICTURES:
        argv[:2] = [f'{argv[0]} {name}']  # one word, so that --help shows how it is called
        return PICTURES[name]
    del argv[1:]

    def no_picture(_):
        if name in ('-h', '--help', 'help'):
            print('usage: python visualize.py PICTURE [--key=value ...]\n')
            for picture, (_, settings_class) in PICTURES.items():
                print(f'  {picture:12} {settings_class.__doc__}')
            print('\npython visualize.py PICTURE --help lists the settings of one.')
            return
        there_are = f'there are {", ".join(PICTURES)}'
        if not name or name.startswith('-'):
            raise UserError(f'name a picture first: {there_are}; for example: python visualize.py attention')
        near = difflib.get_close_matches(name, PICTURES, n=1, cutoff=0.5)
        raise UserError(f'there is no picture {name!r}; {f"did you mean {near[0]}?" if near else there_are}')

    return no_picture, NoSettings


if __name__ == '__main__':
    configurator.run(*chosen(sys.argv))
