"""lessons/arithmetic.py: problems and answers are right, players get their known scores, the table is true."""

import ast
import csv
import itertools
import json
import os
import random
import re
import subprocess
import sys

import pytest
import torch
from helpers.lessons import here_and_as_command, run_in_folder
from helpers.models import random_gpt
from helpers.problems import sample_problems
from helpers.scripts import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from scipy.stats import binomtest

import configurator
import lm
from common.errors import UserError
from lessons import arithmetic, players
from lessons.arithmetic import Settings, evaluate_arithmetic
from lessons.chat import Reply
from lessons.players import (
    EXAMPLES,
    Answer,
    answer_as_oracle,
    answer_at_random,
    answer_without_problem,
    find_answer,
    make_choosing_player,
    make_writing_player,
    show_another_problem,
)
from lessons.problems import calculate, find_slips, sample_expression, sample_problem
from lessons.scores import count_right, wilson_interval
from lm.scoring import score_pairs
from lm.tokenizer import CharTokenizer

# Problems -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 6), st.integers(0, 6), st.integers())
@settings(max_examples=200, deadline=None)
def test_a_problem_has_the_requested_depth_and_length_and_python_agrees_on_its_answer(depth, more, seed):
    length = depth + 2 + more
    problem = sample_problem(depth, length, 4, random.Random(seed))
    tree = ast.parse(problem.text, mode='eval')
    numbers = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert len(numbers) == length == problem.length
    assert all(1 <= number <= 9 for number in numbers)
    depths = list(itertools.accumulate({'(': 1, ')': -1}.get(char, 0) for char in problem.text))
    assert max(depths) == depth == problem.depth and depths[-1] == 0
    assert eval(compile(tree, 'problem', 'eval')) == problem.right


@pytest.mark.parametrize('choices', [2, 4, 10])
def test_choices_are_the_right_answer_once_and_different_wrong_answers(choices):
    for problem in sample_problems(each=10, n_choices=choices):
        assert len(set(problem.choices)) == choices
        assert problem.choices.count(problem.right) == 1
        assert problem.right not in problem.slips
        assert set(problem.choices) - {problem.right} <= set(problem.slips)


def test_slips_match_their_names():
    # (answer, slip) by hand for 2 + 3 * (8 - 1), which is 23.
    slips = find_slips('2 + 3 * (8 - 1)', 23)
    found = {}
    for answer, slip in slips:
        found.setdefault(slip, set()).add(answer)
    assert found['digits swapped'] == {32}
    assert found['wrong sign'] == {-23}
    assert found['brackets ignored'] == {2 + 3 * 8 - 1}
    assert found['plus before times'] == {(2 + 3) * (8 - 1)}
    assert found['off by one'] == {22, 24}
    assert {2 * 3 * 7, 2 - 21, 2 + 3 + 7, 2 + 3 - 7, 2 + 3 * 9, 2 + 3 * 8} <= found['wrong operator']


def test_the_position_of_the_right_answer_is_uniform():
    problems = sample_problems([(1, 4)], each=2000)
    places = [problem.choices.index(problem.right) for problem in problems]
    for place in range(4):
        assert binomtest(places.count(place), 2000, 0.25).pvalue > 1e-4


def test_all_kinds_of_slips_occur():
    slips = {
        problem.slips[answer] for problem in sample_problems() for answer in problem.choices if answer != problem.right
    }
    assert slips >= {
        'off by one',
        'wrong operator',
        'digits swapped',
        'wrong sign',
        'brackets ignored',
        'plus before times',
    }


@pytest.mark.slow
def test_the_seed_decides_the_problems():
    assert sample_problems(seed=3) == sample_problems(seed=3) != sample_problems(seed=4)
    code = 'import random; from lessons.problems import sample_problem as s; print(s(2, 6, 4, random.Random(1)))'
    runs = {  # with different string hashes
        subprocess.run(
            [sys.executable, '-c', code], cwd=PROJECT, env={**os.environ, 'PYTHONHASHSEED': seed}, capture_output=True
        ).stdout
        for seed in '12'
    }
    assert len(runs) == 1


