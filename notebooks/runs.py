"""Training runs of the notebook: starting, watching and stopping one, and the table of all of them."""

import atexit
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import configurator
import train
from common.errors import UserError
from common.files import PROJECT, atomic_write, expand_path, make_folder
from common.json_files import read_json_object
from notebooks.choices import OUT
from notebooks.friendly import last_line
from notebooks.progress import describe_seconds
from texts.token_files import read_meta
from training.log import read_curves

DATASET = 'notebook'  # the texts, in data/notebook
SMALL_CONFIG, CONFIG = 'config/finetune_own_text.py', 'config/finetune_stories.py'
SMALL = 20e6  # weights; smaller models learn with the settings of the first config
TABLE = OUT / 'runs.json'
MIN_TOKENS = 50  # in each part of the texts
EVALUATIONS, LEAST_STEPS = 10, 5  # during a run; between two of them
BATCHES = 10  # of each part, to measure a loss
WEIGHTS = ('.safetensors', '.bin', '.pt', '.pth', '.ckpt')  # how the names of files with weights end
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # train.py saves what is needed to go on, then exits with 128 + one of them
STOPPED = {code for number in SIGNALS for code in (128 + number, -number)}  # negative: it had not begun yet


def count_tokens():
    """Return how many tokens each part of the texts has. Raises UserError if there are none, or too few."""
    meta = read_meta(DATASET) if (Path('data') / DATASET).is_dir() else {}
    if not meta:
        raise UserError('there are no texts yet: choose them in step 3')
    tokens = {part: meta.get(part, {}).get('tokens', 0) for part in ('train', 'val', 'test')}
    if min(tokens.values()) < MIN_TOKENS:
        raise UserError(
            'this is too little text: the smallest of the three parts has fewer than '
            f'{MIN_TOKENS} tokens. Choose more or longer texts'
        )
    return tokens


def suggested_rate(weights):
    """Return a learning rate that suits a model with this many weights."""
    return 3e-4 if weights < SMALL else 3e-5


@dataclass
class Run:
    """A run of train.py: what it trains, how far, and what became of it."""

    model: str
    weights: int  # of the model
    learning_rate: float
    epochs: float
    texts: str = ''  # the SHA-256 of the training part
    before: float | None = None  # perplexity on the validation part before training
    best: float | None = None  # the lowest after that
    outcome: str = ''  # done, stopped, too large (the learning rate), failed; '' while it runs, or if that was cut off
    version: str = ''  # of the model; see `model_version`

    @property
    def key(self):
        """What runs that can be compared have in common: the model and the texts."""
        return hashlib.sha256(f'{self.model}{self.version}\n{self.texts}'.encode()).hexdigest()[:8]

    @property
    def folder(self):
        return OUT / 'runs' / f'{self.key}-{self.learning_rate:g}-{self.epochs:g}'

    @property
    def name(self):
        return f'learning rate {decimal(self.learning_rate)}, {count_epochs(self.epochs)}'

    @property
    def has_weights(self):
        return (self.folder / 'ckpt.pt').exists()

    @property
    def can_go_on(self):
        return self.outcome in ('stopped', '') and (self.folder / 'last.pt').exists()

    def read_perplexities(self):
        """Fill in `before` and `best` from what has been measured so far."""
        validation = read_curves(self.folder)['validation part']
        self.before = to_perplexity(dict(validation).get(0))
        self.best = to_perplexity(min((loss for step, loss in validation if step > 0), default=None))


def new_run(model, weights, learning_rate, epochs):
    """Return a Run on the texts that are prepared. Raises UserError if there are too few."""
    count_tokens()
    return Run(model, weights, learning_rate, epochs, _texts_sha256(), version=model_version(model))


def model_version(name):
    """Return when the weights of a model in a folder were written, '' for a model that has none here.

    A saved model can be replaced by another one of its name.
    """
    path = expand_path(name)
    files = [path] if path.is_file() else path.glob('*')
    times = [file.stat().st_mtime_ns for file in files if file.suffix in WEIGHTS]
    return f' of {max(times)}' if times else ''


def _texts_sha256():
    """Return the SHA-256 of the training part, as meta.json has it."""
    return read_meta(DATASET)['train']['sha256']


def read_training_settings(weights):
    """Return train.py's settings for a model with this many weights, with a context no longer than the texts."""
    settings = configurator.read(train.Settings, [str(PROJECT / _config(weights))])
    settings.block_size = min(settings.block_size, min(count_tokens().values()) - 1)
    return settings


def count_steps(weights, epochs):
    """Return in how many steps a model with this many weights reads the texts that often."""
    settings = read_training_settings(weights)
    tokens = settings.batch_size * settings.gradient_accumulation_steps * settings.block_size
    return math.ceil(epochs * count_tokens()['train'] / tokens)


def _config(weights):
    return SMALL_CONFIG if weights < SMALL else CONFIG


