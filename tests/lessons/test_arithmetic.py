"""lessons/arithmetic.py: problems and answers are right, players score what is known of them, intervals hold."""

import ast
import itertools
import os
import random
import re
import subprocess
import sys

import pytest
import torch
from helpers.models import random_gpt
from helpers.scripts import PROJECT, assert_friendly_error, run_lesson
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from scipy.stats import binomtest

import configurator
from common.errors import UserError
from lessons import arithmetic
from lessons.arithmetic import Settings, answers_only, chooser, guesser, oracle, tally, wilson, writer
from lessons.chat import Reply
from lessons.problems import calculate, draw_problem, expression, slips_in
from lm.scoring import score_pairs
from lm.tokenizer import CharTokenizer

CELLS = [(depth, length) for depth in range(5) for length in range(depth + 2, 9)]


def problems_of(cells=CELLS, each=20, choices=4, seed=0):
    rng = random.Random(seed)
    return [draw_problem(*cell, choices, rng) for cell in cells for _ in range(each)]


# Problems -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 6), st.integers(0, 6), st.integers())
@settings(max_examples=200, deadline=None)
def test_a_problem_has_the_depth_and_length_asked_for_and_python_agrees_on_its_answer(depth, more, seed):
    length = depth + 2 + more
    problem = draw_problem(depth, length, 4, random.Random(seed))
    tree = ast.parse(problem.text, mode='eval')
    numbers = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert len(numbers) == length == problem.length
    assert all(1 <= number <= 9 for number in numbers)
    depths = list(itertools.accumulate({'(': 1, ')': -1}.get(char, 0) for char in problem.text))
    assert max(depths) == depth == problem.depth and depths[-1] == 0
    assert eval(compile(tree, 'problem', 'eval')) == problem.right


@pytest.mark.parametrize('choices', [2, 4, 10])
def test_choices_are_the_right_answer_once_and_different_wrong_ones_with_their_slips(choices):
    for problem in problems_of(each=10, choices=choices):
        assert len(set(problem.choices)) == choices
        assert problem.choices.count(problem.right) == 1
        assert problem.right not in problem.slips
        assert set(problem.choices) - {problem.right} <= set(problem.slips)


def test_slips_are_what_they_are_called():
    # (answer, slip) by hand for 2 + 3 * (8 - 1), which is 23.
    slips = slips_in('2 + 3 * (8 - 1)', 23)
    found = {}
    for answer, slip in slips:
        found.setdefault(slip, set()).add(answer)
    assert found['digits swapped'] == {32}
    assert found['wrong sign'] == {-23}
    assert found['brackets ignored'] == {2 + 3 * 8 - 1}
    assert found['plus before times'] == {(2 + 3) * (8 - 1)}
    assert found['off by one'] == {22, 24}
    assert {2 * 3 * 7, 2 - 21, 2 + 3 + 7, 2 + 3 - 7, 2 + 3 * 9, 2 + 3 * 8} <= found['wrong operator']


def test_the_place_of_the_right_answer_tells_nothing():
    problems = problems_of([(1, 4)], each=2000)
    places = [problem.choices.index(problem.right) for problem in problems]
    for place in range(4):
        assert binomtest(places.count(place), 2000, 0.25).pvalue > 1e-4


def test_several_kinds_of_slips_come_up():
    slips = {
        problem.slips[answer] for problem in problems_of() for answer in problem.choices if answer != problem.right
    }
    assert slips >= {
        'off by one',
        'wrong operator',
        'digits swapped',
        'wrong sign',
        'brackets ignored',
        'plus before times',
    }


def test_the_seed_decides_all():
    assert problems_of(seed=3) == problems_of(seed=3) != problems_of(seed=4)
    code = 'import random; from lessons.problems import draw_problem; print(draw_problem(2, 6, 4, random.Random(1)))'
    runs = {  # whatever strings hash to
        subprocess.run(
            [sys.executable, '-c', code], cwd=PROJECT, env={**os.environ, 'PYTHONHASHSEED': seed}, capture_output=True
        ).stdout
        for seed in '12'
    }
    assert len(runs) == 1


# The calculator -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(0, 5), st.integers(), st.sampled_from(['//', '%', '/', '**', ' - -']))
@settings(max_examples=200, deadline=None)
def test_the_calculator_says_what_python_says(depth, more, seed, sign):
    rng = random.Random(seed)
    text = expression(depth, depth + 2 + more, rng).replace(' * ', sign, 1)
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
def test_the_calculator_knows_nothing_but_arithmetic(text):
    with pytest.raises((ValueError, SyntaxError)):
        calculate(text)


# Scores -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_are_wilsons(counts):
    right, n = counts
    reference = binomtest(right, n).proportion_ci(method='wilson')
    assert wilson(right, n, z=1.959963984540054) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize('choices', [2, 4, 7])
