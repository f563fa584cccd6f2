"""Self-attention with weights set by hand: two languages that need it, first written without training, then learned.

The alphabet is a to z, 0 and 1; y is a consonant. Each language is a rule for the next symbol:

    problem 1: letters only; a vowel is likelier, the larger the share of consonants among all symbols so far
    problem 2: after a vowel comes 1 if there has been a consonant since the start, else 0; otherwise comes any letter

The last symbol is not enough; attention looks back (Vaswani et al. 2017, arXiv:1706.03762). The model is as small as it
gets: one layer, one head, one number for each query, key and value; no positions, layer normalisation or MLP.

    python -m lessons.attention_by_hand --text=o0a0mythe1

What to look for: a few numbers are enough, and exact; in the picture, queries (left) and keys (below) make the map, and
the map and the values make the next symbol; training, which is told neither what a vowel is nor what is impossible,
finds out; and where it does not matter, the learned model looks anywhere: with another --seed, somewhere else.
"""

import math
import random
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

import configurator
from common.errors import UserError
from lm.hardware import pick_device
from pictures.style import BAR, CHOSEN, GREY, MARK, save_figure

ALPHABET, VOWELS, CONSONANTS = 'abcdefghijklmnopqrstuvwxyz01', 'aeiou', 'bcdfghjklmnpqrstvwxyz'
START = '▷'  # comes before every sequence
READ_GROUPS, NEXT_GROUPS = (VOWELS, CONSONANTS, '01', START), (VOWELS, CONSONANTS, '0', '1')
BIG = 1000.0  # e^-1000 is less than the smallest number above 0 that a computer has, 5e-324, so softmax makes it 0
float64 = partial(torch.tensor, dtype=torch.float64)  # 16 digits, to show that the weights are exact


def vowels_by_share(text):
    """Problem 1: return the probability of each symbol of the alphabet after a text.

    P(vowel) = sigmoid(12 (share - 1/2)): 5 % if a quarter of the symbols so far are consonants, 50 % at a half and at
    the start, 95 % at three quarters. The 5 vowels are equally likely, and so are the 21 consonants; digits have 0.
    """
    share = sum(symbol in CONSONANTS for symbol in text) / len(text) if text else 1 / 2
    vowel = 1 / (1 + math.exp(-12 * (share - 1 / 2)))
    return [vowel / 5 if symbol in VOWELS else (1 - vowel) / 21 * symbol.isalpha() for symbol in ALPHABET]


def digits_by_memory(text):
    """Problem 2: return the probability of each symbol of the alphabet after a text."""
    if text and text[-1] in VOWELS:
        digit = '1' if any(symbol in CONSONANTS for symbol in text) else '0'
        return [float(symbol == digit) for symbol in ALPHABET]
    return [1 / 26 if symbol.isalpha() else 0.0 for symbol in ALPHABET]


def sample_texts(rule, number, length, rng):
    """Return `number` texts of `length` symbols, sampled one by one with the rule's probabilities."""
    texts = [''] * number
    for _ in range(length):
        texts = [text + rng.choices(ALPHABET, rule(text))[0] for text in texts]
    return texts


def compute_rule_probs(rule, texts) -> Float[Tensor, 'N T 28']:
    """Return the rule's probabilities at the start of each of N texts, of T - 1 symbols, and after each symbol."""
    return float64([[rule(text[:place]) for place in range(len(text) + 1)] for text in texts])


def attend(
    queries: Float[Tensor, 'N T hs'], keys: Float[Tensor, 'N T hs'], values: Float[Tensor, 'N T hs']
) -> tuple[Float[Tensor, 'N T hs'], Float[Tensor, 'N T T']]:
    """Let every symbol gather values from itself and the symbols before it.

    The larger the product of one symbol's query and another's key, the more attention the first pays to the second.
    Returns the average of the values, weighted by attention, and the attention of each symbol (row) to each (column).
    """
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.size(-1))  # (N, T, T)
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)  # above the diagonal: not written yet
    attention = scores.masked_fill(future, -math.inf).softmax(-1)  # e^score, divided by the row's sum of these
    return attention @ values, attention


