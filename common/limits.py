"""Limits for what a file makes a library do: how long it may take, and how much memory."""

import contextlib
import signal
import threading
from pathlib import Path

STATM = Path('/proc/self/statm')  # on Linux: how much address space this process has, in pages


@contextlib.contextmanager
def limit_time_and_memory(seconds, mebibytes):
    """Raise TimeoutError, or MemoryError, in what runs inside if it takes longer, or that much more memory.

    The time is limited in the main thread of Linux and macOS only, the memory on Linux only.
    """
    with contextlib.ExitStack() as stack:
        if hasattr(signal, 'setitimer') and threading.current_thread() is threading.main_thread():
            stack.enter_context(_limit_time(seconds))
        if STATM.exists():
            stack.enter_context(_limit_memory(mebibytes))
        yield


@contextlib.contextmanager
def _limit_time(seconds):
    def stop(number, frame):
        raise TimeoutError(f'it takes more than {seconds} seconds')

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _limit_memory(mebibytes):
    import resource  # which Windows lacks

    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(STATM.read_text().split()[0]) * resource.getpagesize()
    limits = [limit for limit in (now + mebibytes * 2**20, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