# The calculator -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(0, 5), st.integers(), st.sampled_from(['//', '%', '/', '**', ' - -']))
@settings(max_examples=200, deadline=None)
def test_the_calculator_agrees_with_python(depth, more, seed, sign):
    rng = random.Random(seed)
    text = sample_expression(depth, depth + 2 + more, rng).replace(' * ', sign, 1)
    try:
        expected = eval(text)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            calculate(text)
    except OverflowError:
        return
    else:
        if isinstance(expected, complex) or abs(expected) > 2**5000:
            return
        assert calculate(f' {text}\n') == expected and type(calculate(text)) is type(expected)


@pytest.mark.parametrize(
    'text',
    [
        "__import__('os').system('true')",
        *(
            '(1).real',
            'abs(-1)',
            '[1][0]',
            'True',
            "'a' * 3",
            '1 if 2 else 3',
            '1 < 2',
            '~1',
            '2 << 3',
            'x',
            '',
            '1; 2',
            '1 +',
        ),
        *('9 ** 9 ** 9', '(9 ** 3000) ** 9', '2.5 ** 1e6', '(-8) ** 0.5', '1j', 'lambda: 1', '(x := 3)', '1 ' * 2000),
    ],
)
def test_the_calculator_accepts_only_arithmetic(text):
    with pytest.raises((ValueError, SyntaxError)):
        calculate(text)


# Scores -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_are_wilsons(counts):
    right, n = counts
    reference = binomtest(right, n).proportion_ci(method='wilson')
    assert wilson_interval(right, n, z=1.959963984540054) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('choices', [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7))])
def test_an_oracle_scores_1_and_a_guesser_scores_chance(choices):
    problems = sample_problems(each=100, n_choices=choices)
    for cell, (right, n) in count_right(answer_as_oracle(problems)).items():
        assert right == n and wilson_interval(right, n)[1] == pytest.approx(1), cell
    scores = count_right(answer_at_random(problems, seed=1))
    low, high = wilson_interval(*scores[None, None])
    assert low <= 1 / choices <= high
    intervals = [wilson_interval(*score) for score in scores.values()]
    outside = [interval for interval in intervals if not interval[0] <= 1 / choices <= interval[1]]
    assert len(outside) <= 0.15 * len(scores)  # 5 % are expected


@pytest.mark.slow
def test_seeing_only_the_answers_scores_above_chance():
    problems = sample_problems(each=100, n_choices=4)
    assert wilson_interval(*count_right(answer_without_problem(problems))[None, None])[0] > 0.35


def test_scores_add_up():
    problems = sample_problems([(0, 2), (0, 3), (1, 3)], each=10)
    answers = [Answer(problem, problem.right if number % 3 else None) for number, problem in enumerate(problems)]
    scores = count_right(answers)
    assert scores[None, None] == (20, 30)
    assert scores[0, None][1] == 20 and scores[None, 3][1] == 20 and scores[1, 3][1] == 10
    assert (1, 2) not in scores
    assert sum(scores[cell][0] for cell in [(0, 2), (0, 3), (1, 3)]) == 20


# Players ------------------------------------------------------------------------------------------------------------

CHARS = CharTokenizer('0123456789+-*()= \n')


def test_a_model_chooses_the_likeliest_answer():
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=96)
    problems = sample_problems(each=2)
    for problem, answer in zip(problems, make_choosing_player(model, CHARS)(problems), strict=True):
        pairs = [
            (CHARS.encode(EXAMPLES + problem.text + ' ='), CHARS.encode(f' {choice}\n')) for choice in problem.choices
        ]
        logprobs = [score.model_logprobs.sum().item() for score in score_pairs(model, pairs)]
        assert answer.problem == problem and answer.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert answer.value == problem.choices[answer.logprobs.index(max(answer.logprobs))]


