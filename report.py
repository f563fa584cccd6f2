"""How the results of eval.py are shown: tables for the terminal, and a page with pictures for keeping."""

import html
import math
import platform
import re
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

import plots
from common import written_whole
from measures import arrow
from sampling import perplexity_text, precision, probability_text

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
    'acc_norm': ('acc_norm', 'the same by logprob per byte', '{:.1%}'),
}
ROLES = {'model': 'after', 'compare_to': 'before', 'difference': 'difference'}
PAGE_ROWS = 100  # pairs that the page shows
TEXT_SEGMENTS = 8  # and segments of a running text


def versions():
    """Return the versions that numbers may depend on."""
    packages = ('torch', 'numpy', 'tokenizers', 'tiktoken')
    return {'python': platform.python_version(), **{package: version(package) for package in packages}}


# For the terminal ---------------------------------------------------------------------------------------------------


def print_all(rows, summary):
    """Print the rows, then what all of them come to."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # in a file or a pipe there is no window to fit
    pairs = summary['data']['kind'] == 'pairs'
    if pairs and rows:
        console.print(rows_table(rows, summary))
        left = summary['rows'] - len(rows)
        if left:
            print(f'and {left} more; --show=N prints more of them, --save=NAME keeps all')
    if summary['rows'] > 1:
        console.print(Text(f'over {size_text(summary)}', style='table.title'))
        console.print(measures_table(summary))
    for line in sentences(summary):
        console.print(Text(line), soft_wrap=True)


def rows_table(rows, summary):
    """Return a table of every response with its tokens and how likely it is."""
    compared = 'compare_to' in summary
    table = Table(title=Text(title(summary), style='table.title'), title_justify='left')
    table.add_column('prompt, then the tokens of the response', ratio=1, overflow='fold')
    for heading in row_headings(summary):
        table.add_column(heading, justify='right', no_wrap=True)
    for row in rows:
        text = Text(row['prompt'].replace('\n', '⏎'))
        text.append(' │ ', style='dim')
        text.append('│'.join(row['pieces']), style='bold')
        cells = row_cells(row, summary)
        if compared:
            style = {'↑': 'green', '↓': 'red', '=': 'dim'}[arrow(row['log_ratio'])]
            cells[-1] = Text(cells[-1], style=style)
        table.add_row(text, *cells)
    return table


def row_headings(summary):
    """Return the headings of a row's numbers."""
    sampler = ['sampler\nlogprob', 'sampler\nprob.'] if summary['settings']['temperature'] != 1 else []
    if 'compare_to' not in summary:
        return ['tokens', 'greedy', 'per token', 'perplexity', *sampler, 'logprob', 'probability']
    if summary['comparison']['per'] == 'byte':
        return ['bytes', 'logprob per\nbyte before', 'logprob per\nbyte after', 'log-ratio\nper byte']
    sampler = ['sampler\nprob. before', 'sampler\nprob. after'] if sampler else []
    return ['tokens', *sampler, 'logprob\nbefore', 'logprob\nafter', 'prob.\nbefore', 'prob.\nafter', 'log-ratio']


def row_cells(row, summary):
    """Return a row's numbers as texts, one for each heading."""
    has_sampler = summary['settings']['temperature'] != 1
    if 'compare_to' not in summary:
        greedy = 'yes' if row['greedy'] else 'no'
        per_token = '—' if row['prob_per_token'] is None else f'{row["prob_per_token"]:.4g}'
        sampler = (
            [number(row['sampler_logprob'], '{:.4f}', '-inf'), f'{row["sampler_prob"]:.4g}'] if has_sampler else []
        )
        perplexity = perplexity_text(row['logprob'], row['tokens']).replace('undefined', '—')
        values = [str(row['tokens']), greedy, per_token, perplexity, *sampler]
        return [*values, f'{row["logprob"]:.4f}', f'{row["prob"]:.4g}']
    before, change = row['before'], f'{row["log_ratio"]:+.4f} {arrow(row["log_ratio"])}'
    if summary['comparison']['per'] == 'byte':
        per_byte = [f'{side["logprob"] / max(1, side["bytes"]):.4f}' for side in (before, row)]
        return [str(row['bytes']), *per_byte, change]
    sampler = [f'{side["sampler_prob"]:.4g}' for side in (before, row)] if has_sampler else []
    logprobs = [f'{side["logprob"]:.4f}' for side in (before, row)]
    probs = [f'{side["prob"]:.4g}' for side in (before, row)]
    return [str(row['tokens']), *sampler, *logprobs, *probs, change]


