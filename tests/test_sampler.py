"""The settings of the sampler, alone and together, against the logits processors of transformers."""

import itertools
import math

import pytest
import torch
from helpers.models import random_gpt
from transformers import GPT2Config, GPT2LMHeadModel, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from lm.checkpoint import load_model
from lm.responses import generate_responses
from lm.scoring import score_window
from lm.settings import SamplingSettings
from model import logits_to_logprobs, sample

TOGETHER = {'temperature': 0.7, 'top_k': 30, 'top_p': 0.9, 'min_p': 0.02, 'repetition_penalty': 1.3}


def random_logits(*shape, seed=0):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_ids(*shape, below, seed=0):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    return random_gpt(vocab_size=60, block_size=16)


@pytest.mark.parametrize('penalty', [0.01, 0.5, 1.0, 1.2, 100.0])
def test_repetition_penalty_is_transformers(penalty):
    logits, text = random_logits(4, 40), random_ids(4, 25, below=40)  # some ids are there twice
    logits[0, text[0, 0]] = 0.0
    logits[1, 30:] = -math.inf  # padding ids
    expected = RepetitionPenaltyLogitsProcessor(penalty)(text, logits).log_softmax(-1)
    found = logits_to_logprobs(logits, repetition_penalty=penalty, text=text)
    torch.testing.assert_close(found, expected)
    likeliest = logits_to_logprobs(logits, 0, repetition_penalty=penalty, text=text).argmax(-1)
    assert torch.equal(likeliest, expected.argmax(-1))


@pytest.mark.parametrize('min_p', [None, 0.0, 1e-9, 0.05, 0.3, 1.0])
@pytest.mark.parametrize('temperature', [0.3, 1.0, 2.5])
def test_min_p_is_transformers(min_p, temperature):
    logits = random_logits(6, 40)
    expected = logits / temperature
    expected = expected if min_p is None else MinPLogitsWarper(min_p)(None, expected)
    torch.testing.assert_close(logits_to_logprobs(logits, temperature, min_p=min_p), expected.log_softmax(-1))


def test_equals_at_the_edge_of_min_p_all_stay():
    probs = logits_to_logprobs(torch.tensor([0.4, 0.4, 0.1, 0.1]).log(), min_p=1.0).exp()
    assert probs.tolist() == pytest.approx([0.5, 0.5, 0, 0])


@pytest.mark.parametrize('left_out', [None, *TOGETHER])
def test_all_settings_together_apply_in_transformers_order(left_out, tmp_path):
    """The scores from which transformers' generate draws, step by step, with prompt and response in the penalty."""
    torch.manual_seed(1)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=90, n_positions=40, n_embd=16, n_layer=1, n_head=2)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, device='cpu')[0]
    sampler = {name: value for name, value in TOGETHER.items() if name != left_out}
    prompt = random_ids(3, 12, below=90)
    of_theirs = {'top_k': 0, **sampler, 'do_sample': True, 'max_new_tokens': 20, 'eos_token_id': None}
    of_theirs |= {'return_dict_in_generate': True, 'output_scores': True, 'attention_mask': torch.ones_like(prompt)}
    made = theirs.generate(prompt, **of_theirs)
    for row in range(3):
        *_, response = made.sequences[row].split([12, 20])
        text = made.sequences[row : row + 1]
        logits = ours(text, text)[0][0]
        for step, scores in enumerate(made.scores):
            before = text[0, : 12 + step]
            found = logits_to_logprobs(logits[11 + step], **sampler, text=before)
            torch.testing.assert_close(found, scores[row].log_softmax(-1), atol=2e-5, rtol=1e-4)
            assert found[response[step]] > -math.inf


def test_working_on_the_top_k_alone_gives_what_masking_the_others_gives():
    logits = random_logits(5, 60)
    logits[1] = logits[1].round()  # many equals
    logits[2, 20:] = -math.inf
    for top_k, temperature, top_p, min_p in itertools.product(
        (1, 2, 7, 59, 60, 80), (0, 0.7, 1.0), (None, 0.9), (None, 0.1)
    ):
        for rows in (slice(0, 1), slice(2, 5), slice(0, 5)):
            least = logits[rows].sort(descending=True).values[:, min(top_k, 60) - 1, None]
            masked = logits[rows].masked_fill(logits[rows] < least, -math.inf)
            expected = logits_to_logprobs(masked, temperature, None, top_p, min_p)
            found = logits_to_logprobs(logits[rows], temperature, top_k, top_p, min_p)
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
            uniforms = [0.1, 0.5, 0.9, 0.0, 0.3][: len(found)]
            assert torch.equal(sample(found, uniforms), sample(expected, uniforms))


