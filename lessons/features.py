"""Features: the directions that a language model's inner vectors are made of, found by a sparse autoencoder.

Inside a GPT each token is a vector (264 numbers in tiny-stories) to which every block adds: the residual stream. Its
numbers mean nothing to us. But it may be a sum of a few meaningful directions, like the signals in dictionary.py.

Pursuit and K-SVD are slow for many vectors. A sparse autoencoder (Cunningham et al. 2023, arXiv:2309.08600) computes
codes in one step, with a matrix that is learned along with the dictionary, and keeps only the k largest
(Makhzani & Frey 2013, arXiv:1312.5663; Gao et al. 2024, arXiv:2406.04093):

    code = top k of relu(E (x - b) + e)              strength of each of F features; relu turns negative numbers into 0
    x'   = D code + b                                sum of the features' directions, of length 1, times their strength

    python -m lessons.features                       a minute; --layer=3, --n_features=512, --k=8 to try others

What to look for. Does the model work as before if it reads x' instead of x? How much worse is a PCA of as many
directions, or the autoencoder before training? And what activates a feature: always the same token, or something
that several tokens share? Some are dead, and many mean nothing that we can name, so a rule chooses which to show.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib import colormaps, pyplot
from matplotlib.colors import to_hex
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn import functional as F

import configurator
from common.errors import UserError
from lm.internals import capture_activations
from lm.settings import ModelSettings, load_chosen_model
from pictures.style import BAR, BLUE, GREY, MARK, ORANGE, save_figure
from pictures.token_sheet import draw_token_sheet
from texts.readers import input_paths, read_files
from training.lean_loss import LeanLoss

HELD_OUT = 5  # the last fifth of the text is not trained on: losses and examples come from it
BEFORE, AFTER = 9, 4  # tokens shown around the one on which a feature is strongest
console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, markup=False, emoji=False)


@dataclass
class Settings:
    """Learn the features of one layer of a model, measure what they keep of its loss, and show some of them."""

    init_from: str = 'tiny-stories'  # the model: tiny, gpt2, a folder, ..., as in sample.py
    input: str = 'data/childrens_stories/childrens_stories.txt'  # the text that the model reads
    layer: int = 2  # use the stream after this many blocks
    n_features: int = 1024  # directions to learn
    k: int = 16  # active features for each token
    steps: int = 500  # training steps, each on 512 vectors
    learning_rate: float = 4e-3  # of Adam; it falls to 0 in the second half
    shown: int = 10  # features to print and draw
    seed: int = 1337  # decides the initial directions and the order of the vectors
    device: str | None = None  # cpu, gpu, cuda, cuda:1, mps; None for the best available
    plot_dir: str = 'results/lessons'  # folder for features.png and features-loss.png


# The model and its residual stream. Shapes: B windows of T tokens, N vectors, C channels, F features. --------------


def make_windows(texts, tokenizer, T) -> Int[Tensor, 'B T']:
    """Return windows of T ids that cover all documents in order; the token that begins a text precedes each."""
    ids = [id for text in texts for id in tokenizer.encode_prompt('') + tokenizer.encode(text)]
    return torch.tensor(ids[: len(ids) // T * T], dtype=torch.int64).view(-1, T)


def read_stream(model, idx: Int[Tensor, 'B T'], layer) -> Float[Tensor, 'B T C']:
    """Return the residual stream after `layer` blocks while the model reads ids."""
    block, parts = model.transformer.h[layer - 1], idx.to(model.device).split(8)
    return torch.cat([capture_activations(model, part, [block])[1][block].output for part in parts])


@torch.no_grad()
def measure_loss(model, idx: Int[Tensor, 'B T'], layer, change):
    """Return the mean loss in nats per token if the stream x after `layer` blocks is replaced by change(x)."""
    hook = model.transformer.h[layer - 1].register_forward_hook(lambda block, inputs, x: change(x))
    try:
        loss, parts = LeanLoss(model), idx.to(model.device).split(8)
        losses = [loss(part[:, :-1], part[:, 1:].contiguous()) * len(part) for part in parts]
    finally:
        hook.remove()
    return sum(losses).item() / len(idx)


# The autoencoder ----------------------------------------------------------------------------------------------------


class SparseAutoencoder(nn.Module):
    """Encodes vectors like x with the k strongest of n_features directions, and decodes them again.

    All vectors are divided by one number, their median length, on which a few giants have no effect (in some models the
    first vectors of a text are giants: Sun et al. 2024, arXiv:2402.17762). The encoder starts as a copy of the decoder.
    """

    def __init__(self, x: Float[Tensor, 'N C'], n_features, k, seed):
        super().__init__()
        directions = torch.randn(n_features, x.size(1), generator=torch.Generator().manual_seed(seed))
        self.k, self.scale = k, (x - x.mean(0)).norm(dim=1).median() / x.size(1) ** 0.5
        self.decoder = nn.Parameter(F.normalize(directions, dim=1).to(x.device))  # (n_features, C): the dictionary
        self.encoder = nn.Parameter(self.decoder.detach().clone())  # (n_features, C)
        self.bias = nn.Parameter(x.new_zeros(n_features))  # mostly negative after training: a threshold for activity
        self.mean = nn.Parameter(x.mean(0) / self.scale)  # (C,)

    def find_active(self, x: Float[Tensor, 'N C']) -> tuple[Int[Tensor, 'N k'], Float[Tensor, 'N k']]:
        """Return the k most active features and their strengths."""
        strengths, features = F.linear(x / self.scale - self.mean, self.encoder, self.bias).topk(self.k)
        return features, strengths.relu()

    def encode(self, x: Float[Tensor, 'N C']) -> Float[Tensor, 'N F']:
        """Return the codes; at most k in a row are not 0."""
        features, strengths = self.find_active(x)
        return strengths.new_zeros(len(x), len(self.decoder)).scatter(1, features, strengths)

    def forward(self, x: Float[Tensor, '... C']) -> Float[Tensor, '... C']:
        """Return the vectors after encoding and decoding."""
        features, strengths = self.find_active(x.flatten(0, -2))
        # The same as encode(x) @ self.decoder, without multiplying by zeros.
        decoded = F.embedding_bag(features, self.decoder, per_sample_weights=strengths, mode='sum') + self.mean
        return (decoded * self.scale).view_as(x)


def train_coder(x: Float[Tensor, 'N C'], n_features, k, steps, learning_rate, seed):
    """Return a SparseAutoencoder, trained to reconstruct vectors x."""
    coder = SparseAutoencoder(x, n_features, k, seed)
    optimizer = torch.optim.Adam(coder.parameters(), learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = learning_rate * min(1, 2 * (1 - step / steps))
        batch = x[torch.randint(len(x), (512,), generator=generator).to(x.device)]
        loss = ((batch - coder(batch)) / coder.scale).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # back to length 1, or longer directions could make codes arbitrarily small
            coder.decoder.copy_(F.normalize(coder.decoder, dim=1))
    return coder.requires_grad_(False)


def fit_pca(x: Float[Tensor, 'N C'], k):
    """Return a function that projects vectors on the k directions in which x varies most."""
    mean = x.mean(0)
    directions = torch.linalg.eigh(((x - mean).T @ (x - mean)).cpu()).eigenvectors[:, -k:].to(x.device)  # (C, k)
    return lambda x: (x - mean) @ directions @ directions.T + mean


# The lesson ---------------------------------------------------------------------------------------------------------


def main(settings):
    """Train, measure, and show features, chosen by how often they are active."""
    model, tokenizer = load_chosen_model(ModelSettings(settings.init_from, 'out', settings.device))
    limits = {'layer': (1, model.config.n_layer), 'n_features': (2, 100_000), 'k': (1, settings.n_features)}
    for name, (low, high) in {**limits, 'steps': (1, 10**6), 'shown': (1, 100)}.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be {low} to {high}')
    T, C, layer, n, k = model.config.block_size, model.config.n_embd, settings.layer, settings.n_features, settings.k
    windows = make_windows(read_files(input_paths(settings.input), '\n\n\n'), tokenizer, T)
    if len(windows) < HELD_OUT:
        raise UserError(f'--input={settings.input} makes {len(windows)} windows of {T} tokens: {HELD_OUT} are needed')
    held_out = windows[len(windows) - len(windows) // HELD_OUT :]
    stream = read_stream(model, windows[: len(windows) - len(held_out)], layer)  # (B, T, C)
    first, others, x = stream[:, 0].norm(dim=-1).median(), stream[:, 1:].norm(dim=-1).median(), stream.flatten(0, 1)
    console.print(f'{len(x):,} vectors to learn from, {held_out.numel():,} held out. At the start of a window their')
    console.print(f'median length is {first:.1f}, elsewhere {others:.1f}; all positions are used nevertheless.\n')

    sizes = sorted({min(size, n, C) for size in (4, 8, 16, 32)} | {k})
    coders = {size: train_coder(x, n, size, settings.steps, settings.learning_rate, settings.seed) for size in sizes}
    changes = {'the stream': lambda x: x, 'zeros': torch.zeros_like, 'its mean': lambda y: x.mean(0).expand_as(y)}
    untrained = changes[f'{k} of {n} features, untrained'] = SparseAutoencoder(x, n, k, settings.seed)
    for size in sizes:
        changes |= {f'{size} directions of PCA': fit_pca(x, size), f'{size} of {n} features': coders[size]}
    losses = {name: measure_loss(model, held_out, layer, change) for name, change in changes.items()}
    real, zero, mean, *_ = losses.values()
    table = Table('instead of the stream', 'loss, nats', 'kept, from zeros on', 'kept, from the mean on')
    table.title = f'Held-out loss of {settings.init_from} if its stream after {layer} blocks is replaced'
    for name, loss in losses.items():  # 100 % is the stream itself, 0 % the replacement in the column's title
        table.add_row(name, f'{loss:.3f}', *(f'{(base - loss) / (base - real):.1%}' for base in (zero, mean)))
    console.print(table)
    codes = [coder.encode(read_stream(model, held_out, layer).flatten(0, 1)).cpu() for coder in (coders[k], untrained)]
    dead, absent = ((code == 0).all(0).sum() for code in (coders[k].encode(x), codes[0]))
    console.print(f'\nOf {n} features {dead} are dead, never active in the training text; {absent} in the other text.')
    for name, code in zip(('trained', 'untrained'), codes):
        share = (find_main_tokens(code, held_out.flatten())[1][list_common_features(code)] > 0.5).float().mean()
        console.print(f'{share:.0%} of {name} features have most of their activity on one token.')
    console.print('Some, from rare to frequent: active on how many tokens, how much of it on one; «»: the strongest')
    folder, lines = Path(settings.plot_dir), print_examples(tokenizer, codes[0], held_out, settings.shown)
    draw_token_sheet(folder / 'features.png', lines, "activity as a share of the feature's maximum", 'above 0')
    draw_losses(folder / 'features-loss.png', sizes, losses, n, codes[0])


def list_common_features(codes: Float[Tensor, 'N F']) -> Int[Tensor, ' m']:
    """Return the features that are active on 5 tokens or more, the rarest first."""
    counts = (codes > 0).sum(0)
    return counts.argsort(stable=True)[(counts < 5).sum() :]


def find_main_tokens(codes: Float[Tensor, 'N F'], ids: Int[Tensor, ' N']):
    """Return for each feature the token with most of its activity, and that token's share of it, (F,) each."""
    tokens, index = ids.unique(return_inverse=True)
    activity = codes.new_zeros(len(tokens), codes.size(1)).index_add(0, index, codes)  # (tokens, F)
    return tokens[activity.argmax(0)], activity.amax(0) / activity.sum(0)


