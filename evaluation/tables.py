"""TODO."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.strings import show_control_characters
from evaluation.measures import arrow
from evaluation.sentences import format_number, measure_lines, result_sentences, size_text, title
from lm.wording import format_perplexity

# For the terminal ---------------------------------------------------------------------------------------------------


def print_results(rows, summary):
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
        for line in result_sentences(summary):
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
        text = Text(show_control_characters(row['prompt']))
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
    return format_number(side['prob_per_token'], '{:.4g}')


def row_perplexity_text(side):
    return format_perplexity(side['logprob'], side['tokens']).replace('undefined', '—')


def logprob_text(side):
    return f'{side["logprob"]:.4f}'


def prob_text(side):
    return f'{side["prob"]:.4g}'


def logprob_per_byte_text(side):
    return f'{side["logprob"] / max(1, side["bytes"]):.4f}'


def sampler_logprob_text(side):
    return format_number(side['sampler_logprob'], '{:.4f}', '-inf')


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
