"""How surprising each word of a text is, in bits.

A word may be several tokens, and its surprisal is the sum of theirs. But most tokens contain the space *before* a word,
so that sum says that the word before has ended, and does not say that this one has. The corrected surprisal counts the
space after a word to that word, and no longer the one before it (Pimentel & Meister 2024, How to Compute the
Probability of a Word, https://aclanthology.org/2024.emnlp-main.1020; Oh & Schuler 2024,
https://aclanthology.org/2024.emnlp-main.202):

    corrected = sum - log2 P(a boundary comes after the word) + log2 P(a boundary comes before it)

A boundary is any token that begins with white space, or ends the text; where punctuation is apart, any that begins with
punctuation, too. The first word of a text has nothing before it to take away.
"""

import itertools
import math
import re
from typing import NamedTuple

import torch

from lm.scoring import WINDOW, cut_text, score_window, segment_ends

WORDS = {'attached': re.compile(r'\S+'), 'apart': re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")}


class Word(NamedTuple):
    """A word of a text, and what a model says about it. Tokens of white space alone belong to the word after them."""

    text: str
    tokens: int  # 0 if it shares its only token with the word before it; then there are no numbers
    surprisal: float  # in bits: the sum over its tokens
    corrected: float  # in bits: with the boundary after it instead of the one before it
    entropy: float  # in bits, of the model's distribution before its first token
    rank: int  # of its first token


def score_words(model, tokenizer, texts, punctuation='attached', stride=None, block_size=None):
    """Yield the list of Words of each text.

    texts: an iterable of str. punctuation: 'attached' to the words, or 'apart'. stride: tokens of a long text that are
    scored at a time; None for half a context. block_size: tokens that the model is shown; None for all that it can see.
    """
    block_size = block_size or model.block_size
    stride = stride or max(1, block_size // 2)
    boundaries = find_boundaries(tokenizer, model.n_ids, punctuation)
    boundary_ids = torch.tensor(sorted(boundaries))
    texts = iter(texts)
    while window := list(itertools.islice(texts, WINDOW)):
        ids_of = [tokenizer.encode(text) for text in window]
        cut = [_cut(tokenizer, ids, block_size, stride) for ids in ids_of]
        pairs = [pair for pairs in cut for pair in pairs]
        scores = iter(score_window(model, pairs, boundary_ids=boundary_ids.to(model.device)))
        for ids, pairs in zip(ids_of, cut, strict=True):
            scored = [next(scores) for _ in pairs]
            numbers = [
                torch.cat([getattr(score, name) for score in scored]).tolist()
                for name in ('model_logprobs', 'boundary_logprobs', 'entropies', 'ranks')
            ]
            if not tokenizer.start_ids():  # nothing predicts the first token
                numbers = [[math.nan, *column] for column in numbers]
            words = _group_tokens(ids, tokenizer, punctuation)
            yield [_describe_word(word, tokens, ids, boundaries, *numbers) for word, tokens in words]


def find_boundaries(tokenizer, n_ids, punctuation='attached'):
    """Return the set of ids that can only come where no word goes on, and of those that end a text."""
    found = set(tokenizer.roles.ends)
    for id, token in enumerate(tokenizer.token_bytes[:n_ids]):
        first = token.decode('utf-8', 'ignore')[:1] if token and token[0] not in range(0x80, 0xC0) else ''
        if first.isspace() or (punctuation == 'apart' and first and not re.match(r'\w', first)):
            found.add(id)
    return {id for id in found if id < n_ids}


def _cut(tokenizer, ids, block_size, stride):
    """Return a text as pairs to score, with one more token at its end: what is predicted there is needed, too."""
    ids = [*ids, 0]
    ends = segment_ends(len(ids), block_size, stride)
    return list(cut_text(ids, ends, block_size, tokenizer.start_ids()))


def _describe_word(word, tokens, ids, boundaries, logprobs, boundary_logprobs, entropies, ranks):
    """Return the Word of these tokens, indices into ids; the lists have a number for each id, and one more."""
    if not tokens:
        return Word(word, 0, math.nan, math.nan, math.nan, 0)
    first, following = tokens[0], tokens[-1] + 1
    bits = -sum(logprobs[token] for token in tokens) / math.log(2)
    before = boundary_logprobs[first] if ids[first] in boundaries else 0.0
    after = boundary_logprobs[following] if following == len(ids) or ids[following] in boundaries else 0.0
    corrected = bits + (before - after) / math.log(2)
    return Word(word, len(tokens), bits, corrected, entropies[first] / math.log(2), ranks[first])


def _group_tokens(ids, tokenizer, punctuation):
    """Yield (word, indices of its tokens) for each word of the text that ids spell."""
    parts = tokenizer.split_bytes(ids, tokenizer.start_ids())
    data = b''.join(parts)
    starts = list(itertools.accumulate(map(len, parts), initial=0))
    # Where each token's first byte that is no white space stands: the word there has the token.
    places = [start + len(part) - len(part.lstrip()) for start, part in zip(starts, parts)]
    token, end, read, text = 0, 0, 0, data.decode('utf-8', 'surrogateescape')
    for match in WORDS[punctuation].finditer(text):
        end += len(text[read : match.end()].encode('utf-8', 'surrogateescape'))  # of the word, in bytes
        read, tokens = match.end(), []
        while token < len(ids) and places[token] < end:
            tokens.append(token)
            token += 1
        yield match[0], tokens
