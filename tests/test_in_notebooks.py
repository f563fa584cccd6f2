"""Scripts in Jupyter and Colab: with %run, twice in a row, and main(Settings(...)) called from a cell.

All cells run in one kernel, as in a person's notebook, in the folder of the fixture `world`.
"""

import os
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from helpers.scripts import PROJECT

CPU = '--device=cpu'
LARGE = """
import random
random.seed(1)
words = (random.choice(['fox', 'king', 'bear', 'moon', 'river', '\\n\\n\\n']) for _ in range(2_500_000))
open('large.txt', 'w').write(' '.join(words))
"""


pytestmark = pytest.mark.slow  # each needs a kernel, which takes seconds to start


@pytest.fixture(scope='module')
def run_cell(world, tmp_path_factory):
    """A function that runs a cell in the notebook and returns the text that it shows: (stdout, everything else)."""
    folder = tmp_path_factory.mktemp('notebook') / 'here'
    shutil.copytree(world.folder, folder)
    environment = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'HF_HUB_OFFLINE': '1',
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
    }
    environment.pop('PYTHONPATH', None)
    notebook = nbformat.v4.new_notebook()
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3', allow_errors=True)

    def run(source):
        cell = nbformat.v4.new_code_cell(source)
        notebook.cells.append(cell)
        client.execute_cell(cell, len(notebook.cells) - 1)
        shown = {'stdout': '', 'stderr': ''}
        for output in cell.outputs:
            if output.output_type == 'stream':
                shown[output.name] += output.text
            elif output.output_type == 'error':
                shown['stderr'] += '\n'.join(output.traceback)
        return shown['stdout'], shown['stderr']

    with client.setup_kernel(cwd=str(folder), env=environment):
        run(f'import sys; sys.path.insert(0, {str(PROJECT)!r})')
        yield run


def run_twice(run_cell, script, *arguments):
    """Run a script with %run, twice; return what it printed the second time. Neither may fail."""
    for _ in range(2):
        out, err = run_cell(f'%run {PROJECT / script} {" ".join(arguments)}')
        assert 'error' not in err.lower(), err
        assert 'Traceback' not in err
        assert out
    return out


@pytest.mark.parametrize(
    ('script', 'arguments', 'words'),
    [
        ('sample.py', ['--init_from=folder', '--max_new_tokens=3', CPU], '(3 tokens)'),
        ('sample.py', ['--init_from=folder', '--max_new_tokens=2', '--show_probs=True', CPU], 'a chart of each step'),
        ('eval.py', ['--init_from=folder', '--eval_data=pairs.json', '--save=x', '--resamples=5', CPU], 'saved in'),
        ('prepare_bin.py', ['--input=stories.txt', '--dataset=again', '--tokenizer=char'], 'data/again/train.bin'),
        ('train.py', ['config/small.py', '--max_iters=2', '--overwrite=True', '--out_dir=out-two'], 'sample from it'),
        ('export.py', ['--init_from=folder', '--folder=exported', '--overwrite=True'], 'read back'),
        ('visualize.py', ['temperature', '--init_from=folder', '--plot_dir=pictures', CPU], 'temperature.png'),
    ],
)
def test_a_script_runs_twice(run_cell, script, arguments, words):
    assert words in run_twice(run_cell, script, *arguments)


def test_prepare_bin_with_several_processes_runs_twice_and_from_a_cell(run_cell):
    run_cell(LARGE)
    run_twice(run_cell, 'prepare_bin.py', '--input=large.txt', '--dataset=large', '--tokenizer=char', '--num_workers=2')
    out, err = run_cell(
        'import prepare_bin\n'
        "settings = dict(input='large.txt', dataset='large2', tokenizer='char', num_workers=2)\n"
        'prepare_bin.main(prepare_bin.Settings(**settings))'
    )
    assert 'data/large2/train.bin' in out, err


def test_a_lesson_runs_twice(run_cell):
    for _ in range(2):
        out, err = run_cell(f'%cd -q {PROJECT}\n%run -m lessons.bigram -- --help\n%cd -q -')
        assert '--plot_dir' in out
        assert not err


@pytest.mark.parametrize('line', ['sample.py --temprature=1', 'eval.py --init_from=nowhere/x', 'train.py out=x'])
def test_a_mistake_shows_one_line_and_the_kernel_goes_on(run_cell, line):
    for _ in range(2):
        out, err = run_cell(f'%run {PROJECT}/{line}')
        assert err.startswith('error: ')
        assert err.count('\n') == 1
        assert out == ''
    assert run_cell('print(1 + 1)') == ('2\n', '')


def test_help_shows_no_exit_code(run_cell):
    out, err = run_cell(f'%run {PROJECT}/sample.py --help')
    assert '--temperature' in out
    assert err == ''


def test_a_note_is_printed_each_time(run_cell):
    for _ in range(2):
        err = run_cell(f'%run {PROJECT}/train.py --init_from=nowhere/x')[1]
        assert err.startswith('note: neither a config file')


def test_main_is_called_from_a_cell(run_cell):
    out, _ = run_cell("import sample\nsample.main(sample.Settings(init_from='folder', max_new_tokens=3, device='cpu'))")
    assert '(3 tokens)' in out
    out, err = run_cell('sample.main(sample.Settings(temperature=-1.0))\nprint("not reached")')
    assert (out, err) == ('', 'error: --temperature=-1.0: it must be 0 (greedy) or a positive number')


def test_interrupting_training_saves_and_the_kernel_goes_on(run_cell):
    cell = """
import os, signal, threading
import configurator, train
settings = configurator.read(train.Settings, ['config/small.py', '--max_iters=1000000', '--out_dir=stopped'])
threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()  # what the stop button does
train.main(settings)
print('and on')
"""
    out, _ = run_cell(cell)
    assert 'stopped by SIGINT' in out
    assert '--out_dir=stopped' in out
    assert '--init_from=resume' in out
    assert 'kernel' not in out  # Jupyter's own arguments
    assert out.endswith('and on\n')
    assert run_cell("print(os.path.exists('stopped/last.pt'))") == ('True\n', '')
