"""The notebook: its forms are filled in and run, offline, from top to bottom."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbclient
import nbformat
import pytest
from helpers.scripts import PROJECT
from nbclient.exceptions import CellExecutionError

from lm.checkpoint import load_model
from notebooks import steps
from texts.readers import input_paths

NOTEBOOK = 'notebooks/fine_tune_your_own.ipynb'
FORM = re.compile(r'^(\w+) = (.+?)  #@param (.+)$', re.MULTILINE)
FILLED_IN = {
    'model': 'tiny',
    'dataset': 'tales.csv',
    'column': 'tale',
    'documents': 200,
    'learning_rate': 0.0003,
    'steps_to_show': 5,
    'epochs': 2,
    'start': 'The cat',
    'length': 10,
}


def notebook():
    return nbformat.read(PROJECT / NOTEBOOK, as_version=4)


def cells():
    return [cell for cell in notebook().cells if cell.cell_type == 'code']


def fill_in(source, values):
    """Return the source of a cell with its forms filled in."""
    return FORM.sub(lambda form: f'{form[1]} = {values.get(form[1], None)!r}' if form[1] in values else form[0], source)


@pytest.fixture
def someone(monkeypatch):
    """The environment of a person without a network, a GPU or a token."""
    for name in ('HF_TOKEN', 'PYTHONPATH'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')


def execute(folder, values, which=slice(None)):
    """Run some of the notebook's forms in a folder; return them with their outputs."""
    filled_in = notebook()
    filled_in.cells = cells()[which]
    for cell in filled_in.cells:
        cell.source = fill_in(cell.source, values)
    nbclient.NotebookClient(filled_in, timeout=300, kernel_name='python3').execute(cwd=str(folder))
    return filled_in.cells


def text_of(cell):
    return ''.join(output.get('text', '') for output in cell.outputs)


def pictures_of(cell):
    return [output for output in cell.outputs if 'image/png' in output.get('data', {})]


@pytest.mark.slow
def test_from_top_to_bottom(project, someone):
    stories = (PROJECT / steps.STORIES).read_text(encoding='utf-8').split('\n\n\n')[:24]
    rows = ['"{}",{}\n'.format(story.replace('"', '""'), number) for number, story in enumerate(stories)]
    (project / 'tales.csv').write_text('tale,number\n' + ''.join(rows), encoding='utf-8')
    done = execute(project / 'notebooks', FILLED_IN)
    said = [text_of(cell) for cell in done]
    assert str(project) in said[0]
    assert 'Once upon a time' in said[1] and 'perplexity per token' in said[1]
    assert 'tale' in said[2] and 'number' in said[2]
    assert all(f'data/notebook/{part}.bin' in said[3] for part in ('train', 'val', 'test'))
    (before,) = re.findall(r'perplexity per token │ +([\d.]+)', said[4])
    for cell in done[5:7]:  # the second draws its picture again and again
        assert len(pictures_of(cell)) == 1
    was, now = re.findall(r'perplexity per token │ +([\d.]+) .*? │ +([\d.]+)', said[7])[0]
    assert was == before
    assert float(now) < 0.98 * float(was)  # `tiny` knows such stories well before
    assert said[8].count('The cat') == 2 and said[8].index('before:') < said[8].index('after:')
    (page,) = [output['data']['text/html'] for output in done[8].outputs if 'text/html' in output.get('data', {})]
    assert '&lt;html' in page and 'The cat' in page
    assert 'out-notebook/my-gpt2' in said[9] and 'by more than 0\n' in said[9]
    assert (project / 'out-notebook' / 'my-gpt2' / 'model.safetensors').exists()
    changed = subprocess.run(
        ['git', 'status', '--porcelain'], cwd=PROJECT, capture_output=True, text=True, check=False
    ).stdout
    assert 'out-notebook' not in changed and 'data/notebook' not in changed


@pytest.mark.slow
def test_an_error_is_one_line_and_stops_the_notebook(project, someone):
    with pytest.raises(CellExecutionError) as failed:
        execute(project, {'model': 'gpt3'}, slice(2))
    assert "error: there is no folder 'gpt3'" in str(failed.value)
    assert 'Traceback' not in str(failed.value)