def measures_table(summary):
    """Return a table of all measures with their 95 % intervals."""
    headings, *lines = measure_lines(summary)
    table = Table()
    for place, heading in enumerate(headings):
        table.add_column(heading, justify='left' if place == 0 else 'right', no_wrap=place == 0)
    for line in lines:
        table.add_row(*line)
    return table


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
            lines.append([label, *(interval_text(group[role].get(name), form, role == 'difference') for role in roles)])
    errors = [number(summary['calibration'][role]['error'], '{:.4f}') for role in roles if role != 'difference']
    lines.append(['calibration error', *errors, *(['—'] if len(roles) > 1 else [])])
    return lines


def number(value, form, missing='—'):
    """Write a number, or what stands for one that there is not."""
    return missing if value is None else form.format(value)


def interval_text(interval, form, signed=False):
    """Write a value and, in brackets, its interval."""
    if interval is None or interval['value'] is None:
        return '—'
    low, high = (
        number(end, form) if '%' in form or end is None else f'{float(f"{end:.3g}"):g}'  # they are not known any better
        for end in (interval['low'], interval['high'])
    )
    form = form.replace('{:', '{:+') if signed else form
    text = f'{form.format(interval["value"])} [{low}, {high}]'
    return text.replace('%', ' points', 1).replace('%', '') if signed else text


def title(summary):
    """Say which models, and which probability."""
    models = summary['model']['init_from']
    if 'compare_to' in summary:
        models = f'before: {summary["compare_to"]["init_from"]}, after: {models}'
    return f'{models}: model probability of each response{precision(summary["settings"]["dtype"])}'


def size_text(summary):
    """Say how much was measured."""
    unit = 'response' if summary['data']['kind'] == 'pairs' else 'segment'
    what = f'{summary["rows"]:,} {unit}{"" if summary["rows"] == 1 else "s"}, {summary["tokens"]:,} tokens'
    return f'{what}, {summary["bytes"]:,} bytes: model probability{precision(summary["settings"]["dtype"])}'


def sentences(summary):
    """Return what the numbers say, a line each."""
    lines = []
    if summary['logprob'] is not None and summary['data']['kind'] == 'pairs':
        logprob = summary['logprob']
        lines.append(f'All of them together have logprob {logprob:.4f}, probability {probability_text(logprob)}.')
    if summary['settings']['temperature'] != 1:
        lines.append(f'Sampler values are those at {summary["sampler"]}; everything else is the model itself.')
    if 'multiple_choice' in summary:
        count = summary['multiple_choice']['questions']
        lines.append(f'acc and acc_norm are over the {count} with distractors.')
    if 'comparison' in summary:
        lines += comparison_sentences(summary)
    unit = 'pairs' if summary['data']['kind'] == 'pairs' else 'segments'
    lines.append(f'{summary["run"]["rows_per_second"]:,} {unit} per second.')
    return lines


def comparison_sentences(summary):
    """Say whether the second model finds the responses likelier than the first, and how sure that is."""
    comparison = summary['comparison']
    before, after = summary['compare_to']['init_from'], summary['model']['init_from']
    unit = 'segment' if summary['data']['kind'] == 'text' else 'response'
    per, mean = comparison['per'].replace('response', unit), comparison['mean_log_ratio']
    if summary['rows'] == 1:
        return [f'From {before} to {after} the logprob per {per} changed by {mean["value"]:+.4f}.']
    lines = [
        f'Of {summary["rows"]:,} {unit}s, {after} finds {comparison["rose"]:,} likelier than {before} does, '
        f'{comparison["fell"]:,} less likely and {comparison["same"]:,} the same. The mean log-ratio per {per} is '
        f'{interval_text(mean, "{:.4f}", signed=True)}, a factor of {math.exp(min(mean["value"], 700)):.3g}.'
    ]
    if comparison['per'] == 'response':
        difference = summary['measures']['difference']['logprob_per_token']
        lines.append(f'Per token that is {interval_text(difference, "{:.4f}", signed=True)} nats.')
    else:
        lines.append('The two have different tokens, so values per byte are compared, and no token with another.')
    verdict = 'is hardly chance' if comparison['p_value'] < 0.05 else 'may well be chance'
    lines.append(
        f'In a paired sign-flip permutation test p = {comparison["p_value"]:.2g}: so large a difference {verdict}.'
    )
    return lines


