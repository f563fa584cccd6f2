"""Train or fine-tune a GPT on the token files that prepare_bin.py writes.

    python train.py config/finetune_stories.py                          GPT-2 on the children's stories
    python train.py config/finetune_stories.py --init_from=distilgpt2   the same with a model of half the size
    python train.py config/finetune_stories.py --init_from=resume       go on where it was stopped

The settings are nanoGPT's, and nanoGPT's config files work.
"""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint as checkpoints
import configurator
from batches import data_folder, evaluation_batches, open_tokens, read_meta, training_batch
from common import UserError, written_whole
from hardware import autocast, peak_flops, pick_device, pick_dtype, pick_training_dtype
from model import GPT, GPTConfig
from tokenizer import GPT2Tokenizer, from_folder


@dataclass
class Settings:
    """Train or fine-tune a GPT."""

    # in and out
    out_dir: str = 'out'  # where ckpt.pt and metrics.jsonl go
    init_from: str = 'scratch'  # scratch, resume, gpt2 (any size), tiny, a model folder or a name on the hub
    eval_interval: int = 2000  # iterations between evaluations (and checkpoints)
    log_interval: int = 1  # iterations between lines of the log
    eval_iters: int = 200  # batches of each split that an evaluation looks at, at the most
    eval_only: bool = False  # evaluate once and stop
    always_save_checkpoint: bool = True  # False: only after an evaluation better than all before it
    wandb_log: bool = False  # log to Weights & Biases too (pip install wandb)
    wandb_project: str = 'owt'  # project there
    wandb_run_name: str = 'gpt2'  # name of the run there
    # data
    dataset: str = 'openwebtext'  # data/<dataset>/train.bin and val.bin, made by prepare_bin.py
    gradient_accumulation_steps: int = 5 * 8  # batches that make up one step
    batch_size: int = 12  # sequences in a batch
    block_size: int = 1024  # tokens in a sequence
    # model, for scratch
    n_layer: int = 12  # layers
    n_head: int = 12  # attention heads of a layer
    n_embd: int = 768  # width
    dropout: float = 0.0  # 0 is good for pretraining, 0.1 or more for fine-tuning on little text
    bias: bool = False  # biases in Linear and LayerNorm; GPT-2 has them, without is a little better and faster
    # AdamW
    learning_rate: float = 6e-4  # the highest it gets
    max_iters: int = 600000  # steps to train
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
    dtype: str | None = None  # float32, bfloat16, float16; None for bfloat16 where the hardware has it
    compile: bool = False  # torch.compile the model: slower to start, then faster


