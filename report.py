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
from measures import KEPT, arrow
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
    'acc_norm': ('acc_norm', 'the same by logprob per byte, the space before not counted', '{:.1%}'),
}
ROLES = {'model': 'after', 'compare_to': 'before', 'difference': 'difference'}
TEXT_SEGMENTS = 8  # of a running text that the page shows
TOKENS = 150  # of a response that the page shows, and
CHARACTERS = 600  # of a prompt


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
    with console.capture() as capture:  # rich ends the program where a pipe is closed; print leaves that to us
        if summary['data']['kind'] == 'pairs' and rows:
            console.print(rows_table(rows, summary, narrow=console.width < 110))
            if left := summary['rows'] - len(rows):
                console.print(
                    f'and {left:,} more; --show=N prints more of them, --save=NAME keeps all', highlight=False
                )
        if summary['rows'] > 1 or summary['data']['kind'] == 'text' or 'multiple_choice' in summary:
            console.print(Text(f'over {size_text(summary)}', style='table.title'))
            console.print(measures_table(summary))
        for line in sentences(summary):
            console.print(Text(line), soft_wrap=True)
    print(capture.get(), end='')


def rows_table(rows, summary, narrow):
    """Return a table of every response with its tokens and how likely it is."""
    columns = row_columns(summary, narrow)
    table = Table(title=Text(title(summary), style='table.title'), title_justify='left')
    table.add_column('prompt, then the tokens of the response', ratio=1, overflow='fold', min_width=24)
    for heading, _ in columns:
        table.add_column(heading, justify='right', no_wrap=True)
    for row in rows:
        text = Text(visible(row['prompt']))
        text.append(' │ ', style='dim')
        text.append('│'.join(row['pieces']), style='bold')
        cells = [Text(write(row)) for _, write in columns]
        if 'log_ratio' in row:
            cells[-1].stylize({'↑': 'green', '↓': 'red', '=': 'dim'}[arrow(row['log_ratio'])])
        table.add_row(text, *cells)
    return table


def row_columns(summary, narrow=False):
    """Return (heading, how to write a row's value) for each column; where it is narrow, only what matters most."""
    has_sampler = summary['settings']['temperature'] != 1
    if 'compare_to' not in summary:
        columns = [('tokens', tokens_text)]
        if not narrow:
            columns += [('greedy', greedy_text), ('per token', per_token_text), ('perplexity', row_perplexity_text)]
        if has_sampler:
            columns.append(('sampler\nlogprob', sampler_logprob_text))
            columns += [] if narrow else [('sampler\nprob.', sampler_prob_text)]
        return [*columns, ('logprob', logprob_text), ('probability', prob_text)]
    if summary['comparison']['per'] == 'byte':
        columns = [('bytes', bytes_text), *before_and_after('logprob per\nbyte', logprob_per_byte_text)]
        return [*columns, ('log-ratio\nper byte', log_ratio_text)]
    columns = [('tokens', tokens_text)]
    if has_sampler and not narrow:
        columns += before_and_after('sampler\nprob.', sampler_prob_text)
    columns += before_and_after('logprob', logprob_text, between='\n')
    if not narrow:
        columns += before_and_after('prob.', prob_text, between='\n')
    return [*columns, ('log-ratio', log_ratio_text)]


def before_and_after(heading, write, between=' '):
    """Return two columns of the same kind, for the two models."""
    return [(f'{heading}{between}before', lambda row: write(row['before'])), (f'{heading}{between}after', write)]


def tokens_text(side):
    return str(side['tokens'])


def bytes_text(side):
    return str(side['bytes'])


def greedy_text(side):
    return 'yes' if side['greedy'] else 'no'


def per_token_text(side):
    return number(side['prob_per_token'], '{:.4g}')


def row_perplexity_text(side):
    return perplexity_text(side['logprob'], side['tokens']).replace('undefined', '—')


def logprob_text(side):
    return f'{side["logprob"]:.4f}'


def prob_text(side):
    return f'{side["prob"]:.4g}'


