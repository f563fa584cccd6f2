"""The forms of the notebook: what a pupil presses and mistypes, and the sentence that comes."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.notebooks import text_of

from lm.checkpoint import load_model
from notebooks import friendly, rendering, runs, steps
from notebooks.choices import MODELS, SOURCES
from notebooks.forms import FILE, HUB, OTHER
from texts.splits import SPLITS

# The model -----------------------------------------------------------------------------------------------------------


def test_ten_models_are_offered_with_their_sizes(book):
    labels = [label for label, _ in book.model.choice.options]
    assert len(MODELS) == 10
    for offer in MODELS:
        assert f'{offer.name} · {offer.millions:g} million weights' in ' '.join(labels)


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('gpt3', 'Did you mean gpt2?'),
        ('distil gpt2', 'There is no model called “distil gpt2”. Did you mean distilgpt2?'),
        ('someone/llama', 'choose tiny-stories, which needs no download'),
        ('', 'Type the name of a model'),
    ],
)
def test_a_mistyped_model_or_no_network_is_one_sentence(book, name, words):
    book.model.choice.value, book.model.name.value = OTHER, name
    said = book.press('model', 'use')
    assert words in said and said.startswith('✗') and '--' not in said
    assert 'alert' in book.model.line.value


def test_steps_in_the_wrong_order_say_which_comes_first(book):
    assert 'step 2' in book.press('before', 'write')
    assert 'step 2' in book.press('texts', 'use') or 'step 2' in book.press('training', 'start')
    book.model.choice.value = 'tiny'
    book.press('model', 'use')
    assert 'step 3' in book.press('training', 'start')
    assert 'step 3' in book.press('before', 'measure')
    assert 'step 3' in book.press('after', 'measure')
    assert 'Nothing is training' in book.press('training', 'stop')


# The texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['recipes', 'reviews'])
def test_a_dataset_without_a_network_is_one_sentence(book, name):
    assert 'CC BY-SA' in SOURCES[name].label or 'Apache' in SOURCES[name].label
    book.texts.choice.value = name
    said = book.press('texts', 'look')
    assert SOURCES[name].dataset in said and 'choose texts that need no download' in said and '--' not in said


def test_the_columns_of_texts_that_need_no_network_are_shown_with_examples(book):
    book.texts.choice.value = 'explanations'
    assert '3 columns hold text' in book.press('texts', 'look')
    names = [name for _, name in book.texts.column.options]
    assert names == ['explanation', 'heading', 'page'] and book.texts.column.value == 'explanation'
    assert 'nanoGPT' in text_of(book.texts.examples.value)
    book.texts.column.value = 'page'
    assert 'README.md' in text_of(book.texts.examples.value)


@pytest.mark.parametrize(
    ('file', 'content', 'words'),
    [
        ('empty.txt', b'', 'empty.txt is empty'),
        ('blank.txt', b'\n\n \n', 'no text to learn from'),
        ('story.docx', b'PK\3\4', 'save it as plain text'),
        ('numbers.csv', b'a,b\n1,2\n3,4\n', 'no text to learn from'),
        ('story.txt', b'\x89PNG', 'a picture'),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(book, file, content, words):
    book.texts.choice.value = FILE
    book.texts.upload = SimpleNamespace(value=({'name': file, 'content': memoryview(content)},))  # ipywidgets 8
    said = book.press('texts', 'look')
    assert said.startswith('✗') and words in said and '--' not in said


def test_a_file_is_named_or_missing_or_not_chosen(book):
    book.texts.choice.value = FILE
    assert 'Choose a file first' in book.press('texts', 'look')
    book.texts.path.value = 'nowhere.txt'
    assert 'nowhere.txt cannot be read' in book.press('texts', 'look')
    book.texts.choice.value = HUB
    assert 'type the name' in book.press('texts', 'look').lower()


def test_one_line_is_too_little_and_the_same_text_of_a_table_is_enough(book):
    book.model.choice.value = 'tiny'
    book.press('model', 'use')
    book.texts.choice.value = FILE
    Path('line.txt').write_text('The cat sat on the mat.')
    book.texts.path.value = 'line.txt'
    book.press('texts', 'look')
    assert 'too little text' in book.press('texts', 'use')
    assert 'step 3' in book.press('training', 'start')
    rows = [f'A [red] cat met dog {number}, and they went <b>to the sea</b> together.' for number in range(80)]
    Path('tales.csv').write_text('tale,number\n' + ''.join(f'"{row}",{n}\n' for n, row in enumerate(rows)))
    book.texts.path.value = 'tales.csv'
    assert 'No text is in: number.' in book.press('texts', 'look')
    assert '<b>' not in book.texts.examples.value and '<b>to the sea</b>' in text_of(book.texts.examples.value)
    assert 'Your texts are ready' in book.press('texts', 'use')
    meta = json.loads(Path('data/notebook/meta.json').read_text())
    assert sum(meta[part]['documents'] for part in SPLITS) == len(rows)


def test_a_file_that_was_uploaded_on_colab_is_read(book):
    """ipywidgets 7, which Colab has, gives files by name."""
    book.texts.choice.value = FILE
    book.texts.upload = SimpleNamespace(value={'a/../tales.csv': {'content': b'tale\n"The cat sat on the mat."\n'}})
    assert 'One column holds text' in book.press('texts', 'look')
    assert Path('out-notebook/texts/tales.csv').exists()


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('epochs', [0, -1, 0.05, 1000])
def test_impossible_epochs_are_one_sentence(book, monkeypatch, epochs):
    book.chosen.model, book.chosen.is_ready = SimpleNamespace(name='tiny', weights=5), True
    monkeypatch.setattr('notebooks.forms.count_tokens', lambda: None)
    monkeypatch.setattr('notebooks.forms.runs_of', lambda model: [])
    book.training.epochs.value = epochs
    assert 'between 0.1 and 100' in book.press('training', 'start')
    assert book.chosen.training is None


def test_short_texts_get_a_shorter_context(book):
    Path('tales.txt').write_text('\n\n\n'.join(f'The cat of number {n} ran over all the hills. ' * 6 for n in range(9)))
    book.model.choice.value = 'tiny'
    book.press('model', 'use')
    book.texts.choice.value, book.texts.path.value = FILE, 'tales.txt'
    book.press('texts', 'look')
    assert 'ready' in book.press('texts', 'use')
    least = min(runs.count_tokens().values())
    assert runs.read_training_settings(5e6).block_size == min(128, least - 1)
    assert runs.read_training_settings(124e6).block_size == min(256, least - 1)


@pytest.mark.slow
def test_runs_are_stopped_continued_and_compared(book):
    book.choose()
    book.training.rate.value, book.training.epochs.value = 3e-4, 8.0
    book.press('training', 'start')
    assert 'training: wait' in book.press('after', 'write')  # there may be no memory for two
    while len(book.chosen.training.curves()['validation part']) < 2:  # before, and after some steps
        time.sleep(0.1)
    book.press('training', 'stop')
    assert 'Go on continues this run' in book.wait()
    assert '(stopped)' in book.table()
    before = load_model('resume', Path(book.chosen.run.value), 'cpu', file='last.pt')[2]['iter_num']
    book.press('training', 'go_on')
    while book.chosen.training and book.chosen.training.curves()['of each step'][-1][0] <= before + 2:
        time.sleep(0.1)
    book.press('training', 'stop')
    book.wait()
    (run,) = [run for run in book.chosen.runs() if run.has_weights]
    assert load_model('resume', run.folder, 'cpu', file='last.pt')[2]['iter_num'] > before
    assert f'{run.best:.4g}' in book.table() and '★ best' in book.chosen.run.options[0][0]


def test_the_table_fills_in_and_keeps_the_weights_of_the_best_and_the_last(book):
    made = []
    for rate, epochs, best in [(1e-5, 1.0, 30.0), (3e-4, 1.0, 20.0), (1e-3, 1.0, 25.0), (0.1, 0.3, None)]:
        run = runs.Run('tiny', 5, rate, epochs, 'sha', 40.0, best, 'done' if best else 'too large')
        run.folder.mkdir(parents=True)
        for name in ('ckpt.pt', 'last.pt') if best else ():
            (run.folder / name).touch()
        runs.remember(run)
        runs.tidy(run.key)
        made.append(run)
    assert runs.read_runs() == made
    assert [run.has_weights for run in made] == [False, True, True, False]
    assert not any((run.folder / 'last.pt').exists() for run in made)
    table = text_of(rendering.runs(made, [3e-4], [3.0], 40.0))
    assert '0.0003 · ★ 20 ·' in table and '0.1 infinite · ·' in table


# The result -----------------------------------------------------------------------------------------------------------


def test_an_unforeseen_error_is_one_sentence_and_its_traceback_is_kept(book, monkeypatch):
    monkeypatch.setattr(steps, 'open_model', lambda name: 1 / 0)
    said = book.press('model', 'use')
    assert 'This should not happen (ZeroDivisionError' in said and 'Traceback' not in said
    assert 'Traceback' in Path('out-notebook/errors.log').read_text()
    assert 'smaller model' in friendly.explain(MemoryError())
    diverged = friendly.UserError(runs.last_line('note: x\r\nerror: training diverged at iteration 7: --learning_rate'))
    assert friendly.explain(diverged).endswith('far too large. Try a tenth of it.')


def test_on_colab_the_secret_is_found_and_the_model_downloaded(book, colab):
    assert steps.find_token() == 'hf_aSecret'
    Path('stories').mkdir()
    steps.download_model(Path('stories'))
    assert [Path(path).name for path in colab.downloaded] == ['stories.zip']


def test_the_token_leaves_the_page_at_once_and_is_in_no_message(book, monkeypatch):
    monkeypatch.setattr(book.chosen, 'chosen_run', lambda: runs.Run('tiny', 5, 1e-4, 1.0))

    def refuse(settings):
        raise friendly.UserError(f'the hub refuses {os.environ["HF_TOKEN"]}')

    monkeypatch.setattr(steps.export, 'main', refuse)
    book.keep.token.value, book.keep.repository.value = 'hf_aSecret', 'stories'
    assert book.press('keep', 'publish') == '✗ The hub refuses (token).'
    assert book.keep.token.value == '' and 'HF_TOKEN' not in os.environ
    assert 'needs a token' in book.press('keep', 'publish')


def test_a_saved_model_is_not_replaced_unasked(book, monkeypatch):
    monkeypatch.setattr(book.chosen, 'chosen_run', lambda: runs.Run('tiny', 5, 1e-4, 1.0))
    folder = steps.MODELS / 'my-stories'
    folder.mkdir(parents=True)
    (folder / 'config.json').touch()
    assert 'already' in book.press('keep', 'save')
    book.keep.name.value = '../elsewhere'
    assert 'letters, digits and hyphens' in book.press('keep', 'save')
    book.chosen.refresh()
    assert 'my-stories · saved in step 7' in [label for label, _ in book.model.choice.options]
