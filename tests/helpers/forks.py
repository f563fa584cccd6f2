"""Scripts in processes that are forked from one which has imported all that they need: a quarter of a second each.

Importing torch takes two seconds, so one process per worker of pytest imports everything and is forked for each script,
before any thread exists (`helpers.fork_server`). A fork is what a person starts: it has its own arguments, folder,
environment, streams and exit code. What it cannot show is what happens while Python imports other libraries.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
ENVIRONMENT = {
    'OMP_NUM_THREADS': '1',
    'OPENBLAS_NUM_THREADS': '1',
    'HF_HUB_OFFLINE': '1',
    'HF_HUB_DISABLE_PROGRESS_BARS': '1',
    'MPLBACKEND': 'Agg',
    'PYTHONPATH': str(PROJECT),
}


def can_fork():
    """Return whether processes can be forked here as the server does it."""
    return sys.platform.startswith('linux')


def start_fork(request):
    """Start a script in a fork; return a function that waits for its end and returns how it ended, and its process id.

    request: arguments (the path of a script or `-m` and a module, and its arguments), cwd, environment, streams (for
    stdin, stdout and stderr: a path, `closed` or `broken`), seconds and memory (in bytes, or None) that it may take,
    address_space, fault and log (see `faults.harness.start`; None), is_copy (see `run_fork`).
    """
    return _server().start(request)


def run_fork(arguments, cwd, environment, timeout, is_copy=False):
    """Run a script in a fork to its end, without input; return the finished process.

    arguments: as for Python. environment: all variables. timeout: in seconds; after that, subprocess.TimeoutExpired.
    is_copy: the script is part of a copy of the project, whose modules it imports itself; libraries stay imported.
    """
    with tempfile.TemporaryDirectory(prefix='fork-') as folder:
        out, err = Path(folder, 'out'), Path(folder, 'err')
        out.touch()
        err.touch()
        request = {
            'arguments': [str(argument) for argument in arguments],
            'cwd': str(cwd),
            'environment': environment,
            'streams': ['/dev/null', str(out), str(err)],
            'seconds': timeout,
            'is_copy': is_copy,
        }
        collect, _ = start_fork({**request, 'memory': None, 'address_space': None, 'fault': None, 'log': None})
        answer = collect()
        # In text mode newlines become what subprocess makes of them.
        stdout, stderr = (path.read_text(encoding='utf-8') for path in (out, err))
    if answer['killed_for']:
        raise subprocess.TimeoutExpired(arguments, timeout, stdout, stderr)
    return subprocess.CompletedProcess(arguments, answer['code'], stdout, stderr)


class _Server:
    """The other side of helpers.fork_server."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        layer = compile_file_layer()
        environment = {**os.environ, **ENVIRONMENT, **({'LD_PRELOAD': layer} if layer else {})}
        command = [sys.executable, HERE / 'fork_server.py', str(theirs.fileno()), PROJECT]
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._connection, self._answers = ours, ours.makefile('r', encoding='utf-8')
        self._last, self._early = 0, []
        atexit.register(self.stop)

    def start(self, request):
        self._last += 1
        id = self._last
        self._connection.sendall(json.dumps({**request, 'id': id}).encode() + b'\n')
        return lambda: self._answer(id, 'code'), self._answer(id, 'pid')['pid']

    def _answer(self, id, key):
        """Return the answer about request `id` that has `key`; keep those about others for later."""
        while True:
            for answer in self._early:
                if answer['id'] == id and key in answer:
                    self._early.remove(answer)
                    return answer
            line = self._answers.readline()
            assert line, 'the fork server has ended'
            self._early.append(json.loads(line))

    def stop(self):
        self._answers.close()
        self._connection.close()
        self._process.wait()


@cache
def _server():
    return _Server()


@cache
def compile_file_layer():
    """Compile the file layer of `faults`, which the server loads; return its path, None if that is not possible."""
    if not sys.platform.startswith('linux'):
        return None
    folder = tempfile.TemporaryDirectory(prefix='faults-')
    atexit.register(folder.cleanup)
    path = f'{folder.name}/file_layer.so'
    try:
        subprocess.run(['cc', '-shared', '-fPIC', '-O1', HERE / 'file_layer.c', '-o', path, '-ldl'], check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return path
