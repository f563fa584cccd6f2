"""Byte-pair encoding from nothing: how a text becomes the tokens that a model reads.

A model knows a fixed list of tokens. Characters make long sequences, and no list of words is ever complete. Byte-pair
encoding lies between: begin with the 256 bytes, in which everything can be written; make the most frequent pair of
neighbours a token of its own; and again, some thousand times, new tokens counting like old ones. Frequent words end as
one token, rare ones as a few, and nothing is unknown. (Gage 1994 made files smaller so; Sennrich et al. 2016,
arXiv:1508.07909, cut words so; GPT-2, Radford et al. 2019, began at bytes; with its merges, this is its tokenizer.)

    python -m lessons.bpe --sentence="What does it make of this?"       (GPT-2's tokens stand beside ours)

What to look for: how merges build upon each other; which words are one token for GPT-2 and several for us; how a larger
vocabulary goes on shortening the text it was learned from, but other text less; how few words a merge has to look at.
"""

import heapq
import sysconfig
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path

import regex  # as the standard library's re, but it knows \p{L}, any letter of any script
from rich.console import Console
from rich.text import Text

import configurator
from common.errors import UserError
from common.strings import replace_surrogates
from lm.tokenizer import EOT, GPT2Tokenizer, Tokenizer
from pictures.style import BAR, CHOSEN, FELL, GIVEN_UP, MARK, ROSE, hide_spines, save_figure
from pictures.token_sheet import draw_token_sheet
from texts.files import input_paths, read_files

console = Console(markup=False, emoji=False, highlight=False)


@dataclass
class Settings:
    """Learn byte-pair encoding from a text, and see what it makes of a sentence."""

    input: str = 'data/childrens_stories/childrens_stories.txt'  # the text to learn from (UTF-8)
    num_merges: int = 4000  # tokens to learn, besides the 256 bytes
    sentence: str = "Grandmother's fox didn't sell 1,024 umbrellas; it lent them to a hippopotamus. Voilà! 🦊"  # to cut
    plot_dir: str = 'results/lessons'  # where bpe.png and bpe-compression.png go


# Merges stay inside words, or "fox.", "fox," and "fox!" would be tokens. GPT-2 cuts so; the first line that fits wins.
WORD = regex.compile(
    r"""'(?:s|t|re|ve|m|ll|d)    # the ends of it's, don't, we're, I've, I'm, we'll, I'd
      | [ ]?\p{L}+               # letters, with the space before them
      | [ ]?\p{N}+               # digits
      | [ ]?[^\s\p{L}\p{N}]+     # neither of them, nor white space: punctuation, emoji
      | \s+(?!\S)                # white space, up to the space that belongs to the next word
      | \s+                      # or all of it, where a new line stands before the word""",
    regex.VERBOSE,
)
# Ids 0 to 255 are the bytes; GPT-2 has first the 188 that Latin-1 can print, so that its '!' is 0 and its 'A' is 32.
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]  # id -> byte
ID_OF_BYTE = {byte: id for id, byte in enumerate(BYTES)}


def cut(text, specials=()):
    """Return the words of a text, among them the special tokens in it, each a word of its own."""
    parts = regex.split(r'(\L<specials>)', text, specials=specials) if specials else [text]  # \L: any of a list
    return [word for part in parts for word in ([part] if part in specials else WORD.findall(part))]


def spell(word):
    """Return the ids of a word's bytes; a byte that was no UTF-8 has come as a lone surrogate (PEP 383)."""
    return tuple(ID_OF_BYTE[byte] for byte in word.encode('utf-8', 'surrogateescape'))


def count_words(text, specials=()):
    """Return {ids of a word: how often it occurs}: what comes a thousand times is worked on once."""
    return {spell(word): often for word, often in Counter(cut(text, specials)).items() if word not in specials}


