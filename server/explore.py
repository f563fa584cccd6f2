"""The routes of the live page: the page itself, and its questions to the models, as JSON.

An answer that grows is newline-delimited JSON: a line for each part. If something goes wrong on the way, the last line
holds the error. explore_jobs.py computes the answers.
"""

import json

from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from common.files import PROJECT
from common.strings import shorten, show_invisible
from lm.fast import count_parameters
from lm.settings import SamplingSettings
from lm.wording import precision_note
from pictures.page import content_security_policy
from server import explore_jobs as jobs
from server.errors import describe_error
from server.explore_reader import Reader
from server.fields import Fields, read_fields

PAGE = PROJECT / 'server' / 'explore.html'
MAX_BYTES = 4 * 2**20  # of a request
MAX_CHARACTERS = 400_000  # of a text
MAX_TOKENS = 50_000  # of a text, and of all texts of a page to hand in
MAX_PAGE_TEXTS = 200
MAX_NEW_TOKENS = 1000  # to go on by
MAX_SEARCHED_TOKENS, MAX_FOUND = 100, 50  # of a search: the length and the number of continuations
MAX_SEARCH_BYTES, SEARCHES = 2**30, 16  # of a search, as --budget of sample.py; how many fit at once
MAX_SEED = 2**53 - 1  # the largest whole number that JavaScript counts to


