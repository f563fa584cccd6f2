"""Blind judging: sheets that tell nothing, and answers that find their way back to the models."""

import json

import pytest

from common.errors import UserError
from lab import judging
from lab.judging import OPENINGS, count_judgements, make_sheet, read_answers, shuffle_rows

TEXTS = [{'opening': opening, 'old': f'dull {n}', 'new': f'bright {n}'} for n, opening in enumerate(OPENINGS)]


def fill_in(path, number, wish):
    """Answer a sheet as a judge would who prefers texts that contain a word."""
    rows = make_sheet(TEXTS, number).split('## Row ')[1:]
    lines = []
    for row in rows:
        is_a = wish in row.partition('**B**')[0]
        lines.append(f'{row.split()[0]}: {"A" if is_a else "B"} {"yes no" if is_a else "no yes"}')
    path.write_text('\n'.join(lines))
    return read_answers(path, number)


def test_a_judge_sees_every_text_but_not_whose_it_is():
    for number in (1, 2, 3):
        sheet = make_sheet(TEXTS, number)
        assert 'old' not in sheet.split('## Row 1\n')[0].split()
        assert all(sheet.count(f'> {word} {n}\n') == 1 for n in range(20) for word in ('dull', 'bright'))


def test_every_second_sheet_exchanges_a_and_b():
    first, second, third = map(shuffle_rows, (1, 2, 3))
    assert [(place, roles[::-1]) for place, roles in first] == second
    assert [place for place, _ in third] != [place for place, _ in first]
    assert {roles for _, roles in first} == {('old', 'new'), ('new', 'old')}


def test_answers_are_counted_for_the_right_model(tmp_path):
    for_new, against = (fill_in(tmp_path / word, 3, word) for word in ('bright', 'dull'))
    assert all(answer == {'preferred': 'new', 'new': True, 'old': False} for answer in for_new)
    alone = count_judgements({'1': for_new})
    assert alone == {'openings': 20, 'new_preferred': 20, 'consistent': {'old': 0, 'new': 20}}
    tied = count_judgements({'1': for_new, '2': against})
    assert tied == {'openings': 20, 'new_preferred': 0, 'consistent': {'old': 0, 'new': 0}}


def test_a_row_without_an_answer_is_an_error(tmp_path):
    (tmp_path / 'a.txt').write_text('1: A yes no\n3: B yes yes\n')
    with pytest.raises(UserError, match='one line for each of 20 rows'):
        read_answers(tmp_path / 'a.txt', 1)


@pytest.mark.slow
def test_two_models_write_and_judges_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, 'TOKENS', 5)
    with pytest.raises(UserError, match='--old=FOLDER'):
        judging.main(judging.Settings())
    judging.main(judging.Settings(old='tiny', sheets=2))
    for number in (1, 2):
        sheet = (tmp_path / f'results/judging/sheets/sheet-{number}.md').read_text()
        answers = '\n'.join(f'{row}: A yes yes' for row in range(1, sheet.count('## Row') + 1))
        (tmp_path / f'results/judging/sheets/sheet-{number}.answers.txt').write_text(answers)
    judging.main(judging.Settings(part='count'))
    counted = json.loads((tmp_path / 'results/judging/judgements.json').read_text())
    assert counted['new_preferred'] == 0  # each judge took A, which is the other model's text on the other sheet
    assert counted['consistent'] == {'old': 20, 'new': 20}
