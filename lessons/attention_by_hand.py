"""Self-attention with weights set by hand: two languages that need it, spoken without training; then learned.

The alphabet is a to z, 0 and 1; y is a consonant. Each language is a rule for the next symbol:

    problem 1: a vowel is the likelier, the larger the share of consonants among all symbols so far
    problem 2: after a vowel, the digit 1 if a consonant has appeared since the sequence began, else 0;
               after a consonant, after a digit, and at the beginning, any letter

The last symbol does not tell enough: one has to look back, and attention does (Vaswani et al. 2017, arXiv:1706.03762).
The model is as small as attention gets: one layer, one head, a single number for each query, key and value, and no
positions, layer normalisation or MLP, which model.py's GPT has.

    python -m lessons.attention_by_hand --text=o0a0mythe1

What to look for: that few numbers suffice, and are exact; in the picture, how queries (left) and keys (below) make the
map, and map and values what is said next; that training, which is not told what a vowel is, finds out; and where the
learned model looks when it does not matter what it sees there: with another --seed, somewhere else.
"""

import math
import random
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

import configurator
from common.errors import UserError
from pictures.style import BAR, CHOSEN, GIVEN_UP, MARK, save_figure

ALPHABET, VOWELS, CONSONANTS = 'abcdefghijklmnopqrstuvwxyz01', 'aeiou', 'bcdfghjklmnpqrstvwxyz'
START = '▷'  # stands before every sequence
KINDS, NEXT = (VOWELS, CONSONANTS, '01', START), (VOWELS, CONSONANTS, '0', '1')  # of what is read, what may come next
BIG = 50.0  # a probability of e^-50, that is 2e-22, is none
numbers = partial(torch.tensor, dtype=torch.float64)  # 16 digits, to see that what is exact is exact


def vowels_by_share(text):
    """Problem 1: return the probability of each symbol of the alphabet after a text.

    P(vowel) = sigmoid(12 (share - 1/2)): 5 % where a quarter of the symbols so far are consonants, 50 % at a half, and
    at the beginning, 95 % at three quarters. All vowels are equally likely, and so are the 23 other symbols.
    """
    share = sum(symbol in CONSONANTS for symbol in text) / len(text) if text else 1 / 2
    vowel = 1 / (1 + math.exp(-12 * (share - 1 / 2)))
    return [vowel / 5 if symbol in VOWELS else (1 - vowel) / 23 for symbol in ALPHABET]


def digits_by_memory(text):
    """Problem 2: return the probability of each symbol of the alphabet after a text."""
    if text and text[-1] in VOWELS:
        digit = '1' if any(symbol in CONSONANTS for symbol in text) else '0'
        return [float(symbol == digit) for symbol in ALPHABET]
    return [1 / 26 if symbol.isalpha() else 0.0 for symbol in ALPHABET]


def generate(rule, number, length, rng):
    """Return so many sequences of a length, drawn symbol by symbol with the rule's probabilities."""
    texts = [''] * number
    for _ in range(length):
        texts = [text + rng.choices(ALPHABET, rule(text))[0] for text in texts]
    return texts


def probs_of_rule(rule, texts):
    """Return what the rule says before and after each of T symbols in N texts: (N, T + 1, 28)."""
    return numbers([[rule(text[:place]) for place in range(len(text) + 1)] for text in texts])


def attend(queries, keys, values):
    """Let every symbol gather values from itself and the symbols before it.

    queries, keys, values: (N, T, hs). The larger the product of one's query and another's key, the larger its share of
    attention. Returns the average of the values by these shares, (N, T, hs), and the shares, who at whom, (N, T, T).
    """
    T, hs = queries.shape[-2:]
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(hs)  # (N, T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)  # above the diagonal: not said yet
    shares = scores.masked_fill(future, -math.inf).softmax(-1)  # e^score, divided by the sum of these in its row
    return shares @ values, shares


class Weights(NamedTuple):
    """All that the model knows. A symbol is a vector of C = 5 numbers; its query, key and value are hs = 1 number."""

    embed: torch.Tensor  # (29, C) the vector of each symbol of the alphabet, and of ▷
    W_q: torch.Tensor  # (C, hs) what a symbol looks for
    W_k: torch.Tensor  # (C, hs) what it is found by
    W_v: torch.Tensor  # (C, hs) what it tells those who look at it
    W_o: torch.Tensor  # (hs, C) where in the vector it goes what one is told
    unembed: torch.Tensor  # (C, 28) from the vector to a logit for each symbol that may come next


def encode(texts):
    """Return texts of T symbols as ids with ▷ before them, (N, T + 1)."""
    return torch.tensor([[(ALPHABET + START).index(symbol) for symbol in START + text] for text in texts])


