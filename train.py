"""Train or fine-tune a GPT on the token files that prepare_bin.py writes.

    python train.py config/finetune_stories.py                          GPT-2 on the children's stories
    python train.py config/finetune_stories.py --init_from=resume       go on where it was stopped
    torchrun --nproc_per_node=2 train.py config/finetune_stories.py     with two GPUs, or two processes

The settings are nanoGPT's, and nanoGPT's config files work. What a step learns from, and what dropout leaves out, is
decided by the seed and the step's number: nothing but weights and optimizer need be kept for a run to go on exactly.
"""

import contextlib
import dataclasses
import itertools
import math
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import configurator
from common.errors import UserError
from common.processes import Processes, Stop
from lm import checkpoint as checkpoints
from lm.hardware import autocast, pick_device, pick_dtype, pick_training_dtype
from texts.token_files import open_tokens, read_meta, tokens_sha256
from training.batches import count_blocks, evaluation_batches, prefetch, training_batch
from training.lean_loss import LeanLoss
from training.log import SpeedClock, TrainingLog, describe_losses, print_ending
from training.lora import add_lora, merged_state_dict, split_state_dict
from training.setup import (
    check_tokens,
    check_training_settings,
    freeze_layers,
    make_model,
    remove_earlier_run,
    remove_partial_files,
)


@dataclass
class Settings:
    """Train or fine-tune a GPT."""

    # in and out
    out_dir: str = 'out'  # where ckpt.pt, last.pt, metrics.jsonl and loss.png go
    init_from: str = 'scratch'  # scratch, resume, gpt2 (any size), tiny, a model folder or a name on the hub
    overwrite: bool = False  # begin a new run in an out_dir that holds another, which is lost
    eval_interval: int = 2000  # iterations between evaluations
    log_interval: int = 1  # iterations between lines of the log
    eval_iters: int = 200  # batches of each split that an evaluation looks at, at the most; always the same ones
    eval_only: bool = False  # evaluate once and stop
    always_save_checkpoint: bool = True  # ckpt.pt after every evaluation; False: only after one better than all before
    save_interval: int | None = None  # iterations between last.pt, which resume goes on from (None: each evaluation)
    save_minutes: float = 10.0  # and minutes between them at the most
    wandb_log: bool = False  # log to Weights & Biases too (pip install wandb)
    wandb_project: str = 'owt'  # project there
    wandb_run_name: str = 'gpt2'  # name of the run there
    sample_prompt: str | None = None  # at each evaluation, let the model go on from this
    eval_file: str | None = None  # at each evaluation, score these pairs (as eval.py's --eval_data)
    # data
    dataset: str = 'openwebtext'  # data/<dataset>/train.bin and val.bin, made by prepare_bin.py
    gradient_accumulation_steps: int = 5 * 8  # batches that make up one step, shared out among the processes
    batch_size: int = 12  # sequences in a batch
    block_size: int = 1024  # tokens in a sequence
    # model, for scratch
    n_layer: int = 12  # layers
    n_head: int = 12  # attention heads of a layer
    n_embd: int = 768  # width
    dropout: float = 0.0  # 0 is good for pretraining, 0.1 or more for fine-tuning on little text
    bias: bool = False  # biases in Linear and LayerNorm; GPT-2 has them, without is a little better and faster
    # fine-tuning
    freeze: int | None = None  # leave the embeddings and the lowest so many blocks as they are
    lora_rank: int = 0  # learn low-rank additions to the matrices instead of the weights; 0: the weights
    lora_alpha: float = 16.0  # the additions count alpha / rank times
    # AdamW
    learning_rate: float = 6e-4  # the highest it gets
    max_iters: int = 600000  # steps to train
    epochs: float | None = None  # instead of max_iters: how often to go through the training part
    patience: int | None = None  # stop after so many evaluations in a row that were no better than the best
    weight_decay: float = 1e-1  # of matrices and embeddings
    beta1: float = 0.9  # decay of the gradient's mean
    beta2: float = 0.95  # decay of the gradient's square
    grad_clip: float = 1.0  # longest gradient, 0 for any
    # learning rate
    decay_lr: bool = True  # lower it along a cosine; False keeps it
    warmup_iters: int = 2000  # steps from 0 up to learning_rate
    lr_decay_iters: int | None = None  # step at which it has come down to min_lr; None for max_iters
    min_lr: float = 6e-5  # about a tenth of learning_rate
    # machine
    seed: int = 1337  # decides first weights, order of the data and dropout
    device: str | None = None  # cpu, cuda, cuda:1, mps; None for the best there is
    dtype: str | None = None  # float32, bfloat16, float16; None for the fastest that the hardware has
    compile: bool = False  # torch.compile the model: slower to start, then faster
    gradient_checkpointing: bool = False  # compute each layer again in the backward: less memory, a third more time
    backend: str | None = None  # of torchrun's processes: nccl (None) or gloo for GPUs; CPUs have gloo


