"""A tokenizer made for one kind of text, and how to find out fairly whether it is better than another.

Byte-pair encoding, the lesson before, knows nothing of language: `·the`, `the`, `The` and `·THE` are tokens that have
nothing in common. A tokenizer for stories can know what a word is. It sees a text as words with gaps between them:

    words   are one token each, `the` or `Elin`, in the case that they have inside a sentence;
    gaps    are one token each, `,·` or `."⏎⏎`; only the most frequent one, a single space, takes no token;
    case    is a mark before a word: ⇧ Capital, ⇪ ALL CAPITALS, ⇩ as in the vocabulary. The expected one (⇧ after gaps
            such as `.·`, else ⇩) is left out, so a mark costs a token only if the text does something unexpected;
    pieces  spell what is rare: `house` `+s`, or `•` `+b` `+ro` `+om` (no known start); with the bytes, any text at all.

    python -m lessons.story_tokenizer --sentence="Which tokens are in THIS?"

What to look for: which tokenizer needs fewer tokens per word, and at which vocabulary size. Then small models learn
with each. Do not compare losses per token, since fewer tokens say more each, but how surprising a text is as a whole:
-log2 p summed over all its tokens, including marks, in bits per byte. (This is an upper bound: the same text has other
token spellings, whose p is not counted.) The lead of words is small, and shrinks with --epochs=12.
"""

import math
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import OneCycleLR

import configurator
from common.errors import UserError
from common.strings import replace_surrogates
from lessons.bpe import BPE, colour_pieces, learn_merges, spell_word
from lm.scoring import score
from lm.tokenizer import EOT, Tokenizer
from model import GPT, GPTConfig
from pictures.style import BLUE, ORANGE, save_figure
from pictures.token_sheet import draw_token_sheet
from texts.readers import input_paths, read_files

WORD = re.compile(r"([^\W_]+(?:['’][^\W_]+)*)")  # letters and digits of any script, with apostrophes inside
CASES = {'⇧': lambda word: word[:1].upper() + word[1:], '⇪': str.upper, '⇩': str}  # mark -> how it changes a word
PASSAGE = re.compile(r'.{1,498}\n\n|.{1,499}\s|.{1,500}', re.DOTALL)  # ends with a paragraph, else a line or word


