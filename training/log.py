"""What a person sees of a training run: a log, a loss curve, samples, and scores of pairs, as it goes on."""

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
from common.files import atomic_write
from evaluation.sources import PairSource
from lm.hardware import peak_flops
from lm.scoring import score_pairs
from pictures.losses import draw_losses

SAMPLE_TOKENS = 60  # of the text that it writes at each evaluation


class TrainingLog:
    """Writes metrics.jsonl and loss.png in out_dir and, if asked, logs to Weights & Biases; one process alone does."""

    def __init__(self, settings, tokenizer, resumed, iter_num=0, evaluated=False, wandb_id=None):
        """What was asked for is checked before anything is written.

        resumed: whether the lines up to iter_num are to be kept, those of its evaluation too if it was `evaluated`.
        """
        self._settings, self._tokenizer = settings, tokenizer
        if tokenizer is None and (settings.sample_prompt is not None or settings.eval_file):
            raise UserError('--sample_prompt and --eval_file need a tokenizer, and this model has none')
        self._drawn = False
        self._prompt = None if settings.sample_prompt is None else tokenizer.encode_prompt(settings.sample_prompt)
        self._pairs = self._encoded_pairs(settings.eval_file) if settings.eval_file else None
        self._wandb, self.wandb_id = _weights_and_biases(settings, wandb_id) if settings.wandb_log else (None, None)
        self._path = Path(settings.out_dir) / 'metrics.jsonl'
        kept = _kept_lines(self._path, iter_num, evaluated) if resumed and self._path.exists() else []
        with atomic_write(self._path) as temporary:
            temporary.write_text(''.join(f'{line}\n' for line in kept), encoding='utf-8')

    def _encoded_pairs(self, path):
        source = PairSource(path)
        items = [source.encode(pair, [self._tokenizer], 'joint', ' ') for _, pair in source.units()]
        return [item.pairs[0][0] for item in items]

    def log(self, iter_num, values):
        """Add a line of numbers."""
        self._drawn = False
        try:
            with open(self._path, 'a', encoding='utf-8') as file:
                file.write(json.dumps({'iter': iter_num, **values}) + '\n')
        except OSError as error:  # a full disk, most likely
            raise UserError(f'cannot write {self._path}: {error.strerror}') from error
        if self._wandb is not None:
            self._wandb.log(values, step=iter_num)

    def look(self, model, iter_num):
        """Let the model say something, and ask it about the pairs; return lines that tell of it."""
        lines = []
        model.eval()
        if self._prompt is not None:
            lines.append(f'it says: {self._sample(model)!r}')
        if self._pairs:
            scores = list(score_pairs(model, self._pairs))
            logprob = math.fsum(score.model_logprobs.sum().item() for score in scores)
            per_token = logprob / max(1, sum(len(score.model_logprobs) for score in scores))
            lines.append(
                f'{len(scores)} pairs of {self._settings.eval_file}: logprob per response {logprob / len(scores):.4f}, '
                f'per token {per_token:.4f}'
            )
            values = {'pairs_logprob_per_response': logprob / len(scores), 'pairs_logprob_per_token': per_token}
            self.log(iter_num, values)
        model.train()
        return lines

    def _sample(self, model):
        idx = torch.tensor([self._prompt], device=model.device)
        ids, _ = model.generate(idx, SAMPLE_TOKENS, temperature=0.8, top_k=200, seed=self._settings.seed)
        return self._tokenizer.decode(ids[0].tolist())

    def draw(self):
        """Draw the losses so far into loss.png, unless it shows them already."""
        if self._drawn:
            return
        self._drawn = True
        rows = [json.loads(line) for line in self._path.read_text(encoding='utf-8').splitlines()]
        curves = {
            name: [(row['iter'], row[key]) for row in rows if key in row]
            for name, key in (
                ('of each step', 'loss'),
                ('training part', 'train_loss'),
                ('validation part', 'val_loss'),
            )
        }
        draw_losses(self._path.parent / 'loss.png', curves)


class SpeedClock:
    """How fast a run is, leaving out what evaluations and checkpoints take."""

    def __init__(self, run):
        self._run, self._peak = run, peak_flops(run.device, run.dtype) * run.processes.count
        self._sequences = run.settings.gradient_accumulation_steps * run.settings.batch_size
        self.restart(run.iter_num)

    def restart(self, iter_num):
        """Count from now on."""
        self._started, self._iter_num = time.perf_counter(), iter_num

    def read(self, iter_num):
        """Return tokens per second and the share of the hardware's FLOP/s since the last reading."""
        seconds = (time.perf_counter() - self._started) / max(1, iter_num - self._iter_num)
        self.restart(iter_num)
        mfu = self._run.model.estimate_mfu(self._sequences, seconds, self._peak)
        return self._sequences * self._run.model.config.block_size / seconds, mfu


def describe_losses(losses, run):
    """Return each loss as text, in bits per byte too where the dataset's bytes are known."""
    texts = []
    for split, loss in losses.items():
        counts = run.meta.get(split) or {}
        bits = (
            f' ({loss / math.log(2) * counts["tokens"] / counts["bytes"]:.4f} bits per byte)'
            if counts.get('bytes')
            else ''
        )
        texts.append(f'{split}: {loss:.4f} nats per token{bits}')
    return f'{", ".join(texts)}, computed in {run.precision}'


def print_ending(run, stopped_by, exhausted):
    """Say what there is now, and how to go on."""
    out_dir = run.settings.out_dir
    if stopped_by:
        name = signal.Signals(stopped_by).name
        print(f'stopped by {name} after iteration {run.iter_num}; go on with: {resume_command(run.processes.count)}')
        sys.exit(128 + stopped_by)
    if exhausted:
        print(f'no better for {run.evaluations_since_best} evaluations in a row, so it ends here')
    if run.saved:
        print(f'sample from it with: python sample.py --out_dir={out_dir}')
    else:
        print('there is no new ckpt.pt: no evaluation was better than the one before training')


def resume_command(processes):
    """Return the command that this run was begun with, made one that goes on with it."""
    start = ['python'] if processes == 1 else ['torchrun', f'--nproc_per_node={os.environ["LOCAL_WORLD_SIZE"]}']
    typed = [argument for argument in sys.argv[1:] if argument != '--init_from=resume']
    return shlex.join([*start, 'train.py', *typed, '--init_from=resume'])  # of two settings the later one counts


def _weights_and_biases(settings, id):
    """Return the module, and the id by which a run that is taken up again is known there."""
    try:
        import wandb
    except ImportError as error:
        raise UserError('--wandb_log needs Weights & Biases: pip install wandb') from error
    config = dataclasses.asdict(settings)
    run = wandb.init(project=settings.wandb_project, name=settings.wandb_run_name, config=config, id=id, resume='allow')
    return wandb, run.id


def _kept_lines(path, iter_num, evaluated):
    kept = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut short when the machine stopped
            continue
        if entry['iter'] < iter_num or (entry['iter'] == iter_num and ('loss' in entry or evaluated)):
            kept.append(line)
    return kept
