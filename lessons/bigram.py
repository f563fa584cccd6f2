"""The road to a language model: guess the next character from the last one, then from all before it.

A language model gives each character a probability of coming next. Its loss is the mean of -ln P(the one that came), in
nats: 0 if always certain and right, ln 75 = 4.32 if 75 characters seem equally likely; divided by ln 2, the bits a
character takes when the model compresses the text (Shannon 1948). Five models learn from nine tenths of a text:

  1. pairs counted: which character came how often after this one? There is nothing to train;
  2. pairs learned: the same table, found by gradient descent on the loss, like everything after it;
  3. one head of self-attention: which of the characters before are useful now?
  4. a small transformer, with several heads and layers: the GPT in model.py, which train.py trains;
  5. too far: a large transformer on a small text learns what is true of any text, then learns this one by heart.

    python -m lessons.bigram            under a minute; --steps=5000 goes further, --input=FILE reads another text

What to look for: counted and learned pairs write the same sample. From model to model the samples look more like words,
and those of the large model do so to the very end. But are the words its own? Its held-out loss says when to stop.
"""

import math
import random
import textwrap
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from matplotlib import pyplot
from torch import Tensor, nn

import configurator
from common.errors import UserError
from lm.hardware import pick_device
from lm.tokenizer import CharTokenizer
from model import GPT, GPTConfig, logits_to_logprobs, sample
from pictures.style import BAR, BLUE, MARK, ORANGE, allow_missing_glyphs, hide_spines, save_figure
from texts.readers import input_paths, read_files
from training.batches import TextBlocks, training_batch


@dataclass
class Settings:
    """Go from counting pairs of characters to a small transformer, and too far with a large one."""

    input: str = 'data/childrens_stories/childrens_stories.txt'  # the text to learn from (UTF-8)
    max_characters: int = 100_000  # how much of it to read
    smoothing: float = 0.1  # added to the count of each pair
    block_size: int = 64  # characters that attention sees, including the last one
    n_embd: int = 64  # width of the models with attention; the large one is twice as wide
    steps: int = 1000  # training steps of each model; half as many for the large one
    small_text: int = 4000  # characters that the large model learns from
    seed: int = 1337  # decides initial weights, order of training and samples
    device: str | None = None  # cpu, gpu, cuda, cuda:1, mps; None for the best available
    plot_dir: str = 'results/lessons'  # folder for bigram.png and bigram-overfitting.png


def count_pairs(ids: Int[Tensor, ' T'], vocab_size) -> Float64[Tensor, 'V V']:
    """Return how often each character (row) was followed by each (column). A pair is counted as one number."""
    return (ids[:-1] * vocab_size + ids[1:]).bincount(minlength=vocab_size**2).view(vocab_size, vocab_size).double()


def counts_to_probs(counts: Float64[Tensor, 'V V'], smoothing) -> Float64[Tensor, 'V V']:
    """Return P(next | last): the share of each character among all that followed the last one.

    A pair that never occurred would get probability 0, and a text that contains it an infinite loss. So `smoothing` is
    added to every count. (In statistics: the posterior mean under the prior Dirichlet(smoothing).)
    """
    return (counts + smoothing) / (counts + smoothing).sum(1, keepdim=True)


def pair_loss(counts: Float64[Tensor, 'V V'], logprobs: Float[Tensor, 'V V']) -> Float64[Tensor, '']:
    """Return the mean of -ln P(next | last) over a text, for which the counts of its N pairs are enough.

    The table with the lowest loss holds the shares of the counts themselves. That loss is the conditional entropy,
    H(next | last) = - sum over a, b of count(a, b) / N * ln(count(a, b) / count(a)).
    """
    return -(counts * logprobs).sum() / counts.sum()


class Bigram(nn.Module):
    """Pairs as a model: a table of logits; softmax, e^logit divided by the row's sum, turns ln P back into P."""

    def __init__(self, table: Float[Tensor, 'V V']):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, idx: Int[Tensor, 'B T']) -> Float[Tensor, 'B T V']:  # so do all models here
        return self.table[idx]


def mean_loss(model, inputs: Int[Tensor, 'B T'], targets: Int[Tensor, 'B T'], reduction='mean') -> Float[Tensor, '']:
    """Return the mean (or sum) of -ln P(target) in nats; a target of -1 does not count."""
    inputs, targets = (ids.to(next(model.parameters()).device) for ids in (inputs, targets))
    logits = model(inputs).flatten(0, 1)  # (B * T, V)
    return nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction=reduction)


