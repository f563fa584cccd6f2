"""Turn texts into the token files that train.py reads: data/<dataset>/train.bin, val.bin, meta.json, maybe test.bin.

    python prepare_bin.py --input=my_stories.txt --dataset=my_stories
    python prepare_bin.py --input='books/*.txt' --dataset=books --train_bpe=4096
    python prepare_bin.py --input=export_from_excel.csv --text_column=story --dataset=stories
    python prepare_bin.py --hf_dataset=roneneldan/TinyStories --text_column=text --dataset=tiny_stories
    python prepare_bin.py                          # prepares the 52 stories that come with the project once more

A .bin file contains the tokens of its documents one after another, 16 bits each (32 if the vocabulary needs them), with
<|endoftext|> before, between and after the documents. Tokenizers of other models have other tokens for that, such as
</s><s>; a character tokenizer has none, and there it is the separator.

The text may be larger than the memory. Its documents are first copied into a temporary file in the dataset's folder;
the tokenizer is trained on that file, and several processes encode it.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import json
import os
import signal
import tempfile
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import configurator
from common.errors import UserError, explain_write_error
from common.files import PARTIAL, expand_path, file_sha256
from common.folders import lock_folder, remove_leftovers, replace_together
from common.notes import note
from lm.tokenizer import CharTokenizer, tokenizer_from_contents, train_bpe
from lm.tokenizer_names import tokenizer_from_name
from texts.corpus import cut_for_tokenizer, gather_documents, read_documents
from texts.hub_datasets import read_hub
from texts.json_rows import PairKeys
from texts.readers import input_paths, read_files
from texts.splits import SPLITS, assign_splits
from texts.token_files import FILES

STORIES = 'childrens_stories'  # the dataset that the project ships
BATCH = 2**20  # bytes of text that a process encodes at a time
BYTES_PER_WORKER = 2**22  # less text is encoded sooner than another process has started


@dataclass
class Settings:
    """Turn texts into the token files that train.py reads."""

    input: str = ''  # files (.txt, .json, .jsonl, .csv, .tsv, .parquet, .arrow), folders or 'books/*.txt', with commas
    hf_dataset: str = ''  # a dataset on the Hugging Face hub instead, such as roneneldan/TinyStories
    hf_config: str = ''  # its configuration, if it has several
    hf_split: str = 'train'  # its split to read
    text_column: str = ''  # column of a table or hub dataset with the text; needed if it is not clear which one
    prompt_key: str = ''  # column or key of the prompts, if each document is a prompt and a response with unusual names
    response_key: str = ''  # that of the responses
    dataset: str = ''  # name of the dataset: its files go to data/<dataset>/
    tokenizer: str = 'gpt2'  # gpt2, char, a shipped model (tiny), a name on the hub, a model's folder, a .json file
    train_bpe: int | None = None  # train a BPE of this many tokens on the training part first, and use that
    separator: str = '\\n\\n\\n'  # text between the documents of a .txt file; the default is two empty lines
    max_documents: int | None = None  # read only this many documents; None reads all
    val_fraction: float = 0.1  # share of the text, in whole documents, that is kept for validation
    test_fraction: float = 0.0  # share that is kept for a final test; 0 writes no test.bin
    keep_duplicates: bool = False  # keep documents that are identical to an earlier one
    num_workers: int | None = None  # processes that encode (None: one for each core); the files do not depend on it
    seed: int = 1337  # decides which documents are kept for validation and test


def main(settings):
    """Gather the documents, split them, encode them and write the token files."""
    if settings == Settings():
        settings = replace(settings, input=f'data/{STORIES}/{STORIES}.txt', dataset=STORIES)
        note(f'preparing the shipped stories, {settings.input}; for others, give --input=my.txt and --dataset=my')
    separator = check_prepare_settings(settings)
    paths = input_paths(settings.input)
    tokenizer = None  # if it has to be made from the documents
    if settings.train_bpe is None and settings.tokenizer != 'char':
        tokenizer = tokenizer_from_name(settings.tokenizer)
        tokenizer.encode(separator)  # if its vocabulary cannot be downloaded, fail now and not after long work
    n_workers = settings.num_workers or count_cores()
    column = settings.text_column
    if settings.prompt_key or settings.response_key:
        column = PairKeys((settings.prompt_key,), settings.response_key)
    if settings.hf_dataset:
        documents, source = read_hub(settings.hf_dataset, settings.hf_config, settings.hf_split, column)
    else:
        documents, source = read_files(paths, separator, column), None
        n_workers = min(n_workers, sum(path.stat().st_size for path in paths) // BYTES_PER_WORKER)

    folder = Path('data') / expand_path(settings.dataset.removeprefix('data/'))  # data/mine means mine
    with ExitStack() as stack:
        path = stack.enter_context(temporary_file_in(folder))
        if tokenizer is not None:  # the processes start while the documents are read
            encode_batches = stack.enter_context(open_encoder(tokenizer, separator, path, n_workers))
        corpus, left_out = gather_documents(islice(documents, settings.max_documents), path, settings.keep_duplicates)
        if not len(corpus.starts):
            raise UserError(f'there is no text in {settings.input or settings.hf_dataset}')
        split = assign_splits(corpus, split_shares(settings), settings.seed)
        if tokenizer is None:
            tokenizer = make_tokenizer(settings.train_bpe, corpus, split, separator)
            encode_batches = stack.enter_context(open_encoder(tokenizer, separator, path, n_workers))
        meta = {
            'tokenizer': tokenizer.contents,
            'vocab_size': tokenizer.vocab_size,
            'dtype': token_dtype(tokenizer).name,
            'sources': [source] if source else [describe_file(file) for file in paths],
            **left_out,
        }
        between = separator_ids(tokenizer, separator)
        if tokenizer.config is not None:  # other models were trained with other tokens between documents
            note(f'{tokenizer.show(between)} is put before, between and after the documents')
        write_dataset(folder, meta, corpus, split, between, encode_batches)
    print_summary(settings, folder, meta)


def check_prepare_settings(settings):
    """Return the separator with escapes such as \\n resolved; raise UserError for invalid settings."""
    if not settings.dataset or bool(settings.input) == bool(settings.hf_dataset):
        raise UserError('give one input, --input=my.txt or --hf_dataset=NAME, and name the dataset: --dataset=my')
    if settings.text_column and (settings.prompt_key or settings.response_key):
        raise UserError('give --text_column for one column, or --prompt_key and --response_key for two, but not both')
    for name in ('val_fraction', 'test_fraction'):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be between 0 and 1')
    if round(settings.val_fraction + settings.test_fraction, 9) > 1:
        raise UserError(f'--val_fraction={settings.val_fraction} and --test_fraction={settings.test_fraction} exceed 1')
    for name in ('num_workers', 'max_documents'):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f'--{name}={value}: it must be at least 1')
    if settings.seed < 0:
        raise UserError(f'--seed={settings.seed}: it cannot be negative')
    try:
        separator = settings.separator.encode('latin-1', 'backslashreplace').decode('unicode_escape')
    except UnicodeDecodeError as error:
        raise UserError(f'--separator={settings.separator}: {error.reason}; write a backslash as \\\\') from error
    if not separator:
        raise UserError('--separator is empty: it must be the text between two documents')
    return separator


def count_cores():
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextmanager
def temporary_file_in(folder):
    """Yield a path for a temporary file in a folder that no other process may write to meanwhile; remove it afterwards.

    The folder is removed, too, if it is new and remains empty.
    """
    with lock_folder(folder, 'choose another --dataset'):
        remove_leftovers(folder, 'documents', 'new')
        try:
            with tempfile.TemporaryDirectory(prefix='.documents.', suffix=PARTIAL, dir=folder) as temporary:
                yield Path(temporary) / 'documents'
        except OSError as error:  # most likely a full disk
            raise UserError(explain_write_error(error, folder)) from error


def split_shares(settings):
    """Return the shares of train, val and test."""
    held_out = [settings.val_fraction, settings.test_fraction]
    return [round(1 - sum(held_out), 9), *held_out]  # rounded, since 1 - 0.7 - 0.3 is not exactly 0


def make_tokenizer(bpe_size, corpus, split, separator):
    """Return a BPE of bpe_size tokens trained on the training part or, without a size, one of all characters."""
    if bpe_size is None:
        return CharTokenizer(sorted(set(separator).union(*corpus.texts(slice(None)))))
    if not (split == 0).any():
        raise UserError('a BPE is trained on the training part, but --val_fraction leaves nothing in it')
    return train_bpe(corpus.texts(split == 0), bpe_size)


def separator_ids(tokenizer, separator):
    """Return the token ids that go before, between and after documents.

    The one that ends a text comes first, then those that the tokenizer puts before each text, such as <s>: what a
    model saw in its training, and how texts are scored. They may be the same id.
    """
    front = list(tokenizer.front)
    end = [] if tokenizer.eot is None or front[:1] == [tokenizer.eot] else [tokenizer.eot]
    begin = front or ([] if end or tokenizer.roles.bos is None else [tokenizer.roles.bos])
    return [*end, *begin] or tokenizer.encode(separator)


def token_dtype(tokenizer):
    """Return the NumPy type of a token in a .bin file."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def describe_file(path):
    """Return what meta.json records about an input file."""
    return {'name': path.name, 'bytes': path.stat().st_size, 'sha256': file_sha256(path)}