@pytest.mark.slow
def test_outside_the_project_it_asks_for_an_address_and_clones_it(tmp_path, project, someone):
    with pytest.raises(CellExecutionError, match='enter the address of its repository'):
        execute(tmp_path, {}, slice(1))
    git = ['git', '-c', 'user.name=Someone', '-c', 'user.email=someone@example.org']
    for command in (['init', '-q'], ['add', '-A'], ['commit', '-q', '-m', 'A copy']):
        subprocess.run([*git, *command], cwd=project, check=True)
    (tmp_path / 'elsewhere').mkdir()
    (cell,) = execute(tmp_path / 'elsewhere', {'repository': f'file://{project}'}, slice(1))
    assert str(tmp_path / 'elsewhere' / 'nanogpt-probs') in text_of(cell)


@pytest.mark.slow
def test_missing_packages_are_installed(project, someone, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    with open(project / 'requirements.txt', 'a') as file:
        file.write('surely-not-there==1.0\n')
    with pytest.raises(CellExecutionError) as failed:
        execute(project, {}, slice(1))
    assert "'install', '--quiet', 'surely-not-there==1.0']' returned non-zero" in str(failed.value)


def test_cells_are_forms_without_outputs():
    for cell in cells():
        assert re.match(r'#@title \d+\. .+ \{ display-mode: "form" \}\n', cell.source)
        assert cell.metadata['cellView'] == 'form'
        assert not cell.outputs and cell.execution_count is None
    forms = {name: (eval(value), kind) for cell in cells() for name, value, kind in FORM.findall(cell.source)}
    assert forms.keys() >= FILLED_IN.keys() | {'repository', 'push_to', 'private', 'temperature'}
    assert forms['model'][1] == '["distilgpt2", "gpt2", "tiny"] {allow-input: true}'
    for value, kind in forms.values():
        if 'slider' in kind:
            least, most = (float(re.search(rf'{end}:([\d.]+)', kind)[1]) for end in ('min', 'max'))
            assert least <= value <= most


# The actions of the forms --------------------------------------------------------------------------------------------


def test_a_text_file_has_one_column_with_a_document_in_each_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'two.txt').write_text('The cat.\n\n\nThe dog.\n')
    assert steps.choose_dataset('two.txt') == 'two.txt'
    shown = capsys.readouterr().out
    assert 'text' in shown and "'The cat.'" in shown and "'The dog.'" in shown


def test_the_default_dataset_is_the_stories(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert steps.choose_dataset('') == str(PROJECT / steps.STORIES)


def test_an_incomplete_line_of_a_curve_is_ignored(tmp_path):
    lines = ['{"iter": 0, "train_loss": 3.5, "val_loss": 3.6}', '{"iter": 1, "loss": 3.4}', '{"iter": 2, "lo']
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines))
    assert steps.read_curves(tmp_path) == {
        'of each step': [(1, 3.4)],
        'training part': [(0, 3.5)],
        'validation part': [(0, 3.6)],
    }
    assert steps.read_curves(tmp_path / 'nothing') == {'of each step': [], 'training part': [], 'validation part': []}


@pytest.fixture
def texts(tmp_path, monkeypatch, someone):
    """A folder in which form 4 has prepared short texts for `tiny`."""
    monkeypatch.chdir(tmp_path)
    tale = 'Once upon a time a [red] cat met a dog, and they went to the sea together.'
    (tmp_path / 'tales.csv').write_text('tale\n' + ''.join(f'"{tale} {number}."\n' for number in range(60)))
    steps.prepare_texts('tales.csv', ' tale', 'tiny', 200)


def test_training_needs_enough_texts(tmp_path, monkeypatch, someone):
    monkeypatch.chdir(tmp_path)
    for form in (lambda: steps.show_learning_rates('tiny', 1e-4, 5), lambda: steps.fine_tune('tiny', 1e-4, 1)):
        with pytest.raises(steps.StepFailed, match='forms 2 to 4'):
            form()
    (tmp_path / 'short.txt').write_text('The cat.\n\n\nThe dog.\n\n\nThe bear.')
    with pytest.raises(steps.StepFailed, match='Too little text'):
        steps.prepare_texts('short.txt', 'text', 'tiny', 200)


def test_short_texts_get_a_shorter_context(texts):
    least = min(steps.count_tokens().values())
    assert steps.read_settings('tiny').block_size == min(128, least - 1)
    assert steps.read_settings('gpt2').block_size == min(256, least - 1)