def test_a_model_that_knows_the_answers_is_right(monkeypatch):
    """Likelihood is what decides: a model whose logits are those of the right answers, played by a fake scorer."""
    problems = sample_problems(each=3)
    rights = {f'{EXAMPLES}{problem.text} =': problem.right for problem in problems}

    class Tokenizer:
        def encode_pair(self, prompt, response):
            return prompt, response

    class Model:
        block_size = 10_000

    class Score:
        def __init__(self, right):
            self.model_logprobs = torch.tensor([-1.0 if right else -2.0])

    def score(model, pairs):
        return (Score(response == f' {rights[prompt]}\n') for prompt, response in pairs)

    monkeypatch.setattr(players, 'score_pairs', score)
    given = list(make_choosing_player(Model(), Tokenizer())(problems))
    assert [answer.value for answer in given] == [problem.right for problem in problems]


def test_problems_longer_than_the_context_are_reported(capsys):
    model, problems = random_gpt(vocab_size=CHARS.vocab_size, block_size=60), sample_problems([(0, 2), (4, 8)], each=2)
    assert len(list(make_choosing_player(model, CHARS)(problems))) == 4
    # The examples have 47 characters, a problem of 8 numbers at least 8 + 7 * 3 and its brackets.
    err = capsys.readouterr().err
    assert re.search(r'note: \d+ of 16 problems with an answer do not fit into the context of 60 tokens', err)


def test_a_model_that_computes_nan_is_an_error():
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=96)
    model.transformer.ln_f.weight.data.fill_(float('nan'))
    with pytest.raises(FloatingPointError, match='not finite'):
        list(make_choosing_player(model, CHARS)(sample_problems([(0, 2)], each=1)))


def test_another_problem_has_the_same_depth_and_length_and_other_choices():
    problems = sample_problems(each=5)
    shown = show_another_problem(problems)
    assert sorted(each.text for each in shown) == sorted(each.text for each in problems)
    by_text = {problem.text: problem for problem in problems}
    for problem in shown:
        assert (by_text[problem.text].depth, by_text[problem.text].length) == (problem.depth, problem.length)
    assert sum(calculate(problem.text) != problem.right for problem in shown) > 0.9 * len(shown)


class FakeChat:
    """A chat model that knows arithmetic and likes to talk."""

    model = 'fake'

    def __init__(self, style):
        self.style = style

    def add_question(self, text):
        problem = re.match(r'Work out (.*)\. The last', text)[1]
        self.answer = self.style.format(calculate(problem))

    def get_reply(self):
        return Reply(self.answer, [])


@pytest.mark.parametrize('style', ['{}', 'First 3 + 4.\n\n**{}**', '{}.', '{}.0', '{:,}', '= {}\n', r'\boxed{{{}}}'])
def test_the_last_number_that_a_chat_model_writes_is_its_answer(style):
    problems = sample_problems([(0, 2), (2, 8)], each=20)
    answers = list(make_writing_player(lambda: FakeChat(style))(problems))
    assert count_right(answers)[None, None] == (40, 40)


@pytest.mark.parametrize(
    ('reply', 'answer'),
    [
        ('3 - 8 = −5', -5),
        ('12\u202f345', 12345),
        ('It is 1{,}234{,}567.', 1234567),
        ('$-1\\,234$', -1234),
        ('1,234.5', 1234.5),
        ('between 3,4', 4),
        (str(9**20), float(9**20)),
        ('I do not know.', None),
        ('minus five', None),
        ('', None),
    ],
)
def test_numbers_are_found_as_people_write_them(reply, answer):
    assert find_answer(reply) == answer


# The table ----------------------------------------------------------------------------------------------------------


