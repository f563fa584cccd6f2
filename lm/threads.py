"""How many threads compute, decided while a text is generated: fewer if another program wants the CPU.

A product is shared among threads, and each waits for the slowest. If another program takes one of their cores for a few
milliseconds, all wait that long, hundreds of times a second: on two cores, one busy program can cost far more than half
of the speed. Then half as many threads are faster.

The system counts how often it took a core away from this process. If that happens often, each number of threads is
tried for a moment, and the fastest is kept for a while. On a quiet machine nothing is ever tried.
"""

import time

import torch

try:
    import resource
except ImportError:  # on Windows; there nothing is tried
    resource = None

FEW = 32  # tokens; more in one pass are always computed by all threads, which then rarely wait for each other
OFTEN = 40  # times a second that a core is taken away
WATCHED = 0.05  # seconds over which that is counted
TRIED = 0.04  # seconds, at least, for which a number of threads is tried
TRIED_STEPS = 2  # likewise
KEPT = 1.0, 8.0  # seconds for which the outcome is kept: the first time, and at most


def count_lost_cores():
    """Return how often the system took a core away from a thread of this process that computed; 0 if unknown."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


class Pace:
    """Chooses the number of threads for each pass of a model."""

    def __init__(self, clock=time.perf_counter, count_losses=count_lost_cores):
        """clock: returns seconds. count_losses: how often cores were taken away so far."""
        self._clock, self._count_losses = clock, count_losses
        self._limit = None  # of threads for a few tokens
        self._set_all()
        self._keep, self._kept_until = KEPT[0], -1.0
        self._watched_since, self._losses = clock(), count_losses()

    def _set_all(self):
        """Take the present number of torch's threads for all that there are."""
        self._all = self.threads = torch.get_num_threads()
        self._most = self._choice = min(self._all, self._limit or self._all)  # for a few tokens; what was chosen last
        self._trials = {}  # threads -> [seconds, steps] of what is being tried, the last one now

    def limit(self, threads):
        """Compute a few tokens with at most so many threads, since more are slower; None for all."""
        if threads != self._limit:
            self._limit = threads
            self._use(self._all)
            self._set_all()

    def run(self, compute, idx, cache=None):
        """Return compute(idx, cache): a pass over (B, T) ids, with as many threads as seems best."""
        if torch.get_num_threads() != self.threads:  # somebody else has chosen
            self._set_all()
        if idx.numel() > FEW:
            before = self.threads
            self._use(self._all)
            try:
                return compute(idx, cache)
            finally:
                self._use(before)
        if not self._trials:
            self._use(self._choice)
        if self._most == 1:
            return compute(idx, cache)
        begin = self._clock()
        if not self._trials and self._is_time_for_trial(begin):
            self._try(self._most)
        result = compute(idx, cache)
        if self._trials:
            self._count_step(self._clock() - begin)
        return result

    def _is_time_for_trial(self, now):
        """Return whether to try: with all threads, if cores are taken away; with fewer, if that was some time ago."""
        if self.threads < self._most:
            return now >= self._kept_until
        if now - self._watched_since < WATCHED:
            return False
        losses = self._count_losses()
        a_second = (losses - self._losses) / (now - self._watched_since)
        self._watched_since, self._losses = now, losses
        return a_second > OFTEN and now >= self._kept_until

    def _try(self, threads):
        self._trials[threads] = [0.0, 0]
        self._use(threads)

    def _count_step(self, seconds):
        """Count a step of the current trial; when it is over, try half as many threads, or choose."""
        threads, trial = list(self._trials.items())[-1]
        trial[0] += seconds
        trial[1] += 1
        if trial[0] < TRIED or trial[1] < TRIED_STEPS:
            return
        if threads > 1:
            self._try(threads // 2)
            return
        best = min(self._trials, key=lambda threads: self._trials[threads][0] / self._trials[threads][1])
        # The longer the same choice proves right, the rarer it is tested.
        self._keep = min(2 * self._keep, KEPT[1]) if best == self._choice else KEPT[0]
        self._choice, self._trials = best, {}
        self._watched_since, self._losses = self._clock(), self._count_losses()
        self._kept_until = self._watched_since + self._keep
        self._use(best)

    def _use(self, threads):
        if threads != self.threads:
            torch.set_num_threads(threads)
            self.threads = threads


def keep_pace(model, pace=None, threads=None):
    """Let a model's passes be computed with as many threads as seems best, and without notes for gradients.

    threads: how many are the most for a few tokens; None for all.
    """
    compute = model.hidden
    pace = pace or shared_pace()
    pace.limit(threads)

    @torch.inference_mode()
    def hidden(idx, cache=None):
        return pace.run(compute, idx, cache)

    model.hidden = hidden


def shared_pace():
    """Return the one Pace of this process: all its models share the CPU."""
    if not _shared:
        _shared.append(Pace())
    return _shared[0]


_shared = []
