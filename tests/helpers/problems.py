"""Arithmetic problems for the tests of lessons."""

import random

from lessons.problems import sample_problem

CELLS = [(depth, length) for depth in range(5) for length in range(depth + 2, 9)]


def sample_problems(cells=CELLS, each=20, n_choices=4, seed=0):
    """Return `each` problems of each (depth, length)."""
    rng = random.Random(seed)
    return [sample_problem(*cell, n_choices, rng) for cell in cells for _ in range(each)]
