"""The processes that work together, one or as many as torchrun started, and the signals that stop them."""

import atexit
import os
import signal
import sys
import time
import traceback

import torch
import torch.distributed

from common.errors import UserError


class Processes:
    """Who is there, who shares what; without torchrun, a single process that is the first and has everything."""

    def __init__(self, device=None, backend=None):
        """device: asked for; with several processes, None is a GPU for each or else the CPU.

        backend: of what GPUs exchange, nccl for None. What the CPU holds always goes through gloo.
        """
        self.count = int(os.environ.get('WORLD_SIZE', 1))
        self.rank = int(os.environ.get('RANK', 0))
        self.first = self.rank == 0
        self.device = device
        if self.count > 1:
            backends = 'gloo'
            if device in (None, 'cuda') and torch.cuda.is_available():
                self.device = f'cuda:{os.environ["LOCAL_RANK"]}'
                torch.cuda.set_device(self.device)
                backends = f'cpu:gloo,cuda:{backend or "nccl"}'
            self.device = self.device or 'cpu'
            torch.distributed.init_process_group(backends)
            atexit.register(torch.distributed.destroy_process_group)
        if not self.first:
            # Everything is said once, by the first; only what goes wrong here is said here.
            sys.stdout = sys.stderr = open(os.devnull, 'w')  # noqa: SIM115
            sys.excepthook = lambda *error: traceback.print_exception(*error, file=sys.__stderr__)

    def share(self, things):
        """Return this process's part of a list: neighbours stay together, since they may have a prompt in common."""
        n = len(things)
        return things[self.rank * n // self.count : (self.rank + 1) * n // self.count]

    def gather(self, part):
        """Return all parts, joined in the order of the shares, to the first process, and an empty list to the others.

        A part that is a UserError is raised: in the process that has it, and in the first.
        """
        parts = [part]
        if self.count > 1:
            parts = [None] * self.count if self.first else None
            torch.distributed.gather_object(part, parts)
        for found in [part, *(parts or [])]:
            if isinstance(found, UserError):
                raise found
        return [thing for part in parts or [] for thing in part]

    def sum(self, *numbers):
        """Return the sum of each number over all processes, in float64, to all of them."""
        return self._reduce(numbers, torch.distributed.ReduceOp.SUM)

    def max(self, *numbers):
        """Return the largest of each number over all processes, in float64, to all of them."""
        return self._reduce(numbers, torch.distributed.ReduceOp.MAX)

    def _reduce(self, numbers, operation):
        reduced = torch.tensor(numbers, dtype=torch.float64)
        if self.count > 1:
            torch.distributed.all_reduce(reduced, operation)
        return reduced.tolist()

    def broadcast(self, value):
        """Return the first process's value to all."""
        values = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(values)
        return values[0]


class Stop:
    """Notes that a signal asks the program to end, which it does when it has finished what it is doing.

    Another Ctrl-C, some seconds later, ends it at once; sooner, it may be torchrun passing on the same one.
    """

    def __init__(self):
        self.received = 0  # the signal's number
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number, frame):
        if not self.received:
            self.received, self._at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > 3:
            raise KeyboardInterrupt

    def forget(self):
        """Let signals do what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.forget()
