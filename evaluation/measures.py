"""Measures over many scored rows, each with its uncertainty: bootstrap intervals, a permutation test, calibration.

A column is a float64 array with one number a row; every measure here is a function of sums of columns. So rows are
resampled once for all measures and for both models together, which also makes differences paired ones.
"""

import heapq
import math
from array import array
from collections import defaultdict
from typing import NamedTuple

import numpy as np

KEPT = 100  # rows kept for the report and the page: the first ones, and those that changed most
TEXT_SEGMENTS = 8  # of a running text on the page
CHUNK = 500_000  # random numbers held at a time: memory does not grow with the number of rows


class Interval(NamedTuple):
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float


# Functions of the sums of a response's columns, `n` being the number of responses.
MEASURES = {
    'sum_of_probs': lambda sums: sums['prob'],
    'logprob_per_response': lambda sums: sums['logprob'] / sums['n'],
    'logprob_per_token': lambda sums: sums['logprob'] / sums['tokens'],
    'logprob_per_byte': lambda sums: sums['logprob'] / sums['bytes'],
    'bits_per_byte': lambda sums: -sums['logprob'] / sums['bytes'] / math.log(2),
    'perplexity': lambda sums: np.exp(-sums['logprob'] / sums['tokens']),
    'greedy_rate': lambda sums: sums['greedy'] / sums['n'],
    'token_accuracy': lambda sums: sums['likeliest'] / sums['tokens'],
}
SAMPLER_MEASURES = {
    'sampler_sum_of_probs': lambda sums: sums['sampler_prob'],
    'sampler_logprob_per_response': lambda sums: sums['sampler_logprob'] / sums['n'],
    'sampler_perplexity': lambda sums: np.exp(-sums['sampler_logprob'] / sums['tokens']),
}
# A segment of a running text is not a response.
OF_RESPONSES = (
    *('sum_of_probs', 'logprob_per_response', 'greedy_rate'),
    *('sampler_sum_of_probs', 'sampler_logprob_per_response'),
)
OF_TOKENS = ('logprob_per_token', 'perplexity', 'token_accuracy', 'sampler_perplexity')  # of one tokenizer only
CHOICE_MEASURES = {
    'acc': lambda sums: sums['right'] / sums['n'],
    'acc_norm': lambda sums: sums['right_per_byte'] / sums['n'],
}


def totals(columns):
    """Return the sum of each column, and `n`, the number of rows: what the measures are functions of."""
    n = len(next(iter(columns.values())))
    return {'n': n, **{name: np.sum(column) for name, column in columns.items()}}


