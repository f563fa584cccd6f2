"""Arithmetic problems for arithmetic.py: random problems, their right answers, and wrong answers made by real mistakes.

The calculator here is also a tool for the chat model in tools.py. Python's own eval() would work, but it would run
anything else in the text too: delete files, read passwords. Here Python only parses the text (ast.parse runs nothing),
and nothing but arithmetic is done with the result.
"""

import ast
import math
import operator
import random
import re
from collections import Counter
from typing import NamedTuple

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SIGNS |= {ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow}
SIGNS |= {ast.UAdd: operator.pos, ast.USub: operator.neg}
MAX_LENGTH = 1000  # characters in an expression
MAX_POWER = 10_000  # bits; 9**9**9 would keep a computer busy for years


def calculate(expression: str) -> int | float:
    """Evaluate an arithmetic expression: numbers, + - * / // % ** and brackets.

    Args:
        expression: the expression in Python's notation, such as 2 * (3 + 4)
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f'the expression is longer than {MAX_LENGTH} characters')
    return evaluate_node(ast.parse(expression.strip(), mode='eval').body)


def evaluate_node(node):
    """Return the value of a syntax tree. Raises ValueError if it is not arithmetic or far too large."""
    match node:
        case ast.Constant(number) if type(number) in (int, float):
            return number
        case ast.UnaryOp(sign, operand) if type(sign) in SIGNS:
            return SIGNS[type(sign)](evaluate_node(operand))
        case ast.BinOp(left, sign, right) if type(sign) in SIGNS:
            a, b = evaluate_node(left), evaluate_node(right)
            if isinstance(sign, ast.Pow) and b > 0 and b * math.log2(abs(a) + 1) > MAX_POWER:
                raise ValueError(f'{ast.unparse(node)} is too large')
            result = SIGNS[type(sign)](a, b)
            if isinstance(result, complex):
                raise ValueError(f'{ast.unparse(node)} is not a real number')
            return result
    raise ValueError(f'{ast.unparse(node)} is not arithmetic')


class Problem(NamedTuple):
    """A problem, its right answer, and the answers to choose from, including the right one."""

    depth: int  # of nested brackets
    length: int  # how many numbers it has
    text: str
    right: int
    choices: list[int]  # in random order (their values still give something away: see answer_without_problem)
    slips: dict[int, str]  # wrong answer -> the mistake that leads to it, including answers that are not choices


def numbers_needed(depth):
    """Return how many numbers it takes to nest brackets this deep: two inside, and one more outside each bracket."""
    return depth + 2


def sample_expression(depth, length, rng):
    """Sample an expression of `length` numbers, as many as needed or more, whose brackets nest exactly `depth` deep."""
    terms = []
    if depth:  # one bracket goes all the way down, and at least one number stays outside it
        inside = rng.randint(depth + 1, length - 1)
        terms, length = [f'({sample_expression(depth - 1, inside, rng)})'], length - inside
    while length:  # the rest: numbers, and brackets that go no deeper
        size = rng.randint(1, length) if depth else 1
        deeper = rng.randint(0, min(depth - 1, size - 2)) if size > 1 else 0
        terms.append(str(rng.randint(1, 9)) if size == 1 else f'({sample_expression(deeper, size, rng)})')
        length -= size
    rng.shuffle(terms)
    return terms[0] + ''.join(f' {rng.choice("+-*")} {term}' for term in terms[1:])


def find_slips(text, right):
    """Yield (answer, mistake) for mistakes that people make, and models that learned from people."""
    digits = str(abs(right))
    yield int(digits[:-2] + digits[:-3:-1]) * (1 if right > 0 else -1), 'digits swapped'
    if '-' in text:
        yield -right, 'wrong sign'
    yield calculate(re.sub('[()]', '', text)), 'brackets ignored'
    yield calculate(re.sub(r'\d+ [+-] \d+', r'(\g<0>)', text)), 'plus before times'
    for sign in re.finditer('[+*-]', text):
        for other in '+-*':
            yield calculate(text[: sign.start()] + other + text[sign.end() :]), 'wrong operator'
    for distance in range(1, 12):
        for answer in (right - distance, right + distance):
            yield answer, 'off by one' if distance == 1 else 'off by more'


def sample_problem(depth, length, n_choices, rng):
    """Sample a Problem with `n_choices` answers; its wrong ones come from as many different mistakes as possible."""
    text = sample_expression(depth, length, rng)
    right, slips, ranked, counts = calculate(text), {}, [], Counter()
    for answer, slip in find_slips(text, right):
        if answer != right:
            slips.setdefault(answer, slip)
    for answer, slip in rng.sample(sorted(slips.items()), len(slips)):
        # The first answer of each mistake comes before the second of any; 'off by more' only fills up the list.
        ranked.append((slip == 'off by more', counts[slip], answer))
        counts[slip] += 1
    ranked.sort(key=lambda rank: rank[:2])
    answers = [right, *(answer for _, _, answer in ranked[: n_choices - 1])]
    return Problem(depth, length, text, right, rng.sample(answers, n_choices), slips)


def sample_problems(depth, length, n, n_choices, seed):
    """Return n Problems of each depth from 0 and each length from 2 that are possible together.

    The first problem of every depth and length comes before the second of any, so if somebody stops early, all of them
    have about the same number of answers.
    """
    rng = random.Random(seed)
    cells = [(each, size) for each in range(depth + 1) for size in range(numbers_needed(each), length + 1)]
    return [sample_problem(*cell, n_choices, rng) for _ in range(n) for cell in cells]