class Training:
    """A process that trains a Run, and can be watched and stopped."""

    def __init__(self, run, go_on=False):
        """Start the run from the beginning or, with go_on, from where it was stopped."""
        self.run, self.stopped, self._began = run, False, time.monotonic()
        self._seen = []  # (step, when it was first seen), to say how long the rest will take
        make_folder(run.folder)
        if not go_on:  # or those of an earlier run would be taken for this one's until train.py deletes them
            for name in ('metrics.jsonl', 'ckpt.pt', 'last.pt'):
                (run.folder / name).unlink(missing_ok=True)
        settings = read_training_settings(run.weights)
        steps = count_steps(run.weights, run.epochs)
        arguments = {
            'init_from': 'resume' if go_on else run.model,
            'dataset': DATASET,
            'out_dir': run.folder,
            'overwrite': True,
            'learning_rate': run.learning_rate,
            'min_lr': run.learning_rate / 10,
            'warmup_iters': 0,
            'block_size': settings.block_size,
            'epochs': run.epochs,
            'eval_interval': max(LEAST_STEPS, steps // EVALUATIONS),
            'eval_iters': BATCHES,
        }
        command = [sys.executable, str(PROJECT / 'train.py'), str(PROJECT / _config(run.weights))]
        command += [f'--{name}={value}' for name, value in arguments.items()]
        run.outcome, self._log = '', run.folder / 'train.log'
        remember(run)
        with open(self._log, 'w', encoding='utf-8') as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONUTF8': '1', 'PYTHONUNBUFFERED': '1'},
                start_new_session=True,  # or Jupyter's ■ would interrupt it together with the notebook
            )
        atexit.register(self.stop)  # when the notebook is closed or restarted, the run can be continued later

    def is_running(self):
        """Return whether the process has not ended yet."""
        return self._process.poll() is None

    def stop(self):
        """Ask the process to end after the current step, and to save what is needed to go on."""
        self.stopped = True
        self._process.terminate()  # does nothing if it has ended

    def curves(self):
        """Return the losses so far; see training.log.read_curves."""
        return read_curves(self.run.folder)

    def describe(self):
        """Return a sentence about how far the run is."""
        found = re.search(r'per step, ([\d,]+) steps', self._output())
        steps = self.curves()['of each step']
        if not found or not steps:
            waited = describe_seconds(time.monotonic() - self._began)
            return f'Loading the model, and measuring it before training: {waited} so far.'
        total, done = int(found[1].replace(',', '')), steps[-1][0]
        if not self._seen or done > self._seen[-1][0]:
            self._seen.append((done, time.monotonic()))
        (first, began), (_, now) = self._seen[0], self._seen[-1]
        if done == total:
            return f'All {total:,} steps are done. Measuring the model once more …'
        said = f'Step {done:,} of {total:,}'
        if first < done:
            said += f', about {describe_seconds((now - began) / (done - first) * (total - done))} left'
        return f'{said}.'

    def finish(self):
        """Record what became of the run, keep the weights that are needed, and return its error, '' if there is none.

        The process has ended.
        """
        run, code, error = self.run, self._process.wait(), ''
        run.read_perplexities()
        if code == 0:
            run.outcome = 'done'
        elif self.stopped or code in STOPPED:
            run.outcome = 'stopped'
        else:
            error = last_line(self._output()) if code > 0 else 'out of memory: the system stopped the training'
            run.outcome = 'too large' if 'diverged' in error else 'failed'
        remember(run)
        tidy(run.key)
        return error

    def _output(self):
        return self._log.read_text(encoding='utf-8', errors='replace')


def to_perplexity(loss):
    """Return the perplexity of a loss in nats per token, None if it is None or as good as infinite."""
    return None if loss is None or loss > 100 else math.exp(loss)


def count_epochs(epochs):
    """Return a number of epochs in words."""
    return f'{epochs:g} epoch{"" if epochs == 1 else "s"}'


def decimal(number):
    """Return a learning rate without an exponent."""
    return f'{number:.8f}'.rstrip('0')


# The table of runs ---------------------------------------------------------------------------------------------------


def read_runs():
    """Return all Runs that are remembered, oldest first; one without an outcome with what it has measured so far."""
    runs = [Run(**row) for row in read_json_object(TABLE, missing={}).get('runs', [])]
    for run in runs:
        if not run.outcome:
            run.read_perplexities()
    return runs


def runs_of(model):
    """Return the Runs of a model on the texts that are prepared, oldest first."""
    wanted = (model, model_version(model), _texts_sha256())
    return [run for run in read_runs() if (run.model, run.version, run.texts) == wanted]


def remember(run):
    """Write a Run into the table, in place of an earlier one with the same settings."""
    others = [other for other in read_runs() if other.folder != run.folder]
    with atomic_write(TABLE) as temporary:
        temporary.write_text(json.dumps({'runs': [asdict(run) for run in [*others, run]]}, indent=1) + '\n')


def best_run(runs):
    """Return the Run with the lowest perplexity on the validation part among those with weights, None without one."""
    with_weights = (run for run in runs if run.has_weights)
    return min(with_weights, key=lambda run: math.inf if run.best is None else run.best, default=None)


def tidy(key):
    """Delete the weights of runs that are neither the best, nor the last, nor to go on: they fill the disk."""
    runs = [run for run in read_runs() if run.key == key]
    kept = [best_run(runs), *[run for run in runs if run.has_weights][-1:]]
    for run in runs:
        if run.outcome == 'done':
            (run.folder / 'last.pt').unlink(missing_ok=True)
        if run not in kept and not run.can_go_on:
            shutil.rmtree(run.folder, ignore_errors=True)
