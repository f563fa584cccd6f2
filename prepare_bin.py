"""Turn texts into the token files that train.py reads: data/<dataset>/train.bin, val.bin, perhaps test.bin, meta.json.

    python prepare_bin.py --input=my_stories.txt --dataset=my_stories
    python prepare_bin.py --input='books/*.txt' --dataset=books --train_bpe=4096
    python prepare_bin.py --hf_dataset=roneneldan/TinyStories --text_column=text --dataset=tiny_stories

A .bin file is the tokens of its documents one after another, 16 bits each (32 where the vocabulary needs them), with
<|endoftext|> before, between and after the documents; a character tokenizer has none and gets the separator instead.

The size of a text does not matter. Its documents are copied one by one into a temporary file in the dataset's folder,
where the tokenizer is trained on them and where several processes read and encode them.
"""

import json
import os
import signal
import tempfile
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import configurator
from common.errors import UserError
from common.files import atomic_write, file_sha256
from lm.tokenizer import CharTokenizer, tokenizer_from_contents, tokenizer_from_name, train_bpe
from texts.corpus import SPLITS, assign_splits, cut_for_tokenizer, gather_documents, read_documents
from texts.files import input_paths, read_files
from texts.hub import read_hub

BATCH = 2**20  # bytes of text that a process encodes at a time
WORTH_A_PROCESS = 2**22  # bytes of text; fewer are encoded sooner than another process has started


@dataclass
class Settings:
    """Turn texts into the token files that train.py reads."""

    input: str = ''  # .txt, .jsonl, .csv or .parquet (UTF-8), folders, patterns such as 'books/*.txt'; commas between
    hf_dataset: str = ''  # a dataset on the Hugging Face hub instead, such as roneneldan/TinyStories
    hf_config: str = ''  # its configuration, if it has several
    hf_split: str = 'train'  # its split to read
    text_column: str = ''  # column of a table or hub dataset that holds the text; needed only if there are several
    dataset: str = ''  # name of the dataset: its files go to data/<dataset>/
    tokenizer: str = 'gpt2'  # gpt2, char, a shipped model (tiny), a model folder, or a tokenizer.json
    train_bpe: int | None = None  # train a BPE of this many tokens on the training part first, and use that
    separator: str = '\\n\\n\\n'  # what stands between documents of a .txt; the default is two empty lines
    max_documents: int | None = None  # read no more than the first so many; None reads all
    val_fraction: float = 0.1  # share of the text, in whole documents, that is kept for validation
    test_fraction: float = 0.0  # share that is kept for a test after all training; 0 writes no test.bin
    keep_duplicates: bool = False  # keep documents that are the same, character for character, as an earlier one
    num_workers: int | None = None  # processes that encode, by default one for each core; they change no byte
    seed: int = 1337  # decides which documents are kept for validation and test