def logprob_per_byte_text(side):
    return f'{side["logprob"] / max(1, side["bytes"]):.4f}'


def sampler_logprob_text(side):
    return number(side['sampler_logprob'], '{:.4f}', '-inf')


def sampler_prob_text(side):
    return f'{side["sampler_prob"]:.4g}'


def log_ratio_text(row):
    return f'{row["log_ratio"]:+.4f} {arrow(row["log_ratio"])}'


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
    return precision(settings['dtype'], settings['quantize'])


def size_text(summary):
    """Say how much was measured."""
    what = f'{rows_text(summary)}, {summary["tokens"]:,} tokens, {summary["bytes"]:,} bytes'
    return f'{what}: model probability{precision_of(summary["settings"])}'


def rows_text(summary):
    """Say how many responses, or segments of a text, there are."""
    unit = 'response' if summary['data']['kind'] == 'pairs' else 'segment'
    return f'{summary["rows"]:,} {unit}{"" if summary["rows"] == 1 else "s"}'


def sentences(summary):
    """Return what the numbers say, a line each."""
    lines = []
    if summary['logprob'] is not None and summary['data']['kind'] == 'pairs':
        logprob = summary['logprob']
        lines.append(f'All of them together have logprob {logprob:.4f}, probability {probability_text(logprob)}.')
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
            f'The mean log-ratio per {comparison["per"]} is {interval_text(mean, "{:.4f}", signed=True)}, a factor of '
            f'{math.exp(min(mean["value"], 700)):.3g}.'
        )
    if comparison['per'] == 'response':
        change = interval_text(difference['logprob_per_token'], '{:.4f}', signed=True)
        lines.append(f'Per token the logprob changed by {change} nats.')
    else:
        lines.append('The two have different tokens, so values per byte are compared, and no token with another.')
    if summary['data']['kind'] == 'text':
        change = interval_text(difference['bits_per_byte'], '{:.4f}', signed=True)
        lines.append(f'The bits per byte changed by {change}.')
    verdict = 'is hardly chance' if comparison['p_value'] < 0.05 else 'may well be chance'
    lines.append(
        f'In a paired sign-flip permutation test p = {comparison["p_value"]:.2g}: so large a difference {verdict}.'
    )
    return lines


# A page for keeping -------------------------------------------------------------------------------------------------


def write_page(folder, results, summary):
    """Write report.md and its pictures into a folder."""
    text = summary['data']['kind'] == 'text'
    shown = rows_of_page(results, summary)
    which = which_text(shown, summary)
    pictures = draw_pictures(folder, shown, which, summary)
    parts = [f'# {page_title(summary)}', ' '.join(answer(summary)), how_measured(summary)]
    parts += ['## All together', markdown_table(measure_lines(summary)), glossary(summary)]
    parts += pictures
    if 'multiple_choice' in summary:
        parts += multiple_choice_part(shown, which, summary)
    if not text:
        parts += rows_part(shown, which, summary)
    parts += ['## To have it again', f'```bash\n{summary["command"]}\n```', made_with(summary)]
    with written_whole(folder / 'report.md') as path:
        path.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def rows_of_page(results, summary):
    """Return the rows that a page shows."""
    if summary['data']['kind'] == 'text':
        return results.first[:TEXT_SEGMENTS]
    return results.most_changed if 'compare_to' in summary else results.first[:KEPT]


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


def glossary(summary):
    """Explain the measures that the table has."""
    names = [*summary['measures']['model'], *summary.get('multiple_choice', {}).get('model', [])]
    lines = [f'- **{MEASURES[name][0]}**: {MEASURES[name][1]}' for name in names]
    if any(of.get('greedy_rate', {}).get('value') in (0, 1) for role, of in summary['measures'].items()):
        lines.append('- of a share that is 0 % or 100 %, resampling cannot tell how sure it is')
    lines.append(
        '- **calibration error**: how far the model’s sureness is from how often it was right, on average (ECE)'
    )
    return '\n'.join(lines)


