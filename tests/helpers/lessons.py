"""Lessons, run in the test's process, which is fast, or as a person runs them."""

import contextlib
import importlib

import pytest

import configurator
from helpers.scripts import run_lesson

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
