"""TODO."""

import math
from pathlib import Path

from lm.wording import format_probability, precision_note

# The name that people read for each measure, what it is, and how it is written.
MEASURES = {
    'sum_of_probs': ('sum of probabilities', 'of all responses; the likeliest few rule it', '{:.4g}'),
    'logprob_per_response': ('logprob per response', 'mean of the summed natural logarithms', '{:.4f}'),
    'logprob_per_token': ('logprob per token', 'of all tokens, in nats', '{:.4f}'),
    'logprob_per_byte': ('logprob per byte', 'fair between models of different tokens', '{:.4f}'),
    'bits_per_byte': ('bits per byte', 'the same in bits, the smaller the better', '{:.4f}'),
    'perplexity': ('perplexity per token', 'exp of minus the logprob per token', '{:.4g}'),
    'greedy_rate': ('said greedily', 'share of responses that greedy decoding would have said', '{:.1%}'),
    'token_accuracy': ('tokens guessed', 'share of tokens that were the likeliest', '{:.1%}'),
    'sampler_sum_of_probs': ('sampler: sum of prob.', 'at the temperature asked for', '{:.4g}'),
    'sampler_logprob_per_response': ('sampler: logprob/response', 'at the temperature asked for', '{:.4f}'),
    'sampler_perplexity': ('sampler: perplexity', 'at the temperature asked for', '{:.4g}'),
    'acc': ('acc', 'share of questions whose right response is the likeliest', '{:.1%}'),
    'acc_norm': ('acc_norm', 'the same by logprob per byte, the space before not counted', '{:.1%}'),
}
ROLES = {'model': 'after', 'compare_to': 'before', 'difference': 'difference'}


def measure_lines(summary):
    """Return the headings, then for each measure its name and its value with its interval, for each model."""
    measures = summary['measures']
    roles = ['compare_to', 'model', 'difference'] if 'compare_to' in summary else ['model']
    names = [f'{ROLES[role]}, 95 % interval' if len(roles) > 1 else 'value, 95 % interval' for role in roles]
    lines = [['measure', *names]]
    groups = [measures, summary['multiple_choice']] if 'multiple_choice' in summary else [measures]
    for group in groups:
        for name in group['model']:
            label, _, form = MEASURES[name]
            lines.append(
                [label, *(format_interval(group[role].get(name), form, role == 'difference') for role in roles)]
            )
    errors = [format_number(summary['calibration'][role]['error'], '{:.4f}') for role in roles if role != 'difference']
    lines.append(['calibration error', *errors, *(['—'] if len(roles) > 1 else [])])
    return lines


def format_number(value, form, missing='—'):
    """Write a number, or what stands for one that there is not."""
    return missing if value is None else form.format(value)


def format_interval(interval, form, signed=False):
    """Write a value and, in brackets, its interval."""
    if interval is None or interval['value'] is None:
        return '—'
    low, high = (
        format_number(end, form)
        if '%' in form or end is None
        else f'{float(f"{end:.3g}"):g}'  # they are not known any better
        for end in (interval['low'], interval['high'])
    )
    form = form.replace('{:', '{:+') if signed else form
    text = form.format(interval['value'])
    if interval['low'] is not None:
        text += f' [{low}, {high}]'
    return text.replace('%', ' points', 1).replace('%', '') if signed else text


def title(summary):
    """Say which models, and which probability."""
    models = summary['model']['init_from']
    if 'compare_to' in summary:
        models = f'before: {summary["compare_to"]["init_from"]}, after: {models}'
    return f'{models}: model probability of each response{precision_of(summary["settings"])}'


def precision_of(settings):
    """Name the precision of an evaluation with these settings, unless it is float32."""
    return precision_note(settings['dtype'], settings['quantize'])


def size_text(summary):
    """Say how much was measured."""
    what = f'{rows_text(summary)}, {summary["tokens"]:,} tokens, {summary["bytes"]:,} bytes'
    return f'{what}: model probability{precision_of(summary["settings"])}'


def rows_text(summary):
    """Say how many responses, or segments of a text, there are."""
    unit = 'response' if summary['data']['kind'] == 'pairs' else 'segment'
    return f'{summary["rows"]:,} {unit}{"" if summary["rows"] == 1 else "s"}'


def result_sentences(summary):
    """Return what the numbers say, a line each."""
    lines = []
    if summary['logprob'] is not None and summary['data']['kind'] == 'pairs':
        logprob = summary['logprob']
        lines.append(f'All of them together have logprob {logprob:.4f}, probability {format_probability(logprob)}.')
    if summary['settings']['temperature'] != 1:
        lines.append(f'Sampler values are those at {summary["sampler"]}; everything else is the model itself.')
    if summary['settings']['temperature'] == 0:
        lines.append('A greedy sampler says one response only; the logprob of any other is minus infinity, written —.')
    if 'multiple_choice' in summary:
        count = summary['multiple_choice']['questions']
        lines.append(f'acc and acc_norm are over the {count} with distractors.')
    if summary['data']['left_out']:
        lines.append(left_out_text(summary))
    if 'comparison' in summary:
        lines += comparison_sentences(summary)
    unit = 'pairs' if summary['data']['kind'] == 'pairs' else 'segments'
    lines.append(f'{summary["run"]["rows_per_second"]:,} {unit} per second.')
    return lines