def main(settings):
    """Make or load a model, then train, evaluate and save it until max_iters."""
    check(settings)
    device = pick_device(settings.device)
    # A measurement is made in float32 unless it is asked for otherwise, training in what is fastest.
    dtype = pick_dtype(settings.dtype) if settings.eval_only else pick_training_dtype(device, settings.dtype)
    torch.manual_seed(settings.seed)
    data = {split: open_tokens(settings.dataset, split) for split in ('train', 'val')}
    meta = read_meta(settings.dataset)
    model, tokenizer, checkpoint = make_model(settings, meta, device)
    for split, tokens in data.items():
        if not meta and len(tokens) and tokens.max() >= model.n_ids:  # nobody vouches for them
            raise UserError(
                f'data/{settings.dataset}/{split}.bin has token {tokens.max()}, and the model knows only {model.n_ids}'
            )
    optimizer = model.configure_optimizers(
        settings.weight_decay, settings.learning_rate, (settings.beta1, settings.beta2), device.type
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    iter_num, best_val_loss = 0, math.inf
    if checkpoint is not None:
        iter_num, best_val_loss = checkpoint['iter_num'], float(checkpoint['best_val_loss'])
        optimizer.load_state_dict(checkpoint.pop('optimizer'))
        restore_random_state(checkpoint.get('random_state'))
    if settings.compile:
        model.compile()

    precision = str(dtype).removeprefix('torch.')
    block_size = model.config.block_size
    for split, tokens in data.items():
        if len(tokens) <= block_size and not (settings.eval_only and len(tokens) == 0):
            raise UserError(
                f'data/{settings.dataset}/{split}.bin has {len(tokens)} tokens, too few for block_size={block_size}; '
                'a smaller --block_size helps, or a larger --val_fraction in prepare_bin.py'
            )

    def loss_of(x, y):
        """Return the mean loss of a batch in nats per token."""
        with autocast(device, dtype):
            return model(x.to(device), y.to(device), want_logits=False)[1]

    @torch.no_grad()
    def evaluate():
        """Return the mean loss in nats per token of each split, always over the same batches."""
        model.eval()
        losses = {}
        for split, tokens in data.items():
            if len(tokens) == 0:
                continue
            batches = evaluation_batches(tokens, block_size, settings.batch_size, settings.eval_iters)
            total = [(loss_of(x, y).item(), len(x)) for x, y in batches]
            losses[split] = sum(loss * n for loss, n in total) / sum(n for _, n in total)
        model.train()
        return losses

    if settings.eval_only:
        for split, loss in evaluate().items():
            print(f'{split}: {describe_loss(loss, meta, split)}, computed in {precision}')
        return

    log = open_log(settings, iter_num)
    tokens_per_iter = settings.gradient_accumulation_steps * settings.batch_size * block_size
    print(
        f'{model.get_num_params(non_embedding=False) / 1e6:.2f}M parameters on {device.type} in {precision}, '
        f'{len(data["train"]):,} tokens, {tokens_per_iter:,} a step'
    )
    peak = peak_flops(device, dtype)
    progress = tqdm(total=settings.max_iters, initial=iter_num, unit='it', dynamic_ncols=True)
    started, logged = time.perf_counter(), iter_num
    saved = False
    while True:
        learning_rate = learning_rate_at(iter_num, settings)
        for group in optimizer.param_groups:
            group['lr'] = learning_rate

        if iter_num % settings.eval_interval == 0 or iter_num >= settings.max_iters:
            losses = evaluate()
            described = [f'{split} {describe_loss(loss, meta, split)}' for split, loss in losses.items()]
            progress.write(f'iteration {iter_num}: {", ".join(described)}, computed in {precision}')
            log(iter_num, {f'{split}_loss': loss for split, loss in losses.items()})
            improved = losses['val'] < best_val_loss
            best_val_loss = min(best_val_loss, losses['val'])
            if iter_num > 0 and (improved or settings.always_save_checkpoint):
                checkpoints.save_checkpoint(
                    Path(settings.out_dir) / 'ckpt.pt',
                    model,
                    tokenizer,
                    optimizer=optimizer.state_dict(),
                    iter_num=iter_num,
                    best_val_loss=best_val_loss,
                    config=dataclasses.asdict(settings),
                    random_state=random_state(),
                )
                saved = True
            started, logged = time.perf_counter(), iter_num  # what an evaluation takes is not the training's
        if iter_num >= settings.max_iters:
            break

        mean_loss = 0.0
        for micro_step in range(settings.gradient_accumulation_steps):
            batch_number = iter_num * settings.gradient_accumulation_steps + micro_step
            x, y = training_batch(data['train'], block_size, settings.batch_size, batch_number, settings.seed)
            loss = loss_of(x, y) / settings.gradient_accumulation_steps
            scaler.scale(loss).backward()
            mean_loss += loss.detach()  # not .item(), which would wait for a GPU at every micro-step
        if settings.grad_clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        iter_num += 1
        progress.update()

        if iter_num % settings.log_interval == 0:
            seconds = (time.perf_counter() - started) / (iter_num - logged)
            started, logged = time.perf_counter(), iter_num
            sequences = settings.gradient_accumulation_steps * settings.batch_size
            mfu = model.estimate_mfu(sequences, seconds, peak)
            speed = tokens_per_iter / seconds
            mean_loss = mean_loss.item()
            progress.set_postfix_str(
                f'loss {mean_loss:.3f}, lr {learning_rate:.1e}, {speed:,.0f} tokens/s, mfu {mfu:.0%}'
            )
            log(iter_num, {'loss': mean_loss, 'lr': learning_rate, 'tokens_per_second': speed, 'mfu': mfu})
    progress.close()
    if saved:
        print(f'sample from it with: python sample.py --out_dir={settings.out_dir}')
    else:
        print('nothing was saved: no evaluation was better than the one before training')


def check(settings):
    """Raise UserError for values that cannot be meant, before anything is read or written."""
    counts = 'gradient_accumulation_steps batch_size block_size n_head n_embd eval_interval eval_iters log_interval'
    least = dict.fromkeys(counts.split(), 1) | dict.fromkeys(
        ['n_layer', 'learning_rate', 'min_lr', 'weight_decay', 'grad_clip', 'dropout', 'beta1', 'beta2', 'seed'], 0
    )
    for name, at_least in least.items():
        value = getattr(settings, name)
        if not at_least <= value < math.inf:
            raise UserError(f'--{name}={value}: it is at least {at_least}')
    for name, below in {'dropout': 1, 'beta1': 1, 'beta2': 1, 'seed': 2**63}.items():
        if getattr(settings, name) >= below:
            raise UserError(f'--{name}={getattr(settings, name)}: it is below {below}')


# Model --------------------------------------------------------------------------------------------------------------


def make_model(settings, meta, device):
    """Return (model, tokenizer, checkpoint) for the settings; the checkpoint is None unless a run is resumed."""
    if settings.init_from == 'scratch':
        folder = data_folder(settings.dataset)
        tokenizer = from_folder(folder)
        # Without a word about it, tokens are GPT-2's, as in nanoGPT, which pads their number for speed.
        vocab_size = 50304 if tokenizer is None else tokenizer.vocab_size
        tokenizer = tokenizer or GPT2Tokenizer()
        shape = {
            name: getattr(settings, name) for name in ('n_layer', 'n_head', 'n_embd', 'block_size', 'dropout', 'bias')
        }
        try:
            model = GPT(GPTConfig(vocab_size=vocab_size, **shape), n_ids=tokenizer.vocab_size)
        except ValueError as error:
            raise UserError(str(error)) from error
        return model.to(device).train(), tokenizer, None
    model, tokenizer, checkpoint = checkpoints.load(settings.init_from, settings.out_dir, str(device))
    of_data = from_folder(data_folder(settings.dataset))
    if of_data is not None and tokenizer is not None and of_data.fingerprint != tokenizer.fingerprint:
        name = 'gpt2' if tokenizer.fingerprint == GPT2Tokenizer.fingerprint else settings.init_from
        raise UserError(
            f'the tokens of data/{settings.dataset} were made with another tokenizer than {settings.init_from} has; '
            f'make new ones: python prepare_bin.py --input=... --dataset=ANOTHER_NAME --tokenizer={name}'
        )
    if settings.block_size < model.config.block_size:
        model.crop_block_size(settings.block_size)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = settings.dropout
    model.config.dropout = settings.dropout
    if settings.init_from != 'resume':
        checkpoint = None
    elif missing := {'optimizer', 'iter_num', 'best_val_loss'} - checkpoint.keys():
        raise UserError(
            f'{settings.out_dir}/ckpt.pt has no {", ".join(sorted(missing))} to resume with; '
            f'--init_from={settings.out_dir} starts a new run from its weights'
        )
    return model.train(), tokenizer, checkpoint


def learning_rate_at(iter_num, settings):
    """Return the learning rate of a step: a straight way up, then half a cosine down (Loshchilov & Hutter 2017)."""
    if not settings.decay_lr:
        return settings.learning_rate
    if iter_num < settings.warmup_iters:
        return settings.learning_rate * (iter_num + 1) / (settings.warmup_iters + 1)
    lr_decay_iters = settings.max_iters if settings.lr_decay_iters is None else settings.lr_decay_iters
    if iter_num >= lr_decay_iters:
        return settings.min_lr
    share = (iter_num - settings.warmup_iters) / (lr_decay_iters - settings.warmup_iters)
    return settings.min_lr + (settings.learning_rate - settings.min_lr) * (1 + math.cos(math.pi * share)) / 2


def random_state():
    """Return the state of torch's random generators, which dropout draws from."""
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    return {'cpu': torch.get_rng_state(), 'cuda': torch.cuda.get_rng_state_all(), 'mps': mps}


def restore_random_state(state):
    """Set the random generators back; nanoGPT's checkpoints have no state, and then they stay as they are."""
    if state is not None:
        torch.set_rng_state(state['cpu'])
        if len(state['cuda']) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state['cuda'])
        if state.get('mps') is not None and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state['mps'])


