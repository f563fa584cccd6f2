"""What measures say of rows, worked out by hand, and the one table that they are in."""

import math

import numpy as np
import pytest

from evaluation import measures
from evaluation import results as results_module
from evaluation.measures import MEASURES, Measure, row_measures
from evaluation.results import Results, arrow
from evaluation.statistics import sign_flip_p_value
from evaluation.tables import measure_lines


def side(logprob, tokens=2, **more):
    """Return what one model may say about a response of `tokens` tokens."""
    each = [logprob / tokens] * tokens
    values = {'logprob': logprob, 'prob': math.exp(logprob), 'tokens': tokens, 'bytes': 3 * tokens, 'greedy': False}
    return {**values, 'token_logprobs': each, 'token_ranks': [2] * tokens, 'token_top_logprobs': each, **more}


def test_a_summary_adds_up():
    rows = [
        {
            'index': index,
            **side(-3.0 - index, right=index == 0, right_per_byte=True),
            'before': side(-5.0),
            'log_ratio': r,
        }
        for index, r in enumerate([2.0, 1.0, 0.0, 0.00001, -1.0])
    ]
    for row in rows:
        row['before'] |= {'right': False, 'right_per_byte': False}
    results = Results(same_tokens=True, has_sampler=False, show=2, text=False)
    results.extend(rows[:3])
    results.extend(rows[3:])
    assert results.printed == rows[:2]
    summary = results.summary(resamples=500, seed=0)
    logprobs = np.array([-3.0, -4, -5, -6, -7])
    assert (summary['rows'], summary['tokens'], summary['bytes'], summary['logprob']) == (5, 10, 30, -25.0)
    after, difference = summary['measures']['model'], summary['measures']['difference']
    assert after['sum_of_probs']['value'] == pytest.approx(np.exp(logprobs).sum())
    assert after['logprob_per_response']['value'] == -5
    assert after['perplexity']['value'] == pytest.approx(math.exp(2.5))
    assert after['bits_per_byte']['value'] == pytest.approx(25 / 30 / math.log(2))
    assert difference['logprob_per_response']['value'] == 0
    assert difference['logprob_per_response']['low'] < 0 < difference['logprob_per_response']['high']
    questions = summary['multiple_choice']
    assert (questions['questions'], questions['model']['acc']['value'], questions['model']['acc_norm']['value']) == (
        5,
        0.2,
        1,
    )
    assert questions['difference']['acc_norm'] == {'value': 1.0, 'low': 1.0, 'high': 1.0}
    comparison = summary['comparison']
    assert [comparison[key] for key in ('rose', 'fell', 'same')] == [2, 1, 2]
    assert comparison['mean_log_ratio']['value'] == pytest.approx(2.00001 / 5)
    assert comparison['p_value'] == sign_flip_p_value([2.0, 1.0, 0.0, 0.00001, -1.0])


def test_the_rows_that_changed_most_are_kept(monkeypatch):
    monkeypatch.setattr(results_module, 'KEPT', 3)
    results = Results(same_tokens=True, has_sampler=False, show=0, text=False)
    ratios = [0.1, -9, 4, 0, 7, -2]
    results.extend({'index': n, **side(-1.0), 'before': side(-1.0), 'log_ratio': r} for n, r in enumerate(ratios))
    assert [row['log_ratio'] for row in results.most_changed] == [-9, 4, 7]


def test_measures_without_tokens_have_no_value():
    results = Results(same_tokens=True, has_sampler=False, show=1, text=False)
    empty = {'logprob': 0.0, 'prob': 1.0, 'tokens': 0, 'bytes': 0, 'greedy': True}
    results.extend([{'index': 0, **empty, 'token_logprobs': [], 'token_ranks': [], 'token_top_logprobs': []}])
    summary = results.summary(resamples=10, seed=0)
    assert summary['measures']['model']['perplexity'] == {'value': None, 'low': None, 'high': None}
    assert summary['measures']['model']['sum_of_probs']['value'] == 1
    assert summary['calibration']['model'] == {'error': None, 'table': []}


def test_models_with_different_tokens_are_not_compared_by_token():
    results = Results(same_tokens=False, has_sampler=False, show=0, text=False)
    results.extend([{'index': 0, **side(-1.0), 'before': side(-2.0, tokens=5), 'log_ratio': 0.03}])
    summary = results.summary(resamples=10, seed=0)
    assert summary['comparison']['per'] == 'byte'
    assert 'perplexity' not in summary['measures']['difference']
    assert 'bits_per_byte' in summary['measures']['difference']


def test_arrows_follow_from_the_numbers_that_are_printed():
    for ratio in (0.0, 4e-5, -4e-5):
        assert arrow(ratio) == '='
        assert f'{abs(ratio):.4f}' == '0.0000'
    assert (arrow(6e-5), arrow(-6e-5)) == ('↑', '↓')


def test_a_measure_is_one_entry_that_summary_and_tables_take(monkeypatch):
    """An entry in MEASURES is all that a new measure needs."""
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len({measure.label for measure in MEASURES}) == len(MEASURES)
    needs = {'responses', 'tokens', 'sampler', 'whole text', 'start', 'choices', 'comparison', 'calibration'}
    assert set().union(*(measure.needs for measure in MEASURES)) == needs
    log_tokens = Measure('log_tokens', 'log tokens', 'log of all tokens', '{:.3f}', lambda sums: np.log(sums['tokens']))
    monkeypatch.setattr(measures, 'MEASURES', [log_tokens, *MEASURES])
    monkeypatch.setitem(measures.BY_NAME, 'log_tokens', log_tokens)
    results = Results(same_tokens=True, has_sampler=False, show=0, text=False)
    results.extend([{'index': n, **side(-1.0)} for n in range(3)])
    summary = results.summary(resamples=10, seed=0)
    assert summary['measures']['model']['log_tokens']['value'] == pytest.approx(math.log(6))
    assert ['log tokens', '1.792 [1.79, 1.79]'] in measure_lines(summary)


@pytest.mark.parametrize('text', [True, False])
@pytest.mark.parametrize('has_sampler', [False, True])
def test_measures_are_computed_only_if_they_mean_something(text, has_sampler):
    names = {measure.name for measure in row_measures(text, has_sampler)}
    assert ('greedy_rate' in names) == (not text)
    assert ('sampler_perplexity' in names) == has_sampler
    assert ('sampler_sum_of_probs' in names) == (has_sampler and not text)
    assert not names & {'acc', 'acc_norm', 'calibration_error'}
    assert {'bits_per_byte', 'perplexity', 'mean_log_ratio'} <= names
