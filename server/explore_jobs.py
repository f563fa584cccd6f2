"""What the live page asks of a model. Each question is a job for the engine: a generator of parts of the answer.

A part is a dictionary, ready for JSON, or None if there is nothing new: the engine serves others between two parts.
Tokens are columns, as in a static page: `logprobs[0]` belongs to the token at index `at`. Sampler settings are those of
`model.logits_to_logprobs`.
"""

import itertools
import time
from collections.abc import Iterator

import torch

from common.strings import replace_surrogates, show_invisible
from lm import boundary
from lm.alternatives import ALTERNATIVES, rank_tokens, record_tokens
from lm.internals import layer_attentions, layer_logits
from lm.search import Budget, beam_parts, search_parts
from lm.text_probability import GAP, probability_parts
from model import logits_to_logprobs
from pictures.inputs import pieces_of_ids
from pictures.page import LOGPROB_DIGITS, Page, PageText, make_side, render_page, round_number
from server.generation import ServedModel

SEARCH_SECONDS = 60  # as --budget of sample.py
TEXT_SECONDS = 20  # of the search for the probability of a text
PAUSE = 0.1  # seconds between two parts of a search's answer
ATTENTION_DIGITS = 4


# Texts and tokens -----------------------------------------------------------------------------------------------------


def name_all_tokens(reader) -> Iterator[list[str]]:
    """Yield the list of the pieces of all ids of a model."""
    pieces = pieces_of_ids(reader.tokenizer, list(range(reader.model.n_ids)))
    yield [show_invisible(piece) for piece in pieces]


def find_logits(reader, ids, at, start) -> Iterator[bytes]:
    """Yield the logits that token `at` of a text is chosen from, as little-endian float32."""
    yield reader.logits_before(ids, at, start).numpy().astype('<f4').tobytes()


def encode_text(tokenizer, kept, rest) -> list[int]:
    """Return the ids of a text that begins with what some ids spell.

    The text is encoded as a whole, so that a word that is typed letter by letter gets its usual tokens. But if the kept
    ids are not the usual ones, because a person forced one or the sampler drew one, they stay as they are.
    """
    if not kept:
        return tokenizer.encode(replace_surrogates(rest))
    before = tokenizer.decode(kept)
    if tokenizer.encode(before) == list(kept):
        return tokenizer.encode(replace_surrogates(before + rest))
    return [*kept, *tokenizer.encode_after(kept, replace_surrogates(rest))]


def describe_ids(tokenizer, ids, front=()) -> dict:
    """Return ids, and what each adds to the text, as hexadecimal bytes."""
    return {'ids': list(ids), 'bytes': [data.hex() for data in tokenizer.split_bytes(ids, front)]}


def describe_records(at, records) -> dict:
    """Return the columns of some TokenRecords, of which the first stands at index `at` of its text."""
    return {
        'at': at,
        'logprobs': [round_number(record.model_logprob, LOGPROB_DIGITS) for record in records],
        'sampler_logprobs': [round_number(record.sampler_logprob, LOGPROB_DIGITS) for record in records],
        'ranks': [record.rank for record in records],
        'entropies': [round_number(record.entropy) for record in records],
    }


def translate_ids(readers, which, ids) -> list[int]:
    """Return the ids of a text of the first model for another one: the same, if they share their tokenizer."""
    mine, other = readers[0], readers[which]
    return list(ids) if mine.fingerprint == other.fingerprint else other.tokenizer.encode(mine.tokenizer.decode(ids))


def read_tokens(readers, kept, rest, start, since, **sampler) -> Iterator[dict]:
    """Yield the tokens of a text and how likely they are, for each model in turn.

    kept, rest: see `encode_text`. since: the index of the first token whose numbers are wanted; of other models than
    the first, all are.
    """
    ids = encode_text(readers[0].tokenizer, kept, rest) if rest else kept
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(kept, ids)))
    since = min(since, same)
    for which, reader in enumerate(readers):
        theirs = translate_ids(readers, which, ids)
        yield {'which': which, **describe_ids(reader.tokenizer, theirs, reader.front(theirs, start))}
        for at, records in reader.records(theirs, start, 0 if which else since, **sampler):
            yield {'which': which, **describe_records(at, records)}


# Going on -------------------------------------------------------------------------------------------------------------