def main(settings):
    """Make or load a model, then train, evaluate and save it until max_iters, patience or a signal ends it."""
    check_training_settings(settings)
    try:
        run = Run(settings)
        if settings.eval_only:
            print(describe_losses(run.losses(), run))
        else:
            run.begin()
            train(run)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not re.search('out of memory|allocate memory', str(error)):
            raise
        raise UserError(
            'out of memory: lower --batch_size and raise --gradient_accumulation_steps as much, lower --block_size, or '
            'set --gradient_checkpointing=True or --lora_rank=8'
        ) from error


def train(run):
    """Take steps from run.iter_num on, with evaluations and checkpoints between them."""
    settings, processes, first = run.settings, run.processes, run.processes.first
    coming = prefetch(run.batch, run.batch_numbers())
    clock, saved_at = SpeedClock(run), time.perf_counter()
    bar = {'total': run.max_iters, 'initial': run.iter_num, 'unit': 'it', 'dynamic_ncols': True, 'disable': not first}
    with Stop() as stop, contextlib.closing(coming), tqdm(**bar) as progress:
        while True:
            due = settings.save_interval is not None and run.iter_num % settings.save_interval == 0
            if not run.evaluated and (run.iter_num % settings.eval_interval == 0 or run.iter_num >= run.max_iters):
                evaluate(run, progress)
                due = due or settings.save_interval is None
                clock.restart(run.iter_num)  # what an evaluation takes is not the training's
            exhausted = settings.patience is not None and run.evaluations_since_best >= settings.patience
            # Whatever one process has noticed, all act on at the same iteration.
            stopped_by, minutes = processes.max(stop.received, (time.perf_counter() - saved_at) / 60)
            done = run.iter_num >= run.max_iters or exhausted or stopped_by
            if due or done or minutes >= settings.save_minutes:
                weights, lora = split_state_dict(run.model)
                run.save('last.pt', weights, lora=lora)
                saved_at = time.perf_counter()
                clock.restart(run.iter_num)
            if done:
                break

            loss, learning_rate = run.step(coming)
            progress.update()
            if run.iter_num % settings.log_interval == 0 and first:
                speed, mfu = clock.read(run.iter_num)
                progress.set_postfix_str(
                    f'loss {loss:.3f}, lr {learning_rate:.1e}, {speed:,.0f} tokens/s, mfu {mfu:.0%}'
                )
                values = {'loss': loss, 'lr': learning_rate, 'tokens_per_second': speed, 'mfu': mfu}
                run.monitor.log(run.iter_num, values)
    if first:
        run.monitor.draw()
    print_ending(run, int(stopped_by), exhausted)


def evaluate(run, progress):
    """Measure the losses, tell of them, and keep the weights that sample.py and eval.py are to use."""
    losses = run.losses()
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise diverged(run.iter_num, f'the evaluation gives {losses}')
    improved = losses['val'] < run.best_val_loss
    run.best_val_loss = min(run.best_val_loss, losses['val'])
    run.evaluations_since_best = 0 if improved else run.evaluations_since_best + 1
    run.evaluated = True
    if run.processes.first:
        run.monitor.log(run.iter_num, {f'{split}_loss': loss for split, loss in losses.items()})
        progress.write(f'iteration {run.iter_num}: {describe_losses(losses, run)}')
        for line in run.monitor.look(run.model, run.iter_num):
            progress.write(line)
        if run.iter_num > 0 and (improved or run.settings.always_save_checkpoint):
            run.save('ckpt.pt', merged_state_dict(run.model))
            run.monitor.draw()


def diverged(iter_num, what):
    """Return the error that ends a run whose numbers are no longer any."""
    return UserError(
        f'iteration {iter_num}: {what}, which is not finite; nothing of it is kept. A lower --learning_rate, a longer '
        'warm-up or --dtype=float32 may help'
    )


