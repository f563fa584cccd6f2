"""Run a script under a fault, in a process of its own; see `faults` for examples."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers.forks import ENVIRONMENT, compile_file_layer, start_fork
from helpers.scripts import PROJECT

SECONDS, MEMORY = 60, 3 * 10**9  # limits of a situation that names none
PROGRESS = re.compile(r'\d+%\||\d(it|B|document)/s|s/it|\[\d\d:\d\d|it/s')  # lines of tqdm


@dataclass
class Fault:
    """What the file layer does at a point, the n-th change to a file `below` a folder (None: cwd); see file_layer.c."""

    mode: str  # count, kill or full
    point: int = 0
    below: str | None = None


@dataclass
class Outcome:
    """How a script ended."""

    code: int  # the exit code; minus the signal's number, if one ended it
    out: str  # what it wrote to stdout, and to stderr; bytes that are not UTF-8 as lone surrogates
    err: str
    seconds: float
    peak_bytes: int  # resident memory, of which 300 MB are what the imports need
    killed_for: str = ''  # 'time' or 'memory', if it was killed for either
    points: list = field(default_factory=list)  # with Fault('count'): ['create /path', 'write /path', ...]

    @property
    def lines(self):
        """The lines on stderr that are neither notes nor progress."""
        lines = [line for line in re.split(r'[\n\r]', self.err) if line.strip() and line.strip() != '\x1b[A']
        return [line for line in lines if not line.startswith('note: ') and not PROGRESS.search(line)]


class Running:
    """A script that has been started."""

    def __init__(self, collect, pid, files, log):
        self._collect, self.pid, self._files, self._log = collect, pid, files, log

    def send_signal(self, number):
        """Send it a signal; it must not have ended."""
        os.kill(self.pid, number)

    def wait(self):
        """Return its Outcome, when it has ended."""
        answer = self._collect()
        out, err = (
            Path(path).read_bytes().decode('utf-8', 'surrogateescape') if path else '' for path in self._files[1:]
        )
        points = Path(self._log).read_text(encoding='utf-8', errors='surrogateescape').splitlines()
        for path in (*self._files, self._log):
            if path:
                Path(path).unlink()
        return Outcome(answer['code'], out, err, answer['seconds'], answer['peak_bytes'], answer['killed_for'], points)


def run(script, *arguments, **options):
    """Run a script to its end and return the Outcome; see `start` for the options."""
    return start(script, *arguments, **options).wait()


def start(
    script,
    *arguments,
    cwd,
    seconds=SECONDS,
    memory=MEMORY,
    address_space=None,
    fault=None,
    stdin=b'',
    stdout='file',
    stderr='file',
    env=None,
    fresh=False,
):
    """Start a script of the project in the folder cwd and return it as Running.

    seconds, memory: what it may take; in bytes, resident. Above either it is killed, and `killed_for` says so.
    address_space: bytes that it may allocate besides what the imports did; more fails, as on a machine with too little.
    fault: a Fault. stdin: bytes, or 'closed'. stdout, stderr: 'file', 'closed', 'full' (/dev/full), 'broken' (a pipe
    whose reader is gone), or the path of a terminal or pipe to write to. env: changes to the environment; None removes.
    fresh: a new interpreter, for what happens while Python imports; without fault and address_space.
    """
    environment = {**os.environ, **ENVIRONMENT, **(env or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    names = [None, None, None]
    streams = [stdin, stdout, stderr]
    for fd, stream in enumerate(streams):
        if isinstance(stream, bytes) or stream == 'file':
            handle, names[fd] = tempfile.mkstemp(prefix='faults-')
            os.write(handle, stream if isinstance(stream, bytes) else b'')
            os.close(handle)
            streams[fd] = names[fd]
        elif stream == 'full':
            streams[fd] = '/dev/full'
    handle, log = tempfile.mkstemp(prefix='faults-')
    os.close(handle)
    path = PROJECT / script
    command = [str(path), *map(str, arguments)]
    if fresh:
        assert fault is None and address_space is None
        return Running(*_start_fresh(command, cwd, environment, streams, seconds), names, log)
    request = {
        'arguments': command,
        'cwd': str(cwd),
        'environment': environment,
        'streams': streams,
        'seconds': seconds,
        'memory': memory,
        'address_space': address_space,
        'fault': fault and {'mode': fault.mode, 'point': fault.point, 'below': str(fault.below or cwd)},
        'log': log,
        'is_copy': False,
    }
    if fault is not None and not compile_file_layer():
        pytest.skip('the file layer of these tests needs Linux and a C compiler')
    return Running(*start_fork(request), names, log)


def assert_one_line(outcome, *words, code=2):
    """Check that a script ended with this code and one line on stderr, besides notes, which contains these words."""
    assert not outcome.killed_for, f'it took too much {outcome.killed_for}: {outcome}'
    assert 'Traceback' not in outcome.err, outcome.err
    assert outcome.code == code, outcome
    lines = outcome.lines
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith('error: '), outcome.err
    for word in words:
        assert word in lines[0], lines[0]


def assert_went_well(outcome):
    """Check that a script did what it was asked for."""
    assert outcome.code == 0 and not outcome.killed_for and 'Traceback' not in outcome.err, outcome


# The processes --------------------------------------------------------------------------------------------------------


def _start_fresh(command, cwd, environment, streams, seconds):
    """Start a new interpreter; return what collects its end, and its process id."""
    began, opened = time.monotonic(), []
    for fd, stream in enumerate(streams):
        if stream == 'broken':
            reading, writing = os.pipe()
            os.close(reading)
            opened.append(writing)
        else:
            opened.append(os.open('/dev/null' if stream == 'closed' else stream, os.O_WRONLY if fd else os.O_RDONLY))
    closed = ''.join(f' {fd}>&-' for fd, stream in enumerate(streams) if stream == 'closed')
    shell = ['sh', '-c', f'exec "$@"{closed}', 'sh', sys.executable, *command]
    process = subprocess.Popen(
        shell, cwd=cwd, env=environment, stdin=opened[0], stdout=opened[1], stderr=opened[2], start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for fd in opened:
        os.close(fd)

    def collect():
        killed_for = ''
        try:
            process.wait(max(0, seconds - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            killed_for = 'time'
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answer = {'code': process.returncode, 'seconds': time.monotonic() - began, 'peak_bytes': 0}
        return {**answer, 'killed_for': killed_for}

    return collect, process.pid
