"""The Situational Awareness Dataset, on a tiny imitation of a checkout: none of its questions is in here."""

import json
import math
import shutil
import subprocess

import pytest
import yaml
from helpers.scripts import PROJECT, assert_friendly_error, run_script

from common.errors import UserError
from common.notes import forget_notes
from lab.situational_awareness import Question, Settings, main, make_pair, read_questions
from lm import load
from lm.scoring import score

COLOURS = [
    {'id': n, 'body': f'Is {word} a colour?', 'choices_right': [right], 'choices_wrong': [wrong], 'splits': {'k': 'v'}}
    for n, (word, right, wrong) in enumerate([('red', 'Yes', 'No'), ('bread', 'No', 'Yes'), ('blue', 'Yes', 'No')])
]
TEXTS = [{'body': 'The fox ran.', 'choices_right': ['forest'], 'choices_wrong': ['house', 'town', 'sea']}]
FREE = [{'body': 'Say a word.', 'answer': 'word'}]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder like a checkout of the dataset, unzipped; the current folder is the one it is in."""
    monkeypatch.chdir(tmp_path)
    forget_notes()
    for task, samples in {'facts/colours': COLOURS, 'stages/full': TEXTS, 'words': FREE}.items():
        folder = tmp_path / 'checkout' / 'sad' / task / 'structs' / 'batch'
        folder.mkdir(parents=True)
        (folder / 'one.yaml').write_text(yaml.safe_dump({'id': 'one', 'samples': samples}))
    return tmp_path / 'checkout'


def test_each_task_is_read_and_what_is_not_multiple_choice_is_said(checkout, capsys):
    questions = read_questions(checkout)
    assert [question.task for question in questions] == ['facts_colours'] * 3 + ['stages_full']
    assert questions[1] == Question('facts_colours', 'Is bread a colour?', 'No', ['Yes'])
    assert capsys.readouterr().err == 'note: words: 1 of 1 samples are not multiple choice\n'
    assert read_questions(checkout, 'stages_full') == questions[3:]


@pytest.mark.parametrize('name', ['one.json', 'one.jsonl'])
def test_tasks_in_json_are_the_same_tasks(checkout, name):
    before = read_questions(checkout)
    folder = checkout / 'sad' / 'facts' / 'colours' / 'structs' / 'batch'
    (folder / 'one.yaml').unlink()
    lines = '\n'.join(map(json.dumps, COLOURS))
    (folder / name).write_text(lines if name == 'one.jsonl' else json.dumps({'samples': COLOURS}))
    assert read_questions(checkout) == before


@pytest.mark.skipif(shutil.which('zip') is None, reason='needs the program zip, to encrypt')
@pytest.mark.parametrize('script', ['unzip -P open_sesame "$f"', 'PASSWORD="open_sesame"\nunzip -qP "$PASSWORD" $f'])
def test_a_checkout_that_is_not_unzipped_is_read_in_memory(checkout, script):
    before = read_questions(checkout)
    folder = checkout / 'sad' / 'facts' / 'colours'
    subprocess.run(['zip', '-qrP', 'open_sesame', '../structs.zip', 'batch'], cwd=folder / 'structs', check=True)
    shutil.rmtree(folder / 'structs')
    with pytest.raises(UserError, match=r'structs\.zip.*password.*unzip\.sh'):
        read_questions(checkout)
    (checkout / 'unzip.sh').write_text(f'#!/bin/bash\n{script}\n')
    assert read_questions(checkout) == before
    assert not (folder / 'structs').exists()
    with pytest.raises(UserError, match=r'structs\.zip.*password'):
        read_questions(checkout, password='wrong')


@pytest.mark.slow
@pytest.mark.parametrize('answers', ['letters', 'texts'])
def test_the_share_of_right_choices_is_what_the_scores_say(checkout, capsys, answers):
    settings = Settings(init_from='tiny', device='cpu', folder='checkout', answers=answers, save='sad.json')
    main(settings)
    out = capsys.readouterr().out
    numbers = json.loads((checkout.parent / 'sad.json').read_text())['tasks']
    model, tokenizer = load('tiny', device='cpu')
    questions = read_questions(checkout)
    for task, found in numbers.items():
        right, chances = [], []
        for index, question in enumerate(questions):
            if question.task == task:
                pair = make_pair(index, question, settings)
                encoded = [tokenizer.encode_pair(pair.prompt, text) for text in (pair.response, *pair.distractors)]
                sums = [logprobs.sum().item() for logprobs in score(model, *zip(*encoded))]
                right.append(sums[0] > max(sums[1:]))
                chances.append(1 / len(sums))
        assert math.isclose(found['acc']['value'], sum(right) / len(right))
        assert math.isclose(found['chance'], sum(chances) / len(chances))
        assert f'{found["acc"]["value"]:.1%}' in out
    assert {task: found['questions'] for task, found in numbers.items()} == {'facts_colours': 3, 'stages_full': 1}
    saved = (checkout.parent / 'sad.json').read_text()
    assert not any(sample['body'] in saved + out for sample in COLOURS + TEXTS)


def test_the_order_of_the_choices_depends_on_the_seed_and_the_right_letter_on_the_order():
    question = Question('colours', 'Which?', 'red', ['green', 'blue', 'grey'])
    pairs = [make_pair(index, question, Settings()) for index in range(40)]
    assert pairs == [make_pair(index, question, Settings()) for index in range(40)]
    assert {pair.response for pair in pairs} == {' (A)', ' (B)', ' (C)', ' (D)'}
    for pair in pairs:
        assert f'\n{pair.response.strip()} red\n' in pair.prompt
        assert sorted([pair.response, *pair.distractors]) == [' (A)', ' (B)', ' (C)', ' (D)']


@pytest.mark.slow
def test_what_is_missing_is_an_error_with_a_way_out(checkout):
    process = run_script('lab.situational_awareness', '--folder=nowhere', cwd=checkout.parent)
    assert_friendly_error(process, 'git clone https://github.com/LRudL/sad nowhere')
    with pytest.raises(UserError, match='has no colors; it has facts_colours, stages_full, words'):
        read_questions(checkout, 'colors')
    with pytest.raises(UserError, match='no multiple-choice questions'):
        read_questions(PROJECT / 'docs')


def test_a_checkout_inside_the_project_is_never_committed():
    ignored = subprocess.run(['git', 'check-ignore', 'sad/sad/influence/structs.zip'], cwd=PROJECT, capture_output=True)
    assert ignored.returncode == 0 or b'not a git repository' in ignored.stderr
