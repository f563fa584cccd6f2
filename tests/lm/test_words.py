"""Surprisals of words: sums of their tokens, and the correction that gives a space to the word before it."""

import math

import pytest
import torch

import lm
from lm.scoring import score
from lm.words import find_boundaries, score_words

TEXT = 'The old king had a daughter, who (so they said) ate nothing but unbelievably sour apples.  "Oh!" he said.'


@pytest.fixture(scope='module')
def tiny():
    return lm.load('tiny-stories', device='cpu')


@torch.no_grad()
def logprobs_by_hand(model, tokenizer, text):
    """Return the ids of a text and the logprobs of all ids at each place, from one pass without any helper."""
    ids = tokenizer.encode(text)
    x = model.hidden(torch.tensor([[tokenizer.eot, *ids]]))
    return ids, model.logits(x)[0].double().log_softmax(-1)  # (n + 1, V)


def test_a_words_surprisal_is_the_sum_of_its_tokens(tiny):
    model, tokenizer = tiny
    (words,) = score_words(model, tokenizer, [TEXT])
    assert [word.text for word in words] == TEXT.split()
    ids, logprobs = logprobs_by_hand(model, tokenizer, TEXT)
    place = 0
    for word in words:
        of_word = ids[place : place + word.tokens]
        assert tokenizer.decode(of_word).strip() == word.text
        bits = -sum(logprobs[place + n, id].item() for n, id in enumerate(of_word)) / math.log(2)
        assert word.surprisal == pytest.approx(bits, rel=1e-4)
        probs = logprobs[place].exp()
        assert word.entropy == pytest.approx(-(probs * probs.log2()).nansum().item(), rel=1e-4)
        assert word.rank == 1 + (logprobs[place] > logprobs[place, of_word[0]]).sum().item()
        place += word.tokens
    assert place == len(ids)


def test_the_corrected_surprisal_moves_the_space_to_the_word_before_it(tiny):
    model, tokenizer = tiny
    (words,) = score_words(model, tokenizer, [TEXT])
    _, logprobs = logprobs_by_hand(model, tokenizer, TEXT)
    spaces = [
        id
        for id in range(model.n_ids)
        if id == tokenizer.eot or tokenizer.pieces([id])[0].startswith(('·', '⏎', '⇥', '␍'))
    ]
    of_space = logprobs[:, spaces].logsumexp(-1) / math.log(2)  # (n + 1,)
    place = 0
    for number, word in enumerate(words):
        before, after = of_space[place].item() if number else 0.0, of_space[place + word.tokens].item()
        assert word.corrected == pytest.approx(word.surprisal - after + before, abs=1e-3)
        place += word.tokens
    # What is moved is not lost: only the end of the text is new.
    total, moved = sum(word.surprisal for word in words), sum(word.corrected for word in words)
    assert moved == pytest.approx(total - of_space[-1].item(), abs=1e-2)


def test_punctuation_can_stand_apart(tiny):
    model, tokenizer = tiny
    (words,) = score_words(model, tokenizer, ['He said (twice): "it\'s done."'], punctuation='apart')
    assert [word.text for word in words] == ['He', 'said', '(', 'twice', '):', '"', "it's", 'done', '."']
    attached = find_boundaries(tokenizer, model.n_ids)
    apart = find_boundaries(tokenizer, model.n_ids, 'apart')
    assert attached < apart
    assert tokenizer.encode('.')[0] in apart - attached


def test_long_texts_and_many_are_scored_like_each_alone(tiny):
    model, tokenizer = tiny
    long = ' '.join(f'The king saw {n} birds.' for n in range(120))
    together = list(score_words(model, tokenizer, [TEXT, long, 'One', '', '  ']))
    assert [len(words) for words in together] == [len(TEXT.split()), 600, 1, 0, 0]
    for text, words in zip([TEXT, 'One'], [together[0], together[2]], strict=True):
        (alone,) = score_words(model, tokenizer, [text])
        assert [word.surprisal for word in words] == pytest.approx([word.surprisal for word in alone], rel=1e-4)
    ids = tokenizer.encode(TEXT)
    total = -score(model, [[tokenizer.eot]], [ids])[0].sum().item() / math.log(2)
    assert sum(word.surprisal for word in together[0]) == pytest.approx(total, rel=1e-5)
