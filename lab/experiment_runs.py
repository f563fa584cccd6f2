"""The steps of the experiment: commands that a person could type, the training runs among them, and their results."""

import json
import math
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from common.errors import UserError
from common.files import PROJECT, atomic_write, is_there
from common.json_files import read_json
from texts.token_files import read_meta

OUT = Path('out-experiment')  # checkpoints and scored texts, which are not kept
RESULTS = Path('results')  # what is kept
KINDS = {'plain': 'plain prose (control)'}  # how kinds of pairs are called, if not as in their ids
PROSE = ('novels.txt', 'victorian_children.txt')
STORIES = ('childrens_stories.txt', 'fairytales.txt', 'simple_stories.txt', 'tinystories.txt')
HELDOUT = {'heldout': 'fairytales_heldout.txt', 'simple': 'tinystories_heldout.txt'}
VAL_FRACTION = 0.04  # of each text, in whole documents, for validation: all choices are made on it


# Commands -----------------------------------------------------------------------------------------------------------


def run_script(script, *arguments, quiet=False, cwd=None):
    """Run one of the project's scripts and print the command; if `quiet`, return its output instead of showing it."""
    command = shlex.join(['python', script, *arguments])
    print(f'$ {command}', flush=True)
    program = [sys.executable, str(PROJECT / script), *arguments]
    process = subprocess.run(program, stdout=subprocess.PIPE if quiet else None, encoding='utf-8', cwd=cwd)
    if process.returncode:
        raise UserError(f'`{command}` failed with exit code {process.returncode}')
    return process.stdout


def run_code(code):
    """Run a few lines of Python that use the project's modules; return their output."""
    process = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, encoding='utf-8', cwd=PROJECT)
    if process.returncode:
        raise UserError(f'the code on a page failed with exit code {process.returncode}: {code}')
    return process.stdout


def prepare_datasets(corpora, vocab_size, suffix=''):
    """Make the datasets all, prose and stories, each name with the suffix, unless they exist.

    Their tokenizer is trained on the training parts of all texts.
    """
    prepare_dataset(corpora, PROSE + STORIES, f'all{suffix}', f'--train_bpe={vocab_size}')
    prepare_dataset(corpora, PROSE, f'prose{suffix}', f'--tokenizer=data/all{suffix}')
    prepare_dataset(corpora, STORIES, f'stories{suffix}', f'--tokenizer=data/all{suffix}')


def prepare_dataset(corpora, names, dataset, *arguments, val_fraction=VAL_FRACTION):
    """Turn texts into a dataset, unless it exists."""
    if not (Path('data') / dataset / 'meta.json').exists():
        paths = ','.join(str(corpora / name) for name in names)
        validation = f'--val_fraction={val_fraction}'
        run_script('prepare_bin.py', f'--input={paths}', f'--dataset={dataset}', validation, *arguments)


def run_training(name, config, **settings):
    """Train into out-experiment/`name`, or resume the run that is there; return its outcome and its command."""
    folder = OUT / name
    arguments = [config, f'--out_dir={folder}', *(f'--{key}={value}' for key, value in settings.items())]
    resume = ['--init_from=resume'] if (folder / 'last.pt').exists() else []
    run_script('train.py', *arguments, *resume)
    return {'command': shlex.join(['python', 'train.py', *arguments]), **read_outcome(folder)}


# Results ------------------------------------------------------------------------------------------------------------


def read_outcome(folder):
    """Return the outcome of a finished run: losses in bits per byte, the learning curve, size, length and time."""
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    checkpoint = torch.load(folder / 'last.pt', map_location='cpu', weights_only=True)
    config, iterations = checkpoint['config'], checkpoint['iter_num']
    meta = read_meta(config['dataset'])
    bits = {split: meta[split]['tokens'] / meta[split]['bytes'] / math.log(2) for split in ('train', 'val')}
    curve = [
        {'iter': row['iter'], **{split: row[f'{split}_loss'] * bits[split] for split in bits}}
        for row in rows
        if 'val_loss' in row
    ]
    speeds = [row['tokens_per_second'] for row in rows if 'tokens_per_second' in row]
    block_size = checkpoint['model_args']['block_size']
    tokens = config['batch_size'] * config['gradient_accumulation_steps'] * block_size  # per iteration
    return {
        'learning_rate': config['learning_rate'],
        'iterations': iterations,
        'tokens_per_iteration': tokens,
        'epochs': iterations * tokens / meta['train']['tokens'],
        'iterations_an_epoch': meta['train']['tokens'] / tokens,
        'parameters': sum(tensor.numel() for name, tensor in checkpoint['model'].items() if name != 'lm_head.weight'),
        'minutes': iterations * tokens / statistics.median(speeds) / 60,
        'train': curve[-1]['train'],
        'val': curve[-1]['val'],
        'curve': curve,
        'pairs': [
            {'iter': row['iter'], 'logprob': row['pairs_logprob_per_response']}
            for row in rows
            if 'pairs_logprob_per_response' in row
        ],
    }


def read_result(name, results=RESULTS):
    """Return the numbers in a file of the folder `results`."""
    if not is_there(results / name):
        raise UserError(f'there is no {results / name}; run the part of the experiment that makes it')
    return read_json(results / name)


def read_scored_pairs(results=RESULTS):
    """Return the rows of the evaluation of pairs in the folder `results`."""
    lines = (results / 'fine_tuning/pairs/pairs.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line) for line in lines]


def write_results(name, values, results=RESULTS):
    """Write numbers into a file of the folder `results`."""
    with atomic_write(results / name) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
