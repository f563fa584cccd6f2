"""Byte-pair encoding from scratch: how a text becomes the tokens that a model reads.

A model knows a fixed list of tokens. Characters make long sequences, and no list of words is ever complete. Byte-pair
encoding is in between: start with the 256 bytes, which can spell everything; make the most frequent pair of neighbours
a new token; repeat a few thousand times, treating new tokens like old ones. Frequent words become one token, rare words
a few, and nothing is unknown. (Gage 1994 compressed files this way; Sennrich et al. 2016, arXiv:1508.07909, split
words; GPT-2, Radford et al. 2019, started from bytes; with GPT-2's merges, this is GPT-2's tokenizer.)

    python -m lessons.bpe --sentence="Which tokens are in this?"       (GPT-2's tokens are shown next to ours)
    python -m lessons.bpe --text=FILE:my.txt --tokenizer=ours,gpt2     (colours your own text, and saves it as a page)

What to look for: how merges build on each other; which words are one token for GPT-2 and several for us; how a larger
vocabulary keeps shortening the text it was learned from, but other text less; how few words a merge has to look at.
"""

import heapq
import sysconfig
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path

import regex  # like the standard library's re, but it has \p{L}, any letter of any script
from matplotlib import pyplot
from rich.console import Console

import configurator
from common.errors import UserError
from common.strings import replace_surrogates
from lessons.token_colours import align_ids, colour_pieces, colour_text
from lm.tokenizer import EOT, GPT2Tokenizer, Tokenizer
from pictures.style import BLUE, ORANGE, hide_spines, save_figure
from pictures.token_sheet import draw_token_sheet
from texts.readers import input_paths, read_files

console = Console(markup=False, emoji=False, highlight=False)


@dataclass
class Settings:
    """Learn byte-pair encoding from a text, and split a sentence into tokens."""

    input: str = 'data/childrens_stories/childrens_stories.txt'  # the text to learn from (UTF-8)
    num_merges: int = 4000  # tokens to learn in addition to the 256 bytes
    sentence: str = "Grandmother's fox didn't sell 1,024 umbrellas; it lent them to a hippopotamus. Voilà! 🦊"  # to cut
    text: str = ''  # only colour the tokens of this text, or of FILE:path, and save tokens.png and tokens.html
    tokenizer: str = 'ours'  # whose tokens: ours, gpt2, any model (as --init_from), a .json file; several with commas
    plot_dir: str = 'results/lessons'  # folder for bpe.png and bpe-compression.png


# Merges stay inside words, or "fox.", "fox," and "fox!" would be tokens. GPT-2 splits like this; the first match wins.
WORD = regex.compile(
    r"""'(?:s|t|re|ve|m|ll|d)    # the ends of it's, don't, we're, I've, I'm, we'll, I'd
      | [ ]?\p{L}+               # letters, with the space before them
      | [ ]?\p{N}+               # digits
      | [ ]?[^\s\p{L}\p{N}]+     # neither, nor white space: punctuation, emoji
      | \s+(?!\S)                # white space, except the space that belongs to the next word
      | \s+                      # or all of it, if a newline comes just before the word""",
    regex.VERBOSE,
)
# Ids 0 to 255 are the bytes. GPT-2 puts the 188 that Latin-1 can print first, so its '!' is 0 and its 'A' is 32.
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]  # id -> byte
ID_OF_BYTE = {byte: id for id, byte in enumerate(BYTES)}


def split_words(text, specials=()):
    """Return the words of a text; each special token in it is a word."""
    parts = regex.split(r'(\L<specials>)', text, specials=specials) if specials else [text]  # \L: any in a list
    return [word for part in parts for word in ([part] if part in specials else WORD.findall(part))]


def spell_word(word):
    """Return the ids of a word's bytes; bytes that are not UTF-8 are lone surrogates in the word (PEP 383)."""
    return tuple(ID_OF_BYTE[byte] for byte in word.encode('utf-8', 'surrogateescape'))


def count_words(text, specials=()):
    """Return {ids of a word: number of occurrences}, so that a frequent word is processed only once."""
    return {spell_word(word): n for word, n in Counter(split_words(text, specials)).items() if word not in specials}


