"""How sure a number is: bootstrap intervals, a permutation test, calibration. Plain numpy; no models in here.

A column is a float64 array with one number per row. A measure is a function of sums of columns, so rows are resampled
once for all measures and for both models together, which also makes their differences paired.
"""

import math
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

CHUNK = 500_000  # random numbers held at a time: memory does not grow with the number of rows


class Interval(NamedTuple):
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float


def sum_columns(columns):
    """Return the sum of each column, and `n`, the number of rows."""
    n = len(next(iter(columns.values())))
    return {'n': n, **{name: np.sum(column) for name, column in columns.items()}}


def resample_sums(columns, resamples, seed):
    """Return the sums of `resamples` bootstrap samples: a (resamples,) array for each column (Efron 1979).

    A sum depends only on how often each row was drawn, so it is a product of counts and columns.
    """
    data = np.stack(list(columns.values()), axis=1)  # (n, columns)
    n = len(data)
    rng = np.random.default_rng(seed % 2**64)  # numpy takes no negative seeds
    infinite = np.isneginf(data)  # the logprob of what a greedy sampler never draws; 0 times it must be 0, not nan
    data = np.where(infinite, 0, data)
    sums = np.empty((resamples, data.shape[1]))
    chunk = max(1, CHUNK // n)
    for first in tqdm(range(0, resamples, chunk), 'resampling', leave=False, delay=3, disable=None):
        size = min(chunk, resamples - first)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[first : first + size] = np.where(counts @ infinite, -np.inf, counts @ data)
    return {'n': n, **dict(zip(columns, sums.T))}


def bootstrap_interval(compute, sums, resampled, level=0.95):
    """Return compute(sums) with its percentile interval: nan if it has none, without tokens or with a single row."""
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        values = np.asarray(compute(resampled))
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if sums['n'] > 1 else (math.nan, math.nan)
        return Interval(float(compute(sums)), float(low), float(high))


def sign_flip_p_value(differences, resamples=10_000, seed=0):
    """Return the two-sided p-value of a paired permutation test of whether the mean difference is 0.

    If the two models did not differ, each difference could equally well have the opposite sign (Fisher 1935). All 2**n
    choices of signs are tried if these are at most `resamples`; otherwise that many are drawn, and the observed one
    counts as one of them (Phipson & Smyth 2010).
    """
    differences = np.asarray(differences, dtype=np.float64)
    n = len(differences)
    observed = abs(differences.sum())
    slack = 1e-12 * np.abs(differences).sum()  # sums that differ only by rounding count as equal
    if 2**n <= resamples:
        negative = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # (2**n, n)
        return float((np.abs((1 - 2 * negative) @ differences) >= observed - slack).mean())
    rng = np.random.default_rng(seed % 2**64)
    extreme, chunk = 0, max(1, CHUNK // n)
    for first in range(0, resamples, chunk):
        size = min(chunk, resamples - first)
        bits = np.frombuffer(rng.bytes(size * -(-n // 8)), dtype=np.uint8).reshape(size, -1)
        negative = np.unpackbits(bits, axis=1, count=n)  # (size, n)
        flipped = differences.sum() - 2 * (negative @ differences)
        extreme += int((np.abs(flipped) >= observed - slack).sum())
    return (extreme + 1) / (resamples + 1)


class Calibration:
    """How often the likeliest token came, against how confident the model was in it (Guo et al. 2017).

    Counts in bins of probability, all equally wide, so memory does not grow with the number of tokens.
    """

    def __init__(self, bins=15):
        self._sums = np.zeros((3, bins))  # tokens, summed confidence, tokens for which the likeliest one came

    def add(self, confidences, correct):
        """Count tokens: the probability of the likeliest one, and whether it came."""
        bins = self._sums.shape[1]
        confidences = np.asarray(confidences, dtype=np.float64)
        bin_of = np.minimum((confidences * bins).astype(np.int64), bins - 1)
        for sums, weights in zip(self._sums, (None, confidences, np.asarray(correct, dtype=np.float64))):
            sums += np.bincount(bin_of, weights, bins)

    def table(self):
        """Return (mean confidence, share that came, number of tokens) for each bin that is not empty."""
        count, confidence, correct = self._sums[:, self._sums[0] > 0]
        return list(zip((confidence / count).tolist(), (correct / count).tolist(), count.astype(int).tolist()))

    def error(self):
        """Return the expected calibration error, the mean of |confidence - share| over tokens; nan without tokens."""
        count, confidence, correct = self._sums
        return float(np.abs(confidence - correct).sum() / count.sum()) if count.any() else math.nan
