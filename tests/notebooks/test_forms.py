"""The forms of the notebook: what a pupil presses and mistypes, and the sentence that comes."""

import asyncio
import gzip
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.notebooks import text_of
from tqdm import tqdm

from lm.checkpoint import load_model
from notebooks import form_parts, friendly, progress, rendering, runs, show, steps, text_form
from notebooks.choices import MODELS, SOURCES, own_file
from notebooks.forms import OTHER
from notebooks.text_form import FILE, HUB
from texts.splits import SPLITS


def upload(book, value):
    """Let a file arrive; return the sentence that the form then shows. value: as in ipywidgets 7 or 8."""
    book.texts.upload = SimpleNamespace(value=value)
    book.texts.uploaded()
    return text_of(book.texts.line.value)


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


@pytest.mark.parametrize(
    ('typed', 'name'),
    [
        (' /content/drive/m/ ', '/content/drive/m'),
        ('https://huggingface.co/owner/name/', 'owner/name'),
        ('owner/name/', 'owner/name'),
    ],
)
def test_the_path_of_a_folder_keeps_its_beginning(book, monkeypatch, typed, name):
    def refuse(name):
        raise friendly.UserError(name)

    monkeypatch.setattr(steps, 'open_model', refuse)
    book.model.choice.value = OTHER
    book.model.say('owner/other is ready', 'good')
    book.model.name.value = typed
    assert book.model.line.value == ''  # what was said about another name
    assert book.press('model', 'use') == f'✗ {name}.'


def test_steps_in_the_wrong_order_say_which_comes_first(book):
    assert 'step 2' in book.press('before', 'write')
    assert 'step 2' in book.press('texts', 'use') or 'step 2' in book.press('training', 'start')
    book.model.choice.value = 'tiny'
    book.press('model', 'use')
    assert book.training.line.value == book.before.line.value == ''  # step 2 has been done
    assert 'step 3' in book.press('training', 'start')
    assert 'step 3' in book.press('before', 'measure')
    assert 'step 3' in book.press('after', 'measure')
    assert 'Nothing is training' in book.press('training', 'stop')


@pytest.mark.slow
def test_a_model_that_cannot_be_had_leaves_the_one_that_was_chosen_and_its_texts(book):
    assert 'Go on with step 4' in book.choose()
    book.model.choice.value, book.model.name.value = OTHER, 'https://huggingface.co/gpt3/'
    assert '“gpt3” is not on this computer yet' in book.press('model', 'use')
    assert book.chosen.model.name == 'tiny' and book.chosen.is_ready
    book.model.choice.value = 'gpt2'
    assert book.model.line.value == ''  # what was said about another choice
    said = book.press('model', 'use')
    assert 'spelling' not in said and 'choose tiny-stories' in said  # nothing was typed
    book.model.choice.value = 'tiny'
    assert 'Go on with step 4' in book.press('model', 'use')  # the same model needs its texts only once
    book.model.choice.value = 'tiny-stories'
    assert 'Go on with step 3' in book.press('model', 'use')
    assert 'once more' in text_of(book.texts.line.value) and not book.texts.parts.value


@pytest.mark.slow
def test_a_cell_that_is_run_again_shows_what_is_chosen(book):
    book.choose()
    for step, make in show.FORMS.items():
        book.chosen.forms[step] = make(book.chosen)
    assert 'tiny is ready' in text_of(book.model.line.value)
    assert 'Your texts are ready' in text_of(book.texts.line.value) and 'training: learned' in book.texts.parts.value


def test_one_thing_is_done_at_a_time_and_a_double_click_does_it_once(book, monkeypatch):
    """In a notebook, the second click arrives when the first one has been answered."""
    pressed, disabled = [], []

    def work():
        pressed.append(1)
        disabled.extend(button.disabled for form in book.chosen.forms.values() for button in form.buttons)
        book.model.act(work)
        return 'Done.'

    async def click_twice():
        book.model.act(work)
        book.model.act(work)
        await asyncio.sleep(3 * form_parts.DOUBLE_CLICK)
        book.model.act(lambda: pressed.append(2) or 'Done.')
        await asyncio.sleep(3 * form_parts.DOUBLE_CLICK)

    monkeypatch.setattr(form_parts, 'DOUBLE_CLICK', 0.02)
    asyncio.run(click_twice())
    assert pressed == [1, 2] and all(disabled) and len(disabled) >= 12
    assert not any(button.disabled for form in book.chosen.forms.values() for button in form.buttons)
    assert text_of(book.model.line.value).endswith('Done.')


