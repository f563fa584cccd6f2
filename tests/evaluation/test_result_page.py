"""page.html of an evaluation: its numbers are those of pairs.jsonl, however the evaluation was run."""

import json
import math
import re

import pytest
from helpers.evaluation import evaluate, page_of, rows_in, run_two, write_pairs

from evaluation import result_page, sources
from evaluation.results import KEPT
from pictures.page import LOGPROB_DIGITS, TOTAL_DIGITS, round_number


def assert_page_has_the_numbers_of_the_rows(folder):
    """Check each number that both page.html and pairs.jsonl have, rounded as the page rounds it."""
    rows = {f'pair {row["index"]}': row for row in rows_in(folder)}
    texts = page_of(folder)['texts']
    for text in texts:
        row = rows[text['label']]
        for side, shown in zip([row, row['before']] if 'before' in row else [row], text['sides'], strict=True):
            assert shown['logprob'] == round_number(side['logprob'], TOTAL_DIGITS)
            assert shown['logprobs'] == [round_number(logprob, LOGPROB_DIGITS) for logprob in side['token_logprobs']]
            assert shown['ranks'] == side['token_ranks']
    return len(texts)


def cut_in_half(folder):
    """Leave a folder as an interrupted evaluation does."""
    whole = (folder / 'pairs.jsonl').read_bytes()
    (folder / 'pairs.jsonl').unlink()
    (folder / 'pairs.jsonl.part').write_bytes(whole[: len(whole) // 2])


# Exact equality -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_that_are_scored_again_for_the_page_have_the_same_floats(here, monkeypatch, without_pictures):
    """More pairs than the page shows, in many windows: which rows changed most is known only after the last one."""
    pages, scored = [], []
    score_units = result_page.score_units
    monkeypatch.setattr(sources, 'WINDOW', 16)
    monkeypatch.setattr(result_page, 'write_page', lambda page, path: pages.append(page))
    monkeypatch.setattr(
        result_page, 'score_units', lambda units, *rest: scored.append(units) or score_units(units, *rest)
    )
    write_pairs('many.jsonl', KEPT + 70)
    evaluate(init_from='one', compare_to='two', temperature=0.7, eval_data='many.jsonl', save='./many')
    assert scored
    rows = {f'pair {row["index"]}': row for row in rows_in(here / 'many')}
    assert len(pages[0].texts) == KEPT
    for text in pages[0].texts:
        row = rows[text.label]
        for side, shown in zip((row, row['before']), text.sides, strict=True):
            assert [record.model_logprob for record in shown.records] == side['token_logprobs']
            assert [record.sampler_logprob for record in shown.records] == side['token_sampler_logprobs']
            assert [record.rank for record in shown.records] == side['token_ranks']
            assert [record.alternatives[0].model_logprob for record in shown.records] == side['token_top_logprobs']


@pytest.mark.slow
@pytest.mark.parametrize('compared', [True, False])
def test_the_page_of_a_resumed_evaluation_is_that_of_an_uninterrupted_one(
    here, monkeypatch, compared, without_pictures
):
    monkeypatch.setattr(sources, 'WINDOW', 16)
    write_pairs('many.jsonl', KEPT + 40)
    settings = {
        'init_from': 'one',
        'compare_to': 'two' if compared else None,
        'eval_data': 'many.jsonl',
        'save': './kept',
    }
    evaluate(**settings)
    assert assert_page_has_the_numbers_of_the_rows(here / 'kept') == KEPT
    page, rows = ((here / 'kept' / name).read_bytes() for name in ('page.html', 'pairs.jsonl'))
    cut_in_half(here / 'kept')
    evaluate(**settings, resume_eval=True)
    assert (here / 'kept' / 'pairs.jsonl').read_bytes() == rows
    assert (here / 'kept' / 'page.html').read_bytes() == page


@pytest.mark.slow
def test_the_page_of_two_processes_resumed_or_not(here):
    write_pairs('many.jsonl', 600)
    arguments = ['--init_from=one', '--compare_to=two', '--device=cpu', '--eval_data=many.jsonl', '--save=./kept']
    process = run_two(here, *arguments, '--show=0')
    assert process.returncode == 0, process.stderr
    assert assert_page_has_the_numbers_of_the_rows(here / 'kept') == KEPT
    page = (here / 'kept' / 'page.html').read_bytes()
    cut_in_half(here / 'kept')
    process = run_two(here, *arguments, '--show=0', '--resume_eval=True')
    assert process.returncode == 0, process.stderr
    assert (here / 'kept' / 'page.html').read_bytes() == page


# What it shows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('compared', [True, False])
def test_the_page_says_what_pairs_jsonl_says(here, compared, without_pictures):
    settings = {'compare_to': 'other', 'temperature': 1.0} if compared else {'temperature': 0.7}
    evaluate(init_from='one', eval_data='pairs.jsonl', save='./kept', **settings)
    numbers = page_of(here / 'kept')
    assert numbers['models'] == ['one', 'other'][: 1 + compared]
    for row, text in zip(rows_in(here / 'kept'), numbers['texts'], strict=True):
        for side, shown in zip((row, row.get('before')), text['sides']):
            assert [numbers['pieces'][place] for place in shown['pieces']] == side['pieces']
            assert shown['ranks'] == side['token_ranks']
            assert shown['logprobs'] == pytest.approx(side['token_logprobs'], rel=1e-6)
            assert shown['logprob'] == pytest.approx(side['logprob'], rel=1e-9)
            likeliest = [math.exp(logprob) for logprob in side['token_top_logprobs']]
            assert [probs[0] for probs in shown['probs']] == pytest.approx(likeliest, rel=1e-4)
            if compared:
                assert shown['sampler_logprob'] is None
            else:
                assert shown['sampler_logprob'] == pytest.approx(side['sampler_logprob'], rel=1e-9)
                assert shown['sampler_logprobs'] == pytest.approx(side['token_sampler_logprobs'], rel=1e-6)


def test_of_a_very_long_response_the_page_shows_the_same_beginning_under_both_models(
    here, monkeypatch, without_pictures
):
    monkeypatch.setattr(result_page, 'PAGE_TOKENS', 7)
    text = ' The little old king went to the forest and said nothing at all.'
    (here / 'long.json').write_text(json.dumps([['The', text], ['The', ' fox']]))
    evaluate(init_from='one', compare_to='other', eval_data='long.json', save='./long')
    numbers = page_of(here / 'long')
    long, short = numbers['texts']
    shown = [''.join(numbers['pieces'][place] for place in side['pieces']).replace('·', ' ') for side in long['sides']]
    assert all(text.startswith(beginning) for beginning in shown)
    assert min(map(len, shown)) > 0
    assert max(len(side['pieces']) for side in long['sides']) == 7
    assert max(map(len, shown)) - min(map(len, shown)) < 8  # but for a token that lies across the cut
    assert re.fullmatch(r'pair 0 \(its first \d tokens of \d+\)', long['label'])
    assert short['label'] == 'pair 1'


@pytest.mark.slow
def test_of_many_pairs_the_page_says_which_it_shows(here, without_pictures):
    write_pairs('many.jsonl', 130)
    evaluate(init_from='one', compare_to='two', eval_data='many.jsonl', save='./many')
    numbers = page_of(here / 'many')
    assert len(numbers['texts']) == 100
    assert any('the 100 that changed most, of 130' in line for line in numbers['about'])