def draw_steps(reader, ids, start, count, seed, greedily=False, **sampler) -> Iterator[dict]:
    """Yield tokens that go on after a text, one at a time, drawn as by sample.py with the same seed and prompt."""
    prompt, ends = [*reader.front(ids, start), *ids], set(reader.tokenizer.roles.ends)
    idx = torch.tensor([prompt], device=reader.model.device)
    model = ServedModel(reader.model, reader.prefixes)
    for step in model.steps(idx, count, seed=seed, **({'temperature': 0} if greedily else sampler)):
        records = record_tokens(step.logits, step.ids, count=1, **sampler)
        new = step.ids.tolist()
        yield {**describe_ids(reader.tokenizer, new, prompt), **describe_records(len(ids), records)}
        prompt, ids = prompt + new, [*ids, *new]
        if new[0] in ends:
            return


def describe_found(reader, prompt, found) -> list[dict]:
    """Return continuations, (ids, logprob) each, likeliest first."""
    return [
        {**describe_ids(reader.tokenizer, ids, prompt), 'logprob': round_number(logprob, LOGPROB_DIGITS)}
        for ids, logprob in found
    ]


def search_beams(reader, ids, start, count, width) -> Iterator[dict | None]:
    """Yield the beams of a search after each of `count` tokens, likeliest first."""
    prompt = [*reader.front(ids, start), *ids]
    idx = torch.tensor([prompt], device=reader.model.device)
    size = 0
    for part in beam_parts(reader.model, idx, count, width, eos=reader.tokenizer.roles.ends):
        if part is None:
            yield None
            continue
        size, (beams, finished) = size + 1, part
        likeliest = sorted([*beams, *finished], key=lambda beam: -beam.logprob)[:width]
        found = [(beam.ids, beam.logprob) for beam in likeliest]
        yield {'size': size, 'found': describe_found(reader, prompt, found)}


def prove_likeliest(reader, ids, start, count, k, nbytes=2**30) -> Iterator[dict | None]:
    """Yield what the exact search has found, and its bound: no other of up to `count` tokens is likelier.

    nbytes: at most so much memory is used.
    """
    prompt = [*reader.front(ids, start), *ids]
    idx = torch.tensor([prompt], device=reader.model.device)

    ends = set(reader.tokenizer.roles.ends)

    def describe(found):
        continuations = found.sequences[:, len(prompt) :].tolist()
        rows = [(cut_after_end(ids, ends), logprob) for ids, logprob in zip(continuations, found.logprobs.tolist())]
        return {
            'found': describe_found(reader, prompt, rows),
            'bound': round_number(found.bound, LOGPROB_DIGITS),
            'exact': found.exact,
            'opened': found.opened,
            'waiting': found.waiting,
        }

    budget = Budget(seconds=SEARCH_SECONDS, mebibytes=nbytes / 2**20)
    yield from report_steps(search_parts(reader.model, idx, count, k, eos=ends), describe, budget)


def cut_after_end(ids, ends) -> list[int]:
    """Return ids up to the first that ends a text."""
    return ids[: next((place for place, id in enumerate(ids, 1) if id in ends), len(ids))]


def bound_spellings(reader, prompt, response, nbytes=2**30) -> Iterator[dict | None]:
    """Yield bounds on the probability that what follows a prompt begins with the text of some ids.

    nbytes: at most so much memory is used.
    """
    text = reader.tokenizer.decode_bytes(response, prompt)

    def describe(bounds):
        low, high = (round_number(bound, LOGPROB_DIGITS) for bound in (bounds.log_lower, bounds.log_upper))
        return {'lower': low, 'upper': high, 'opened': bounds.opened, 'exact': bounds.gap <= GAP}

    steps = probability_parts(reader.model, reader.tokenizer, prompt, text, response)
    budget = Budget(seconds=TEXT_SECONDS, mebibytes=nbytes / 2**20)
    yield from report_steps(steps, describe, budget, lambda bounds: bounds.gap <= GAP)


def report_steps(steps, describe, budget, is_enough=lambda step: False) -> Iterator[dict | None]:
    """Yield a part for the first step of a search, one for every PAUSE, and one for its last; None between them.

    steps: what is found so far, or None if nothing is.
    """
    started, reported = time.perf_counter(), None
    for step in steps:
        seconds = time.perf_counter() - started
        if step is not None and (is_enough(step) or budget.is_spent(step, seconds)):
            break
        if step is not None and (reported is None or seconds - reported > PAUSE):
            reported = seconds
            yield describe(step)
        else:
            yield None
    yield {**describe(step), 'done': True}


