"""lessons/arithmetic.py: problems and answers are right, players get their known scores, intervals are Wilson's."""

import ast
import itertools
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
from common.errors import UserError
from lessons import arithmetic
from lessons.arithmetic import (
    Settings,
    answer_as_oracle,
    answer_at_random,
    answer_without_problem,
    count_right,
    make_choosing_player,
    make_writing_player,
    wilson_interval,
)
from lessons.chat import Reply
from lessons.problems import calculate, find_slips, sample_expression, sample_problem
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


@pytest.mark.parametrize('choices', [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7))])
def test_an_oracle_scores_1_and_a_guesser_scores_chance(choices):
    problems = sample_problems(each=100, n_choices=choices)
    for cell, (right, n) in count_right(problems, answer_as_oracle(problems)).items():
        assert right == n and wilson_interval(right, n)[1] == pytest.approx(1), cell
    scores = count_right(problems, answer_at_random(problems, seed=1))
    low, high = wilson_interval(*scores[None, None])
    assert low <= 1 / choices <= high
    intervals = [wilson_interval(*score) for score in scores.values()]
    outside = [interval for interval in intervals if not interval[0] <= 1 / choices <= interval[1]]
    assert len(outside) <= 0.15 * len(scores)  # 5 % are expected


def test_seeing_only_the_answers_scores_above_chance():
    problems = sample_problems(each=100, n_choices=4)
    assert wilson_interval(*count_right(problems, answer_without_problem(problems))[None, None])[0] > 0.35


def test_scores_add_up():
    problems = sample_problems([(0, 2), (0, 3), (1, 3)], each=10)
    answers = [problem.right if number % 3 else None for number, problem in enumerate(problems)]
    scores = count_right(problems, answers)
    assert scores[None, None] == (20, 30)
    assert scores[0, None][1] == 20 and scores[None, 3][1] == 20 and scores[1, 3][1] == 10
    assert (1, 2) not in scores
    assert sum(scores[cell][0] for cell in [(0, 2), (0, 3), (1, 3)]) == 20


# Players ------------------------------------------------------------------------------------------------------------

CHARS = CharTokenizer('0123456789+-*()= \n')


def test_a_model_chooses_the_likeliest_answer():
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=96)
    problems = sample_problems(each=2)
    for problem, chosen in zip(problems, make_choosing_player(model, CHARS)(problems), strict=True):
        pairs = [
            (CHARS.encode(arithmetic.EXAMPLES + problem.text + ' ='), CHARS.encode(f' {choice}\n'))
            for choice in problem.choices
        ]
        logprobs = [score.model_logprobs.sum().item() for score in score_pairs(model, pairs)]
        assert chosen == problem.choices[logprobs.index(max(logprobs))]


def test_a_model_that_knows_the_answers_is_right():
    """Likelihood is what decides: a model whose logits are those of the right answers, played by a fake scorer."""
    problems = sample_problems(each=3)
    rights = {f'{arithmetic.EXAMPLES}{problem.text} =': problem.right for problem in problems}

    class Tokenizer:
        def encode_pair(self, prompt, response):
            return prompt, response

    class Score:
        def __init__(self, right):
            self.model_logprobs = torch.tensor([-1.0 if right else -2.0])

    def score(model, pairs):
        return (Score(response == f' {rights[prompt]}\n') for prompt, response in pairs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, 'score_pairs', score)
        assert make_choosing_player(None, Tokenizer())(problems) == answer_as_oracle(problems)


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
    answers = make_writing_player(lambda: FakeChat(style))(problems)
    assert count_right(problems, answers)[None, None] == (40, 40)


def test_a_unicode_minus_is_read_and_no_number_is_no_answer():
    problem = sample_problems(each=1)[0]._replace(text='3 - 8', right=-5)

    class Minus(FakeChat):
        def get_reply(self):
            return super().get_reply()._replace(text=self.answer.replace('-', '−'))

    assert make_writing_player(lambda: Minus('{}'))([problem]) == [-5]
    assert make_writing_player(lambda: FakeChat('I do not know'))([problem]) == [None]


# The lesson ---------------------------------------------------------------------------------------------------------


@here_and_as_command
def test_the_lesson_prints_and_draws(as_command, tmp_path, capsys):
    arguments = ['--problems=2', '--length=4', '--depth=1', f'--plot_dir={tmp_path}']
    out, err = run_in_folder('arithmetic', *arguments, as_command=as_command, folder=tmp_path, capsys=capsys)
    assert err == ''
    assert 'an oracle' in out and '1.00 [' in out
    assert 'tiny-stories, shown another problem' in out
    assert max(map(len, out.splitlines())) <= 120
    assert imread(tmp_path / 'arithmetic.png').ndim == 3


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--depth=9'], ['--depth=9', '0 to 8']),
        (['--depth=4', '--length=5'], ['--length=5', '6 to 12']),
        (['--choices=1'], ['--choices=1', '2 to 10']),
        (['--problems=1'], ['--problems=1']),
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
