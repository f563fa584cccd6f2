"""The road to a language model: guess the next character from the last one, then from all before it.

A language model gives each character a probability of coming next. Its loss is the mean of -ln P(the one that came), in
nats: 0 if it knew each, ln 75 = 4.32 if 75 were equally likely to it. Divided by ln 2, it is the bits that a character
takes when the model compresses the text (Shannon 1948). Five models learn from a text; its last tenth is held out:

  1. pairs counted: what came after this character, and how often? There is nothing to train;
  2. pairs learned: the same table, found by going downhill on the loss, as everything after it will be;
  3. one head of self-attention: which of the characters before are of use now?
  4. a small transformer, several heads and layers: it is model.py's GPT, the one that train.py trains.
  5. too far: a large transformer on a small text learns what holds for any text, and then this one by heart.

    python -m lessons.bigram            half a minute; --steps=5000 goes further, --input=FILE reads another text

What to look for: counted and learned pairs write the same sample. From model to model the samples look more like words;
the large model's still do so at the very end. But are the words its own? Its loss on held-out text says when to stop.
"""

import copy
import math
import random
import textwrap
from dataclasses import dataclass

import torch
from matplotlib import pyplot
from torch import nn

import configurator
from common.errors import UserError
from lm.tokenizer import CharTokenizer
from model import GPT, GPTConfig, draw, logits_to_logprobs
from pictures.style import BAR, FELL, MARK, ROSE, allow_missing_glyphs, hide_spines, save_figure
from texts.files import input_paths, read_files
from training.batches import training_batch


@dataclass
class Settings:
    """Go from counting pairs of characters to a small transformer, and too far with a large one."""

    input: str = 'data/childrens_stories/childrens_stories.txt'  # the text to learn from (UTF-8)
    max_characters: int = 100_000  # so many of it are read
    smoothing: float = 0.1  # added to the count of each pair
    block_size: int = 64  # attention sees so many characters, the last one included
    n_embd: int = 64  # numbers that stand for a character inside a model with attention; twice as many in the large one
    steps: int = 1000  # training steps of each model; half as many of the large one
    small_text: int = 4000  # characters that the large one learns from
    seed: int = 1337  # decides first weights, order of training and what is drawn
    plot_dir: str = 'results/lessons'  # where bigram.png and bigram-overfitting.png go


def count_pairs(ids, vocab_size):
    """Return how often each character (row) was followed by each (column): (V, V)."""
    pairs = ids[:-1] * vocab_size + ids[1:]  # a number of its own for each pair
    return pairs.bincount(minlength=vocab_size**2).view(vocab_size, vocab_size).double()


def shares(counts, smoothing):
    """Return P(next | last), (V, V): of all that followed a character, the share of each.

    A pair that never came would get 0, and a text that holds it an infinite loss. So each pair is taken to have come
    `smoothing` times before the text began. (In statistics: the posterior mean under the prior Dirichlet(smoothing).)
    """
    return (counts + smoothing) / (counts + smoothing).sum(1, keepdim=True)


def loss_of_pairs(counts, logprobs):
    """Return the mean of -ln P(next | last) over a text, of which the counts of its N pairs tell enough.

    No table has a lower loss than the shares of the counts themselves. That lowest one is called conditional entropy,
    H(next | last) = - sum over a, b of count(a, b) / N * ln(count(a, b) / count(a)).
    """
    return -(counts * logprobs).sum() / counts.sum()