@pytest.mark.slow
def test_a_model_that_never_improves_is_not_kept_and_an_interrupt_keeps_the_best(texts, monkeypatch, capfd):
    with pytest.raises(steps.StepFailed, match='never got better'):
        steps.fine_tune('tiny', 0.5, 1)

    curves = []

    def interrupted(path, so_far):
        curves.append(so_far)
        if len(so_far['validation part']) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(steps, 'draw_losses', interrupted)
    monkeypatch.setattr(steps, 'Image', str)
    monkeypatch.setattr(steps, 'display', lambda *shown, **rest: SimpleNamespace(update=str))
    steps.fine_tune('tiny', 1e-4, 80)
    assert 'Stopped.\nThe model that was best' in capfd.readouterr().out
    checkpoint = load_model('resume', steps.OUT, device='cpu')[2]
    assert 0 < checkpoint['iter_num'] < 50 * steps.count_tokens()['train'] / 2048

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps.time, 'sleep', interrupt)
    with pytest.raises(KeyboardInterrupt):  # nor do the other two runs go on
        steps.show_learning_rates('tiny', 1e-4, 5)
    assert not (steps.OUT / 'rates').exists()


def test_a_failing_script_stops_the_notebook_with_its_last_line(monkeypatch):
    with pytest.raises(steps.StepFailed, match='error: there is no setting --nothing'):
        steps.run_script('sample.py', '--nothing=1')
    killed = SimpleNamespace(returncode=-9)
    assert 'lack of memory' in steps.find_error(killed, '  3%|###')


@pytest.mark.slow
def test_scripts_write_utf8_whatever_the_locale(tmp_path, monkeypatch, someone, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONIOENCODING', 'cp1252')
    steps.run_script('sample.py', '--init_from=tiny', '--start=café', '--max_new_tokens=1')
    assert 'café' in capfd.readouterr().out


@pytest.fixture
def colab(monkeypatch):
    """Colab's modules as far as the forms use them; `downloaded` lists the downloads."""
    files = ModuleType('google.colab.files')
    files.upload = lambda: {'tales.csv': b'tale\n"a [INST] cat [/INST]"\n'}
    files.downloaded = []
    files.download = files.downloaded.append
    userdata = ModuleType('google.colab.userdata')
    userdata.get = {'HF_TOKEN': 'hf_aSecret'}.__getitem__
    package = ModuleType('google.colab')
    package.files, package.userdata = files, userdata
    for name, module in {'google.colab': package, 'google.colab.files': files}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return files


def test_on_colab_a_file_is_uploaded_and_the_model_downloaded(tmp_path, monkeypatch, someone, colab, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'tales.csv').write_text('an older file of that name')
    assert steps.choose_dataset('') == str(Path('data/uploaded/tales.csv'))
    assert "'a [INST] cat [/INST]'" in capfd.readouterr().out  # which is no markup
    asked = []
    monkeypatch.setattr(steps, 'run_script', lambda script, *settings: asked.append((script, settings)))
    monkeypatch.setenv('HF_TOKEN', '')
    (steps.OUT / 'my-gpt2').mkdir(parents=True)
    steps.save_model('Tales.', ' tales ')
    ((script, settings),) = asked
    assert script == 'export.py' and {'--push_to=tales', '--private=True', '--about=Tales.'} <= set(settings)
    assert os.environ['HF_TOKEN'] == 'hf_aSecret' and 'hf_aSecret' not in str(asked)
    assert [Path(path).name for path in colab.downloaded] == ['my-gpt2.zip']


def test_an_unknown_format_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'story.md').write_text('# A story')
    with pytest.raises(steps.StepFailed, match=r'story\.md has an unknown format.*\.txt'):
        steps.choose_dataset('story.md')
    (tmp_path / 'a, b.txt').write_text('A story.')
    assert steps.choose_dataset(' "a, b.txt" ') == 'a, b.txt'
    assert input_paths('a, b.txt') == [Path('a, b.txt')]


@pytest.mark.parametrize('name', ['nothing.csv', 'nothing.txt', 'someone/tales', 'no such name'])
def test_a_missing_dataset_is_reported_in_one_line(name, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(steps.StepFailed, match=name) as stopped:
        steps.choose_dataset(name)
    assert '\n' not in str(stopped.value)


@pytest.mark.parametrize(
    ('model', 'tokenizer'), [('tiny', 'tiny'), ('distilgpt2', 'gpt2'), ('someone/llama', 'someone/llama')]
)
def test_texts_are_prepared_with_the_tokenizer_of_the_model(monkeypatch, model, tokenizer):
    commands = []
    monkeypatch.setattr(steps, 'run_script', lambda *command: commands.append(command))
    monkeypatch.setattr(steps, 'count_tokens', lambda: None)
    steps.prepare_texts('texts.txt', 'text', model, 5)
    assert f'--tokenizer={tokenizer}' in commands[0]
