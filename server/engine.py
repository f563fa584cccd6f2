"""One thread owns the models and computes; everybody else waits for it in a bounded queue.

Two kinds of work come to it. Texts to score are cut into rows, and each batch takes rows of all requests that wait, in
turn. A job is a generator that yields between two passes of a model: it generates, or searches. The thread computes one
batch of rows, then goes on with each job until it yields, and so on. So nobody waits for somebody else's long text.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from typing import NamedTuple

import torch

from common.errors import UserError
from lm.alternatives import ALTERNATIVES
from lm.memory import format_bytes, free_memory, sizes_of_token
from lm.settings import ModelSettings
from lm.tokenizer_base import Tokenizer
from model import LanguageModel
from server.prefix_cache import PrefixCache
from server.scorings import Scoring, compute_rows, take_rows

END = object()  # what comes after the last thing that a job yields


class NamedModel(NamedTuple):
    """A model that is served."""

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    settings: ModelSettings
    chat_tokenizer: Tokenizer | None = None  # the same with its chat template, if it has one


@dataclass
class Limits:
    """How much may wait, and for how long."""

    jobs: int = 128  # at a time
    waiting_tokens: int = 400_000  # that are to be scored, of all requests together
    unread: int = 16  # how many things a job yields before it waits for its client to read
    patience: float = 60.0  # seconds after which such a job ends
    job_share: float = 0.5  # of the memory that is free at first, for all jobs
    prefix_bytes: int = 2**28  # for the keys and values of texts that were read lately


class BusyError(Exception):
    """More work than the engine takes on at a time, or it is closing."""


class Job:
    """A generator that the worker runs, and what it yielded that has not been read."""

    def __init__(self, generator, nbytes, loop):
        self.generator, self.nbytes, self.queue, self._loop = generator, nbytes, asyncio.Queue(), loop
        self.unread = 0
        self.is_wanted = True  # whether anybody still reads
        self.read_last = time.monotonic()

    def deliver(self, item):
        """Give the reader what the generator yielded; called in the worker's thread."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed
            self._loop.call_soon_threadsafe(self.queue.put_nowait, item)


class Failure(NamedTuple):
    """An error that a generator raised."""

    error: Exception


