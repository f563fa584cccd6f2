"""The whole experiment on texts of a few pages: every step runs, and the pages have the new numbers."""

import json
import os
import shutil

import pytest
from filelock import FileLock
from helpers.scripts import PROJECT, assert_friendly_error, files_of_project, run_copy, run_script
from helpers.stories import make_tales

from common.errors import UserError
from lab import experiment, experiment_pages
from lab.check_page_numbers import find_disagreements

SMALL = """
import sys
from functools import partial

from lab import experiment, experiment_runs, measure_report
from lm.search import Budget

sys.path.append({tests!r})
from helpers.scripts import run_in_this_process

experiment_runs.subprocess.run = partial(run_in_this_process, {{}})
experiment.VOCAB_SIZE = 300
experiment.SHORT_RUN |= {{'max_iters': 20, 'warmup_iters': 2, 'eval_interval': 10, 'eval_iters': 2}}
experiment.SEARCH = {{'base': {{}}, 'small': {{'n_embd': 8}}}}
experiment.RATES, experiment.EPOCHS, experiment.SEEDS = (1e-3,), (0.5,), (1,)
experiment.PROMPTS = experiment.PROMPTS[:1]
experiment.DRAWS, experiment.CACHED = 20, 20
measure_report.SEARCH_BUDGET, measure_report.SEARCHED = Budget(prefixes=5), 20
experiment.main(experiment.Settings('all', 'corpora'))
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
an old output
```

```python
print(2 * 21)
```

```text
an old result
```
""" + '\n'.join(
    f'<!-- generated: {name} -->\n<!-- end -->\n'
    for name in ('changed-most', 'all-pairs', 'texts', 'beginnings', 'language')
)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """Return a copy of the project in which a small experiment has run, and what it printed.

    It runs once, though several processes may test at the same time.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'experiment'
    with FileLock(folder.with_suffix('.lock'), timeout=1800):
        printed = folder.with_suffix('.txt')
        if not printed.exists():
            printed.write_text(run_experiment(folder), encoding='utf-8')
    return folder, printed.read_text(encoding='utf-8')


def run_experiment(folder):
    """Copy the project into a folder, run a small experiment there, and return what it prints."""
    folder.mkdir()
    for path in files_of_project():
        is_code = path.suffix in ('.py', '.html') and path.parts[0] not in ('tests', 'config')
        is_page = path.as_posix() in ('results/models/README.md', 'results/fine_tuning/README.md')
        if (
            is_code
            or is_page
            or path.parts[:2] == ('data', 'childrens_stories')
            or path.name in ('eval_data.json', 'story_questions.json')
        ):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / path, folder / path)
    for name in ('config', 'corpora'):
        (folder / name).mkdir()
    for name, dataset, init_from, pairs in (
        ('train_tiny', 'prose', 'scratch', None),
        ('finetune_tiny_stories', 'stories', 'tiny', 'eval_data.json'),
    ):
        config = CONFIG.format(dataset=dataset, init_from=init_from, eval_file=repr(pairs))
        (folder / f'config/{name}.py').write_text(config)
    kinds = {
        'novels': 'a bishop',
        'victorian_children': 'a duke',
        'childrens_stories': 'a bear',
        'fairytales': 'a king',
    }
    for name, who in {**kinds, 'simple_stories': 'a hen', 'tinystories': 'a boy'}.items():
        (folder / f'corpora/{name}.txt').write_text(make_tales(who, 60))
    for name, who in (('fairytales_heldout', 'a witch'), ('tinystories_heldout', 'a girl')):
        (folder / f'corpora/{name}.txt').write_text(make_tales(who, 20))
    (folder / 'results/REPORT.md').write_text(PAGE)
    (folder / 'README.md').write_text('# Front door\n')
    (folder / 'small.py').write_text(SMALL.format(tests=str(PROJECT / 'tests')))
    process = run_copy('small.py', cwd=folder, timeout=1800)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.slow
def test_models_are_shipped_with_their_numbers(done):
    folder, _ = done
    for name in ('tiny', 'tiny-stories'):
        assert {file.name for file in (folder / 'models' / name).iterdir()} == {
            *('config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'training.png')
        }
        run = json.loads((folder / f'results/models/{name}.json').read_text())
        assert run['epochs'] == pytest.approx(0.5, abs=0.1)
        assert run['best']['val'] == min(row['val'] for row in run['curve'])
        assert run['data']['texts']['novels.txt']['bytes'] == (folder / 'corpora/novels.txt').stat().st_size
        page = (folder / 'results/models/README.md').read_text()
    assert page.count('| (none) |') == 3
    assert '| `n_embd=8` |' in page
    assert find_disagreements(folder / 'results/models/README.md', all_sourced=False) == []


@pytest.mark.slow
def test_the_effect_of_fine_tuning_is_on_its_page(done):
    folder, _ = done
    texts = json.loads((folder / 'results/fine_tuning/texts.json').read_text())
    summary = json.loads((folder / 'results/fine_tuning/pairs/summary.json').read_text())
    sweep = json.loads((folder / 'results/fine_tuning/sweep.json').read_text())
    page = (folder / 'results/fine_tuning/README.md').read_text()
    for name, file in (('heldout', 'fairytales_heldout.txt'), ('simple', 'tinystories_heldout.txt')):
        assert texts[name]['bytes'] == (folder / 'corpora' / file).stat().st_size
    questions = json.loads((folder / 'results/fine_tuning/questions.json').read_text())
    assert questions['questions'] == 80
    assert f'{texts["heldout"]["model"]["bits_per_byte"]["value"]:.3f} [' in page
    assert f'{summary["comparison"]["rose"]} likelier' in page
    assert set(sweep) == {'rate-0.001-epochs-0.1', 'rate-0.01-epochs-0.5', 'as-shipped'}
    assert all(set(run['texts']) == {'simple', 'heldout'} and run['pairs'] for run in sweep.values())
    for name in ('sweep.png', 'learning_curve.png', 'pairs/before_after.png', 'kinds.png'):
        assert (folder / 'results/fine_tuning' / name).stat().st_size > 5000
    assert find_disagreements(folder / 'results/fine_tuning/README.md', all_sourced=False) == []
    kept = '\n'.join(file.read_text() for file in (folder / 'results').rglob('*') if file.suffix in ('.json', '.md'))
    assert 'a witch' not in kept  # the texts themselves are not passed on


@pytest.mark.slow
def test_the_report_has_the_numbers_of_its_files(done):
    folder, _ = done
    assert find_disagreements(folder / 'results/REPORT.md') == []
    text = (folder / 'results/REPORT.md').read_text()
    assert 'an old' not in text
    assert '```text\n42\n```' in text
    session = text[text.index('$ python sample.py') : text.index('```python')]
    assert '\nOnce upon a time' in session
    assert session.count('logprob') == 2
    for generated in ('| novels |', '| Once upon a time, on the edge', '| held-out fairy tales | -'):
        assert generated in text


@pytest.mark.slow
def test_every_step_is_a_command_that_is_shown(done):
    _, printed = done
    shown = [line for line in printed.splitlines() if line.startswith('$ python ')]
    assert any(
        line.startswith('$ python train.py config/train_tiny.py --out_dir=out-experiment/tiny') for line in shown
    )
    assert any('eval.py --init_from=tiny-stories --compare_to=tiny' in line for line in shown)


@pytest.mark.slow
def test_what_is_missing_is_named(tmp_path, monkeypatch):
    for settings, message in (
        (experiment.Settings('report'), r'data/corpora/novels\.txt; python -m lab\.corpora'),
        (experiment.Settings('reprot'), 'reprot is not one of .* fine_tuning'),
    ):
        monkeypatch.chdir(PROJECT)
        with pytest.raises(UserError, match=message):
            experiment.main(settings)
    process = run_script('lab.experiment', '--part=report', cwd=tmp_path)
    assert_friendly_error(process, 'folder', str(PROJECT))


def test_only_what_is_generated_is_replaced(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(
        '# Title\n\n<!-- generated: a -->\n\nold\n\n<!-- end -->\n\nOurs.\n\n<!-- generated: b-2 -->\n<!-- end -->\n'
    )
    experiment_pages.fill_blocks(page, {'b-2': '| table |', 'a': 'new'})
    expected = (
        '# Title\n\n<!-- generated: a -->\n\nnew\n\n<!-- end -->\n\nOurs.\n\n'
        '<!-- generated: b-2 -->\n\n| table |\n\n<!-- end -->\n'
    )
    assert page.read_text() == expected
    with pytest.raises(UserError, match='generated blocks a, b-2; it must have a'):
        experiment_pages.fill_blocks(page, {'a': 'new'})
    assert page.read_text() == expected


def test_sessions_are_those_of_one_command():
    one = '```text\n$ python sample.py --x=1\nout\n\nmore\n```'
    assert experiment_pages.SESSION.search(f'a\n\n{one}\n')[0] == one
    for other in (one.replace('out', '$ python eval.py'), one.replace('sample', 'train'), one.replace('text', 'bash')):
        assert experiment_pages.SESSION.search(other) is None
