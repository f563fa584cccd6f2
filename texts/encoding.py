"""From documents to token ids, in several processes if there are many."""

import os
import signal
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from texts.corpus import cut_for_tokenizer, read_documents


def merge_notes(one, other):
    """Return the notes on unusual pairs of both: what is unusual -> (how many pairs, the note on the first)."""
    return {
        kind: (one.get(kind, (0,))[0] + other.get(kind, (0,))[0], (one.get(kind) or other[kind])[1])
        for kind in {**one, **other}
    }


@contextmanager
def open_encoder(encode, tokenizer, tokenizer_from_contents, job, n_workers):
    """Yield a function that encodes batches of documents and yields an Encoded of each, in order.

    encode: encode_documents or encode_pairs. tokenizer_from_contents: makes the tokenizer again in other processes.
    job: the arguments of `encode` between the tokenizer and the positions. A batch is the positions of its documents in
    the file, as `Corpus.positions` gives them. With several workers, the processes start now, while the caller does
    other things. They are spawned on every system, since forking a process with threads may hang.
    """
    if n_workers < 2:
        yield lambda batches: (encode(tokenizer, *job, *batch) for batch in batches)
        return
    made = (tokenizer_from_contents, tokenizer.contents)
    pool = ProcessPoolExecutor(n_workers, get_context('spawn'), prepare_worker, (encode, *made, *job))
    try:
        for _ in range(n_workers):
            pool.submit(os.getpid)  # a pool starts a process only when there is something to do
        yield partial(encode_in_pool, pool, 2 * n_workers)
    except BrokenProcessPool as error:
        raise UserError('a process died while encoding, perhaps from lack of memory; try --num_workers=1') from error
    finally:
        pool.shutdown(cancel_futures=True)


def encode_in_pool(pool, max_ahead, batches):
    """Yield an Encoded of each batch, in order; the workers are at most max_ahead batches ahead."""
    pending = deque()
    for batch in batches:
        pending.append(pool.submit(encode_in_worker, batch))
        if len(pending) > max_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def prepare_worker(encode, tokenizer_from_contents, contents, *job):
    """Make the tokenizer in a new process of the pool."""
    global worker_encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one stops the others
    tokenizer = tokenizer_from_contents(contents)
    tokenizer.encode('')  # loads GPT-2's vocabulary now, while the documents are still being read
    worker_encode = partial(encode, tokenizer, *job)


def encode_in_worker(batch):
    """Encode a batch in a process that prepare_worker has prepared."""
    return worker_encode(*batch)


class Encoded(NamedTuple):
    """The token ids of a batch of documents."""

    ids: np.ndarray
    mask: np.ndarray | None = None  # for pairs: 1 for each id that counts in the loss, 0 for the others
    unusual: dict | None = None  # notes on pairs, as in merge_notes


def encode_documents(tokenizer, between, dtype, path, starts, ends):
    """Return the Encoded documents between these byte positions of a file, with `between` after each."""
    ids, cut = [np.zeros(0, dtype)], tokenizer.can_be_cut
    for document in read_documents(path, starts, ends):
        pieces = cut_for_tokenizer(document) if cut else [document]
        ids += [tokenizer.encode_array(piece, dtype) for piece in pieces]
        ids.append(np.array(between, dtype))
    return Encoded(np.concatenate(ids))


def encode_pairs(tokenizer, between, dtype, path, starts, middles, ends):
    """Return the Encoded pairs between these byte positions of a file: prompt, response and `between` of each."""
    ids, mask, unusual = [np.zeros(0, dtype)], [np.zeros(0, np.uint8)], {}
    texts = zip(read_documents(path, starts, middles), read_documents(path, middles, ends), strict=True)
    for pair in (tokenizer.split_pair(prompt, response) for prompt, response in texts):
        parts = (pair.prompt_ids, [*pair.response_ids, *between])
        ids.append(np.array([*parts[0], *parts[1]], dtype))
        mask.append(np.repeat(np.array([0, 1], np.uint8), [len(part) for part in parts]))
        if pair.note:
            unusual = merge_notes(unusual, {pair.boundary: (1, pair.note)})
    return Encoded(np.concatenate(ids), np.concatenate(mask), unusual)
