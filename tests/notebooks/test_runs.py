"""The runs of the notebook: those that end unforeseen, their table, and what is kept and compared."""

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.notebooks import text_of

from notebooks import rendering, runs, steps
from texts.splits import SPLITS

TEXTS = 'the SHA-256 of some texts'


def make_run(rate, losses=(), files=('ckpt.pt',), **more):
    """Make the folder of a Run with its losses on the validation part."""
    run = runs.Run('tiny', 5, rate, 1.0, TEXTS, **more)
    run.folder.mkdir(parents=True)
    rows = [json.dumps({'iter': number * 10, 'val_loss': loss}) + '\n' for number, loss in enumerate(losses)]
    (run.folder / 'metrics.jsonl').write_text(''.join(rows))
    for name in files:
        (run.folder / name).touch()
    runs.remember(run)
    return run


def prepare(book, model='tiny'):
    """Pretend that texts were prepared for a model, of which nothing is loaded."""
    meta = {part: {'tokens': 500, 'documents': 5, 'sha256': TEXTS} for part in SPLITS}
    Path('data/notebook').mkdir(parents=True, exist_ok=True)
    Path('data/notebook/meta.json').write_text(json.dumps(meta))
    book.chosen.model, book.chosen.is_ready = SimpleNamespace(name=model, weights=5), True
    book.chosen.refresh()


def train(monkeypatch, run, code, stop=False):
    """Start a run of a train.py that ends with this exit code, and finish it; return its error."""
    process = SimpleNamespace(terminate=lambda: None, wait=lambda: code)
    monkeypatch.setattr(runs.subprocess, 'Popen', lambda *_, **__: process)
    training = runs.Training(run)
    if stop:
        training.stop()
    return training.finish()


# Ends that nobody has foreseen ----------------------------------------------------------------------------------------


def test_a_run_that_was_cut_off_counts_as_stopped_with_what_it_has_measured(book):
    """The notebook was closed or restarted while it trained."""
    make_run(1e-4, (4.0, 3.0), outcome='done', before=math.exp(4), best=math.exp(3))
    make_run(3e-4, (4.0, 2.0, 2.5), ('ckpt.pt', 'last.pt'))
    make_run(1e-3, (), ('ckpt.pt',))  # of which nothing is known
    prepare(book)
    assert '0.0003 · ★ 7.389 (stopped)' in book.table() and '0.001 · stopped' in book.table()
    assert 'learning rate 0.0003, 1 epoch ★ best' in [label for label, _ in book.chosen.run.options]
    first, second, third = runs.read_runs()
    runs.tidy(first.key)
    assert not first.has_weights and second.can_go_on and third.has_weights  # the last one


def test_a_run_that_is_at_work_is_no_stopped_one(book):
    run = make_run(3e-4, (4.0, 2.0))
    book.chosen.training = SimpleNamespace(run=run)
    prepare(book)
    assert '★ 7.389 …' in book.table() and 'stopped' not in book.table()


def test_a_run_that_begins_again_has_nothing_of_the_earlier_one(book, monkeypatch):
    run = make_run(1e-4, (4.0, 3.0), ('ckpt.pt', 'last.pt'), outcome='done', best=20.0)
    prepare(book)
    train(monkeypatch, runs.new_run('tiny', 5, 1e-4, 1.0), 143, stop=True)
    (again,) = runs.read_runs()
    assert again.folder == run.folder and again.best is None and not again.has_weights and not again.can_go_on
    book.chosen.refresh()
    assert book.chosen.run.options == ()


@pytest.mark.parametrize('code', [130, 143, -signal.SIGINT, -signal.SIGTERM])
def test_a_run_that_a_signal_has_ended_is_a_stopped_one(book, monkeypatch, code):
    prepare(book)
    assert train(monkeypatch, runs.new_run('tiny', 5, 1e-4, 1.0), code) == ''
    assert [run.outcome for run in runs.read_runs()] == ['stopped']


def test_training_is_not_interrupted_together_with_the_notebook(book, monkeypatch):
    """Jupyter's ■ sends the signal to all processes of the notebook's group."""
    prepare(book)
    Path('train.py').write_text('import os; open("group", "w").write(str(os.getpgrp()))')
    for config in ('config/finetune_own_text.py', 'config/finetune_stories.py'):
        Path(config).parent.mkdir(exist_ok=True)
        Path(config).touch()
    monkeypatch.setattr(runs, 'PROJECT', Path.cwd())
    assert runs.Training(runs.new_run('tiny', 5, 1e-4, 1.0)).finish() == ''
    assert int(Path('group').read_text()) != os.getpgrp()


