"""`/v1/completions`, as OpenAI's: texts go on, and every token is as likely as the model itself says.

With `echo` the prompt is part of the text, and its logprobs are computed, not drawn. `token_logprobs` are the model's
own, whatever the sampler does; `sampler_logprobs` are those of drawing, None for the prompt.
"""

import contextlib
import itertools
import time
import uuid
from dataclasses import dataclass
from typing import NamedTuple

from common.json_files import describe_type
from lm.alternatives import TokenRecord
from server.errors import ApiError, Json
from server.fields import read_fields
from server.generation import Sampling, generate
from server.replies import EventStream, begin, unless_gone, until_finished
from server.sampling_fields import MAX_ALTERNATIVES, read_model, read_sampling, read_streaming
from server.token_texts import TokenTexts

MAX_PROMPTS = 256
MAX_TOKENS = 16  # if a request does not say how many, as OpenAI's


class Prompt(NamedTuple):
    """The ids of a prompt, and how many of them stand before its text."""

    ids: list[int]
    front: int = 0


@dataclass
class Wish:
    """What a request asks for."""

    which: int  # the index of the model
    prompts: list[Prompt]
    sampling: Sampling
    echo: bool
    logprobs: int | None  # how many alternatives to each token; None: no logprobs
    as_ids: bool  # whether tokens are written as ids


class Part(NamedTuple):
    """The next part of one of the texts that are sent back."""

    index: int  # which text
    text: str
    tokens: list[tuple[int, TokenRecord | None]]
    finish_reason: str | None = None


async def complete(request, engine):
    """Answer a request to /v1/completions."""
    fields = await read_fields(request)
    wish = read_wish(fields, engine)
    streams, with_usage = read_streaming(fields)
    fields.finish()
    head = {
        'id': f'cmpl-{uuid.uuid4().hex}',
        'object': 'text_completion',
        'created': int(time.time()),
        'model': engine.models[wish.which].name,
        'seed': wish.sampling.seed,
    }
    parts = find_parts(engine, wish)
    if streams:
        return EventStream(write_chunks(await begin(request, parts), head, engine, wish, with_usage))
    return Json(head | await unless_gone(request, write_whole(parts, engine, wish)))


def read_wish(fields, engine):
    """Return the Wish in the fields of a request. Raises ApiError, naming the field, if there is something wrong."""
    which = read_model(fields, engine)
    model, tokenizer = engine.models[which].model, engine.models[which].tokenizer
    prompts = read_prompts(fields, tokenizer, model)
    echo = fields.flag('echo')
    logprobs = fields.integer('logprobs', None, 0, MAX_ALTERNATIVES)
    for name in ('suffix', 'prompt_logprobs'):
        fields.only(name, None)
    sampling = read_sampling(fields, model, MAX_TOKENS)
    sampling.n_alternatives = logprobs
    longest = max(len(prompt.ids) for prompt in prompts)
    if echo and logprobs is not None and longest > model.block_size + 1:
        raise ApiError(
            f'a prompt has {longest:,} tokens, and with echo and logprobs at most {model.block_size + 1:,} can be '
            f'scored: the context of {model.block_size:,}, and one after it; cut the text',
            param='prompt',
            code='context_length_exceeded',
        )
    return Wish(which, prompts, sampling, echo, logprobs, fields.flag('return_tokens_as_token_ids'))


def read_prompts(fields, tokenizer, model):
    """Return the Prompts: of a text, a list of texts, a list of ids, or a list of such lists."""
    value = fields.take('prompt')
    if isinstance(value, str):
        values = [value]
    elif not isinstance(value, list):
        raise fields.error('prompt', f'it must be a text or a list, not {describe_type(value)}')
    else:
        values = [value] if value and isinstance(value[0], int) else value
    if not 1 <= len(values) <= MAX_PROMPTS:
        raise fields.error('prompt', f'it must be 1 to {MAX_PROMPTS} texts, or lists of token ids')
    return [read_one_prompt(fields, one, tokenizer, model) for one in values]


def read_one_prompt(fields, value, tokenizer, model):
    """Return the Prompt of a text or a list of ids."""
    if isinstance(value, str):
        ids = tokenizer.encode(value)
        started = tokenizer.start_ids(ids)
        if not started:
            raise fields.error('prompt', 'it is empty, and this tokenizer has no token that begins a text')
        return Prompt(started, len(started) - len(ids))
    if not isinstance(value, list) or not all(type(id) is int for id in value):
        raise fields.error('prompt', 'it must be a text, a list of texts, a list of token ids, or a list of those')
    try:
        model.check_ids(value, 'the prompt')
    except ValueError as error:
        raise fields.error('prompt', str(error)) from error
    if not value:
        raise fields.error('prompt', 'it has no token')
    front = tokenizer.front
    return Prompt(value, len(front) if front and tuple(value[: len(front)]) == front else 0)


# What a request asks for, part by part --------------------------------------------------------------------------------