class Engine:
    """Owns the models: one worker thread computes, everybody else waits in a bounded queue."""

    def __init__(self, models, limits=None):
        """models: a list of NamedModel, the main one first."""
        self.models, self.limits = list(models), limits or Limits()
        self.prefixes = PrefixCache(self.limits.prefix_bytes)  # only the worker uses it
        self._bytes_of_token = [sizes_of_token(each.model)[0] for each in self.models]
        free = [free_memory(each.model.device) for each in self.models]
        self.job_bytes = min((self.limits.job_share * one for one in free if one is not None), default=math.inf)
        self._scorings, self._jobs = deque(), []
        self._is_closing = False
        self._changed = threading.Condition()  # held to change what is above, notified after it
        self._thread = threading.Thread(target=self._work, name='engine', daemon=True)
        self._thread.start()

    async def score(self, which, ids, start=1, count=ALTERNATIVES):
        """Return the TokenRecords of ids[start:]: how likely each is after all before it, and `count` alternatives.

        which: the index of the model. Beyond the context, each token sees the last block_size ids, as in `steps`.
        Raises ValueError for unknown ids or start < 1, UserError for a text that is too long, BusyError if too much
        waits already.
        """
        (records,) = await self.score_texts(which, [(ids[:start], ids[start:])], count)
        return records

    async def score_texts(self, which, pairs, count=ALTERNATIVES):
        """Return the TokenRecords of each response: the same for a list of (prompt ids, response ids)."""
        scoring = Scoring(self.models[which].model, pairs, count)
        most = self.limits.waiting_tokens
        if scoring.tokens > most:
            raise UserError(f'{scoring.tokens:,} tokens would have to be computed, more than {most:,}: send less text')
        with self._changed:
            if self._is_closing or sum(other.tokens for other in self._scorings) + scoring.tokens > most:
                raise BusyError
            self._scorings.append(scoring)
            self._changed.notify()
        scores = await asyncio.wrap_future(scoring.done)
        return [score.records for score in scores]

    def stream(self, job, nbytes=0):
        """Return an async iterator of what a generator yields; it runs between the passes of other work.

        job: a generator that yields between two passes of a model. Closing the iterator closes it. The iterator raises
        what it raises. nbytes: the memory that it takes; see `bytes_of_texts`.
        Raises BusyError if there are too many jobs already, UserError if it takes more memory than all may.
        """
        if nbytes > self.job_bytes:
            raise UserError(
                f'this would take {format_bytes(nbytes)} of memory, more than {format_bytes(int(self.job_bytes))}: '
                'ask for fewer or shorter texts'
            )
        job = Job(job, nbytes, asyncio.get_running_loop())
        with self._changed:
            taken = sum(other.nbytes for other in self._jobs)
            if self._is_closing or len(self._jobs) >= self.limits.jobs or taken + nbytes > self.job_bytes:
                raise BusyError
            self._jobs.append(job)
            self._changed.notify()
        return self._read(job)

    async def _read(self, job):
        try:
            while (item := await job.queue.get()) is not END:
                with self._changed:
                    job.unread, job.read_last = job.unread - 1, time.monotonic()
                    self._changed.notify()
                if isinstance(item, Failure):
                    raise item.error
                yield item
        finally:
            with self._changed:
                job.is_wanted = False
                self._changed.notify()

    def bytes_of_texts(self, which, count, length):
        """Return how much memory it takes to generate texts side by side, each of `length` tokens with its prompt."""
        model = self.models[which].model
        # A cache that grows doubles its room; ten numbers for each id while a token is chosen.
        return count * (2 * min(length, model.block_size) * self._bytes_of_token[which] + 40 * model.n_ids)

    def close(self):
        """End the worker, after the pass that it computes; whoever waits gets a BusyError."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    # In the worker's thread -------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _work(self):
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=1)
                scorings = list(self._scorings)
                jobs = list(self._jobs)
                if self._is_closing:
                    break
            self._score_batch(scorings)
            for job in jobs:
                self._run(job)
        for scoring in scorings:
            settle(scoring.done, error=BusyError())
        for job in jobs:
            self._end(job, Failure(BusyError()))

    def _has_work(self):
        return self._is_closing or self._scorings or any(self._is_ready(job) for job in self._jobs)

    def _is_ready(self, job):
        """Return whether a job can go on, or is to be ended."""
        return not job.is_wanted or job.unread < self.limits.unread

    def _score_batch(self, scorings):
        """Compute a batch of rows, of the model that the first in the queue asks for."""
        wanted = []
        for scoring in scorings:
            if scoring.done.cancelled():  # the client is gone
                self._drop(scoring)
            elif not wanted or scoring.model is wanted[0].model:
                wanted.append(scoring)
        if not wanted:
            return
        if taken := take_rows(wanted):
            self._compute(taken)
        for scoring in wanted:
            if scoring.tokens == 0:
                settle(scoring.done, scoring.scores)
            if scoring.done.done():  # or it failed, or its client is gone
                self._drop(scoring)
        with self._changed:
            self._scorings.rotate(-1)  # another one is the first in the next batch

    def _compute(self, taken):
        """Compute rows, [(scoring, row)]; if that fails, those of each request alone, and end the one at fault."""
        try:
            compute_rows(taken, self.prefixes)
        except Exception as error:
            scorings = list(dict.fromkeys(scoring for scoring, _ in taken))
            if len(scorings) == 1:
                settle(scorings[0].done, error=error)
                return
            for each in scorings:
                self._compute([(scoring, row) for scoring, row in taken if scoring is each])

    def _drop(self, scoring):
        with self._changed:
            self._scorings.remove(scoring)

    def _run(self, job):
        """Run a job until it yields, unless it waits for its reader."""
        if not job.is_wanted:
            self._end(job)
        elif job.unread >= self.limits.unread:
            if time.monotonic() - job.read_last > self.limits.patience:
                self._end(job)
        else:
            try:
                item = next(job.generator)
            except StopIteration:
                self._end(job)
            except Exception as error:
                self._end(job, Failure(error))
            else:
                with self._changed:
                    job.unread += 1
                job.deliver(item)

    def _end(self, job, *last):
        """Close a job's generator, and tell its reader."""
        with self._changed:
            self._jobs.remove(job)
        job.generator.close()
        for item in (*last, END):
            job.deliver(item)


def settle(future, result=None, error=None):
    """Set the result of a future, or its error, unless its client is gone."""
    with contextlib.suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