def test_if_the_watcher_fails_training_ends_too(book, monkeypatch):
    stopped = []
    training = SimpleNamespace(stop=lambda: stopped.append(True), is_running=lambda: 1 / 0)
    monkeypatch.setattr('notebooks.training_form.Training', lambda run, go_on: training)
    book.training.watch(None)
    assert 'ZeroDivisionError' in book.wait() and stopped and book.chosen.training is None


# A model that is replaced ---------------------------------------------------------------------------------------------


def save_weights(name):
    """Write something like a saved model; return its name for the notebook."""
    folder = steps.MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').touch()
    (folder / 'model.safetensors').write_text('weights')
    return str(folder)


def test_runs_of_a_replaced_model_are_not_those_of_the_new_one(book, monkeypatch):
    loaded = []
    monkeypatch.setattr(steps, 'choose_front', lambda *_: None)
    monkeypatch.setattr(steps, 'require_tokenizer', lambda *_: None)
    monkeypatch.setattr(steps.fast, 'pack', lambda model, rows: model)
    model = SimpleNamespace(get_num_params=lambda non_embedding: 5)
    monkeypatch.setattr(steps, 'load_model', lambda *_, **__: loaded.append(1) or (model, None, None))
    name = save_weights('my-stories')
    prepare(book, name)
    run = runs.new_run(name, 5, 1e-4, 1.0)
    runs.remember(run)
    steps.open_model(name)
    steps.open_model(name)
    assert [made.folder for made in book.chosen.runs()] == [run.folder] and len(loaded) == 1
    os.utime(Path(name) / 'model.safetensors', ns=(1, 1))
    steps.open_model(name)
    assert book.chosen.runs() == [] and len(loaded) == 2
    assert runs.new_run(name, 5, 1e-4, 1.0).key != run.key


def test_the_model_that_a_run_began_from_is_not_replaced_by_it(book):
    name = save_weights('my-stories')
    with pytest.raises(steps.UserError, match='“my-stories” is the model that this run began from'):
        steps.save_model(runs.Run(name, 5, 1e-4, 1.0), 'my-stories', replace=True)


# What is said ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('outcome', 'shown'), [('', '…'), ('done', 'infinite'), ('too large', 'infinite'), ('failed', 'failed')]
)
def test_a_run_without_a_perplexity_shows_how_it_ended(outcome, shown):
    assert rendering.run_cell(runs.Run('tiny', 5, 1e-4, 1.0, outcome=outcome), None) == shown


@pytest.mark.parametrize(
    ('change', 'p_value', 'words'),
    [
        ((-3.0, -4.0, -2.0), 0.001, 'better, and that is more than chance'),
        ((-3.0, -4.0, -2.0), 0.5, 'better, but this part is too small to tell'),
        ((3.0, 2.0, 4.0), 0.5, 'worse, but this part is too small to tell'),
        ((-3.0, -4.0, 2.0), 0.03, 'contains 0'),
        ((-3.0, -4.0, None), 0.5, 'too small to tell'),
        ((-3.0, None, None), 1.0, 'too small to tell'),
        ((None, None, None), 0.001, 'cannot be compared'),
    ],
)
def test_a_difference_is_more_than_chance_only_if_the_test_says_so_too(change, p_value, words):
    """Of two segments, the interval is as narrow as can be."""
    difference = dict(zip(('value', 'low', 'high'), change))
    measures = {'difference': {'perplexity': difference}}
    assert words in text_of(rendering.conclusion({'measures': measures, 'comparison': {'p_value': p_value}}))


@pytest.mark.parametrize(
    ('numbers', 'shown'),
    [
        ((5, 4, 6.5), '5 (4 to 6.5)'),
        ((5, 4, None), '5 (4 to infinite)'),
        ((5, None, None), '5'),
        ((None,) * 3, 'infinite'),
    ],
)
def test_a_number_without_an_interval_stands_alone(numbers, shown):
    """A single segment has none."""
    assert rendering.with_interval(dict(zip(('value', 'low', 'high'), numbers))) == shown


@pytest.mark.parametrize(
    ('logprobs', 'words'),
    [([0.0, 0.0], 'it is certain that'), ([-0.1], '1 in 1.1 that'), ([-46.05], '1 in 10^20 that')],
)
def test_the_chance_of_a_sample_is_said_in_words(logprobs, words):
    response = SimpleNamespace(ids=logprobs, sampler_logprobs=logprobs, model_logprobs=logprobs)
    assert f'Sampler: {words} these' in rendering.likelihood(response)