async def find_parts(engine, wish):
    """Yield the Parts of all texts: n for each prompt, in order, the echo of the prompt first."""
    n, draws = wish.sampling.n, wish.sampling.max_tokens > 0
    tokenizer = engine.models[wish.which].tokenizer
    if wish.echo or not draws:
        echoes = [('', [])] * len(wish.prompts)
        if wish.echo:
            echoes = await find_echoes(engine, wish)
        for number, (text, tokens) in enumerate(echoes):
            for index in range(n * number, n * (number + 1)):
                yield Part(index, text, tokens, None if draws else 'length')
    if not draws:
        return
    longest = max(len(prompt.ids) for prompt in wish.prompts)
    nbytes = engine.bytes_of_texts(wish.which, n, longest + wish.sampling.max_tokens)
    job = generate_all(engine, wish, tokenizer)
    async with contextlib.aclosing(until_finished(engine.stream(job, nbytes), n * len(wish.prompts))) as steps:
        async for drawn in steps:
            for one in drawn:
                yield Part(one.row, one.text, [(one.id, one.record)], one.finish_reason)


async def find_echoes(engine, wish):
    """Return (text, its tokens with their records) of each prompt; nothing says how likely its first token is."""
    pairs = [(prompt.ids[:1], prompt.ids[1:]) for prompt in wish.prompts]
    records = [[None] * len(rest) for _, rest in pairs]
    if wish.logprobs is not None:
        records = await engine.score_texts(wish.which, pairs, wish.logprobs)
        for record in itertools.chain.from_iterable(records):
            record.sampler_logprob = None  # it was not drawn
    tokenizer = engine.models[wish.which].tokenizer
    return [
        (tokenizer.decode(ids[front:], ids[:front]), list(zip(ids, [None, *of_rest], strict=True)))
        for (ids, front), of_rest in zip(wish.prompts, records, strict=True)
    ]


def generate_all(engine, wish, tokenizer):
    """Generate after one prompt after the other, in the engine's thread; yield the list of Drawn of each step."""
    model = engine.models[wish.which].model
    for number, prompt in enumerate(wish.prompts):
        for drawn in generate(model, engine.prefixes, tokenizer, prompt.ids, wish.sampling):
            yield [one._replace(row=wish.sampling.n * number + one.row) for one in drawn]


# Parts in OpenAI's shape ----------------------------------------------------------------------------------------------


class Logprobs:
    """Writes the logprobs of one text, part by part."""

    def __init__(self, tokenizer, wish, index):
        self._front = 0  # tokens that still come and do not belong to the text
        prompt = wish.prompts[index // wish.sampling.n]
        self._texts = TokenTexts(tokenizer, () if wish.echo else prompt.ids, wish.as_ids)
        self._front = prompt.front if wish.echo else 0

    def write(self, tokens):
        """Return the object of OpenAI for these tokens, (id, record) each."""
        names = ('tokens', 'token_logprobs', 'top_logprobs', 'text_offset', 'token_ids', 'sampler_logprobs')
        found = {name: [] for name in names}
        for id, record in tokens:
            token, place, top = self._texts.add(id, record, is_text=self._front <= 0)
            self._front -= 1
            values = (token, record and record.model_logprob, top, place, id, record and record.sampler_logprob)
            for name, value in zip(names, values, strict=True):
                found[name].append(value)
        return found


async def write_whole(parts, engine, wish):
    """Return the choices and the usage, when all parts have come."""
    tokenizer, prompts, n = engine.models[wish.which].tokenizer, wish.prompts, wish.sampling.n
    texts, tokens, reasons = ([kind() for _ in range(n * len(prompts))] for kind in (list, list, str))
    async with contextlib.aclosing(parts):
        async for part in parts:
            texts[part.index].append(part.text)
            tokens[part.index] += part.tokens
            reasons[part.index] = part.finish_reason
    choices = [
        {
            'index': index,
            'text': ''.join(texts[index]),
            'logprobs': None if wish.logprobs is None else Logprobs(tokenizer, wish, index).write(tokens[index]),
            'finish_reason': reasons[index],
        }
        for index in range(n * len(prompts))
    ]
    echoed = n * sum(len(prompt.ids) for prompt in prompts) if wish.echo else 0
    return {'choices': choices, 'usage': count_usage(wish, sum(map(len, tokens)) - echoed)}


async def write_chunks(parts, head, engine, wish, with_usage):
    """Yield a chunk for each part, and one with the usage at the end if it is asked for."""
    tokenizer = engine.models[wish.which].tokenizer
    writers = [Logprobs(tokenizer, wish, index) for index in range(wish.sampling.n * len(wish.prompts))]
    drawn, usage = 0, {'usage': None} if with_usage else {}
    left = len(writers) if wish.echo else 0  # texts whose echo has not come
    async with contextlib.aclosing(parts):
        async for part in parts:
            drawn, left = (drawn, left - 1) if left else (drawn + len(part.tokens), 0)
            choice = {
                'index': part.index,
                'text': part.text,
                'logprobs': None if wish.logprobs is None else writers[part.index].write(part.tokens),
                'finish_reason': part.finish_reason,
            }
            yield head | {'choices': [choice]} | usage
    if with_usage:
        yield head | {'choices': [], 'usage': count_usage(wish, drawn)}


def count_usage(wish, drawn):
    """Return how many tokens the prompts have, and how many were drawn."""
    prompt = sum(len(prompt.ids) for prompt in wish.prompts)
    return {'prompt_tokens': prompt, 'completion_tokens': drawn, 'total_tokens': prompt + drawn}
