"""Players for arithmetic.py: who answers the problems, and how; and `get_replies`, for prompting.py.

A player takes a list of problems and yields an Answer to each, in any order. Two players show that the evaluation
works, since their scores are known beforehand: an oracle and a guesser. One player cheats: it never looks at the
problem. The others are language models. A local model chooses: it is asked how likely each choice is after the problem.
A chat model cannot be asked that, so it writes, and a number is looked for in its reply.
"""

import random
import re
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import NamedTuple

from tqdm import tqdm

from common.notes import note
from lessons.chat import NoAnswerError
from lessons.problems import Problem, calculate
from lm.scoring import score_pairs

EXAMPLES = '2 + 3 = 5\n(7 - 4) * 2 = 6\n1 + (9 - (2 + 3)) = 5\n'  # a local model sees these before each problem
# A chat model sees this.
QUESTION = 'Work out {}. The last line of your reply is the answer, a number and nothing else.'
AT_ONCE = 8  # questions that a chat model works on at the same time


class Answer(NamedTuple):
    """What a player answered to a problem, and where the answer comes from."""

    problem: Problem
    value: float | None  # None: there is no number in the reply
    logprobs: list[float] | None = None  # the model's logprob of each of the problem's choices
    reply: str | None = None  # what a chat model wrote
    error: str | None = None  # why it did not finish


def answer_as_oracle(problems):
    """Give the right answers: a share of 100 % shows that right answers are counted as right."""
    return [Answer(problem, problem.right) for problem in problems]


def answer_at_random(problems, seed=0):
    """Guess: the share is the chance level, 1 / choices."""
    rng = random.Random(seed)
    return [Answer(problem, rng.choice(problem.choices)) for problem in problems]


def answer_without_problem(problems):
    """Look only at the answers: pick one close to another, because wrong answers lie close to the right one.

    This scores far above chance, so a score above chance does not show that a model reads the problem.
    """
    return [
        Answer(each, min(each.choices, key=lambda a: sorted(abs(a - b) for b in each.choices)[1])) for each in problems
    ]


def show_another_problem(problems):
    """Return the problems, each with the text of another one of its depth and length, but with its own choices."""
    cells = {}
    for problem in problems:
        cells.setdefault((problem.depth, problem.length), []).append(problem)
    return [a._replace(text=b.text) for cell in cells.values() for a, b in zip(cell, cell[1:] + cell[:1])]


def make_choosing_player(model, tokenizer):
    """Return a player that picks the choice that the model finds likeliest after the problem.

    The newline belongs to the answer; otherwise 1 could win only because 12, 13 and others begin with it.
    """

    def play(problems):
        cut = 0

        def encode_choices():
            nonlocal cut
            for problem in problems:
                for choice in problem.choices:
                    prompt, response = tokenizer.encode_pair(f'{EXAMPLES}{problem.text} =', f' {choice}\n')
                    cut += len(prompt) + len(response) - 1 > model.block_size
                    yield prompt, response

        scores = score_pairs(model, encode_choices())
        for problem in tqdm(problems, leave=False, disable=None):
            logprobs = [next(scores).model_logprobs.sum().item() for _ in problem.choices]
            yield Answer(problem, problem.choices[logprobs.index(max(logprobs))], logprobs)
        if cut:
            every = sum(len(problem.choices) for problem in problems)
            size = f'the context of {model.block_size} tokens'
            note(f'{cut:,} of {every:,} problems with an answer do not fit into {size}: their beginning is cut off')

    return play


def find_answer(reply):
    """Return the last number in a reply, None if there is none: 1,234 and 1{,}234 are 1234, and a minus may be −."""
    text = re.sub(r'(?<=\d)(?:\{,\}|\\,|,|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))', '', reply.replace('−', '-'))
    numbers = re.findall(r'-?\d+(?:\.\d+)?', text)
    if not numbers:
        return None
    value = float(numbers[-1])
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def make_writing_player(start_chat, calculator=False):
    """Return a player that asks a chat model and takes the last number in its reply; start_chat: returns a Chat."""

    def play_one(problem):
        chat, question = start_chat(), QUESTION.format(problem.text)
        try:
            if calculator:
                from lessons.tools import answer_with_tools  # the next lesson

                reply = answer_with_tools(chat, question, [calculate])
            else:
                chat.add_question(question)
                reply = chat.get_reply().text
        except NoAnswerError as error:  # the reply was too long, for example
            return Answer(problem, None, error=str(error))
        return Answer(problem, find_answer(reply), reply=reply)

    def play(problems):
        """Yield Answers as they arrive. After an error, or Ctrl-C, those on the way are still waited for: they cost."""
        pool, stopped = ThreadPoolExecutor(AT_ONCE), None
        try:
            waiting = {pool.submit(play_one, problem) for problem in problems}
            with tqdm(total=len(problems), leave=False, disable=None) as progress:
                while waiting:
                    try:
                        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    except KeyboardInterrupt as error:
                        if stopped:  # twice: in a hurry
                            raise
                        done, stopped = set(), error
                    for future in done:
                        if future.exception():
                            stopped = stopped or future.exception()
                        else:
                            progress.update()
                            yield future.result()
                    if stopped:
                        waiting = {future for future in waiting if not future.cancel()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if stopped:
            raise stopped

    return play


def get_replies(start_chat, questions):
    """Return what a chat model replies to each question, asked in a conversation of its own; '' if it was cut off."""

    def ask(question):
        chat = start_chat()
        chat.add_question(question)
        try:
            return chat.get_reply().text
        except NoAnswerError:
            return ''

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(tqdm(pool.map(ask, questions), total=len(questions), leave=False, disable=None))