def test_a_file_that_arrives_right_after_a_button_is_not_lost(book, monkeypatch):
    """It came while the button was at work, so it is not answered before the second click of a double click."""
    monkeypatch.setattr(form_parts, 'DOUBLE_CLICK', 0.02)
    monkeypatch.setattr(text_form, 'DOUBLE_CLICK', 0.02)

    async def press_and_upload():
        book.texts.choice.value = FILE
        book.model.act(lambda: 'Done.')
        assert 'sent.txt' not in upload(book, ({'name': 'sent.txt', 'content': b'One.\n\n\nTwo.'},))
        await asyncio.sleep(0.5)

    asyncio.run(press_and_upload())
    assert 'sent.txt can be read' in text_of(book.texts.line.value)


def test_work_that_takes_long_says_how_far_it_is(monkeypatch):
    """Clocked by hand: a quarter in ten seconds, then a bar that another library prints."""
    now, said = [100.0], []
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    at_work = progress.Progress(said.append, 'Working …')
    assert at_work.describe() == 'Working …'
    now[0] += 5
    assert at_work.describe() == 'Working … 5 seconds so far'
    at_work.update(0)
    now[0] += 10
    at_work.update(0.25)
    assert at_work.describe() == 'Working … 25% done, about 30 seconds left'
    monkeypatch.setattr(progress, '_at_work', at_work)
    with friendly.quietly() as (_, err):
        for _ in tqdm(range(4), desc='Fetching 4 files', file=err, mininterval=0):
            pass
        assert at_work.share == 0.25  # files say little about bytes
        with tqdm(total=1000, unit='B', file=err, mininterval=0) as bar:
            bar.update(600)
    assert at_work.share == 0.6


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
        ('story.docx', b'PK\3\4', '“story.docx” cannot be read: it is a document. Open it, choose File'),
        ('marks.xlsx', b'PK\3\4', 'CSV UTF-8'),
        ('book.pdf', b'%PDF', 'copy that into a text editor'),
        ('cafe.txt', 'The café.'.encode('cp1252'), 'in Notepad, choose UTF-8'),
        ('numbers.csv', b'a,b\n1,2\n3,4\n', 'no text to learn from'),
        ('story.txt', b'\x89PNG', 'a picture'),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(book, file, content, words):
    book.texts.choice.value = FILE
    said = upload(book, ({'name': file, 'content': memoryview(content)},))  # as ipywidgets 8 has it
    assert said.startswith('✗') and words in said and '--' not in said and 'out-notebook' not in said


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
    book.texts.choice.value = 'explanations'
    book.press('texts', 'look')
    assert text_of(book.texts.parts.value).startswith('In use: tales.csv part')  # these are only looked at


def test_a_file_that_was_uploaded_on_colab_is_read(book):
    """ipywidgets 7, which Colab has, gives files by name."""
    book.texts.choice.value = FILE
    said = upload(book, {'a/../tales.csv': {'content': b'tale\n"The cat sat on the mat."\n'}})
    assert 'tales.csv can be read. Here are the first texts.' in said and 'This is only one document' in said
    assert book.texts.path.value == 'out-notebook/texts/tales.csv' and Path(book.texts.path.value).exists()


def test_the_file_that_was_uploaded_last_is_used_and_a_name_that_is_typed_after_it(book):
    book.texts.choice.value = FILE
    Path('typed.txt').write_text('One.\n\n\nTwo.')
    book.texts.path.value = 'typed.txt'
    assert 'sent.txt can be read' in upload(book, ({'name': 'sent.txt', 'content': b'Three.\n\n\nFour.'},))
    assert 'Three.' in book.texts.examples.value and 'out-notebook/texts/sent.txt' in book.texts.path.options
    book.texts.path.value = 'typed.txt'
    assert book.texts.columns.layout.display == 'none' and book.texts.line.value == ''  # not those of another file
    assert 'typed.txt can be read' in book.press('texts', 'look')


@pytest.mark.parametrize(
    ('number', 'shown'),
    [
        (None, 'infinite'),
        (0, '0'),
        (-8.001e-05, '-0.000080'),
        (-1e-9, '0.000000'),
        (51.2983, '51.3'),
        (12345.6, '12,346'),
    ],
)
def test_no_number_has_an_exponent(number, shown):
    assert rendering.short(number) == shown