def test_a_researcher_calls_it_with_a_model_of_theirs(tmp_path):
    """Depth to 10: a cell for each depth and length, and those that no brackets fit into are empty, not zero."""
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=160, n_layer=1)
    table = evaluate_arithmetic(model, CHARS, problems=1, choices=2, plot_dir=str(tmp_path))
    assert [(row['depth'], row['length']) for row in table] == [(d, n) for d in range(11) for n in range(2, 13)]
    for row in table:
        assert row['possible'] == (row['length'] >= row['depth'] + 2) == (row['problems'] == 1)
        assert (row['share'] is None) == (not row['possible']) == (row['low'] is None)
        assert row['chance'] == 0.5
    assert sum(row['right'] for row in table) == sum(answer.value == answer.problem.right for answer in table.answers)
    assert table.players['the model'] == (sum(row['right'] for row in table), 66)
    assert next(iter(table.players)) == 'an oracle' and table.players['an oracle'] == (66, 66)
    assert 'the model, shown another problem' in table.players

    with open(tmp_path / 'arithmetic-the-model.csv', encoding='utf-8', newline='') as file:
        written = list(csv.DictReader(file))
    as_text = [{name: '' if value is None else str(value) for name, value in row.items()} for row in table]
    assert written == as_text
    contents = json.loads((tmp_path / 'arithmetic-the-model.json').read_text(encoding='utf-8'))
    assert contents['cells'] == table and contents['stopped'] is None
    assert sum(row['problems'] for row in contents['depths'].values()) == 66
    records = (tmp_path / 'arithmetic-the-model-answers.jsonl').read_text(encoding='utf-8').splitlines()
    for record, answer in zip(map(json.loads, records), table.answers, strict=True):
        assert record['answer'] == record['choices'][record['logprobs'].index(max(record['logprobs']))]
        assert calculate(record['problem']) == record['right'] == answer.problem.right
    assert imread(tmp_path / 'arithmetic-the-model.png').ndim == 3


def test_a_player_of_ones_own_gets_its_score_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def add_only(problems):
        for problem in problems:
            yield Answer(problem, problem.right if set(problem.text) & set('-*') == set() else None)

    table = evaluate_arithmetic(add_only, depth=1, length=3, problems=30, seed=5)
    by_cell = {(row['depth'], row['length']): row for row in table}
    texts = [each.problem.text for each in table.answers if each.problem.length == 2]
    assert by_cell[0, 2]['right'] == sum('+' in text for text in texts) == 30 - by_cell[0, 2]['no_answer']
    expected = binomtest(by_cell[0, 2]['right'], 30).proportion_ci(method='wilson')
    assert (by_cell[0, 2]['low'], by_cell[0, 2]['high']) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert by_cell[1, 2]['share'] is None and by_cell[1, 2]['right'] == 0 and not by_cell[1, 2]['possible']
    assert table.players['add_only'] == (sum(row['right'] for row in table), 90)
    shown = repr(table).splitlines()
    row = next(line for line in shown if line.startswith('│ 1 '))
    assert re.fullmatch(r'│ 1 +│ +│ \d+ +│ \d+ +│', row)  # the impossible cell is empty
    assert 'empty: too few numbers for brackets this deep' in ' '.join(repr(table).split())
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_a_model_answered(tmp_path, capsys):
    def slow(problems):
        yield from answer_as_oracle(problems[:7])
        raise KeyboardInterrupt

    table = evaluate_arithmetic(slow, depth=2, length=4, problems=3, plot_dir=str(tmp_path))
    assert len(table.answers) == 7 and table.players['slow'] == (7, 7)
    assert sorted(row['problems'] for row in table) == [0, 0, 0, 1, 1, 1, 1, 1, 2]  # the cells take turns
    assert 'note: stopped after 7 of 18 problems' in capsys.readouterr().err
    assert json.loads((tmp_path / 'arithmetic-slow.json').read_text(encoding='utf-8'))['stopped'] == 'KeyboardInterrupt'

    def at_once(problems):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_arithmetic(at_once, depth=0)


def test_brackets_that_cannot_be_so_deep_are_said(capsys):
    table = evaluate_arithmetic(answer_as_oracle, depth=3, length=3, problems=1)
    assert [row['possible'] for row in table] == [True, True, False, True, False, False, False, False]
    assert 'at most 1 deep among 3 numbers: for --depth=3, --length must be at least 5' in capsys.readouterr().err


# The lesson ---------------------------------------------------------------------------------------------------------


