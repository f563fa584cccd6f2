"""Numbers on a page: which agree with their source, which do not, and how they are corrected."""

import json

import pytest

from lab.check_page_numbers import find_disagreements, format_like, refresh_numbers

PAGE = """# Title, 1.5 of them

Of 64 responses 51 rose, by +4.79 on average (27.0 % of the tokens, 5.9 M parameters, p = 2.3e-05) at temperature 0.8.
<!-- numbers/a.json: 51 = rose; +4.79 = mean/0; 27.0 % = share;
     5.9 M = parameters; 2.3e-05 = p -->
<!-- given: 0.8 -->

Without a source: `0.3` in code, 7 in words, and a [link](page-1.5.md).

| a | b |
| --- | ---: |
| 1.00 | −2.0 |
<!-- numbers/a.json: 1.00 = one; −2.0 = negative -->
"""
NUMBERS = {'rose': 51, 'mean': [4.789], 'share': 0.27, 'parameters': 5.853e6, 'p': 2.31e-5, 'one': 1, 'negative': -2.04}


@pytest.fixture
def page(tmp_path):
    (tmp_path / 'numbers').mkdir()
    (tmp_path / 'numbers/a.json').write_text(json.dumps(NUMBERS))
    (tmp_path / 'page.md').write_text(PAGE, encoding='utf-8')
    return tmp_path / 'page.md'


@pytest.mark.parametrize(
    'value, shown, written',
    [
        (51, '64', '51'),
        (4.789, '+0.00', '+4.79'),
        (-4.789, '+0.00', '−4.79'),
        (-4.789, '-0.0', '-4.8'),
        (12345.6, '3,000', '12,346'),
        (0.2698, '0.0 %', '27.0 %'),
        (5853184, '1.0 M', '5.9 M'),
        (2.31e-5, '1.0e-07', '2.3e-05'),
        (8.95212e-109, '1.00e-07', '8.95e-109'),
        ('·king', '`·queen`', '`·king`'),
    ],
)
def test_a_value_is_formatted_like_the_number_on_the_page(value, shown, written):
    assert format_like(value, shown) == written


def test_a_page_that_agrees_stays_the_same(page):
    assert find_disagreements(page) == []
    assert refresh_numbers(page) == PAGE


def test_changed_numbers_are_reported_and_corrected(page):
    changed = {**NUMBERS, 'rose': 63, 'share': 0.314, 'negative': 3}
    (page.parent / 'numbers/b.json').write_text(json.dumps(changed))
    page.write_text(PAGE.replace('a.json', 'b.json'), encoding='utf-8')
    complaints = find_disagreements(page, all_sourced=False)
    assert [complaint.split(': ')[1].split(' in ')[0] for complaint in complaints] == [
        '51 is 63',
        '27.0 % is 31.4 %',
        '−2.0 is 3.0',
    ]
    page.write_text(refresh_numbers(page), encoding='utf-8')
    assert find_disagreements(page, all_sourced=False) == []
    assert 'Of 64 responses 63 rose, by +4.79 on average (31.4 % of' in page.read_text(encoding='utf-8')


def test_a_number_may_be_quoted_twice_and_become_two(page):
    page.write_text('| 7 | 7 | 7 |\n<!-- numbers/a.json: 7 = one; 7 = rose -->\n<!-- given: 7 -->\n')
    assert len(find_disagreements(page)) == 2
    assert refresh_numbers(page) == '| 1 | 51 | 7 |\n<!-- numbers/a.json: 1 = one; 51 = rose -->\n<!-- given: 7 -->\n'


def test_a_number_is_not_taken_for_a_longer_one(page):
    page.write_text('It is 11.5, or 1.5, or 1.50.\n<!-- given: 11.5; 1.50 -->\n')
    assert find_disagreements(page) == [f'{page}: 1.5 has no source: It is 11.5, or 1.5, or 1.50.']


def test_numbers_that_cannot_be_checked_are_reported(page):
    page.write_text('It is 1.5 and 2.5, or 3.5.\n<!-- numbers/a.json: 1.5 = nothing; 4.5 = one; 2.5 = one -->\n')
    complaints = '\n'.join(find_disagreements(page))
    for words in ('1.5 has no source: KeyError', '4.5 is not in the paragraph', '2.5 is 1.0 in', '3.5 has no source'):
        assert words in complaints
