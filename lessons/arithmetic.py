"""An evaluation made from scratch: can a model do arithmetic, with how deep brackets, and with how many numbers?

    python -m lessons.arithmetic                                           the story model chooses among four answers
    python -m lessons.arithmetic --init_from=gpt2                          or any other model, as in sample.py
    python -m lessons.arithmetic --provider=anthropic --problems=2         a chat model writes its answers
    python -m lessons.arithmetic --provider=anthropic --problems=2 --calculator=True
    python -m lessons.arithmetic --provider=openai --base_url=http://localhost:8000/v1 --model=NAME

The last one asks a server of your own that speaks OpenAI's API. In a notebook, `evaluate_arithmetic` returns the table:

    from lessons.arithmetic import evaluate_arithmetic
    table = evaluate_arithmetic('gpt2', depth=3, length=6)                 prints as a table; pandas.DataFrame(table)

What makes a score trustworthy: random problems that no model has seen, with computed answers; wrong answers made by
mistakes that people make, so that errors can be named; two players whose score is known beforehand, an oracle (100 %)
and a random guesser (chance); an interval around every share. What to look for: beating chance is not enough. A player
that sees the answers but no problem scores above chance, since wrong answers lie around the right one; a player that
prefers small or large numbers scores below. So the model is also shown a different problem: if its score stays the
same, it just likes some numbers and cannot do arithmetic.

problems.py has the problems, players.py the players, scores.py the table and its picture.
"""

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch

import configurator
import lm
from common.errors import UserError
from common.json_files import parse_json_lines
from common.notes import note
from lessons.chat import connect_provider
from lessons.players import (
    Answer,
    answer_as_oracle,
    answer_at_random,
    answer_without_problem,
    make_choosing_player,
    make_writing_player,
    show_another_problem,
)
from lessons.problems import numbers_needed, sample_problems
from lessons.scores import ScoreTable, as_line, choose_path, format_share, write_scores
from lm.settings import ModelSettings, choose_model, model_name

MAX_DEPTH, MAX_LENGTH = 10, 20
OF_LOCAL_MODELS, OF_CHAT_MODELS = (
    ('init_from', 'out_dir', 'device', 'dtype', 'bos'),
    ('model', 'base_url', 'calculator'),
)


@dataclass
class Settings(ModelSettings):
    """Score a model on nested arithmetic, by depth of brackets and how many numbers."""

    provider: str | None = None  # use a chat model instead: openai or anthropic, with its key in the environment
    model: str | None = None  # the provider's name for it (None: a small one)
    base_url: str | None = None  # of another server with the provider's API, perhaps on this computer
    calculator: bool = False  # whether the chat model may use a calculator
    depth: int = 10  # deepest nesting of brackets
    length: int = 12  # numbers in the longest problems
    problems: int | None = None  # for each depth and length (None: 15, or 5 for a chat model, which costs money)
    choices: int = 4  # answers to choose from
    seed: int = 1337  # decides the problems and the guesses
    plot_dir: str | None = 'results/lessons'  # folder for the heat map, JSON, CSV and each answer; None: no files


def check_settings(settings):
    """Return the settings with the number of problems filled in. Raises UserError for invalid ones."""
    if settings.problems is None:
        settings = replace(settings, problems=5 if settings.provider else 15)
    limits = {'depth': (0, MAX_DEPTH), 'length': (2, MAX_LENGTH), 'problems': (1, 10_000), 'choices': (2, 10)}
    for name, (low, high) in limits.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be {low} to {high}')
    rule = f'not for --provider={settings.provider}' if settings.provider else 'for chat models: add --provider=openai'
    for name in OF_LOCAL_MODELS if settings.provider else OF_CHAT_MODELS:
        if getattr(settings, name):
            raise UserError(f'--{name}={getattr(settings, name)} is {rule}')
    if settings.length < numbers_needed(settings.depth):
        deepest = f'brackets nest at most {settings.length - 2} deep among {settings.length} numbers'
        note(f'{deepest}: for --depth={settings.depth}, --length must be at least {numbers_needed(settings.depth)}')
    return settings


