"""Scores against transformers through lm-evaluation-harness, against model.steps, and against one token at a time."""

import itertools
import random

import pytest
import torch
from helpers.models import needs_gpt2_vocabulary, random_gpt
from helpers.scripts import PROJECT
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from lm import checkpoint, scoring
from lm.scoring import cut_text, score_pairs, segment_ends
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder
from model import logits_to_logprobs

WORDS = [
    'the',
    'king',
    'Ann',
    'gold',
    '42',
    'naïve',
    'Straße',
    '東京',
    '🦊',
    'un',
    'happy',
    "don't",
    'x',
    '...',
    '¿',
    'é',
]
JOINS = ['', ' ', '  ', '\n', '\n\n', ' \t', ', ', '\u00a0']


def random_ids(model, n, rng):
    return [rng.randrange(model.n_ids) for _ in range(n)]


def steps_of(model, prompt, response, temperature=1.0):
    return list(model.steps(torch.tensor([prompt]), temperature=temperature, fixed_response=response))


def rank_of(logits, chosen):
    """Return the place of an id when all are sorted, likeliest first and equals by id."""
    order = sorted(range(len(logits)), key=lambda id: (-logits[id], id))
    return order.index(chosen) + 1


@pytest.mark.parametrize('batch_tokens', [1, 40, 10_000])
def test_scores_equal_the_steps_of_each_pair(model, monkeypatch, batch_tokens):
    """Prompts that many share, prompts that are alone, pairs within and beyond the context of 16 tokens."""
    monkeypatch.setattr(scoring, 'CPU_BATCH_TOKENS', batch_tokens)
    monkeypatch.setattr(scoring, 'WINDOW', 23)
    monkeypatch.setattr(scoring, 'MIN_TOKENS_SAVED', 8)
    rng = random.Random(0)
    prompts = [random_ids(model, n, rng) for n in (1, 2, 5, 9, 15, 16, 17, 30)]
    pairs = [(rng.choice(prompts), random_ids(model, rng.choice([0, 1, 2, 5, 11, 20]), rng)) for _ in range(70)]
    scores = list(score_pairs(model, iter(pairs), temperature=0.7))
    assert len(scores) == len(pairs)
    for (prompt, response), score in zip(pairs, scores, strict=True):
        steps = steps_of(model, prompt, response, temperature=0.7)
        assert score.model_logprobs.tolist() == pytest.approx([step.model_logprob.item() for step in steps], abs=1e-5)
        assert score.sampler_logprobs.tolist() == pytest.approx(
            [step.sampler_logprob.item() for step in steps], abs=1e-5
        )
        assert score.ranks.tolist() == [rank_of(step.logits[0].tolist(), step.ids.item()) for step in steps]
        tops = [logits_to_logprobs(step.logits[0]).max().item() for step in steps]
        assert score.top_logprobs.tolist() == pytest.approx(tops, abs=1e-5)


def test_a_prompt_that_many_share_is_computed_once(model, monkeypatch):
    read = []
    hidden = model.hidden
    monkeypatch.setattr(model, 'hidden', lambda idx, cache=None: read.append(idx.numel()) or hidden(idx, cache))
    prompt = list(range(12))
    pairs = [(prompt, [id, id + 1]) for id in range(30)]
    list(score_pairs(model, pairs))
    assert sum(read) == 11 + 30 * 2  # the prompt without its last token; then that token and one more for each
    assert len(read) == 2


def test_among_equals_the_lower_id_has_the_lower_rank(model):
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    torch.nn.init.zeros_(model.transformer.ln_f.bias)  # all logits are 0
    (score,) = score_pairs(model, [([1], [0, 7, 60])])
    assert score.ranks.tolist() == [1, 8, 61]


def test_padding_ids_take_no_part():
    model = random_gpt(vocab_size=64, n_ids=60)
    (score,) = score_pairs(model, [([1, 2], [3, 59])])
    steps = steps_of(model, [1, 2], [3, 59])
    assert score.model_logprobs.tolist() == pytest.approx([step.model_logprob.item() for step in steps], abs=1e-5)
    assert max(score.ranks.tolist()) <= 60


@pytest.mark.parametrize(('n', 'stride'), [(1, 4), (16, 16), (17, 16), (50, 16), (50, 5), (50, 1), (3, 8)])
def test_running_text_scores_every_token_once_behind_what_fits(model, n, stride):
    ids = random_ids(model, n, random.Random(n))
    pairs = list(cut_text(ids, segment_ends(n, 16, stride), 16, first=[60]))
    assert list(itertools.chain(*(response for _, response in pairs))) == ids
    logprobs = torch.cat([score.model_logprobs for score in score_pairs(model, pairs)])
    place = 0
    for prompt, response in pairs:
        assert len(prompt) + len(response) - 1 <= 16
        start = max(0, place + len(response) - 16)
        assert prompt == [60, *ids][start : place + 1]
        for offset, id in enumerate(response):
            context = [*prompt, *response[:offset]]
            logits, _ = model(torch.tensor([context]))
            expected = torch.log_softmax(logits[0, -1].double(), -1)[id].item()
            assert logprobs[place + offset].item() == pytest.approx(expected, abs=1e-5)
        place += len(response)


