"""`/v1/chat/completions`, as OpenAI's, for models with a chat template: the next turn, with its logprobs."""

import contextlib
import time
import uuid

from common.json_files import describe_type
from server.errors import ApiError, Json
from server.fields import Fields, read_fields
from server.generation import generate
from server.replies import EventStream, begin, unless_gone, until_finished
from server.sampling_fields import MAX_ALTERNATIVES, MAX_TOKENS, read_model, read_sampling, read_streaming
from server.token_texts import name_bytes

MAX_MESSAGES = 1000


async def chat(request, engine):
    """Answer a request to /v1/chat/completions."""
    fields = await read_fields(request)
    which = read_model(fields, engine)
    served = engine.models[which]
    if served.chat_tokenizer is None:
        raise ApiError(
            f'{served.name} has no chat template; use /v1/completions', param='model', code='no_chat_template'
        )
    prompt_ids = served.chat_tokenizer.encode_prompt(read_messages(fields))
    sampling = read_chat_sampling(fields, served.model, len(prompt_ids))
    streams, with_usage = read_streaming(fields)
    fields.finish()
    head = {
        'id': f'chatcmpl-{uuid.uuid4().hex}',
        'object': 'chat.completion.chunk' if streams else 'chat.completion',
        'created': int(time.time()),
        'model': served.name,
        'seed': sampling.seed,
    }
    job = generate(served.model, engine.prefixes, served.chat_tokenizer, prompt_ids, sampling)
    nbytes = engine.bytes_of_texts(which, sampling.n, len(prompt_ids) + sampling.max_tokens)
    turn = Turn(served.chat_tokenizer, prompt_ids, sampling)
    steps = until_finished(engine.stream(job, nbytes), sampling.n)
    if streams:
        return EventStream(turn.write_chunks(await begin(request, steps), head, with_usage))
    return Json(head | await unless_gone(request, turn.write_whole(steps)))


def read_chat_sampling(fields, model, prompt_tokens):
    """Return the Sampling; without a number of tokens, the turn may be as long as the context allows."""
    for name, neutral in (
        *(('tools', []), ('functions', []), ('tool_choice', 'none'), ('store', False), ('metadata', {})),
        *(('response_format', {'type': 'text'}), ('modalities', ['text']), ('service_tier', 'auto')),
    ):
        fields.only(name, neutral)
    sampling = read_sampling(fields, model, min(MAX_TOKENS, max(1, model.block_size - prompt_tokens)))
    sampling.max_tokens = fields.integer('max_completion_tokens', sampling.max_tokens, 1, MAX_TOKENS)
    if sampling.max_tokens == 0:
        raise fields.error('max_tokens', 'it must be at least 1')
    wants, count = fields.flag('logprobs'), fields.integer('top_logprobs', None, 0, MAX_ALTERNATIVES)
    if count is not None and not wants:
        raise fields.error('top_logprobs', 'it needs "logprobs": true')
    sampling.n_alternatives = (count or 0) if wants else None
    return sampling


def read_messages(fields):
    """Return the messages, [{'role': ..., 'content': a text}]."""
    messages = fields.take('messages')
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise fields.error('messages', f'it must be a list of 1 to {MAX_MESSAGES} messages')
    return [read_message(fields, number, message) for number, message in enumerate(messages)]


def read_message(fields, number, message):
    """Return one message; its content may be a text, or a list of parts that are texts."""
    name = f'messages[{number}]'
    if not isinstance(message, dict):
        raise fields.error(name, f'it must be an object, not {describe_type(message)}')
    inside = Fields(message, f'{name}.')
    role, content = inside.text('role'), inside.take('content')
    inside.finish()
    if isinstance(content, list):
        parts = [Fields(part if isinstance(part, dict) else {}, f'{name}.content[].') for part in content]
        for part in parts:
            part.only('type', 'text')
        content = ''.join(part.text('text') for part in parts)
    if not isinstance(content, str):
        raise inside.error('content', f'it must be a text, or a list of parts, not {describe_type(content)}')
    return {'role': role, 'content': content}


class Turn:
    """The model's turn in a chat, n times, as OpenAI writes it."""

    def __init__(self, tokenizer, prompt_ids, sampling):
        self._tokenizer, self._sampling, self._prompt_ids = tokenizer, sampling, prompt_ids
        self._ids = [list(prompt_ids) for _ in range(sampling.n)]  # of each text so far
        self._drawn = 0

    async def write_whole(self, steps):
        """Return the choices and the usage, when all tokens have been drawn."""
        n = self._sampling.n
        texts, entries, reasons = [[] for _ in range(n)], [[] for _ in range(n)], [''] * n
        async with contextlib.aclosing(steps):
            async for drawn in steps:
                for one in drawn:
                    texts[one.row].append(one.text)
                    entries[one.row] += self._write_logprobs(one)
                    reasons[one.row] = one.finish_reason
        choices = [
            {
                'index': row,
                'message': {'role': 'assistant', 'content': ''.join(texts[row]), 'refusal': None},
                'logprobs': self._wrap(entries[row]),
                'finish_reason': reasons[row],
            }
            for row in range(n)
        ]
        return {'choices': choices, 'usage': self._count_usage()}

    async def write_chunks(self, steps, head, with_usage):
        """Yield a chunk with the role of each choice, one for each token, and one with the usage if it is asked for."""
        usage = {'usage': None} if with_usage else {}
        async with contextlib.aclosing(steps):
            for row in range(self._sampling.n):
                delta = {'role': 'assistant', 'content': ''}
                yield head | {'choices': [self._write_choice(row, delta, None, None)]} | usage
            async for drawn in steps:
                for one in drawn:
                    logprobs = self._wrap(self._write_logprobs(one))
                    choice = self._write_choice(one.row, {'content': one.text}, logprobs, one.finish_reason)
                    yield head | {'choices': [choice]} | usage
        if with_usage:
            yield head | {'choices': [], 'usage': self._count_usage()}

    def _write_choice(self, row, delta, logprobs, reason):
        return {'index': row, 'delta': delta, 'logprobs': logprobs, 'finish_reason': reason}

    def _wrap(self, entries):
        return None if self._sampling.n_alternatives is None else {'content': entries, 'refusal': None}

    def _write_logprobs(self, drawn):
        """Return what OpenAI says of a token, in a list; the list is empty if no logprobs are asked for."""
        self._drawn += 1
        if drawn.record is None:
            return []
        ids, record = self._ids[drawn.row], drawn.record
        top = [self._write_token(other.id, other.model_logprob, ids) for other in record.alternatives]
        entry = self._write_token(record.id, record.model_logprob, ids)
        ids.append(record.id)
        return [entry | {'sampler_logprob': record.sampler_logprob, 'top_logprobs': top}]

    def _write_token(self, id, logprob, before):
        data = b''.join(self._tokenizer.split_bytes([id], before))
        return {'token': name_bytes(data), 'logprob': logprob, 'bytes': list(data), 'token_id': id}

    def _count_usage(self):
        prompt = len(self._prompt_ids)
        return {'prompt_tokens': prompt, 'completion_tokens': self._drawn, 'total_tokens': prompt + self._drawn}