# A page for keeping -------------------------------------------------------------------------------------------------


def write_page(folder, results, summary):
    """Write report.md and its pictures into a folder."""
    compared, text = 'compare_to' in summary, summary['data']['kind'] == 'text'
    shown = results.rows
    if compared and not text and results.count > PAGE_ROWS:
        shown = sorted((row for *_, row in results.most_changed), key=lambda row: row['index'])
    shown = shown[: TEXT_SEGMENTS if text else PAGE_ROWS]
    pictures = draw_pictures(folder, shown, summary)
    parts = [f'# {page_title(summary)}', ' '.join(answer(summary)), how_measured(summary)]
    parts += ['## All together', markdown_table(measure_lines(summary)), glossary(summary)]
    parts += pictures
    if 'multiple_choice' in summary:
        parts += multiple_choice_part(shown, summary)
    if not text and shown:
        parts += rows_part(shown, summary)
    parts += ['## To have it again', f'```bash\n{summary["command"]}\n```', made_with(summary)]
    with written_whole(folder / 'report.md') as path:
        path.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def page_title(summary):
    """Return the question that the page answers."""
    what = (
        f'{summary["rows"]:,} responses'
        if summary['data']['kind'] == 'pairs'
        else f'the text {Path(summary["data"]["name"]).name}'
    )
    model = summary['model']['init_from']
    if 'compare_to' not in summary:
        return f'How likely does {model} find {what}?'
    return f'How much likelier does {model} find {what} than {summary["compare_to"]["init_from"]}?'


def answer(summary):
    """Return the sentences that answer it."""
    if 'comparison' in summary:
        return comparison_sentences(summary)
    measures = summary['measures']['model']
    bits, perplexity = (interval_text(measures[name], MEASURES[name][2]) for name in ('bits_per_byte', 'perplexity'))
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
        stride = settings['stride'] or 'half a context'
        lines.append(f'Every token of the text was scored once, {stride} at a time, behind as much text as fits.')
    lines.append(
        f'Probabilities are model probabilities (softmax of the raw logits{precision(settings["dtype"])}); '
        'logprobs are natural logarithms, summed in float64.'
    )
    if settings['temperature'] != 1:
        lines.append(f'What is called the sampler’s is at {summary["sampler"]}.')
    lines.append(
        f'Intervals hold 95 % of {settings["resamples"]:,} bootstrap resamples of the '
        f'{"responses" if data["kind"] == "pairs" else "segments"} (seed {settings["seed"]}).'
    )
    return ' '.join(lines)


def glossary(summary):
    """Explain the measures that the table has."""
    names = [*summary['measures']['model'], *summary.get('multiple_choice', {}).get('model', [])]
    lines = [f'- **{MEASURES[name][0]}**: {MEASURES[name][1]}' for name in names]
    lines.append(
        '- **calibration error**: how far the model’s sureness is from how often it was right, on average (ECE)'
    )
    return '\n'.join(lines)


def draw_pictures(folder, rows, summary):
    """Draw what there is to draw, and return the parts of the page that show it."""
    parts = []
    compared, names = 'compare_to' in summary, [summary[role]['init_from'] for role in ROLES if role in summary]
    if rows and compared and summary['data']['kind'] == 'pairs':
        per_byte = summary['comparison']['per'] == 'byte'
        labels = [f'{plots.shortened(row.get("prompt", ""), 32, from_end=True)} │{row["response"]}' for row in rows]
        sides = [[row['before'] for row in rows], rows]
        logprobs = [[side['logprob'] / (max(1, side['bytes']) if per_byte else 1) for side in of] for of in sides]
        unit = 'per byte (geometric mean)' if per_byte else 'of the whole response'
        plots.draw_before_after(folder / 'before_after.png', labels, *logprobs, names[::-1], unit)
        which = f'the {len(rows)} that changed most' if len(rows) < summary['rows'] else 'all of them'
        parts += [
            '## What changed',
            '![before and after](before_after.png)',
            f'*Probability before and after, {which}.*',
        ]
    if rows and compared and summary['comparison']['per'] == 'byte':
        parts.append(
            'Tokens are not coloured by how much each changed: the two models cut the text into different tokens, so '
            'there is no pair of numbers to compare.'
        )
    elif rows:
        lines = []
        for row in rows:
            values = row['token_logprobs']
            if compared:
                values = [after - before for after, before in zip(values, row['before']['token_logprobs'], strict=True)]
            lines.append((row.get('prompt', ''), row['pieces'], values))
        meaning = 'change of the logprob' if compared else 'logprob'
        plots.draw_token_sheet(folder / 'tokens.png', lines, f'{meaning} of the token', diverging=compared)
        which = f'the first {len(rows)} segments' if summary['data']['kind'] == 'text' else 'each response'
        picture, caption = '![token by token](tokens.png)', f'*The tokens of {which}, coloured by {meaning}.*'
        parts += ['## Token by token', picture, caption]
    tables = {summary[role]['init_from']: of['table'] for role, of in summary['calibration'].items() if of['table']}
    if tables:
        plots.draw_reliability(folder / 'reliability.png', tables)
        parts += [
            '## Does it know how much it knows?',
            '![reliability](reliability.png)',
            '*Of the tokens that the model found likeliest and gave a certain probability, what share came? On the '
            'diagonal, as many as it said. Points of few tokens (below) mean little.*',
        ]
    return parts