class Weights(NamedTuple):
    """All the weights of the model. A symbol is a vector of C = 5 numbers; its query, key and value have hs = 1."""

    embed: Float[Tensor, '29 C']  # the vector of each symbol of the alphabet, and of ▷
    W_q: Float[Tensor, 'C hs']  # what a symbol looks for
    W_k: Float[Tensor, 'C hs']  # what other symbols find it by
    W_v: Float[Tensor, 'C hs']  # what it tells those that look at it
    W_o: Float[Tensor, 'hs C']  # where in the vector the gathered value goes
    unembed: Float[Tensor, 'C 28']  # from the vector to a logit for each possible next symbol


def encode_texts(texts) -> Int[Tensor, 'N T']:
    """Return N texts of T - 1 symbols as ids, with ▷ before each."""
    return torch.tensor([[(ALPHABET + START).index(symbol) for symbol in START + text] for text in texts])


def forward(weights, ids: Int[Tensor, 'N T']) -> tuple[Float[Tensor, 'N T 28'], Float[Tensor, 'N T T']]:
    """Return the logprobs of the symbol after each id, and the attention from each symbol to each."""
    x = weights.embed[ids]  # (N, T, C)
    gathered, attention = attend(x @ weights.W_q, x @ weights.W_k, x @ weights.W_v)
    x = x + gathered @ weights.W_o  # added, so a symbol does not forget what it is
    return (x @ weights.unembed).log_softmax(-1), attention


def find_groups(symbols, groups) -> Int[Tensor, ' n']:
    """Return the number of the group that each of n symbols is in."""
    return torch.tensor([[symbol in group for group in groups].index(True) for symbol in symbols])


def make_weights(W_k, W_v, unembed):
    """Return weights for vectors in which four numbers hold the group of a symbol, and the fifth what it gathers."""
    return Weights(
        embed=torch.eye(5).double()[find_groups(ALPHABET + START, READ_GROUPS)],  # 0 1 0 0 0 for a consonant
        W_q=float64([[1], [1], [1], [1], [0]]),  # every query is 1, so the scores are the keys
        W_k=float64(W_k)[:, None],
        W_v=float64(W_v)[:, None],
        W_o=float64([[0, 0, 0, 0, 1]]),
        unembed=float64(unembed)[find_groups(ALPHABET, NEXT_GROUPS)].T,  # rows: for a vowel, a consonant, 0, 1
    )


# Problem 1 needs the share of consonants. If keys are equal, attention is equal too, and the average of values that are
# 1 for consonants and 0 for others is the share. ▷ is not part of the text, so its key is low: it gets attention only
# when it is alone, and tells 1/2. A difference of logits is the log of a ratio of probabilities. That of a vowel to a
# consonant is P/5 to (1 - P)/21, and its log is a straight line: log 21/5 - 6 + 12 share. Digits are impossible.
LINE = math.log(21 / 5) - 6  # whatever group the last symbol is in
SHARE = make_weights(
    W_k=(0, 0, 0, -BIG, 0),  # for vowel, consonant, digit, ▷, and the gathered value
    W_v=(0, 1, 0, 1 / 2, 0),
    unembed=((LINE, LINE, LINE, LINE, 12), (0, 0, 0, 0, 0), *2 * [(-BIG, -BIG, -BIG, -BIG, 0)]),
)