def main(settings):
    """Gather the documents, share them out, encode and write them."""
    separator = check_prepare_settings(settings)
    paths = input_paths(settings.input)
    tokenizer = None
    if settings.train_bpe is None and settings.tokenizer != 'char':
        tokenizer = tokenizer_from_name(settings.tokenizer)
        tokenizer.encode(separator)  # a vocabulary that cannot be fetched shows here, before the long work
    workers = settings.num_workers or cores()
    if settings.hf_dataset:
        hub = (settings.hf_dataset, settings.hf_config, settings.hf_split)
        texts, source = read_hub(*hub, settings.text_column)
    else:
        texts, source = read_files(paths, separator, settings.text_column), None
        workers = min(workers, sum(path.stat().st_size for path in paths) // WORTH_A_PROCESS)

    texts = islice(texts, settings.max_documents)
    folder = Path('data') / settings.dataset
    held_out = [settings.val_fraction, settings.test_fraction]
    shares = [round(1 - sum(held_out), 9), *held_out]  # of train, val and test; 1 - 0.7 - 0.3 is not quite 0
    with ExitStack() as stack:
        path = stack.enter_context(temporary_file_in(folder))
        if tokenizer is not None:
            encode_all = stack.enter_context(encoder(tokenizer, separator, path, workers))
        corpus, counts = gather_documents(texts, path, settings.keep_duplicates)
        if not len(corpus.starts):
            raise UserError(f'there is no text in {settings.input or settings.hf_dataset}')
        split = assign_splits(corpus, shares, settings.seed)
        if tokenizer is None:
            tokenizer = make_tokenizer(settings.train_bpe, corpus, split, separator)
            encode_all = stack.enter_context(encoder(tokenizer, separator, path, workers))
        meta = {
            'tokenizer': tokenizer.contents,
            'vocab_size': tokenizer.vocab_size,
            'dtype': dtype_of(tokenizer).name,
            'sources': [source] if source else [describe_source(file) for file in paths],
            **counts,
        }
        write_dataset(folder, meta, corpus, split, marks(tokenizer, separator), encode_all)

    for name in SPLITS:
        if name in meta:
            part = f'{meta[name]["documents"]:,} documents, {meta[name]["bytes"]:,} bytes'
            print(f'{folder / name}.bin: {part}, {meta[name]["tokens"]:,} tokens')
    if any(counts.values()):
        duplicates, empty = counts['duplicates_dropped'], counts['empty_skipped']
        print(f'left out: {duplicates:,} duplicates of earlier documents, {empty:,} rows without text')
    if meta['train']['documents'] and meta['val']['documents']:
        by_tokenizer = {'gpt2': 'finetune_stories', 'tiny': 'finetune_own_text', 'tiny-stories': 'finetune_own_text'}
        config = by_tokenizer.get('' if settings.train_bpe else settings.tokenizer, 'train_tiny')
        print(f'train on it with: python train.py config/{config}.py --dataset={settings.dataset}')


def check_prepare_settings(settings):
    """Raise UserError for settings that cannot be; return the separator, escapes such as \\n made one character."""
    if not settings.dataset or bool(settings.input) == bool(settings.hf_dataset):
        raise UserError('say what to read, --input=my.txt or --hf_dataset=NAME, and what to call it: --dataset=my')
    for name in ('val_fraction', 'test_fraction'):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f'--{name}={getattr(settings, name)}: it is a share, from 0 to 1')
    if round(settings.val_fraction + settings.test_fraction, 9) > 1:
        raise UserError(f'--val_fraction={settings.val_fraction} and --test_fraction={settings.test_fraction} exceed 1')
    for name in ('num_workers', 'max_documents'):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f'--{name}={value}: it is at least 1')
    if settings.seed < 0:
        raise UserError(f'--seed={settings.seed}: it cannot be negative')
    try:
        separator = settings.separator.encode('latin-1', 'backslashreplace').decode('unicode_escape')
    except UnicodeDecodeError as error:
        raise UserError(f'--separator={settings.separator}: {error.reason}; a backslash is written as two') from error
    if not separator:
        raise UserError('--separator is empty; say what stands between documents')
    return separator


def cores():
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextmanager
def temporary_file_in(folder):
    """Yield the path of a file in a folder; afterwards it is gone, and so is the folder if it was made and is empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.documents.', dir=folder) as temporary:
            yield Path(temporary) / 'documents'
    except OSError as error:  # a full disk, most likely
        message = f'cannot write {folder}: {error.strerror or error}; what was there before is still there'
        raise UserError(message) from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def make_tokenizer(bpe_size, corpus, split, separator):
    """Train a BPE of bpe_size tokens on the training part or, without a size, collect the characters of everything."""
    if bpe_size is None:
        return CharTokenizer(sorted(set(separator).union(*corpus.texts(slice(None)))))
    if not (split == 0).any():
        raise UserError('a BPE is trained on the training part, and --val_fraction leaves nothing in it')
    return train_bpe(corpus.texts(split == 0), bpe_size)


def marks(tokenizer, separator):
    """Return the ids that stand before, between and after documents."""
    return tokenizer.encode(separator) if tokenizer.eot is None else [tokenizer.eot]


def dtype_of(tokenizer):
    """Return the type of a token in a .bin file."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def describe_source(path):
    """Return what meta.json says about a file that was read."""
    return {'name': path.name, 'bytes': path.stat().st_size, 'sha256': file_sha256(path)}


