"""What eval.py keeps: an interrupted evaluation is resumed, another one is not overwritten."""

import itertools
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from faults.harness import assert_went_well, run
from helpers.evaluation import evaluate, rows_in, write_pairs
from helpers.scripts import PROJECT

from common.errors import UserError
from evaluation import sources
from lm import checkpoint


def test_the_weights_hash_follows_the_weights(here):
    one, again, two = (checkpoint.load_model(name, device='cpu')[0] for name in ('one', 'one', 'two'))
    assert checkpoint.weights_sha256(one) == checkpoint.weights_sha256(again) != checkpoint.weights_sha256(two)
    with torch.no_grad():
        again.transformer.ln_f.bias[0] += 1e-7
    assert checkpoint.weights_sha256(one) != checkpoint.weights_sha256(again)
    assert len(checkpoint.weights_sha256(one.to(torch.bfloat16))) == 64


@pytest.mark.slow
def test_the_same_evaluation_may_be_repeated_and_another_may_not(here, without_pictures):
    settings = {'init_from': 'one', 'eval_data': 'pairs.jsonl', 'save': './kept'}
    evaluate(**settings)
    before = (here / 'kept' / 'pairs.jsonl').read_bytes()
    evaluate(**settings, show=1)
    assert (here / 'kept' / 'pairs.jsonl').read_bytes() == before
    for change in [{'temperature': 0.5}, {'init_from': 'two'}, {'boundary': 'separate'}, {'compare_to': 'two'}]:
        with pytest.raises(UserError, match=r'another .*: choose another --save'):
            evaluate(**{**settings, **change})
        with pytest.raises(UserError, match=f'started with another {"model" if "init_from" in change else ""}'):
            evaluate(**{**settings, **change}, resume_eval=True)
    evaluate(**settings | {'save': './both', 'compare_to': 'two'})
    with pytest.raises(UserError, match='another compare_to'):
        evaluate(**settings | {'save': './both'})
    write_pairs('pairs.jsonl', 91)
    with pytest.raises(UserError, match='another data'):
        evaluate(**settings)
    assert (here / 'kept' / 'pairs.jsonl').read_bytes() == before


def test_a_damaged_summary_is_reported(here, without_pictures):
    evaluate(init_from='one', eval_data='pairs.jsonl', save='./kept')
    (here / 'kept' / 'summary.json').write_text('{"settings": ')
    with pytest.raises(UserError, match='no readable summary'):
        evaluate(init_from='one', eval_data='pairs.jsonl', save='./kept')


def test_files_that_are_not_of_an_evaluation_are_not_overwritten(here):
    (here / 'mine').mkdir()
    for name in ('pairs.jsonl', 'report.md', 'summary.json'):
        (here / 'mine' / name).write_text('{"prompt": "The", "response": " fox"}')
        before = (here / 'mine' / name).read_bytes()
        for resume in (False, True):
            with pytest.raises(UserError, match='no readable summary'):
                evaluate(init_from='one', eval_data='pairs.jsonl', save='./mine', resume_eval=resume)
        assert (here / 'mine' / name).read_bytes() == before
        (here / 'mine' / name).unlink()
    with pytest.raises(UserError, match='no evaluation to resume'):
        evaluate(init_from='one', eval_data='pairs.jsonl', save='./typo', resume_eval=True)
    assert not (here / 'typo').exists()


