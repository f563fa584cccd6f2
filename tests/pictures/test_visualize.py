"""visualize.py as a person calls it: it draws every picture and reports every mistake."""

import re
import subprocess
import sys

import pytest
from helpers.pictures import TEN, assert_picture, call, refused
from helpers.scripts import PROJECT, assert_friendly_error, run_script

from visualize import PICTURES


@pytest.mark.slow
@pytest.mark.parametrize(
    'picture', [pytest.param(name, marks=[] if name == 'attention' else pytest.mark.slow) for name in PICTURES]
)
def test_every_picture_is_drawn_without_any_settings(picture, tmp_path):
    process = run_script('visualize.py', picture, cwd=tmp_path, env={'DISPLAY': '', 'MPLBACKEND': 'TkAgg'}, fresh=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ''
    assert 'tiny-stories' in process.stdout
    paths = re.findall(r'^\w+: (results/\S+\.png)$', process.stdout, re.MULTILINE)
    assert len(paths) == (2 if picture == 'attention' else 1)
    for path in paths:
        assert_picture(tmp_path / path)
    assert sorted(tmp_path.rglob('*.png')) == sorted(tmp_path / path for path in paths)


def test_help_lists_the_five(here, capsys):
    call('--help')
    out = capsys.readouterr().out
    for picture in PICTURES:
        (line,) = [line for line in out.splitlines() if line.startswith(f'  {picture} ')]
        assert len(line) > 40


@pytest.mark.slow
def test_help_of_one_picture_lists_its_settings(tmp_path):
    process = run_script('visualize.py', 'attention', '--help', cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert 'visualize.py attention' in process.stdout
    for setting in ('--layer', '--head', '--start', '--save', '--init_from'):
        assert setting in process.stdout
    assert '--temperatures' not in process.stdout


def test_a_picture_is_named_in_any_case(here, capsys):
    call('LAYERS', f'--start={TEN}', '--save=layers.PNG')
    assert_picture(here / 'layers.PNG')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], ['name a picture', *PICTURES]),
        (['attention', '--layer=4'], ['--layer=4', 'layers 0 to 3']),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_on_stderr(arguments, words, tmp_path):
    assert_friendly_error(run_script('visualize.py', *arguments, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['zzzzzz'], ['zzzzzz', *PICTURES]),
        (['atention'], ["'atention'", 'did you mean attention']),
        (['--start=The king'], ['name a picture', *PICTURES]),
        (['attention', '--layer=-1'], ['--layer=-1', '0 to 3']),
        (['attention', '--head=4'], ['--head=4', 'heads 0 to 3']),
        (['attention', '--haed=4'], ['--haed', 'did you mean head']),
        (['trace', '--layer=99'], ['--layer=99', '0 to 3']),
        (['layers', '--start=' + 'king ' * 2000], ['2,00', 'at most 256']),
        (['layers', '--start=FILE:missing.txt'], ['missing.txt']),
        (['layers', '--save=picture.jpg'], ['picture.jpg', '.png']),
        (['layers', '--save=.png'], ['--save=.png', 'name that ends in .png']),
        (['temperature', '--temperatures=0.5,hot'], ["'hot'"]),
        (['temperature', '--temperatures='], ["''"]),
        (['temperature', '--temperatures=1,-2'], ['-2']),
        (['temperature', '--temperatures=1,nan'], ['nan']),
        (['temperature', '--temperatures=1,2,3,4,5,6,7,8,9'], ['at most 8']),
        (['temperature', '--temperatures=1,2e30'], ['2e30', '1e+30']),
        (['temperature', '--top_k=0'], ['--top_k=0']),
        (['temperature', '--top_p=1.5'], ['--top_p=1.5']),
        (['embeddings', '--words=king,unicorn,dog,zyzzyva'], ['unicorn (', 'zyzzyva (', '·']),
        (['embeddings', '--words=king,king, king'], ['three']),
        (['embeddings', '--words='], ['three']),
        (['embeddings', '--method=lda'], ['lda', 'pca, tsne or umap']),
        (['embeddings', '--neighbours=0'], ['--neighbours=0']),
        (['embeddings', '--grey=21'], ['--grey=21', '0 to 20']),
        (['embeddings', '--grey=-1'], ['--grey=-1', '0 to 20']),
        (['embeddings', '--method=tsne', '--seed=-1'], ['--seed=-1', '4294967295']),
        (['embeddings', '--method=umap', '--seed=4294967296'], ['--seed=4294967296', '4294967295']),
        (['embeddings', '--init_from=no-such-folder/at/all'], ['no-such-folder']),
    ],
    ids=lambda value: ' '.join(value)[:40],
)
def test_a_mistake_is_reported_before_anything_is_written(arguments, words, here):
    message = refused(*arguments)
    for word in words:
        assert word in message, message
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_only_the_chosen_picture_is_imported_and_no_script_waits_for_matplotlib():
    code = """
import sys, sample, eval, train, visualize
print('matplotlib' in sys.modules)
visualize.load_picture('layers')
print(*sorted(set(sys.modules) & {f'pictures.{name}' for name in visualize.PICTURES}))
"""
    out = subprocess.run([sys.executable, '-c', code], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ['False', 'pictures.layers']
