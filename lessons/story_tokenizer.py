"""A tokenizer made for one kind of text, and how to find out fairly whether it is better than another.

Byte-pair encoding, the lesson before, knows nothing of language: `·the`, `the`, `The` and `·THE` are tokens that have
nothing in common. A tokenizer for stories can know what a word is. It sees a text as words with gaps between them:

    words   are one token each, `the` or `Elin`, in the case that they have inside a sentence;
    gaps    are one token each, `,·` or `."⏎⏎`; only the most frequent one, a single space, takes no token;
    case    is a mark before a word: ⇧ Capital, ⇪ ALL CAPITALS, ⇩ as in the vocabulary. The expected one (⇧ after gaps
            such as `.·`, else ⇩) is left out, so a mark costs a token only if the text does something unexpected;
    pieces  spell what is rare: `house` `+s`, or `•` `+b` `+ro` `+om` (no known start); with the bytes, any text at all.

    python -m lessons.story_tokenizer --sentence="Which tokens are in THIS?"
    python -m lessons.story_tokenizer --input=my_text.txt --save=mine.json    (for prepare_bin.py --tokenizer=mine.json)

The code is in lm/story_tokenizer.py, because models can be trained with it. Read it in this order: `train` counts words
and gaps and decides which become tokens; `_iterate_ids` goes through a text word by word; `_encode_word` tries all
spellings and takes the shortest; `SpelledText.add` turns tokens back into text. The first table below shows all of it.

What to look for: which tokenizer needs fewer tokens per word, and at which vocabulary size. Then small models learn
with each. Do not compare losses per token, since fewer tokens say more each, but how surprising a text is as a whole:
-log2 p summed over all its tokens, including marks, in bits per byte. (This is an upper bound: the same text has other
token spellings, whose p is not counted.) The lead of words is small, and shrinks with --epochs=12.
"""

import json
import math
import re
import time
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import OneCycleLR

import configurator
from common.errors import UserError
from common.files import atomic_write
from lessons.bpe import BPE
from lessons.token_colours import colour_pieces
from lm.hardware import pick_device
from lm.scoring import score
from lm.story_tokenizer import WORD, StoryTokenizer
from lm.tokenizer_base import EOT, make_visible
from model import GPT, GPTConfig
from pictures.style import BLUE, ORANGE, save_figure
from pictures.token_sheet import draw_token_sheet
from texts.hub_datasets import read_hub
from texts.readers import input_paths, read_files

STORIES = 'data/childrens_stories/childrens_stories.txt'
PASSAGE = re.compile(r'.{1,498}\n\n|.{1,499}\s|.{1,500}', re.DOTALL)  # ends with a paragraph, else a line or word


def compute_bits(model, tokenizer, passages):
    """Return the bits of each token, -log2 of its model probability, in a NumPy array for each passage."""
    rows = [tokenizer.encode(passage) for passage in passages]
    return [-logprobs.cpu().numpy() / math.log(2) for logprobs in score(model, [[tokenizer.eot]] * len(rows), rows)]


def train_model(tokenizer, parts, config, epochs, seed, device, batch_size=3, learning_rate=4e-3):
    """Return the model from the epoch with the fewest bits on the second part, and those bits after each epoch.

    Whatever the tokenizer, a model reads the same passages of the first part in the same order: the same bytes.
    """
    torch.manual_seed(seed)
    model, order, curve = GPT(config).to(device), np.random.default_rng(seed), []
    optimizer = model.configure_optimizers(0.1, learning_rate, (0.9, 0.99), device.type)
    rows = [torch.tensor([tokenizer.eot, *tokenizer.encode(passage)], device=device) for passage in parts[0]]
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

    input: str = STORIES  # texts to learn from: files (.txt, .csv, .jsonl, ...), folders or 'books/*.txt', with commas
    hf_dataset: str = ''  # a dataset on the Hugging Face hub instead, such as roneneldan/TinyStories
    hf_config: str = ''  # its configuration, if it has several
    hf_split: str = 'train'  # its split to read
    text_column: str = ''  # column of a table or hub dataset with the text; needed if it is not clear which one
    max_documents: int | None = None  # read only this many documents; None reads all
    vocab_size: int = 1536  # tokens of each tokenizer
    save: str = ''  # write the tokenizer to this .json file, for prepare_bin.py --tokenizer=FILE
    epochs: int = 6  # how often a model reads the text
    seeds: int = 3  # models to train with each tokenizer; 0 for none, only the tokenizers
    device: str | None = None  # cpu, gpu, cuda, cuda:1, mps; None for the best available
    sentence: str = '"NO!" said the old woman, and Elin looked at the sea. "It can\'t be a hippo."'  # to split
    plot_dir: str = 'results/lessons'  # folder for story_tokenizer.png and story_tokenizer-curves.png


