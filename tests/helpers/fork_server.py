"""The process that imports all that the scripts need, once, and is forked for each script; see `helpers.forks`.

Its arguments are the number of a connected socket and the project's folder. It speaks JSON, a line each way. A request
is {id, arguments, cwd, streams, environment, ...}, see `helpers.forks.start_fork`; the answers are {id, pid} at once,
{id, code, seconds, peak_bytes, killed_for} at its end.
"""

import atexit
import contextlib
import ctypes
import gc
import io
import json
import math
import os
import resource
import runpy
import select
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

PROJECT = sys.argv[2]
PAGE = resource.getpagesize()
POLL = 0.01  # seconds between two looks at the children
STREAM_MODES = ('r', 'w', 'w')  # of stdin, stdout and stderr


class Chosen(BaseException):
    """Unwinds the server's loop in a child, which then runs its script and ends as any Python does."""

    def __init__(self, request):
        self.request = request


def import_everything():
    """Import what the scripts import, without computing anything: no thread may exist when the process is forked."""
    import importlib

    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import matplotlib.font_manager
    import matplotlib.pyplot  # noqa: F401
    import PIL.PngImagePlugin  # noqa: F401
    import torch._dynamo
    import torch.nn.parallel.distributed  # noqa: F401
    from filelock import FileLock

    for name in ('train', 'eval', 'sample', 'export', 'prepare_bin', 'visualize', 'serve'):
        importlib.import_module(name)
    import visualize

    for name in visualize.PICTURES:
        visualize.load_picture(name)
    import configurator
    import sample

    configurator.read(sample.Settings, ['--seed=1'])  # what tyro and filelock import when they are first used
    with tempfile.TemporaryDirectory() as folder, FileLock(f'{folder}/lock'):
        pass
    gc.collect()
    gc.freeze()  # a child's collector need not touch, and so copy, the memory that it shares with this process
    threads = len(list(Path('/proc/self/task').iterdir()))
    assert threads == 1, f'{threads} threads after importing'
    assert 'huggingface_hub' not in sys.modules, 'it reads the environment when it is imported'


def serve(connection):
    """Fork a child for each request and report how each ends, until the other side closes the connection."""
    children = {}  # pid -> its request, when it began, the most memory seen, and why it was killed
    lines, rest = [], b''
    while True:
        ready, _, _ = select.select([connection], [], [], POLL if children else None)
        if ready:
            data = connection.recv(2**16)
            if not data:
                for pid in children:
                    os.killpg(pid, signal.SIGKILL)
                return
            *lines, rest = (rest + data).split(b'\n')
        for request in map(json.loads, lines):
            pid = os.fork()
            if pid == 0:
                connection.close()
                os.setsid()
                raise Chosen(request)
            children[pid] = {'request': request, 'began': time.monotonic(), 'peak': 0, 'killed_for': ''}
            send(connection, {'id': request['id'], 'pid': pid})
        lines = []
        for pid in list(children):
            watch(pid, children, connection)


def watch(pid, children, connection):
    """Report a child if it has ended; kill it if it has taken too long or too much memory."""
    child = children[pid]
    ended, status, usage = os.wait4(pid, os.WNOHANG)
    seconds = time.monotonic() - child['began']
    if ended:
        del children[pid]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what it started
        code = os.waitstatus_to_exitcode(status)
        answer = {'code': code, 'seconds': seconds, 'peak_bytes': usage.ru_maxrss * 1024}
        send(connection, {'id': child['request']['id'], **answer, 'killed_for': child['killed_for']})
        return
    with open(f'/proc/{pid}/statm', encoding='ascii') as file:
        fields = file.read().split()
    memory = int(fields[1]) * PAGE if fields else 0
    if memory > (child['request']['memory'] or math.inf) or seconds > child['request']['seconds']:
        child['killed_for'] = 'time' if seconds > child['request']['seconds'] else 'memory'
        os.kill(pid, signal.SIGKILL)