def forward(weights, ids):
    """Return logprobs of what comes after each of ids (N, T), (N, T, 28), and the shares of attention, (N, T, T)."""
    x = weights.embed[ids]  # (N, T, C)
    told, shares = attend(x @ weights.W_q, x @ weights.W_k, x @ weights.W_v)
    x = x + told @ weights.W_o  # added: a symbol does not forget what it is
    return (x @ weights.unembed).log_softmax(-1), shares


def places(symbols, groups):
    """Return for each symbol which of the groups it is in."""
    return torch.tensor([[symbol in group for group in groups].index(True) for symbol in symbols])


def by_hand(W_k, W_v, unembed):
    """Return weights for vectors of which four numbers say the kind of a symbol, and the fifth what it is told."""
    return Weights(
        embed=torch.eye(5).double()[places(ALPHABET + START, KINDS)],  # such as 0 1 0 0 0 for a consonant
        W_q=numbers([[1], [1], [1], [1], [0]]),  # all ask alike: the query is 1, so the scores are the keys
        W_k=numbers(W_k)[:, None],
        W_v=numbers(W_v)[:, None],
        W_o=numbers([[0, 0, 0, 0, 1]]),
        unembed=numbers(unembed)[places(ALPHABET, NEXT)].T,  # one row for all vowels, one for all consonants
    )


# Problem 1 needs the share of consonants. Where keys are equal, one looks at all symbols alike, and the average of
# values that are 1 for consonants and 0 for others is their share. ▷ is not part of the text, so it has a low key: it
# is seen where there is nothing else, and tells 1/2. A difference of logits is the log of a ratio of probabilities. Any
# vowel to any other symbol is as P/5 to (1 - P)/23, and the log of that is a straight line: log 23/5 - 6 + 12 share.
LINE = math.log(23 / 5) - 6  # whatever kind the last symbol is of
SHARE = by_hand(
    # kind:  vowel consonant digit ▷, and what it is told
    W_k=(0, 0, 0, -BIG, 0),
    W_v=(0, 1, 0, 1 / 2, 0),
    unembed=((LINE, LINE, LINE, LINE, 12), *3 * [(0, 0, 0, 0, 0)]),  # for a vowel; for a consonant, for 0, for 1
)

# Problem 2 needs to know whether there has been a consonant. Consonants have the highest key: if there are any, they
# get all attention, and the average of their values is 1. If there are none, ▷ gets it, and tells 0. What is possible
# shall have logit 0, all else -50 or less: after a vowel that is told 1, 0 gets 0 - 50, and 1 gets -50 + 50; after a
# consonant, 0 gets -50 - 50, and 1 gets -100 + 50; and where 0 is told, the second numbers fall away.
MEMORY = by_hand(
    W_k=(-BIG, BIG, -BIG, 0, 0),
    W_v=(0, 1, 0, 0, 0),
    unembed=(
        *2 * [(-BIG, 0, 0, 0, 0)],  # for a vowel, for a consonant
        (0, -BIG, -BIG, -BIG, -BIG),  # for 0
        (-BIG, -2 * BIG, -2 * BIG, -2 * BIG, BIG),  # for 1
    ),
)


def loss(logprobs, ids):
    """Return the mean of -log probability, nats per symbol, of ids (N, T + 1) that logprobs (N, T + 1, 28) foretold."""
    return -logprobs[:, :-1].gather(-1, ids[:, 1:, None]).mean()


def learn(texts, steps, seed, starts=16):
    """Return weights of the same shapes, trained to make texts likely: the best of several starts, run side by side."""
    rng, data = torch.Generator().manual_seed(seed), encode(texts)
    weights = Weights(*((torch.randn(starts, *weight.shape, generator=rng) / 2).requires_grad_() for weight in SHARE))
    losses = torch.vmap(lambda weights, ids: loss(forward(weights, ids)[0], ids), in_dims=(0, None))
    optimizer = torch.optim.AdamW(weights, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)  # up to 0.1 and down to almost 0
    for _ in range(steps):
        optimizer.zero_grad()
        losses(weights, data[torch.randint(len(data), (64,), generator=rng)]).sum().backward()
        optimizer.step()
        schedule.step()
    best = losses(weights, data[:1000]).argmin()  # some starts never find that looking back helps
    return Weights(*(weight[best].detach().double() for weight in weights))


