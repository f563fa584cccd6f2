"""An evaluation of one's own: can a model do arithmetic, how deep may the brackets nest, how long may the problem be?

    python -m lessons.arithmetic                                           the story model chooses among four answers
    python -m lessons.arithmetic --init_from=gpt2                          or any other model that is here
    python -m lessons.arithmetic --provider=anthropic --problems=5         a chat model writes its answers
    python -m lessons.arithmetic --provider=anthropic --problems=5 --calculator=True

What makes a score worth believing: problems that nobody has seen, drawn at random, their answers computed; wrong
answers made by slips that people make, so that mistakes can be named; two players whose score is known beforehand, an
oracle (1) and a guesser (chance); an interval around every share. What to look for: chance is not the bar. Who sees the
answers but no problem scores above it, since wrong ones lie around the right one; who prefers small or large numbers,
below it. So the model is also shown a different problem: if it scores as high then, it likes some numbers and cannot do
arithmetic.
"""

import itertools
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import configurator
from common.errors import UserError
from lessons.chat import connected
from lessons.problems import calculate, draw_problem
from lm.scoring import score_pairs
from lm.settings import choose_model, load_chosen_model
from pictures.style import CHOSEN, ROSE, save_figure, text_colour

EXAMPLES = '2 + 3 = 5\n(7 - 4) * 2 = 6\n1 + (9 - (2 + 3)) = 5\n'  # what a model here sees before each problem
# What a chat model sees.
QUESTION = 'Work out {}. The last line of your reply is the answer, a number and nothing else.'


# Players: each takes problems and returns an answer to each ---------------------------------------------------------


def oracle(problems):
    """Know the answers: what comes of it shows that right is counted as right."""
    return [problem.right for problem in problems]


def guesser(problems, seed=0):
    """Know nothing: what comes of it is the chance level, 1 / choices."""
    rng = random.Random(seed)
    return [rng.choice(problem.choices) for problem in problems]


def answers_only(problems):
    """See the answers but no problem: take one that lies close to another, as slips lie close to what is right.

    It scores far above chance, so a score above chance does not yet show that a model reads the problem.
    """
    return [min(each.choices, key=lambda a: sorted(abs(a - b) for b in each.choices)[1]) for each in problems]


def chooser(model, tokenizer):
    """Return a player that picks the choice which the model finds likeliest after the problem.

    The line's end belongs to the answer, or 1 could win only because 12, 13 and others begin with it.
    """

    def play(problems):
        asked = ((problem, choice) for problem in problems for choice in problem.choices)
        pairs = (tokenizer.encode_pair(f'{EXAMPLES}{problem.text} =', f' {choice}\n') for problem, choice in asked)
        scores = tqdm(score_pairs(model, pairs), total=sum(len(p.choices) for p in problems), leave=False, disable=None)
        logprobs = np.reshape(
            [score.model_logprobs.sum().item() for score in scores], (len(problems), -1)
        )  # a row each
        return [problem.choices[best] for problem, best in zip(problems, logprobs.argmax(axis=1))]

    return play


def writer(begin, calculator=False):
    """Return a player that asks a chat model, and takes the last number that it writes; begin: makes a Chat."""

    def play_one(problem):
        chat, question = begin(), QUESTION.format(problem.text)
        try:
            if calculator:
                from lessons.tools import ask  # the next lesson

                text = ask(chat, question, [calculate])
            else:
                chat.write(question)
                text = chat.reply().text
        except UserError:  # it went on and on: no answer
            text = ''
        numbers = re.findall(r'-?\d[\d,]*(?:\.\d+)?', text.replace('−', '-'))
        return float(numbers[-1].replace(',', '')) if numbers else None

    def play(problems):
        with ThreadPoolExecutor(8) as pool:
            return list(tqdm(pool.map(play_one, problems), total=len(problems), leave=False, disable=None))

    return play


# Scores -------------------------------------------------------------------------------------------------------------


def wilson(right, n, z=1.96):
    """Return the interval of a share, low and high; z = 1.96 standard deviations make it one of 95 % (Wilson 1927).

    It asks for which true shares p the one that was seen, right / n, lies within z standard deviations
    sqrt(p (1 - p) / n) of p; so it never leaves 0 to 1, and 10 of 10 do not make it certain.
    """
    middle, half = right + z**2 / 2, z * (right * (n - right) / n + z**2 / 4) ** 0.5
    return max(0.0, (middle - half) / (n + z**2)), min(1.0, (middle + half) / (n + z**2))


def tally(problems, answers):
    """Return {(depth, length): (right, n)}, with None for all depths or all lengths, (None, None) for everything."""
    right, n = Counter(), Counter()
    for problem, answer in zip(problems, answers, strict=True):
        for cell in itertools.product((problem.depth, None), (problem.length, None)):
            right[cell] += answer == problem.right
            n[cell] += 1
    return {cell: (right[cell], n[cell]) for cell in n}


def share_text(right, n, between=' '):
    """Write a share with its interval."""
    low, high = wilson(right, n)
    return f'{right / n:.2f}{between}[{low:.2f}, {high:.2f}]'


def axes_of(scores):
    """Return the depths and the lengths that there are scores of."""
    return [sorted({cell[axis] for cell in scores} - {None}) for axis in (0, 1)]


def score_table(scores):
    """Return a table of scores by depth and length."""
    depths, lengths = axes_of(scores)
    title = 'share of right answers [95 % interval], by depth of brackets and by how many numbers'
    table = Table('depth', *map(str, lengths), 'all', show_lines=True, title=title)
    for depth in (*depths, None):
        cells = [scores.get((depth, length)) for length in (*lengths, None)]
        name = 'all' if depth is None else str(depth)
        table.add_row(name, *(share_text(*cell, '\n') if cell else '' for cell in cells))
    return table