def draw_pictures(folder, rows, which, summary):
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
            more = len(values) - TOKENS
            pieces = [*row['pieces'][:TOKENS], f' … and {more:,} more'] if more > 0 else row['pieces']
            lines.append((row.get('prompt', ''), pieces, [*values[:TOKENS], 0.0] if more > 0 else values))
        meaning, scale = ('change of the logprob', 'around 0') if compared else ('logprob', 'below 0')
        plots.draw_token_sheet(folder / 'tokens.png', lines, f'{meaning} of the token', scale)
        picture, caption = '![token by token](tokens.png)', f'*The tokens, coloured by {meaning}: {which}.*'
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


def multiple_choice_part(rows, which, summary):
    """Return the part about the questions: what was right, and what each model took instead."""
    roles = [role for role in ('compare_to', 'model') if role in summary]
    lines = [['prompt', 'right response', *(f'{summary[role]["init_from"]} prefers' for role in roles)]]
    for row in rows:
        if 'choices' in row:
            sides = [row['before'] if role == 'compare_to' else row for role in roles]
            lines.append([plain(row['prompt']), plain(row['choices'][0]['text']), *map(preferred, sides)])
    explanation = (
        f'A response is right if it is likelier than each of its distractors. Shown are the questions in {which}.'
    )
    return ['## Multiple choice', explanation, *([markdown_table(lines)] if len(lines) > 1 else [])]


def preferred(side):
    """Say which choice a model finds likeliest."""
    if side['right']:
        return 'the right one ✓'
    return plain(max(side['choices'][1:], key=lambda choice: choice['logprob'])['text'])


def rows_part(rows, which, summary):
    """Return the table of responses, each with its tokens and numbers."""
    columns = row_columns(summary)
    headings = [heading.replace('\n', ' ') for heading, _ in columns]
    lines = [['prompt', 'tokens of the response', *headings, 'ranks']]
    for row in rows:
        ranks = ' '.join(f'{rank:,}' for rank in row['token_ranks'][:TOKENS])
        more = f' … and {row["tokens"] - TOKENS:,} more' if row['tokens'] > TOKENS else ''
        cells = [write(row) for _, write in columns]
        lines.append([plain(row['prompt']), code(row['pieces'][:TOKENS]) + more, *cells, ranks + more])
    return [
        '## Each response',
        'A token ends at │; `·` is a space, `⏎` a new line. The rank of a token is 1 where greedy decoding says it. '
        f'Shown: {which}; pairs.jsonl has every number.',
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
    kept = summary['run']['kept_from_before']
    of_these = f' for the last {summary["rows"] - kept:,} of {rows_text(summary)}; the others were kept from before'
    lines.append(f'- it took {summary["run"]["seconds"]:,} seconds{of_these if kept else ""}')
    return '\n'.join(lines)


def markdown_table(lines):
    """Return a Markdown table of a heading and rows, numbers to the right."""
    heading, *rows = lines
    is_text = [not all(re.match(r'[-+]?\d|—|yes|no|inf', row[place]) for row in rows) for place in range(len(heading))]
    rule = ['---' if text else '---:' for text in is_text]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [heading, rule, *rows])


def plain(text):
    """Return a text as Markdown that shows it as it is, the end of a very long one."""
    text = html.escape(visible(plots.shortened(' '.join(text.split()), CHARACTERS, from_end=True)), quote=False)
    return re.sub(r'([\\`*_\[\]~|#])', r'\\\1', text) or '(empty)'


def visible(text):
    """Make a text fit for a line: control characters, which a terminal would obey, become visible."""
    text = text.replace('\n', '⏎')
    return ''.join(char if char.isprintable() else f'‹U+{ord(char):04X}›' for char in text)


def code(pieces):
    """Return pieces as Markdown code."""
    text = '│'.join(pieces).replace('|', '\\|')
    ticks = '`' * (max((len(run) for run in re.findall('`+', text)), default=0) + 1)
    space = ' ' if text.startswith('`') or text.endswith('`') else ''
    return f'{ticks}{space}{text}{space}{ticks}' if text else '(empty)'
