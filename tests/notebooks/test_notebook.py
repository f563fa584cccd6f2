"""The notebook itself: its cells, run offline from top to bottom, and how it gets ready."""

import itertools
import json
import re
import subprocess

import nbclient
import nbformat
import pytest
from helpers.hub import TOKEN, hub_server
from helpers.notebooks import text_of
from helpers.scripts import PROJECT

from notebooks import show
from notebooks.choices import SOURCES

NOTEBOOK = 'notebooks/fine_tune_your_own.ipynb'

# What a person does in each form, after all cells were run: each line is a cell, which waits for the one before.
ACTIONS = """
f['model'].choice.value = 'tiny'; f['model'].use.click()
f['texts'].choice.value = 'recipes'; f['texts'].look.click(); recipes = f['texts'].line.value, f['texts'].column.options
f['texts'].documents.value = 20; f['texts'].use.click(); recipes += (f['texts'].parts.value,)
f['texts'].choice.value = 'stories'; f['texts'].look.click()
f['texts'].documents.value = 20; f['texts'].use.click()
c.count.value, c.length.value, c.prompt.value = 1, 10, 'The cat'; f['before'].write.click()
f['before'].measure.click(); f['before'].write.click()  # of two clicks at once, the first one counts
f['training'].epochs.value = 2; f['training'].start.click(); f['training'].watcher.join()
f['after'].measure.click()
f['after'].write.click()
f['after'].inside.click()
f['keep'].save.click(); f['keep'].save.click()
f['keep'].repository.value = 'stories'; f['keep'].token.value = open('token').read(); f['keep'].publish.click()
"""
SHOWN = """
import json
print(json.dumps({step: [getattr(form, name).value for name in ('line', 'measured', 'written', 'page', 'table')
                         if hasattr(form, name)] for step, form in f.items()} | {'recipes': list(map(str, recipes))}))
"""


def notebook():
    return nbformat.read(PROJECT / NOTEBOOK, as_version=4)


def cells():
    return [cell for cell in notebook().cells if cell.cell_type == 'code']


def execute(folder, sources, **more):
    """Run cells in a folder; return them with their outputs."""
    run = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(run, timeout=200, kernel_name='python3', **more).execute(cwd=str(folder))
    return run


def printed(cell):
    return ''.join(output.get('text', '') for output in cell.outputs)


def write_recipes(folder):
    """Write a dataset as it is on the hub."""
    folder.mkdir(parents=True)
    step = 'Beat {} eggs with {} spoons of sugar, and bake them for {} minutes. Let the cake cool before you cut it.'
    rows = ''.join(f'{n},Cake {n},"{step.format(n, n, n)}"\n' for n in range(60))
    (folder / 'recipes.csv').write_text(f'id,Title,Instructions\n{rows}')


@pytest.mark.slow
def test_from_top_to_bottom(project, someone, tmp_path, monkeypatch):
    (project / 'token').write_text(TOKEN)
    monkeypatch.delenv('HF_HUB_OFFLINE')
    with hub_server(tmp_path / 'hub', tmp_path / 'cache') as (server, env):
        write_recipes(tmp_path / 'hub' / SOURCES['recipes'].dataset)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        actions = [f'while c.is_busy: await asyncio.sleep(0.05)\n{line}' for line in ACTIONS.strip().splitlines()]
        actions = ['import asyncio; from notebooks.show import chosen as c; f = c.forms', *actions, SHOWN]
        done = execute(project / 'notebooks', [*(cell.source for cell in cells()), *actions])
        assert (tmp_path / 'hub' / 'someone' / 'stories' / 'model.safetensors').exists()
    machine, *forms = done.cells[: len(cells())]
    assert printed(machine).startswith('Ready')
    for cell in forms:
        (output,) = cell.outputs
        assert 'application/vnd.jupyter.widget-view+json' in output.data
    for cell in done.cells:
        assert not [output for output in cell.outputs if output.get('name') == 'stderr']
    assert TOKEN not in json.dumps(done)  # with the state of all widgets
    shown = {step: list(map(text_of, values)) for step, values in json.loads(printed(done.cells[-1])).items()}
    for step, (line, *_) in shown.items():
        assert '✗' not in line, (step, line)
    line, columns, parts = shown['recipes']
    assert '2 columns hold text: choose one. No text is in: id.' in line
    assert columns.index('Instructions') < columns.index('Title')
    assert 'test: to measure at the end 2 ' in parts
    assert 'Done: on the validation part' in shown['training'][0]
    (first,) = re.findall(r'perplexity per token ([\d.]+) ', shown['before'][1])
    ((was, now),) = re.findall(r'perplexity per token ([\d.]+) \(.*?\) ([\d.]+) \(', shown['after'][1])
    assert was == first  # measured with as much context
    assert float(now) < 0.95 * float(was)  # `tiny` has read only old books
    assert shown['after'][2].count('The cat') >= 3 and 'before' in shown['after'][2] and 'after' in shown['after'][2]
    assert 'What could have come instead' in json.loads(printed(done.cells[-1]))['after'][3]
    assert '★' in shown['training'][1]
    assert (project / 'out-notebook' / 'models' / 'my-stories' / 'model.safetensors').exists()
    assert shown['keep'][0] == f'✓ Published: {server.endpoint}/someone/stories'
    changed = subprocess.run(
        ['git', 'status', '--porcelain'], cwd=PROJECT, capture_output=True, text=True, check=False
    ).stdout
    assert 'out-notebook' not in changed and 'data/notebook' not in changed