@torch.no_grad()
def evaluate_text(model, ids: Int[Tensor, ' T'], block_size):
    """Return the mean loss over a whole text; each character is predicted once, from those before it in its block."""
    padding = -(len(ids) - 1) % block_size  # missing from the last block
    inputs = nn.functional.pad(ids[:-1], (0, padding)).view(-1, block_size)
    targets = nn.functional.pad(ids[1:], (0, padding), value=-1).view(-1, block_size)
    batches = zip(inputs.split(256), targets.split(256))
    return sum(mean_loss(model, *batch, reduction='sum').item() for batch in batches) / (len(ids) - 1)


@torch.no_grad()
def sample_ids(model, start, length, block_size, seed, device=None):
    """Return `length` ids after the id `start`, each sampled from the model's probabilities (temperature 1)."""
    rng, ids = random.Random(seed), [start]
    for _ in range(length):
        logits = model(torch.tensor([ids[-block_size:]], device=device))[:, -1]  # (1, V)
        ids.append(sample(logits_to_logprobs(logits).cpu(), [rng.random()]).item())
    return ids[1:]


def train_model(model, loss_at, steps, rate):
    """Change a model's weights, step by step, in the direction in which the loss falls. All models learn this way.

    loss_at: takes the model and the step, returns the loss to lower. For pairs it covers the whole text, through its
    counts. The gradient of a row is then (probabilities - shares of the counts) times how common the row is, so it is 0
    when the learned table is the counted one. For other models the loss is that of a few blocks of the text.
    rate: of Adam (Kingma & Ba 2015), rising at first, then falling to nearly 0. Yields about 20 steps, for a look.
    """
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        if step % (steps // 20) == 0:
            yield step
        optimizer.param_groups[0]['lr'] = rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss_at(model, step).backward()  # the gradient: how the loss changes with each weight
        optimizer.step()  # a small step against it
    yield steps


class OneHead(nn.Module):
    """Self-attention (Vaswani et al. 2017, arXiv:1706.03762) and little else: each character gathers from the past.

    A character looks around with its query; each character up to it has a key to be found by and a value to give. The
    better query and key match, the more of the value is taken. Without attention it would know only the last character.
    """

    def __init__(self, vocab_size, block_size, n_embd):
        super().__init__()
        self.what = nn.Embedding(vocab_size, n_embd)  # a row for each character: what it is
        self.where = nn.Embedding(block_size, n_embd)  # a row for each position, so that near and far differ
        self.query, self.key, self.value = (nn.Linear(n_embd, n_embd, bias=False) for _ in range(3))
        self.read_out = nn.Linear(n_embd, vocab_size)

    def forward(self, idx: Int[Tensor, 'B T']) -> Float[Tensor, 'B T V']:
        x = self.what(idx) + self.where.weight[: idx.size(1)]  # (B, T, C)
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, C) each
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))  # (B, T, T): row looks at column; sums of C grow with √C
        future = torch.ones_like(scores[0], dtype=torch.bool).triu(1)  # above the diagonal: not yet known
        attention = scores.masked_fill(future, -math.inf).softmax(-1)  # each row sums to 1
        return self.read_out(x + attention @ v)  # from what the character is and what it gathered


class Transformer(GPT):
    """The project's GPT, returning the logits at all positions: heads side by side, then an MLP, layer upon layer."""

    def __init__(self, vocab_size, block_size, n_embd):
        super().__init__(GPTConfig(block_size, vocab_size, n_layer=2, n_head=4, n_embd=n_embd))
        for matrix in (parameter for parameter in self.parameters() if parameter.dim() == 2):
            matrix.data *= math.sqrt(768 / n_embd)  # GPT-2's initial weights suit a width of 768

    def forward(self, idx: Int[Tensor, 'B T']) -> Float[Tensor, 'B T V']:
        return self.logits(self.hidden(idx))