def resampled_totals(columns, resamples, seed):
    """Return the totals of rows drawn with replacement, `resamples` times: (resamples,) arrays.

    The bootstrap of Efron 1979. A sum needs only how often each row was drawn: it is a product of counts and columns.
    """
    data = np.stack(list(columns.values()), axis=1)  # (n, columns)
    n = len(data)
    rng = np.random.default_rng(seed % 2**64)  # numpy knows no negative seeds
    infinite = np.isneginf(data)  # the logprob of what a greedy sampler never says; 0 times it must be 0, not nan
    data = np.where(infinite, 0, data)
    sums = np.empty((resamples, data.shape[1]))
    chunk = max(1, CHUNK // n)
    for first in range(0, resamples, chunk):
        size = min(chunk, resamples - first)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[first : first + size] = np.where(counts @ infinite, -np.inf, counts @ data)
    return {'n': n, **dict(zip(columns, sums.T))}


def interval(measure, total, resampled, level=0.95):
    """Return a measure with its percentile interval; nan where there is none: no tokens, or a single row."""
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        drawn = np.asarray(measure(resampled))
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if total['n'] > 1 else (math.nan, math.nan)
        return Interval(float(measure(total)), float(low), float(high))


def sign_flip_p_value(differences, resamples=10_000, seed=0):
    """Return the two-sided p-value of a paired permutation test of whether the mean difference is 0.

    If nothing distinguished the two models, each difference could as well have had the other sign (Fisher 1935). All
    2**n choices of signs are tried where these are no more than `resamples`; else so many are drawn, and the observed
    one counts among them (Phipson & Smyth 2010).
    """
    differences = np.asarray(differences, dtype=np.float64)
    n = len(differences)
    observed = abs(differences.sum())
    slack = 1e-12 * np.abs(differences).sum()  # sums that rounding alone tells apart are equal
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
    """How often the likeliest token came, against how sure the model was of it (Guo et al. 2017).

    Counts in equally wide bins of probability, so that nothing grows with the number of tokens.
    """

    def __init__(self, bins=15):
        self._sums = np.zeros((3, bins))  # tokens, summed confidence, tokens where the likeliest one came

    def add(self, confidences, correct):
        """Count tokens: the probability of the likeliest, and whether it came."""
        bins = self._sums.shape[1]
        confidences = np.asarray(confidences, dtype=np.float64)
        bin_of = np.minimum((confidences * bins).astype(np.int64), bins - 1)
        for sums, weights in zip(self._sums, (None, confidences, np.asarray(correct, dtype=np.float64))):
            sums += np.bincount(bin_of, weights, bins)

    def table(self):
        """Return (mean confidence, share that came, number of tokens) of each bin that is not empty."""
        count, confidence, correct = self._sums[:, self._sums[0] > 0]
        return list(zip((confidence / count).tolist(), (correct / count).tolist(), count.astype(int).tolist()))

    def error(self):
        """Return the expected calibration error: the mean distance of the two, weighted by tokens; nan without any."""
        count, confidence, correct = self._sums
        return float(np.abs(confidence - correct).sum() / count.sum()) if count.any() else math.nan


class Results:
    """What rows come to. A row is a dict as in pairs.jsonl; of each, only the numbers that are summed up are kept.

    Rows have `model`'s values at their top, those of `compare_to` under `before`; these are the two roles.
    """

    def __init__(self, same_tokens, temperature, show, text):
        """same_tokens: whether both models have one tokenizer. show: how many rows to print. text: segments of one."""
        self.first = []  # as many rows as are printed or drawn
        self._changed = []  # (size of the change, -index, row), a heap
        self.count = 0
        self.unit = 'segment' if text else 'pair'
        self._same_tokens, self._show = same_tokens, show
        self._measures = {
            name: measure
            for name, measure in {**MEASURES, **(SAMPLER_MEASURES if temperature != 1 else {})}.items()
            if not (text and name in OF_RESPONSES)
        }
        self._columns = defaultdict(lambda: defaultdict(lambda: array('d')))  # role -> name -> a number a row
        self._questions = defaultdict(lambda: defaultdict(lambda: array('d')))  # the same of multiple-choice questions
        self._calibration = defaultdict(Calibration)

    def extend(self, rows):
        """Take in rows."""
        for row in rows:
            self._add('model', row)
            if 'before' in row:
                self._add('compare_to', row['before'])
                self._columns['model']['log_ratio'].append(row['log_ratio'])
                change = (abs(row['log_ratio']), -row['index'], row)
                (heapq.heappush if len(self._changed) < KEPT else heapq.heappushpop)(self._changed, change)
            if len(self.first) < max(self._show, KEPT):
                self.first.append(row)
            self.count += 1

    @property
    def shown(self):
        """The rows to be printed."""
        return self.first[: self._show]

    @property
    def most_changed(self):
        """The rows whose logprob changed most, in their order."""
        return sorted((row for *_, row in self._changed), key=lambda row: row['index'])

    @property
    def on_page(self):
        """The rows that the report and the page show."""
        if self.unit == 'segment':
            return self.first[:TEXT_SEGMENTS]
        return self.most_changed if self._changed else self.first[:KEPT]

    def _add(self, role, side):
        likeliest = [rank == 1 for rank in side['token_ranks']]
        values = {name: side[name] for name in ('prob', 'logprob', 'tokens', 'bytes', 'greedy')}
        values['likeliest'] = sum(likeliest)
        if 'sampler_prob' in side:
            values['sampler_prob'] = side['sampler_prob']
            values['sampler_logprob'] = -math.inf if side['sampler_logprob'] is None else side['sampler_logprob']
        for name, value in values.items():
            self._columns[role][name].append(value)
        if 'right' in side:
            for name in ('right', 'right_per_byte'):
                self._questions[role][name].append(side[name])
        self._calibration[role].add(np.exp(side['token_top_logprobs']), likeliest)

    def summary(self, resamples, seed):
        """Return all measures in plain types, None for one that has no value, each with its interval.

        measures, multiple_choice: role (and `difference`) -> name -> value, low, high. calibration: role -> error,
        table. comparison: of the log-ratios, where two models are compared.
        """
        of_model = self._columns['model']
        summary = {
            'rows': self.count,
            'tokens': int(sum(of_model['tokens'])),
            'bytes': int(sum(of_model['bytes'])),
            'logprob': _plain(math.fsum(of_model['logprob'])),
            'measures': self._intervals(self._columns, self._measures, resamples, seed),
        }
        if self._questions:
            summary['multiple_choice'] = {
                'questions': len(self._questions['model']['right']),
                **self._intervals(self._questions, CHOICE_MEASURES, resamples, seed),
            }
        summary['calibration'] = {
            role: {'error': _plain(calibration.error()), 'table': calibration.table()}
            for role, calibration in self._calibration.items()
        }
        if 'log_ratio' in of_model:
            ratios = np.array(of_model['log_ratio'])
            arrows = [arrow(ratio) for ratio in ratios]
            summary['comparison'] = {
                'per': 'response' if self._same_tokens else 'byte',
                'mean_log_ratio': summary['measures']['model'].pop('mean_log_ratio'),
                'rose': arrows.count('↑'),
                'fell': arrows.count('↓'),
                'same': arrows.count('='),
                'p_value': sign_flip_p_value(ratios, seed=seed),
            }
        return summary

    def _intervals(self, columns, measures, resamples, seed):
        """Return role -> measure -> value, low, high; of the differences too where there are two roles."""
        joined = {(role, name): np.array(column) for role, of in columns.items() for name, column in of.items()}
        if not joined:
            return {}
        total, resampled = totals(joined), resampled_totals(joined, resamples, seed)

        def of_role(sums, role):
            return {'n': sums['n'], **{key[1]: value for key, value in sums.items() if key[0] == role}}

        intervals = {}
        for role, of in columns.items():
            mean_log_ratio = {'mean_log_ratio': lambda sums: sums['log_ratio'] / sums['n']} if 'log_ratio' in of else {}
            intervals[role] = {
                name: _as_dict(interval(measure, of_role(total, role), of_role(resampled, role)))
                for name, measure in {**measures, **mean_log_ratio}.items()
            }
        if len(columns) == 2:
            # The same rows were drawn for both, so these are intervals of paired differences.
            intervals['difference'] = {
                name: _as_dict(
                    interval(
                        lambda sums, measure=measure: (
                            measure(of_role(sums, 'model')) - measure(of_role(sums, 'compare_to'))
                        ),
                        total,
                        resampled,
                    )
                )
                for name, measure in measures.items()
                if self._same_tokens or name not in OF_TOKENS
            }
        return intervals


def arrow(log_ratio):
    """Say whether a logprob rose or fell; what prints as 0.0000 did neither."""
    return '=' if abs(log_ratio) < 5e-5 else '↑' if log_ratio > 0 else '↓'


def _as_dict(interval):
    return {name: _plain(value) for name, value in interval._asdict().items()}


def _plain(value):
    """Return a number that JSON can hold: None for one that is not finite."""
    return value if math.isfinite(value) else None
