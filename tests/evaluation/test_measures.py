"""Intervals, the permutation test and calibration against scipy and against brute force."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from evaluation import measures
from evaluation.measures import Calibration, Results, arrow, interval, resampled_totals, sign_flip_p_value, totals


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, 80).astype(float)
    return {'logprob': -rng.gamma(2, tokens), 'tokens': tokens}


MEAN = ('mean', lambda sums: sums['logprob'] / sums['n'], lambda logprob, tokens, axis: logprob.mean(axis=axis))
RATIO = (
    'perplexity',
    lambda sums: np.exp(-sums['logprob'] / sums['tokens']),
    lambda logprob, tokens, axis: np.exp(-logprob.sum(axis=axis) / tokens.sum(axis=axis)),
)


@pytest.mark.parametrize(('name', 'measure', 'statistic'), [MEAN, RATIO], ids=['mean', 'perplexity'])
def test_the_bootstrap_interval_is_scipys(columns, name, measure, statistic):
    ours = interval(measure, totals(columns), resampled_totals(columns, 20_000, seed=1))
    theirs = scipy.stats.bootstrap(
        tuple(columns.values()),
        statistic,
        n_resamples=20_000,
        paired=True,
        vectorized=True,
        method='percentile',
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(statistic(*columns.values(), axis=-1), rel=1e-12)
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)  # both are random, by about a hundredth
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_resampling_draws_each_row_as_often_as_any_other_and_n_in_all(monkeypatch):
    monkeypatch.setattr(measures, 'CHUNK', 100)  # several chunks
    n = 7
    columns = {str(row): np.eye(n)[row] for row in range(n)}  # the total of a column is how often its row was drawn
    drawn = resampled_totals(columns, 5000, seed=0)
    counts = np.stack([drawn[str(row)] for row in range(n)])
    assert (counts.sum(axis=0) == n).all()
    share_of_zero = (counts == 0).mean()
    assert share_of_zero == pytest.approx((1 - 1 / n) ** n, abs=0.01)  # binomial, as drawing with replacement has it


def test_the_seed_decides(columns):
    assert (resampled_totals(columns, 50, 3)['logprob'] == resampled_totals(columns, 50, 3)['logprob']).all()
    assert (resampled_totals(columns, 50, 3)['logprob'] != resampled_totals(columns, 50, 4)['logprob']).any()


def test_the_exact_permutation_test_is_scipys_and_brute_force():
    rng = np.random.default_rng(5)
    for n in (1, 2, 5, 9, 12):
        differences = rng.normal(0.4, 1, n)
        ours = sign_flip_p_value(differences)
        flips = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=n)]
        assert ours == np.mean(np.array(flips) >= abs(differences.sum()) - 1e-12)
        if n > 1:
            theirs = scipy.stats.permutation_test(
                (differences, np.zeros(n)),
                lambda a, b, axis: (a - b).mean(axis=axis),
                permutation_type='samples',
                n_resamples=np.inf,
                vectorized=True,
            )
            assert ours == pytest.approx(theirs.pvalue, abs=1e-12)


def test_the_random_permutation_test_is_near_scipys():
    differences = np.random.default_rng(6).normal(0.15, 1, 101)
    theirs = scipy.stats.permutation_test(
        (differences, np.zeros(101)),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type='samples',
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    ours = sign_flip_p_value(differences, resamples=20_000, seed=0)
    assert 0.01 < ours < 0.9
    assert ours == pytest.approx(theirs.pvalue, abs=4 * math.sqrt(ours * (1 - ours) / 10_000))


def test_the_p_value_is_never_zero_and_one_without_a_difference():
    assert sign_flip_p_value(np.full(1000, 3.0), resamples=999) == 1 / 1000
    assert sign_flip_p_value(np.zeros(1000), resamples=999) == 1
    assert sign_flip_p_value([0.1, 0.2, -0.3]) == 1  # a sum of 0 but for rounding


def test_p_values_are_uniform_where_nothing_distinguishes_the_models():
    rng = np.random.default_rng(7)
    p_values = [sign_flip_p_value(rng.normal(0, 1, 40), resamples=300, seed=seed) for seed in range(300)]
    assert scipy.stats.kstest(p_values, 'uniform').pvalue > 0.01


def test_calibration_is_the_mean_distance_over_bins():
    rng = np.random.default_rng(8)
    confidences = np.concatenate([rng.uniform(size=500), [0.0, 1.0, 1.0]])
    correct = rng.uniform(size=503) < confidences**2
    calibration = Calibration(bins=10)
    for part in np.split(np.arange(503), [100, 101, 300]):  # in parts, as rows come
        calibration.add(confidences[part], correct[part])
    expected, table = 0, []
    for low in range(10):
        inside = (confidences >= low / 10) & ((confidences < (low + 1) / 10) | ((low == 9) & (confidences == 1)))
        if inside.any():
            table.append((confidences[inside].mean(), correct[inside].mean(), inside.sum()))
            expected += inside.sum() / 503 * abs(table[-1][0] - table[-1][1])
    assert calibration.error() == pytest.approx(expected)
    assert np.array(calibration.table()) == pytest.approx(np.array(table))


def test_a_calibrated_model_has_almost_no_calibration_error():
    rng = np.random.default_rng(9)
    confidences = rng.uniform(size=200_000)
    calibration = Calibration()
    calibration.add(confidences, rng.uniform(size=200_000) < confidences)
    assert calibration.error() < 0.01
    assert math.isnan(Calibration().error())


def side(logprob, tokens=2, **more):
    """Return what one model may say about a response of so many tokens."""
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
    results = Results(same_tokens=True, temperature=1.0, show=2, text=False)
    results.extend(rows[:3])
    results.extend(rows[3:])
    assert results.shown == rows[:2]
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
    monkeypatch.setattr(measures, 'KEPT', 3)
    results = Results(same_tokens=True, temperature=1.0, show=0, text=False)
    ratios = [0.1, -9, 4, 0, 7, -2]
    results.extend({'index': n, **side(-1.0), 'before': side(-1.0), 'log_ratio': r} for n, r in enumerate(ratios))
    assert [row['log_ratio'] for row in results.most_changed] == [-9, 4, 7]


def test_measures_without_tokens_have_no_value():
    results = Results(same_tokens=True, temperature=1.0, show=1, text=False)
    empty = {'logprob': 0.0, 'prob': 1.0, 'tokens': 0, 'bytes': 0, 'greedy': True}
    results.extend([{'index': 0, **empty, 'token_logprobs': [], 'token_ranks': [], 'token_top_logprobs': []}])
    summary = results.summary(resamples=10, seed=0)
    assert summary['measures']['model']['perplexity'] == {'value': None, 'low': None, 'high': None}
    assert summary['measures']['model']['sum_of_probs']['value'] == 1
    assert summary['calibration']['model'] == {'error': None, 'table': []}


def test_models_with_different_tokens_are_not_compared_by_token():
    results = Results(same_tokens=False, temperature=1.0, show=0, text=False)
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
