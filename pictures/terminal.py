"""TODO."""

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_parts(*parts):
    """Print texts and tables."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # in a file or a pipe there is no window to fit
    with console.capture() as capture:  # rich ends the program where a pipe is closed; print leaves that to us
        for part in parts:
            console.print(part, highlight=False, soft_wrap=isinstance(part, Text))
    print(capture.get(), end='')


def new_table(title, *columns):
    """Return an empty table; a column whose name starts with > has numbers and stands to the right."""
    made = Table(title=Text(title, style='table.title'), title_justify='left')
    for column in columns:
        made.add_column(column.removeprefix('>'), justify='right' if column.startswith('>') else 'left')
    return made


def format_weighted(pieces, numbers, count):
    """Return the pieces of the largest numbers, largest first: '·king 0.45, ·old 0.20'."""
    best = sorted(range(len(pieces)), key=lambda place: -numbers[place])[:count]
    return ', '.join(f'{pieces[place]} {numbers[place]:.2f}' for place in best)
