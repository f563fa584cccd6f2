"""lessons/check_generate.py: right designs pass, wrong ones are told apart, and nothing of theirs runs here."""

import contextlib
import sys
import time

import pytest
from helpers.models import random_gpt
from helpers.scripts import assert_friendly_error, run_script
from helpers.student_models import LOOP, NETWORK, RIGHT, TWO, WRONG, loop

from common.errors import UserError
from lessons import check_generate, generate_runner
from lessons.check_generate import Settings, check, find_model, main
from lm.checkpoint import load_model


@pytest.fixture
def hand_in(tmp_path):
    """A function that writes a model.py into a folder and returns the folder."""

    def write(source):
        (tmp_path / 'model.py').write_text(source, encoding='utf-8')
        return tmp_path

    return write


@pytest.fixture
def check_here(hand_in, monkeypatch):
    """A function that checks a model.py with a small model in the test's own process: ten times as fast."""

    def run_here(path, task, time_limit, memory_limit):
        records = []
        monkeypatch.setattr(sys, 'argv', ['generate_runner.py'])
        monkeypatch.setenv('TORCH_COMPILE_DISABLE', '1')
        with contextlib.chdir(path.parent):
            try:
                generate_runner.run_task(str(path), task, records.append)
                records.append({'doing': 'done'})
            except Exception as error:
                records.append({'error': generate_runner.describe_error(error, str(path))})
        return records, None

    model = random_gpt(vocab_size=8192, block_size=128, gelu='none')
    tokenizer = load_model('tiny-stories', device='cpu')[1]
    monkeypatch.setattr(check_generate, 'load_model', lambda *_, **__: (model, tokenizer, None))
    monkeypatch.setattr(check_generate, 'run_student', run_here)
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    monkeypatch.setitem(sys.modules, 'model', sys.modules['model'])  # theirs takes its place, for a while
    return lambda source: check(find_model(hand_in(source)))


WITH_NOTES = 'top-k applies to what is fixed', 'one pass, a logprob'  # right, with something to ask about


def as_slow(designs, fast):
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in designs]


@pytest.mark.parametrize('name', as_slow(RIGHT, fast=('the usual loop',)))
def test_a_right_generate_passes_however_it_is_written(check_here, name):
    findings = check_here(RIGHT[name])
    assert findings.wrong == []
    assert len(findings.rows) == 12
    assert {mark for *_, mark in findings.rows} == ({'✓', '–'} if name in WITH_NOTES else {'✓'})


@pytest.mark.parametrize('name', as_slow(WRONG, fast=('the raw softmax',)))
def test_a_wrong_generate_is_told_what_to_look_at(check_here, name):
    source, words = WRONG[name]
    (sentence,) = check_here(source).wrong
    assert words in sentence


@pytest.mark.slow
@pytest.mark.parametrize('name', TWO)
def test_two_mistakes_at_once_are_both_told(check_here, name):
    source, words = TWO[name]
    wrong = check_here(source).wrong
    assert len(wrong) == 2
    assert all(any(word in sentence for sentence in wrong) for word in words), wrong


@pytest.mark.slow
def test_a_model_that_computes_something_else_is_not_blamed_on_generate(check_here):
    (sentence,) = check_here(loop().replace('F.gelu(', 'F.relu(')).wrong
    assert 'computes other logits' in sentence
    with pytest.raises(UserError, match=r"does not have nanoGPT's parameters.*wte"):
        check_here(loop().replace("'wte'", "'tokens'").replace('transformer.wte', 'transformer.tokens'))


# In a process of its own ----------------------------------------------------------------------------------------------


def command(folder, *settings):
    return run_script('lessons.check_generate', folder, *settings, cwd=folder)


@pytest.mark.slow
def test_a_teacher_runs_it_on_a_folder_and_their_prints_do_not_show(hand_in):
    """Also a student who prints a gigabyte has a right generate, and what it imports lies beside it."""
    noisy = loop(update='result *= p; print("x" * 10**6)').replace('import math', 'import math, helpers')
    folder = hand_in(noisy)
    (folder / 'helpers.py').write_text('')  # not the helpers of these tests
    process = command(folder)
    assert process.returncode == 0, process.stdout + process.stderr
    assert 'nothing is wrong' in ' '.join(process.stdout.split()) and 'xxx' not in process.stdout
    assert 'temperature 0.5' in process.stdout and process.stderr == ''
    assert sorted(path.name for path in folder.iterdir()) == ['helpers.py', 'model.py']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('update', 'words'),
    [
        ('while temperature == 2.0: pass', ('was stopped after', "' a red shoe.', temperature 2")),
        ('import os; os._exit(3)', ('exit code 3',)),
        ('import sys; sys.exit()', ('SystemExit',)),
        ('x = torch.ones(10**12)', ('RuntimeError', 'line')),
    ],
    ids=['hangs', 'ends the process', 'sys.exit', 'takes all memory'],
)
def test_a_generate_that_hangs_or_crashes_is_stopped_and_reported(hand_in, update, words):
    begun = time.monotonic()
    findings = check(find_model(hand_in(loop(update=update))), time_limit=12)
    assert time.monotonic() - begun < 30
    assert len(findings.wrong) == 1
    assert all(word in findings.wrong[0] for word in words), findings.wrong


@pytest.mark.slow
def test_a_file_that_does_not_end_after_all_calls_is_right(hand_in):
    waiting = 'import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n'
    assert check(find_model(hand_in(waiting + loop())), time_limit=50).wrong == []


@pytest.mark.slow
def test_the_exit_code_is_1_if_something_is_wrong(check_here, hand_in, capsys):
    check_here(WRONG['a sum'][0])
    with pytest.raises(SystemExit) as ended:
        main(str(hand_in(WRONG['a sum'][0])), Settings())
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert 'are added' in out and '1 to look at' in out


# What cannot be checked -----------------------------------------------------------------------------------------------


def test_a_folder_without_a_model_is_a_friendly_error(tmp_path):
    with pytest.raises(UserError, match=r'has no model\.py'):
        find_model(str(tmp_path))
    with pytest.raises(UserError, match=r'neither a folder nor'):
        find_model(str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match=r'name their folder'):
        main(None, Settings())
    (tmp_path / 'nanoGPT').mkdir()
    (tmp_path / 'nanoGPT' / 'model.py').write_text('')
    with pytest.raises(UserError, match=r'did you mean .*nanoGPT'):
        find_model(str(tmp_path))


@pytest.mark.slow
def test_a_broken_file_is_one_line(hand_in):
    assert_friendly_error(
        command(hand_in('import no_such_library\n')), 'while model.py was imported', 'no_such_library'
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ('def generate(:', 'SyntaxError'),
        ('x = 1', 'no GPT and no GPTConfig'),
        (NETWORK, 'has no generate'),
    ],
)
def test_a_file_that_cannot_be_checked_says_why(check_here, source, words):
    with pytest.raises(UserError, match=words):
        check_here(source)


def test_the_designs_differ_from_the_usual_one():
    assert '{' not in loop().replace(NETWORK, '').replace('{}', '')
    assert len({*RIGHT.values(), *(source for source, _ in [*WRONG.values(), *TWO.values()])}) == len(
        [*RIGHT, *WRONG, *TWO]
    )
    assert LOOP.count('{') == LOOP.count('}')
