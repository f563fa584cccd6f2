"""The numbers of an evaluation in sentences, for the terminal, the report and the page. All take a `summary`."""

import math
from pathlib import Path

from evaluation.measures import BY_NAME
from evaluation.tables import format_interval, has_sampler
from evaluation.text_bounds import text_sentences
from lm.wording import format_probability, precision_note


def describe_precision(summary):
    """Name the precision of the computation, unless it is float32."""
    return precision_note(summary['settings']['dtype'], summary['settings']['quantize'])


def count_rows(summary):
    """Return '64 responses', or '13 segments' of a running text."""
    unit = 'response' if summary['data']['kind'] == 'pairs' else 'segment'
    return f'{summary["rows"]:,} {unit}{"" if summary["rows"] == 1 else "s"}'


def rows_heading(summary):
    """Return the heading of the table of responses: which models, and which probability."""
    models = summary['model']['init_from']
    if 'compare_to' in summary:
        models = f'before: {summary["compare_to"]["init_from"]}, after: {models}'
    return f'{models}: model probability of each response{describe_precision(summary)}'


def measures_heading(summary):
    """Return the heading of the table of measures: how much was measured."""
    size = f'{count_rows(summary)}, {summary["tokens"]:,} tokens, {summary["bytes"]:,} bytes'
    return f'over {size}: model probability{describe_precision(summary)}'


def report_heading(summary):
    """Return the question that the report answers."""
    is_text = summary['data']['kind'] == 'text'
    what = f'the text {Path(summary["data"]["name"]).name}' if is_text else count_rows(summary)
    model = summary['model']['init_from']
    if 'compare_to' not in summary:
        return f'How likely does {model} find {what}?'
    return f'How much likelier does {model} find {what} than {summary["compare_to"]["init_from"]}?'


def describe_shown(rows, summary):
    """Return which rows the report shows."""
    if len(rows) == summary['rows']:
        return f'all {count_rows(summary)}' if len(rows) > 1 else f'the only {count_rows(summary).split()[1]}'
    if 'comparison' in summary and summary['data']['kind'] == 'pairs':
        return f'the {len(rows):,} that changed most, of {count_rows(summary)}'
    return f'the first {len(rows):,} of {count_rows(summary)}'


def result_sentences(summary):
    """Return what to print below the tables."""
    sentences = []
    if summary['logprob'] is not None and summary['data']['kind'] == 'pairs':
        logprob = summary['logprob']
        sentences.append(f'All together have logprob {logprob:.4f}, probability {format_probability(logprob)}.')
    if has_sampler(summary):
        sentences.append(f'Sampler values are at {summary["sampler"]}; all other values are the model’s own.')
    if summary['settings']['temperature'] == 0:
        sentences.append(
            'A greedy sampler can draw only one response; the logprob of any other is minus infinity, shown as —.'
        )
    if 'whole_text' in summary:
        sentences += text_sentences(summary)
    if 'multiple_choice' in summary:
        sentences.append(f'acc and acc_norm are over the {summary["multiple_choice"]["questions"]} with distractors.')
    if summary['data']['left_out']:
        sentences.append(left_out_sentence(summary))
    if 'comparison' in summary:
        sentences += comparison_sentences(summary)
    unit = 'pairs' if summary['data']['kind'] == 'pairs' else 'segments'
    sentences.append(f'{summary["run"]["rows_per_second"]:,} {unit} per second.')
    return sentences


def answer_sentences(summary):
    """Return the answer to the question that the report asks."""
    if 'comparison' in summary:
        return comparison_sentences(summary)
    measures = summary['measures']['model']
    bits, perplexity = (
        format_interval(measures[name], BY_NAME[name].format) for name in ('bits_per_byte', 'perplexity')
    )
    return [f'It needs {bits} bits per byte; its perplexity per token is {perplexity}.']


def comparison_sentences(summary):
    """Return whether the second model finds the responses likelier than the first, and how sure that is."""
    comparison = summary['comparison']
    before, after = summary['compare_to']['init_from'], summary['model']['init_from']
    mean, difference = comparison['mean_log_ratio'], summary['measures']['difference']
    if summary['rows'] == 1:
        return [f'From {before} to {after} the logprob per {comparison["per"]} changed by {mean["value"]:+.4f}.']
    if comparison['same'] == summary['rows']:
        return [f'{after} finds all {count_rows(summary)} exactly as likely as {before} does.']
    sentences = [
        f'Of {count_rows(summary)}, {after} finds {comparison["rose"]:,} likelier than {before} does, '
        f'{comparison["fell"]:,} less likely and {comparison["same"]:,} the same.'
    ]
    if summary['data']['kind'] == 'pairs':
        ratio = format_interval(mean, BY_NAME['mean_log_ratio'].format, signed=True)
        factor = math.exp(min(mean['value'], 700))
        sentences.append(f'The mean log-ratio per {comparison["per"]} is {ratio}, a factor of {factor:.3g}.')
    if comparison['per'] == 'response':
        change = format_interval(difference['logprob_per_token'], '{:.4f}', signed=True)
        sentences.append(f'Per token the logprob changed by {change} nats.')
    else:
        sentences.append('The two models give a text different tokens, so values are compared per byte, not per token.')
    if summary['data']['kind'] == 'text':
        change = format_interval(difference['bits_per_byte'], '{:.4f}', signed=True)
        sentences.append(f'The bits per byte changed by {change}.')
    p_value = comparison['p_value']
    verdict = 'is unlikely to be chance' if p_value < 0.05 else 'may well be chance'
    sentences.append(f'A paired sign-flip permutation test gives p = {p_value:.2g}: a difference this large {verdict}.')
    return sentences


