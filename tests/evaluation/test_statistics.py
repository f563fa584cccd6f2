"""Intervals, the permutation test and calibration, against scipy and against brute force."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from evaluation import statistics
from evaluation.statistics import Calibration, bootstrap_interval, resample_sums, sign_flip_p_value, sum_columns


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
def test_the_bootstrap_interval_equals_scipy(columns, name, measure, statistic):
    ours = bootstrap_interval(measure, sum_columns(columns), resample_sums(columns, 20_000, seed=1))
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
    monkeypatch.setattr(statistics, 'CHUNK', 100)  # several chunks
    n = 7
    columns = {str(row): np.eye(n)[row] for row in range(n)}  # the total of a column is how often its row was drawn
    drawn = resample_sums(columns, 5000, seed=0)
    counts = np.stack([drawn[str(row)] for row in range(n)])
    assert (counts.sum(axis=0) == n).all()
    share_of_zero = (counts == 0).mean()
    assert share_of_zero == pytest.approx((1 - 1 / n) ** n, abs=0.01)  # binomial


def test_the_seed_decides(columns):
    assert (resample_sums(columns, 50, 3)['logprob'] == resample_sums(columns, 50, 3)['logprob']).all()
    assert (resample_sums(columns, 50, 3)['logprob'] != resample_sums(columns, 50, 4)['logprob']).any()


def test_the_exact_permutation_test_equals_scipy_and_brute_force():
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


def test_the_random_permutation_test_is_close_to_scipy():
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
    assert sign_flip_p_value([0.1, 0.2, -0.3]) == 1  # a sum of 0 except for rounding


def test_p_values_are_uniform_if_the_models_do_not_differ():
    rng = np.random.default_rng(7)
    p_values = [sign_flip_p_value(rng.normal(0, 1, 40), resamples=300, seed=seed) for seed in range(300)]
    assert scipy.stats.kstest(p_values, 'uniform').pvalue > 0.01


def test_calibration_is_the_mean_distance_over_bins():
    rng = np.random.default_rng(8)
    confidences = np.concatenate([rng.uniform(size=500), [0.0, 1.0, 1.0]])
    correct = rng.uniform(size=503) < confidences**2
    calibration = Calibration(bins=10)
    for part in np.split(np.arange(503), [100, 101, 300]):  # in parts, as rows arrive
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