def test_the_penalty_is_applied_before_top_k():
    """Of the two likeliest, one is in the text: after the penalty, another takes its place."""
    logits, text = torch.tensor([[5.0, 4.0, 3.0, 2.0]]), torch.tensor([[0]])
    found = logits_to_logprobs(logits, 1.0, 2, repetition_penalty=2.0, text=text)
    assert (found > -math.inf).tolist() == [[False, True, True, False]]


# Everywhere that a sampler's probability comes from ------------------------------------------------------------------


def test_steps_penalize_prompt_and_response_even_beyond_the_context(model):
    prompt = random_ids(2, 10, below=60)
    for number, step in enumerate(model.steps(prompt, 20, seed=3, **TOGETHER)):
        assert step.text.size(1) == 10 + number
        expected = logits_to_logprobs(step.logits, **TOGETHER, text=step.text)
        assert step.sampler_logprob.tolist() == expected[[0, 1], step.ids].tolist()
        assert step.model_logprob.tolist() == logits_to_logprobs(step.logits)[[0, 1], step.ids].tolist()
    text, prob = model.generate(prompt, 20, seed=3, **TOGETHER)
    assert torch.equal(text[:, :-1], step.text)
    assert (prob > 0).all()


def test_a_fixed_response_is_penalized_but_not_cut_off(model):
    prompt, response = random_ids(1, 4, below=60), random_ids(9, below=60, seed=8).tolist()
    cuts = {'top_k': 1, 'top_p': 0.01, 'min_p': 1.0}
    steps = list(model.steps(prompt, fixed_response=response, temperature=0.7, repetition_penalty=1.5, **cuts))
    for step in steps:
        expected = logits_to_logprobs(step.logits, 0.7, repetition_penalty=1.5, text=step.text)
        assert step.sampler_logprob.item() == expected[0, step.ids.item()].item() > -math.inf


@pytest.mark.parametrize('batch_tokens', [1, 512])
def test_scoring_penalizes_as_steps_do_whatever_the_lengths(model, monkeypatch, batch_tokens):
    monkeypatch.setattr('lm.scoring.CPU_BATCH_TOKENS', batch_tokens)
    lengths = [(1, 1), (3, 20), (17, 5), (2, 14), (5, 0), (60, 6), (60, 3)]  # the last two share their prompt
    pairs = [(random_ids(n, below=60, seed=n).tolist(), random_ids(m, below=60, seed=m).tolist()) for n, m in lengths]
    settings = SamplingSettings(temperature=0.8, repetition_penalty=1.4, top_k=1)
    scores = score_window(model, pairs, n_records=dict.fromkeys(range(7), 4), **settings.sampler(fixed=True))
    for (prompt, response), score in zip(pairs, scores, strict=True):
        *_, (expected,) = generate_responses(model, prompt, settings, 1, response, recorded_steps=4)
        assert score.sampler_logprobs.tolist() == pytest.approx(expected.sampler_logprobs, abs=1e-5)
        assert score.model_logprobs.tolist() == pytest.approx(expected.model_logprobs, abs=1e-5)
        for record, other in zip(score.records, expected.records, strict=True):
            assert record.sampler_logprob == pytest.approx(other.sampler_logprob, abs=1e-5)
            assert record.alternatives[3].sampler_logprob == pytest.approx(
                other.alternatives[3].sampler_logprob, abs=1e-5
            )


def test_records_have_the_probabilities_that_tokens_were_drawn_with(model):
    settings = SamplingSettings(max_new_tokens=12, **TOGETHER)
    *_, responses = generate_responses(model, [1, 2, 3], settings, 2, recorded_steps=math.inf)
    for response in responses:
        recorded = [record.sampler_logprob for record in response.records]
        assert recorded == pytest.approx(response.sampler_logprobs, abs=1e-6)