def test_a_dataset_that_is_typed_after_a_look_is_not_the_one_that_was_looked_at(book):
    for field, typed in ((book.texts.dataset, 'owner/other'), (book.texts.config, 'small')):
        form_parts.show_if(True, book.texts.columns)
        field.value = typed
        assert book.texts.columns.layout.display == 'none'


def test_a_file_that_is_put_beside_the_notebook_is_found_by_its_name(book):
    book.texts.choice.value = FILE
    for place in ('notebooks', 'out-notebook/texts'):
        Path(place).mkdir(parents=True)
    Path('notebooks/dragged.txt').write_text('One.\n\n\nTwo.')
    book.texts.path.value = 'dragged.txt'
    assert 'dragged.txt can be read' in book.press('texts', 'look')
    assert book.texts.path.options == ('notebooks/dragged.txt',)
    Path('out-notebook/texts/dragged.txt').write_text('Three.\n\n\nFour.')
    assert 'several files called dragged.txt' in book.press('texts', 'look')
    assert len(book.texts.path.options) == 2


def test_one_file_is_read_also_if_its_name_looks_like_a_pattern(book):
    for name in ('tale1.txt', 'tale2.txt', 'tale[12].txt'):
        Path(name).write_text(f'{name} begins.\n\n\nIt ends.')
    book.texts.choice.value, book.texts.path.value = FILE, 'tale[12].txt'
    assert 'tale[12].txt can be read' in book.press('texts', 'look')
    assert 'tale[12].txt begins.' in text_of(book.texts.examples.value)
    for several in ('tale1.txt, tale2.txt', '*.txt', 'tale[23].txt'):
        book.texts.path.value = several
        assert book.press('texts', 'look') == f'✗ “{several}” is not one file: name only one.'


@pytest.mark.parametrize('file', ['tales.md', 'tales.TXT', 'tales.txt.gz'])
def test_a_text_file_of_another_ending_is_no_table(book, file):
    text = '\n\n\n'.join(f'The cat of number {n} ran over all the hills. ' * 6 for n in range(9)).encode()
    Path(file).write_bytes(gzip.compress(text) if file.endswith('.gz') else text)
    assert not [note for note in steps.prepare_texts(own_file(file), 'text', 'tiny', 100) if 'table' in note]


# Training -------------------------------------------------------------------------------------------------------------


def test_epochs_are_chosen_from_a_tenth_on(book):
    """A number that is typed may lose its comma on the way: 0,5 became 5."""
    assert [label for label, _ in book.training.epochs.options][:5] == ['0.1', '0.2', '0.3', '0.5', '1']


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


def test_on_colab_the_button_itself_watches_the_training_and_an_interrupt_stops_it(book, colab, monkeypatch):
    """Nothing that a thread shows reaches the page there."""

    class Training:
        run, stopped, looks = runs.Run('tiny', 5, 1e-4, 1.0), False, 0

        def curves(self):
            signal.raise_signal(signal.SIGINT)
            return {}

        def is_running(self):
            self.looks += 1
            return self.looks < 5 and not self.stopped

        def describe(self):
            return 'Step 1 of 2.'

        def stop(self):
            self.stopped = True

        def finish(self):
            signal.raise_signal(signal.SIGINT)  # somebody was impatient
            self.run.outcome = 'stopped' if self.stopped else 'failed'
            return ''

    monkeypatch.setattr('notebooks.training_form.Training', lambda run, go_on: Training())
    monkeypatch.setattr('notebooks.training_form.time', SimpleNamespace(sleep=lambda seconds: None))
    book.training.act(lambda: book.training.watch(Training.run))
    assert text_of(book.training.line.value).startswith('✓ Stopped.') and book.training.watcher is None
    assert book.chosen.training is None and not book.chosen.is_busy
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_runs_are_stopped_continued_and_compared(book):
    book.choose()
    book.training.rate.value, book.training.epochs.value = 3e-4, 10.0
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


def test_what_the_program_wrote_about_texts_goes_with_them(book):
    book.chosen.about = SOURCES['stories'].about
    book.chosen.refresh()
    assert '52 children' in book.keep.about.value
    book.chosen.about = ''  # a file of one's own
    book.chosen.refresh()
    assert book.keep.about.value == ''
    book.keep.about.value = 'My diary.'
    book.chosen.about = SOURCES['explanations'].about
    book.chosen.refresh()
    assert book.keep.about.value == 'My diary.'


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
