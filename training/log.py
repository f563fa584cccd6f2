"""What a person sees of a training run: log, loss curve, samples and scores on the way, and how it ended."""

import dataclasses
import json
import math
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import torch

from common.errors import UserError
from common.files import atomic_write, is_there, open_regular
from common.json_files import parse_json_lines
from common.notebook import in_notebook
from common.notes import note
from evaluation.sources import PairSource
from lm.hardware import peak_flops
from lm.scoring import score_pairs
from pictures.losses import draw_losses

SAMPLE_TOKENS = 60  # length of the sample at each evaluation


class TrainingLog:
    """Writes metrics.jsonl and loss.png into out_dir; can log to Weights & Biases. Only the first process has one."""

    def __init__(self, settings, tokenizer, wandb_id=None):
        """Check the settings; nothing is written yet. wandb_id: that of a resumed run."""
        self._settings, self._tokenizer = settings, tokenizer
        if tokenizer is None and (settings.sample_prompt is not None or settings.eval_file):
            raise UserError('--sample_prompt and --eval_file need a tokenizer, but this model has none')
        self._prompt = None if settings.sample_prompt is None else tokenizer.encode_prompt(settings.sample_prompt)
        self._pairs = self._encode_pairs(settings.eval_file) if settings.eval_file else None
        self._wandb, self.wandb_id = _start_wandb(settings, wandb_id) if settings.wandb_log else (None, None)
        self._path = Path(settings.out_dir) / 'metrics.jsonl'
        self._drawn = False  # whether loss.png shows every line of metrics.jsonl

    def start(self, resumed, iter_num=0, evaluated=False):
        """Start metrics.jsonl.

        resumed: keep its lines up to iteration iter_num, including that iteration's evaluation if `evaluated`.
        """
        kept = _lines_to_keep(self._path, iter_num, evaluated) if resumed and is_there(self._path) else []
        with atomic_write(self._path) as temporary:
            temporary.write_text(''.join(f'{line}\n' for line in kept), encoding='utf-8')

    def _encode_pairs(self, path):
        source = PairSource(path)
        items = [source.encode(pair, [self._tokenizer], 'joint', ' ') for _, pair in source.units()]
        return [item.pairs[0][0] for item in items]

    def write(self, iter_num, values):
        """Add a line to metrics.jsonl. values: name -> number."""
        self._drawn = False
        try:
            with open(self._path, 'a', encoding='utf-8') as file:
                file.write(json.dumps({'iter': iter_num, **values}) + '\n')
        except OSError as error:  # most likely a full disk
            raise UserError(f'cannot write {self._path}: {error.strerror}') from error
        if self._wandb is not None:
            self._wandb.log(values, step=iter_num)

    def sample_and_score(self, model, iter_num):
        """Let the model continue --sample_prompt and score --eval_file; return lines to print about either."""
        lines = []
        model.eval()
        if self._prompt is not None:
            lines.append(f'sample: {self._sample(model)!r}')
        if self._pairs:
            scores = list(score_pairs(model, self._pairs))
            logprob = math.fsum(score.model_logprobs.sum().item() for score in scores)
            per_response = logprob / len(scores)
            per_token = logprob / max(1, sum(len(score.model_logprobs) for score in scores))
            lines.append(
                f'{len(scores)} pairs of {self._settings.eval_file}: logprob per response {per_response:.4f}, '
                f'per token {per_token:.4f}'
            )
            values = {'pairs_logprob_per_response': per_response, 'pairs_logprob_per_token': per_token}
            self.write(iter_num, values)
        model.train()
        return lines

    def _sample(self, model):
        idx = torch.tensor([self._prompt], device=model.device)
        ids, _ = model.generate(idx, SAMPLE_TOKENS, temperature=0.8, top_k=200, seed=self._settings.seed)
        return self._tokenizer.decode(ids[0].tolist())

    def draw(self):
        """Draw the losses so far into loss.png, unless it already shows them."""
        if self._drawn:
            return
        self._drawn = True
        out_dir = self._path.parent
        draw_losses(out_dir / 'loss.png', read_curves(out_dir))


def read_curves(out_dir):
    """Return the losses in a run's metrics.jsonl so far: name -> [(iteration, loss in nats per token)]."""
    path = out_dir / 'metrics.jsonl'
    rows = [row for _, row in _read_metrics(path)] if is_there(path) else []
    names = {'of each step': 'loss', 'training part': 'train_loss', 'validation part': 'val_loss'}
    return {name: [(row['iter'], row[key]) for row in rows if _is_number(row.get(key))] for name, key in names.items()}


