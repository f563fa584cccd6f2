"""The results of an evaluation in the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.strings import show_control_characters, show_invisible
from evaluation.results import arrow
from evaluation.sentences import measures_heading, result_sentences, rows_heading
from evaluation.tables import measure_lines, row_columns, row_remarks


def print_results(rows, summary):
    """Print the rows, then the measures of all rows, then what they say in sentences."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no window to fit into
    with console.capture() as capture:  # rich exits on a broken pipe; print leaves that to configurator.run
        if summary['data']['kind'] == 'pairs' and rows:
            console.print(rows_table(rows, summary, narrow=console.width < 110))
            if left := summary['rows'] - len(rows):
                console.print(f'and {left:,} more: --show=N prints more, --save=NAME keeps all', highlight=False)
        if summary['rows'] > 1 or summary['data']['kind'] == 'text' or 'multiple_choice' in summary:
            console.print(Text(show_invisible(measures_heading(summary)), style='table.title'))
            console.print(measures_table(summary))
        for sentence in result_sentences(summary):
            console.print(Text(show_invisible(sentence)), soft_wrap=True)
    print(capture.get(), end='')


def rows_table(rows, summary, narrow):
    """Return a table of every response with its tokens and how likely it is."""
    columns = row_columns(summary, narrow)
    table = Table(title=Text(show_invisible(rows_heading(summary)), style='table.title'), title_justify='left')
    table.add_column('prompt, then the tokens of the response', ratio=1, overflow='fold', min_width=24)
    for column in columns:
        table.add_column(column.heading, justify='right', no_wrap=True)
    for row in rows:
        text = Text(show_control_characters(row['prompt']))
        text.append(' │ ', style='dim')
        text.append('│'.join(row['pieces']), style='bold')
        text.append(''.join(f' ({remark})' for remark in row_remarks(row)), style='dim')
        cells = [Text(column.cell(row)) for column in columns]
        if 'log_ratio' in row:
            cells[-1].stylize({'↑': 'green', '↓': 'red', '=': 'dim'}[arrow(row['log_ratio'])])
        table.add_row(text, *cells)
    return table


def measures_table(summary):
    """Return a table of all measures with their 95 % intervals."""
    headings, *lines = measure_lines(summary)
    table = Table()
    for place, heading in enumerate(headings):
        table.add_column(heading, justify='left' if place == 0 else 'right', no_wrap=place == 0)
    for line in lines:
        table.add_row(*line)
    return table
