"""From rows to results: the sums that measures need, and the rows to show."""

import heapq
import math
from array import array
from collections import defaultdict

import numpy as np

from evaluation.measures import BY_NAME, choice_measures, choice_values, column_values, row_measures
from evaluation.statistics import Calibration, bootstrap_interval, resample_sums, sign_flip_p_value, sum_columns

KEPT = 100  # rows kept for the report and the page: the first ones, and those that changed most
TEXT_SEGMENTS = 8  # segments of a running text on the page


class Results:
    """Adds up rows, dicts as in pairs.jsonl, without keeping them all.

    There are one or two roles: `model`, whose values are at the top of a row, and `compare_to`, whose values are under
    `before`.
    """

    def __init__(self, same_tokens, has_sampler, show, text, whole_text=False):
        """same_tokens: whether both models have one tokenizer. show: how many rows to print. text: segments of one.

        has_sampler: whether rows have the sampler's probabilities, beside the model's. whole_text: whether rows have
        bounds on the probability of their text.
        """
        self.first = []  # the first rows: as many as are printed or shown
        self._changed = []  # (size of the change, -index, row), a heap
        self.count = 0
        self.unit = 'segment' if text else 'pair'
        self._same_tokens, self._show = same_tokens, show
        self._measures = row_measures(text, has_sampler, whole_text)
        self._columns = defaultdict(lambda: defaultdict(lambda: array('d')))  # role -> column -> a number per row
        self._questions = defaultdict(lambda: defaultdict(lambda: array('d')))  # the same for multiple-choice questions
        self._have_prompts = False  # whether a question has one
        self._calibration = defaultdict(Calibration)
        self._unusual = defaultdict(dict)  # role -> kind -> how many pairs, the first of them, its note or the most

    def extend(self, rows):
        """Add rows."""
        for row in rows:
            self._have_prompts |= 'right' in row and bool(row.get('prompt'))
            self._add_side('model', row)
            self._add_unusual('model', row, row['index'])
            if 'before' in row:
                self._add_side('compare_to', row['before'])
                self._add_unusual('compare_to', row['before'], row['index'])
                self._columns['model']['log_ratio'].append(row['log_ratio'])
                change = (abs(row['log_ratio']), -row['index'], row)
                (heapq.heappush if len(self._changed) < KEPT else heapq.heappushpop)(self._changed, change)
            if len(self.first) < max(self._show, KEPT):
                self.first.append(row)
            self.count += 1

    def _add_side(self, role, side):
        for name, value in column_values(side).items():
            self._columns[role][name].append(value)
        for name, value in choice_values(side).items():
            self._questions[role][name].append(value)
        self._calibration[role].add(np.exp(side['token_top_logprobs']), [rank == 1 for rank in side['token_ranks']])

    def _add_unusual(self, role, side, index):
        kinds = self._unusual[role]
        if 'boundary' in side:
            first = {'pairs': 0, 'first': index, 'note': side['boundary_note']}
            kinds.setdefault(side['boundary'], first)['pairs'] += 1
        if 'prompt_tokens_cut' in side:
            cut = kinds.setdefault('prompt_cut', {'pairs': 0, 'first': index, 'most': 0})
            cut['pairs'] += 1
            cut['most'] = max(cut['most'], side['prompt_tokens_cut'])

    @property
    def printed(self):
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

    def summary(self, resamples, seed):
        """Return all measures in plain types, None for one that has no value, each with its interval.

        measures, multiple_choice: role (and `difference`) -> name -> value, low, high. calibration: role -> error,
        table. unusual: role -> pairs that were split inside a token, spelled differently, or cut. comparison: what the
        log-ratios say, if there are two models.
        """
        of_model = self._columns['model']
        summary = {
            'rows': self.count,
            'tokens': int(sum(of_model['tokens'])),
            'bytes': int(sum(of_model['bytes'])),
            'logprob': finite_or_none(math.fsum(of_model['logprob'])),
            'measures': self._intervals(self._columns, self._measures, resamples, seed),
        }
        if self._questions:
            summary['multiple_choice'] = {
                'questions': len(self._questions['model']['right']),
                **self._intervals(self._questions, self._choice_measures(), resamples, seed),
            }
        if 'text_closed' in of_model:
            summary['whole_text'] = {
                role: {'closed': int(sum(columns['text_closed']))} for role, columns in self._columns.items()
            }
        summary['calibration'] = {
            role: {
                'error': finite_or_none(BY_NAME['calibration_error'].compute(calibration)),
                'table': calibration.table(),
            }
            for role, calibration in self._calibration.items()
        }
        if unusual := {role: kinds for role, kinds in self._unusual.items() if kinds}:
            summary['unusual'] = unusual
        if 'log_ratio' in of_model:
            mean_log_ratio = summary['measures']['model'].pop('mean_log_ratio')
            summary['comparison'] = self._comparison(np.array(of_model['log_ratio']), mean_log_ratio, seed)
        return summary

    def _choice_measures(self):
        """The Measures of questions that all models have."""
        of_each = [choice_measures(columns, self._have_prompts) for columns in self._questions.values()]
        return [measure for measure in of_each[0] if all(measure in others for others in of_each)]

    def _comparison(self, log_ratios, mean_log_ratio, seed):
        arrows = [arrow(log_ratio) for log_ratio in log_ratios]
        return {
            'per': 'response' if self._same_tokens else 'byte',
            'mean_log_ratio': mean_log_ratio,
            'rose': arrows.count('↑'),
            'fell': arrows.count('↓'),
            'same': arrows.count('='),
            'p_value': sign_flip_p_value(log_ratios, seed=seed),
        }

    def _intervals(self, columns, measures, resamples, seed):
        """Return role -> measure -> value, low, high; also for the differences if there are two roles."""
        joined = {(role, name): np.array(column) for role, named in columns.items() for name, column in named.items()}
        if not joined:
            return {}
        sums, resampled = sum_columns(joined), resample_sums(joined, resamples, seed)

        def interval(compute):
            found = bootstrap_interval(compute, sums, resampled)
            return {name: finite_or_none(value) for name, value in found._asdict().items()}

        def value(measure, role):
            return lambda sums: measure.compute(select_role(sums, role))

        def difference(measure):
            return lambda sums: value(measure, 'model')(sums) - value(measure, 'compare_to')(sums)

        intervals = {
            role: {
                measure.name: interval(value(measure, role))
                for measure in measures
                if 'comparison' not in measure.needs or 'log_ratio' in columns[role]
            }
            for role in columns
        }
        if len(columns) == 2:
            # The same rows were drawn for both models, so these are intervals of paired differences.
            lacking = {'comparison'} if self._same_tokens else {'comparison', 'tokens'}
            intervals['difference'] = {
                measure.name: interval(difference(measure)) for measure in measures if not measure.needs & lacking
            }
        return intervals


def select_role(sums, role):
    """Return the sums of one role's columns, and `n`."""
    return {'n': sums['n'], **{key[1]: value for key, value in sums.items() if key[0] == role}}


def arrow(log_ratio):
    """Return whether a logprob rose, fell or, to the four decimals that are printed, stayed the same: ↑, ↓ or =."""
    return '=' if abs(log_ratio) < 5e-5 else '↑' if log_ratio > 0 else '↓'


def finite_or_none(number):
    """Return a number as JSON can hold it: None if it is not finite."""
    return number if math.isfinite(number) else None