def merge(ids, pair, new):
    """Return ids in which every such pair of neighbours, from the left, has become the id `new`."""
    merged = []
    for id in ids:
        if merged and (merged[-1], id) == pair:
            merged[-1] = new
        else:
            merged.append(id)
    return tuple(merged)


def learn_slowly(words):
    """Yield (pair, its count), merge after merge, until each word is one token. This is the whole idea.

    words: {ids: how often}. Of equally frequent pairs that with the smallest ids is taken: any rule would do, this is
    the `tokenizers` library's.
    """
    for new in count(256):
        counts = Counter()
        for ids, often in words.items():
            for pair in pairwise(ids):
                counts[pair] += often
        if not counts:
            return
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        yield pair, counts[pair]
        words = {merge(ids, pair, new): often for ids, often in words.items()}


def learn(words):
    """Yield (pair, its count, words looked at): the same merges, but counts are updated where they change.

    A merge changes only words that hold its pair, and `where` knows those: their pairs are taken from the counts, and
    added again when they are merged. A heap has the most frequent pair on top; a count that has since fallen is noticed
    when it comes up. None ever rises: a pair is born, everywhere at once, with the younger of its two tokens.
    """
    spelled, often = list(words), list(words.values())
    counts, where = Counter(), defaultdict(set)

    def tally(place, sign):
        for pair in pairwise(spelled[place]):
            counts[pair] += sign * often[place]
            where[pair].add(place)

    for place in range(len(spelled)):
        tally(place, 1)
    heap = sorted((-number, pair) for pair, number in counts.items())  # a sorted list is a heap, the smallest on top
    for new in count(256):
        while heap and heap[0][0] != -counts[heap[0][1]]:
            heapq.heapreplace(heap, (-counts[heap[0][1]], heap[0][1]))
        if not heap or heap[0][0] == 0:
            return
        number, pair = heapq.heappop(heap)
        places = where.pop(pair)
        yield pair, -number, len(places)
        for place in places:
            tally(place, -1)
            spelled[place] = merge(spelled[place], pair, new)
            tally(place, 1)
        for young in {young for place in places for young in pairwise(spelled[place]) if new in young}:
            heapq.heappush(heap, (-counts[young], young))


class BPE(Tokenizer):
    """A vocabulary and its merges: first the 256 bytes, then a token for each merge, then the special tokens.

    merges: pairs of ids, in the order in which they were learned. specials: such as <|endoftext|>, which stands for
    what is no text; no merge leads to them, they are cut out beforehand.
    """

    def __init__(self, merges=(), specials=(EOT,)):
        self.tokens = [bytes([byte]) for byte in BYTES]  # id -> bytes
        self.merges = {}  # (left id, right id) -> id of both together
        for left, right in merges:
            self.merges[left, right] = len(self.tokens)
            self.tokens.append(self.tokens[left] + self.tokens[right])
        self.specials = {text: len(self.tokens) + place for place, text in enumerate(dict.fromkeys(specials))}
        self.tokens += [text.encode() for text in self.specials]
        self.vocab_size, self.eot = len(self.tokens), self.specials.get(EOT)
        self._known = {}  # word -> its ids: most words come again

    @classmethod
    def train(cls, text, num_merges, specials=(EOT,)):
        """Learn so many merges from a text, or as many as it has. None goes across a special token."""
        return cls([pair for pair, *_ in islice(learn(count_words(text, specials)), num_merges)], specials)

    def encode(self, text, specials=True):
        """Return the ids of a text, or of any bytes; specials=False reads special tokens as the text they look like."""
        text = replace_surrogates(text) if isinstance(text, str) else text.decode('utf-8', 'surrogateescape')
        special_ids, ids = self.specials if specials else {}, []
        for word in cut(text, special_ids):
            ids += [special_ids[word]] if word in special_ids else self._encode_word(word)
        return ids

    def _encode_word(self, word):
        """Do to a word what was done in learning: the oldest of the merges that there are for it, and again."""
        if word not in self._known:
            ids = spell(word)
            while known := [pair for pair in pairwise(ids) if pair in self.merges]:
                oldest = min(known, key=self.merges.get)
                ids = merge(ids, oldest, self.merges[oldest])
            self._known[word] = ids
        return self._known[word]

    def _bytes_of(self, id):
        return self.tokens[id]  # tokenizer.py's `decode` joins these and reads UTF-8, `pieces` makes them visible