def comparison_sentences(summary):
    """Say whether the second model finds the responses likelier than the first, and how sure that is."""
    comparison = summary['comparison']
    before, after = summary['compare_to']['init_from'], summary['model']['init_from']
    mean, difference = comparison['mean_log_ratio'], summary['measures']['difference']
    if summary['rows'] == 1:
        return [f'From {before} to {after} the logprob per {comparison["per"]} changed by {mean["value"]:+.4f}.']
    if comparison['same'] == summary['rows']:
        return [f'{after} finds all {rows_text(summary)} exactly as likely as {before} does.']
    lines = [
        f'Of {rows_text(summary)}, {after} finds {comparison["rose"]:,} likelier than {before} does, '
        f'{comparison["fell"]:,} less likely and {comparison["same"]:,} the same.'
    ]
    if summary['data']['kind'] == 'pairs':
        lines.append(
            f'The mean log-ratio per {comparison["per"]} is {format_interval(mean, "{:.4f}", signed=True)}, a factor '
            f'of {math.exp(min(mean["value"], 700)):.3g}.'
        )
    if comparison['per'] == 'response':
        change = format_interval(difference['logprob_per_token'], '{:.4f}', signed=True)
        lines.append(f'Per token the logprob changed by {change} nats.')
    else:
        lines.append('The two have different tokens, so values per byte are compared, and no token with another.')
    if summary['data']['kind'] == 'text':
        change = format_interval(difference['bits_per_byte'], '{:.4f}', signed=True)
        lines.append(f'The bits per byte changed by {change}.')
    verdict = 'is hardly chance' if comparison['p_value'] < 0.05 else 'may well be chance'
    lines.append(
        f'In a paired sign-flip permutation test p = {comparison["p_value"]:.2g}: so large a difference {verdict}.'
    )
    return lines


def which_text(rows, summary):
    """Say which of all rows the page shows."""
    if len(rows) == summary['rows']:
        return 'all of them'
    if 'comparison' in summary and summary['data']['kind'] == 'pairs':
        return f'the {len(rows):,} that changed most, of {rows_text(summary)}'
    return f'the first {len(rows):,} of {rows_text(summary)}'


def page_title(summary):
    """Return the question that the page answers."""
    is_text = summary['data']['kind'] == 'text'
    what = f'the text {Path(summary["data"]["name"]).name}' if is_text else rows_text(summary)
    model = summary['model']['init_from']
    if 'compare_to' not in summary:
        return f'How likely does {model} find {what}?'
    return f'How much likelier does {model} find {what} than {summary["compare_to"]["init_from"]}?'


def answer(summary):
    """Return the sentences that answer it."""
    if 'comparison' in summary:
        return comparison_sentences(summary)
    measures = summary['measures']['model']
    bits, perplexity = (format_interval(measures[name], MEASURES[name][2]) for name in ('bits_per_byte', 'perplexity'))
    return [f'It needs {bits} bits per byte; its perplexity per token is {perplexity}.']


def how_measured(summary):
    """Say what was done, so that a reader can judge the numbers."""
    settings, data = summary['settings'], summary['data']
    lines = []
    if data['kind'] == 'pairs':
        boundary = {
            'joint': 'Prompt and response were encoded as one text, so that the model saw the tokens that it knows.',
            'separate': 'Prompt and response were encoded separately, which can make unusual tokens where they meet.',
        }
        lines.append(boundary[settings['boundary']])
        lines.append(
            'Where the two would run together, '
            + (
                'one space'
                if settings['separator'] == ' '
                else f'`{settings["separator"]!r}`'
                if settings['separator']
                else 'nothing'
            )
            + ' was put between them.'
        )
    else:
        lines.append(
            f'Every token of the text was scored once, {settings["stride"]:,} at a time, behind as much text as fits.'
        )
    if data['left_out']:
        lines.append(left_out_text(summary))
    lines.append(
        f'Probabilities are model probabilities (softmax of the raw logits{precision_of(settings)}); '
        'logprobs are natural logarithms, summed in float64.'
    )
    if settings['temperature'] != 1:
        lines.append(f'What is called the sampler’s is at {summary["sampler"]}.')
    if summary['rows'] > 1:
        lines.append(
            f'Intervals hold 95 % of {settings["resamples"]:,} bootstrap resamples of the '
            f'{"responses" if data["kind"] == "pairs" else "segments"} (seed {settings["seed"]}).'
        )
    return ' '.join(lines)


def left_out_text(summary):
    """Say how many pairs could not be scored."""
    left_out = summary['data']['left_out']
    return f'{left_out:,} of {summary["rows"] + left_out:,} pairs were wrong and are left out (--skip_bad).'
