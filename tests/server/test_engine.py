"""The engine: many requests at once get the numbers that each gets alone, in turn, and nothing is left behind."""

import asyncio
import contextlib
import itertools
import threading

import pytest
import torch
from helpers.models import random_gpt

from common.errors import UserError
from model import logits_to_logprobs
from server.engine import BusyError, Engine, Limits, NamedModel


@contextlib.contextmanager
def run_engine(*models, **limits):
    engine = Engine([NamedModel('random', each, None, None) for each in models], Limits(**limits))
    yield engine
    engine.close()


def random_ids(n, seed=0):
    return torch.randint(61, (n,), generator=torch.Generator().manual_seed(1000 * seed + n)).tolist()


def check_records(model, ids, start, records, count):
    """Compare records with a forward pass of the model over each window."""
    assert len(records) == len(ids) - start
    for end, record in enumerate(records, start):
        window = torch.tensor([ids[max(0, end - model.block_size) : end]])
        logprobs = logits_to_logprobs(model(window)[0][0, -1])
        assert record.id == ids[end]
        assert record.model_logprob == pytest.approx(logprobs[ids[end]].item(), abs=1e-4)
        assert [other.id for other in record.alternatives] == logprobs.topk(count).indices.tolist()


def test_texts_scored_together_get_the_numbers_of_the_models_own_forward_passes():
    models = [random_gpt(seed=seed) for seed in (0, 1)]
    jobs = [(n % 2, random_ids(n), 1 + n % 3 * (n > 3), n % 4) for n in (2, 3, 9, 16, 17, 25, 1, 5)]

    async def score_all(engine):
        texts = (engine.score(which, ids, start, count) for which, ids, start, count in jobs)
        lists = engine.score_texts(0, [(ids[:start], ids[start:]) for _, ids, start, _ in jobs], 2)
        return await asyncio.gather(*texts, lists)

    with run_engine(*models) as engine:
        *found, lists = asyncio.run(score_all(engine))
    for (which, ids, start, count), records, again in zip(jobs, found, lists, strict=True):
        check_records(models[which], ids, start, records, count)
        check_records(models[0], ids, start, again, 2)


def test_a_text_that_goes_on_reads_only_what_is_new(monkeypatch):
    model = random_gpt(block_size=256)
    ids = random_ids(200)
    with run_engine(model) as engine:
        asyncio.run(engine.score(0, ids[:150], 1))
        read = []
        hidden = model.hidden
        monkeypatch.setattr(model, 'hidden', lambda idx, cache=None: (read.append(idx.numel()), hidden(idx, cache))[1])
        records = asyncio.run(engine.score(0, ids, 150, count=3))
        assert read == [200 - 1 - 149]
        other = [*ids[:100], *random_ids(60, seed=1)]
        others = asyncio.run(engine.score(0, other, 120, count=3))
        assert read[1:] == [len(other) - 1 - 100]
        assert 0 < engine.prefixes.nbytes <= engine.limits.prefix_bytes
    check_records(model, ids, 150, records, 3)
    check_records(model, other, 120, others, 3)


@pytest.mark.slow
def test_kept_prefixes_have_a_bounded_size_and_the_oldest_goes_first():
    model = random_gpt(block_size=64)
    size = model.new_cache(1, 63).nbytes
    with run_engine(model, prefix_bytes=3 * size) as engine:
        for seed in range(9):
            asyncio.run(engine.score(0, random_ids(64, seed), 1))
            assert engine.prefixes.nbytes <= 3 * size
        assert engine.prefixes.find(model, random_ids(64, 8)).end == 63
        assert engine.prefixes.find(model, random_ids(64, 1)) is None


def test_jobs_take_turns_and_none_waits_for_a_longer_one():
    order = []

    def job(name, n):
        for step in range(n):
            order.append(name)
            yield step

    async def read(engine, *jobs):
        async def collect(stream):
            return [item async for item in stream]

        return await asyncio.gather(*(collect(engine.stream(job(*each))) for each in jobs))

    with run_engine(random_gpt()) as engine:
        long, short, none = asyncio.run(read(engine, ('long', 500), ('short', 5), ('none', 0)))
    assert (long, short, none) == (list(range(500)), list(range(5)), [])
    last = len(order) - order[::-1].index('short')
    assert order[:last].count('long') < 30


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_its_job_and_one_that_does_not_read_stops_it():
    closed, steps = threading.Event(), itertools.count()

    def job():
        try:
            while True:
                yield next(steps)
        finally:
            closed.set()

    async def read_three(engine):
        stream = engine.stream(job())
        async with contextlib.aclosing(stream):
            assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
            await asyncio.sleep(0.05)
        assert closed.wait(2)

    async def read_nothing(engine):
        engine.stream(job())
        while engine._jobs:
            await asyncio.sleep(0.01)

    with run_engine(random_gpt(), unread=4, patience=0.1) as engine:
        asyncio.run(read_three(engine))
        assert next(steps) <= 3 + 4
        closed.clear()
        asyncio.run(read_nothing(engine))
        assert closed.is_set()


@pytest.mark.slow
def test_an_error_reaches_its_reader_and_nobody_else():
    model = random_gpt()

    def fail():
        yield 1
        raise FloatingPointError('nan')

    async def read(engine):
        stream = engine.stream(fail())
        assert await anext(stream) == 1
        with pytest.raises(FloatingPointError, match='nan'):
            await anext(stream)
        model.transformer.ln_f.weight.data *= float('nan')
        with pytest.raises(FloatingPointError):
            await engine.score(0, [1, 2])
        model.transformer.ln_f.weight.data.fill_(1)
        assert len(await engine.score(0, [1, 2])) == 1
        with pytest.raises(ValueError, match='unknown ids'):
            await engine.score(0, [1, 99])

    with run_engine(model) as engine:
        asyncio.run(read(engine))


def test_the_queue_is_bounded_and_closing_tells_those_who_wait():
    go_on = threading.Event()

    def hold():
        go_on.wait(5)
        yield 1

    async def fill(engine):
        streams = [engine.stream(hold()) for _ in range(2)]
        with pytest.raises(BusyError):
            engine.stream(hold())
        await asyncio.sleep(0.05)  # the worker is inside the first one
        waiting = asyncio.ensure_future(engine.score(0, random_ids(16)))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await engine.score(0, random_ids(16))
        with pytest.raises(UserError, match='send less'):
            await engine.score(0, random_ids(40))
        with pytest.raises(UserError, match='memory'):
            engine.stream(hold(), nbytes=engine.job_bytes + 1)
        gone = asyncio.ensure_future(engine.score(0, random_ids(4)))
        await asyncio.sleep(0)
        gone.cancel()
        go_on.set()
        assert len(await waiting) == 15
        assert [item async for item in streams[0]] == [1]
        assert await anext(streams[1]) == 1
        return streams

    with run_engine(random_gpt(), jobs=2, waiting_tokens=25) as engine:
        asyncio.run(fill(engine))
    with pytest.raises(BusyError):
        asyncio.run(engine.score(0, [1, 2]))
