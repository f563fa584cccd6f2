"""The live page's answers: the numbers of lm.scoring, the texts of sample.py, the proofs of lm.search."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from helpers.models import random_gpt
from helpers.tokenizers import PROSE
from starlette.testclient import TestClient

import lm
from lm.internals import logit_lens
from lm.responses import generate_responses
from lm.scoring import cut_text, score, segment_ends
from lm.search import most_probable
from lm.settings import SamplingSettings
from lm.tokenizer import train_bpe
from server import explore_jobs as jobs
from server.explore_reader import Reader
from server.prefix_cache import PrefixCache


@pytest.fixture(scope='module')
def reader():
    return Reader(*lm.load('tiny-stories'), PrefixCache(2**26))


def columns(parts, name, which=0):
    return [float(value) for part in parts if part.get('which', 0) == which for value in part.get(name, [])]


@pytest.mark.slow
def test_typing_letter_by_letter_gives_the_numbers_of_the_whole_text(reader):
    text = 'Once upon a time there was a woodcutter 🙂.'
    for end in range(1, len(text) + 1):
        first, *parts = jobs.read_tokens([reader], [], text[:end], False, 0)
    ids = reader.tokenizer.encode(text)
    assert first['ids'] == ids
    assert bytes.fromhex(''.join(first['bytes'])).decode() == text
    (expected,) = score(reader.model, [ids[:1]], [ids[1:]])
    assert columns(parts, 'logprobs') == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.slow
def test_a_text_beyond_the_context_has_the_numbers_of_eval_text(reader):
    ids = reader.tokenizer.encode('The king had a daughter. She was kind, and he loved her. ' * 60)
    assert len(ids) > 3 * reader.model.block_size
    pairs = list(cut_text(ids, segment_ends(len(ids), 256, 128), 256, reader.tokenizer.start_ids()))
    expected = torch.cat(score(reader.model, *zip(*pairs))).tolist()
    _, *parts = jobs.read_tokens([reader], ids, '', True, 0)
    assert columns(parts, 'logprobs') == pytest.approx(expected, abs=1e-5)
    _, *parts = jobs.read_tokens([reader], ids, '', True, 700)
    assert parts[0]['at'] == 700 and columns(parts, 'logprobs') == pytest.approx(expected[700:], abs=1e-5)


@pytest.mark.slow
def test_drawing_gives_the_text_of_sample_py(reader):
    prompt = reader.tokenizer.encode('Once upon a time')
    settings = SamplingSettings(max_new_tokens=12)
    *_, (response,) = generate_responses(reader.model, prompt, settings)
    parts = list(jobs.draw_steps(reader, prompt, False, 12, settings.seed, temperature=0.8, top_k=200))
    assert [id for part in parts for id in part['ids']] == response.ids
    assert columns(parts, 'sampler_logprobs') == pytest.approx(response.sampler_logprobs, abs=1e-5)


@pytest.mark.slow
def test_the_search_proves_the_likeliest(reader):
    prompt = reader.tokenizer.encode('Once upon a time there')
    *_, last = jobs.prove_likeliest(reader, prompt, False, 3, 4)
    sequences, logprobs, _ = most_probable(reader.model, torch.tensor([prompt]), 3, 4)
    assert last['exact'] and last['done']
    assert [one['ids'] for one in last['found']] == sequences[:, len(prompt) :].tolist()
    assert [one['logprob'] for one in last['found']] == pytest.approx(logprobs.tolist(), abs=1e-5)


@pytest.mark.slow
def test_the_lens_and_the_attention_are_those_of_the_position_that_predicts(reader):
    ids = reader.tokenizer.encode('Once upon a time there was')
    lens, *layers = [part for part in jobs.look_inside(reader, ids, 4, False) if part]
    expected = logit_lens(reader.model, torch.tensor([ids]))
    assert [layer['best'] for layer in lens['lens']] == expected.ids[:, 0, 3].tolist()
    assert [layer['rank'] for layer in lens['lens']] == expected.next_ranks[:, 0, 3].tolist()
    assert all(sum(head) == pytest.approx(1, abs=1e-3) and len(head) == 4 for part in layers for head in part['heads'])


@pytest.mark.parametrize('length', [3, 30], ids=['within the context', 'beyond it'])
def test_no_search_keeps_the_engine_for_longer_than_a_short_pass(length, monkeypatch):
    model, tokenizer = random_gpt(vocab_size=304, n_ids=300, block_size=24), train_bpe([PROSE], 300)
    reader, prompt, response = Reader(model, tokenizer, PrefixCache(2**20)), list(range(1, 1 + length)), [7] * 12
    hidden, computed = model.hidden, []
    monkeypatch.setattr(model, 'hidden', lambda idx, *others: computed.append(idx.numel()) or hidden(idx, *others))
    monkeypatch.setattr('lm.search.CPU_BATCH_TOKENS', 2 * model.block_size)
    searches = {
        'beams': jobs.search_beams(reader, prompt, False, 12, 20),
        'prove': jobs.prove_likeliest(reader, prompt, False, 12, 20),
        'text': jobs.bound_spellings(reader, prompt, response),
    }
    for name, parts in searches.items():
        for _ in itertools.islice(parts, 60):
            assert sum(computed) <= 4 * model.block_size, name
            computed.clear()


def test_a_forced_token_keeps_its_place_when_somebody_types_on(reader):
    forced = [*reader.tokenizer.encode('a t'), *reader.tokenizer.encode('ime')]
    assert reader.tokenizer.encode('a time') != forced
    ids = jobs.encode_text(reader.tokenizer, forced, ' ago')
    assert ids[: len(forced)] == forced and reader.tokenizer.decode(ids) == 'a time ago'
    usual = reader.tokenizer.encode('a t')
    assert jobs.encode_text(reader.tokenizer, usual, 'ime') == reader.tokenizer.encode('a time')


@pytest.mark.slow
def test_the_routes_answer_and_refuse(reader):
    from server.app import make_app  # here: the application is needed once
    from server.engine import Engine, NamedModel

    class Settings:
        host, allow_origin, dtype, quantize = '127.0.0.1', None, None, None

    engine = Engine([NamedModel('tiny-stories', reader.model, reader.tokenizer, Settings())])
    with TestClient(make_app(engine, Settings()), base_url='http://127.0.0.1') as client:
        page = client.get('/')
        assert page.status_code == 200 and "script-src 'sha256-" in page.headers['content-security-policy']
        assert 'unsafe' not in page.headers['content-security-policy']
        ids = reader.tokenizer.encode('Once upon a time')
        lines = client.post('/explore/read', json={'ids': [], 'text': 'Once upon a time'}).text.splitlines()
        assert json.loads(lines[0])['ids'] == ids
        data = client.post('/explore/logits', json={'ids': ids, 'at': 3}).content
        expected = reader.model(torch.tensor([ids[:3]]))[0][0, -1]
        np.testing.assert_allclose(np.frombuffer(data, '<f4'), expected.detach().numpy(), atol=1e-4)
        texts = [{'label': '</script>', 'ids': ids}]
        body = {'texts': texts, 'title': 't', 'sampler_name': 'temperature 1', 'sampler': {}}
        saved = client.post('/explore/static_page', json=body)
        assert saved.status_code == 200 and saved.text.count('</script>') == 2  # its data and its script
        for path, wrong in (
            ('read', {'ids': [10**9]}),
            ('read', {'ids': [-1]}),
            ('read', {'ids': 'x'}),
            ('read', {'text': 1}),
            ('read', {'unknown': 1}),
            ('logits', {'ids': ids, 'at': 0}),
            ('logits', {'ids': ids, 'at': 99}),
            ('go_on', {'ids': ids, 'count': 10**6}),
            ('go_on', {'ids': ids, 'sampler': {'temperature': -1}}),
            ('prove', {'ids': ids, 'k': 0}),
            ('static_page', {'texts': [], 'title': '', 'sampler_name': ''}),
        ):
            answer = client.post(f'/explore/{path}', json=wrong)
            assert answer.status_code == 400 and answer.json()['error']['message'], (path, wrong)


def test_infinite_logprobs_are_words_in_json(reader):
    ids = reader.tokenizer.encode('Once upon a king')
    *_, last = jobs.read_tokens([reader], ids, '', False, 0, temperature=0.0)
    assert '-Infinity' in last['sampler_logprobs'] and math.isfinite(last['logprobs'][-1])
    json.dumps(last, allow_nan=False)
