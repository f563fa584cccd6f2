"""Running scripts and lessons as a person does, and the list of the project's files."""

import contextlib
import functools
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

from helpers.forks import PROJECT, can_fork, run_fork
from lab.hand_in import list_files


def run_script(script, *arguments, cwd, env=None, timeout=120, fresh=False):
    """Run a script of the project as a person does, from folder `cwd`; return the finished process.

    script: `sample.py`, or a module that is run with python -m, `lab.bench`. timeout: in seconds. fresh: start a new
    interpreter, for what happens while Python imports, instead of forking one that has imported what scripts need.
    """
    command = [*([str(PROJECT / script)] if script.endswith('.py') else ['-m', script]), *map(str, arguments)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(PROJECT), **(env or {})}
    if can_fork() and not fresh:
        return run_fork(command, cwd, environment, timeout)
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding='utf-8',
        timeout=timeout,
    )


def run_copy(*arguments, cwd, env=None, timeout=300):
    """Run Python with these arguments in `cwd`, a copy of the project; return the finished process.

    env: all environment variables; None for those of this process.
    """
    env = os.environ if env is None else env
    if can_fork():
        return run_fork(arguments, cwd, dict(env), timeout, is_copy=True)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, encoding='utf-8', timeout=timeout
    )


def run_lesson(name, *arguments, cwd, timeout=300, fresh=False, **env):
    """Run a lesson as a person does, but from folder `cwd`, where it puts its pictures; return the finished process."""
    env = {'PYTHONIOENCODING': 'utf-8', **env}
    return run_script(f'lessons.{name}', *arguments, cwd=cwd, env=env, timeout=timeout, fresh=fresh)


def run_in_this_process(short, program, **options):
    """Do what subprocess.run does with a script or a few lines of Python, without starting another process.

    short: {name of a script: arguments that are added to make it quick}.
    """
    _, script, *arguments = program
    before, printed = sys.argv, io.StringIO()
    try:
        sys.argv = [script, *arguments, *short.get(Path(script).name, ())]
        with contextlib.redirect_stdout(printed), contextlib.chdir(options.get('cwd') or '.'):
            if script == '-c':
                exec(arguments[0], {'__name__': '__main__'})
            else:
                runpy.run_path(script, run_name='__main__')
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(program, 0, printed.getvalue())


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
    return list_files()
