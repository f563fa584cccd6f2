"""Turn texts, or pairs of prompt and response, into the token files that train.py reads, in data/<dataset>/.

    python prepare_bin.py --input=my_stories.txt --dataset=my_stories
    python prepare_bin.py --input='books/*.txt' --dataset=books --train_bpe=4096
    python prepare_bin.py --input=export_from_excel.csv --text_column=story --dataset=stories
    python prepare_bin.py --hf_dataset=roneneldan/TinyStories --text_column=text --dataset=tiny_stories
    python prepare_bin.py --pairs=questions.jsonl --dataset=questions     # train.py then learns the responses only
    python prepare_bin.py                          # prepares the 52 stories that come with the project once more

It writes train.bin, val.bin, maybe test.bin, and meta.json. A .bin file contains the tokens of its documents one after
another, 16 bits each (32 if the vocabulary needs them), with <|endoftext|> before, between and after the documents.
Tokenizers of other models have other tokens for that, such as </s><s>; a character tokenizer has none, and there it is
the separator.

With --pairs, a document is a prompt and its response, encoded exactly as eval.py scores them. <|endoftext|> is only
after each of them, and train.mask.bin and so on say which tokens count in the loss: those of the response, and the
<|endoftext|> after it, so that the model learns to stop.

The text may be larger than the memory. Its documents are first copied into a temporary file in the dataset's folder;
the tokenizer is trained on that file, and several processes encode it.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import json
import os
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import configurator
from common.errors import UserError, explain_write_error
from common.files import PARTIAL, expand_path, file_sha256, resolve_path
from common.folders import lock_folder, remove_leftovers, replace_together
from common.notes import note
from common.text_files import text_kind
from evaluation.pair_files import KeyChoice
from lm.boundary import join_response
from lm.tokenizer import CharTokenizer, tokenizer_from_contents, train_bpe
from lm.tokenizer_names import tokenizer_from_name
from texts.corpus import gather_documents
from texts.encoding import encode_documents, encode_pairs, merge_notes, open_encoder
from texts.hub_datasets import read_hub
from texts.json_rows import PairKeys
from texts.readers import input_paths, read_files
from texts.splits import SPLITS, assign_splits
from texts.tables import TABLES
from texts.token_files import FILES

STORIES = 'childrens_stories'  # the dataset that the project ships
BATCH = 2**20  # bytes of text that a process encodes at a time
BYTES_PER_WORKER = 2**22  # less text is encoded sooner than another process has started


@dataclass
class Settings:
    """Turn texts, or pairs of prompt and response, into the token files that train.py reads."""

    input: str = ''  # files (.txt, .json, .jsonl, .csv, .tsv, .parquet, .arrow), folders or 'books/*.txt', with commas
    pairs: str = ''  # a file of pairs instead, in any form that eval.py reads; train.py then learns the responses only
    hf_dataset: str = ''  # a dataset on the Hugging Face hub instead, such as roneneldan/TinyStories
    hf_config: str = ''  # its configuration, if it has several
    hf_split: str = 'train'  # its split to read
    text_column: str = ''  # column of a table or hub dataset with the text; needed if it is not clear which one
    prompt_key: str = ''  # column or key of the prompts, if each document is a prompt and a response with unusual names
    response_key: str = ''  # that of the responses
    pair_separator: str = ' '  # put between prompt and response of --pairs that would run together; '' for none
    skip_bad: bool = False  # leave out invalid pairs, with a note, instead of refusing the file
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
    separator, pairs = check_prepare_settings(settings), bool(settings.pairs)
    paths = [resolve_path(settings.pairs)] if settings.pairs else input_paths(settings.input)
    tokenizer = None  # if it has to be made from the documents
    if settings.train_bpe is None and settings.tokenizer != 'char':
        tokenizer = tokenizer_from_name(settings.tokenizer)
        tokenizer.encode(separator)  # if its vocabulary cannot be downloaded, fail now and not after long work
    n_workers = settings.num_workers or count_cores()
    column = settings.text_column
    if column and paths and not any(text_kind(path) in TABLES for path in paths):
        note('--text_column has no effect without a table')
    if settings.prompt_key or settings.response_key:
        column = PairKeys((settings.prompt_key,), settings.response_key)
    if settings.hf_dataset:
        documents, source = read_hub(settings.hf_dataset, settings.hf_config, settings.hf_split, column)
    else:
        documents, source = read_pairs_to_train(settings) if pairs else read_files(paths, separator, column), None
        n_workers = min(n_workers, sum(path.stat().st_size for path in paths) // BYTES_PER_WORKER)

    folder = Path('data') / expand_path(settings.dataset.removeprefix('data/'))  # data/mine means mine
    with ExitStack() as stack:
        path = stack.enter_context(temporary_file_in(folder))
        if tokenizer is not None:  # the processes start while the documents are read
            encode_batches = stack.enter_context(start_encoder(tokenizer, separator, path, n_workers, pairs))
        documents = islice(documents, settings.max_documents)
        corpus, left_out = gather_documents(documents, path, settings.keep_duplicates, pairs)
        if not len(corpus.starts):
            what = 'pair with a response' if pairs else 'text'
            raise UserError(f'there is no {what} in {settings.input or settings.pairs or settings.hf_dataset}')
        split = assign_splits(corpus, split_shares(settings), settings.seed)
        if tokenizer is None:
            tokenizer = make_tokenizer(settings.train_bpe, corpus, split, separator)
            encode_batches = stack.enter_context(start_encoder(tokenizer, separator, path, n_workers, pairs))
        meta = {
            'tokenizer': tokenizer.contents,
            'vocab_size': tokenizer.vocab_size,
            'dtype': token_dtype(tokenizer).name,
            'sources': [source] if source else [describe_file(file) for file in paths],
            **left_out,
        }
        between = ids_after_response(tokenizer, separator) if pairs else separator_ids(tokenizer, separator)
        if tokenizer.config is not None:  # other models were trained with other tokens between documents
            where = 'after each response' if pairs else 'before, between and after the documents'
            note(f'{tokenizer.show(between)} is put {where}')
        write_dataset(folder, meta, corpus, split, between, encode_batches)
    print_summary(settings, folder, meta)


def check_prepare_settings(settings):
    """Return the separator with escapes such as \\n resolved; raise UserError for invalid settings."""
    if settings.pairs and (settings.input or settings.hf_dataset):
        raise UserError(
            'texts and pairs do not go into one dataset, since all of a text counts and only the responses of pairs '
            'do: prepare two, with --input and with --pairs, and train on one after the other'
        )
    if not settings.dataset or sum(map(bool, (settings.input, settings.pairs, settings.hf_dataset))) != 1:
        raise UserError(
            'give one input, --input=my.txt, --pairs=my.json or --hf_dataset=NAME, and name the dataset: --dataset=my'
        )
    if settings.text_column and settings.pairs:
        raise UserError('--text_column is for texts; name the columns of --pairs with --prompt_key and --response_key')
    name_unused_settings(settings)
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


def name_unused_settings(settings):
    """Name on stderr the settings that have no effect in combination with the others."""
    unused = {
        **dict.fromkeys(('pair_separator', 'skip_bad'), '' if settings.pairs else 'without --pairs'),
        **dict.fromkeys(('hf_config', 'hf_split'), '' if settings.hf_dataset else 'without --hf_dataset'),
        'tokenizer': '' if settings.train_bpe is None else 'with --train_bpe',
    }
    for name, why in unused.items():
        if why and getattr(settings, name) != getattr(Settings, name):
            note(f'--{name} has no effect {why}')


def count_cores():
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def read_pairs_to_train(settings):
    """Return an iterator over the (prompt, response) of --pairs, as eval.py joins and splits them."""
    from evaluation.sources import PairSource  # here, since it imports torch, which texts and workers do not need

    keys = KeyChoice(settings.prompt_key or None, settings.response_key or None)
    source = PairSource(settings.pairs, skip_bad=settings.skip_bad, keys=keys)
    source.note_joined(settings.pair_separator, '--pair_separator')
    return (split_texts(pair.prompt, pair.response, settings.pair_separator) for _, pair in source.units())


def split_texts(prompt, response, separator):
    """Return the texts of a prompt and of a response, '' if it is empty; white space between them is the response's.

    A tokenizer encodes the two as it would the originals, for which `Tokenizer.encode_pair` moves the white space.
    """
    stripped = prompt.rstrip()
    return stripped, response and prompt[len(stripped) :] + join_response(prompt, response, separator)


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


def ids_after_response(tokenizer, separator):
    """Return the token ids after a response: what is between documents, without what the next prompt begins with."""
    between = separator_ids(tokenizer, separator)
    return between[: len(between) - len(tokenizer.front)] or between


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
            noun, counts = 'pairs' if settings.pairs else 'documents', meta[name]
            part = f'{counts["documents"]:,} {noun}, {counts["bytes"]:,} bytes, {counts["tokens"]:,} tokens'
            responses = f', {counts["response_tokens"]:,} of them in responses' if settings.pairs else ''
            print(f'{folder / name}.bin: {part}{responses}')
    duplicates, empty = meta['duplicates_dropped'], meta['empty_skipped']
    if duplicates or empty:
        kinds = ('pairs', 'pairs without a response') if settings.pairs else ('documents', 'rows without text')
        print(f'left out: {duplicates:,} duplicates of earlier {kinds[0]}, {empty:,} {kinds[1]}')
    if meta['train']['documents'] and meta['val']['documents']:
        by_tokenizer = {'gpt2': 'finetune_stories', 'tiny': 'finetune_own_text', 'tiny-stories': 'finetune_own_text'}
        config, model = by_tokenizer.get('' if settings.train_bpe else settings.tokenizer, 'train_tiny'), ''
        if 'config' in meta['tokenizer']:  # of another model than GPT-2, which there is no config file for
            config, model = 'finetune_stories', f' --init_from={settings.tokenizer}'
        print(f'train on it with: python train.py config/{config}.py{model} --dataset={settings.dataset}')


# Encoding and writing -------------------------------------------------------------------------------------------------


def start_encoder(tokenizer, separator, path, n_workers, pairs):
    """Return the context of `open_encoder` for the documents in a temporary file. pairs: whether they are pairs."""
    encode, between = (encode_pairs, ids_after_response) if pairs else (encode_documents, separator_ids)
    job = (between(tokenizer, separator), token_dtype(tokenizer), path)
    return open_encoder(encode, tokenizer, tokenizer_from_contents, job, n_workers)


def write_dataset(folder, meta, corpus, split, between, encode_batches):
    """Encode all documents and write the files of the dataset, all of them or none.

    Adds the counts of each split to `meta`. between: the token ids between documents. encode_batches: see open_encoder.
    """
    names = [name for name in SPLITS if name != 'test' or (split == 2).any()]
    pairs, unusual = corpus.middles is not None, {}
    batches = []  # (split name, positions) of successive documents of one split
    for name in names:
        chosen = np.flatnonzero(split == SPLITS.index(name))
        sizes = (corpus.ends - corpus.starts)[chosen]
        meta[name] = {'documents': len(chosen), 'bytes': int(sizes.sum()), 'tokens': 0}
        if pairs:
            of_responses = (corpus.ends - corpus.middles)[chosen]
            meta[name] |= {'response_bytes': int(of_responses.sum()), 'response_tokens': 0}
        for part in np.split(chosen, np.flatnonzero(np.diff(np.cumsum(sizes) // BATCH)) + 1):
            batches.append((name, corpus.positions(part)))
    total = sum(meta[name]['bytes'] for name in names)
    progress = tqdm(total=total, desc='encoding', unit='B', unit_scale=True, leave=False, disable=None)
    # An older test.bin goes with the other files, since it may contain documents that are now in train.bin.
    with replace_together(folder, FILES) as new:
        endings = {'.bin': 'sha256'} | ({'.mask.bin': 'mask_sha256'} if pairs else {})
        with ExitStack() as opened, progress:
            paths = [new / (name + end) for name in names for end in endings]
            files = {path.name: opened.enter_context(open(path, 'wb')) for path in paths}
            encoded = encode_batches([positions for _, positions in batches])
            for (name, positions), (ids, mask, notes) in zip(batches, encoded, strict=True):
                if pairs:
                    files[f'{name}.mask.bin'].write(mask)
                    meta[name]['response_tokens'] += int(mask.sum())
                    unusual = merge_notes(unusual, notes)
                elif len(ids) and not meta[name]['tokens']:
                    ids = np.concatenate([np.array(between, ids.dtype), ids])
                files[f'{name}.bin'].write(ids)
                meta[name]['tokens'] += len(ids)
                progress.update(int((positions[-1] - positions[0]).sum()))
        for name in names:
            meta[name] |= {key: file_sha256(new / (name + end)) for end, key in endings.items()}
        (new / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n', encoding='utf-8')
    for count, text in unusual.values():
        note(f'{f"{count:,} pairs, the first of them" if count > 1 else "a pair"}: {text}')


if __name__ == '__main__':
    configurator.run(main, Settings)