def write_dataset(folder, meta, corpus, split, between, encode_all):
    """Encode all documents and write the dataset's files, all of them or none; complete `meta` with their counts."""
    written = [name for name in SPLITS if name != 'test' or (split == 2).any()]
    batches = []  # (name of the split, starts, ends) of some documents of one split that follow each other
    for name in written:
        chosen = np.flatnonzero(split == SPLITS.index(name))
        sizes = (corpus.ends - corpus.starts)[chosen]
        meta[name] = {'documents': len(chosen), 'bytes': int(sizes.sum()), 'tokens': 0}
        for part in np.split(chosen, np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH)) + 1):
            batches.append((name, corpus.starts[part], corpus.ends[part]))
    total = sum(meta[name]['bytes'] for name in written)
    progress = tqdm(total=total, desc='encoding', unit='B', unit_scale=True, leave=False, disable=None)
    with ExitStack() as stack:  # what is entered last gets its name first, so meta.json is the last
        meta_path = stack.enter_context(atomic_write(folder / 'meta.json'))
        paths = {name: stack.enter_context(atomic_write(folder / f'{name}.bin')) for name in reversed(written)}
        with ExitStack() as opened, progress:
            files = {name: opened.enter_context(open(path, 'wb')) for name, path in paths.items()}
            ids_of_batches = encode_all([batch[1:] for batch in batches])
            for (name, starts, ends), ids in zip(batches, ids_of_batches, strict=True):
                if len(ids) and not meta[name]['tokens']:
                    ids = np.concatenate([np.array(between, ids.dtype), ids])
                files[name].write(ids)
                meta[name]['tokens'] += len(ids)
                progress.update(int((ends - starts).sum()))
        for name in written:
            meta[name]['sha256'] = file_sha256(paths[name])
        meta_path.write_text(json.dumps(meta, indent=1) + '\n', encoding='utf-8')
    if 'test' not in written:
        (folder / 'test.bin').unlink(missing_ok=True)  # from an earlier time; it may hold what train.bin holds now


@contextmanager
def encoder(tokenizer, separator, path, workers):
    """Yield a function that encodes batches of documents, (starts, ends) in a file, and yields their ids in order.

    Several workers are processes, which get ready at once and may wait. They are spawned on every system, since a fork
    of a process that has threads may hang, and make their own tokenizer.
    """
    job = (marks(tokenizer, separator), dtype_of(tokenizer), path)
    if workers < 2:
        yield lambda batches: (encode(tokenizer, *job, *batch) for batch in batches)
        return
    pool = ProcessPoolExecutor(workers, get_context('spawn'), start_worker, (tokenizer.contents, *job))
    try:
        for _ in range(workers):
            pool.submit(os.getpid)  # a process is started when there is something to do
        yield partial(encode_in, pool, 2 * workers)
    except BrokenProcessPool as error:
        raise UserError('a process that encodes has died, of too little memory perhaps; try --num_workers=1') from error
    finally:
        pool.shutdown(cancel_futures=True)


def encode_in(pool, ahead, batches):
    """Yield the ids of each batch, in order, from processes that are at most `ahead` batches ahead."""
    waiting = deque()
    for batch in batches:
        waiting.append(pool.submit(work, batch))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def start_worker(contents, *rest):
    """Prepare a new process for its work."""
    global encode_here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    tokenizer = tokenizer_from_contents(contents)
    tokenizer.encode(
        ''
    )  # GPT-2's vocabulary is read when it is first needed; the text is not yet there, so read it now
    encode_here = partial(encode, tokenizer, *rest)


def work(batch):
    """Encode a batch in a process that start_worker has prepared."""
    return encode_here(*batch)


def encode(tokenizer, between, dtype, path, starts, ends):
    """Return the ids of the documents between these bytes of a file, `between` after each."""
    ids = [np.zeros(0, dtype)]
    for document in read_documents(path, starts, ends):
        ids += [tokenizer.encode_array(piece, dtype) for piece in cut_for_tokenizer(document)]
        ids.append(np.array(between, dtype))
    return np.concatenate(ids)


if __name__ == '__main__':
    configurator.run(main, Settings)
