"""The experiment, from texts to pages: the search, both shipped models, what fine-tuning did, the report's figures.

    python -m lab.experiment --part=search --corpora=texts        short runs, from which the settings were chosen
    python -m lab.experiment --part=tiny --corpora=texts          models/tiny, as it is shipped
    python -m lab.experiment --part=tiny-stories --corpora=texts  models/tiny-stories, from models/tiny
    python -m lab.experiment --part=fine_tuning --corpora=texts   results/fine_tuning: what changed, how surely
    python -m lab.experiment --part=report --corpora=texts        figures and numbers of results/REPORT.md

--corpora is a folder with the four texts that models/tiny-stories/README.md names. All of it takes hours. Each step is
a command that a person could type, and is printed as it runs. Training that was interrupted goes on where it was, and
training that is done is not done again: delete its folder in out-experiment for that.
"""

import json
import math
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

import configurator
from common.errors import UserError
from common.files import PROJECT, atomic_write, file_sha256
from lab import experiment_pages, report_numbers, sourced_numbers
from lab.result_pictures import draw_keywords, draw_learning_curve, draw_length, draw_sweep, draw_training
from lm import checkpoint
from texts.documents import read_text, split_documents
from texts.token_files import read_meta

OUT = Path('out-experiment')
RESULTS = Path('results')
NOVELS, STORIES, HELDOUT = ('novels.txt',), ('childrens_stories.txt', 'fairytales.txt'), 'fairytales_heldout.txt'
TEXTS_USED = (*NOVELS, *STORIES, HELDOUT)
SESSION = re.compile(r'^```text\n\$ python (?P<command>[^\n]+)\n.*?^```$', re.DOTALL | re.MULTILINE)  # in a page
VAL_FRACTION = 0.04  # of the texts, in whole documents: what all choices are made on


@dataclass
class Settings:
    """Make the shipped models, and everything in results/ that tells about them."""

    part: str = 'all'  # search, tiny, tiny-stories, fine_tuning, report; several with commas
    corpora: str = 'texts'  # folder with novels.txt, childrens_stories.txt, fairytales.txt, fairytales_heldout.txt


def main(settings):
    """Do the parts one after the other."""
    parts = list(PARTS) if settings.part == 'all' else settings.part.split(',')
    for part in parts:
        if part not in PARTS:
            raise UserError(f'--part={part} is not one of {", ".join(PARTS)}, all')
    if Path.cwd() != PROJECT:
        raise UserError(f'it writes models/ and results/ of the project: run it in the folder {PROJECT}')
    corpora = Path(settings.corpora)
    for name in TEXTS_USED:
        if not (corpora / name).is_file():
            raise UserError(
                f'there is no {corpora / name}; models/tiny-stories/README.md says where the texts are from'
            )
    for part in parts:
        PARTS[part](corpora)


# Commands -----------------------------------------------------------------------------------------------------------


def run(script, *arguments, quiet=False, cwd=None):
    """Run one of the project's scripts as a person would; if `quiet`, return what it printed instead of showing it."""
    command = shlex.join(['python', script, *arguments])
    print(f'$ {command}', flush=True)
    program = [sys.executable, str(PROJECT / script), *arguments]
    process = subprocess.run(program, stdout=subprocess.PIPE if quiet else None, encoding='utf-8', cwd=cwd)
    if process.returncode:
        raise UserError(f'`{command}` ended with exit code {process.returncode}')
    return process.stdout


def prepare(corpora, names, dataset, *arguments):
    """Turn texts into a dataset, unless it is there."""
    if not (Path('data') / dataset / 'meta.json').exists():
        paths = ','.join(str(corpora / name) for name in names)
        run('prepare_bin.py', f'--input={paths}', f'--dataset={dataset}', f'--val_fraction={VAL_FRACTION}', *arguments)


def prepare_all(corpora, vocab_size=None):
    """Make the datasets: a tokenizer of all training parts, and with it the novels and the stories.

    They are called all, novels and tales; for another vocabulary than the shipped models have, novels-4096 and so on.
    """
    suffix = '' if vocab_size is None else f'-{vocab_size}'
    prepare(corpora, NOVELS + STORIES, f'all{suffix}', f'--train_bpe={vocab_size or VOCAB_SIZE}')
    prepare(corpora, NOVELS, f'novels{suffix}', f'--tokenizer=data/all{suffix}')
    prepare(corpora, STORIES, f'tales{suffix}', f'--tokenizer=data/all{suffix}')