@pytest.mark.slow
def test_a_text_is_kept_and_resumed_like_pairs(here, monkeypatch, without_pictures):
    (here / 'text.txt').write_text(
        (PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt').read_text()[:9000]
    )
    monkeypatch.setattr(sources, 'WINDOW', 10)
    evaluate(init_from='one', text='text.txt', save='./text')
    rows = rows_in(here / 'text')
    whole = (here / 'text' / 'pairs.jsonl').read_bytes()
    assert sum(row['bytes'] for row in rows) == 9000
    assert ''.join(row['response'] for row in rows) == (here / 'text.txt').read_text()
    (here / 'text' / 'pairs.jsonl').rename(here / 'text' / 'pairs.jsonl.part')
    with open(here / 'text' / 'pairs.jsonl.part', 'r+b') as file:
        file.truncate(len(whole) // 2)
    evaluate(init_from='one', text='text.txt', save='./text', resume_eval=True)
    assert (here / 'text' / 'pairs.jsonl').read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize('places', ['some', pytest.param('many', marks=pytest.mark.slow)])
def test_resume_from_any_byte(here, monkeypatch, without_pictures, places):
    """Cut anywhere, in a line or between two, the file comes back the same to the last byte."""
    monkeypatch.setattr(sources, 'WINDOW', 16)
    settings = {'init_from': 'one', 'compare_to': 'two', 'eval_data': 'pairs.jsonl', 'save': './cut', 'show': 0}
    _, summary = evaluate(**settings)
    finished, part = here / 'cut' / 'pairs.jsonl', here / 'cut' / 'pairs.jsonl.part'
    whole = finished.read_bytes()
    rng = random.Random(3)
    lines = list(itertools.accumulate(len(line) for line in whole.splitlines(keepends=True)))
    sizes = [lines[15] - 1, lines[16]]
    if places == 'many':
        sizes = [0, 1, lines[15], len(whole), *(rng.randrange(len(whole)) for _ in range(4))]
    for size in sizes:
        finished.unlink()
        part.write_bytes(whole[:size])
        with pytest.raises(UserError, match='--resume_eval=True'):
            evaluate(**settings)
        _, again = evaluate(**settings, resume_eval=True)
        assert finished.read_bytes() == whole
        assert not part.exists()
        for key in ('measures', 'calibration', 'comparison', 'multiple_choice', 'rows', 'logprob'):
            assert again[key] == summary[key]


@pytest.mark.slow
def test_killed_at_a_random_moment_and_resumed_ten_times(here):
    """With SIGKILL, as in a power cut: the final file is that of an uninterrupted evaluation."""
    write_pairs('many.jsonl', 2000)
    arguments = ['--init_from=one', '--device=cpu', '--eval_data=many.jsonl', '--show=0']
    whole = run('eval.py', *arguments, '--save=./whole', cwd=here)
    assert_went_well(whole)
    rng = random.Random(4)
    part = here / 'killed' / 'pairs.jsonl.part'
    kills, kept, finished = 0, [], 0
    while kills < 10:
        resume = ['--resume_eval=True'] if part.parent.exists() and any(part.parent.glob('pairs.jsonl*')) else []
        seconds = rng.uniform(0.1, 0.9) * whole.seconds
        outcome = run('eval.py', *arguments, '--save=./killed', *resume, cwd=here, seconds=seconds)
        if outcome.killed_for == 'time':  # by SIGKILL
            kills += 1
            kept.append(part.read_bytes().count(b'\n') if part.exists() else 0)
        else:
            assert_went_well(outcome)
            part.parent.rename(here / f'finished{finished}')  # it was not killed: start over
            finished += 1
    resume = ['--resume_eval=True'] if part.exists() or (part.parent / 'pairs.jsonl').exists() else []
    assert_went_well(run('eval.py', *arguments, '--save=./killed', *resume, cwd=here))
    assert (here / 'killed' / 'pairs.jsonl').read_bytes() == (here / 'whole' / 'pairs.jsonl').read_bytes()
    assert max(kept) > 0  # some were killed while rows were being written


@pytest.mark.slow
def test_control_c_says_how_to_resume(here):
    write_pairs('many.jsonl', 6000)
    command = [sys.executable, str(PROJECT / 'eval.py'), '--init_from=one', '--device=cpu', '--eval_data=many.jsonl']
    part = here / 'results' / 'many' / 'pairs.jsonl.part'
    process = subprocess.Popen([*command, '--save=many'], cwd=here, stderr=subprocess.PIPE, text=True)
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        'resume with: python eval.py --init_from=one --device=cpu --eval_data=many.jsonl --save=many --resume_eval=True'
        in stderr
    )
    assert 'Traceback' not in stderr
