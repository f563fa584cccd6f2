"""An evaluation made from scratch: can a model do arithmetic, with how deep brackets, and with how many numbers?

    python -m lessons.arithmetic                                           the story model chooses among four answers
    python -m lessons.arithmetic --init_from=gpt2                          or any other model on this computer
    python -m lessons.arithmetic --provider=anthropic --problems=5         a chat model writes its answers
    python -m lessons.arithmetic --provider=anthropic --problems=5 --calculator=True

What makes a score trustworthy: random problems that no model has seen, with computed answers; wrong answers made by
mistakes that people make, so that errors can be named; two players whose score is known beforehand, an oracle (1) and a
random guesser (chance); an interval around every share. What to look for: beating chance is not enough. A player that
sees the answers but no problem scores above chance, since wrong answers lie around the right one; a player that prefers
small or large numbers scores below. So the model is also shown a different problem: if its score stays the same, it
just likes some numbers and cannot do arithmetic.
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
from lessons.chat import connect_provider
from lessons.problems import calculate, sample_problem
from lm.scoring import score_pairs
from lm.settings import choose_model, load_chosen_model
from pictures.style import BLUE, CHOSEN, save_figure, text_colour

EXAMPLES = '2 + 3 = 5\n(7 - 4) * 2 = 6\n1 + (9 - (2 + 3)) = 5\n'  # a local model sees these before each problem
# A chat model sees this.
QUESTION = 'Work out {}. The last line of your reply is the answer, a number and nothing else.'


# Players: each takes problems and returns an answer to each ---------------------------------------------------------


def answer_as_oracle(problems):
    """Give the right answers: a score of 1 shows that right answers are counted as right."""
    return [problem.right for problem in problems]


def answer_at_random(problems, seed=0):
    """Guess: the score is the chance level, 1 / choices."""
    rng = random.Random(seed)
    return [rng.choice(problem.choices) for problem in problems]


def answer_without_problem(problems):
    """Look only at the answers: pick one close to another, because wrong answers lie close to the right one.

    This scores far above chance, so a score above chance does not show that a model reads the problem.
    """
    return [min(each.choices, key=lambda a: sorted(abs(a - b) for b in each.choices)[1]) for each in problems]


def make_choosing_player(model, tokenizer):
    """Return a player that picks the choice that the model finds likeliest after the problem.

    The newline belongs to the answer; otherwise 1 could win only because 12, 13 and others begin with it.
    """

    def play(problems):
        questions = ((problem, choice) for problem in problems for choice in problem.choices)
        pairs = (tokenizer.encode_pair(f'{EXAMPLES}{problem.text} =', f' {choice}\n') for problem, choice in questions)
        scores = tqdm(score_pairs(model, pairs), total=sum(len(p.choices) for p in problems), leave=False, disable=None)
        logprobs = [score.model_logprobs.sum().item() for score in scores]
        best = np.reshape(logprobs, (len(problems), -1)).argmax(axis=1)  # one row for each problem
        return [problem.choices[index] for problem, index in zip(problems, best)]

    return play


def make_writing_player(start_chat, calculator=False):
    """Return a player that asks a chat model and takes the last number in its reply; start_chat: returns a Chat."""

    def play_one(problem):
        chat, question = start_chat(), QUESTION.format(problem.text)
        try:
            if calculator:
                from lessons.tools import answer_with_tools  # the next lesson

                text = answer_with_tools(chat, question, [calculate])
            else:
                chat.add_question(question)
                text = chat.get_reply().text
        except UserError:  # the reply was too long: no answer
            text = ''
        numbers = re.findall(r'-?\d[\d,]*(?:\.\d+)?', text.replace('−', '-'))
        return float(numbers[-1].replace(',', '')) if numbers else None

    def play(problems):
        with ThreadPoolExecutor(8) as pool:
            return list(tqdm(pool.map(play_one, problems), total=len(problems), leave=False, disable=None))

    return play


# Scores -------------------------------------------------------------------------------------------------------------


def wilson_interval(right, n, z=1.96):
    """Return the lower and upper bound of a share; z = 1.96 standard deviations give 95 % (Wilson 1927).

    The interval holds all true shares p from which the observed share, right / n, is at most z standard deviations
    sqrt(p (1 - p) / n) away. So it never leaves 0 to 1, and 10 out of 10 does not mean certainty.
    """
    middle, half = right + z**2 / 2, z * (right * (n - right) / n + z**2 / 4) ** 0.5
    return max(0.0, (middle - half) / (n + z**2)), min(1.0, (middle + half) / (n + z**2))


def count_right(problems, answers):
    """Return {(depth, length): (right, n)}, with None for all depths or all lengths, (None, None) for everything."""
    right, n = Counter(), Counter()
    for problem, answer in zip(problems, answers, strict=True):
        for cell in itertools.product((problem.depth, None), (problem.length, None)):
            right[cell] += answer == problem.right
            n[cell] += 1
    return {cell: (right[cell], n[cell]) for cell in n}


def format_share(right, n, separator=' '):
    """Return a share with its interval as text."""
    low, high = wilson_interval(right, n)
    return f'{right / n:.2f}{separator}[{low:.2f}, {high:.2f}]'


def list_axes(scores):
    """Return the depths and the lengths that have scores."""
    return [sorted({cell[axis] for cell in scores} - {None}) for axis in (0, 1)]


def make_score_table(scores):
    """Return a table of scores by depth and length."""
    depths, lengths = list_axes(scores)
    title = 'share of right answers [95 % interval], by depth of brackets and by how many numbers'
    table = Table('depth', *map(str, lengths), 'all', show_lines=True, title=title)
    for depth in (*depths, None):
        cells = [scores.get((depth, length)) for length in (*lengths, None)]
        name = 'all' if depth is None else str(depth)
        table.add_row(name, *(format_share(*cell, '\n') if cell else '' for cell in cells))
    return table


def draw_scores(path, scores, title, chance):
    """Draw a heat map of scores by depth and length; chance: a mark on the colour bar, or None."""
    from matplotlib import pyplot
    from matplotlib.colors import LinearSegmentedColormap

    depths, lengths = list_axes(scores)
    figure = pyplot.figure(figsize=(2.2 + 1.2 * len(lengths), 1.5 + 0.8 * len(depths)), layout='constrained')
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list('score', ['white', BLUE])
    shares = np.full((len(depths), len(lengths)), np.nan)  # nan: no such problems
    for y, x in np.ndindex(shares.shape):
        if (depths[y], lengths[x]) in scores:
            right, n = scores[depths[y], lengths[x]]
            shares[y, x] = right / n
            ink = text_colour(colours(right / n))
            axes.text(x, y, format_share(right, n, '\n'), ha='center', va='center', color=ink, fontsize=9)
    axes.set_facecolor('#e8e8e8')
    picture = axes.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect='auto')
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_yticks(range(len(depths)), depths)
    axes.set_xlabel('numbers in the problem (grey: too few for brackets this deep)')
    axes.set_ylabel('depth of brackets')
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
    device: str | None = None  # cpu, cuda, mps; None for the best available
    dtype: str | None = None  # float32 (None), bfloat16 or float16
    provider: str | None = None  # use a chat model instead: openai or anthropic, with its key in the environment
    model: str | None = None  # the provider's name for it (None: a small one)
    base_url: str | None = None  # of another server with the provider's API
    calculator: bool = False  # whether the chat model may use a calculator
    depth: int = 3  # deepest nesting of brackets
    length: int = 6  # numbers in the longest problems
    problems: int | None = None  # for each depth and length (None: 100, or 10 for a chat model, which costs money)
    choices: int = 4  # answers to choose from
    seed: int = 1337  # decides the problems and the guesses
    plot_dir: str = 'results/lessons'  # folder for arithmetic.png


def main(settings):
    """Sample problems, let the players answer, print and draw the scores."""
    if settings.problems is None:
        settings = replace(settings, problems=10 if settings.provider else 100)
    limits = {'depth': (0, 8), 'length': (2 + settings.depth, 12), 'problems': (2, 10_000), 'choices': (2, 10)}
    for name, (low, high) in limits.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be {low} to {high}')
    rng = random.Random(settings.seed)
    cells = [(depth, length) for depth in range(settings.depth + 1) for length in range(2 + depth, settings.length + 1)]
    problems = [sample_problem(*cell, settings.choices, rng) for cell in cells for _ in range(settings.problems)]
    for problem in problems[:: settings.problems]:
        wrong = [f'{answer} ({problem.slips[answer]})' for answer in problem.choices if answer != problem.right]
        print(f'{problem.text} = {problem.right}, not {", ".join(wrong)}')
    chance = 1 / settings.choices
    answers = {'an oracle': answer_as_oracle(problems), 'a guesser': answer_at_random(problems, settings.seed)}
    answers['a player who sees only the answers'] = answer_without_problem(problems)
    if settings.provider:
        with connect_provider(settings.provider, settings.model, settings.base_url) as start_chat:
            name = start_chat().model + (', with a calculator' if settings.calculator else '')
            answers[name] = make_writing_player(start_chat, settings.calculator)(problems)
    else:
        settings = choose_model(settings)
        play, name = make_choosing_player(*load_chosen_model(settings)), settings.init_from
        others = [problem._replace(text=other.text) for problem, other in zip(problems, problems[1:] + problems[:1])]
        answers |= {f'{name}, shown another problem': play(others), name: play(problems)}
    writing = '; for a model that writes its answer, almost 0' if settings.provider else ''
    print(f'\n{len(problems)} problems, {settings.choices} choices: the chance level is {chance:.2f}{writing}')
    for player, given in answers.items():
        print(f'{player:40} {format_share(*count_right(problems, given)[None, None])}')
    scores, console = count_right(problems, answers[name]), Console()
    if not console.is_terminal:
        console = Console(width=100)  # a file or pipe has no window width
    console.print(make_score_table(scores))
    wrong = [(problem, answer) for problem, answer in zip(problems, answers[name]) if answer != problem.right]
    names = [{None: 'no answer', **problem.slips}.get(answer, 'something else') for problem, answer in wrong]
    slips = Counter(names).most_common()
    print('mistakes:', ', '.join(f'{slip} {count}' for slip, count in slips) or 'none')
    path = Path(settings.plot_dir) / 'arithmetic.png'
    title = f'{name}: {format_share(*scores[None, None])}'
    draw_scores(path, scores, title, None if settings.provider else chance)
    print(f'the scores as a heat map: {path}')


if __name__ == '__main__':
    configurator.run(main, Settings)