def test_a_smaller_stride_gives_every_token_at_least_as_much_to_see():
    def seen(stride):
        pairs = cut_text(list(range(100)), segment_ends(100, 16, stride), 16, first=[0])
        return [len(prompt) + offset for prompt, response in pairs for offset in range(len(response))]

    for small, large in itertools.pairwise([1, 4, 8, 16]):
        assert all(a >= b for a, b in zip(seen(small), seen(large), strict=True))


def test_text_without_tokens_has_no_pairs():
    assert list(cut_text([], segment_ends(0, 16, 16), 16, first=[0])) == []


# Against lm-evaluation-harness --------------------------------------------------------------------------------------


@pytest.fixture(
    scope='module',
    params=['tiny', pytest.param('gpt2', marks=[needs_gpt2_vocabulary, pytest.mark.slow])],
    ids=["tiny's tokenizer", "GPT-2's tokenizer"],
)
def both(request, tmp_path_factory):
    """A random-weight GPT-2 folder, loaded by us and by lm-evaluation-harness."""
    folder = tmp_path_factory.mktemp('gpt2')
    tokenizer = tokenizer_from_folder(PROJECT / 'models' / 'tiny') if request.param == 'tiny' else GPT2Tokenizer()
    model = random_gpt(vocab_size=tokenizer.vocab_size, block_size=64, n_embd=32, n_layer=2, n_head=4)
    checkpoint.save_pretrained(model, folder, tokenizer)
    model, tokenizer, _ = checkpoint.load_model(str(folder), device='cpu')
    theirs = HFLM(
        pretrained=str(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dtype='float32',
        device='cpu',
        batch_size=16,
        max_length=64,
    )
    return model, tokenizer, theirs


def generated_pairs(tokenizer, count=500):
    """Return pairs of every kind that fit the context and for which the harness's rule leaves a response."""
    rng = random.Random(1)
    pairs = []
    while len(pairs) < count:
        prompt, response = (
            ''.join(rng.choice(JOINS) + rng.choice(WORDS) for _ in range(rng.randrange(least, 7))) + rng.choice(JOINS)
            for least in (0, 1)
        )
        whole, stripped = tokenizer.encode(prompt + response), tokenizer.encode(prompt.rstrip())
        defined = len(whole) > len(stripped) and (stripped or not prompt)
        if defined and len(whole) <= 60:
            pairs.append((prompt, response))
    return pairs


def test_sum_and_greedy_equal_lm_evaluation_harness_on_500_pairs(both):
    model, tokenizer, theirs = both
    pairs = generated_pairs(tokenizer)
    assert any(prompt == '' for prompt, _ in pairs)
    assert any(prompt.endswith(' ') for prompt, _ in pairs)
    assert any(response.startswith('\n') for _, response in pairs)
    # Half of the greedy ones are made: what the model would have said.
    for place in range(0, 40, 2):
        prompt = pairs[place][0]
        ids, _ = model.generate(torch.tensor([tokenizer.encode_prompt(prompt.rstrip())]), 3, temperature=0)
        said = tokenizer.decode(ids[0].tolist()[-3:])
        # Where prompt and response meet inside a token, the harness scores another text.
        if tokenizer.encode(prompt.rstrip() + said) == tokenizer.encode_prompt(prompt.rstrip()) + ids[0].tolist()[-3:]:
            pairs[place] = (prompt.rstrip(), said)
    requests = [Instance('loglikelihood', {}, pair, index) for index, pair in enumerate(pairs)]
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    scores = score_pairs(model, (tokenizer.encode_pair(*pair) for pair in pairs))
    for pair, score, (logprob, is_greedy) in zip(pairs, scores, expected, strict=True):
        assert score.model_logprobs.sum().item() == pytest.approx(logprob, abs=1e-4), pair
        assert bool((score.ranks == 1).all()) == is_greedy, pair
    assert sum(is_greedy for _, is_greedy in expected) >= 3


def test_rolling_equals_lm_evaluation_harness(both):
    model, tokenizer, theirs = both
    rng = random.Random(2)
    texts = [' '.join(rng.choices(WORDS, k=k)) + '\n' for k in (1, 5, 30, 70, 200)]
    requests = [Instance('loglikelihood_rolling', {}, (text,), index) for index, text in enumerate(texts)]
    for text, expected in zip(texts, theirs.loglikelihood_rolling(requests, disable_tqdm=True), strict=True):
        ids = tokenizer.encode(text)
        pairs = cut_text(ids, segment_ends(len(ids), 64, 64), 64, [tokenizer.eot])
        logprob = sum(score.model_logprobs.sum().item() for score in score_pairs(model, pairs))
        # The harness sums in float32, whose neighbouring numbers are 2.4e-4 apart beyond 2,048.
        assert logprob == pytest.approx(expected, abs=1e-4, rel=1e-7)
