"""Scores for arithmetic.py: from answers to a table, and from the table to files and a heat map.

A cell of the table is one depth of brackets and one number of numbers. Its share of right answers is an estimate from a
few problems, so an interval stands beside it. Some cells are impossible: brackets that nest d deep need at least d + 2
numbers, two in the innermost and one more outside each. Such a cell is empty, not zero.
"""

import csv
import itertools
import json
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
from rich.console import Console
from rich.table import Table

from common.files import atomic_write, expand_path
from lessons.problems import numbers_needed
from pictures.style import BLUE, CHOSEN, save_figure, text_colour

NO_ANSWER = 'no answer'  # among the mistakes
FIRST_PLAYER = 'tiny-stories'  # its files are arithmetic.csv and so on; those of other players carry their name


def wilson_interval(right, n, z=1.96):
    """Return the lower and upper bound of a share; z = 1.96 standard deviations give 95 % (Wilson 1927).

    The interval holds all true shares p from which the observed share, right / n, is at most z standard deviations
    sqrt(p (1 - p) / n) away. So it never leaves 0 to 1, and 10 out of 10 does not mean certainty.
    """
    middle, half = right + z**2 / 2, z * (right * (n - right) / n + z**2 / 4) ** 0.5
    return max(0.0, (middle - half) / (n + z**2)), min(1.0, (middle + half) / (n + z**2))


def count_right(answers):
    """Return {(depth, length): (right, n)}, with None for all depths or all lengths, (None, None) for everything."""
    right, n = Counter(), Counter()
    for answer in answers:
        for cell in itertools.product((answer.problem.depth, None), (answer.problem.length, None)):
            right[cell] += answer.value == answer.problem.right
            n[cell] += 1
    return {cell: (right[cell], n[cell]) for cell in n}


def name_mistake(answer):
    """Return what probably led to an answer, None if it is right."""
    if answer.value == answer.problem.right:
        return None
    return NO_ANSWER if answer.value is None else answer.problem.slips.get(answer.value, 'something else')


def describe_share(right, n):
    """Return a share as the end of a row: right, share, and the bounds low and high of its 95 % interval."""
    low, high = wilson_interval(right, n) if n else (None, None)
    return {'problems': n, 'right': right, 'share': right / n if n else None, 'low': low, 'high': high}


class ScoreTable(list):
    """The scores of a player: a list with a dict for each depth and length, that prints as a table.

    Each dict has depth, length, possible (whether there are enough numbers for the brackets), problems (answered),
    right, share (None if nothing was answered), low and high (of the 95 % interval), no_answer (replies without a
    number) and chance (None for a player who writes its answer).

    name: of the player. settings: of the evaluation. answers: one Answer for each problem. others: name -> Answers, of
    the players that it is compared with. stopped: the error or Ctrl-C that ended the evaluation early, or None. files:
    what was written, {what it is: path}.
    """

    def __init__(self, name, settings, answers, others, stopped=None):
        self.name, self.settings, self.answers, self.stopped = name, settings, answers, stopped
        self.scores, self.chance = count_right(answers), None if settings.provider else 1 / settings.choices
        self.players = {other: count_right(given)[None, None] for other, given in others.items()}
        self.files = {}
        self.players[name] = self.scores[None, None]
        self.mistakes = Counter(filter(None, map(name_mistake, answers)))
        self.depths, self.lengths = range(settings.depth + 1), range(2, settings.length + 1)
        silent = Counter((each.problem.depth, each.problem.length) for each in answers if each.value is None)
        for cell in itertools.product(self.depths, self.lengths):
            row = {'depth': cell[0], 'length': cell[1], 'possible': cell[1] >= numbers_needed(cell[0])}
            row |= describe_share(*self.scores.get(cell, (0, 0)))
            self.append(row | {'no_answer': silent[cell], 'chance': self.chance})

    def __repr__(self):
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(make_printed_table(self))
        return '\n'.join(line.rstrip() for line in capture.get().splitlines())


def format_share(right, n):
    """Return a share with its interval as text: 25.0 % [20.3, 30.4]."""
    low, high = wilson_interval(right, n)
    return f'{right / n:.1%} [{low:.1%}, {high:.1%}]'.replace('%,', ',').replace('%]', ']').replace('%', ' %')


def format_cell(right, n):
    """Return a share with its interval below, both in whole percent."""
    low, high = wilson_interval(right, n)
    return f'{100 * right / n:.0f}\n{100 * low:.0f}–{100 * high:.0f}'


