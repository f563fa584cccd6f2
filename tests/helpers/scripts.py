"""Running scripts and lessons as a person does, and the list of the project's files."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent


def run_script(script, *arguments, cwd, env=None, timeout=120):
    """Run a script of the project as a person does, from folder `cwd`; return the finished process.

    script: `sample.py`, or a module that is run with python -m, `lab.bench`. timeout: in seconds.
    """
    program = [str(PROJECT / script)] if script.endswith('.py') else ['-m', script]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(PROJECT), **(env or {})},
        capture_output=True,
        encoding='utf-8',
        timeout=timeout,
    )


def run_lesson(name, *arguments, cwd, timeout=300, **env):
    """Run a lesson as a person does, but from folder `cwd`, where it puts its pictures; return the finished process."""
    env = {'PYTHONIOENCODING': 'utf-8', **env}
    return run_script(f'lessons.{name}', *arguments, cwd=cwd, env=env, timeout=timeout)


def assert_friendly_error(process, *words):
    """Check that a process ended with exit code 2 and one line on stderr, which contains these words."""
    assert process.returncode == 2, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith('error: ')
    for word in words:
        assert word in lines[0], lines[0]


@functools.cache
def files_of_project():
    """Return the paths of the project's files, without those that git ignores."""
    listing = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z']
    try:
        out = subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        paths = [Path(path) for path in out.split('\0') if path]
    except (OSError, subprocess.CalledProcessError):  # a copy without git
        here = [path.relative_to(PROJECT) for path in PROJECT.rglob('*') if path.is_file()]
        paths = [path for path in here if not re.match(r'\.(?!ci/)|out[^/]*/|venv/|.*__pycache__', str(path))]
    return [path for path in paths if (PROJECT / path).exists()]
