"""Features: the directions that a language model's inner vectors are made of, found by a sparse autoencoder.

Inside a GPT each token is a vector, 264 numbers in tiny-stories, to which every block adds something: the residual
stream. No single number of it means anything to us. But perhaps the vector is a sum of few directions out of many, as
the signals of lessons/dictionary.py are of atoms, and a direction has a meaning.

Pursuit and K-SVD are slow for many vectors. A sparse autoencoder (Cunningham et al. 2023, arXiv:2309.08600) codes at
one look, with a matrix that is learned along with the dictionary; of what it gives, only the k largest are kept
(Makhzani & Frey 2013, arXiv:1312.5663; Gao et al. 2024, arXiv:2406.04093):

    code = top k of relu(E (x - b) + e)              strength of each of F features; relu makes what is below 0 a 0
    x'   = D code + b                                the features' directions, each of length 1, times that

    python -m lessons.features                       a minute; --layer=3, --n_features=512, --k=8 to try others

What to look for. Does the model go on as before, if it reads x' in place of x? How much worse is a PCA of as many
directions, or the autoencoder before training? And what makes a feature active: only ever one token, or something
that several tokens share? Some are dead, and many mean nothing that we can name: which are shown is left to a rule.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import colormaps, pyplot
from matplotlib.colors import to_hex
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.nn import functional as F

import configurator
from common.errors import UserError
from lm.internals import capture_activations
from lm.settings import SamplingSettings, load_chosen_model
from pictures.style import BAR, FELL, GIVEN_UP, MARK, ROSE, save_figure
from pictures.token_sheet import draw_token_sheet
from texts.files import input_paths, read_files
from training.lean_loss import LeanLoss

HELD_OUT = 5  # the last fifth of the text is not trained on: losses and examples are from there
BEFORE, AFTER = 9, 4  # tokens shown around the one on which a feature is strongest
console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, markup=False, emoji=False)


@dataclass
class Settings:
    """Learn the features of one layer of a model, measure what they keep of its loss, and show some of them."""

    init_from: str = 'tiny-stories'  # the model: tiny, gpt2, a folder, ..., as in sample.py
    input: str = 'data/childrens_stories/childrens_stories.txt'  # the text that the model reads
    layer: int = 2  # the stream after so many blocks
    n_features: int = 1024  # directions to learn
    k: int = 16  # of them are active for each token
    steps: int = 500  # of training, each on 512 vectors
    learning_rate: float = 4e-3  # of Adam; it falls to 0 in the second half
    shown: int = 10  # features to print and draw
    seed: int = 1337  # decides the directions to begin with, and the order of the vectors
    plot_dir: str = 'results/lessons'  # where features.png and features-loss.png go


# The model, and what passes through it. Shapes: B windows of T tokens, C channels, n_features directions. -----------


def windows_of(texts, tokenizer, T):
    """Return windows of T ids, (B, T), of documents one after the other, each after the token that begins a text."""
    ids = [id for text in texts for id in tokenizer.encode_prompt('') + tokenizer.encode(text)]
    return torch.tensor(ids[: len(ids) // T * T]).view(-1, T)


def stream_of(model, idx, layer):
    """Return the residual stream after `layer` blocks, (B, T, C), while the model reads (B, T) ids."""
    block = model.transformer.h[layer - 1]
    return torch.cat([capture_activations(model, part, [block])[1][block].out for part in idx.split(8)])


@torch.no_grad()
def loss_with(model, idx, layer, change):
    """Return the mean loss in nats a token on (B, T) ids, the stream x after `layer` blocks replaced by change(x)."""
    hook = model.transformer.h[layer - 1].register_forward_hook(lambda block, inputs, x: change(x))
    try:
        loss, parts = LeanLoss(model), idx.split(8)
        losses = [loss(part[:, :-1], part[:, 1:].contiguous()) * len(part) for part in parts]
    finally:
        hook.remove()
    return sum(losses).item() / len(idx)


# The autoencoder ----------------------------------------------------------------------------------------------------


class SparseAutoencoder(nn.Module):
    """Codes vectors like x, (N, C), with the k strongest of n_features directions, and makes them again from these.

    All vectors are divided by one number, their median size, which a few giants do not change (in some models the first
    vectors of a text are such: Sun et al. 2024, arXiv:2402.17762). The encoder begins as a copy of the decoder.
    """

    def __init__(self, x, n_features, k, seed):
        super().__init__()
        directions = torch.randn(n_features, x.size(1), generator=torch.Generator().manual_seed(seed))
        self.k, self.scale = k, (x - x.mean(0)).norm(dim=1).median() / x.size(1) ** 0.5
        self.decoder = nn.Parameter(F.normalize(directions, dim=1))  # (n_features, C): the dictionary
        self.encoder = nn.Parameter(self.decoder.detach().clone())  # (n_features, C)
        self.bias = nn.Parameter(torch.zeros(n_features))  # mostly below 0 once learned: what it takes to be active
        self.mean = nn.Parameter(x.mean(0) / self.scale)  # (C,)

    def active(self, x):
        """Return which k features are most active and how strongly, (N, k) each."""
        strengths, which = F.linear(x / self.scale - self.mean, self.encoder, self.bias).topk(self.k)
        return which, strengths.relu()

    def encode(self, x):
        """Return the codes, (N, n_features), of which at most k in a row are not 0."""
        which, strengths = self.active(x)
        return strengths.new_zeros(len(x), len(self.decoder)).scatter(1, which, strengths)

    def forward(self, x):
        """Return the vectors as they are made again from their codes, (..., C)."""
        which, strengths = self.active(x.flatten(0, -2))
        # The same as encode(x) @ self.decoder, but nothing is multiplied by 0.
        made = F.embedding_bag(which, self.decoder, per_sample_weights=strengths, mode='sum') + self.mean
        return (made * self.scale).view_as(x)


def train(x, n_features, k, steps, learning_rate, seed):
    """Learn to make vectors x, (N, C), again; return the SparseAutoencoder."""
    coder = SparseAutoencoder(x, n_features, k, seed)
    optimizer = torch.optim.Adam(coder.parameters(), learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = learning_rate * min(1, 2 * (1 - step / steps))
        batch = x[torch.randint(len(x), (512,), generator=generator)]
        loss = ((batch - coder(batch)) / coder.scale).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # of length 1 again, or a code could be made small by making its direction long
            coder.decoder.copy_(F.normalize(coder.decoder, dim=1))
    return coder.requires_grad_(False)


def pca(x, k):
    """Return a function that keeps of vectors their part in the k directions in which x, (N, C), varies most."""
    mean = x.mean(0)
    directions = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors[:, -k:]  # (C, k)
    return lambda x: (x - mean) @ directions @ directions.T + mean


# The lesson ---------------------------------------------------------------------------------------------------------


def main(settings):
    """Train, measure, and show features that were chosen by how often they are active."""
    model, tokenizer = load_chosen_model(SamplingSettings(init_from=settings.init_from, out_dir='out', device='cpu'))
    limits = {'layer': (1, model.config.n_layer), 'n_features': (2, 100_000), 'k': (1, settings.n_features)}
    for name, (low, high) in {**limits, 'steps': (1, 10**6), 'shown': (1, 100)}.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(f'--{name}={getattr(settings, name)}: it is {low} to {high}')
    T, C, layer, n, k = model.config.block_size, model.config.n_embd, settings.layer, settings.n_features, settings.k
    windows = windows_of(read_files(input_paths(settings.input), '\n\n\n'), tokenizer, T)
    if len(windows) < HELD_OUT:
        raise UserError(f'--input={settings.input} makes {len(windows)} windows of {T} tokens: {HELD_OUT} are needed')
    rest = windows[len(windows) - len(windows) // HELD_OUT :]
    seen = stream_of(model, windows[: len(windows) - len(rest)], layer)  # (B, T, C)
    first, others, x = seen[:, 0].norm(dim=-1).median(), seen[:, 1:].norm(dim=-1).median(), seen.flatten(0, 1)
    console.print(f'{len(x):,} vectors to learn from, {rest.numel():,} held out. Where a window begins they are')
    console.print(f'{first:.1f} long, elsewhere {others:.1f} (medians); nevertheless no position is left out.\n')

    sizes = sorted({min(size, n, C) for size in (4, 8, 16, 32)} | {k})
    coders = {size: train(x, n, size, settings.steps, settings.learning_rate, settings.seed) for size in sizes}
    untrained = SparseAutoencoder(x, n, k, settings.seed)
    changes = {'the stream': lambda x: x, 'zeros': torch.zeros_like, 'its mean': lambda y: x.mean(0).expand_as(y)}
    changes[f'{k} of {n} features, untrained'] = untrained
    for size in sizes:
        changes |= {f'{size} directions of PCA': pca(x, size), f'{size} of {n} features': coders[size]}
    losses = {name: loss_with(model, rest, layer, change) for name, change in changes.items()}
    real, zero, mean, *_ = losses.values()
    table = Table('in place of the stream', 'loss, nats', 'kept, from zeros on', 'kept, from the mean on')
    table.title = f'What {settings.init_from} loses on text held out if its stream after {layer} blocks is replaced'
    for name, loss in losses.items():  # 100 % is the stream itself, 0 % what it is replaced by in the column's title
        kept = [f'{(nothing - loss) / (nothing - real):.1%}' for nothing in (zero, mean)]
        table.add_row(name, f'{loss:.3f}', *kept)
    console.print(table)
    codes = [coder.encode(stream_of(model, rest, layer).flatten(0, 1)) for coder in (coders[k], untrained)]
    dead, absent = ((code == 0).all(0).sum() for code in (coders[k].encode(x), codes[0]))
    console.print(f'\nOf {n} features {dead} are dead, active nowhere in the text learned from; {absent} in the other.')
    for name, code in zip(('trained', 'untrained'), codes):
        share = commonest(code, rest.flatten())[1][often_enough(code)]
        mostly = f'{(share > 0.5).float().mean():.0%} of {name} features'
        console.print(f'{mostly} have more than half of their activity on one token, always the same.')
    console.print('Some, from rare to frequent: active on how many tokens, how much of it on one; «»: where strongest')
    folder, lines = Path(settings.plot_dir), examples(tokenizer, codes[0], rest, settings.shown)
    draw_token_sheet(folder / 'features.png', lines, "activity as a share of the feature's largest", 'above 0')
    draw_losses(folder / 'features-loss.png', sizes, losses, n, codes[0])


def often_enough(codes):
    """Return the features active on 5 tokens or more, those active least often first: ids."""
    often = (codes > 0).sum(0)
    return often.argsort(stable=True)[(often < 5).sum() :]


def commonest(codes, ids):
    """Return for each feature the token on which most of its activity is, and what share of it that is."""
    tokens, where = ids.unique(return_inverse=True)
    activity = codes.new_zeros(len(tokens), codes.size(1)).index_add(0, where, codes)  # (tokens, n_features)
    return tokens[activity.argmax(0)], activity.amax(0) / activity.sum(0)


def examples(tokenizer, codes, windows, shown):
    """Print features evenly spaced by how often they are active, in three windows each; return lines to draw."""
    B, T = windows.shape
    alive, (tokens, shares), lines = often_enough(codes), commonest(codes, windows.flatten()), []
    for feature in alive[torch.linspace(0, len(alive) - 1, min(shown, len(alive))).long()].tolist():
        activity = codes[:, feature].view(B, T) / codes[:, feature].max()
        name, often = tokenizer.pieces([tokens[feature].item()])[0], (activity > 0).float().mean()
        about = f'{feature}: on {often:.1%} of tokens, {shares[feature]:.0%} at {name}'
        console.print(f'\n{about}')
        for window in activity.amax(1).topk(min(3, B)).indices.tolist():
            place = activity[window].argmax().item()
            part = slice(max(0, place - BEFORE), place + AFTER + 1)
            pieces, values = tokenizer.pieces(windows[window, part].tolist()), activity[window, part].tolist()
            lines.append((about, pieces, values))
            about, text = '', Text('  ')
            for number, (piece, value) in enumerate(zip(pieces, values), part.start):
                style = f'{MARK} on {to_hex(colormaps["Blues"](0.7 * value))}' if value else ''
                text.append(f'«{piece}»' if number == place else piece, style)
            console.print(text)
    return lines


def draw_losses(path, sizes, losses, n, codes):
    """Draw what is kept of the loss by the number of active features, and how often each feature is active."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout='constrained')
    real, zero, *_ = losses.values()
    for name, colour in ((f'of {n} features', ROSE), ('directions of PCA', FELL)):
        shares = [(zero - losses[f'{size} {name}']) / (zero - real) for size in sizes]
        left.plot(sizes, shares, 'o-', color=colour, label=name)
    left.axhline(0.9, color=GIVEN_UP, linestyle=':', label='0.9')
    left.set(xticks=sizes, ylim=(0, 1.02), xlabel='directions for each token', ylabel='kept: 0 zeros, 1 the stream')
    left.legend(frameon=False)
    right.hist((codes > 0).float().mean(0).clamp(min=1e-4), torch.logspace(-4, 0, 41), color=BAR)
    right.set(xscale='log', xlabel='share of tokens on which it is active (far left: none)', ylabel='features')
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == '__main__':
    configurator.run(main, Settings)