def main(settings):
    """Learn, and show the idea, a sentence in tokens, what vocabularies make of text by their size, and the speed."""
    text = '\n\n\n'.join(read_files(input_paths(settings.input), '\n\n\n'))  # two empty lines between documents
    if len(text) < 1000 or settings.num_merges < 1 or not settings.sentence:
        raise UserError(f'--input has {len(text)} characters: 1,000 are needed; --num_merges=1, and a --sentence, too')
    example = 'the fat cat sat on the flat mat'
    for bpe in (BPE.train(example, number) for number in range(9)):
        console.print(f'merges: {len(bpe.merges)} ', side_by_side(bpe.pieces(bpe.encode(example))))

    parts = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]  # the first is learned from
    whole = BPE.train(parts[0], settings.num_merges)
    sizes = sorted({0, *(len(whole.merges) >> halvings for halvings in range(7))})
    tokenizers = {f'{size:,} merges': BPE(islice(whole.merges, size)) for size in sizes}
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
        _, learned, rest = rows[-1]
        console.print(f'\n{lines[-1][0]}; bytes a token: {learned:.2f} where ours learned, {rest:.2f} elsewhere')
        console.print(side_by_side(bpe.pieces(ids)))
    draw_token_sheet(Path(settings.plot_dir) / 'bpe.png', lines, 'bytes of a token', 'above 0')
    draw_compression(Path(settings.plot_dir) / 'bpe-compression.png', rows[: len(sizes)], rows[len(sizes) :])
    as_text = side_by_side(whole.pieces(whole.encode(EOT, specials=False)))
    console.print(f'\n{EOT} as a special token is id {whole.eot}; as text it is', as_text)

    files = sorted(Path(sysconfig.get_path('stdlib')).glob('*.py'))  # Python's own source code, which everyone has
    began = time.perf_counter()
    words = count_words(''.join(file.read_text('utf-8', 'replace') for file in files)[:1_000_000])
    looked_at = [places for _, _, places in islice(learn(words), 1000)]
    quick = time.perf_counter() - began
    list(islice(learn_slowly(words), 20))
    slow = (time.perf_counter() - began - quick) / 20 * 1000
    console.print(f'\n1,000 merges from 1 MB ({len(words):,} different words): {quick:.1f} s; a merge looks at')
    console.print(f'{sum(looked_at) / 1000:.0f} words on average. Counting all pairs each time: about {slow:.0f} s')


def side_by_side(pieces):
    """Return pieces in colours, with lines between them for where there are no colours."""
    return Text('│').join(Text(piece, f'{MARK} on {(BAR, CHOSEN, GIVEN_UP)[n % 3]}') for n, piece in enumerate(pieces))


def draw_compression(path, ours, gpt2):
    """Draw rows of (tokens in the vocabulary, bytes a token in the text that ours learned from, in the rest)."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout='constrained')
    for rows, style, whose in ((ours, 'o-', 'ours'), (gpt2, 'D', "GPT-2's"))[: 1 + len(gpt2)]:
        sizes, *both = zip(*rows)
        for numbers, part, colour in zip(both, ('the text that ours learned from', 'the rest of it'), (ROSE, FELL)):
            axes.plot(sizes, numbers, style, color=colour, label=f'{whose}, {part}')
    axes.set(xscale='log', xlabel='tokens in the vocabulary, log axis', ylabel='bytes a token')
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.legend(frameon=False)
    hide_spines(axes, 'top', 'right')
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == '__main__':
    configurator.run(main, Settings)