# A response -----------------------------------------------------------------------------------------------------------


def read_response(readers, ids, start, response, **sampler) -> Iterator[dict]:
    """Yield the tokens of a response that follows a text, and how likely they are, for each model in turn.

    A response that would run together with the text gets a space before it, as --fixed_response of sample.py.
    """
    text = readers[0].tokenizer.decode(ids)
    joined = boundary.join_response(text, replace_surrogates(response))
    note = '' if joined == response else 'A space was put before the response, which would run together with the text. '
    for which, reader in enumerate(readers):
        before, after, remark = split_response(reader, translate_ids(readers, which, ids), text, joined)
        whole, start = [*before, *after], start or not before
        front = reader.front(whole, start)
        tokens = describe_ids(reader.tokenizer, after, [*front, *before])
        yield {'which': which, **tokens, 'prompt': [*front, *before], 'note': note + remark}
        for at, records in reader.records(whole, start, len(before), **sampler):
            yield {'which': which, **describe_records(at - len(before), records)}


def split_response(reader, ids, text, response):
    """Return (ids before the response, its ids, remark) for a response that follows the ids of a text."""
    tokenizer = reader.tokenizer
    if tokenizer.encode(text) != ids:  # somebody chose other tokens than the usual ones: they stay as they are
        return ids, tokenizer.encode_after(ids, response), ''
    pair = boundary.split_pair(tokenizer, text, response)
    n_front = len(tokenizer.front if text.rstrip() else tokenizer.start_ids())
    return pair.prompt_ids[n_front:], pair.response_ids, pair.note or ''


# Inside the model -----------------------------------------------------------------------------------------------------


def look_inside(reader, ids, at, start) -> Iterator[dict | None]:
    """Yield what each layer would predict for token `at` of a text (the logit lens), then where each layer looks.

    Attention is that of the position that predicts the token: the last of the `window`, the ids that the model sees.
    """
    window = reader.window_before(ids, at, start)
    idx = torch.tensor([window], device=reader.model.device)
    chosen = torch.tensor([ids[at]]) if at < len(ids) else None
    lens = []
    for logits in layer_logits(reader.model, idx, last_only=True):
        row = logits[0].float().cpu()  # (1, V)
        logprobs = logits_to_logprobs(row)
        best = logprobs[0].max(-1)
        layer = {'best': best.indices.item(), 'best_logprob': round_number(best.values.item(), LOGPROB_DIGITS)}
        if chosen is not None:
            layer['logprob'] = round_number(logprobs[0, chosen[0]].item(), LOGPROB_DIGITS)
            layer['rank'] = rank_tokens(row, chosen)[0].item()
        lens.append(layer)
        yield None
    yield {'lens': lens, 'window': len(window), **describe_ids(reader.tokenizer, window)}
    for layer, weights in enumerate(layer_attentions(reader.model, idx)):  # (1, nh, T, T)
        rows = weights[0, :, -1].cpu().tolist()
        yield {'layer': layer, 'heads': [[round(weight, ATTENTION_DIGITS) for weight in row] for row in rows]}


# The page to hand in --------------------------------------------------------------------------------------------------


def write_static_page(readers, names, texts, start, title, sampler_name, **sampler) -> Iterator[str | None]:
    """Yield a static page of texts, [(label, ids)]; before it None, after each part of a text.

    sampler_name: the sampler in words.
    """
    about = [
        'Model probabilities are the softmax of the raw logits: temperature 1, every token.',
        f'Sampler probabilities are those that tokens are drawn with: {sampler_name}.',
    ]
    longest = max(len(ids) for _, ids in texts)
    for name, reader in zip(names, readers):
        if longest > reader.model.block_size:
            about.append(
                f'{name} sees at most {reader.model.block_size} tokens. Longer texts are read in segments of '
                f'{reader.stride} tokens, each after as many tokens before it as fit.'
            )
    page_texts = []
    for label, ids in texts:
        sides = []
        for which, reader in enumerate(readers):
            theirs, records = translate_ids(readers, which, ids), []
            for _, part in reader.records(theirs, start, count=ALTERNATIVES, **sampler):
                records += part
                yield None
            sides.append(make_side(records, reader.tokenizer))
        before = ids[: len(ids) - len(sides[0].records)]
        page_texts.append(PageText(label, readers[0].tokenizer.decode(before), sides))
    yield render_page(Page(title, about, names, sampler_name, page_texts))