def compare(rule, models, texts):
    """Print the loss of models beside the best, with and without attention, and how much who looks at consonants."""
    ids, probs = encode(texts), probs_of_rule(rule, texts)
    best, kinds = loss(probs.log(), ids), places(ALPHABET + START, KINDS)[ids]
    alone = torch.stack([probs[kinds == kind].mean(0) for kind in range(4)])[kinds]  # mean after such a symbol
    print(f'  loss, at best {best:.4f} nats per symbol; by the last symbol alone {loss(alone.log(), ids) - best:+z.4f}')
    for name, weights in zip(('by hand', 'learned'), models):
        said, shares = forward(weights, ids)
        seen = (shares * (kinds == 1)[:, None]).sum(-1)  # (N, T + 1) the share of attention that goes to consonants
        by = ', '.join(f'{seen[kinds == kind].mean():.0%}' for kind in range(3))
        print(f'  {name} {loss(said, ids) - best:+z.4f}; vowels, consonants, digits pay {by} attention to consonants')


def draw(path, text, models):
    """Draw queries, keys, values, who looks at whom, and what is said next, while models read a text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 15.5), layout='constrained')
    figure.suptitle('Rows look at columns, darker is more. Vowels: orange, consonants: blue, digits: black, ▷: grey')
    ids, at, ends = encode([text]), range(len(text) + 1), (-0.5, len(text) + 0.5)
    colours = [(CHOSEN, BAR, MARK, GIVEN_UP)[kind] for kind in places(START + text, KINDS)]
    for part, (name, weights) in zip(figure.subfigures(2, 2, wspace=0.03, hspace=0.03).flat, models.items()):
        logprobs, shares = forward(weights, ids)
        probs = logprobs[0].exp() @ torch.eye(4).double()[places(ALPHABET, NEXT)]  # (T + 1, 4)
        queries, keys, values = ((weights.embed[ids[0]] @ W[:, 0]).tolist() for W in weights[1:4])
        axes = part.subplot_mosaic('QLN;.K.;.V.', width_ratios=(3, 10, 5), height_ratios=(5, 1, 1))
        axes['Q'].barh(at, queries, color=colours)
        axes['K'].bar(at, keys, color=colours)
        axes['V'].bar(at, values, color=colours)
        for panel, table in (('L', shares[0]), ('N', probs)):
            axes[panel].imshow(table.sqrt().numpy(), cmap='Blues', vmin=0, vmax=1.5, aspect='auto')
        for y, x in product(at, range(4)):
            axes['N'].text(x, y, f'{probs[y, x]:.2f}', ha='center', va='center', fontsize=8)
        for panel in 'QLN':
            axes[panel].set(yticks=at, yticklabels=START + text, ylim=ends[::-1])
        for panel in 'LKV':
            axes[panel].set(xticks=at, xticklabels=START + text, xlim=ends)
        axes['N'].set(xticks=range(4), xticklabels=('vow.', 'cons.', '0', '1'), xlabel='comes next')
        for panel, title in zip('QLNKV', ('query', f'{name}: attention', 'model probability', 'key', 'value')):
            axes[panel].set_title(title, loc='left', fontsize=11)
    save_figure(figure, path)


@dataclass
class Settings:
    """Speak two languages with attention set by hand, and learn them."""

    text: str = 'o0a0mythe1so1u1'  # what is read in the picture, of a to z, 0 and 1
    sequences: int = 8000  # to learn from; a quarter as many others measure the loss
    length: int = 16  # of each
    steps: int = 600  # of learning
    seed: int = 1337  # decides what is drawn, and where learning begins
    plot_dir: str = 'results/lessons'  # where attention_by_hand.png goes


def main(settings):
    """Check the weights set by hand on all short texts, learn others, compare."""
    if settings.sequences < 4 or settings.length < 1 or settings.steps < 10:
        raise UserError('--sequences is at least 4, --length 1 and --steps 10')
    if not 1 <= len(settings.text) <= 30 or not set(settings.text) <= set(ALPHABET):
        raise UserError(f'--text={settings.text}: it is 1 to 30 of the symbols a to z, 0 and 1')
    torch.set_num_threads(1)  # tensors this small are quicker so
    models, every = {}, [''.join(symbols) for symbols in product(ALPHABET, repeat=3)]
    for problem, rule, hand in (('problem 1', vowels_by_share, SHARE), ('problem 2', digits_by_memory, MEMORY)):
        rng = random.Random(settings.seed)
        texts = generate(rule, settings.sequences, settings.length, rng)
        print(f'{problem}: {" ".join(texts[:4])} ...')
        off = (forward(hand, encode(every))[0].exp() - probs_of_rule(rule, every)).abs().max()
        print(f'  by hand, no model probability is off by more than {off:.0e} in all texts of 3 symbols')
        learned = learn(texts, settings.steps, settings.seed)
        compare(rule, (hand, learned), generate(rule, settings.sequences // 4, settings.length, rng))
        models |= {f'{problem}, by hand': hand, f'{problem}, learned': learned}
    draw(f'{settings.plot_dir}/attention_by_hand.png', settings.text, models)


if __name__ == '__main__':
    configurator.run(main, Settings)
