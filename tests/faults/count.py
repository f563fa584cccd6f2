"""Count the situations of each kind, as a table in Markdown.

python -m tests.faults.count             print it
python -m tests.faults.count --write     write it into docs/what_survives.md
"""

import contextlib
import io
import sys
from collections import Counter
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / 'docs' / 'what_survives.md'
START = '<!-- written by python -m tests.faults.count --write -->'


class _Collector:
    """Keeps the tests that pytest collects."""

    def pytest_collection_finish(self, session):
        self.items = session.items


def count_situations():
    """Return {kind: how many situations}, over all tests in this folder."""
    collector, counts = _Collector(), Counter()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        arguments = ['--collect-only', '-n', '0', '-m', '', str(Path(__file__).parent)]
        assert pytest.main(arguments, plugins=[collector]) == 0, out.getvalue()
    for item in collector.items:
        kind, count = (*item.get_closest_marker('situation').args, 1)[:2]
        counts[kind] += count
    return dict(sorted((kind, count) for kind, count in counts.items() if count))


def format_counts(counts):
    """Return the counts as a table in Markdown."""
    rows = [f'| {kind} | {count} |' for kind, count in {**counts, '**together**': sum(counts.values())}.items()]
    return '\n'.join(['| kind of fault | situations |', '| --- | ---: |', *rows])


if __name__ == '__main__':
    table = format_counts(count_situations())
    if sys.argv[1:] == ['--write']:
        above = PAGE.read_text(encoding='utf-8').partition(START)[0]
        PAGE.write_text(f'{above}{START}\n\n{table}\n', encoding='utf-8')
    else:
        print(table)