def draw(path, scores, title, chance):
    """Write a heat map of scores by depth and length; chance: marked on the colour bar, or None."""
    from matplotlib import pyplot
    from matplotlib.colors import LinearSegmentedColormap

    depths, lengths = axes_of(scores)
    figure = pyplot.figure(figsize=(2.2 + 1.2 * len(lengths), 1.5 + 0.8 * len(depths)), layout='constrained')
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list('score', ['white', ROSE])
    shares = np.full((len(depths), len(lengths)), np.nan)  # nan: there are no such problems
    for y, x in np.ndindex(shares.shape):
        if (depths[y], lengths[x]) in scores:
            right, n = scores[depths[y], lengths[x]]
            shares[y, x] = right / n
            ink = text_colour(colours(right / n))
            axes.text(x, y, share_text(right, n, '\n'), ha='center', va='center', color=ink, fontsize=9)
    axes.set_facecolor('#e8e8e8')
    picture = axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect='auto')
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_yticks(range(len(depths)), depths)
    axes.set_xlabel('numbers in the problem (grey: too few to nest brackets so deep)')
    axes.set_ylabel('brackets nested so deep')
    axes.set_title(title, loc='left', fontsize=10)
    bar = figure.colorbar(picture, label='share of right answers [95 % interval]')
    if chance:
        bar.ax.axhline(chance, color=CHOSEN, linewidth=3)
        bar.set_label(f'share of right answers [95 % interval]\norange: chance, {chance:.2f}')
    save_figure(figure, path)
    pyplot.close(figure)


@dataclass
class Settings:
    """Score a model on nested arithmetic, by depth and length."""

    init_from: str | None = None  # a model that chooses, as in sample.py: tiny-stories (None), gpt2, a folder, resume
    out_dir: str | None = None  # where resume finds ckpt.pt
    device: str | None = None  # cpu, cuda, mps; None for the best there is
    dtype: str | None = None  # float32 (None), bfloat16 or float16
    provider: str | None = None  # a chat model that writes instead: openai or anthropic, its key in the environment
    model: str | None = None  # its name there (None: a small one)
    base_url: str | None = None  # of another server that speaks the provider's API
    calculator: bool = False  # the chat model may use a calculator
    depth: int = 3  # brackets nest at most so deep
    length: int = 6  # numbers in the longest problems
    problems: int | None = None  # of each depth and length (None: 100, or 10 for a chat model, which costs money)
    choices: int = 4  # answers to choose from
    seed: int = 1337  # decides what is drawn
    plot_dir: str = 'results/lessons'  # arithmetic.png goes in here


def main(settings):
    """Draw problems, let the players play, print and draw the scores."""
    if settings.problems is None:
        settings = replace(settings, problems=10 if settings.provider else 100)
    limits = {'depth': (0, 8), 'length': (2 + settings.depth, 12), 'problems': (2, 10_000), 'choices': (2, 10)}
    for name, (low, high) in limits.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(f'--{name}={getattr(settings, name)}: it is {low} to {high}')
    rng = random.Random(settings.seed)
    cells = [(depth, length) for depth in range(settings.depth + 1) for length in range(2 + depth, settings.length + 1)]
    problems = [draw_problem(*cell, settings.choices, rng) for cell in cells for _ in range(settings.problems)]
    for problem in problems[:: settings.problems]:
        wrong = [f'{answer} ({problem.slips[answer]})' for answer in problem.choices if answer != problem.right]
        print(f'{problem.text} = {problem.right}, not {", ".join(wrong)}')
    chance = 1 / settings.choices
    answers = {'an oracle': oracle(problems), 'a guesser': guesser(problems, settings.seed)}
    answers['one who sees the answers only'] = answers_only(problems)
    if settings.provider:
        with connected(settings.provider, settings.model, settings.base_url) as begin:
            name = begin().model + (', with a calculator' if settings.calculator else '')
            answers[name] = writer(begin, settings.calculator)(problems)
    else:
        settings = choose_model(settings)
        play, name = chooser(*load_chosen_model(settings)), settings.init_from
        others = [problem._replace(text=other.text) for problem, other in zip(problems, problems[1:] + problems[:1])]
        answers |= {f'{name}, shown another problem': play(others), name: play(problems)}
    nearly_none = '; whoever writes an answer instead has next to no chance' if settings.provider else ''
    print(f'\n{len(problems)} problems, {settings.choices} choices: the chance level is {chance:.2f}{nearly_none}')
    for player, given in answers.items():
        print(f'{player:40} {share_text(*tally(problems, given)[None, None])}')
    scores, console = tally(problems, answers[name]), Console()
    if not console.is_terminal:
        console = Console(width=100)  # in a file or a pipe there is no window to fit
    console.print(score_table(scores))
    wrong = [(problem, answer) for problem, answer in zip(problems, answers[name]) if answer != problem.right]
    names = [{None: 'no answer', **problem.slips}.get(answer, 'something else') for problem, answer in wrong]
    slips = Counter(names).most_common()
    print('its mistakes:', ', '.join(f'{slip} {count}' for slip, count in slips) or 'none')
    path = Path(settings.plot_dir) / 'arithmetic.png'
    draw(path, scores, f'{name}: {share_text(*scores[None, None])}', None if settings.provider else chance)
    print(f'the scores as a heat map: {path}')


if __name__ == '__main__':
    configurator.run(main, Settings)