def main(settings):
    """Take the four steps, each with its losses and a sample; then go too far."""
    T, C, steps, seed = settings.block_size, settings.n_embd, settings.steps, settings.seed
    limits = {'block_size': 2, 'n_embd': 4, 'steps': 40, 'small_text': T + 2, 'seed': 0, 'smoothing': 1e-6}
    for name, least in limits.items():
        if getattr(settings, name) < least or (name == 'n_embd' and C % 4):
            raise UserError(f'--{name}={getattr(settings, name)}: at least {least}, and for --n_embd a multiple of 4')
    text = '\n\n\n'.join(read_files(input_paths(settings.input), '\n\n\n'))[: settings.max_characters]
    if len(text) < 1000 + 2 * T:
        raise UserError(f'the text has {len(text)} characters; it needs 1,000 and two blocks (--block_size={T})')
    tokenizer, V = CharTokenizer(sorted(set(text))), len(set(text))
    own, held_out = torch.tensor(tokenizer.encode(text)).split([len(text) - len(text) // 10, len(text) // 10])
    torch.set_num_threads(1)  # faster for models this small
    torch.manual_seed(seed)
    curves, device = {}, pick_device(settings.device)  # curves: held-out loss by step

    def show(name, model, own=own):
        known, new = (evaluate_text(model, ids, T) for ids in (own, held_out))
        print(f'\n{name}: {sum(map(torch.numel, model.parameters())):,} parameters')
        print(f'{known:.4f} nats per character on its own text, {new:.4f} held out ({new / math.log(2):.3f} bits)')
        sample = tokenizer.pieces(sample_ids(model, held_out[0].item(), 240, T, seed, device))
        print(textwrap.indent(textwrap.fill(''.join(sample).replace('·', ' '), 96), '    '))

    def blocks(ids):  # the loss on eight of them, different at each step, chosen as in train.py
        return lambda model, step: mean_loss(model, *training_batch(TextBlocks(ids.numpy(), T), 8, step, seed))

    def learn(name, model, loss_at, rate):
        curves[name] = [(step, evaluate_text(model, held_out, T)) for step in train_model(model, loss_at, steps, rate)]
        show(name, model)

    counts = count_pairs(own, V)
    smoothed, table = counts + settings.smoothing, counts_to_probs(counts, settings.smoothing)
    counted, learned = (Bigram(at_first.float()).to(device) for at_first in (table.log(), torch.zeros(V, V)))
    entropy = pair_loss(counts, counts_to_probs(counts, 1e-12).log())  # the lowest possible loss of pairs
    print(f'{len(own):,} characters to learn from, H(next | last) = {entropy:.4f} nats; {len(held_out):,} held out')
    show('Pairs counted', counted)
    learn('Pairs learned', learned, lambda model, _: pair_loss(smoothed, model.table.log_softmax(1).cpu()), 0.2)
    curves['Pairs counted'] = [(step, evaluate_text(counted, held_out, T)) for step in (0, steps)]
    learn('One head', OneHead(V, T, C).to(device), blocks(own), 0.01)
    learn('Small transformer', Transformer(V, T, C).to(device), blocks(own), 0.01)

    short, large = own[: settings.small_text], Transformer(V, T, 2 * C).to(device)
    overfitting = {'its own text': [], 'held-out text': []}
    for step in train_model(large, blocks(short), steps // 2, 0.005):
        for curve, ids in zip(overfitting.values(), (short, held_out)):
            curve.append((step, evaluate_text(large, ids, T)))
        if curve[-1] == min(curve, key=lambda point: point[1]):
            stop, best = step, {name: weight.clone() for name, weight in large.state_dict().items()}
    show(f'Large transformer, step {step}', large, short)
    large.load_state_dict(best)
    show(f'The same at step {stop}, where to stop', large, short)
    common = own.bincount().topk(min(30, V)).indices.sort().values  # the most frequent characters
    draw_pictures(settings.plot_dir, curves, overfitting, stop, table[common][:, common], tokenizer.pieces(common))


def draw_pictures(folder, curves, overfitting, stop, table: Float64[Tensor, 'n n'], pieces):
    """Draw bigram.png, the four models' losses and the table of pairs; and bigram-overfitting.png, where to stop."""
    allow_missing_glyphs()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 7), width_ratios=(3, 4), layout='constrained')
    other, axes = pyplot.subplots(figsize=(8, 4.5), layout='constrained')
    axes.axvline(stop, color=MARK, linestyle='--', label=f'stop here, at step {stop}')
    for panel, lines in ((left, curves), (axes, overfitting)):
        for (name, points), colour in zip(lines.items(), (BAR, MARK, BLUE, ORANGE)[-len(lines) :]):
            panel.plot(*zip(*points), 'o-', color=colour, label=name)
        panel.set(xlabel='training step', ylabel='loss, nats per character')
        panel.legend(frameon=False)
        hide_spines(panel, 'top', 'right')
    left.set(title='loss on the held-out text', ylim=(None, 1.2 * curves['Pairs counted'][0][1]))
    right.imshow(table.sqrt().numpy(), cmap='Blues', vmax=1.6)  # the square root, or all but a few would look white
    for last, after in (table > 0.095).nonzero().tolist():
        right.text(after, last, f'{100 * table[last, after]:.0f}', ha='center', va='center', fontsize=8)
    right.set_xticks(range(len(pieces)), pieces, parse_math=False)
    right.set_yticks(range(len(pieces)), pieces, parse_math=False)
    right.set(xlabel='next (· is a space)', ylabel='last', title='model probability P(next | last), counted, in %')
    save_figure(figure, f'{folder}/bigram.png')
    save_figure(other, f'{folder}/bigram-overfitting.png')
    pyplot.close('all')


if __name__ == '__main__':
    configurator.run(main, Settings)