def test_an_oracle_scores_1_and_a_guesser_its_chance(choices):
    problems = problems_of(each=100, choices=choices)
    for cell, (right, n) in tally(problems, oracle(problems)).items():
        assert right == n and wilson(right, n)[1] == pytest.approx(1), cell
    scores = tally(problems, guesser(problems, seed=1))
    low, high = wilson(*scores[None, None])
    assert low <= 1 / choices <= high
    outside = [cell for cell, score in scores.items() if not wilson(*score)[0] <= 1 / choices <= wilson(*score)[1]]
    assert len(outside) <= 0.15 * len(scores)  # 5 % are expected


def test_whoever_sees_the_answers_only_scores_above_chance():
    problems = problems_of(each=100, choices=4)
    assert wilson(*tally(problems, answers_only(problems))[None, None])[0] > 0.35


def test_scores_add_up():
    problems = problems_of([(0, 2), (0, 3), (1, 3)], each=10)
    answers = [problem.right if number % 3 else None for number, problem in enumerate(problems)]
    scores = tally(problems, answers)
    assert scores[None, None] == (20, 30)
    assert scores[0, None][1] == 20 and scores[None, 3][1] == 20 and scores[1, 3][1] == 10
    assert (1, 2) not in scores
    assert sum(scores[cell][0] for cell in [(0, 2), (0, 3), (1, 3)]) == 20


# Players ------------------------------------------------------------------------------------------------------------

CHARS = CharTokenizer('0123456789+-*()= \n')


def test_a_model_chooses_what_it_finds_likeliest():
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=96)
    problems = problems_of(each=2)
    for problem, chosen in zip(problems, chooser(model, CHARS)(problems), strict=True):
        pairs = [
            (CHARS.encode(arithmetic.EXAMPLES + problem.text + ' ='), CHARS.encode(f' {choice}\n'))
            for choice in problem.choices
        ]
        logprobs = [score.model_logprobs.sum().item() for score in score_pairs(model, pairs)]
        assert chosen == problem.choices[logprobs.index(max(logprobs))]


def test_a_model_that_knows_the_answers_is_right():
    """Likelihood is what decides: a model whose logits are those of the right answers, played by a fake scorer."""
    problems = problems_of(each=3)
    rights = {f'{arithmetic.EXAMPLES}{problem.text} =': problem.right for problem in problems}

    class Tokenizer:
        def encode_pair(self, prompt, response):
            return prompt, response

    class Score:
        def __init__(self, right):
            self.logprobs = torch.tensor([-1.0 if right else -2.0])

    def score(model, pairs):
        return (Score(response == f' {rights[prompt]}\n') for prompt, response in pairs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, 'score_pairs', score)
        assert chooser(None, Tokenizer())(problems) == oracle(problems)


class FakeChat:
    """A chat model that knows arithmetic and likes to talk."""

    model = 'fake'

    def __init__(self, style):
        self.style = style

    def write(self, text):
        problem = re.match(r'Work out (.*)\. The last', text)[1]
        self.answer = self.style.format(calculate(problem))

    def reply(self):
        return Reply(self.answer, [])


@pytest.mark.parametrize('style', ['{}', 'First 3 + 4.\n\n**{}**', '{}.', '{}.0', '{:,}', '= {}\n', r'\boxed{{{}}}'])
def test_the_last_number_that_a_chat_model_writes_is_its_answer(style):
    problems = problems_of([(0, 2), (2, 8)], each=20)
    answers = writer(lambda: FakeChat(style))(problems)
    assert tally(problems, answers)[None, None] == (40, 40)


def test_a_minus_sign_may_be_a_real_one_and_no_number_is_no_answer():
    problem = problems_of(each=1)[0]._replace(text='3 - 8', right=-5)

    class Minus(FakeChat):
        def reply(self):
            return super().reply()._replace(text=self.answer.replace('-', '−'))

    assert writer(lambda: Minus('{}'))([problem]) == [-5]
    assert writer(lambda: FakeChat('I do not know'))([problem]) == [None]


# The lesson ---------------------------------------------------------------------------------------------------------


def test_the_lesson_prints_and_draws(tmp_path):
    process = run_lesson('arithmetic', '--problems=3', '--length=5', f'--plot_dir={tmp_path}', cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ''
    assert 'an oracle' in process.stdout and '1.00 [' in process.stdout
    assert 'tiny-stories, shown another problem' in process.stdout
    assert max(map(len, process.stdout.splitlines())) <= 120
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
def test_mistakes_are_named(tmp_path, monkeypatch, arguments, words):
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    with pytest.raises(UserError) as error:
        arithmetic.main(configurator.read(Settings, [*arguments, f'--plot_dir={tmp_path}']))
    assert all(word in str(error.value) for word in words)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_ends_in_one_line(tmp_path):
    process = run_lesson('arithmetic', '--problems=2', '--init_from=./nowhere', cwd=tmp_path)
    assert_friendly_error(process, 'nowhere')
