"""The experiment, from texts to pages: the search, both shipped models, the effect of fine-tuning, the report.

    python -m lab.experiment --part=search --corpora=data/corpora        short runs, by which the settings were chosen
    python -m lab.experiment --part=tiny --corpora=data/corpora          models/tiny, as it is shipped
    python -m lab.experiment --part=tiny-stories --corpora=data/corpora  models/tiny-stories, from models/tiny
    python -m lab.experiment --part=fine_tuning --corpora=data/corpora   results/fine_tuning: what changed, how surely
    python -m lab.experiment --part=report --corpora=data/corpora        figures and numbers of results/REPORT.md
    python -m lab.experiment --part=pages                                the pages again, from the numbers in results/

--corpora is a folder with the texts that `python -m lab.corpora` lists. All parts together take hours. Each
step is a command that a person could type, and is printed as it runs. Every part ends by putting the pages right.
Interrupted training is resumed, finished training is not repeated: to repeat it, delete its folder in out-experiment.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

import configurator
from common.errors import UserError
from common.files import PROJECT, file_sha256
from lab import experiment_pages, measure_report
from lab.experiment_runs import (
    HELDOUT,
    OUT,
    PROSE,
    RESULTS,
    STORIES,
    prepare_datasets,
    read_outcome,
    read_result,
    run_script,
    run_training,
    write_results,
)
from lab.measure_models import SWEPT, make_figures, measure_pairs, measure_texts, vary_fine_tuning
from lab.result_pictures import draw_keywords, draw_learning_curve, draw_sweep, draw_training
from lm import checkpoint
from texts.token_files import read_meta

TEXTS_USED = (*PROSE, *STORIES, *HELDOUT.values())


@dataclass
class Settings:
    """Make the shipped models and the results about them."""

    part: str = 'all'  # search, tiny, tiny-stories, fine_tuning, report, pages; several with commas
    corpora: str = 'data/corpora'  # folder with the texts that `python -m lab.corpora` lists


def main(settings):
    """Run the parts one after the other, then put the pages right."""
    parts = list(PARTS) if settings.part == 'all' else settings.part.split(',')
    for part in parts:
        if part not in (*PARTS, 'pages'):
            raise UserError(f'--part={part} is not one of {", ".join(PARTS)}, pages, all')
    if Path.cwd() != PROJECT:
        raise UserError(f"the experiment writes the project's models/ and results/: run it in the folder {PROJECT}")
    corpora = Path(settings.corpora)
    for name in TEXTS_USED if parts != ['pages'] else ():
        if not (corpora / name).is_file():
            raise UserError(f'there is no {corpora / name}; python -m lab.corpora says where the texts come from')
    for part in parts:
        if part != 'pages':
            PARTS[part](corpora)
    refresh_pages()


# The search and the shipped models ----------------------------------------------------------------------------------

CONFIGS = {'tiny': 'config/train_tiny.py', 'tiny-stories': 'config/finetune_tiny_stories.py'}
VOCAB_SIZE = 8192

# Short runs on the stories: the settings they share beside those of tiny, and what each changes.
SHORT_RUN = {
    'dataset': 'stories',
    'epochs': None,
    'max_iters': 260,
    'warmup_iters': 25,
    'eval_interval': 130,
    'eval_iters': 20,
    'seed': 1,
}
SEARCH = {
    'base': {},
    'adamw': {'optimizer': 'adamw'},
}


def search_settings(corpora):
    """Train the short runs by which the settings were chosen; write results/models/search.json."""
    runs = {}
    prepare_datasets(corpora, VOCAB_SIZE)
    for name, varied in SEARCH.items():
        run = run_training(f'search-{name}', CONFIGS['tiny'], **(SHORT_RUN | varied))
        runs[name] = {'varied': varied, **run}
    write_results('models/search.json', runs)


def make_tiny(corpora):
    """Train models/tiny on prose."""
    make_model(corpora, 'tiny')


def make_tiny_stories(corpora):
    """Fine-tune models/tiny on stories: models/tiny-stories."""
    make_model(corpora, 'tiny-stories')


def make_model(corpora, name):
    """Train a shipped model; write its folder in models/ and results/models/`name`.json."""
    prepare_datasets(corpora, VOCAB_SIZE)
    run = run_training(name, CONFIGS[name])
    model, tokenizer, _ = checkpoint.load_model('resume', OUT / name, device='cpu')  # best on the validation part
    folder = Path('models') / name
    checkpoint.save_pretrained(model, folder, tokenizer, torch.float16)
    draw_training(folder / 'training.png', name, run['curve'], run['iterations_an_epoch'])
    best = min(run['curve'], key=lambda row: row['val'])
    size = sum(file.stat().st_size for file in folder.iterdir())
    data = describe_data(corpora)
    write_results(f'models/{name}.json', {**run, 'best': best, 'folder_bytes': size, 'data': data})


def describe_data(corpora):
    """Return size and SHA-256 of each text, and of the token files made from them."""
    texts = {
        name: {'bytes': (corpora / name).stat().st_size, 'sha256': file_sha256(corpora / name)} for name in TEXTS_USED
    }
    tokens = {
        dataset: {split: read_meta(dataset)[split] for split in ('train', 'val')} for dataset in ('prose', 'stories')
    }
    return {'texts': texts, 'tokens': tokens}


# The effect of fine-tuning ------------------------------------------------------------------------------------------

SHIPPED = ('--init_from=tiny-stories', '--compare_to=tiny')  # after and before
PROMPTS = ('Once upon a time', 'The old woman opened the door and', 'The meeting began at nine, and')
SEEDS = (1, 2)
RATES, SHORT = (1e-3, 2e-3, 4e-3), 0.1  # each for this part of an epoch
EPOCHS = (0.1, 0.2)  # at the learning rate of the shipped model


def measure_fine_tuning(corpora):
    """Score pairs and texts with both models, sample from both, vary the fine-tuning: results/fine_tuning."""
    prepare_datasets(corpora, VOCAB_SIZE)
    measure_pairs(SHIPPED, RESULTS)
    texts = {name: corpora / HELDOUT[name] if name in HELDOUT else name for name in experiment_pages.TEXTS}
    texts = measure_texts(SHIPPED, RESULTS, texts)
    write_results('fine_tuning/samples.json', {name: sample_texts(name) for name in CONFIGS})
    shipped = {**read_outcome(OUT / 'tiny-stories'), 'texts': {name: texts[name]['model'] for name in SWEPT}}
    swept = {name: corpora / HELDOUT[name] for name in SWEPT}
    config = CONFIGS['tiny-stories']
    by_rate = vary_fine_tuning(config, swept, [{'learning_rate': rate, 'epochs': SHORT} for rate in RATES])
    rate = shipped['learning_rate']
    by_length = vary_fine_tuning(config, swept, [{'learning_rate': rate, 'epochs': epochs} for epochs in EPOCHS])
    write_results('fine_tuning/sweep.json', {**by_rate, **by_length, 'as-shipped': shipped})
    draw_sweep(RESULTS / 'fine_tuning/sweep.png', by_rate.values(), [*by_length.values(), shipped])
    draw_learning_curve(RESULTS / 'fine_tuning/learning_curve.png', shipped)


def sample_texts(name):
    """Return what a model writes: {prompt: one text per seed}, each with its likelihoods."""
    texts = defaultdict(list)
    for prompt in PROMPTS:
        for seed in SEEDS:
            printed = run_script('sample.py', f'--init_from={name}', f'--start={prompt}', f'--seed={seed}', quiet=True)
            text, _, likelihoods = printed.partition('---------------')
            texts[prompt].append({'seed': seed, 'text': text.strip(), 'likelihoods': likelihoods.strip()})
    return texts


# The report and the pages -------------------------------------------------------------------------------------------

DRAWS, CACHED = 1000, 200  # texts drawn for comparison with the searches; tokens generated with and without the cache


def make_report(corpora):
    """Compute the numbers of results/REPORT.md, draw its figures and run the commands it quotes."""
    numbers = make_figures('tiny-stories', RESULTS, corpora / HELDOUT['heldout'], DRAWS, CACHED)
    texts = [
        {Path(name).stem: (corpora / name).read_text(encoding='utf-8') for name in names} for names in (PROSE, STORIES)
    ]
    language = measure_report.compare_texts(*texts)
    write_results('report/report.json', {**numbers, 'language': language})
    draw_keywords(RESULTS / 'report/keywords.png', language['keywords'])
    for page in experiment_pages.pages_with_numbers():
        experiment_pages.rerun_sessions(page)


def refresh_pages():
    """Put the tables and numbers of all pages right, from the JSON files in results/. Prose stays as it is."""
    shipped = {name: read_result(f'models/{name}.json') for name in CONFIGS}
    blocks = experiment_pages.models_blocks(SHORT_RUN, read_result('models/search.json'), shipped)
    experiment_pages.fill_blocks(RESULTS / 'models/README.md', blocks)
    names = ('pairs/summary', 'kinds', 'texts', 'samples', 'sweep')
    blocks = experiment_pages.fine_tuning_blocks(*(read_result(f'fine_tuning/{name}.json') for name in names))
    experiment_pages.fill_blocks(RESULTS / 'fine_tuning/README.md', blocks)
    experiment_pages.fill_blocks(RESULTS / 'REPORT.md', experiment_pages.report_blocks(RESULTS))
    for page in experiment_pages.pages_with_numbers():
        experiment_pages.refresh_numbers(page)


PARTS = {
    'search': search_settings,
    'tiny': make_tiny,
    'tiny-stories': make_tiny_stories,
    'fine_tuning': measure_fine_tuning,
    'report': make_report,
}

if __name__ == '__main__':
    configurator.run(main, Settings)