def print_summary(settings, folder, meta):
    """Print what each file contains, what was left out, and how to train on the dataset."""
    for name in SPLITS:
        if name in meta:
            part = f'{meta[name]["documents"]:,} documents, {meta[name]["bytes"]:,} bytes'
            print(f'{folder / name}.bin: {part}, {meta[name]["tokens"]:,} tokens')
    duplicates, empty = meta['duplicates_dropped'], meta['empty_skipped']
    if duplicates or empty:
        print(f'left out: {duplicates:,} duplicates of earlier documents, {empty:,} rows without text')
    if meta['train']['documents'] and meta['val']['documents']:
        by_tokenizer = {'gpt2': 'finetune_stories', 'tiny': 'finetune_own_text', 'tiny-stories': 'finetune_own_text'}
        config, model = by_tokenizer.get('' if settings.train_bpe else settings.tokenizer, 'train_tiny'), ''
        if 'config' in meta['tokenizer']:  # of another model than GPT-2, which there is no config file for
            config, model = 'finetune_stories', f' --init_from={settings.tokenizer}'
        print(f'train on it with: python train.py config/{config}.py{model} --dataset={settings.dataset}')


# Encoding and writing -------------------------------------------------------------------------------------------------


def write_dataset(folder, meta, corpus, split, between, encode_batches):
    """Encode all documents and write the files of the dataset, all of them or none.

    Adds the counts of each split to `meta`. between: the token ids between documents. encode_batches: see open_encoder.
    """
    names = [name for name in SPLITS if name != 'test' or (split == 2).any()]
    batches = []  # (split name, starts, ends) of successive documents of one split
    for name in names:
        chosen = np.flatnonzero(split == SPLITS.index(name))
        sizes = (corpus.ends - corpus.starts)[chosen]
        meta[name] = {'documents': len(chosen), 'bytes': int(sizes.sum()), 'tokens': 0}
        for part in np.split(chosen, np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH)) + 1):
            batches.append((name, corpus.starts[part], corpus.ends[part]))
    total = sum(meta[name]['bytes'] for name in names)
    progress = tqdm(total=total, desc='encoding', unit='B', unit_scale=True, leave=False, disable=None)
    # An older test.bin goes with the other files, since it may contain documents that are now in train.bin.
    with replace_together(folder, FILES) as new:
        paths = {name: new / f'{name}.bin' for name in names}
        with ExitStack() as opened, progress:
            files = {name: opened.enter_context(open(path, 'wb')) for name, path in paths.items()}
            ids_of_batches = encode_batches([batch[1:] for batch in batches])
            for (name, starts, ends), ids in zip(batches, ids_of_batches, strict=True):
                if len(ids) and not meta[name]['tokens']:
                    ids = np.concatenate([np.array(between, ids.dtype), ids])
                files[name].write(ids)
                meta[name]['tokens'] += len(ids)
                progress.update(int((ends - starts).sum()))
        for name in names:
            meta[name]['sha256'] = file_sha256(paths[name])
        (new / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n', encoding='utf-8')


@contextmanager
def open_encoder(tokenizer, separator, path, n_workers):
    """Yield a function that encodes batches of documents, (starts, ends) in a file, and yields their ids in order.

    With several workers, the processes start now, while the caller does other things. They are spawned on every system,
    since forking a process with threads may hang, and each makes its own tokenizer.
    """
    job = (separator_ids(tokenizer, separator), token_dtype(tokenizer), path)
    if n_workers < 2:
        yield lambda batches: (encode_documents(tokenizer, *job, *batch) for batch in batches)
        return
    pool = ProcessPoolExecutor(n_workers, get_context('spawn'), prepare_worker, (tokenizer.contents, *job))
    try:
        for _ in range(n_workers):
            pool.submit(os.getpid)  # a pool starts a process only when there is something to do
        yield partial(encode_in_pool, pool, 2 * n_workers)
    except BrokenProcessPool as error:
        raise UserError('a process died while encoding, perhaps from lack of memory; try --num_workers=1') from error
    finally:
        pool.shutdown(cancel_futures=True)


def encode_in_pool(pool, max_ahead, batches):
    """Yield the ids of each batch, in order; the workers are at most max_ahead batches ahead."""
    pending = deque()
    for batch in batches:
        pending.append(pool.submit(encode_in_worker, batch))
        if len(pending) > max_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def prepare_worker(tokenizer_contents, *job):
    """Make the tokenizer in a new process of the pool."""
    global worker_encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one stops the others
    tokenizer = tokenizer_from_contents(tokenizer_contents)
    tokenizer.encode('')  # loads GPT-2's vocabulary now, while the documents are still being read
    worker_encode = partial(encode_documents, tokenizer, *job)


def encode_in_worker(batch):
    """Encode a batch in a process that prepare_worker has prepared."""
    return worker_encode(*batch)


def encode_documents(tokenizer, between, dtype, path, starts, ends):
    """Return the ids of the documents between these byte positions of a file, with `between` after each."""
    ids, cut = [np.zeros(0, dtype)], tokenizer.can_be_cut
    for document in read_documents(path, starts, ends):
        pieces = cut_for_tokenizer(document) if cut else [document]
        ids += [tokenizer.encode_array(piece, dtype) for piece in pieces]
        ids.append(np.array(between, dtype))
    return np.concatenate(ids)


if __name__ == '__main__':
    configurator.run(main, Settings)
