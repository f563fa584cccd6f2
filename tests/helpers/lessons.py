"""Lessons, run in the test's process, which is fast, or as a person runs them."""

import contextlib
import importlib
import re

import pytest

import configurator
from helpers.scripts import PROJECT, run_lesson

here_and_as_command = pytest.mark.parametrize(
    'as_command', [pytest.param(False, id='here'), pytest.param(True, id='command', marks=pytest.mark.slow)]
)


def run_in_folder(name, *arguments, as_command, folder, capsys):
    """Run a lesson in a folder, into which its pictures go; return what it wrote to stdout and stderr."""
    if as_command:
        process = run_lesson(name, *arguments, cwd=folder)
        assert process.returncode == 0, process.stderr
        return process.stdout, process.stderr
    lesson = importlib.import_module(f'lessons.{name}')
    with contextlib.chdir(folder):
        lesson.main(configurator.read(lesson.Settings, arguments))
    return capsys.readouterr()


def numbers_on_page(pattern):
    """Return the numbers that the groups of a pattern match on the page of the lessons, where it must match once.

    A space in the pattern stands for a line break too. What a percent sign follows is a share: 97 % is 0.97.
    """
    page = (PROJECT / 'lessons' / 'README.md').read_text(encoding='utf-8')
    (found,) = re.finditer(pattern.replace(' ', r'\s+'), page, re.DOTALL)
    return [
        float(number.replace(',', '')) / (100 if page[found.end(group) :].startswith(' %') else 1)
        for group, number in enumerate(found.groups(), 1)
    ]