def merge_pair(ids, pair, new):
    """Return ids in which each occurrence of the pair, from the left, is replaced by the id `new`."""
    merged = []
    for id in ids:
        if merged and (merged[-1], id) == pair:
            merged[-1] = new
        else:
            merged.append(id)
    return tuple(merged)


def learn_merges_slowly(words):
    """Yield (pair, its count), merge after merge, until each word is one token. This is the whole idea.

    words: {ids: occurrences}. Of equally frequent pairs, the one with the smallest ids wins, as in `tokenizers`.
    """
    for new in count(256):
        counts = Counter()
        for ids, n in words.items():
            for pair in pairwise(ids):
                counts[pair] += n
        if not counts:
            return
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        yield pair, counts[pair]
        words = {merge_pair(ids, pair, new): n for ids, n in words.items()}


def learn_merges(words):
    """Yield (pair, its count, words looked at): the same merges, but counts are only updated where they change.

    A merge changes only the words that contain its pair; `where` lists them. Their pairs are subtracted from the
    counts, and added again after the merge. A heap keeps the most frequent pair on top; counts that have fallen are
    noticed when they come up. Counts never rise: a pair's occurrences all appear at once, with the newer of its tokens.
    """
    spellings, occurrences = list(words), list(words.values())
    counts, where = Counter(), defaultdict(set)

    def add_pairs(place, sign):
        for pair in pairwise(spellings[place]):
            counts[pair] += sign * occurrences[place]
            where[pair].add(place)

    for place in range(len(spellings)):
        add_pairs(place, 1)
    heap = sorted((-n, pair) for pair, n in counts.items())  # a sorted list is a heap, with the smallest on top
    for new in count(256):
        while heap and heap[0][0] != -counts[heap[0][1]]:
            heapq.heapreplace(heap, (-counts[heap[0][1]], heap[0][1]))
        if not heap or heap[0][0] == 0:
            return
        negative, pair = heapq.heappop(heap)
        places = where.pop(pair)
        yield pair, -negative, len(places)
        for place in places:
            add_pairs(place, -1)
            spellings[place] = merge_pair(spellings[place], pair, new)
            add_pairs(place, 1)
        for new_pair in {new_pair for place in places for new_pair in pairwise(spellings[place]) if new in new_pair}:
            heapq.heappush(heap, (-counts[new_pair], new_pair))


class BPE(Tokenizer):
    """A vocabulary and its merges: first the 256 bytes, then a token for each merge, then the special tokens.

    merges: pairs of ids, in the order in which they were learned. specials: tokens such as <|endoftext|> that are not
    text; they are found before the text is split, and no merge produces them.
    """

    def __init__(self, merges=(), specials=(EOT,)):
        self.tokens = [bytes([byte]) for byte in BYTES]  # id -> bytes
        self.merges = {}  # (left id, right id) -> id of the merged token
        for left, right in merges:
            self.merges[left, right] = len(self.tokens)
            self.tokens.append(self.tokens[left] + self.tokens[right])
        self.specials = {text: len(self.tokens) + place for place, text in enumerate(dict.fromkeys(specials))}
        self.tokens += [text.encode() for text in self.specials]
        self.vocab_size, self.eot = len(self.tokens), self.specials.get(EOT)
        self._cache = {}  # word -> its ids, because most words occur again

    @classmethod
    def train(cls, text, num_merges, specials=(EOT,)):
        """Learn `num_merges` merges from a text, or as many as it has. None crosses a special token."""
        return cls([pair for pair, *_ in islice(learn_merges(count_words(text, specials)), num_merges)], specials)

    def encode(self, text, specials=True):
        """Return the ids of a text or of any bytes; specials=False treats special tokens as ordinary text."""
        text = replace_surrogates(text) if isinstance(text, str) else text.decode('utf-8', 'surrogateescape')
        special_ids, ids = self.specials if specials else {}, []
        for word in split_words(text, special_ids):
            ids += [special_ids[word]] if word in special_ids else self._encode_word(word)
        return ids

    def _encode_word(self, word):
        """Repeat what was learned: apply the oldest of the possible merges, again and again."""
        if word not in self._cache:
            ids = spell_word(word)
            while known := [pair for pair in pairwise(ids) if pair in self.merges]:
                oldest = min(known, key=self.merges.get)
                ids = merge_pair(ids, oldest, self.merges[oldest])
            self._cache[word] = ids
        return self._cache[word]

    def _bytes_of(self, id):
        return self.tokens[id]  # `decode` in lm/tokenizer.py joins these and reads UTF-8, `pieces` makes them visible