class Bigram(nn.Module):
    """Pairs as a model: a table of logits; softmax, e^logit over the sum of its row, turns ln P back into P."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, idx):
        return self.table[idx]  # (B, T) ids to (B, T, V) logits; so do all models here


def mean_loss(model, inputs, targets, reduction='mean'):
    """Return the mean (or sum) of -ln P(target) in nats; inputs, targets: (B, T); a target of -1 does not count."""
    logits = model(inputs).flatten(0, 1)  # (B * T, V)
    return nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction=reduction)


@torch.no_grad()
def evaluate(model, ids, block_size):
    """Return the mean loss over a whole text; each character is predicted once, from those before it in its block."""
    lacking = -(len(ids) - 1) % block_size  # in the last block
    inputs = nn.functional.pad(ids[:-1], (0, lacking)).view(-1, block_size)
    targets = nn.functional.pad(ids[1:], (0, lacking), value=-1).view(-1, block_size)
    parts = zip(inputs.split(256), targets.split(256))
    return sum(mean_loss(model, *part, reduction='sum').item() for part in parts) / (len(ids) - 1)


@torch.no_grad()
def write(model, start, length, block_size, seed):
    """Return `length` ids after the id `start`, each drawn from the model's probabilities (temperature 1)."""
    rng, ids = random.Random(seed), [start]
    for _ in range(length):
        logits = model(torch.tensor([ids[-block_size:]]))[:, -1]  # (1, V)
        ids.append(draw(logits_to_logprobs(logits), [rng.random()]).item())
    return ids[1:]


def train(model, loss_at, steps, rate):
    """Change a model's numbers, step by step, in the direction in which the loss falls. All models learn through this.

    loss_at: takes the model and the step, returns the loss to lower. For pairs it is that of the whole text, through
    its counts; the gradient in a row is then (probabilities - shares of the counts) times how common the row is, so
    there is nothing left to learn where learned is counted. For other models it is that of a few blocks of the text.
    rate: of Adam (Kingma & Ba 2015), less at first, nearly 0 in the end. Yields some of the steps: time to look.
    """
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        if step % (steps // 20) == 0:
            yield step
        optimizer.param_groups[0]['lr'] = rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss_at(model, step).backward()  # the gradient: how much the loss grows with each number
        optimizer.step()  # a small step against it
    yield steps


class OneHead(nn.Module):
    """Self-attention (Vaswani et al. 2017, arXiv:1706.03762) and little else: each character gathers from the past.

    It asks with its query; each character up to it answers with its key, and gives its value. Where query and key point
    the same way, much is taken. If nothing were gathered, it would know the last character only, as pairs do.
    """

    def __init__(self, vocab_size, block_size, n_embd):
        super().__init__()
        self.what = nn.Embedding(vocab_size, n_embd)  # a table, a row for each character: what it is
        self.where = nn.Embedding(block_size, n_embd)  # a row for each place: where, or near would be the same as far
        self.query, self.key, self.value = (nn.Linear(n_embd, n_embd, bias=False) for _ in range(3))
        self.read_out = nn.Linear(n_embd, vocab_size)

    def forward(self, idx):
        T = idx.size(1)
        x = self.what(idx) + self.where.weight[:T]  # (B, T, C)
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, C) each
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))  # (B, T, T): row asks column; sums of C grow with √C
        future = torch.ones(T, T, dtype=torch.bool).triu(1)  # above the diagonal is what is to be guessed
        weights = scores.masked_fill(future, -math.inf).softmax(-1)  # each row adds up to 1
        return self.read_out(x + weights @ v)  # from what it is and what it gathered, (B, T, V)


class Transformer(GPT):
    """The project's GPT, giving the logits of all positions: heads side by side, then an MLP, layer upon layer."""

    def __init__(self, vocab_size, block_size, n_embd):
        super().__init__(GPTConfig(block_size, vocab_size, n_layer=2, n_head=4, n_embd=n_embd))
        for matrix in (parameter for parameter in self.parameters() if parameter.dim() == 2):
            matrix.data *= math.sqrt(768 / n_embd)  # GPT-2's first weights are made for a width of 768

    def forward(self, idx):
        return self.logits(self.hidden(idx))


