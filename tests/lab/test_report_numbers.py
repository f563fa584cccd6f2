"""The numbers on the project's pages are those of the files that they name."""

import pytest
from helpers.scripts import PROJECT

from lab.sourced_numbers import find_disagreements, quotations

FULLY_SOURCED = ['results/REPORT.md']  # every number that was measured says where it is from
PAGES = [*FULLY_SOURCED, 'README.md', 'docs/speed.md', 'models/tiny/README.md', 'models/tiny-stories/README.md']


@pytest.mark.parametrize('page', PAGES)
def test_numbers_on_a_page_are_those_of_their_files(page):
    complaints = find_disagreements(PROJECT / page, all_sourced=page in FULLY_SOURCED)
    assert not complaints, '\n'.join(complaints)
    assert sum(len(found) for _, _, found in quotations(PROJECT / page)) >= 3