def routes(engine):
    """Return the routes of the page."""
    html = PAGE.read_text(encoding='utf-8')
    # The page may run its own script and style, and reach nothing but this server.
    policy = f"{content_security_policy(html)}; connect-src 'self'; img-src data:; frame-ancestors 'none'"
    readers = [Reader(named.model, named.tokenizer, engine.prefixes) for named in engine.models]
    search_bytes = min(MAX_SEARCH_BYTES, engine.job_bytes / SEARCHES)
    names = [show_invisible(shorten(named.name, 60, from_end=True)) for named in engine.models]

    async def page(request):
        """Answer with the page."""
        return HTMLResponse(html, headers={'Content-Security-Policy': policy})

    async def about(request):
        """Answer with what the page must know of the models."""
        defaults = {name: getattr(SamplingSettings, name) for name in ('temperature', 'top_k', 'top_p', 'seed')}
        models = [
            describe_model(name, named, reader, readers[0])
            for name, named, reader in zip(names, engine.models, readers, strict=True)
        ]
        return JSONResponse({'models': models, 'sampler': defaults, 'limits': {'tokens': MAX_TOKENS}})

    async def vocabulary(request):
        """Answer with the piece of every id of a model."""
        which = 1 if request.query_params.get('model') == '1' and len(readers) > 1 else 0
        (pieces,) = [part async for part in engine.stream(jobs.name_all_tokens(readers[which]))]
        return JSONResponse(pieces)

    async def read(request):
        """Answer with the tokens of a text and how likely they are, for each model."""
        fields = await read_fields(request, MAX_BYTES)
        kept, rest = take_ids(fields, 'ids', readers[0]), take_text(fields, 'text', '')
        start, since = fields.flag('start'), fields.integer('since', 0, 0, MAX_TOKENS)
        sampler, compare = take_sampler(fields), fields.flag('compare', True)
        fields.finish()
        chosen = readers if compare else readers[:1]
        nbytes = bytes_to_read(len(kept) + len(rest.encode()), *range(len(chosen)))
        return await answer(jobs.read_tokens(chosen, kept, rest, start, since, **sampler), nbytes)

    async def logits(request):
        """Answer with the logits that a token is chosen from: little-endian float32, one for each id."""
        fields = await read_fields(request, MAX_BYTES)
        reader = take_reader(fields)
        place = take_place(fields, reader)
        fields.finish()
        job = jobs.find_logits(reader, *place)
        (data,) = [part async for part in engine.stream(job, bytes_to_read(place[1], readers.index(reader)))]
        return Response(data, media_type='application/octet-stream')

    async def go_on(request):
        """Answer with tokens that go on after a text, one line each."""
        fields = await read_fields(request, MAX_BYTES)
        text = take_start(fields)
        count, seed = fields.integer('count', 10, 1, MAX_NEW_TOKENS), fields.integer('seed', 1337, 0, MAX_SEED)
        greedily, sampler = fields.flag('greedily'), take_sampler(fields)
        fields.finish()
        job = jobs.draw_steps(readers[0], *text, count, seed, greedily, **sampler)
        return await answer(job, bytes_to_read(len(text[0]) + count, 0))

    async def beams(request):
        """Answer with the beams of a search, a line after each token."""
        fields = await read_fields(request, MAX_BYTES)
        text, count = take_start(fields), fields.integer('count', 10, 1, MAX_SEARCHED_TOKENS)
        width = fields.integer('width', 5, 1, MAX_FOUND)
        fields.finish()
        nbytes = engine.bytes_of_texts(0, width, len(text[0]) + count)
        return await answer(jobs.search_beams(readers[0], *text, count, width), nbytes)

    async def prove(request):
        """Answer with the likeliest continuations and the bound on all others, as the exact search goes on."""
        fields = await read_fields(request, MAX_BYTES)
        text, count = take_start(fields), fields.integer('count', 6, 1, MAX_SEARCHED_TOKENS)
        k = fields.integer('k', 5, 1, MAX_FOUND)
        fields.finish()
        return await answer(jobs.prove_likeliest(readers[0], *text, count, k, search_bytes), search_bytes)

    async def respond(request):
        """Answer with the tokens of a response and how likely they are, for each model."""
        fields = await read_fields(request, MAX_BYTES)
        text, response, sampler = take_start(fields), take_text(fields, 'response'), take_sampler(fields)
        fields.finish()
        nbytes = bytes_to_read(len(text[0]) + len(response.encode()), *range(len(readers)))
        return await answer(jobs.read_response(readers, *text, response, **sampler), nbytes)

    async def text_probability(request):
        """Answer with bounds on the probability of a response's text, as the search goes on."""
        fields = await read_fields(request, MAX_BYTES)
        reader = take_reader(fields)
        prompt, response = (take_ids(fields, name, reader, least=1) for name in ('prompt', 'ids'))
        fields.finish()
        return await answer(jobs.bound_spellings(reader, prompt, response, search_bytes), search_bytes)

    async def inside(request):
        """Answer with what each layer would predict for a token, and where each layer looks."""
        fields = await read_fields(request, MAX_BYTES)
        reader = take_reader(fields)
        place = take_place(fields, reader)
        fields.finish()
        return await answer(jobs.look_inside(reader, *place), bytes_to_read(place[1], readers.index(reader)))

    async def static_page(request):
        """Answer with the page to hand in."""
        fields = await read_fields(request, MAX_BYTES)
        texts, start, sampler = take_texts(fields), fields.flag('start'), take_sampler(fields)
        title, sampler_name = take_text(fields, 'title'), take_text(fields, 'sampler_name')
        fields.finish()
        job = jobs.write_static_page(readers, names, texts, start, title, sampler_name, **sampler)
        nbytes = bytes_to_read(max(len(ids) for _, ids in texts), *range(len(readers)))
        (html,) = [part async for part in engine.stream(job, nbytes) if part is not None]
        return Response(html, media_type='text/html')

    # What several of them need ----------------------------------------------------------------------------------------

    def bytes_to_read(length, *chosen):
        """Return how much memory it takes to read a text of up to `length` tokens with the chosen models."""
        return sum(engine.bytes_of_texts(which, 1, length) for which in chosen)

    async def answer(job, nbytes):
        """Answer with the parts that a job yields. An error before the first gets a status of its own."""
        parts = engine.stream(job, nbytes)
        first = await anext(parts, None)
        return StreamingResponse(write_lines(first, parts), media_type='application/x-ndjson')

    def take_reader(fields):
        return readers[fields.integer('which', 0, 0, len(readers) - 1)]

    def take_start(fields):
        """Return (ids, start) of a text that something follows."""
        ids, start = take_ids(fields, 'ids', readers[0]), fields.flag('start')
        if not ids and not readers[0].front(ids, start):
            raise fields.error('ids', 'the text is empty, and this model has no token that begins a text')
        return ids, start

    def take_place(fields, reader):
        """Return (ids, index of a token, start)."""
        ids, start = take_ids(fields, 'ids', reader), fields.flag('start')
        at = fields.integer('at', len(ids), 0, len(ids))
        if at == 0 and not reader.front(ids, start):
            raise fields.error('at', 'nothing comes before the first token, so it has no probability')
        return ids, at, start

    def take_texts(fields):
        """Return [(label, ids)] of the texts of a page to hand in."""
        texts, total = [], 0
        given = fields.take('texts')
        if not isinstance(given, list) or not 0 < len(given) <= MAX_PAGE_TEXTS:
            raise fields.error('texts', f'it must be a list of 1 to {MAX_PAGE_TEXTS} texts')
        for number, text in enumerate(given):
            if not isinstance(text, dict):
                raise fields.error('texts', 'each text must be a JSON object')
            inner = Fields(text, f'texts[{number}].')
            texts.append((take_text(inner, 'label'), take_ids(inner, 'ids', readers[0], least=1)))
            inner.finish()
            total += len(texts[-1][1])
        if total > MAX_TOKENS:
            raise fields.error('texts', f'they have {total:,} tokens; a page takes at most {MAX_TOKENS:,}')
        return texts

    questions = (read, logits, go_on, beams, prove, respond, text_probability, inside, static_page)
    return [
        Route('/', page),
        *(Route(f'/explore/{one.__name__}', one) for one in (about, vocabulary)),
        *(Route(f'/explore/{one.__name__}', one, methods=['POST']) for one in questions),
    ]