# Log ----------------------------------------------------------------------------------------------------------------


def describe_loss(loss, meta, split):
    """Return a loss as text, in bits per byte too where the dataset's bytes are known."""
    text = f'{loss:.4f} nats per token'
    counts = meta.get(split)
    if counts and counts['bytes']:
        text += f' ({loss / math.log(2) * counts["tokens"] / counts["bytes"]:.4f} bits per byte)'
    return text


def open_log(settings, iter_num):
    """Return a function log(iter_num, values) that writes to metrics.jsonl and, if asked, to Weights & Biases.

    A resumed run keeps the lines up to the iteration that it resumes from.
    """
    wandb = None
    if settings.wandb_log:
        try:
            import wandb
        except ImportError as error:
            raise UserError('--wandb_log needs Weights & Biases: pip install wandb') from error
        wandb.init(project=settings.wandb_project, name=settings.wandb_run_name, config=dataclasses.asdict(settings))
    path = Path(settings.out_dir) / 'metrics.jsonl'
    kept = kept_lines(path, iter_num) if iter_num > 0 and path.exists() else []
    with written_whole(path) as temporary:
        temporary.write_text(''.join(f'{line}\n' for line in kept))

    def log(iter_num, values):
        with open(path, 'a', encoding='utf-8') as file:
            file.write(json.dumps({'iter': iter_num, **values}) + '\n')
        if wandb is not None:
            wandb.log(values, step=iter_num)

    return log


def kept_lines(path, iter_num):
    """Return the lines up to an iteration, without its evaluation, which a resumed run makes again."""
    kept = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut short when the machine stopped
            continue
        if entry['iter'] < iter_num or (entry['iter'] == iter_num and 'loss' in entry):
            kept.append(line)
    return kept


if __name__ == '__main__':
    configurator.run(main, Settings)