def train(name, config, **settings):
    """Train into out-experiment/`name`, or go on with what is there; return what the run came to, a dict."""
    folder = OUT / name
    arguments = [config, f'--out_dir={folder}', *(f'--{key}={value}' for key, value in settings.items())]
    resume = ['--init_from=resume'] if (folder / 'last.pt').exists() else []
    run('train.py', *arguments, *resume)
    return {'command': shlex.join(['python', 'train.py', *arguments]), **outcome(folder)}


def outcome(folder):
    """Return what a finished run in a folder came to: losses in bits per byte, the curve, size, speed."""
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    kept = torch.load(folder / 'last.pt', map_location='cpu', weights_only=True)
    meta = read_meta(kept['config']['dataset'])
    bits = {split: meta[split]['tokens'] / meta[split]['bytes'] / math.log(2) for split in ('train', 'val')}
    curve = [
        {'iter': row['iter'], **{split: row[f'{split}_loss'] * bits[split] for split in bits}}
        for row in rows
        if 'val_loss' in row
    ]
    speeds = [row['tokens_per_second'] for row in rows if 'tokens_per_second' in row]
    config = kept['config']
    tokens = config['batch_size'] * config['gradient_accumulation_steps'] * kept['model_args']['block_size']
    return {
        'learning_rate': config['learning_rate'],
        'iterations': kept['iter_num'],
        'tokens_per_iteration': tokens,
        'epochs': kept['iter_num'] * tokens / meta['train']['tokens'],
        'iterations_an_epoch': meta['train']['tokens'] / tokens,
        'parameters': sum(tensor.numel() for name, tensor in kept['model'].items() if name != 'lm_head.weight'),
        'minutes': kept['iter_num'] * tokens / statistics.median(speeds) / 60,
        'train': curve[-1]['train'],
        'val': curve[-1]['val'],
        'curve': curve,
        'pairs': [
            {'iter': row['iter'], 'logprob': row['pairs_logprob_per_response']}
            for row in rows
            if 'pairs_logprob_per_response' in row
        ],
    }


# The search and the shipped models ----------------------------------------------------------------------------------

TINY, TINY_STORIES = 'config/train_tiny.py', 'config/finetune_tiny_stories.py'
VOCAB_SIZE = 8192

# Short runs: what they have in common, and what each does differently, its size kept below six million parameters.
ONE_EPOCH = {
    'dataset': 'novels-4096',
    'n_layer': 6,
    'n_embd': 256,
    'block_size': 256,
    'batch_size': 16,
    'dropout': 0.0,
    'learning_rate': 1.5e-3,
    'min_lr': 0,
    'warmup_iters': 50,
    'epochs': 1,
    'eval_interval': 100,
}
SEARCH = {
    'base': {},
    'vocab2048': {'dataset': 'novels-2048', 'n_embd': 272},
    'vocab8192': {'dataset': 'novels-8192', 'n_layer': 5, 'n_embd': 240},
    'wide': {'n_layer': 4, 'n_embd': 304},
    'small': {'n_layer': 4, 'n_embd': 192},
    'lr3': {'learning_rate': 3e-3},
    'ctx512': {'block_size': 512, 'batch_size': 8},
    'batch8': {'batch_size': 8},
}
# Runs as long as the shipped ones, which differ in one thing.
ALTERNATIVES = {'tiny': {'dropout-0.1': {'dropout': 0.1}}, 'tiny-stories': {}}


def search(corpora):
    """Train the short runs that settings were chosen by; write results/models/search.json."""
    runs = {}
    for name, varied in SEARCH.items():
        settings = {**ONE_EPOCH, **varied}
        prepare_all(corpora, int(settings['dataset'].removeprefix('novels-')))
        runs[name] = {'varied': varied, **train(f'search-{name}', TINY, **settings)}
    write_json('models/search.json', runs)
    tell_of_models()


def make_tiny(corpora):
    """Train models/tiny on novels."""
    ship(corpora, 'tiny', TINY)


def make_tiny_stories(corpora):
    """Fine-tune models/tiny on stories: models/tiny-stories."""
    ship(corpora, 'tiny-stories', TINY_STORIES)


def ship(corpora, name, config):
    """Train a model and what it is compared with; write its folder in models/, and results/models/`name`.json."""
    prepare_all(corpora)
    of = train(name, config)
    alternatives = {
        label: {'varied': varied, **train(f'{name}-{label}', config, **varied)}
        for label, varied in ALTERNATIVES[name].items()
    }
    model, tokenizer, _ = checkpoint.load_model('resume', OUT / name, device='cpu')  # best on the validation part
    folder = Path('models') / name
    checkpoint.save_pretrained(model, folder, tokenizer, torch.float16)
    draw_training(folder / 'training.png', name, of['curve'], of['iterations_an_epoch'])
    best = min(of['curve'], key=lambda row: row['val'])
    size = sum(file.stat().st_size for file in folder.iterdir())
    numbers = {**of, 'best': best, 'folder_bytes': size, 'data': data_of(corpora), 'alternatives': alternatives}
    write_json(f'models/{name}.json', numbers)
    tell_of_models()