def describe_model(name, named, reader, first):
    """Return what the page must know of a model."""
    start = reader.tokenizer.start_ids()
    return {
        'name': name + precision_note(named.settings.dtype, getattr(named.settings, 'quantize', None)),
        'parameters': count_parameters(named.model),
        'n_ids': named.model.n_ids,
        'block_size': named.model.block_size,
        'stride': reader.stride,
        'start': reader.tokenizer.show(start) if start else None,  # the token that begins a text
        'starts_always': bool(reader.tokenizer.front),
        'fingerprint': reader.fingerprint,
        'same_tokens': reader.fingerprint == first.fingerprint,
    }


async def write_lines(first, parts):
    """Yield the parts of an answer as lines of JSON; the last line may be an error."""
    if first is not None:
        yield write_line(first)
    try:
        async for part in parts:
            if part is not None:
                yield write_line(part)
    except Exception as error:
        yield write_line(describe_error(error)[1])


def write_line(part):
    """Return a part of an answer as one line of JSON."""
    return json.dumps(part, separators=(',', ':'), allow_nan=False) + '\n'


# Fields ---------------------------------------------------------------------------------------------------------------


def take_ids(fields, name, reader, least=0):
    """Return a list of a model's token ids. Raises ApiError for anything else."""
    ids = fields.take(name, [])
    if not isinstance(ids, list) or not least <= len(ids) <= MAX_TOKENS:
        raise fields.error(name, f'it must be a list of {least} to {MAX_TOKENS:,} token ids')
    if any(type(id) is not int or not 0 <= id < reader.model.n_ids for id in ids):
        raise fields.error(name, f'a token id must be a whole number from 0 to {reader.model.n_ids - 1}')
    return ids


def take_text(fields, name, *default):
    """Return a text of bounded length."""
    text = fields.text(name, *default)
    if len(text) > MAX_CHARACTERS:
        raise fields.error(name, f'it has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read')
    return text


def take_sampler(fields):
    """Return the sampler's settings that are given, as `model.logits_to_logprobs` takes them."""
    given = fields.take('sampler', {})
    if not isinstance(given, dict):
        raise fields.error('sampler', 'it must be a JSON object')
    inner = Fields(given, 'sampler.')
    settings = {
        'temperature': inner.number('temperature', 1.0, 0, 100),
        'top_k': inner.integer('top_k', None, 1, 10**9),
        'top_p': inner.number('top_p', None, 1e-9, 1),
        'min_p': inner.number('min_p', None, 0, 1),
    }
    inner.finish()
    return {name: value for name, value in settings.items() if value is not None}