@pytest.mark.slow
def test_outside_the_project_it_asks_for_an_address_and_clones_it(tmp_path, project, someone):
    first, second, *_ = (cell.source for cell in cells())
    git = ['git', '-c', 'user.name=Someone', '-c', 'user.email=someone@example.org']
    for command in (['init', '-q'], ['add', '-A'], ['commit', '-q', '-m', 'A copy']):
        subprocess.run([*git, *command], cwd=project, check=True)
    (tmp_path / 'elsewhere').mkdir()
    address = re.search('"https://.*?"', first)[0]
    wrong, right = (first.replace(address, f'"file://{path}"') for path in (tmp_path / 'nothing', project))
    run = execute(tmp_path / 'elsewhere', [first, second, wrong, right, 'import os; print(os.getcwd())'])
    asked, too_soon, failed, ready, where = map(printed, run.cells)
    assert asked.startswith('The project is not here: enter the address')
    assert too_soon == 'Run the cell of step 1 first, then this one again.\n'
    assert f'file://{tmp_path / "nothing"} could not be fetched. Check the address' in failed
    assert ready.startswith('Ready')
    assert where.strip() == str(tmp_path / 'elsewhere' / 'nanogpt-probs')


@pytest.mark.slow
def test_missing_packages_are_installed(project, someone, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    with open(project / 'requirements.txt', 'a') as file:
        file.write('surely-not-there==1.0  # with its reason\n')
    (cell,) = execute(project, [cells()[0].source]).cells
    assert printed(cell).startswith('Installing what is missing, which may take some minutes: surely-not-there==1.0\n')
    why = printed(cell).splitlines()[1]
    assert why.startswith('What is missing could not be installed.') and 'surely-not-there' in why


def test_cells_are_hidden_and_without_outputs():
    steps = []
    for number, cell in enumerate(cells(), 1):
        assert re.match(rf'#@title {number} · .+\n', cell.source)
        assert cell.metadata['cellView'] == 'form' and cell.metadata['jupyter']['source_hidden']  # Colab, Jupyter
        assert not cell.outputs and cell.execution_count is None
        if number > 1:  # one import, one call
            steps += re.findall(r'^    show\("(\w+)"\)$', cell.source, re.MULTILINE)
            assert cell.source.count('import') == 1 and len(cell.source.splitlines()) == 7
    assert steps == list(show.FORMS)


def test_each_step_has_questions_whose_answers_are_folded():
    kinds = [(cell.cell_type, cell.source) for cell in notebook().cells]
    for (kind, _), (next_kind, following) in itertools.pairwise(kinds[2:]):
        if kind == 'code':
            assert next_kind == 'markdown'
            assert following.count('<details><summary>Answer</summary>') == following.count('**') // 2 >= 1


def test_the_badge_names_the_repository_that_the_first_cell_fetches():
    (address,) = re.findall(r'^REPOSITORY = "https://github.com/(\S+)"', cells()[0].source, re.MULTILINE)
    badge = f'https://colab.research.google.com/github/{address}/blob/main/{NOTEBOOK}'
    assert f']({badge})' in notebook().cells[0].source
    assert f']({badge})' in (PROJECT / 'README.md').read_text(encoding='utf-8')
