"""The processes that work together, one or as many as torchrun started, and the signals that stop them."""

import atexit
import os
import signal
import sys
import threading
import time
import traceback

import torch
import torch.distributed

from common.errors import UserError


class Processes:
    """How many processes there are, and which one this is. Without torchrun there is one, the first."""

    def __init__(self, device=None, backend=None):
        """device: the device setting; with several processes, None means a GPU for each, or else the CPU.

        backend: how GPUs exchange data; None means nccl. Data on the CPU always goes through gloo.
        """
        self.count = int(os.environ.get('WORLD_SIZE', 1))
        self.rank = int(os.environ.get('RANK', 0))
        self.first = self.rank == 0
        self.device = device
        if self.count > 1:
            backends = 'gloo'
            if device in (None, 'gpu', 'cuda') and torch.cuda.is_available():
                self.device = f'cuda:{os.environ["LOCAL_RANK"]}'
                torch.cuda.set_device(self.device)
                backends = f'cpu:gloo,cuda:{backend or "nccl"}'
            self.device = self.device or 'cpu'
            torch.distributed.init_process_group(backends)
            atexit.register(torch.distributed.destroy_process_group)
        if not self.first:
            # Only the first process prints; the others report nothing but their own failures.
            sys.stdout = sys.stderr = open(os.devnull, 'w')  # noqa: SIM115
            sys.excepthook = lambda *error: traceback.print_exception(*error, file=sys.__stderr__)

    def share(self, items):
        """Return this process's share of a list: consecutive items, since neighbours may have a prompt in common."""
        n = len(items)
        return items[self.rank * n // self.count : (self.rank + 1) * n // self.count]

    def gather(self, share):
        """Return all processes' shares, joined in order, to the first process; an empty list to the others.

        A UserError in place of a share is raised, in the process that has it and in the first.
        """
        shares = [share]
        if self.count > 1:
            shares = [None] * self.count if self.first else None
            torch.distributed.gather_object(share, shares)
        for gathered in [share, *(shares or [])]:
            if isinstance(gathered, UserError):
                raise gathered
        return [item for share in shares or [] for item in share]

    def sum(self, *numbers):
        """Return, to every process, the sum of each number over all processes, in float64."""
        return self._reduce(numbers, torch.distributed.ReduceOp.SUM)

    def max(self, *numbers):
        """Return, to every process, the largest of each number over all processes, in float64."""
        return self._reduce(numbers, torch.distributed.ReduceOp.MAX)

    def _reduce(self, numbers, operation):
        reduced = torch.tensor(numbers, dtype=torch.float64)
        if self.count > 1:
            torch.distributed.all_reduce(reduced, operation)
        return reduced.tolist()

    def broadcast(self, value):
        """Return the first process's value to every process."""
        values = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(values)
        return values[0]


class StopSignals:
    """A context in which Ctrl-C and SIGTERM are noted in `received`, so that the program can stop at a good moment.

    A second Ctrl-C stops it at once if it comes at least three seconds later; before that, it may be the same one,
    passed on by torchrun. Signals reach the main thread only, so in another one nothing is noted.
    """

    def __enter__(self):
        self.received = 0  # the signal's number; 0: none
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        self._handlers = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number, frame):
        if not self.received:
            self.received, self._at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > 3:
            raise KeyboardInterrupt

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