def print_examples(tokenizer, codes: Float[Tensor, 'N F'], windows: Int[Tensor, 'B T'], shown):
    """Print features, evenly spaced from rare to frequent, in three windows each; return lines to draw."""
    B, T = windows.shape
    common, (tokens, shares), lines = list_common_features(codes), find_main_tokens(codes, windows.flatten()), []
    for feature in common[torch.linspace(0, len(common) - 1, min(shown, len(common))).long()].tolist():
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


def draw_losses(path, sizes, losses, n_features, codes: Float[Tensor, 'N F']):
    """Draw how much of the loss is kept by the number of active features, and how often each feature is active."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout='constrained')
    real, zero, *_ = losses.values()
    for name, colour in ((f'of {n_features} features', BLUE), ('directions of PCA', ORANGE)):
        kept = [(zero - losses[f'{size} {name}']) / (zero - real) for size in sizes]
        left.plot(sizes, kept, 'o-', color=colour, label=name)
    left.axhline(0.9, color=GREY, linestyle=':', label='0.9')
    left.set(xticks=sizes, ylim=(0, 1.02), xlabel='directions for each token', ylabel='kept: 0 zeros, 1 the stream')
    left.legend(frameon=False)
    right.hist((codes > 0).float().mean(0).clamp(min=1e-4), torch.logspace(-4, 0, 41), color=BAR)
    right.set(xscale='log', xlabel='share of tokens on which it is active (far left: none)', ylabel='features')
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == '__main__':
    configurator.run(main, Settings)