def _read_metrics(path):
    """Yield the whole lines of a metrics.jsonl, and the object of each; a damaged one is left out, with a note."""
    with open_regular(path) as file:
        for number, (line, row) in enumerate(parse_json_lines(file), 1):
            if row is not None and type(row.get('iter')) is int:
                yield line.decode('utf-8').rstrip('\n'), row
            elif line.endswith(b'\n'):  # else it is being written, or was when the machine stopped
                note(f'{path}: line {number} is damaged; it is left out')


def _is_number(value):
    return type(value) in (int, float)


def _start_wandb(settings, id):
    """Return the wandb module and the run's id in Weights & Biases; id: that of a resumed run, else None."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(f'--wandb_log needs Weights & Biases ({error}): pip install wandb') from error
    config = dataclasses.asdict(settings)
    run = wandb.init(project=settings.wandb_project, name=settings.wandb_run_name, config=config, id=id, resume='allow')
    return wandb, run.id


def _lines_to_keep(path, iter_num, evaluated):
    """Return the lines of metrics.jsonl that a run resumed at iter_num will not write again."""
    return [
        line
        for line, row in _read_metrics(path)
        if row['iter'] < iter_num or (row['iter'] == iter_num and ('loss' in row or evaluated))
    ]


class SpeedClock:
    """Measures how fast a run trains, without the time that evaluations and checkpoints take."""

    def __init__(self, run):
        self._run, self._peak = run, peak_flops(run.device, run.dtype) * run.processes.count
        self._sequences = run.settings.gradient_accumulation_steps * run.settings.batch_size
        self.restart(run.iter_num)

    def restart(self, iter_num):
        """Start measuring now, at iteration iter_num."""
        self._started, self._iter_num = time.perf_counter(), iter_num

    def read(self, iter_num):
        """Return the speed since the last start or reading: tokens per second, and model FLOPs utilisation (0 to 1)."""
        seconds = (time.perf_counter() - self._started) / max(1, iter_num - self._iter_num)  # per iteration
        self.restart(iter_num)
        mfu = self._run.model.estimate_mfu(self._sequences, seconds, self._peak)
        return self._sequences * self._run.model.block_size / seconds, mfu


def describe_tokens(run):
    """Return how many tokens there are to train on and, of pairs, how many of them count in the loss."""
    text = f'{len(run.data["train"]):,} tokens'
    if run.masks['train'] is not None:
        text += f', of which the {run.blocks["train"].n_targets:,} of responses count'
    return text


def describe_losses(losses, run):
    """Return the losses as a line of text; in bits per byte, too, if the size in bytes of what counts is known."""
    texts = []
    for split, loss in losses.items():
        text, counts = f'{split}: {loss:.4f} nats per token', run.meta.get(split) or {}
        part = ''
        if run.masks[split] is not None:
            text, part = f'{text} of the responses', 'response_'
        if counts.get(f'{part}bytes'):
            bits = loss / math.log(2) * counts[f'{part}tokens'] / counts[f'{part}bytes']
            text += f' ({bits:.4f} bits per byte)'
        texts.append(text)
    return f'{", ".join(texts)}, computed in {run.dtype_name}'


def divergence_error(iter_num, numbers):
    """Return the error that ends a run that diverged. numbers: those that are inf or nan, as text."""
    return UserError(
        f'training diverged at iteration {iter_num}: some numbers are not finite ({numbers}), so nothing of it is '
        'saved; a lower --learning_rate, a longer --warmup_iters or --dtype=float32 may help'
    )


def print_ending(run, stop_signal, out_of_patience):
    """Print why the run ended and what to do next.

    After a signal (0: none), exit with the code a shell would give, except in a notebook.
    """
    if stop_signal:
        name = signal.Signals(stop_signal).name
        print(f'stopped by {name} after iteration {run.iter_num}; resume with: {resume_command(run)}')
        if not in_notebook():
            sys.exit(128 + stop_signal)
        return
    if out_of_patience:
        print(f'no better for {run.evaluations_since_best} evaluations in a row: training ends here')
    if run.saved:
        print(f'sample from it with: python sample.py --out_dir={run.settings.out_dir}')
    else:
        print('there is no new ckpt.pt: no evaluation was better than the one before training')


def resume_command(run):
    """Return the command that resumes a run: the one that started it, with --init_from=resume."""
    several = run.processes.count > 1
    start = ['torchrun', f'--nproc_per_node={os.environ["LOCAL_WORLD_SIZE"]}'] if several else ['python']
    if Path(sys.argv[0]).name == 'train.py':
        arguments = [argument for argument in sys.argv[1:] if argument != '--init_from=resume']
    else:  # called from Python, say from a notebook's cell
        values, default = dataclasses.asdict(run.settings), dataclasses.asdict(type(run.settings)())
        del values['init_from'], default['dataset']  # with a dataset named, train.py chooses no config file
        arguments = [f'--{name}={value}' for name, value in values.items() if value != default.get(name)]
    return shlex.join([*start, 'train.py', *arguments, '--init_from=resume'])  # the last of two settings wins
