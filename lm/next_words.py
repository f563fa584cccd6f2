"""The likeliest next words, with lower and upper bounds over all their spellings.

A word is a maximal run of letters, digits, apostrophes and hyphens. That it comes next means: an optional space, the
word, and then a character that is none of these, or the end of the text. " there", " the" + "re", "there" + "." all
count for the same word.

The search is that of text_probability.py, with all words at once. What has been completed is a lower bound for each
word. What waits to be opened counts, in the upper bound, for every word that it could still become.
"""

import codecs
import functools
import heapq
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch

from common.errors import UserError
from lm.roles import end_ids
from lm.text_probability import ROUNDING
from lm.token_tree import ROOT, TokenTree

GAP = 0.01  # relative, between the bounds of each word: where the search is content
# After each prefix, the least likely tokens are not pursued as long as their total is below this. It stays in the upper
# bounds of the words that begin like the prefix.
NEGLIGIBLE = 1e-6
MARKS = "'’-‐‑"  # beside letters and digits


class NextWord(NamedTuple):
    """A word that may come next, with bounds on its probability as natural logarithms."""

    word: str
    log_lower: float
    log_upper: float


class NextWords(NamedTuple):
    """The likeliest next words found so far."""

    words: list[NextWord]  # by lower bound, likeliest first
    others: float  # the logarithm of an upper bound on the probability of any other word
    opened: int  # prefixes whose next token has been computed
    waiting: int  # prefixes still to be opened
    mebibytes: float  # memory that the prefixes take

    @property
    def proved(self):
        """Whether no other word can be likelier than these."""
        return bool(self.words) and self.others <= self.words[-1].log_lower

    @property
    def gap(self):
        """The largest distance between the bounds of one of the words, relative to its lower one."""
        return max((math.expm1(word.log_upper - word.log_lower) for word in self.words), default=math.inf)


def next_words(model, tokenizer, prompt_ids, k=10, ends=None, gap=GAP, budget=None) -> NextWords:
    """Return the k words that are likeliest to come next after a prompt, with bounds on their probabilities.

    prompt_ids: at least one id. ends: the id, or ids, that end a text and so a word. The search stops when the words
    are proved to be the likeliest and their bounds are relatively `gap` apart, or when the lm.search.Budget is spent.
    Raises UserError for a tokenizer whose tokens' bytes depend on other tokens, ValueError for invalid arguments.
    """
    started = time.perf_counter()
    for found in next_words_steps(model, tokenizer, prompt_ids, k, ends):
        if (found.proved and found.gap <= gap) or (budget and budget.is_spent(found, time.perf_counter() - started)):
            break
    return found


def next_words_steps(model, tokenizer, prompt_ids, k=10, ends=None) -> Iterator[NextWords]:
    """Search as `next_words` does, yielding what is found after each batch, until nothing waits."""
    model.check_ids(prompt_ids, 'the prompt')
    if not len(prompt_ids) or k < 1:
        raise ValueError(f'{len(prompt_ids)} ids of prompt, k={k}: both must be at least 1')
    if not tokenizer.joins_bytes:
        raise UserError('what a token of this tokenizer spells depends on other tokens; its words have no such sum')
    tree = TokenTree(model, prompt_ids)
    search = _Search(tokenizer, model.n_ids, tree, end_ids(ends))
    yield search.found(k)
    while search.waits:
        search.open_likeliest(tree.at_once)
        yield search.found(k)


def is_word_character(character):
    """Return whether a character can be part of a word."""
    return character.isalnum() or character in MARKS


def split_word(data):
    """Return the word that bytes begin with, and whether it ends there.

    Half a character at the end may still become part of the word: it counts, and the word does not end.
    """
    decoder, size = codecs.getincrementaldecoder('utf-8')('surrogateescape'), 0
    for character in decoder.decode(data):
        if not is_word_character(character):
            return data[:size], True
        size += len(character.encode('utf-8'))
    return data, False


def whole_characters(data):
    """Return the bytes without half a character at their end."""
    decoder = codecs.getincrementaldecoder('utf-8')('surrogateescape')
    decoder.decode(data)
    return data.removesuffix(decoder.getstate()[0])


class Following(NamedTuple):
    """What each token does to a word that has begun, or may begin."""

    parts: dict  # {id of a token after which the word may go on: the bytes that it adds to it}
    ids: torch.Tensor  # these ids
    ending: list  # [(what the word is, or adds, in the end; tensor of the ids with which it ends like this)]


def follow(tokens, word=b'', may_space=False):
    """Return what Following tokens do. may_space: whether a space may come before the word, which is empty then.

    tokens: what each id spells, which is nothing (b'') for a space that is dropped; None for ids without text.
    """
    parts, ending = {}, defaultdict(list)
    for id, token in enumerate(tokens):
        if token is not None:
            added = token[1:] if may_space and token.startswith(b' ') else token
            whole, ends = split_word(word + added)
            if not ends:
                parts[id] = added
            elif whole:  # else what comes first is no word
                ending[whole].append(id)
    ending = [(whole, torch.tensor(ids)) for whole, ids in ending.items()]
    return Following(parts, torch.tensor(list(parts), dtype=torch.int64), ending)