@here_and_as_command
def test_the_lesson_prints_and_draws(as_command, tmp_path, capsys):
    arguments = ['--problems=2', '--length=4', '--depth=1', f'--plot_dir={tmp_path}']
    out, err = run_in_folder('arithmetic', *arguments, as_command=as_command, folder=tmp_path, capsys=capsys)
    assert err == ''
    assert re.search(r'an oracle +100.0 % \[', out)
    assert 'tiny-stories, shown another problem' in out
    assert max(map(len, out.splitlines())) <= 120
    assert imread(tmp_path / 'arithmetic.png').ndim == 3


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--depth=11'], ['--depth=11', '0 to 10']),
        (['--length=1'], ['--length=1', '2 to 20']),
        (['--calculator=True'], ['--calculator=True', 'add --provider']),
        (['--base_url=http://localhost:8000/v1'], ['--base_url', 'add --provider=openai']),
        (['--provider=openai', '--init_from=tiny'], ['--init_from=tiny', 'not for --provider=openai']),
        (['--choices=1'], ['--choices=1', '2 to 10']),
        (['--problems=0'], ['--problems=0']),
        (['--provider=somebody'], ['--provider=somebody', 'openai', 'anthropic']),
        (['--provider=openai'], ['OPENAI_API_KEY']),
    ],
)
def test_invalid_settings_are_reported(tmp_path, monkeypatch, arguments, words):
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    with pytest.raises(UserError) as error:
        arithmetic.main(configurator.read(Settings, [*arguments, f'--plot_dir={tmp_path}']))
    assert all(word in str(error.value) for word in words)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_tokenizer_and_two_models_at_once_are_errors():
    with pytest.raises(UserError, match='tokenizer'):
        evaluate_arithmetic(random_gpt())
    with pytest.raises(UserError, match='not both'):
        evaluate_arithmetic(answer_as_oracle, init_from='tiny')
    with pytest.raises(UserError, match='nowhere'):
        evaluate_arithmetic('./nowhere')


def test_the_numbers_of_the_page_are_those_of_the_shipped_files():
    """README.md's section 7, arithmetic.json, and the model: a few of its answers are computed again here."""
    folder = PROJECT / 'results' / 'lessons'
    contents = json.loads((folder / 'arithmetic.json').read_text(encoding='utf-8'))
    page = (PROJECT / 'lessons' / 'README.md').read_text(encoding='utf-8').split('\n## 7.')[1].split('\n## ')[0]
    page = ' '.join(page.split())
    shares = {name: f'{100 * score["share"]:.1f} %' for name, score in contents['players'].items()}
    for name in ('a player who sees only the answers', 'tiny-stories', 'tiny-stories, shown another problem'):
        assert shares[name] in page, name
    assert shares['an oracle'] == '100.0 %' and 'An oracle gets 100 %' in page
    guesser = contents['players']['a guesser']
    assert guesser['low'] < 0.25 < guesser['high']
    assert f'{contents["players"]["tiny-stories"]["problems"]} problems' in page
    assert contents['settings'] == vars(Settings(problems=contents['settings']['problems']))
    assert contents['players']['tiny-stories']['high'] < 0.25  # 'less than chance'
    with open(folder / 'arithmetic.csv', encoding='utf-8', newline='') as file:
        assert [int(row['right']) for row in csv.DictReader(file)] == [row['right'] for row in contents['cells']]


@pytest.mark.slow
def test_the_shipped_scores_are_those_of_the_model():
    """The deepest cells of arithmetic.json, computed again."""
    contents = json.loads((PROJECT / 'results' / 'lessons' / 'arithmetic.json').read_text(encoding='utf-8'))
    given = {**contents['settings'], 'plot_dir': None}
    problems = arithmetic.sample_problems(*(given[name] for name in ('depth', 'length', 'problems', 'choices', 'seed')))
    deepest = [problem for problem in problems if problem.depth >= 9]
    scores = count_right(make_choosing_player(*lm.load('tiny-stories'))(deepest))
    cells = {(row['depth'], row['length']): row['right'] for row in contents['cells'] if row['depth'] >= 9}
    for cell, (right, _) in scores.items():
        if None not in cell:
            assert abs(cells[cell] - right) <= 1, cell  # a near tie may fall the other way elsewhere