def make_printed_table(table):
    """Return a ScoreTable as rich prints it, with sums at its right and at its bottom."""
    title = f'{table.name}: right answers in %, and 95 % interval, by depth of brackets and how many numbers'
    printed = Table('depth', *map(str, table.lengths), 'all', show_lines=True, title=title)
    printed.caption = 'empty: too few numbers for brackets this deep' + ', or not answered' * bool(table.stopped)
    for depth in (*table.depths, None):
        cells = [table.scores.get((depth, length)) for length in (*table.lengths, None)]
        printed.add_row('all' if depth is None else str(depth), *(format_cell(*cell) if cell else '' for cell in cells))
    return printed


def draw_scores(path, table):
    """Draw a ScoreTable as a heat map, with chance marked on the colour bar."""
    from matplotlib import pyplot
    from matplotlib.colors import LinearSegmentedColormap

    size = 2.4 + max(0.72 * len(table.lengths), 2.5), 1.6 + 0.45 * len(table.depths)
    figure = pyplot.figure(figsize=size, layout='constrained')
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list('score', ['white', BLUE])
    shares = np.full((len(table.depths), len(table.lengths)), np.nan)  # nan: no such problems
    for y, x in np.ndindex(shares.shape):
        if score := table.scores.get((table.depths[y], table.lengths[x])):
            shares[y, x] = 100 * score[0] / score[1]
            ink = text_colour(colours(score[0] / score[1]))
            axes.text(x, y, format_cell(*score), ha='center', va='center', color=ink, fontsize=9, linespacing=1.1)
    axes.set_facecolor('#e8e8e8')
    picture = axes.imshow(shares, cmap=colours, vmin=0, vmax=100, aspect='auto')
    axes.set_xticks(range(len(table.lengths)), table.lengths)
    axes.set_yticks(range(len(table.depths)), table.depths)
    grey = 'too few for brackets this deep' + ', or not answered' * bool(table.stopped)
    axes.set_xlabel(f'numbers in the problem\n(grey: {grey})')
    axes.set_ylabel('depth of brackets')
    axes.set_title(f'{table.name}: {format_share(*table.scores[None, None])}', loc='left', fontsize=10)
    bar = figure.colorbar(picture, label='right answers in %, and 95 % interval')
    if table.chance:
        bar.ax.axhline(100 * table.chance, color=CHOSEN, linewidth=3)
        bar.set_label(f'right answers in %, and 95 % interval\norange: chance, {100 * table.chance:.0f} %')
    save_figure(figure, path)
    pyplot.close(figure)


def choose_path(folder, name, ending, lesson='arithmetic'):
    """Return where a file of the player `name` goes."""
    words = '' if name == FIRST_PLAYER else '-' + re.sub(r'[^\w.]+', '-', name).strip('-.')
    return expand_path(folder) / f'{lesson}{words}{ending}'


def as_line(answer, **more):
    """Return an Answer with its problem as a line of JSON, without what it does not have. more: what else it says."""
    problem = answer.problem
    record = {'depth': problem.depth, 'length': problem.length, 'problem': problem.text, 'right': problem.right}
    record |= {'choices': problem.choices} if answer.logprobs else {}
    record |= {'answer': answer.value, 'mistake': name_mistake(answer)}
    details = {'logprobs': answer.logprobs, 'reply': answer.reply, 'error': answer.error}
    record |= {name: value for name, value in details.items() if value is not None}
    return json.dumps(record | more, ensure_ascii=False) + '\n'


def write_scores(table, folder):
    """Write a ScoreTable as JSON, CSV and heat map, and its answers as JSON lines; return {what it is: path}."""
    # A chat model's answers cost money, so they were written one by one, to a file that nothing overwrites.
    answers = '-replies.jsonl' if table.settings.provider else '-answers.jsonl'
    files = {'heat map': '.png', 'all scores': '.json', 'score of each cell': '.csv', 'each answer': answers}
    files = {contents: choose_path(folder, table.name, ending) for contents, ending in files.items()}
    contents = {
        'player': table.name,
        'settings': asdict(table.settings),
        'stopped': str(table.stopped) or type(table.stopped).__name__ if table.stopped else None,
        'players': {name: describe_share(*score) for name, score in table.players.items()},
        'depths': {depth: describe_share(*table.scores.get((depth, None), (0, 0))) for depth in table.depths},
        'lengths': {length: describe_share(*table.scores.get((None, length), (0, 0))) for length in table.lengths},
        'mistakes': dict(table.mistakes.most_common()),
        'cells': list(table),
    }
    with atomic_write(files['all scores']) as path:
        path.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    with atomic_write(files['score of each cell']) as path, open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, table[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(table)
    if not table.settings.provider:
        with atomic_write(files['each answer']) as path:
            path.write_text(''.join(as_line(answer) for answer in table.answers), encoding='utf-8')
    draw_scores(files['heat map'], table)
    return files