def method_sentences(summary):
    """Return what was done, so that a reader can judge the numbers."""
    settings = summary['settings']
    if summary['data']['kind'] == 'pairs':
        between = {'': 'nothing', ' ': 'one space'}.get(settings['separator'], f'`{settings["separator"]!r}`')
        sentences = [
            {
                'joint': 'Prompt and response were encoded as one text, so the model saw the tokens it was trained on.',
                'separate': 'Prompt and response were encoded separately, which can make unusual tokens at the border.',
            }[settings['boundary']],
        ]
        if not settings['chat']:
            sentences.append(f'Where the two would run together, {between} was put between them.')
    else:
        sentences = [
            f'Every token of the text was scored once, {settings["stride"]:,} at a time, after as much of the text as '
            f'fits into {describe_context(summary)}.'
        ]
    sentences += beginning_sentences(summary)
    if summary['data']['left_out']:
        sentences.append(left_out_sentence(summary))
    sentences.append(
        f'Probabilities are model probabilities (softmax of the raw logits{describe_precision(summary)}); '
        'logprobs are natural logarithms, summed in float64.'
    )
    if 'whole_text' in summary:
        sentences += text_sentences(summary)
    if has_sampler(summary):
        sentences.append(f'Sampler values are at {summary["sampler"]}.')
    if summary['rows'] > 1:
        unit = 'responses' if summary['data']['kind'] == 'pairs' else 'segments'
        sentences.append(
            f'Intervals contain 95 % of {settings["resamples"]:,} bootstrap resamples of the {unit} '
            f'(seed {settings["seed"]}).'
        )
    return sentences


def beginning_sentences(summary):
    """Return what was put before texts, by a chat template or a tokenizer, if that is not just <|endoftext|>."""
    sentences = []
    for role in ('compare_to', 'model'):
        if role not in summary:
            continue
        begins = summary[role]
        of_model = f' of {begins["init_from"]}' if 'compare_to' in summary else ''
        if 'chat' in begins:
            end = 'was scored, too' if summary['settings']['score_end'] else 'was not scored'
            sentences.append(
                f'Prompts went through the chat template{of_model}, which makes the prompt “x” '
                f'`{begins["chat"]["example"]}`; the token that ends a turn {end}.'
            )
        elif begins['front'] is not None:
            sentences.append(f'`{begins["front"]}` stands before each text, put there by the tokenizer{of_model}.')
        elif begins['start'] is None and summary['data']['kind'] == 'text':
            sentences.append(
                f'The first token of the text has no probability, since the tokenizer{of_model} has none that begins a '
                'text; it is not counted.'
            )
    return list(dict.fromkeys(sentences))


def describe_context(summary):
    """Return whose context a running text was shown in; see `running_text.share_context`."""
    sides = [summary[role] for role in ('model', 'compare_to') if role in summary]
    sizes = [side['block_size'] for side in sides]
    if len(set(sizes)) == 1:
        return 'the context'
    if len({side['tokenizer_sha256'] for side in sides}) > 1:
        return f"each model's own context, of {sizes[0]:,} and {sizes[1]:,} tokens"
    return f'{min(sizes):,} tokens, the shorter of the two contexts'


def unusual_sentences(summary):
    """Return which pairs were not encoded or seen as they are in the file; the rows and the tables mark them."""
    sentences = []
    for role, kinds in summary.get('unusual', {}).items():
        of_model = f' of {summary[role]["init_from"]}' if 'compare_to' in summary else ''
        for kind, found in kinds.items():
            one = found['pairs'] == 1
            pairs = f'Pair {found["first"]}' if one else f'{found["pairs"]:,} pairs, such as pair {found["first"]}'
            if kind == 'prompt_cut':
                sentences.append(
                    f'{pairs}: the prompt does not fit into the context of {summary[role]["block_size"]:,} '
                    f'tokens{of_model}, and {"" if one else "up to "}{found["most"]:,} tokens at its beginning are cut '
                    'off.'
                )
            elif role == 'model' or found != summary['unusual'].get('model', {}).get(kind):
                tokenizer = f', with the tokenizer{of_model}' if role == 'compare_to' else ''
                sentences.append(f'{pairs}{tokenizer}: {found["note"]}.')
    return sentences


def left_out_sentence(summary):
    """Return how many pairs could not be scored."""
    left_out = summary['data']['left_out']
    return f'{left_out:,} of {summary["rows"] + left_out:,} pairs were invalid and are left out (--skip_bad).'