def main(settings):
    """Learn merges; show the idea, a sentence in tokens, compression by vocabulary size, and the speed."""
    text = '\n\n\n'.join(read_files(input_paths(settings.input), '\n\n\n'))  # two empty lines between documents
    if len(text) < 1000 or settings.num_merges < 1 or not settings.sentence:
        raise UserError(f'needed: 1,000 characters in --input ({len(text)} now), --num_merges=1 and a --sentence')
    if settings.text:
        colour_text(settings.text, settings.tokenizer, settings.plot_dir, lambda: BPE.train(text, settings.num_merges))
        return
    example = 'the fat cat sat on the flat mat'
    for bpe in (BPE.train(example, number) for number in range(9)):
        console.print(f'merges: {len(bpe.merges)} ', colour_pieces(bpe.pieces(bpe.encode(example))))
    parts = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]  # to learn from, and held out
    largest = BPE.train(parts[0], settings.num_merges)
    sizes = sorted({0, *(len(largest.merges) >> halvings for halvings in range(7))})
    tokenizers = {f'{size:,} merges': BPE(islice(largest.merges, size)) for size in sizes}
    try:
        GPT2Tokenizer().encode('')
        tokenizers['GPT-2'] = GPT2Tokenizer()
    except UserError as error:
        console.print(f'\nWithout GPT-2: {error}')
    lines, rows = [], []
    for name, bpe in tokenizers.items():
        ids = bpe.encode(settings.sentence)
        lines.append((f'{name}: {len(ids)} tokens', bpe.pieces(ids), [len(bpe.decode_bytes([id])) for id in ids]))
        rows.append((bpe.vocab_size, *(len(part.encode()) / len(bpe.encode(part)) for part in parts)))
        _, learned, held_out = rows[-1]
        console.print(f'\n{lines[-1][0]}; bytes per token: {learned:.2f} in training text, {held_out:.2f} held out')
        console.print(*align_ids(bpe.pieces(ids), ids, console.width), sep='\n')
    draw_token_sheet(Path(settings.plot_dir) / 'bpe.png', lines, 'bytes in a token', 'above 0')
    draw_compression(Path(settings.plot_dir) / 'bpe-compression.png', rows[: len(sizes)], rows[len(sizes) :])
    as_text = colour_pieces(largest.pieces(largest.encode(EOT, specials=False)))
    console.print(f'\n{EOT} as a special token is id {largest.eot}; as text it is', as_text)

    files = sorted(Path(sysconfig.get_path('stdlib')).glob('*.py'))  # Python's own source code, on every machine
    start = time.perf_counter()
    words = count_words(''.join(file.read_text('utf-8', 'replace') for file in files)[:1_000_000])
    looked_at = [n_words for _, _, n_words in islice(learn_merges(words), 1000)]
    fast = time.perf_counter() - start
    list(islice(learn_merges_slowly(words), 20))
    slow = (time.perf_counter() - start - fast) / 20 * 1000
    console.print(f'\n1,000 merges from 1 MB ({len(words):,} different words): {fast:.1f} s; a merge looks at')
    console.print(f'{sum(looked_at) / 1000:.0f} words on average. Counting all pairs each time: about {slow:.0f} s')


def draw_compression(path, ours, gpt2):
    """Draw rows of (vocabulary size, bytes per token in the text that ours learned from, bytes per token held out)."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout='constrained')
    for rows, style, whose in ((ours, 'o-', 'ours'), (gpt2, 'D', "GPT-2's"))[: 1 + len(gpt2)]:
        sizes, *both = zip(*rows)
        for ratios, part, colour in zip(both, ('the text that ours learned from', 'held-out text'), (BLUE, ORANGE)):
            axes.plot(sizes, ratios, style, color=colour, label=f'{whose}, {part}')
    axes.set(xscale='log', xlabel='vocabulary size, log axis', ylabel='bytes per token')
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.legend(frameon=False)
    hide_spines(axes, 'top', 'right')
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == '__main__':
    configurator.run(main, Settings)