def evaluate_arithmetic(subject=None, tokenizer=None, **settings):
    """Return a ScoreTable: right answers for each depth of brackets and each number of numbers.

    subject: what to evaluate: the name or folder of a model, or a model with its `tokenizer`, as lm.load returns them,
    or a player (a function that takes Problems and yields an Answer to each). None: what the settings say.
    settings: those of the command line: provider='anthropic', depth=10, problems=20 and so on. Files are written only
    if there is a plot_dir.
    Ctrl-C, or an error on the way, ends it early: the table has the answers so far, and a note says so. A chat model's
    answers are written to plot_dir as they come, and taken from there when the same call is repeated.
    Raises UserError for invalid settings, and for an error before the first answer.
    """
    if isinstance(subject, str):
        subject, settings = None, {'init_from': subject, **settings}
    settings = check_settings(Settings(**{'plot_dir': None, **settings}))
    if subject is not None and any(getattr(settings, name) for name in ('provider', *OF_LOCAL_MODELS)):
        raise UserError('give a model or player, or settings that name one, but not both')
    answers, others, stopped = [], {}, None
    try:
        with open_player(subject, tokenizer, settings) as (name, play):
            problems = sample_problems(
                settings.depth, settings.length, settings.problems, settings.choices, settings.seed
            )
            if settings.provider and settings.plot_dir:
                play = write_answers(play, choose_path(settings.plot_dir, name, '-replies.jsonl'), settings)
            for answer in play(problems):
                answers.append(answer)
            if not settings.provider:
                others = {f'{name}, shown another problem': list(play(show_another_problem(problems)))}
    except (KeyboardInterrupt, UserError) as error:
        if not answers:
            raise
        stopped = error
        when = f'after {len(answers):,} of {len(problems):,} problems, which the table is about'
        if len(answers) == len(problems):
            when = f'before {name} answered when shown another problem'
        note(f'stopped {when}: {error or "interrupted"}')
    others['a player who sees only the answers'] = answer_without_problem(problems)
    others |= {'a guesser': answer_at_random(problems, settings.seed), 'an oracle': answer_as_oracle(problems)}
    table = ScoreTable(name, settings, answers, dict(reversed(others.items())), stopped)
    if settings.plot_dir:
        table.files = write_scores(table, settings.plot_dir)
    return table


@contextmanager
def open_player(subject, tokenizer, settings):
    """Yield the name of a player and its function: a chat model, a loaded model, or one that is loaded here."""
    if settings.provider:
        with connect_provider(settings.provider, settings.model, settings.base_url) as start_chat:
            name = start_chat().model + (', with a calculator' if settings.calculator else '')
            yield name, make_writing_player(start_chat, settings.calculator)
    elif subject is None:
        chosen = choose_model(settings)
        loaded = lm.load(chosen.init_from, chosen.out_dir, chosen.device, chosen.dtype, bos=chosen.bos)
        yield model_name(chosen), make_choosing_player(*loaded)
    elif isinstance(subject, torch.nn.Module):
        if tokenizer is None:
            raise UserError('a model needs its tokenizer: evaluate_arithmetic(model, tokenizer)')
        yield 'the model', make_choosing_player(subject, tokenizer)
    else:
        yield subject.__name__, subject


def write_answers(play, path, settings):
    """Return a player that adds each Answer to a file when it comes, and takes those that the file has from there."""
    server = {'server': settings.base_url or settings.provider}

    def play_and_write(problems):
        saved, left, known = defaultdict(list), [], []
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for _, record in parse_json_lines(lines):  # None for half a line, if the computer was turned off
            if record and record.get('server') == server['server'] and 'answer' in record:
                saved[str(record.get('problem'))].append(record)
        for problem in problems:
            if saved[problem.text]:  # each saved answer is used once, even if a problem comes twice
                record = saved[problem.text].pop(0)
                known.append(Answer(problem, record['answer'], reply=record.get('reply'), error=record.get('error')))
            else:
                left.append(problem)
        if known:
            note(f'{len(known):,} of {len(problems):,} answers are from {path}; to ask again, delete that file')
        yield from known
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for answer in play(left):
                with open(path, 'a', encoding='utf-8') as file:
                    file.write(as_line(answer, **server))
                yield answer
        except OSError as error:
            raise UserError(f'cannot write {path}: {error.strerror}') from error

    return play_and_write


def main(settings):
    """Print some problems, evaluate, and print the scores; the files are in plot_dir."""
    settings = check_settings(settings)
    examples = sample_problems(settings.depth, settings.length, 1, settings.choices, settings.seed)
    for problem in (each for each in examples if each.length == numbers_needed(each.depth)):
        wrong = [f'{answer} ({problem.slips[answer]})' for answer in problem.choices if answer != problem.right]
        print(f'{problem.text} = {problem.right}, not {", ".join(wrong)}')
    table = evaluate_arithmetic(**asdict(settings))
    writing = '; for a model that writes its answer, almost 0' if settings.provider else ''
    print(f'\n{len(table.answers):,} problems, {settings.choices} choices: the chance level is ', end='')
    print(f'{100 / settings.choices:.1f} %{writing}')
    for player, score in table.players.items():
        print(f'{player:40} {format_share(*score)}')
    print(table)
    print('mistakes:', ', '.join(f'{slip} {count:,}' for slip, count in table.mistakes.most_common()) or 'none')
    for contents, path in table.files.items():
        print(f'{contents}: {path}')
    if table.stopped:
        raise table.stopped


if __name__ == '__main__':
    configurator.run(main, Settings)
