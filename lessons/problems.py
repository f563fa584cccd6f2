"""Problems for arithmetic.py: drawn at random, their right answers computed, their wrong ones made by real slips.

The calculator that computes is a tool for a chat model in tools.py, too. Python's own eval() would do, and would also
run whatever else stands in a text: delete files, read passwords. Here Python only reads the text (ast.parse runs
nothing), and arithmetic is all that is done with what was read.
"""

import ast
import math
import operator
import re
from collections import Counter
from typing import NamedTuple

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
SIGNS |= {ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow}
SIGNS |= {ast.UAdd: operator.pos, ast.USub: operator.neg}
LONGEST = 1000  # characters of an expression
LARGEST_POWER = 10_000  # bits; 9**9**9 would keep a computer busy for years


def calculate(expression: str) -> int | float:
    """Work out an arithmetic expression: numbers, + - * / // % ** and brackets.

    Args:
        expression: what to work out, in Python's notation, such as 2 * (3 + 4)
    """
    if len(expression) > LONGEST:
        raise ValueError(f'the expression is longer than {LONGEST} characters')
    return value_of(ast.parse(expression.strip(), mode='eval').body)


def value_of(node):
    """Return the value of a syntax tree; ValueError for what is not arithmetic, or would be far too large."""
    match node:
        case ast.Constant(number) if type(number) in (int, float):
            return number
        case ast.UnaryOp(sign, operand) if type(sign) in SIGNS:
            return SIGNS[type(sign)](value_of(operand))
        case ast.BinOp(left, sign, right) if type(sign) in SIGNS:
            a, b = value_of(left), value_of(right)
            if isinstance(sign, ast.Pow) and b > 0 and b * math.log2(abs(a) + 1) > LARGEST_POWER:
                raise ValueError(f'{ast.unparse(node)} is too large')
            result = SIGNS[type(sign)](a, b)
            if isinstance(result, complex):
                raise ValueError(f'{ast.unparse(node)} is not a real number')
            return result
    raise ValueError(f'{ast.unparse(node)} is not arithmetic')


class Problem(NamedTuple):
    """A problem, its right answer, and the answers to choose from, the right one among them."""

    depth: int  # how deep its brackets nest
    length: int  # how many numbers it has
    text: str
    right: int
    choices: list[int]  # in an order that tells nothing (their values do: see answers_only in arithmetic.py)
    slips: dict[int, str]  # wrong answer -> how one comes to it, also for those that are no choices


def expression(depth, length, rng):
    """Draw an expression of `length` numbers, at least depth + 2, whose brackets nest exactly `depth` deep."""
    terms = []
    if depth:  # one bracket goes all the way down, and a number or more stays outside
        inside = rng.randint(depth + 1, length - 1)
        terms, length = [f'({expression(depth - 1, inside, rng)})'], length - inside
    while length:  # the rest: numbers, and brackets that go no deeper
        size = rng.randint(1, length) if depth else 1
        deeper = rng.randint(0, min(depth - 1, size - 2)) if size > 1 else 0
        terms.append(str(rng.randint(1, 9)) if size == 1 else f'({expression(deeper, size, rng)})')
        length -= size
    rng.shuffle(terms)
    return terms[0] + ''.join(f' {rng.choice("+-*")} {term}' for term in terms[1:])


def slips_in(text, right):
    """Yield (answer, how one comes to it): mistakes that people make, and models that learned from people."""
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


def draw_problem(depth, length, choices, rng):
    """Draw a Problem with so many choices; its wrong ones come of as many different slips as there are."""
    text = expression(depth, length, rng)
    right, slips, ranked, of_slip = calculate(text), {}, [], Counter()
    for answer, slip in slips_in(text, right):
        if answer != right:
            slips.setdefault(answer, slip)
    for answer, slip in rng.sample(sorted(slips.items()), len(slips)):
        # The first of every slip comes before the second of any; what no slip explains only fills up.
        ranked.append((slip == 'off by more', of_slip[slip], answer))
        of_slip[slip] += 1
    ranked.sort(key=lambda rank: rank[:2])
    answers = [right, *(answer for _, _, answer in ranked[: choices - 1])]
    return Problem(depth, length, text, right, rng.sample(answers, choices), slips)
