"""/v1/completions against sample.py's own code, the model's forward pass, and what a client may get wrong."""

import json

import pytest
import torch
from helpers.live_server import run_live_server
from helpers.models import random_gpt
from helpers.tokenizers import PROSE

from lm.responses import generate_responses
from lm.settings import SamplingSettings
from lm.tokenizer import train_bpe
from model import logits_to_logprobs

TOKENIZER = train_bpe([PROSE], 300)


@pytest.fixture(scope='module')
def server():
    models = [(random_gpt(vocab_size=304, n_ids=300, block_size=64, seed=seed), TOKENIZER) for seed in (0, 1)]
    with run_live_server(models) as server:
        yield server


def model_logprobs(server, ids):
    """Return the logprob of each id but the first, by one forward pass of the model."""
    model = server.engine.models[0].model
    logprobs = logits_to_logprobs(model(torch.tensor([ids]), torch.tensor([ids]))[0][0]).detach()
    return [logprobs[place - 1, ids[place]].item() for place in range(1, len(ids))]


SAMPLERS = [
    {'temperature': 0.8, 'top_k': 20, 'seed': 1337},
    {'temperature': 1.3, 'top_p': 0.7, 'min_p': 0.05, 'repetition_penalty': 1.4, 'seed': 5},
    {'temperature': 0, 'seed': 0},
]


@pytest.mark.slow
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_the_same_seed_gives_the_same_texts_and_logprobs_as_sample_py(server, sampler):
    model = server.engine.models[0].model
    prompts = ['The boat', 'So you']
    answer = server.complete(prompt=prompts, max_tokens=70, n=3, logprobs=0, ignore_eos=True, **sampler)
    settings = SamplingSettings(**({'top_k': None} | sampler), max_new_tokens=70)
    for number, prompt in enumerate(prompts):
        *_, responses = generate_responses(model, TOKENIZER.encode_prompt(prompt), settings, 3)  # beyond the context
        for row, response in enumerate(responses):
            choice = answer['choices'][3 * number + row]
            assert choice['index'] == 3 * number + row
            assert choice['text'] == TOKENIZER.decode(response.ids)
            assert choice['finish_reason'] == 'length'
            logprobs = choice['logprobs']
            assert logprobs['token_ids'] == response.ids
            assert logprobs['token_logprobs'] == pytest.approx(response.model_logprobs, abs=1e-4)
            assert logprobs['sampler_logprobs'] == pytest.approx(response.sampler_logprobs, abs=1e-4)
    assert answer['usage']['completion_tokens'] == 420
    assert answer['seed'] == sampler['seed']


def test_echo_tells_how_likely_the_prompt_is_and_draws_nothing(server):
    text = 'The fog — naïve 🙂 “boats” <|endoftext|> x'
    ids = TOKENIZER.encode(text)
    for prompt in (text, ids, [ids], [text]):
        (choice,) = server.complete(prompt=prompt, max_tokens=0, echo=True, logprobs=3)['choices']
        assert choice['text'] == text
        logprobs = choice['logprobs']
        assert logprobs['token_ids'] == ids
        assert logprobs['token_logprobs'][0] is None
        assert logprobs['token_logprobs'][1:] == pytest.approx(model_logprobs(server, ids), abs=1e-4)
        assert logprobs['sampler_logprobs'] == [None] * len(ids)
        for token, logprob, top in zip(*(logprobs[key][1:] for key in ('tokens', 'token_logprobs', 'top_logprobs'))):
            assert top[token] == logprob
            assert len(top) in (3, 4)
            assert list(top.values())[:3] == sorted(top.values(), reverse=True)[:3]


def test_tokens_that_are_parts_of_characters_are_written_in_bytes_at_the_place_of_the_character(server):
    text = 'ab🙂c'
    ids = TOKENIZER.encode(text)
    (choice,) = server.complete(prompt=text, max_tokens=0, echo=True, logprobs=0)['choices']
    parts = [rf'bytes:\x{byte:02x}' for byte in '🙂'.encode()]
    assert choice['logprobs']['tokens'] == ['a', 'b', *parts, 'c']
    assert choice['logprobs']['text_offset'] == [0, 1, 2, 2, 2, 2, 3]
    (choice,) = server.complete(prompt=ids[:4], max_tokens=0, echo=True, logprobs=0)['choices']
    assert choice['text'] == 'ab�'