def main(settings):
    """Take the four steps, each with its losses and a sample; then go too far."""
    T, C, steps, seed = settings.block_size, settings.n_embd, settings.steps, settings.seed
    limits = {'block_size': 2, 'n_embd': 4, 'steps': 40, 'small_text': T + 2, 'seed': 0, 'smoothing': 1e-6}
    for name, least in limits.items():
        if getattr(settings, name) < least or (name == 'n_embd' and C % 4):
            raise UserError(f'--{name}={getattr(settings, name)}: it is {least} or more, and --n_embd a multiple of 4')
    text = '\n\n\n'.join(read_files(input_paths(settings.input), '\n\n\n'))[: settings.max_characters]
    if len(text) < 1000 + 2 * T:
        raise UserError(f'the text has {len(text)} characters; 1,000 and two blocks (--block_size={T}) are needed')
    tokenizer = CharTokenizer(sorted(set(text)))
    V = tokenizer.vocab_size
    own, held_out = torch.tensor(tokenizer.encode(text)).split([len(text) - len(text) // 10, len(text) // 10])
    torch.set_num_threads(1)  # so small are these models that to share the work out is more work
    torch.manual_seed(seed)
    curves = {}  # of the loss on the held-out text, by step

    def show(name, model, own=own):
        known, new = (evaluate(model, ids, T) for ids in (own, held_out))
        print(f'\n{name}: {sum(map(torch.numel, model.parameters())):,} numbers')
        print(f'{known:.4f} nats a character of its own text, {new:.4f} held out ({new / math.log(2):.3f} bits)')
        sample = tokenizer.pieces(write(model, held_out[0].item(), 240, T, seed))
        print(textwrap.indent(textwrap.fill(''.join(sample).replace('·', ' '), 96), '    '))

    def blocks(ids):  # the loss on eight of them, others at each step, taken as train.py takes them
        return lambda model, step: mean_loss(model, *training_batch(ids.numpy(), T, 8, step, seed))

    def learn(name, model, loss_at, rate):
        curves[name] = [(step, evaluate(model, held_out, T)) for step in train(model, loss_at, steps, rate)]
        show(name, model)

    counts = count_pairs(own, V)
    smoothed, table = counts + settings.smoothing, shares(counts, settings.smoothing)
    counted, learned = Bigram(table.log().float()), Bigram(torch.zeros(V, V))  # at first, all are equally likely
    entropy = loss_of_pairs(counts, shares(counts, 1e-12).log())
    print(f'{len(own):,} characters to learn from, H(next | last) = {entropy:.4f} nats; {len(held_out):,} held out')
    show('Pairs counted', counted)
    learn('Pairs learned', learned, lambda model, _: loss_of_pairs(smoothed, model.table.log_softmax(1)), 0.2)
    curves['Pairs counted'] = [(step, evaluate(counted, held_out, T)) for step in (0, steps)]
    learn('One head', OneHead(V, T, C), blocks(own), 0.01)
    learn('Small transformer', Transformer(V, T, C), blocks(own), 0.01)

    few, large = own[: settings.small_text], Transformer(V, T, 2 * C)
    parting = {'its own text': [], 'held-out text': []}
    for step in train(large, blocks(few), steps // 2, 0.005):
        for curve, ids in zip(parting.values(), (few, held_out)):
            curve.append((step, evaluate(large, ids, T)))
        if curve[-1] == min(curve, key=lambda point: point[1]):
            stop, best = step, copy.deepcopy(large.state_dict())
    show(f'Large transformer, step {step}', large, few)
    large.load_state_dict(best)
    show(f'The same at step {stop}, where to stop', large, few)
    usual = own.bincount().topk(min(30, V)).indices.sort().values  # the characters that come most often
    draw_pictures(settings.plot_dir, curves, parting, stop, table[usual][:, usual], tokenizer.pieces(usual))


def draw_pictures(folder, curves, parting, stop, table, pieces):
    """Draw bigram.png, the four models' losses and the table of pairs; and bigram-overfitting.png, where to stop."""
    allow_missing_glyphs()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 7), width_ratios=(3, 4), layout='constrained')
    other, axes = pyplot.subplots(figsize=(8, 4.5), layout='constrained')
    axes.axvline(stop, color=MARK, linestyle='--', label=f'stop here, at step {stop}')
    for panel, lines in ((left, curves), (axes, parting)):
        for (name, points), colour in zip(lines.items(), (BAR, MARK, ROSE, FELL)[-len(lines) :]):
            panel.plot(*zip(*points), 'o-', color=colour, label=name)
        panel.set(xlabel='training step', ylabel='loss, nats a character')
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