def main(settings):
    """Make tokenizers of several sizes, show and save one, and compare how well models learn with it and with BPE."""
    passages, device = read_passages(settings), pick_device(settings.device)
    smallest = len(passages) - 19, settings.vocab_size - 261, settings.epochs, settings.seeds + 1
    if min(*smallest, len(settings.sentence)) < 1:
        raise UserError('needed: 20 passages of text in --input, --vocab_size=262, --epochs=1, --seeds=0, a --sentence')
    if settings.save and not settings.save.endswith('.json'):
        raise UserError(f'--save={settings.save}: its name must end in .json')
    console = Console(width=100, highlight=False, markup=False)
    parts = [passages[len(passages) * a // 10 : len(passages) * b // 10] for a, b in ((0, 8), (8, 9), (9, 10))]
    learned, rest, sizes = EOT.join(parts[0]), ''.join(parts[1] + parts[2]), []
    for size in (512, 768, 1024, 1536, 2048, 3072, settings.vocab_size):
        tokenizers = {'BPE': BPE.train(learned, size - 257), 'words and marks': StoryTokenizer.train(learned, size)}
        sizes.append([(t.vocab_size, len(t.encode(rest)) / len(WORD.findall(rest))) for t in tokenizers.values()])
    if any(tokenizer.vocab_size != settings.vocab_size for tokenizer in tokenizers.values()):
        raise UserError(f'--vocab_size={settings.vocab_size}: the text has too few words for this many tokens')
    console.print(explain_tokens(tokenizers['words and marks'], settings.sentence))
    for name, (size, per_word) in zip(tokenizers, sizes[-1]):
        console.print(f'{name}: {size:,} tokens, {per_word:.3f} per word of held-out text')
    if settings.save:
        with atomic_write(settings.save) as path:
            path.write_text(json.dumps(tokenizers['words and marks'].contents), encoding='utf-8')
        console.print(f'python prepare_bin.py --input=... --dataset=mine --tokenizer={settings.save}')
    if settings.seeds:
        compare_models(tokenizers, parts, sorted(sizes), settings, device, console)


def read_passages(settings):
    """Return the text of the settings in passages of at most 500 characters."""
    if settings.hf_dataset and settings.input != STORIES:
        raise UserError('give --input=FILES or --hf_dataset=NAME, but not both')
    if settings.hf_dataset:
        hub = settings.hf_dataset, settings.hf_config, settings.hf_split, settings.text_column
        documents, _ = read_hub(*hub)
    else:
        documents = read_files(input_paths(settings.input), '\n\n\n', settings.text_column)
    return PASSAGE.findall('\n\n\n'.join(islice(documents, settings.max_documents)))


def explain_tokens(tokenizer, text):
    """Return a table of the tokens of a text: what kind each is, and what it adds to the text."""
    table, ids = Table('id', 'token', 'kind', 'adds to the text'), tokenizer.encode(text)
    for id, piece, added in zip(ids, tokenizer.pieces(ids), tokenizer.split_bytes(ids)):
        table.add_row(str(id), Text(piece), tokenizer.tokens[id][0], Text(make_visible(added)))
    return table


def compare_models(tokenizers, parts, sizes, settings, device, console):
    """Train models with each tokenizer, print how many bits a held-out text takes, and draw the pictures."""
    lengths = [np.array([len(passage.encode()) for passage in part]) for part in parts]  # in bytes
    texts = [settings.sentence, *(passage for part in parts for passage in part)]
    longest = max(len(tokenizer.encode(text)) for tokenizer in tokenizers.values() for text in texts)
    config = GPTConfig(longest, settings.vocab_size, n_layer=2, n_head=4, n_embd=64, dropout=0.1)
    curves, totals, lines = [], [], []
    table = Table('tokenizer', 'seed', 'tokens per word', 'seconds', 'bits per token', 'bits per byte')
    for name, tokenizer in tokenizers.items():
        for seed in range(settings.seeds):
            start = time.perf_counter()
            model, curve = train_model(tokenizer, parts, config, settings.epochs, seed, device)
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
    draw_curves(f'{settings.plot_dir}/story_tokenizer-curves.png', sizes, curves, tokenizers)


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
