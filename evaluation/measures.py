"""What is measured over many scored rows: one table, an entry for each measure.

To add a measure, add an entry to MEASURES: summary.json, the tables, the report and the intervals take it from there.
If it needs a number that rows do not have yet, `scored_rows.describe_side` makes that and `column_values` keeps it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Measure:
    """One number about many rows."""

    name: str  # in summary.json
    label: str  # in tables
    meaning: str  # a line in the report
    format: str
    compute: Callable  # of the sums of columns, see `column_values`, and of `n`, the number of rows
    needs: set[str] = field(default_factory=set)  # see below


# What a measure may need:
#   responses    rows that are whole responses, not segments of a running text
#   tokens       tokens of one tokenizer: with two tokenizers, the difference of two models is left out
#   sampler      a sampler whose probabilities differ from the model's
#   whole text   probabilities of texts, over all ways to cut them into tokens
#   start        a token that begins a text, for responses without their prompt
#   choices      multiple-choice questions; `n` is the number of questions
#   comparison   two models: it measures both together
#   calibration  a `Calibration`, instead of sums; it has no interval
MEASURES = [
    Measure(
        'sum_of_probs',
        'sum of probabilities',
        'of all responses; the few likeliest dominate it',
        '{:.4g}',
        lambda sums: sums['prob'],
        needs={'responses'},
    ),
    Measure(
        'logprob_per_response',
        'logprob per response',
        'mean of the responses’ logprobs, in nats',
        '{:.4f}',
        lambda sums: sums['logprob'] / sums['n'],
        needs={'responses'},
    ),
    Measure(
        'logprob_per_token',
        'logprob per token',
        'mean over all tokens, in nats',
        '{:.4f}',
        lambda sums: sums['logprob'] / sums['tokens'],
        needs={'tokens'},
    ),
    Measure(
        'logprob_per_byte',
        'logprob per byte',
        'in nats; comparable between models with different tokenizers',
        '{:.4f}',
        lambda sums: sums['logprob'] / sums['bytes'],
    ),
    Measure(
        'bits_per_byte',
        'bits per byte',
        'minus the logprob per byte, in bits; lower is better',
        '{:.4f}',
        lambda sums: -sums['logprob'] / sums['bytes'] / math.log(2),
    ),
    Measure(
        'perplexity',
        'perplexity per token',
        'exp(-logprob per token); lower is better',
        '{:.4g}',
        lambda sums: np.exp(-sums['logprob'] / sums['tokens']),
        needs={'tokens'},
    ),
    Measure(
        'greedy_rate',
        'greedy responses',
        'share of responses that greedy decoding would produce',
        '{:.1%}',
        lambda sums: sums['greedy'] / sums['n'],
        needs={'responses'},
    ),
    Measure(
        'token_accuracy',
        'token accuracy',
        'share of tokens that were the likeliest one',
        '{:.1%}',
        lambda sums: sums['likeliest'] / sums['tokens'],
        needs={'tokens'},
    ),
    Measure(
        'sampler_sum_of_probs',
        'sampler: sum of prob.',
        'sum of probabilities under the sampler',
        '{:.4g}',
        lambda sums: sums['sampler_prob'],
        needs={'sampler', 'responses'},
    ),
    Measure(
        'sampler_logprob_per_response',
        'sampler: logprob/response',
        'logprob per response under the sampler',
        '{:.4f}',
        lambda sums: sums['sampler_logprob'] / sums['n'],
        needs={'sampler', 'responses'},
    ),
    Measure(
        'sampler_perplexity',
        'sampler: perplexity',
        'perplexity per token under the sampler',
        '{:.4g}',
        lambda sums: np.exp(-sums['sampler_logprob'] / sums['tokens']),
        needs={'sampler', 'tokens'},
    ),
    Measure(
        'text_logprob_lower',
        'text: logprob, at least',
        'mean of the lower bounds of the responses’ text logprobs, in nats',
        '{:.4f}',
        lambda sums: sums['text_log_lower'] / sums['n'],
        needs={'whole text', 'responses'},
    ),
    Measure(
        'text_logprob_upper',
        'text: logprob, at most',
        'mean of the upper bounds of the responses’ text logprobs, in nats',
        '{:.4f}',
        lambda sums: sums['text_log_upper'] / sums['n'],
        needs={'whole text', 'responses'},
    ),
    Measure(
        'acc',
        'acc',
        'share of questions whose right response is the likeliest',
        '{:.1%}',
        lambda sums: sums['right'] / sums['n'],
        needs={'choices'},
    ),
    Measure(
        'acc_norm',
        'acc_norm',
        'the same by logprob per byte, not counting the space before a response',
        '{:.1%}',
        lambda sums: sums['right_per_byte'] / sums['n'],
        needs={'choices'},
    ),
    Measure(
        'acc_mutual_info',
        'acc_mutual_info',
        'share of questions whose right response gains most from its prompt: pointwise mutual information',
        '{:.1%}',
        lambda sums: sums['right_mutual_info'] / sums['n'],
        needs={'choices', 'start'},
    ),
    Measure(
        'acc_text',
        'acc as text',
        'share of questions whose right response is proved to be the likeliest text',
        '{:.1%}',
        lambda sums: sums['right_text'] / sums['n'],
        needs={'choices', 'whole text'},
    ),
    Measure(
        'mean_log_ratio',
        'mean log-ratio',
        'mean change of the logprob from one model to the other, per response or per byte',
        '{:.4f}',
        lambda sums: sums['log_ratio'] / sums['n'],
        needs={'comparison'},
    ),
    Measure(
        'calibration_error',
        'calibration error',
        'mean distance between the model’s confidence and how often it was right (ECE)',
        '{:.4f}',
        lambda calibration: calibration.error(),
        needs={'calibration'},
    ),
]
BY_NAME = {measure.name: measure for measure in MEASURES}


def column_values(side):
    """Return a row's number in each column. side: what `scored_rows.describe_side` returns for one model."""
    values = {name: side[name] for name in ('prob', 'logprob', 'tokens', 'bytes', 'greedy')}
    values['likeliest'] = sum(rank == 1 for rank in side['token_ranks'])
    if 'sampler_prob' in side:
        values['sampler_prob'] = side['sampler_prob']
        values['sampler_logprob'] = -math.inf if side['sampler_logprob'] is None else side['sampler_logprob']
    if 'text' in side:
        values |= {f'text_{name}': side['text'][name] for name in ('log_lower', 'log_upper', 'closed')}
    return values


def choice_values(side):
    """Return a question's number in each column; nothing for a response without distractors."""
    names = ('right', 'right_per_byte', 'right_mutual_info', 'right_text')
    return {name: side[name] for name in names if name in side}


def row_measures(text, has_sampler, whole_text=False):
    """Return the Measures of all rows. text: whether rows are segments of a running text."""
    lacking = {'choices', 'start', 'calibration'}
    lacking |= {'responses'} if text else set()
    lacking |= set() if has_sampler else {'sampler'}
    lacking |= set() if whole_text else {'whole text'}
    return [measure for measure in MEASURES if not measure.needs & lacking]


def choice_measures(columns, have_prompts):
    """Return the Measures of multiple-choice questions. columns: what `choice_values` has for them."""
    lacking = {'whole text'} if 'right_text' not in columns else set()
    lacking |= {'start'} if 'right_mutual_info' not in columns or not have_prompts else set()
    return [measure for measure in MEASURES if 'choices' in measure.needs and not measure.needs & lacking]