class StoryTokenizer(Tokenizer):
    """Words, gaps and case marks, and pieces for everything rare.

    merges: of the pieces, as in BPE. words: as written inside a sentence. gaps: {gap: the mark expected after it}.
    """

    def __init__(self, merges=(), words=(), gaps=()):
        self.speller, self.expected_after = BPE(merges, specials=()), dict(gaps)
        kinds = {'case': CASES, 'word': ('', *words), 'gap': ('', *self.expected_after), 'special': (EOT,)}
        self.tokens = [('piece', token) for token in self.speller.tokens]  # id -> (kind, bytes); pieces keep their ids
        self.ids = defaultdict(dict)  # kind -> {text: id}
        for kind, text in ((kind, text) for kind, texts in kinds.items() for text in texts):
            self.ids[kind][text.lower() if kind == 'word' else text] = len(self.tokens)
            self.tokens.append((kind, text.encode()))
        self.vocab_size, self.eot = len(self.tokens), len(self.tokens) - 1
        self._cache = {}  # (word, expected mark) -> ids

    @classmethod
    def train(cls, text, vocab_size, share=0.2):
        """Learn `vocab_size` tokens from a text, or as many as it has; at least a share of them are pieces."""
        texts = [WORD.split(part) for part in text.split(EOT)]  # [gap, word, gap, ..., word, gap] each
        pairs = [pair for units in texts for pair in zip(units[::2], units[1::2])]  # (gap, the word after it)
        words, gaps = Counter(word.lower() for _, word in pairs), Counter(gap for units in texts for gap in units[::2])
        capitals = Counter((gap, word[0].isupper()) for gap, word in pairs)
        expected = {gap: '⇧' if capitals[gap, True] > capitals[gap, False] or not gap else '⇩' for gap in gaps}
        # Without words that occur once: a model that never sees a word spelled does not learn to spell.
        frequent = sorted((-n, unit) for unit, n in (words + gaps).items() if n > 1 and unit not in ('', ' '))
        room = vocab_size - cls().vocab_size  # beyond the bytes, the marks and everything else that is always there
        kept = [unit for _, unit in frequent[: max(0, room - round(share * vocab_size))]]
        forms = {word: Counter() for word in kept if word in words}
        for word in (word for gap, word in pairs if expected[gap] == '⇩' and word.lower() in forms):
            forms[word.lower()][word] += 1  # if it is capitalised here, the capital is its own
        written = [max(counts, key=lambda form: (counts[form], form), default=word) for word, counts in forms.items()]
        rare = {spell_word(word): n for word, n in words.items() if word not in forms}
        merges = [pair for pair, *_ in islice(learn_merges(rare), max(0, room - len(kept)))]
        return cls(merges, written, {gap: expected[gap] for gap in kept if gap in gaps})

    def encode(self, text, specials=True):
        """Return the ids of a text or of any bytes; specials=False treats <|endoftext|> as ordinary text."""
        text = replace_surrogates(text) if isinstance(text, str) else text.decode('utf-8', 'surrogateescape')
        ids = []
        for part in text.split(EOT) if specials else [text]:
            units, expected = WORD.split(part), '⇧'
            for place, unit in enumerate(units):
                if place % 2:
                    ids += self._encode_word(unit, expected)
                    expected = '⇩'
                elif unit != ('' if place in (0, len(units) - 1) else ' '):
                    ids += min(self._list_spellings(unit, self.ids['gap']), key=len)
                    expected = self.expected_after.get(unit, '⇩')
            ids.append(self.eot)
        return ids[:-1]

    def _list_spellings(self, unit, ids):
        """Return the spellings of a word or gap: a token that it begins with, the longest first, then pieces."""
        starts = [at for at in range(min(len(unit), max(map(len, ids))), -1, -1) if unit[:at] in ids]
        return [[ids[unit[:at]], *self.speller.encode(unit[at:].encode('utf-8', 'surrogateescape'))] for at in starts]

    def _encode_word(self, word, expected):
        """Return the fewest ids that decode to the word; no mark produces McX or ß, so these are spelled exactly."""
        if (word, expected) not in self._cache:
            known = self.ids['word']
            spellings = [*self._list_spellings(word.lower(), known), [known[''], *self.speller.encode(word.encode())]]
            texts = [b''.join(self.tokens[id][1] for id in ids).decode() for ids in spellings]
            marks = {mark: [] if mark == expected else [self.ids['case'][mark]] for mark in CASES}
            right = [marks[m] + ids for ids, text in zip(spellings, texts) for m in CASES if CASES[m](text) == word]
            self._cache[word, expected] = min(right, key=len)
        return self._cache[word, expected]

    def decode_bytes(self, ids):
        """Return the UTF-8 bytes of token ids, which may come in any order, since a model may write them."""
        units = []  # [kind, bytes]
        for id in self._check(ids):
            kind, token = self.tokens[id]
            if kind == 'piece' and units and units[-1][0] != 'case':
                units[-1][1] += token
            else:
                units.append([kind, token])
        text, before, expected = '', None, '⇧'
        for kind, data in units:
            unit = data.decode('utf-8', 'surrogateescape')
            if kind == 'case':
                expected = unit
                continue
            if kind == 'word':
                unit = ' ' * (before == 'word') + CASES[expected](unit)
            text += unit
            before, expected = kind, '⇧' if kind == 'special' else self.expected_after.get(unit, '⇩')
        return text.encode('utf-8', 'surrogateescape')

    def _bytes_of(self, id):
        kind, token = self.tokens[id]
        return token or {'word': '•', 'gap': '◦'}[kind].encode()  # a word, or gap, that starts with no known one

    def pieces(self, ids):
        """Return each token made visible, with + before pieces that continue a word or gap."""
        return ['+' * (self.tokens[id][0] == 'piece') + piece for id, piece in zip(ids, super().pieces(ids))]


def compute_bits(model, tokenizer, passages):
    """Return the bits of each token, -log2 of its model probability, in a NumPy array for each passage."""
    rows = [tokenizer.encode(passage) for passage in passages]
    return [-logprobs.numpy() / math.log(2) for logprobs in score(model, [[tokenizer.eot]] * len(rows), rows)]


def train_model(tokenizer, parts, config, epochs, seed, batch_size=3, learning_rate=4e-3):
    """Return the model from the epoch with the fewest bits on the second part, and those bits after each epoch.

    Whatever the tokenizer, a model reads the same passages of the first part in the same order: the same bytes.
    """
    torch.manual_seed(seed)
    model, order, curve = GPT(config), np.random.default_rng(seed), []
    optimizer = model.configure_optimizers(0.1, learning_rate, (0.9, 0.99), 'cpu')
    rows = [torch.tensor([tokenizer.eot, *tokenizer.encode(passage)]) for passage in parts[0]]
    steps = math.ceil(len(rows) / batch_size)  # per epoch; the learning rate rises in the first tenth, then falls
    rate = OneCycleLR(optimizer, learning_rate, epochs * steps, pct_start=0.1, cycle_momentum=False)
    for _ in range(epochs):
        model.train()
        for places in np.array_split(order.permutation(len(rows)), steps):
            batch = pad_sequence([rows[place] for place in places], True, padding_value=-1)  # (B, T); -1: no target
            model(batch[:, :-1].clamp(min=0), batch[:, 1:])[1].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        curve.append(sum(map(np.sum, compute_bits(model.eval(), tokenizer, parts[1]))))
        if curve[-1] == min(curve):
            best = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(best)
    return model, curve


