"""Every test here is slow, and says which kind of situation it runs through, and how many."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Mark the tests of this folder slow; refuse one that names no kind."""
    for item in items:
        if HERE in item.path.parents:
            if item.get_closest_marker('situation') is None:
                raise pytest.UsageError(f'{item.nodeid}: say which kind of fault it is about, @pytest.mark.situation')
            item.add_marker(pytest.mark.slow)
