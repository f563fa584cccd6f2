"""Train a GPT, or fine-tune any causal language model, on the token files written by prepare_bin.py.

    python train.py config/finetune_stories.py                          fine-tune GPT-2 on children's stories
    python train.py config/finetune_stories.py --init_from=resume       resume a run that was interrupted
    torchrun --nproc_per_node=2 train.py config/finetune_stories.py     train on two GPUs, or in two CPU processes

It has all settings of nanoGPT and more, and nanoGPT's config files work. If neither a config file nor a dataset is
named and there is no data/openwebtext, config/finetune_stories.py is used. The settings and the number of an iteration
determine its batches and what dropout drops, so a run can be resumed exactly without saving the state of a generator.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import contextlib
import itertools
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import configurator
from common.errors import UserError, is_out_of_memory
from common.processes import Processes, StopSignals
from lm.hardware import (
    autocast,
    check_compiler,
    explain_compile_errors,
    pick_device,
    pick_dtype,
)
from texts.token_files import open_mask, open_tokens, read_meta, tokens_sha256
from training.batches import evaluation_batches, make_blocks, prefetch, training_batch
from training.lean_loss import LeanLoss
from training.log import SpeedClock, TrainingLog, describe_losses, describe_tokens, divergence_error, print_ending
from training.lora import add_lora, merged_state_dict, split_state_dict
from training.muon import make_muon
from training.pair_windows import share_of_targets
from training.precision import choose_training_dtype, name_dtype
from training.resume import restore_run, save_run
from training.setup import (
    check_tokens,
    check_training_settings,
    choose_configs,
    claim_out_dir,
    expand_paths,
    freeze_layers,
    note_learning_rate,
    prepare_model,
    remove_earlier_run,
)


@dataclass
class Settings:
    """Train a GPT, or fine-tune any causal language model."""

    # input and output
    out_dir: str = 'out'  # where to write ckpt.pt, last.pt, metrics.jsonl and loss.png
    init_from: str = 'scratch'  # scratch, resume, gpt2 (any size), tiny, a model folder or a name on the hub
    overwrite: bool = False  # start a new run in an out_dir that holds an earlier one, which is deleted
    eval_interval: int = 2000  # iterations between evaluations
    log_interval: int = 1  # iterations between log entries
    eval_iters: int = 200  # batches of each split to evaluate on, at most; always the same ones
    eval_only: bool = False  # evaluate once and stop
    always_save_checkpoint: bool = True  # write ckpt.pt after every evaluation; False only after a new best
    save_interval: int | None = None  # iterations between saves of last.pt, for resuming; None: at each evaluation
    save_minutes: float = 10.0  # save last.pt at least this often, in minutes
    wandb_log: bool = False  # also log to Weights & Biases (pip install wandb)
    wandb_project: str = 'owt'  # Weights & Biases project
    wandb_run_name: str = 'gpt2'  # name of the run in Weights & Biases
    sample_prompt: str | None = None  # at each evaluation, print how the model continues this prompt
    eval_file: str | None = None  # at each evaluation, score the pairs in this file (like --eval_data of eval.py)
    # data
    dataset: str = 'openwebtext'  # data/<dataset>/train.bin and val.bin, made by prepare_bin.py
    gradient_accumulation_steps: int = 5 * 8  # batches that make up one step, shared among the processes
    batch_size: int = 12  # sequences in a batch
    block_size: int = 1024  # tokens in a sequence
    # model, if trained from scratch
    n_layer: int = 12  # number of layers
    n_head: int = 12  # attention heads in a layer
    n_embd: int = 768  # embedding width
    dropout: float = 0.0  # 0 for pretraining, 0.1 or more for fine-tuning on little text
    bias: bool = False  # biases in Linear and LayerNorm, as in GPT-2; False is slightly better and faster
    # fine-tuning
    freeze: int | None = None  # do not train the embeddings and this many of the lowest blocks; None trains all
    lora_rank: int = 0  # train low-rank additions (LoRA) of this rank instead of the weights; 0 trains the weights
    lora_alpha: float = 16.0  # the LoRA additions are multiplied by lora_alpha / lora_rank
    # optimizer
    optimizer: str = 'adamw'  # adamw; muon: Muon for the matrices in the layers, which needs fewer tokens, else AdamW
    learning_rate: float = 6e-4  # the highest learning rate
    max_iters: int = 600000  # iterations to train
    epochs: float | None = None  # passes over the training data, instead of max_iters
    patience: int | None = None  # stop after this many evaluations in a row without a new best
    weight_decay: float = 1e-1  # weight decay of matrices and embeddings; biases and LayerNorm have none
    beta1: float = 0.9  # decay rate of the gradient's running mean
    beta2: float = 0.95  # decay rate of the squared gradient's running mean
    grad_clip: float = 1.0  # largest gradient norm; 0 for no limit
    # learning rate
    decay_lr: bool = True  # warm up, then lower the learning rate along a cosine; False keeps it constant
    warmup_iters: int = 2000  # iterations over which the learning rate rises from 0
    lr_decay_iters: int | None = None  # iteration at which the learning rate reaches min_lr; None for max_iters
    min_lr: float = 6e-5  # the lowest learning rate; usually a tenth of learning_rate
    # machine
    seed: int = 1337  # determines the initial weights, the order of the data and dropout
    device: str | None = None  # cpu, gpu, cuda, cuda:1, mps; None for the best available
    dtype: str | None = None  # float32, bfloat16, float16; None for the fastest here, measured when a run begins
    compile: bool = False  # torch.compile the model: a slower start, then faster
    gradient_checkpointing: bool = False  # recompute each layer in the backward pass: less memory, a third more time
    backend: str | None = None  # how torchrun's processes exchange GPU data: nccl (None) or gloo; CPUs always use gloo


def main(settings):
    """Make or load a model, then train it until max_iters, patience or a signal ends the run; or only evaluate it."""
    settings = expand_paths(settings)
    check_training_settings(settings)
    try:
        with explain_compile_errors():
            train_or_evaluate(settings)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            'out of memory: lower --batch_size and raise --gradient_accumulation_steps by the same factor, lower '
            '--block_size, or set --gradient_checkpointing=True or --lora_rank=8'
        ) from error


def train_or_evaluate(settings):
    """Prepare the run, then train it or, with eval_only, evaluate it once."""
    processes = Processes(settings.device, settings.backend)
    if settings.gradient_accumulation_steps % processes.count:
        raise UserError(
            f'--gradient_accumulation_steps={settings.gradient_accumulation_steps} cannot be shared equally among '
            f'{processes.count} processes; choose a multiple of {processes.count}'
        )
    with claim_out_dir(settings, processes):
        run = Run(settings, processes)
        if settings.eval_only:
            print(describe_losses(run.estimate_loss(), run))
        else:
            run.prepare()
            train(run)


def train(run):
    """Train from run.iter_num on; evaluate and save at the intervals that the settings give."""
    settings, processes, first = run.settings, run.processes, run.processes.first
    batches = prefetch(run.load_batch, run.batch_numbers())
    clock, saved_at = SpeedClock(run), time.perf_counter()
    bar = {'total': run.max_iters, 'initial': run.iter_num, 'unit': 'it', 'dynamic_ncols': True, 'disable': not first}
    with StopSignals() as signals, contextlib.closing(batches), tqdm(**bar) as progress:
        while True:
            save_due = settings.save_interval is not None and run.iter_num % settings.save_interval == 0
            if not run.evaluated and (run.iter_num % settings.eval_interval == 0 or run.iter_num >= run.max_iters):
                evaluate(run, progress)
                save_due = save_due or settings.save_interval is None
                clock.restart(run.iter_num)  # time spent on evaluation does not count
            out_of_patience = settings.patience is not None and run.evaluations_since_best >= settings.patience
            # If one process receives a signal or runs out of time, all must act on it at the same iteration.
            stop_signal, minutes = processes.max(signals.received, (time.perf_counter() - saved_at) / 60)
            done = run.iter_num >= run.max_iters or out_of_patience or stop_signal
            if save_due or done or minutes >= settings.save_minutes:
                weights, lora = split_state_dict(run.model)
                save_run(run, 'last.pt', weights, lora=lora)
                saved_at = time.perf_counter()
                clock.restart(run.iter_num)
            if done:
                break

            loss, learning_rate = run.step(batches)
            progress.update()
            if run.iter_num % settings.log_interval == 0 and first:
                speed, mfu = clock.read(run.iter_num)
                name = 'loss' if run.masks['train'] is None else 'loss of responses'
                progress.set_postfix_str(
                    f'{name} {loss:.3f}, lr {learning_rate:.1e}, {speed:,.0f} tokens/s, mfu {mfu:.0%}'
                )
                values = {'loss': loss, 'lr': learning_rate, 'tokens_per_second': speed, 'mfu': mfu}
                run.log.write(run.iter_num, values)
    if first:
        run.log.draw()
    print_ending(run, int(stop_signal), out_of_patience)


def evaluate(run, progress):
    """Measure and report the losses; save the weights that sample.py and eval.py will use."""
    losses = run.estimate_loss()
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise divergence_error(run.iter_num, f'losses {losses}')
    improved = losses['val'] < run.best_val_loss
    run.best_val_loss = min(run.best_val_loss, losses['val'])
    run.evaluations_since_best = 0 if improved else run.evaluations_since_best + 1
    run.evaluated = True
    if run.processes.first:
        run.log.write(run.iter_num, {f'{split}_loss': loss for split, loss in losses.items()})
        progress.write(f'iteration {run.iter_num}: {describe_losses(losses, run)}')
        for line in run.log.sample_and_score(run.model, run.iter_num):
            progress.write(line)
        if run.iter_num > 0 and (improved or run.settings.always_save_checkpoint):
            save_run(run, 'ckpt.pt', merged_state_dict(run.model))
            run.log.draw()


class Run:
    """A model in training: its data, its weights, its optimizer, and how far it has got."""

    def __init__(self, settings, processes):
        """Load the data and the model, and check that they fit together."""
        self.settings, self.processes = settings, processes
        self.device = pick_device(self.processes.device)
        if settings.compile:
            check_compiler(self.device)
        self.dtype = pick_dtype(settings.dtype)  # until `prepare` chooses: with eval_only it is float32 by default
        self.data = {split: open_tokens(settings.dataset, split) for split in ('train', 'val')}
        self.masks = {split: open_mask(settings.dataset, split, tokens) for split, tokens in self.data.items()}
        self.meta = read_meta(settings.dataset)
        torch.manual_seed(settings.seed)
        self.model, self.tokenizer, self.checkpoint = prepare_model(settings, self.device)
        self.blocks = {
            split: make_blocks(tokens, self.masks[split], self.model.block_size) for split, tokens in self.data.items()
        }
        check_tokens(self.data, self.blocks, self.model, settings)
        # As in nanoGPT, raw_ is what DistributedDataParallel wraps, if there are several processes.
        self.loss_fn = self.raw_loss_fn = LeanLoss(self.model)
        self.iter_num, self.best_val_loss, self.evaluations_since_best = 0, math.inf, 0
        self.evaluated = False  # whether iteration iter_num has been evaluated already
        self.saved = False  # whether this run has written a ckpt.pt
        # What the run started from; a local path means nothing on another machine.
        self.begun_from = None if Path(settings.init_from).is_dir() else settings.init_from

    def prepare(self):
        """Set up what only training needs; restore the state of a run that is resumed."""
        settings, model = self.settings, self.model
        sequences = settings.gradient_accumulation_steps * settings.batch_size  # in a step
        self.max_iters = settings.max_iters
        if settings.epochs is not None:
            self.max_iters = max(1, math.ceil(settings.epochs * len(self.blocks['train']) / sequences))
        freeze_layers(model, settings.freeze)
        if settings.lora_rank:
            add_lora(model, settings.lora_rank, settings.lora_alpha)
        model.gradient_checkpointing = settings.gradient_checkpointing
        self.dtype, reason = choose_training_dtype(self)  # for evaluations during training, too
        betas = (settings.beta1, settings.beta2)
        make_optimizer = partial(make_muon, model) if settings.optimizer == 'muon' else model.configure_optimizers
        self.optimizer = make_optimizer(settings.weight_decay, settings.learning_rate, betas, self.device.type)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        files = self.data | {f'{split}.mask': mask for split, mask in self.masks.items() if mask is not None}
        self.data_sha256 = {name: tokens_sha256(file) for name, file in files.items()}
        resumed, wandb_id = self.checkpoint is not None, None
        if resumed:
            restore_run(self, self.checkpoint)
            wandb_id = self.checkpoint.get('wandb_id')
            self.checkpoint = None  # free its memory
        if self.processes.first:
            self.log = TrainingLog(settings, self.tokenizer, wandb_id)
            if not resumed:
                remove_earlier_run(settings.out_dir)
            self.log.start(resumed, self.iter_num, self.evaluated)
        if settings.compile:
            self.raw_loss_fn.compile()
        if self.processes.count > 1:
            device_ids = [self.device] if self.device.type == 'cuda' else None
            self.loss_fn = DistributedDataParallel(self.raw_loss_fn, device_ids=device_ids)
        note_learning_rate(settings, self.max_iters)
        print(
            f'{model.get_num_params(non_embedding=False) / 1e6:.2f}M parameters, '
            f'{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.2f}M of them trainable, on '
            f'{self.device.type} in {self.dtype_name}{reason}; {describe_tokens(self)}, '
            f'{sequences * model.block_size:,} per step, {self.max_iters:,} steps'
        )

    @property
    def dtype_name(self):
        """The name of the dtype used for computing, such as 'bfloat16'."""
        return name_dtype(self.dtype)

    def batch_numbers(self):
        """Yield the numbers of the batches that this process trains on: its share of each step's batches."""
        accumulate = self.settings.gradient_accumulation_steps
        for iter_num in itertools.count(self.iter_num):
            for micro_step in range(self.processes.rank, accumulate, self.processes.count):
                yield iter_num * accumulate + micro_step

    def load_batch(self, number):
        """Return a batch on the CPU: its number, its inputs and its targets, (B, T) each."""
        x, y = training_batch(self.blocks['train'], self.settings.batch_size, number, self.settings.seed)
        if self.device.type == 'cuda':
            x, y = x.pin_memory(), y.pin_memory()  # so that copying them to the GPU overlaps with its work
        return number, x, y

    def compute_loss(self, loss_fn, x, y):
        """Return the mean loss of a batch in nats per token. x, y: inputs and targets, (B, T) each.

        loss_fn: self.loss_fn to train, self.raw_loss_fn to evaluate.
        """
        x, y = (ids.to(self.device, non_blocking=True) for ids in (x, y))
        with autocast(self.device, self.dtype):
            return loss_fn(x, y)

    def step(self, batches):
        """Update the weights once, from the next batches; return their mean loss and the learning rate."""
        settings, accumulate = self.settings, self.settings.gradient_accumulation_steps
        learning_rate = learning_rate_at(self.iter_num, settings, self.max_iters)
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate
        total, counted, micro_steps = 0.0, 0.0, accumulate // self.processes.count
        for micro_step, (number, x, y) in enumerate(itertools.islice(batches, micro_steps), 1):
            # Seed dropout anew for each batch, so that a checkpoint need not store the state of a generator.
            seeds = np.random.SeedSequence((settings.seed, number))  # hashes the two numbers
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
            exchange = micro_step == micro_steps or self.loss_fn is self.raw_loss_fn  # gradients, once per step
            with contextlib.nullcontext() if exchange else self.loss_fn.no_sync():
                weight = share_of_targets(y)  # 1, unless only responses count
                loss = self.compute_loss(self.loss_fn, x, y) * weight
                # This process's mean: DistributedDataParallel then averages the gradients over the processes.
                self.scaler.scale(loss / micro_steps).backward()
            total += loss.detach()  # .item() would wait for the GPU at every micro-step
            counted += weight
        loss, counted = self.processes.sum(float(total) / accumulate, counted)
        self.scaler.unscale_(self.optimizer)
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if counted != accumulate:  # all tokens of the step that count get the same weight, in whichever batch they are
            loss *= accumulate / counted
            for parameter in trained:
                parameter.grad.mul_(accumulate / counted)
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip or math.inf)
        # In float16 an infinite gradient is not an error until the scale is below 1: the scaler skips the step and
        # lowers the scale.
        may_overflow = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        if not math.isfinite(loss) or not (norm.isfinite() or may_overflow):
            raise divergence_error(self.iter_num + 1, f'loss {loss}, gradient norm {float(norm)}')
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.iter_num += 1
        self.evaluated = False
        return loss, learning_rate

    @torch.no_grad()
    def estimate_loss(self):
        """Return the mean loss of each split in nats per token, always over the same batches."""
        settings, processes = self.settings, self.processes
        self.model.eval()
        losses = {}
        for split, blocks in self.blocks.items():
            batches = evaluation_batches(blocks, settings.batch_size, settings.eval_iters)
            total, counted = 0.0, 0.0
            for x, y in itertools.islice(batches, processes.rank, None, processes.count):
                weight = len(x) * share_of_targets(y)  # in sequences; the last batch may have fewer
                total += self.compute_loss(self.raw_loss_fn, x, y).item() * weight
                counted += weight
            total, counted = processes.sum(total, counted)
            if counted:
                losses[split] = total / counted
        self.model.train()
        return losses


def learning_rate_at(iter_num, settings, max_iters):
    """Return a step's learning rate: linear warm-up, then cosine decay to min_lr (Loshchilov & Hutter 2017)."""
    if not settings.decay_lr:
        return settings.learning_rate
    if iter_num < settings.warmup_iters:
        return settings.learning_rate * (iter_num + 1) / (settings.warmup_iters + 1)
    lr_decay_iters = max_iters if settings.lr_decay_iters is None else settings.lr_decay_iters
    if iter_num >= lr_decay_iters:
        return settings.min_lr
    progress = (iter_num - settings.warmup_iters) / (lr_decay_iters - settings.warmup_iters)  # 0 to 1
    return settings.min_lr + (settings.learning_rate - settings.min_lr) * (1 + math.cos(math.pi * progress)) / 2


if __name__ == '__main__':
    configurator.run(main, Settings, choose_configs)
