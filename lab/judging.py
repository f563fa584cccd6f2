"""Judge two models blind: what each writes after twenty openings, side by side, unnamed.

    python -m lab.judging --old=FOLDER --new=tiny-stories   let both write, and make sheets for the judges
    python -m lab.judging --part=count                      count the answers on the sheets that judges filled in

The texts go into results/judging/texts.json, the sheets into results/judging/sheets/. Each sheet has its own order, and
which model is A changes from row to row; every second sheet has A and B of the sheet before exchanged, so a judge's
liking for what comes first cancels out. A judge sees a sheet and nothing else, and writes one line for each row into
sheet-1.answers.txt:

    3: B yes no

that is, in row 3 text B is preferred; persons, things and pronouns stay the same to the end in A; in B they do not.
"""

import itertools
import random
import re
from dataclasses import dataclass

import torch

import configurator
import lm
from common.errors import UserError
from common.files import atomic_write
from common.text_files import read_text
from lab.experiment_runs import RESULTS, write_results

OPENINGS = (
    'Once upon a time there was a little girl named Anna who had a red boat.',
    'Tom was sad because his kite was stuck in the tall tree.',
    'One day, a small dog found a shiny key in the garden.',
    'The farmer had a goat who did not like the rain.',
    'Mia and her brother wanted to bake a cake for their mother.',
    'There was once a king who had three sons, and the youngest was called Hans.',
    'A fox met a hen on the road.',
    '"Where is my hat?" asked Grandpa.',
    'Every night the moon looked into the window of a little boy named Sam.',
    'The mouse lived in a hole under the old clock.',
    'Ben had a toy train, and he took it everywhere.',
    'It was the first day of school, and Lucy was afraid.',
    'In a village by the sea lived an old woman who had a parrot.',
    'The two friends saw a big bear near the river.',
    'Kofi wanted to help his father carry the water.',
    'A bird with a broken wing sat in front of the door.',
    'Long ago there was a poor shoemaker who had no bread in the house.',
    'Max did not want to share his new ball.',
    'The snow fell all day, and the children could not go out.',
    'One morning a frog jumped into the kitchen.',
)
TOKENS, TEMPERATURE, TOP_K, SEED = 100, 0.8, 200, 1
JUDGING = RESULTS / 'judging'
ROLES = ('old', 'new')
ANSWER = re.compile(r'(\d+): ([AB]) (yes|no) (yes|no)')
SHEET = """# Sheet {number}

Each row begins with an opening. Two writers, A and B, went on from it; a text may be cut off in the middle of its last
sentence. For each row: which text would you rather read to a child of six, A or B? And for each of the two: do persons,
things and pronouns stay the same to the end? (Nobody changes name or sex, nothing turns into something else.)

Answer with one line for each row. `3: B yes no` means: in row 3, B is preferred; they stay the same in A, but not in B.
"""


@dataclass
class Settings:
    """Judge two models blind, by what they write after twenty openings."""

    part: str = 'write'  # write: texts and sheets; count: the answers
    old: str = ''  # the first model: a name or a folder, as --init_from
    new: str = 'tiny-stories'  # the second
    sheets: int = 4  # how many judges


def main(settings):
    """Write texts and sheets, or count the answers."""
    if settings.part == 'write':
        if not settings.old:
            raise UserError('--old=FOLDER names the first of the two models')
        texts = [write_texts(getattr(settings, role)) for role in ROLES]
        rows = [
            {'opening': opening, 'old': old, 'new': new} for opening, old, new in zip(OPENINGS, *texts, strict=True)
        ]
        write_results('judging/texts.json', rows)
        for number in range(1, settings.sheets + 1):
            with atomic_write(JUDGING / f'sheets/sheet-{number}.md') as path:
                path.write_text(make_sheet(rows, number), encoding='utf-8')
    elif settings.part == 'count':
        answers = {path.name.partition('.')[0]: path for path in sorted(JUDGING.glob('sheets/*.answers.txt'))}
        if not answers:
            raise UserError(f'there are no answers, {JUDGING}/sheets/sheet-1.answers.txt and so on')
        judgements = {name: read_answers(path, int(name.partition('-')[2])) for name, path in answers.items()}
        write_results('judging/judgements.json', {'judges': judgements, **count_judgements(judgements)})
    else:
        raise UserError(f'--part={settings.part} is neither write nor count')


def write_texts(name):
    """Return what a model writes after each opening; a text may end before TOKENS tokens."""
    model, tokenizer = lm.load(name, device='cpu')
    texts = []
    for opening in OPENINGS:
        prompt_ids = tokenizer.encode_prompt(opening)
        ids, _ = model.generate(torch.tensor([prompt_ids]), TOKENS, TEMPERATURE, top_k=TOP_K, seed=SEED)
        written = list(itertools.takewhile(lambda id: id != tokenizer.eot, ids[0, len(prompt_ids) :].tolist()))
        texts.append(tokenizer.decode(written, after=prompt_ids))
    return texts


def shuffle_rows(number):
    """Return a sheet's rows, in order: (place among the openings, (role of A, role of B)).

    Sheets 1 and 2, 3 and 4, ... have their rows in the same order, with A and B exchanged.
    """
    rng = random.Random((number + 1) // 2)
    rows = [(place, tuple(rng.sample(ROLES, 2))) for place in rng.sample(range(len(OPENINGS)), len(OPENINGS))]
    return rows if number % 2 else [(place, roles[::-1]) for place, roles in rows]


def make_sheet(texts, number):
    """Return the Markdown of a sheet. texts: for each opening {'opening', 'old', 'new'}."""
    parts = [SHEET.format(number=number)]
    for row, (place, roles) in enumerate(shuffle_rows(number), 1):
        parts.append(f'## Row {row}\n\nOpening: {texts[place]["opening"]}\n')
        for letter, role in zip('AB', roles, strict=True):
            quoted = '\n'.join(f'> {line}'.rstrip() for line in texts[place][role].strip().split('\n'))
            parts.append(f'**{letter}**\n\n{quoted}\n')
    return '\n'.join(parts)


def read_answers(path, number):
    """Return the answers on a sheet, in the order of the openings: {'preferred': role, 'old': bool, 'new': bool}.

    The last two: whether persons, things and pronouns stay the same to the end. Raises UserError for a row without an
    answer.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    matches = [ANSWER.fullmatch(line) for line in lines]
    if [match and int(match[1]) for match in matches] != list(range(1, len(OPENINGS) + 1)):
        raise UserError(f'{path}: it must have one line for each of {len(OPENINGS)} rows, such as "3: B yes no"')
    answers = [{} for _ in OPENINGS]
    for match, (place, roles) in zip(matches, shuffle_rows(number), strict=True):
        same = {role: answer == 'yes' for role, answer in zip(roles, match.groups()[2:], strict=True)}
        answers[place] = {'preferred': roles['AB'.index(match[2])], **same}
    return answers


def count_judgements(judges):
    """Return for how many openings most judges prefer the new text, and find old and new texts consistent.

    judges: {name: answers of `read_answers`}. A tie counts against the text.
    """
    by_opening = list(zip(*judges.values(), strict=True))

    def count(agrees):
        return sum(2 * sum(map(agrees, answers)) > len(answers) for answers in by_opening)

    return {
        'openings': len(by_opening),
        'new_preferred': count(lambda answer: answer['preferred'] == 'new'),
        'consistent': {role: count(lambda answer, role=role: answer[role]) for role in ROLES},
    }


if __name__ == '__main__':
    configurator.run(main, Settings)
