"""Count the situations of each kind, as a table in Markdown: python -m tests.faults.count."""

import contextlib
import io
from collections import Counter
from pathlib import Path

import pytest


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
    print(format_counts(count_situations()))
