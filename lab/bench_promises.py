"""What docs/speed.md promises about this project's speed, held against what bench.py measured on this machine."""

from typing import NamedTuple


class Promise(NamedTuple):
    """How many times as fast a contender of ours is as others that do the same job, at least."""

    job: str
    ours: str
    factor: float
    peers: tuple  # parts of their names
    peers_job: str | None = None  # the job that they do, if another


class Outcome(NamedTuple):
    """A promise, the fastest of the peers that were measured, and how many times as fast ours was."""

    promise: Promise
    peer: str
    ratio: float

    @property
    def holds(self):
        """Whether the promise is kept on this machine."""
        return self.ratio >= self.promise.factor


FLOAT32 = ('transformers float32', 'CTranslate2 float32', 'OpenVINO float32', 'llama.cpp float32')
SCORERS = (*FLOAT32, 'lm-eval float32', 'minicons float32')
INT8 = ('CTranslate2 int8', 'llama.cpp q8_0')
PROMISES = (
    Promise('decode', 'float32', 1.0, FLOAT32),
    Promise('decode', 'int8', 1.0, INT8),
    Promise('decode', 'int8', 0.8, ('OpenVINO int8',)),
    Promise('sample', 'float32', 1.3, FLOAT32),
    Promise('sample', 'int8', 1.3, (*INT8, 'OpenVINO int8')),
    Promise('score', 'float32', 1.2, SCORERS),
    Promise('score', 'int8', 1.2, (*INT8, 'OpenVINO int8')),
    Promise('prompts', 'int8', 2.0, (*INT8, 'OpenVINO int8', 'transformers bfloat16')),
    Promise('train', 'train.py', 1.0, ('plain float32', 'transformers float32', 'transformers bfloat16')),
    Promise('busy', 'float32', 0.5, ('float32',), 'decode'),
    Promise('busy', 'int8', 0.5, ('int8',), 'decode'),
    Promise('start', 'sample.py', 1 / 0.45, ('transformers',)),
)


def check_promises(results):
    """Return the Outcome of each promise that can be judged. results: {job: {contender: {'per_second', ...}}}."""
    outcomes = []
    for promise in PROMISES:
        ours = results.get(promise.job, {}).get(promise.ours)
        rivals = results.get(promise.peers_job or promise.job, {})
        speeds = {name: rivals[name]['per_second'] for name in promise.peers if name in rivals}
        if ours and speeds:
            fastest = max(speeds, key=speeds.get)
            outcomes.append(Outcome(promise, fastest, ours['per_second'] / speeds[fastest]))
    return outcomes


def promise_rows(results):
    """Yield the headings, then a row of text for each promise that can be judged."""
    yield ['job', 'ours', 'fastest peer', 'ratio', 'promised', 'on this machine']
    for outcome in check_promises(results):
        promise = outcome.promise
        peer = f'itself in the job {promise.peers_job}' if promise.peers_job else outcome.peer
        numbers = f'{outcome.ratio:.2f}', f'{promise.factor:.2f}'
        yield [promise.job, promise.ours, peer, *numbers, 'kept' if outcome.holds else 'not kept']
