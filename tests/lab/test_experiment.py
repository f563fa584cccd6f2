"""The whole experiment on texts of a few pages: every step runs, and every page that it makes is right."""

import json
import shutil
import subprocess
import sys

import pytest
from helpers.scripts import PROJECT, assert_friendly_error, run_script

from lab.sourced_numbers import find_disagreements

SMALL = """
import experiment

experiment.VOCAB_SIZE = 300
experiment.ONE_EPOCH |= {'dataset': 'novels-280', 'n_layer': 1, 'n_embd': 16, 'block_size': 32, 'eval_interval': 50}
experiment.SEARCH = {'base': {}, 'small': {'n_embd': 8}}
experiment.RATES, experiment.EPOCHS, experiment.SEEDS = (1e-3,), (0.5,), (1,)
experiment.PROMPTS = experiment.PROMPTS[:1]
experiment.DRAWS, experiment.CACHED = 20, 20
experiment.main(experiment.Settings('all', 'texts'))
"""
CONFIG = """
dataset = '{dataset}'
init_from = '{init_from}'
out_dir = 'out'
n_layer = 1
n_head = 2
n_embd = 16
block_size = 32
batch_size = 4
gradient_accumulation_steps = 1
dropout = 0.1
bias = True
learning_rate = 1e-2
min_lr = 0.0
warmup_iters = 2
epochs = 0.5
eval_interval = 10
eval_iters = 2
log_interval = 1
eval_file = {eval_file}
always_save_checkpoint = False
"""
PAGE = """# Report

The product is 0 after 1 tokens; `tiny` has 2.1 M parameters, and 3.14 bits per byte on new tales.
<!-- report/report.json: 1 = underflow/float32/tokens -->
<!-- models/tiny.json: 2.1 M = parameters -->
<!-- fine_tuning/texts.json: 3.14 = heldout/compare_to/bits_per_byte/value -->

```text
$ python sample.py --max_new_tokens=2
what it printed once
```
"""


def tales(who, count):
    """Return a text of so many short documents."""
    names = ['Ann', 'Ben', 'Cleo', 'Dan', 'Eve', 'Fox']
    return '\n\n\n'.join(
        f'Once upon a time {names[number % 6]} met {who} number {number}.\n"Good day, {names[number % 5]}," said {who}.'
        f' They went to the {"river" if number % 2 else "garden"} and found {number} apples there.'
        for number in range(count)
    )


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """Return a copy of the project in which the experiment has been run, made small, and its process."""
    folder = tmp_path_factory.mktemp('experiment')
    for file in [*PROJECT.glob('*.py'), PROJECT / 'page.html', PROJECT / 'eval_data.json']:
        shutil.copy(file, folder)
    shutil.copytree(PROJECT / 'data/childrens_stories', folder / 'data/childrens_stories')
    for name in ('config', 'texts', 'results', 'models'):
        (folder / name).mkdir()
    for name, dataset, init_from, pairs in (
        ('train_tiny', 'novels', 'scratch', None),
        ('finetune_tiny_stories', 'tales', 'tiny', 'eval_data.json'),
    ):
        config = CONFIG.format(dataset=dataset, init_from=init_from, eval_file=repr(pairs))
        (folder / f'config/{name}.py').write_text(config)
    for name, who in (('novels', 'a bishop'), ('childrens_stories', 'a bear'), ('fairytales', 'a king')):
        (folder / f'texts/{name}.txt').write_text(tales(who, 60))
    (folder / 'texts/fairytales_heldout.txt').write_text(tales('a witch', 20))
    (folder / 'results/REPORT.md').write_text(PAGE)
    (folder / 'README.md').write_text('# Front door\n')
    process = subprocess.run([sys.executable, '-c', SMALL], cwd=folder, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder, process


def test_models_are_shipped_with_their_numbers(done):
    folder, _ = done
    for name in ('tiny', 'tiny-stories'):
        assert {file.name for file in (folder / 'models' / name).iterdir()} == {
            *('config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'training.png')
        }
        of = json.loads((folder / f'results/models/{name}.json').read_text())
        assert of['epochs'] == pytest.approx(0.5, abs=0.1)
        assert of['best']['val'] == min(row['val'] for row in of['curve'])
        assert of['data']['texts']['novels.txt']['bytes'] == (folder / 'texts/novels.txt').stat().st_size
        assert all(run['varied'] for run in of['alternatives'].values())
    page = (folder / 'results/models/README.md').read_text()
    assert page.count('| (the settings as they are) |') == 3
    assert '| `n_embd=8` |' in page


def test_what_fine_tuning_did_is_measured_and_told(done):
    folder, _ = done
    texts = json.loads((folder / 'results/fine_tuning/texts.json').read_text())
    summary = json.loads((folder / 'results/fine_tuning/pairs/summary.json').read_text())
    sweep = json.loads((folder / 'results/fine_tuning/sweep.json').read_text())
    page = (folder / 'results/fine_tuning/README.md').read_text()
    assert texts['heldout']['bytes'] == (folder / 'texts/fairytales_heldout.txt').stat().st_size
    assert f'{texts["heldout"]["model"]["bits_per_byte"]["value"]:.3f} [' in page
    assert f'{summary["comparison"]["rose"]} likelier' in page
    assert set(sweep) == {'rate-0.001-epochs-1', 'rate-0.01-epochs-0.5', 'as shipped'}
    assert all(set(run['texts']) == {'tales', 'novels'} and run['pairs'] for run in sweep.values())
    for name in ('sweep.png', 'learning_curve.png', 'pairs/before_after.png'):
        assert (folder / 'results/fine_tuning' / name).stat().st_size > 5000
    kept = '\n'.join(file.read_text() for file in (folder / 'results').rglob('*') if file.suffix in ('.json', '.md'))
    assert 'a witch' not in kept  # the texts themselves are not passed on


def test_the_report_has_the_numbers_of_its_files(done):
    folder, _ = done
    assert find_disagreements(folder / 'results/REPORT.md') == []
    text = (folder / 'results/REPORT.md').read_text()
    assert 'what it printed once' not in text
    assert '\nOnce upon a time' in text
    assert text.count('logprob') == 2


def test_every_step_is_a_command_that_is_shown(done):
    _, process = done
    shown = [line for line in process.stdout.splitlines() if line.startswith('$ python ')]
    assert any(
        line.startswith('$ python train.py config/train_tiny.py --out_dir=out-experiment/tiny') for line in shown
    )
    assert any('eval.py --init_from=tiny-stories --compare_to=tiny' in line for line in shown)


def test_a_folder_without_the_texts_is_an_error(tmp_path):
    assert_friendly_error(
        run_script('lab.experiment', '--part=report', cwd=PROJECT), 'texts/novels.txt', 'models/tiny-stories/README.md'
    )
    assert_friendly_error(run_script('lab.experiment', '--part=reprot', cwd=PROJECT), 'reprot', 'fine_tuning')
    assert_friendly_error(run_script('lab.experiment', '--part=report', cwd=tmp_path), 'folder', str(PROJECT))