# Problem 2 needs to know whether there has been a consonant. Consonants have the highest key: if there are any, they
# get all attention, and the average of their values is 1. If there are none, ▷ gets it, and tells 0. Possible symbols
# should have logit 0, all others -1000 or less: after a vowel that gathers 1, 0 gets 0 - 1000 and 1 gets -1000 + 1000;
# after a consonant, 0 gets -1000 - 1000 and 1 gets -2000 + 1000; after a symbol that gathers 0, the second number is 0.
MEMORY = make_weights(
    W_k=(-BIG, BIG, -BIG, 0, 0),
    W_v=(0, 1, 0, 0, 0),
    unembed=(*2 * [(-BIG, 0, 0, 0, 0)], (0, -BIG, -BIG, -BIG, -BIG), (-BIG, -2 * BIG, -2 * BIG, -2 * BIG, BIG)),
)


def mean_loss(logprobs: Float[Tensor, 'N T 28'], ids: Int[Tensor, 'N T']) -> Float[Tensor, '']:
    """Return the mean of -log probability, in nats per symbol, of each id after the first, given those before it."""
    return -logprobs[:, :-1].gather(-1, ids[:, 1:, None]).mean()


def train_weights(texts, steps, seed, starts=16, device='cpu'):
    """Return weights of the same shapes, trained to make texts likely: the best of several starts, run side by side."""
    rng, data = torch.Generator().manual_seed(seed), encode_texts(texts).to(device)
    weights = Weights(*((torch.randn(starts, *W.shape, generator=rng) / 2).to(device).requires_grad_() for W in SHARE))
    losses = torch.vmap(lambda weights, ids: mean_loss(forward(weights, ids)[0], ids), in_dims=(0, None))
    optimizer = torch.optim.AdamW(weights, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)  # up to 0.1 and down to almost 0
    for _ in range(steps):
        optimizer.zero_grad()
        losses(weights, data[torch.randint(len(data), (64,), generator=rng).to(device)]).sum().backward()
        optimizer.step()
        schedule.step()
    best = losses(weights, data[:1000]).argmin()  # some starts never learn to look back
    return Weights(*(weight[best].detach().cpu().double() for weight in weights))


def print_comparison(rule, models, texts):
    """Print how far models are from the best possible loss, what they give to impossible symbols, where they look."""
    ids, probs = encode_texts(texts), compute_rule_probs(rule, texts)
    best, groups = mean_loss(probs.log(), ids), find_groups(ALPHABET + START, READ_GROUPS)[ids]  # groups: (N, T)
    after_group = torch.stack([probs[groups == group].mean(0) for group in range(4)])  # (4, 28); nan if there is none
    alone = mean_loss(after_group[groups].log(), ids)
    print(f'  best possible loss {best:.4f} nats per symbol; from the last symbol alone {alone - best:+z.4f}')
    for name, weights in zip(('by hand', 'learned'), models):
        logprobs, attention = forward(weights, ids)
        impossible = (logprobs.exp() * (probs == 0)).sum(-1).mean()
        print(f'  {name} {mean_loss(logprobs, ids) - best:+z.4f}; impossible symbols together get {impossible:.1g}')
        paid = (attention * (groups == 1)[:, None]).sum(-1)  # (N, T) attention to all consonants together
        shares = ', '.join(f'{paid[groups == group].mean():.0%}' for group in groups.unique()[:-1])  # not of ▷
        print(f'    vowels, consonants (and digits, if any) pay {shares} attention to consonants')