def multiple_choice_part(rows, summary):
    """Return the part about the questions: what was right, and what each model took instead."""
    roles = [role for role in ('compare_to', 'model') if role in summary]
    lines = [['prompt', 'right response', *(f'{summary[role]["init_from"]} prefers' for role in roles)]]
    for row in rows:
        if 'choices' in row:
            sides = [row['before'] if role == 'compare_to' else row for role in roles]
            lines.append([plain(row['prompt']), plain(row['choices'][0]['text']), *map(preferred, sides)])
    shown = len(lines) - 1
    which = '' if shown == summary['multiple_choice']['questions'] else f' Those among the rows shown here: {shown}.'
    return [
        '## Multiple choice',
        f'A response is right if it is likelier than each of its distractors.{which}',
        markdown_table(lines),
    ]


def preferred(side):
    """Say which choice a model finds likeliest."""
    if side['right']:
        return 'the right one ✓'
    return plain(max(side['choices'][1:], key=lambda choice: choice['logprob'])['text'])


def rows_part(rows, summary):
    """Return the table of responses, each with its tokens and numbers."""
    headings = ['prompt', 'tokens of the response', *(h.replace('\n', ' ') for h in row_headings(summary)), 'ranks']
    lines = [headings]
    for row in rows:
        ranks = ' '.join(f'{rank:,}' for rank in row['token_ranks'])
        lines.append([plain(row['prompt']), code(row['pieces']), *row_cells(row, summary), ranks])
    few = 'pairs.jsonl has all of them.' if len(rows) < summary['rows'] else ''
    return [
        '## Each response',
        'A token ends at │; `·` is a space, `⏎` a new line. The rank of a token is 1 where greedy decoding says it. '
        + few,
        markdown_table(lines),
    ]


def made_with(summary):
    """Say which models, data and versions it was."""
    data, lines = summary['data'], []
    for role in ('compare_to', 'model'):
        if role in summary:
            model = summary[role]
            lines.append(
                f'- {ROLES[role] if "compare_to" in summary else "model"}: `{model["init_from"]}`, '
                f'{model["parameters"]:,} parameters, weights SHA-256 `{model["weights_sha256"][:16]}…`'
            )
    if data['name'] is not None:
        lines.append(f'- data: `{data["name"]}`, SHA-256 `{data["sha256"][:16]}…`')
    lines.append('- versions: ' + ', '.join(f'{name} {number}' for name, number in summary['versions'].items()))
    lines.append(f'- it took {summary["run"]["seconds"]:,} seconds')
    return '\n'.join(lines)


def markdown_table(lines):
    """Return a Markdown table of a heading and rows, numbers to the right."""
    heading, *rows = lines
    is_text = [not all(re.match(r'[-+]?\d|—|yes|no|inf', row[place]) for row in rows) for place in range(len(heading))]
    rule = ['---' if text else '---:' for text in is_text]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [heading, rule, *rows])


def plain(text):
    """Return a text as Markdown that shows it as it is."""
    text = html.escape(' '.join(text.split()), quote=False)
    return re.sub(r'([\\`*_\[\]~|#])', r'\\\1', text) or '(empty)'


def code(pieces):
    """Return pieces as Markdown code."""
    text = '│'.join(pieces).replace('|', '\\|')
    ticks = '`' * (max((len(run) for run in re.findall('`+', text)), default=0) + 1)
    space = ' ' if text.startswith('`') or text.endswith('`') else ''
    return f'{ticks}{space}{text}{space}{ticks}' if text else '(empty)'