def tell_of_models():
    """Write the page of how the shipped models were chosen and trained, as far as they are."""
    configs = {'tiny': TINY, 'tiny-stories': TINY_STORIES}
    shipped = {
        name: (config, read_json(f'models/{name}.json'))
        for name, config in configs.items()
        if (RESULTS / f'models/{name}.json').exists()
    }
    write_text('models/README.md', experiment_pages.models_page(ONE_EPOCH, read_json('models/search.json'), shipped))


def data_of(corpora):
    """Return size and SHA-256 of each text, and of the token files that are made of them."""
    texts = {
        name: {'bytes': (corpora / name).stat().st_size, 'sha256': file_sha256(corpora / name)} for name in TEXTS_USED
    }
    tokens = {
        dataset: {split: read_meta(dataset)[split] for split in ('train', 'val')} for dataset in ('novels', 'tales')
    }
    return {'texts': texts, 'tokens': tokens}


def read_json(name):
    """Return the numbers of a file in results/."""
    return json.loads((RESULTS / name).read_text(encoding='utf-8'))


def write_json(name, values):
    """Write a file of numbers into results/."""
    with atomic_write(RESULTS / name) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def write_text(name, text):
    """Write a page into results/."""
    with atomic_write(RESULTS / name) as temporary:
        temporary.write_text(text.rstrip() + '\n', encoding='utf-8')


# What fine-tuning did -----------------------------------------------------------------------------------------------

BEFORE_AND_AFTER = ('--init_from=tiny-stories', '--compare_to=tiny')
PROMPTS = ('Once upon a time', 'The old woman opened the door and', 'The meeting began at nine, and')
SEEDS = (1, 2)
RATES = (3e-4, 1e-3, 3e-3)  # for one epoch each
EPOCHS = (0.5, 1.0, 2.0)  # at the learning rate of the shipped model


def fine_tuning(corpora):
    """Ask both models about pairs and texts, let both write, train shorter and harder: results/fine_tuning."""
    prepare_all(corpora)
    folder = RESULTS / 'fine_tuning/pairs'
    shutil.rmtree(folder, ignore_errors=True)  # eval.py replaces no other models' results
    run('eval.py', *BEFORE_AND_AFTER, f'--save={folder}')
    texts = {name: measured(corpora / HELDOUT if name == 'heldout' else name) for name in experiment_pages.TEXTS}
    write_json('fine_tuning/texts.json', texts)
    samples = {name: drawn(name) for name in ('tiny', 'tiny-stories')}
    write_json('fine_tuning/samples.json', samples)
    final = {**outcome(OUT / 'tiny-stories'), 'texts': bits_per_byte('tiny-stories')}
    by_rate = fine_tuned((rate, 1.0) for rate in RATES)
    by_length = fine_tuned((final['learning_rate'], epochs) for epochs in EPOCHS)
    sweep = {**by_rate, **by_length, 'as shipped': final}
    write_json('fine_tuning/sweep.json', sweep)
    draw_sweep(RESULTS / 'fine_tuning/sweep.png', by_rate.values(), [*by_length.values(), final])
    draw_learning_curve(RESULTS / 'fine_tuning/learning_curve.png', final)
    kinds, pairs = by_kind(), read_json('fine_tuning/pairs/summary.json')
    write_json('fine_tuning/kinds.json', kinds)
    write_text('fine_tuning/README.md', experiment_pages.fine_tuning_page(pairs, kinds, texts, samples, sweep))


def fine_tuned(ways):
    """Fine-tune tiny in other ways than shipped, (learning rate, epochs) each; return what they came to."""
    runs = {}
    for rate, epochs in ways:
        name = f'rate-{rate:g}-epochs-{epochs:g}'
        run_of_it = train(name, TINY_STORIES, learning_rate=rate, epochs=epochs)
        runs[name] = {**run_of_it, 'texts': bits_per_byte(name)}
    return runs


def bits_per_byte(name):
    """Return bits per byte on stories and on novels, with intervals, of what was trained into out-experiment/`name`."""
    return {text: measured(text, OUT / name)['model']['bits_per_byte'] for text in ('tales', 'novels')}


