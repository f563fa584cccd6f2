"""OpenAI's own client: chats and completions, streamed and not, asynchronous, with every parameter."""

import asyncio
import math

import openai
import pytest
import torch
from helpers.chat_templates import apply_template, save_chat_model
from helpers.live_server import run_live_server
from transformers import AutoModelForCausalLM, AutoTokenizer

import serve

pytestmark = pytest.mark.slow

MESSAGES = [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'Where is the boat?'}]
SAMPLER = {'temperature': 0.9, 'top_p': 0.8, 'seed': 3, 'logit_bias': {'7': -5}, 'frequency_penalty': 0}
SAMPLER |= {'presence_penalty': 0, 'n': 2, 'stop': ['qqq'], 'user': 'me'}
OF_CHAT = {'max_completion_tokens': 9, 'logprobs': True, 'top_logprobs': 3, 'response_format': {'type': 'text'}}
OF_COMPLETION = {'max_tokens': 9, 'logprobs': 3, 'echo': True}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('chat')
    save_chat_model(folder, 'chatml')
    return folder


@pytest.fixture(scope='module')
def server(folder):
    served = serve.load_served_model(serve.check_settings(serve.Settings(init_from=str(folder), device='cpu')))
    with run_live_server([served._replace(name='chat')]) as server:
        yield server


def join_chunks(chunks):
    """Return {index: (text, its tokens with logprobs, finish reason)} of the chunks of a streamed chat."""
    found = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text, tokens, reason = found.get(choice.index, ('', [], None))
            assert reason is None
            text += choice.delta.content or ''
            tokens = tokens + (choice.logprobs.content if choice.logprobs else [])
            found[choice.index] = text, tokens, choice.finish_reason
    return found


def test_a_chat_has_the_logprobs_of_transformers(server, folder):
    prompt = apply_template(folder, MESSAGES)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer = server.openai.chat.completions.create(
        model='chat', messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, top_logprobs=4
    )
    (choice,) = answer.choices
    ids = [token.token_id for token in choice.logprobs.content]
    with torch.no_grad():
        logprobs = theirs(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert ids == logprobs.argmax(-1).tolist()
    for row, token in zip(logprobs, choice.logprobs.content, strict=True):
        assert token.logprob == pytest.approx(row[token.token_id].item(), abs=1e-4)
        top = [other.logprob for other in token.top_logprobs]
        assert top == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)
    assert choice.message.role == 'assistant'
    assert choice.message.content == tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(ids)


def test_a_streamed_chat_is_the_whole_one_with_every_parameter(server):
    fields = {'model': 'chat', 'messages': MESSAGES, **SAMPLER, **OF_CHAT}
    whole = server.openai.chat.completions.create(**fields)
    chunks = list(server.openai.chat.completions.create(**fields, stream=True, stream_options={'include_usage': True}))
    assert chunks[-1].usage == whole.usage
    found = join_chunks(chunks)
    assert len(whole.choices) == len(found) == 2
    for choice in whole.choices:
        text, tokens, reason = found[choice.index]
        assert (text, reason) == (choice.message.content, choice.finish_reason)
        assert [token.token for token in tokens] == [token.token for token in choice.logprobs.content]
        for one, other in zip(tokens, choice.logprobs.content, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            assert len(one.top_logprobs) == 3


def test_many_asynchronous_clients_get_what_each_gets_alone(server):
    fields = {'model': 'chat', **SAMPLER, **OF_COMPLETION}
    prompts = ['The boat', 'The fog came', 'On', 'It was']
    alone = [server.openai.completions.create(prompt=prompt, **fields) for prompt in prompts]

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f'{server.url}/v1', api_key='none', max_retries=0) as client:
            streams = [client.completions.create(prompt=prompt, stream=True, **fields) for prompt in prompts]
            wholes = [client.completions.create(prompt=prompt, **fields) for prompt in prompts]
            return await asyncio.gather(*map(read, streams), *wholes)

    async def read(stream):
        texts = ['', '']
        async for chunk in await stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        return texts

    found = asyncio.run(ask_all())
    for expected, texts, whole in zip(alone, found[:4], found[4:], strict=True):
        assert [choice.text for choice in expected.choices] == texts
        for choice, other in zip(expected.choices, whole.choices, strict=True):
            assert choice.text == other.text
            logprobs = [choice.logprobs.token_logprobs, other.logprobs.token_logprobs]
            assert [pair for pair in zip(*logprobs) if (pair[0] is None) != (pair[1] is None)] == []
            assert all(math.isclose(*pair, abs_tol=1e-4) for pair in zip(*logprobs) if pair[0] is not None)


@pytest.mark.parametrize(
    ('fields', 'error', 'param'),
    [
        ({'tools': [{'type': 'function', 'function': {'name': 'f'}}]}, openai.BadRequestError, 'tools'),
        ({'response_format': {'type': 'json_object'}}, openai.BadRequestError, 'response_format'),
        ({'top_logprobs': 2}, openai.BadRequestError, 'top_logprobs'),
        ({'reasoning_effort': 'low'}, openai.BadRequestError, 'reasoning_effort'),
        ({'messages': []}, openai.BadRequestError, 'messages'),
        ({'messages': [{'role': 'user', 'content': 'a', 'name': 'x'}]}, openai.BadRequestError, 'messages[0].name'),
        ({'model': 'gpt-4o'}, openai.NotFoundError, 'model'),
        ({'max_completion_tokens': 0}, openai.BadRequestError, 'max_completion_tokens'),
    ],
)
def test_what_is_not_supported_is_an_error_of_the_client(server, fields, error, param):
    with pytest.raises(error) as caught:
        server.openai.chat.completions.create(**{'model': 'chat', 'messages': MESSAGES, **fields})
    assert caught.value.param == param


def test_a_model_without_a_chat_template_says_so(server):
    served = server.engine.models[0]._replace(chat_tokenizer=None, name='plain')
    with run_live_server([served]) as plain, pytest.raises(openai.BadRequestError, match='no chat template'):
        plain.openai.chat.completions.create(model='plain', messages=MESSAGES)