@dataclass
class Settings:
    """Make a tokenizer for stories, and compare it with byte-pair encoding of the same vocabulary size."""

    input: str = 'data/childrens_stories/childrens_stories.txt'  # the text to learn from (UTF-8)
    vocab_size: int = 1536  # tokens of each tokenizer
    epochs: int = 6  # how often a model reads the text
    seeds: int = 3  # models to train with each tokenizer
    sentence: str = '"NO!" said the old woman, and Elin looked at the sea. "It can\'t be a hippo."'  # to split
    plot_dir: str = 'results/lessons'  # folder for story_tokenizer.png and story_tokenizer-curves.png


def main(settings):
    """Count tokens by vocabulary size; train models with one size and several seeds, and compare their bits."""
    passages = PASSAGE.findall('\n\n\n'.join(read_files(input_paths(settings.input), '\n\n\n')))
    if min(len(passages) - 19, settings.vocab_size - 261, settings.epochs, settings.seeds, len(settings.sentence)) < 1:
        raise UserError('needed: 20 passages of text in --input, --vocab_size=262, --epochs=1, --seeds=1, a --sentence')
    parts = [passages[len(passages) * a // 10 : len(passages) * b // 10] for a, b in ((0, 8), (8, 9), (9, 10))]
    lengths = [np.array([len(passage.encode()) for passage in part]) for part in parts]  # in bytes
    learned, rest, sizes = EOT.join(parts[0]), ''.join(parts[1] + parts[2]), []
    for size in (512, 768, 1024, 1536, 2048, 3072, settings.vocab_size):
        tokenizers = {'BPE': BPE.train(learned, size - 257), 'words and marks': StoryTokenizer.train(learned, size)}
        sizes.append([(t.vocab_size, len(t.encode(rest)) / len(WORD.findall(rest))) for t in tokenizers.values()])
    if any(tokenizer.vocab_size != settings.vocab_size for tokenizer in tokenizers.values()):
        raise UserError(f'--vocab_size={settings.vocab_size}: the text has too few words for this many tokens')
    longest = max(len(t.encode(text)) for t in tokenizers.values() for text in (settings.sentence, *passages))
    config = GPTConfig(longest, settings.vocab_size, n_layer=2, n_head=4, n_embd=64, dropout=0.1)
    console, curves, totals, lines = Console(width=100, highlight=False), [], [], []
    table = Table('tokenizer', 'seed', 'tokens per word', 'seconds', 'bits per token', 'bits per byte')
    for name, tokenizer in tokenizers.items():
        for seed in range(settings.seeds):
            start = time.perf_counter()
            model, curve = train_model(tokenizer, parts, config, settings.epochs, seed)
            seconds, bits = time.perf_counter() - start, compute_bits(model, tokenizer, parts[2])
            curves.append(np.array(curve) / lengths[1].sum())
            totals.append([array.sum() for array in bits])
            total, tokens, words = sum(totals[-1]), sum(map(len, bits)), len(WORD.findall(''.join(parts[2])))
            row = tokens / words, seconds, total / tokens, total / lengths[2].sum()
            table.add_row(name, str(seed), *(f'{number:.3f}' for number in row))
        pieces = tokenizer.pieces(tokenizer.encode(settings.sentence))
        (bits,) = compute_bits(model, tokenizer, [settings.sentence])
        lines.append((f'{name}: {len(bits)} tokens, {bits.sum():.0f} bits', [f' {piece} ' for piece in pieces], -bits))
        console.print(lines[-1][0], colour_pieces(pieces), '', sep='\n')
    console.print(table)
    bpe, ours = np.reshape(totals, (2, settings.seeds, -1)).mean(1)  # bits of each passage
    resampled = np.random.default_rng(0).integers(len(ours), size=(10_000, len(ours)))  # other passages (bootstrap)
    low, middle, high = np.percentile((ours - bpe)[resampled].sum(1) / lengths[2][resampled].sum(1), (2.5, 50, 97.5))
    interval = f'95 % [{low:+.3f}, {high:+.3f}]{", maybe chance" * bool(low < 0 < high)}'
    console.print(f'words and marks minus BPE, {len(ours)} passages: {middle:+.3f} bits per byte, {interval}')
    draw_token_sheet(f'{settings.plot_dir}/story_tokenizer.png', lines, 'log2 of the model probability', 'below 0')
    draw_curves(f'{settings.plot_dir}/story_tokenizer-curves.png', sorted(sizes), curves, tokenizers)


def draw_curves(path, sizes, curves, names):
    """Draw tokens per word by vocabulary size, and bits per byte by epoch, one line for each seed."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout='constrained')
    for name, points, lines, colour in zip(names, zip(*sizes), np.split(np.array(curves), 2), (ORANGE, BLUE)):
        left.plot(*zip(*points), 'o-', color=colour, label=name)
        right.plot(range(1, len(lines[0]) + 1), lines.T, 'o-', color=colour)
    left.set(xlabel='vocabulary size', ylabel='tokens per word, held out')
    right.set(xlabel='epochs (one line for each seed)', ylabel='bits per byte, held out')
    left.legend(frameon=False)
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == '__main__':
    configurator.run(main, Settings)