def drawn(name):
    """Return what a model writes: prompt -> texts, one for each seed, each with how likely it was."""
    texts = {}
    for prompt in PROMPTS:
        for seed in SEEDS:
            printed = run('sample.py', f'--init_from={name}', f'--start={prompt}', f'--seed={seed}', quiet=True)
            text, _, likelihoods = printed.partition('---------------')
            texts.setdefault(prompt, []).append(
                {'seed': seed, 'text': text.strip(), 'likelihoods': likelihoods.strip()}
            )
    return texts


def by_kind():
    """Return how the pairs of each kind changed: openings, speech, endings ..., and plain prose, no story at all."""
    lines = (RESULTS / 'fine_tuning/pairs/pairs.jsonl').read_text(encoding='utf-8').splitlines()
    ratios = defaultdict(list)
    for row in map(json.loads, lines):
        ratios[row['id'].rpartition('-')[0]].append(row['log_ratio'])
    return {
        kind: {'pairs': len(of), 'rose': sum(ratio > 0 for ratio in of), 'mean_log_ratio': statistics.fmean(of)}
        for kind, of in ratios.items()
    }


def measured(text, out_dir=None):
    """Score a running text with both shipped models, or with the one trained in out_dir.

    Returns its tokens and bytes, and for `model` (and `compare_to`) bits per byte and perplexity with their intervals.

    The rows that eval.py keeps hold the text itself, which is not ours to pass on: only sums leave the folder.
    """
    folder = OUT / f'text-{Path(text).stem}'
    shutil.rmtree(folder, ignore_errors=True)
    which = BEFORE_AND_AFTER if out_dir is None else (f'--out_dir={out_dir}',)
    run('eval.py', *which, f'--text={text}', f'--save={folder}', quiet=True)
    summary = json.loads((folder / 'summary.json').read_text(encoding='utf-8'))
    return {
        'tokens': summary['tokens'],
        'bytes': summary['bytes'],
        **{
            side: {name: summary['measures'][side][name] for name in ('bits_per_byte', 'perplexity')}
            for side in summary['measures']
        },
    }


# The report ---------------------------------------------------------------------------------------------------------

UNCUT = ('--top_k=None', '--top_p=None')
DRAWS, CACHED = 1000, 200  # texts drawn beside the searches; tokens with the cache and without


def report(corpora):
    """Work out the numbers and draw the pictures of results/REPORT.md, and put its numbers right."""
    model, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    voice = report_numbers.Voice(model, tokenizer)
    path = PROJECT / 'data/childrens_stories/childrens_stories.txt'
    stories = list(split_documents(read_text(path), '\n\n\n'))
    points = report_numbers.lengths(voice, stories)
    numbers = {
        'temperature': report_numbers.temperatures(voice, 'The old king had a', (0.2, 0.7, 1.0, 1.5)),
        'i_live_in': report_numbers.nearly_greedy(voice, 'I live in', 5, temperature=0.0001),
        'underflow': report_numbers.underflow(voice, 'Once upon a time', seed=1),
        'length': {'stories': len(stories), 'points': len(points), **report_numbers.line_through(points)},
        'search': report_numbers.searched(voice, 'The giant', 6, DRAWS, seed=1),
        'attention': report_numbers.attention(voice, 'The king had a'),
        'cache': report_numbers.with_and_without_cache(voice, 'Once upon a time', CACHED),
        'language': report_numbers.languages(
            {Path(name).stem: (corpora / name).read_text(encoding='utf-8') for name in NOVELS + STORIES}
        ),
    }
    write_json('report/report.json', numbers)
    picture = RESULTS / 'report/temperature.png'
    run('visualize.py', 'temperature', '--start=The old king had a', *UNCUT, f'--save={picture}', quiet=True)
    draw_length(RESULTS / 'report/length.png', points)
    draw_keywords(RESULTS / 'report/keywords.png', numbers['language']['keywords'])
    for page in (RESULTS / 'REPORT.md', *Path('models').glob('*/README.md'), Path('README.md')):
        page.write_text(SESSION.sub(run_again, sourced_numbers.refresh_numbers(page)), encoding='utf-8')


def run_again(session):
    """Return a session of a page, a command and what it printed, as it goes now."""
    with tempfile.TemporaryDirectory() as folder:  # what the command writes is not wanted
        printed = run(*shlex.split(session['command']), quiet=True, cwd=folder)
    return f'```text\n$ python {session["command"]}\n{printed.strip()}\n```'


PARTS = {
    'search': search,
    'tiny': make_tiny,
    'tiny-stories': make_tiny_stories,
    'fine_tuning': fine_tuning,
    'report': report,
}

if __name__ == '__main__':
    configurator.run(main, Settings)
