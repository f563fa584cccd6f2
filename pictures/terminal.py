"""Tables and texts that the pictures print in the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.strings import show_invisible


def print_parts(*parts):
    """Print texts and tables, one after the other."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file or a pipe has no window to fit into
    with console.capture() as capture:  # rich exits on a broken pipe; print leaves that to configurator.run
        for part in parts:
            console.print(part, highlight=False, soft_wrap=isinstance(part, Text))
    print(capture.get(), end='')


def new_table(title, *columns):
    """Return an empty table; a column whose name starts with > holds numbers and is right-aligned."""
    table = Table(title=Text(show_invisible(title), style='table.title'), title_justify='left')
    for column in columns:
        table.add_column(column.removeprefix('>'), justify='right' if column.startswith('>') else 'left')
    return table


def format_largest(pieces, numbers, count):
    """Return the pieces with the largest numbers, in descending order: '·king 0.45, ·old 0.20'."""
    largest = sorted(range(len(pieces)), key=lambda place: -numbers[place])[:count]
    return ', '.join(f'{pieces[place]} {numbers[place]:.2f}' for place in largest)