def send(connection, answer):
    """Send an answer as a line."""
    connection.sendall(json.dumps(answer).encode() + b'\n')


def run_script(request):
    """Become the process that a person starts: folder, environment, streams, limits, faults; then run the script.

    A script is a path, or `-m` and the name of a module, as for Python.
    """
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['environment'])
    for fd, path in enumerate(request['streams']):
        open_stream(fd, path)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    if request['address_space']:
        with open('/proc/self/statm', encoding='ascii') as file:
            used = int(file.read().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (used + request['address_space'],) * 2)
    if request['fault']:
        arm(request)
    if request['is_copy']:
        forget_project()
    script, *arguments = request['arguments']
    if script == '-m':
        sys.argv, sys.path[0] = arguments, request['cwd']
        runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
    else:
        sys.argv, sys.path[0] = [script, *arguments], str(Path(script).resolve().parent)
        runpy.run_path(script, run_name='__main__')


def forget_project():
    """Let this process import the project's own modules anew, from where the script is."""
    ours = {path.stem for path in Path(PROJECT).iterdir() if path.suffix == '.py' or (path / '__init__.py').exists()}
    for name in [name for name in sys.modules if name.partition('.')[0] in ours]:
        del sys.modules[name]
    sys.path[1:] = [place for place in sys.path[1:] if place != PROJECT]


def open_stream(fd, path):
    """Make a stream of this process what the request says: a file, closed, or a pipe that nobody reads."""
    if path == 'closed':
        os.close(fd)
    elif path == 'broken':
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, fd)
        os.close(writing)
    else:
        flags = os.O_RDONLY if fd == 0 else os.O_WRONLY
        opened = os.open(path, flags | os.O_NOCTTY)
        os.dup2(opened, fd)
        os.close(opened)
    stream = None
    if path != 'closed':
        encoding, _, errors = os.environ.get('PYTHONIOENCODING', 'utf-8').partition(':')
        errors = 'backslashreplace' if fd == 2 else errors or 'strict'
        raw = io.FileIO(fd, STREAM_MODES[fd], closefd=False)
        buffered = io.BufferedReader(raw) if fd == 0 else io.BufferedWriter(raw)
        stream = io.TextIOWrapper(buffered, encoding, errors, line_buffering=fd == 2 or os.isatty(fd))
        stream.mode = STREAM_MODES[fd]
    name = ('stdin', 'stdout', 'stderr')[fd]
    setattr(sys, name, stream)
    setattr(sys, f'__{name}__', stream)


def arm(request):
    """Let the file layer begin to count."""
    mode = {'count': 1, 'kill': 2, 'full': 3}[request['fault']['mode']]
    log = os.open(request['log'], os.O_WRONLY | os.O_APPEND) if mode == 1 else -1
    root = os.path.realpath(request['fault']['below'])
    ctypes.CDLL(None).arm_faults(mode, ctypes.c_long(request['fault']['point']), root.encode(), log)


def end_at_once(ended):
    """End this process with its exit code, if it is known; called after what the script itself has registered."""
    if ended['code'] is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended['code'])


if __name__ == '__main__':
    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = PROJECT  # not helpers/, whose modules have the names of rooms
    import_everything()
    gc.freeze()  # else each child looks through all that was imported as it ends, and copies it: 0.5 seconds
    try:
        serve(connection)
        sys.exit()
    except Chosen as chosen:
        request = chosen.request
    # Taking the interpreter apart takes a second. It is left out, after all that a script can notice of its end, unless
    # the streams are unusual: then it may say that it cannot flush them.
    ended = {'code': None}
    if not {'closed', 'broken', '/dev/full'} & set(request['streams']):
        atexit.register(end_at_once, ended)
    try:
        run_script(request)  # out here, where an exception has no other in its context
        ended['code'] = 0
    except SystemExit as error:
        ended['code'] = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except Exception:
        ended['code'] = 1
        raise