@pytest.mark.slow
def test_a_drawn_token_has_its_place_in_the_text(server):
    for echo in (True, False):
        answer = server.complete(prompt='The old', max_tokens=50, logprobs=2, seed=3, echo=echo, ignore_eos=True)
        (choice,) = answer['choices']
        tokens, places = choice['logprobs']['tokens'], choice['logprobs']['text_offset']
        for token, place in zip(tokens, places, strict=True):
            if not token.startswith('bytes:'):
                assert choice['text'][place : place + len(token)] == token


def test_an_end_token_ends_the_text_and_adds_nothing_to_it(server):
    eot = TOKENIZER.eot
    answer = server.complete(prompt='The', max_tokens=9, logit_bias={eot: 100}, logprobs=1)
    (choice,) = answer['choices']
    assert (choice['text'], choice['finish_reason']) == ('', 'stop')
    assert choice['logprobs']['tokens'] == ['<|endoftext|>']
    assert answer['usage']['completion_tokens'] == 1


@pytest.mark.slow
def test_a_bias_changes_what_is_drawn_and_not_what_the_model_says(server):
    ids = TOKENIZER.encode('The fog')
    (choice,) = server.complete(prompt=ids, max_tokens=4, logit_bias={'65': 100}, logprobs=1)['choices']
    assert choice['logprobs']['token_ids'] == [65] * 4
    assert choice['logprobs']['token_logprobs'] == pytest.approx(model_logprobs(server, ids + [65] * 4)[-4:], abs=1e-4)
    assert choice['logprobs']['sampler_logprobs'] == pytest.approx([0] * 4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('fields', [{}, {'echo': True}, {'n': 2, 'logprobs': 2}, {'stop': ['e', 'ou'], 'n': 3}])
def test_a_streamed_text_is_the_whole_one(server, fields):
    fields = {'prompt': ['The b', 'So'], 'max_tokens': 20, 'seed': 11, 'model': 'model1', **fields}
    whole = server.complete(**fields)
    options = {'stream': True, 'stream_options': {'include_usage': True}}
    *lines, done, _, _ = server.http.post('/v1/completions', json=fields | options).text.split('\n')
    assert done == 'data: [DONE]'
    *chunks, last = [json.loads(line.removeprefix('data: ')) for line in lines if line]
    assert last['usage'] == whole['usage']
    for choice in whole['choices']:
        parts = [part for chunk in chunks for part in chunk['choices'] if part['index'] == choice['index']]
        assert ''.join(part['text'] for part in parts) == choice['text']
        assert [part['finish_reason'] for part in parts if part['finish_reason']] == [choice['finish_reason']]
        if 'logprobs' in fields:
            for name, values in choice['logprobs'].items():
                assert [value for part in parts for value in part['logprobs'][name]] == values


@pytest.mark.slow
def test_a_text_ends_before_the_first_stop_sequence_even_if_it_crosses_tokens(server):
    fields = {'prompt': 'The boat', 'max_tokens': 60, 'seed': 2, 'ignore_eos': True}
    (choice,) = server.complete(**fields)['choices']
    text = choice['text']
    for start, length in ((5, 1), (11, 4), (30, 7)):
        stop = text[start : start + length]
        (choice,) = server.complete(**fields, stop=['\x00never', stop])['choices']
        assert choice['text'] == text[: text.find(stop)]
        assert choice['finish_reason'] == 'stop'
    (choice,) = server.complete(**fields, stop=text[-3:] + 'x')['choices']
    assert choice['text'] == text


REFUSED = [
    ({'prompt': 'a', 'mirostat': 2}, 400, 'mirostat'),
    ({'prompt': 'a', 'n_predict': 2}, 400, 'n_predict'),
    ({'prompt': 'a', 'temprature': 1}, 400, 'temperature'),
    ({}, 400, 'prompt'),
    ({'prompt': 'a', 'model': 'gpt-4'}, 404, 'gpt-4'),
    ({'prompt': []}, 400, 'prompt'),
    ({'prompt': [300]}, 400, '300'),
    ({'prompt': [[1], 'a', None]}, 400, 'prompt'),
    ({'prompt': 'a', 'temperature': -0.1}, 400, 'temperature'),
    ({'prompt': 'a', 'temperature': 10**400}, 400, 'temperature'),
    ({'prompt': 'a', 'top_p': 0}, 400, 'top_p'),
    ({'prompt': 'a', 'min_p': 2}, 400, 'min_p'),
    ({'prompt': 'a', 'repetition_penalty': 0}, 400, 'repetition_penalty'),
    ({'prompt': 'a', 'max_tokens': 1.5}, 400, 'max_tokens'),
    ({'prompt': 'a', 'max_tokens': 10**9}, 400, 'max_tokens'),
    ({'prompt': 'a', 'n': 0}, 400, 'n'),
    ({'prompt': 'a', 'best_of': 3}, 400, 'best_of'),
    ({'prompt': 'a', 'presence_penalty': 0.5}, 400, 'presence_penalty'),
    ({'prompt': 'a', 'suffix': 'b'}, 400, 'suffix'),
    ({'prompt': 'a', 'stop': ['']}, 400, 'stop'),
    ({'prompt': 'a', 'stop': ['x'] * 17}, 400, 'stop'),
    ({'prompt': 'a', 'echo': 1}, 400, 'echo'),
    ({'prompt': 'a', 'logprobs': True}, 400, 'logprobs'),
    ({'prompt': 'a', 'logprobs': 101}, 400, 'logprobs'),
    ({'prompt': 'a', 'logit_bias': {'999': 1}}, 400, '999'),
    ({'prompt': 'a', 'logit_bias': {'1': 101}}, 400, 'logit_bias'),
    ({'prompt': 'a', 'stream_options': {}}, 400, 'stream'),
    ({'prompt': 'a', 'stream': True, 'stream_options': {'x': 1}}, 400, 'stream_options.x'),
    ({'prompt': [1] * 66, 'echo': True, 'logprobs': 1}, 400, '65'),
    ({'prompt': 'a', '\ud800': 1}, 400, ''),
]


@pytest.mark.parametrize(('fields', 'status', 'word'), REFUSED)
def test_what_is_wrong_or_not_supported_is_refused_by_name(server, fields, status, word):
    body = json.dumps(fields).encode()
    found, answer = server.post('/v1/completions', content=body, headers={'Content-Type': 'application/json'})
    assert found == status
    assert answer['error'].keys() == {'message', 'type', 'param', 'code'}
    assert answer['error']['type'] == 'invalid_request_error'
    assert word in answer['error']['message']


# What clients of other servers send, as their documentation and code show it.
REPLAYED = [
    # vLLM's own benchmark
    {
        'model': 'model0',
        'prompt': 'The',
        'temperature': 0.0,
        'max_tokens': 4,
        'logprobs': None,
        'stream': True,
        'stream_options': {'include_usage': True},
        'ignore_eos': True,
    },
    # vLLM, with tokens written as ids
    {'model': 'model0', 'prompt': [5, 6], 'max_tokens': 2, 'logprobs': 5, 'return_tokens_as_token_ids': True},
    # llama.cpp's server
    {
        'prompt': 'The',
        'max_tokens': 4,
        'temperature': 0.8,
        'top_k': 40,
        'top_p': 0.95,
        'stop': ['</s>'],
        'stream': False,
    },
    # lm-evaluation-harness
    {
        'model': 'model0',
        'prompt': [[5, 6, 7], [8, 9]],
        'temperature': 0,
        'max_tokens': 1,
        'logprobs': 1,
        'seed': 1234,
        'echo': True,
    },
    # OpenAI's defaults, written out
    {
        'model': 'model0',
        'prompt': 'The',
        'best_of': 1,
        'echo': False,
        'frequency_penalty': 0,
        'logit_bias': None,
        'logprobs': None,
        'max_tokens': 16,
        'n': 1,
        'presence_penalty': 0,
        'seed': None,
        'stop': None,
        'stream': False,
        'stream_options': None,
        'suffix': None,
        'temperature': 1,
        'top_p': 1,
        'user': 'user-1234',
    },
]


@pytest.mark.parametrize('body', REPLAYED)
def test_requests_of_other_programs_are_understood(server, body):
    response = server.http.post('/v1/completions', json=body)
    assert response.status_code == 200, response.text
    if body.get('return_tokens_as_token_ids'):
        (choice,) = response.json()['choices']
        ids = choice['logprobs']['token_ids']
        assert choice['logprobs']['tokens'] == [f'token_id:{id}' for id in ids]
        assert f'token_id:{ids[0]}' in choice['logprobs']['top_logprobs'][0]