class Run:
    """A model in training: the weights, what optimises them, and how far it has come."""

    def __init__(self, settings):
        """Load data and model; what is wrong with either is told here."""
        self.settings, self.processes = settings, Processes(settings.device, settings.backend)
        if settings.gradient_accumulation_steps % self.processes.count:
            raise UserError(
                f'--gradient_accumulation_steps={settings.gradient_accumulation_steps} cannot be shared out among '
                f'{self.processes.count} processes; choose a multiple'
            )
        self.device = pick_device(self.processes.device)
        # A measurement is made in float32 unless it is asked for otherwise, training in what is fastest.
        if settings.eval_only:
            self.dtype = pick_dtype(settings.dtype)
        else:
            self.dtype = pick_training_dtype(self.device, settings.dtype)
        self.data = {split: open_tokens(settings.dataset, split) for split in ('train', 'val')}
        self.meta = read_meta(settings.dataset)
        torch.manual_seed(settings.seed)
        self.model, self.tokenizer, self.checkpoint = make_model(settings, self.device)
        check_tokens(self.data, self.model, settings)
        self.loss = self.network = LeanLoss(self.model)  # several processes put a wrapper around the network
        self.iter_num, self.best_val_loss, self.evaluations_since_best = 0, math.inf, 0
        # A folder's name says nothing to others. A run that is taken up again keeps what it was once begun from.
        self.begun_from = None if Path(settings.init_from).is_dir() else settings.init_from
        self.evaluated = self.saved = False  # at iter_num already; a ckpt.pt

    def begin(self):
        """Set up what only training needs, as a checkpoint left it if there is one."""
        settings, model = self.settings, self.model
        sequences = settings.gradient_accumulation_steps * settings.batch_size  # in a step
        self.max_iters = settings.max_iters
        if settings.epochs is not None:
            blocks = count_blocks(self.data['train'], model.config.block_size)
            self.max_iters = max(1, math.ceil(settings.epochs * blocks / sequences))
        freeze_layers(model, settings.freeze)
        if settings.lora_rank:
            add_lora(model, settings.lora_rank, settings.lora_alpha)
        model.gradient_checkpointing = settings.gradient_checkpointing
        betas = (settings.beta1, settings.beta2)
        self.optimizer = model.configure_optimizers(
            settings.weight_decay, settings.learning_rate, betas, self.device.type
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.data_sha256 = {split: tokens_sha256(tokens) for split, tokens in self.data.items()}
        resumed, wandb_id = self.checkpoint is not None, None
        if resumed:
            self._restore(self.checkpoint)
            wandb_id = self.checkpoint.get('wandb_id')
            self.checkpoint = None  # its memory is needed
        self.monitor = None
        if self.processes.first:
            self.monitor = TrainingLog(settings, self.tokenizer, resumed, self.iter_num, self.evaluated, wandb_id)
            remove_partial_files(settings.out_dir)
            if not resumed:
                remove_earlier_run(settings.out_dir)
        if settings.compile:
            self.network.compile()
        if self.processes.count > 1:
            device_ids = [self.device] if self.device.type == 'cuda' else None
            self.network = DistributedDataParallel(self.loss, device_ids=device_ids)
        print(
            f'{model.get_num_params(non_embedding=False) / 1e6:.2f}M parameters, '
            f'{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.2f}M of them trained, on '
            f'{self.device.type} in {self.precision}; {len(self.data["train"]):,} tokens, '
            f'{sequences * model.config.block_size:,} a step, {self.max_iters:,} steps'
        )

    def _restore(self, checkpoint):
        """Go on from a checkpoint: last.pt, or the ckpt.pt of a run of nanoGPT."""
        settings = self.settings
        if checkpoint.get('data_sha256', self.data_sha256) != self.data_sha256:
            raise UserError(
                f'data/{settings.dataset} is not what the run in {settings.out_dir} was begun with; '
                f'--init_from={settings.out_dir} --out_dir=ANOTHER starts a new run from its weights'
            )
        self.model.load_state_dict(checkpoint.get('lora', {}), strict=False)
        self.optimizer.load_state_dict(checkpoint['optimizer'])
        if self.scaler.is_enabled() and checkpoint.get('scaler'):
            self.scaler.load_state_dict(checkpoint['scaler'])
        self.iter_num, self.best_val_loss = checkpoint['iter_num'], float(checkpoint['best_val_loss'])
        self.begun_from = checkpoint.get('begun_from', (checkpoint.get('config') or {}).get('init_from'))
        self.evaluations_since_best = checkpoint.get('evaluations_since_best', 0)
        self.evaluated, self.saved = checkpoint.get('evaluated', False), checkpoint.get('saved', True)

    @property
    def precision(self):
        """The name of the dtype that is computed in."""
        return str(self.dtype).removeprefix('torch.')

    # Steps ----------------------------------------------------------------------------------------------------------

    def batch_numbers(self):
        """Yield the numbers of the batches that this process learns from: of each step's, its share."""
        accumulate = self.settings.gradient_accumulation_steps
        for iter_num in itertools.count(self.iter_num):
            for micro_step in range(self.processes.rank, accumulate, self.processes.count):
                yield iter_num * accumulate + micro_step

    def batch(self, number):
        """Return the number of a batch and its inputs and targets, (B, T) each."""
        settings, block_size = self.settings, self.model.config.block_size
        x, y = training_batch(self.data['train'], block_size, settings.batch_size, number, settings.seed)
        if self.device.type == 'cuda':
            x, y = x.pin_memory(), y.pin_memory()  # from which they are copied while the GPU computes
        return number, x, y

    def loss_of(self, network, x, y):
        """Return the mean loss of a batch in nats per token."""
        x, y = (part.to(self.device, non_blocking=True) for part in (x, y))
        with autocast(self.device, self.dtype):
            return network(x, y)

    def step(self, coming):
        """Learn from as many batches as make up a step; return their mean loss and the learning rate."""
        settings, accumulate = self.settings, self.settings.gradient_accumulation_steps
        learning_rate = learning_rate_at(self.iter_num, settings, self.max_iters)
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate
        total, micro_steps = 0.0, accumulate // self.processes.count
        for micro_step, (number, x, y) in enumerate(itertools.islice(coming, micro_steps), 1):
            # Dropout draws from a generator that starts anew for each batch, so that there is no state to keep.
            torch.manual_seed(int(np.random.SeedSequence((settings.seed, number)).generate_state(1, np.uint64)[0]))
            last = micro_step == micro_steps
            with contextlib.nullcontext() if last or self.network is self.loss else self.network.no_sync():
                loss = self.loss_of(self.network, x, y)
                # DistributedDataParallel takes the mean over processes, each of which has its share of the batches.
                self.scaler.scale(loss / micro_steps).backward()
            total += loss.detach()  # not .item(), which would wait for a GPU at every micro-step
        (loss,) = self.processes.sum(float(total) / accumulate)
        self.scaler.unscale_(self.optimizer)
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip or math.inf)
        # With float16 an infinite gradient means that the scaler skips the step and tries a smaller scale.
        may_overflow = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if not math.isfinite(loss) or not (norm.isfinite() or may_overflow):
            raise diverged(self.iter_num + 1, f'the loss is {loss} and the gradient {float(norm)} long')
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.iter_num += 1
        self.evaluated = False
        return loss, learning_rate

    # Evaluation -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def losses(self):
        """Return the mean loss in nats per token of each split, always over the same batches, shared out."""
        settings, processes = self.settings, self.processes
        self.model.eval()
        losses = {}
        for split, tokens in self.data.items():
            made = evaluation_batches(tokens, self.model.config.block_size, settings.batch_size, settings.eval_iters)
            ours = itertools.islice(made, processes.rank, None, processes.count) if len(tokens) else ()
            found = [(self.loss_of(self.loss, x, y).item(), len(x)) for x, y in ours]
            total, n = processes.sum(sum(loss * n for loss, n in found), sum(n for _, n in found))
            if n:
                losses[split] = total / n
        self.model.train()
        return losses

    def save(self, file, state, **rest):
        """Write a checkpoint into out_dir, whole or not at all; the first process does."""
        if not self.processes.first:
            return
        if not all(tensor.isfinite().all() for tensor in [*state.values(), *rest.get('lora', {}).values()]):
            raise diverged(self.iter_num, 'some weight has become inf or nan')
        if file == 'last.pt' or not self.settings.lora_rank:  # merged weights are not what the optimizer optimises
            rest['optimizer'] = self.optimizer.state_dict()
        self.saved = self.saved or file == 'ckpt.pt'
        checkpoints.save_checkpoint(
            Path(self.settings.out_dir) / file,
            self.model,
            self.tokenizer,
            state,
            scaler=self.scaler.state_dict(),
            iter_num=self.iter_num,
            best_val_loss=self.best_val_loss,
            evaluations_since_best=self.evaluations_since_best,
            evaluated=self.evaluated,
            saved=self.saved,
            config=dataclasses.asdict(self.settings),
            begun_from=self.begun_from,
            data_sha256=self.data_sha256,
            wandb_id=self.monitor.wandb_id,
            versions={'python': platform.python_version(), 'torch': str(torch.__version__)},
            **rest,
        )


def learning_rate_at(iter_num, settings, max_iters):
    """Return the learning rate of a step: a straight way up, then half a cosine down (Loshchilov & Hutter 2017)."""
    if not settings.decay_lr:
        return settings.learning_rate
    if iter_num < settings.warmup_iters:
        return settings.learning_rate * (iter_num + 1) / (settings.warmup_iters + 1)
    lr_decay_iters = max_iters if settings.lr_decay_iters is None else settings.lr_decay_iters
    if iter_num >= lr_decay_iters:
        return settings.min_lr
    share = (iter_num - settings.warmup_iters) / (lr_decay_iters - settings.warmup_iters)
    return settings.min_lr + (settings.learning_rate - settings.min_lr) * (1 + math.cos(math.pi * share)) / 2


if __name__ == '__main__':
    configurator.run(main, Settings)