@functools.lru_cache(maxsize=4)
def follow_whole_characters(tokenizer, n_ids):
    """Return the Following after any word that ends with a whole character; it has what is added to the word."""
    letter = b'a'
    parts, ids, ending = follow([token or None for token in tokenizer.token_bytes[:n_ids]], letter)
    return Following(parts, ids, [(whole.removeprefix(letter), ids) for whole, ids in ending])


class _Search:
    """The state of a search: what each word has been found to have, and the prefixes that wait, likeliest first."""

    def __init__(self, tokenizer, n_ids, tree, ends):
        self._tokenizer, self._n_ids, self._tree, self._ends = tokenizer, n_ids, tree, sorted(ends)
        self._tokens = [token or None for token in tokenizer.token_bytes[:n_ids]]
        self._lower = defaultdict(float)  # {word: probability}
        self._waiting = defaultdict(float)  # {what a word begins with: probability of prefixes that were not opened}
        self._heap = []  # (-logprob, number, node before, id, the word after the id, whether a space may still come)
        self._numbers, self._opened, self._longest = itertools.count(), 0, 0
        first = self._tokens
        if tokenizer.drops_space(tree.prompt_ids):
            first = [token and token.removeprefix(b' ') for token in first]
        dropped = {id for id, token in enumerate(first) if token == b''}  # a space may still come after these
        self._open(ROOT, b'', 0.0, tree.root_logprobs, follow(first, may_space=True), dropped)

    @property
    def waits(self):
        """Whether prefixes wait."""
        return bool(self._heap)

    def open_likeliest(self, n):
        """Open the n likeliest prefixes, or all that wait."""
        popped = [heapq.heappop(self._heap) for _ in range(min(n, len(self._heap)))]
        nodes, rows = self._tree.read([node for _, _, node, *_ in popped], [id for *_, id, _, _ in popped])
        for (negative, _, _, _, word, may_space), node, row in zip(popped, nodes, rows, strict=True):
            self._waiting[whole_characters(word)] -= math.exp(-negative)  # which the word may turn out to be
            if not word or whole_characters(word) != word:
                following = follow(self._tokens, word, may_space)
            else:
                parts, ids, ending = follow_whole_characters(self._tokenizer, self._n_ids)
                following = Following(parts, ids, [(word + added, ids) for added, ids in ending])
            self._open(node, word, -negative, row, following)

    def _open(self, node, word, logprob, row, following, dropped=()):
        """Add up what ends a word, and let what goes on wait. row: (V,) logprobs of what follows."""
        self._opened += 1
        self._longest = max(self._longest, 1 + len(self._tree.path(node)))
        for whole, ids in following.ending:
            self._lower[whole] += math.exp(logprob + row[ids].logsumexp(0).item())
        if self._ends and (whole := whole_characters(word)):
            self._lower[whole] += math.exp(logprob + row[self._ends].logsumexp(0).item())
        totals = logprob + row[following.ids]
        totals, order = totals.sort()
        sums = totals.exp().cumsum(0)
        n = int((sums < NEGLIGIBLE).sum())
        self._waiting[whole_characters(word)] += sums[n - 1].item() if n else 0.0
        for id, total in zip(following.ids[order[n:]].tolist(), totals[n:].tolist(), strict=True):
            longer = word + following.parts[id]
            self._waiting[whole_characters(longer)] += math.exp(total)
            heapq.heappush(self._heap, (-total, next(self._numbers), node, id, longer, id in dropped))

    def found(self, k):
        """Return the NextWords of what has been opened so far."""
        reaching = functools.cache(lambda word: self._waiting.get(word, 0.0) + (reaching(word[:-1]) if word else 0.0))
        upper = {word: lower + reaching(word) for word, lower in self._lower.items()}
        ranked = sorted(self._lower, key=self._lower.get, reverse=True)
        unseen = max((reaching(word) for word, waiting in self._waiting.items() if waiting > 0), default=0.0)
        others = max([unseen, *(upper[word] for word in ranked[k:])])
        slack = ROUNDING * self._longest

        def bound_above(prob):
            return min(0.0, math.log(max(prob, 1e-300)) + slack)

        words = [
            NextWord(word.decode('utf-8', 'replace'), math.log(self._lower[word]) - slack, bound_above(upper[word]))
            for word in ranked[:k]
        ]
        mebibytes = (self._tree.nbytes + 300 * len(self._heap)) / 2**20  # about the size of the Python objects
        return NextWords(words, bound_above(others), self._opened, len(self._heap), mebibytes)