def draw_attention(path, models):
    """Draw how models read: queries, keys, values, attention, next symbols. models: {name: (weights, text)}, four."""
    figure = Figure(figsize=(15, 15.5), layout='constrained')
    figure.suptitle('Rows look at columns; darker is more. Vowels: orange, consonants: blue, digits: black, ▷: grey')
    for part, (name, (weights, text)) in zip(figure.subfigures(2, 2, wspace=0.03, hspace=0.03).flat, models.items()):
        ids, at, ends = encode_texts([text]), range(len(text) + 1), (-0.5, len(text) + 0.5)
        colours = [(CHOSEN, BAR, MARK, GREY)[group] for group in find_groups(START + text, READ_GROUPS)]
        logprobs, attention = forward(weights, ids)
        probs = logprobs[0].exp() @ torch.eye(4).double()[find_groups(ALPHABET, NEXT_GROUPS)]  # (T, 4)
        axes = part.subplot_mosaic('QLN;.K.;.V.', width_ratios=(3, 10, 5), height_ratios=(5, 1, 1))
        for panel, W in zip('QKV', weights[1:4]):
            draw_bars = axes[panel].barh if panel == 'Q' else axes[panel].bar
            draw_bars(at, (weights.embed[ids[0]] @ W[:, 0]).tolist(), color=colours)
        for panel, table in (('L', attention[0]), ('N', probs)):
            axes[panel].imshow(table.sqrt().numpy(), cmap='Blues', vmin=0, vmax=1.5, aspect='auto')
        for y, x in product(at, range(4)):
            axes['N'].text(x, y, f'{probs[y, x]:.2f}' if probs[y, x] else '0', ha='center', va='center', fontsize=8)
        for panel in 'QLN':
            axes[panel].set(yticks=at, yticklabels=START + text, ylim=ends[::-1])
        for panel in 'LKV':
            axes[panel].set(xticks=at, xticklabels=START + text, xlim=ends)
        axes['N'].set(xticks=range(4), xticklabels=('vow.', 'cons.', '0', '1'), xlabel='next symbol (0: impossible)')
        for panel, title in zip('QLNKV', ('query', f'{name}: attention', 'model probability', 'key', 'value')):
            axes[panel].set_title(title, loc='left', fontsize=11)
    save_figure(figure, path)


@dataclass
class Settings:
    """Write two languages with attention set by hand, and learn them."""

    text: str = 'o0a0mythe1so1u1'  # the text in the picture, of a to z, 0 and 1; of which problem 1 reads the letters
    sequences: int = 8000  # to learn from; a quarter as many others measure the loss
    length: int = 16  # symbols in each sequence
    steps: int = 600  # training steps
    seed: int = 1337  # decides the sequences and the initial weights
    device: str | None = None  # where to learn: cpu, gpu, cuda, cuda:1, mps; None for the best available
    plot_dir: str = 'results/lessons'  # folder for attention_by_hand.png


def main(settings):
    """Check the weights set by hand on all short texts, learn others, compare."""
    if settings.sequences < 4 or settings.length < 1 or settings.steps < 10:
        raise UserError('--sequences must be at least 4, --length 1 and --steps 10')
    letters, device = settings.text.replace('0', '').replace('1', ''), pick_device(settings.device)
    if len(settings.text) > 30 or not letters or not set(settings.text) <= set(ALPHABET):
        raise UserError(f'--text={settings.text}: it must be up to 30 of a to z, 0 and 1, with at least one letter')
    torch.set_num_threads(1)  # faster for tensors this small
    models, every = {}, [''.join(symbols) for symbols in product(ALPHABET, repeat=3)]
    for n, rule, by_hand, text in ((1, vowels_by_share, SHARE, letters), (2, digits_by_memory, MEMORY, settings.text)):
        rng = random.Random(settings.seed)
        texts = sample_texts(rule, settings.sequences, settings.length, rng)
        print(f'problem {n}: {" ".join(texts[:4])} ...')
        error = (forward(by_hand, encode_texts(every))[0].exp() - compute_rule_probs(rule, every)).abs().max()
        print(f'  by hand, the largest error of a model probability in all texts of 3 symbols is {error:.0e}')
        learned = train_weights(texts, settings.steps, settings.seed, device=device)
        print_comparison(rule, (by_hand, learned), sample_texts(rule, settings.sequences // 4, settings.length, rng))
        models |= {f'problem {n}, by hand': (by_hand, text), f'problem {n}, learned': (learned, text)}
    draw_attention(f'{settings.plot_dir}/attention_by_hand.png', models)


if __name__ == '__main__':
    configurator.run(main, Settings)
