"""The tables of an evaluation, cell by cell as text: `terminal` prints them, `markdown` puts them into a report.

A row has one model's values at its top and, if two are compared, the other model's under `before`. Each of the two is a
side (see `scored_rows.describe_side`).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from evaluation.measures import BY_NAME, MEASURES
from evaluation.results import arrow
from lm.wording import differs_from_model, format_perplexity, format_three_digits

ROLES = {'compare_to': 'before', 'model': 'after', 'difference': 'difference'}


class Column(NamedTuple):
    """A column of the table of responses."""

    heading: str
    value: Callable  # of a row
    format: str = '{}'

    def cell(self, row):
        """Return a row's value as text."""
        return format_number(self.value(row), self.format)


# What one model says about a response: name -> (value of a side, format).
SIDE_VALUES = {
    'tokens': (lambda side: side['tokens'], '{}'),
    'bytes': (lambda side: side['bytes'], '{}'),
    'greedy': (lambda side: 'yes' if side['greedy'] else 'no', '{}'),
    'per token': (lambda side: side['prob_per_token'], '{:.4g}'),
    'perplexity': (
        lambda side: format_perplexity(side['logprob'], side['tokens']) if side['tokens'] else None,
        '{}',
    ),
    'logprob': (lambda side: side['logprob'], '{:.4f}'),
    'probability': (lambda side: side['prob'], '{:.4g}'),
    'logprob per byte': (lambda side: side['logprob'] / max(1, side['bytes']), '{:.4f}'),
    'sampler logprob': (
        lambda side: -math.inf if side['sampler_logprob'] is None else side['sampler_logprob'],
        '{:.4f}',
    ),
    'sampler prob.': (lambda side: side['sampler_prob'], '{:.4g}'),
    'text': (lambda side: format_text_bounds(side['text']), '{}'),
}


def row_columns(summary, narrow=False):
    """Return the Columns of the table of responses. narrow: only the most important ones."""
    columns = token_columns(summary, narrow)
    if 'whole_text' not in summary:
        return columns
    if 'compare_to' not in summary:
        return [*columns, Column('text\nprobability', *SIDE_VALUES['text'])]
    return [*columns[:-1], *before_and_after('text\nprob. {}', 'text'), columns[-1]]


def format_text_bounds(text):
    """Return the bounds of a text's probability: one number if they agree in three digits."""
    low, high = (format_three_digits(text[name]) for name in ('log_lower', 'log_upper'))
    return low if low == high else f'{low} to {high}'


def has_sampler(summary):
    """Return whether responses were scored with a sampler, too, whose probabilities differ from the model's."""
    settings = summary['settings']
    return differs_from_model(settings['temperature'], settings['repetition_penalty'])


def token_columns(summary, narrow):
    """Return the Columns about tokens."""
    if 'compare_to' not in summary:
        names = ['tokens', *([] if narrow else ['greedy', 'per token', 'perplexity'])]
        if has_sampler(summary):
            names += ['sampler logprob', *([] if narrow else ['sampler prob.'])]
        names += ['logprob', 'probability']
        return [Column(name.replace('sampler ', 'sampler\n'), *SIDE_VALUES[name]) for name in names]
    if summary['comparison']['per'] == 'byte':
        return [
            Column('bytes', *SIDE_VALUES['bytes']),
            *before_and_after('logprob per\nbyte {}', 'logprob per byte'),
            Column('log-ratio\nper byte', format_log_ratio),
        ]
    columns = [Column('tokens', *SIDE_VALUES['tokens'])]
    if has_sampler(summary) and not narrow:
        columns += before_and_after('sampler\nprob. {}', 'sampler prob.')
    columns += before_and_after('logprob\n{}', 'logprob')
    if not narrow:
        columns += before_and_after('prob.\n{}', 'probability')
    return [*columns, Column('log-ratio', format_log_ratio)]


def row_remarks(row):
    """Return what is unusual about a row, in a few words each."""
    remarks = side_remarks(row)
    return remarks + [f'{remark} before' for remark in side_remarks(row.get('before', {})) if remark not in remarks]


def side_remarks(side):
    """Return what is unusual about a row for one model."""
    words = {
        'split': 'encoded separately',
        'respelled': 'the tokenizer changed the text',
        'first': 'the first token has no probability',
    }
    remarks = [words[side['boundary']]] if 'boundary' in side else []
    if 'prompt_tokens_cut' in side:
        remarks.append(f'prompt cut by {side["prompt_tokens_cut"]:,} tokens')
    return remarks


def before_and_after(heading, name):
    """Return two Columns of the same value, for the two models."""
    value, number_format = SIDE_VALUES[name]
    return [
        Column(heading.format('before'), lambda row: value(row['before']), number_format),
        Column(heading.format('after'), value, number_format),
    ]


def format_log_ratio(row):
    """Return a row's log-ratio and whether it rose or fell."""
    return f'{row["log_ratio"]:+.4f} {arrow(row["log_ratio"])}'


def measure_lines(summary):
    """Return the table of measures: the headings, then for each measure its label and each model's value, as text."""
    roles = ['compare_to', 'model', 'difference'] if 'compare_to' in summary else ['model']
    names = [ROLES[role] for role in roles] if len(roles) > 1 else ['value']
    lines = [['measure', *(f'{name}, 95 % interval' for name in names)]]
    for group in (summary['measures'], summary.get('multiple_choice', {'model': {}})):
        for name in group['model']:
            measure = BY_NAME[name]
            cells = [format_interval(group[role].get(name), measure.format, role == 'difference') for role in roles]
            lines.append([measure.label, *cells])
    calibration = BY_NAME['calibration_error']
    errors = [summary['calibration'].get(role, {}).get('error') for role in roles]  # they have no difference
    return [*lines, [calibration.label, *(format_number(error, calibration.format) for error in errors)]]


def shown_measures(summary):
    """Return the Measures that `measure_lines` shows."""
    names = {*summary['measures']['model'], *summary.get('multiple_choice', {}).get('model', []), 'calibration_error'}
    return [measure for measure in MEASURES if measure.name in names]


def format_number(number, number_format):
    """Return a number as text; for None, a dash."""
    return '—' if number is None else number_format.format(number)


def format_interval(interval, number_format, signed=False):
    """Return a value as text, followed by its interval in brackets. signed: a difference, percentages are points."""
    if interval is None or interval['value'] is None:
        return '—'
    low, high = (
        format_number(end, number_format)
        if '%' in number_format or end is None
        else f'{float(f"{end:.3g}"):g}'  # the ends are not known more exactly
        for end in (interval['low'], interval['high'])
    )
    number_format = number_format.replace('{:', '{:+') if signed else number_format
    text = number_format.format(interval['value'])
    if interval['low'] is not None:
        text += f' [{low}, {high}]'
    return text.replace('%', ' points', 1).replace('%', '') if signed else text
