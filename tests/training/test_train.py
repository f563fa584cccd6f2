"""Training: order of the data, schedule, resuming exactly, several processes, fine-tuning, and that it learns."""

import contextlib
import itertools
import json
import math
import multiprocessing.forkserver
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from helpers.models import needs_gpt2_vocabulary, random_gpt
from helpers.scripts import PROJECT, assert_friendly_error, run_script
from matplotlib.image import imread
from test_configurator import CHARACTERS, FINE_TUNING

import configurator
import prepare_bin
import train
from common.errors import UserError
from lm.checkpoint import load_model, save_pretrained
from lm.scoring import score
from lm.tokenizer import GPT2_FINGERPRINT, BPETokenizer, GPT2Tokenizer
from model import GPT
from texts.token_files import largest_token, read_meta, tokens_sha256
from train import Settings, learning_rate_at
from training import log, setup
from training.batches import evaluation_batches, prefetch, shuffled_blocks, training_batch
from training.lora import add_lora, merged_state_dict, split_state_dict

SMALL = {
    'dataset': 'rhymes',
    'n_layer': 2,
    'n_head': 2,
    'n_embd': 32,
    'block_size': 16,
    'batch_size': 8,
    'gradient_accumulation_steps': 2,
    'max_iters': 8,
    'lr_decay_iters': 8,
    'warmup_iters': 2,
    'learning_rate': 3e-3,
    'eval_interval': 4,
    'eval_iters': 3,
    'device': 'cpu',
    'dtype': 'float32',
}
TEXT = '\n\n\n'.join(
    f'The {animal} went {way} the hill, and the {animal} is walking still.'
    for animal in ('cat', 'dog', 'cow', 'hen', 'fox', 'owl', 'pig', 'ant', 'bee', 'elk')
    for way in ('up', 'down', 'over', 'round', 'under')
)


@pytest.fixture(autouse=True)
def dataset(tmp_path, monkeypatch):
    """A folder with a small prepared dataset, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'rhymes.txt').write_text(TEXT)
    prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='rhymes', train_bpe=290))


def run(**settings):
    train.main(Settings(**SMALL | {'overwrite': settings.get('init_from') != 'resume'} | settings))


def losses(out_dir):
    with open(f'{out_dir}/metrics.jsonl') as file:
        rows = [json.loads(line) for line in file]
    return {row['iter']: row['loss'] for row in rows if 'loss' in row}


def weights(out_dir, file='ckpt.pt'):
    return torch.load(f'{out_dir}/{file}', weights_only=True)['model']


def assert_same_run(one, other):
    """Every loss that was logged, every evaluation and every weight is the same to the last bit."""
    assert losses(one) == losses(other)
    assert evaluations(one) == evaluations(other)
    for file in ('ckpt.pt', 'last.pt'):
        a, b = (torch.load(f'{out_dir}/{file}', weights_only=True) for out_dir in (one, other))
        assert a['iter_num'] == b['iter_num']
        for part in ('model', 'lora'):
            assert a.get(part, {}).keys() == b.get(part, {}).keys()
            for name, tensor in a.get(part, {}).items():
                assert torch.equal(tensor, b[part][name]), name


def evaluations(out_dir):
    with open(f'{out_dir}/metrics.jsonl') as file:
        rows = [json.loads(line) for line in file]
    return {row['iter']: (row['train_loss'], row['val_loss']) for row in rows if 'val_loss' in row}


def test_every_block_is_visited_once_an_epoch_in_a_new_order_from_a_new_offset():
    tokens = np.arange(1000)
    block_size, batch_size = 10, 7
    blocks = (1000 - 1) // 10 - 1
    batches = [training_batch(tokens, block_size, batch_size, number, seed=3) for number in range(4 * blocks // 7)]
    starts = torch.cat([x[:, 0] for x, _ in batches])
    epochs = [starts[first : first + blocks].tolist() for first in range(0, 3 * blocks, blocks)]
    for epoch in epochs:
        assert np.diff(sorted(epoch)).tolist() == [block_size] * (blocks - 1)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({min(epoch) for epoch in epochs}) > 1
    for x, y in batches:
        assert x.dtype == torch.int64
        assert torch.equal(y, x + 1)
        assert torch.equal(x, x[:, :1] + torch.arange(block_size))


def test_a_batch_is_a_function_of_its_number_and_the_seed():
    tokens = np.arange(500)
    later = training_batch(tokens, 8, 4, 33, seed=1)[0]
    shuffled_blocks.cache_clear()
    assert torch.equal(training_batch(tokens, 8, 4, 33, seed=1)[0], later)
    assert not torch.equal(training_batch(tokens, 8, 4, 33, seed=2)[0], later)


@pytest.mark.parametrize('length', [18, 33, 34])
def test_the_shortest_texts_that_fit_have_batches(length):
    for number in range(20):
        assert training_batch(np.arange(length), 16, 3, number, seed=0)[1].max() < length


def test_an_evaluation_looks_at_every_token_once_or_at_an_even_spread_always_the_same():
    tokens = np.arange(1001)
    seen = torch.cat([y.flatten() for _, y in evaluation_batches(tokens, 10, 7, most=200)])
    assert seen.tolist() == list(range(1, 1001))
    few = [y for _, y in evaluation_batches(tokens, 10, 4, most=3)]
    assert [len(y) for y in few] == [4, 4, 4]
    assert few[0].min() == 1
    assert few[-1].max() == 1000
    assert all(torch.equal(a, b) for a, (_, b) in zip(few, evaluation_batches(tokens, 10, 4, most=3), strict=True))


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    settings = Settings(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110)
    assert learning_rate_at(0, settings, 110) == pytest.approx(1 / 11)
    assert learning_rate_at(10, settings, 110) == 1.0
    assert learning_rate_at(60, settings, 110) == pytest.approx(0.55)
    assert learning_rate_at(35, settings, 110) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate_at(110, settings, 110) == learning_rate_at(10**6, settings, 110) == 0.1
    assert learning_rate_at(10**6, Settings(decay_lr=False, learning_rate=0.3), 9) == 0.3


def test_it_learns_and_the_checkpoint_says_what_it_learned(capsys):
    run(max_iters=60, lr_decay_iters=60, eval_interval=30, learning_rate=1e-2)
    curve = losses('out')
    assert sorted(curve) == list(range(1, 61))
    assert curve[1] == pytest.approx(math.log(290), rel=0.1)  # knows nothing yet
    assert curve[60] < 2
    model, tokenizer, checkpoint = load_model('resume', device='cpu')
    assert checkpoint['iter_num'] == 60
    assert checkpoint['config']['learning_rate'] == 1e-2
    text, _ = model.generate(torch.tensor([tokenizer.encode('The cat went')]), 12, temperature=0)
    assert 'hill' in tokenizer.decode(text[0].tolist())
    assert 'bits per byte' in capsys.readouterr().out


def test_gradient_accumulation_is_a_larger_batch():
    run(max_iters=4, out_dir='one', batch_size=16, gradient_accumulation_steps=1)
    run(max_iters=4, out_dir='two', batch_size=4, gradient_accumulation_steps=4)
    one, two = losses('one'), losses('two')
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)


@pytest.mark.parametrize('dropout', [0.0, 0.3])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(dropout):
    run(out_dir='whole', dropout=dropout)
    run(out_dir='halved', dropout=dropout, max_iters=4)
    run(out_dir='halved', dropout=dropout, init_from='resume')
    assert losses('halved') == losses('whole')
    for name, tensor in weights('whole').items():
        assert torch.equal(weights('halved')[name], tensor), name


def test_only_better_checkpoints_are_kept_when_asked():
    run(max_iters=4, learning_rate=1e-2)
    best = load_model('resume', device='cpu')[2]['best_val_loss']
    before = weights('out')
    run(init_from='resume', max_iters=8, learning_rate=10.0, decay_lr=False, always_save_checkpoint=False)
    assert load_model('resume', device='cpu')[2]['best_val_loss'] == best
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights('out').items())


def test_fine_tuning_starts_from_a_folder_with_its_tokenizer_a_shorter_context_and_dropout(tmp_path):
    run()
    model, tokenizer, _ = load_model('resume', device='cpu')
    save_pretrained(model, 'folder', tokenizer)
    made, same, checkpoint = setup.make_model(
        Settings(**SMALL | {'init_from': 'folder', 'block_size': 8, 'dropout': 0.2}),
        torch.device('cpu'),
    )
    assert (made.config.block_size, made.config.dropout, checkpoint) == (8, 0.2, None)
    assert {m.p for m in made.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    assert same.contents == tokenizer.contents
    assert made.training
    run(init_from='folder', max_iters=2, out_dir='tuned')
    assert load_model('resume', 'tuned', device='cpu')[2]['iter_num'] == 2


def test_eval_only_measures_and_writes_nothing(capsys, tmp_path):
    run()
    model = load_model('resume', device='cpu')[0]
    capsys.readouterr()
    run(init_from='out', out_dir='elsewhere', eval_only=True, eval_iters=100)
    printed = capsys.readouterr().out
    tokens = np.fromfile('data/rhymes/val.bin', np.uint16)
    n = (len(tokens) - 1) // 16 * 16
    x = torch.from_numpy(tokens[: n + 1].astype(np.int64))
    loss = model(x[:-1].view(-1, 16), x[1:].view(-1, 16))[1].item()
    assert f'val: {loss:.4f} nats per token' in printed
    meta = read_meta('rhymes')['val']
    assert f'({loss / math.log(2) * meta["tokens"] / meta["bytes"]:.4f} bits per byte), computed in float32' in printed
    assert not (tmp_path / 'elsewhere').exists()


def test_bfloat16_autocast_keeps_weights_in_float32_and_learns_as_well():
    run(dtype='bfloat16', out_dir='half')
    run(out_dir='full')
    assert {tensor.dtype for tensor in weights('half').values()} == {torch.float32}
    assert losses('half')[8] == pytest.approx(losses('full')[8], rel=0.02)


def test_another_tokenizer_than_the_models_is_refused(tmp_path):
    run(max_iters=4)
    prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='rhymes', tokenizer='char'))
    with pytest.raises(UserError, match='another tokenizer'):
        run(init_from='resume')


def test_weights_and_biases_is_asked_for_by_name_when_missing(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'wandb', None)
    with pytest.raises(UserError, match='pip install wandb'):
        run(wandb_log=True)


@needs_gpt2_vocabulary
def test_gpt2_tokens_fit_a_gpt2_folder_whose_tokenizer_has_another_form():
    """prepare_bin.py has GPT-2's vocabulary from tiktoken, a folder from the hub has it as tokenizer.json."""
    tokenizer = GPT2Tokenizer()
    assert tokenizer.fingerprint == GPT2_FINGERPRINT
    save_pretrained(random_gpt(vocab_size=50257, n_embd=8), 'folder', tokenizer)
    prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='rhymes', tokenizer='gpt2'))
    run(init_from='folder', max_iters=2)
    assert isinstance(load_model('resume', device='cpu')[1], BPETokenizer)


def test_training_drops_out_after_an_evaluation_as_before_and_computes_in_the_dtype_asked_for(monkeypatch):
    seen = []
    forward = GPT.forward

    def watched(self, idx, targets, want_logits=True):
        hook = self.transformer.h[0].mlp.c_fc.register_forward_hook(
            lambda module, inputs, output: seen.append((self.training, torch.is_grad_enabled(), output.dtype))
        )
        try:
            return forward(self, idx, targets, want_logits)
        finally:
            hook.remove()

    monkeypatch.setattr(GPT, 'forward', watched)
    run(max_iters=5, dtype='bfloat16', gradient_accumulation_steps=1)
    assert {dtype for _, _, dtype in seen} == {torch.bfloat16}
    assert [training for training, grad, _ in seen if grad] == [True] * 5
    assert {training for training, grad, _ in seen if not grad} == {False}


def test_where_nothing_was_better_nothing_is_said_to_be_saved(capsys, tmp_path):
    run(max_iters=4, learning_rate=3.0, min_lr=3.0, warmup_iters=0, always_save_checkpoint=False)
    assert 'there is no new ckpt.pt' in capsys.readouterr().out
    assert not (tmp_path / 'out' / 'ckpt.pt').exists()


def test_characters_prepared_by_nanogpt_are_not_taken_for_other_tokens(tmp_path):
    import pickle

    run(max_iters=4)
    folder = tmp_path / 'data' / 'shakespeare_char'
    folder.mkdir()
    for split in ('train', 'val'):
        np.arange(2000, dtype=np.uint16).__mod__(65).tofile(folder / f'{split}.bin')
    chars = {id: chr(60 + id) for id in range(65)}
    (folder / 'meta.pkl').write_bytes(pickle.dumps({'vocab_size': 65, 'itos': chars, 'stoi': {}}))
    with pytest.raises(UserError, match='another tokenizer'):
        run(init_from='out', dataset='shakespeare_char', out_dir='other')
    run(init_from='scratch', dataset='shakespeare_char', out_dir='other', max_iters=4)
    assert load_model('resume', 'other', device='cpu')[1].vocab_size == 65


# Interrupted --------------------------------------------------------------------------------------------------------


def in_a_child(folder, settings):
    """Train in a process that may be killed."""
    os.chdir(folder)
    torch.set_num_threads(1)
    run(**settings)


@pytest.fixture(scope='module')
def children():
    """A way to start processes that need not import torch anew."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['train', 'test_train', 'torch._dynamo', 'matplotlib.pyplot'])
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = f'{PROJECT}{os.pathsep}{PROJECT / "tests"}'  # for the process that preloads
    multiprocessing.forkserver.ensure_running()
    if before is None:
        del os.environ['PYTHONPATH']
    else:
        os.environ['PYTHONPATH'] = before
    return context


VARIANTS = {
    'float32': {'dtype': 'float32', 'dropout': 0.1},
    'bfloat16': {'dtype': 'bfloat16', 'dropout': 0.1},
    'float32, LoRA': {'dtype': 'float32', 'lora_rank': 4, 'dropout': 0.1},
    'bfloat16, LoRA': {'dtype': 'bfloat16', 'lora_rank': 4},
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_killed_at_ten_random_moments_and_resumed_it_is_the_same_run(children, tmp_path, variant):
    settings = VARIANTS[variant] | {'max_iters': 60, 'lr_decay_iters': 60, 'save_interval': 3, 'eval_interval': 20}

    def start(out_dir, **more):
        child = children.Process(target=in_a_child, args=(tmp_path, settings | {'out_dir': out_dir} | more))
        child.start()
        return child

    start('first', max_iters=1).join()  # whoever comes first waits for torch
    begun = time.monotonic()
    whole = start('whole')
    whole.join()
    duration = time.monotonic() - begun
    assert whole.exitcode == 0
    rng = random.Random(variant)
    resumed_from = []
    for _ in range(10):
        resume = (tmp_path / 'killed' / 'last.pt').exists()
        child = start('killed', **({'init_from': 'resume'} if resume else {}))
        child.join(rng.uniform(0, 0.8) * duration)
        child.kill()
        child.join()
        if (tmp_path / 'killed' / 'last.pt').exists():
            resumed_from.append(torch.load('killed/last.pt', weights_only=True)['iter_num'])
            if resumed_from[-1] == 60:
                (tmp_path / 'killed').rename(f'done{len(resumed_from)}')  # it got to the end: once more from the start
                assert_same_run('whole', f'done{len(resumed_from)}')
    resume = (tmp_path / 'killed' / 'last.pt').exists()
    last = start('killed', **({'init_from': 'resume'} if resume else {}))
    last.join()
    assert last.exitcode == 0
    assert any(0 < iteration < 60 for iteration in resumed_from)
    assert_same_run('whole', 'killed')


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_after_the_step_and_it_says_how_to_go_on(tmp_path, number, code):
    settings = SMALL | {'max_iters': 3000, 'lr_decay_iters': 3000, 'eval_interval': 1000, 'log_interval': 1}
    arguments = [f'--{name}={value}' for name, value in settings.items()]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, str(PROJECT / 'train.py'), *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / 'out' / 'metrics.jsonl'
    while not metrics.exists() or metrics.read_text().count('"loss"') < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    last = torch.load('out/last.pt', weights_only=True)
    stopped_at = last['iter_num']
    assert max(losses('out')) == stopped_at < 3000
    assert f'stopped by {number.name} after iteration {stopped_at}; go on with: python train.py' in stdout
    assert stdout.strip().endswith('--init_from=resume')
    assert 'Traceback' not in stderr
    run(out_dir='whole', **{name: settings[name] for name in ('lr_decay_iters', 'eval_interval')}, max_iters=stopped_at)
    assert losses('whole') == losses('out')
    for name, tensor in weights('whole', 'last.pt').items():
        assert torch.equal(tensor, last['model'][name])


def test_a_write_that_fails_half_way_leaves_the_old_checkpoint(monkeypatch, tmp_path):
    run(out_dir='whole', save_interval=1)
    torch_save, calls = torch.save, []

    def full_disk(value, path):
        calls.append(path)
        if len(calls) == 7:
            path.write_bytes(b'half a checkpoint')
            raise OSError(28, 'No space left on device')
        torch_save(value, path)

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(UserError, match=r'cannot write .*No space left on device'):
        run(save_interval=1)
    monkeypatch.setattr(torch, 'save', torch_save)
    assert 0 < torch.load('out/last.pt', weights_only=True)['iter_num'] < 8
    assert not list((tmp_path / 'out').glob('.*'))
    run(save_interval=1, init_from='resume')
    assert_same_run('whole', 'out')


def test_a_run_of_its_own_is_not_overwritten_and_a_killed_new_one_is_not_taken_for_the_old(monkeypatch):
    run()
    with pytest.raises(UserError, match=r'out holds last\.pt and ckpt\.pt of another run.*--overwrite=True'):
        run(overwrite=False)

    def killed(self, coming):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Run, 'step', killed)
    with pytest.raises(KeyboardInterrupt):
        run(overwrite=True)
    assert torch.load('out/last.pt', weights_only=True)['iter_num'] == 0


def test_every_last_pt_says_what_made_it():
    run(save_interval=3)
    last = torch.load('out/last.pt', weights_only=True)
    assert last['versions']['torch'] == torch.__version__
    assert last['config']['learning_rate'] == SMALL['learning_rate']
    assert last['tokenizer']['kind'] == 'bpe'
    tokens = {split: np.fromfile(f'data/rhymes/{split}.bin', np.uint16) for split in ('train', 'val')}
    assert last['data_sha256'] == {split: tokens_sha256(of) for split, of in tokens.items()}
    assert {'optimizer', 'scaler', 'iter_num', 'best_val_loss'} <= last.keys()


@pytest.mark.parametrize(
    'change', [{'n_layer': 3}, {'n_embd': 16}, {'block_size': 8}, {'lora_rank': 2}, {'freeze': 1}, {'bias': True}]
)
def test_resuming_with_another_shape_is_refused(change):
    run(max_iters=4)
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=rf'last\.pt was begun with {name}=.*, and the settings say {value}'):
        run(init_from='resume', **change)


def test_resuming_on_other_data_is_refused():
    run(max_iters=4)
    tokens = np.fromfile('data/rhymes/train.bin', np.uint16)
    tokens[7] ^= 1
    tokens.tofile('data/rhymes/train.bin')
    with pytest.raises(UserError, match='data/rhymes is not what the run in out was begun with'):
        run(init_from='resume')


def test_save_minutes_is_time_enough(monkeypatch):
    run(save_minutes=0, eval_interval=100, max_iters=5)
    saved = []
    monkeypatch.setattr(train.Run, 'save', lambda self, file, state, **rest: saved.append((file, self.iter_num)))
    run(save_minutes=0, eval_interval=100, max_iters=5)
    assert [iteration for file, iteration in saved if file == 'last.pt'] == [0, 1, 2, 3, 4, 5]
    saved.clear()
    run(save_interval=2, max_iters=5)
    assert [iteration for file, iteration in saved if file == 'last.pt'] == [0, 2, 4, 5]


# More than one process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'more',
    [{}, {'dropout': 0.2}, {'lora_rank': 2, 'gradient_checkpointing': True}],
    ids=['plain', 'dropout', 'LoRA, gradient checkpointing'],
)
def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(more):
    settings = SMALL | more | {'max_iters': 50, 'lr_decay_iters': 50, 'gradient_accumulation_steps': 4}
    settings |= {'eval_iters': 30, 'eval_interval': 25}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(PROJECT / 'train.py'), *(f'--{name}={value}' for name, value in settings.items()), '--out_dir=two']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count('sample from it') == 1
    run(**settings, out_dir='one')
    one, two = losses('one'), losses('two')
    assert list(two) == list(range(1, 51))
    assert list(two.values()) == pytest.approx(list(one.values()), abs=1e-5)
    for a, b in zip(evaluations('one').values(), evaluations('two').values(), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert torch.load('two/last.pt', weights_only=True)['iter_num'] == 50


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path):
    settings = SMALL | {'max_iters': 5000, 'lr_decay_iters': 5000, 'eval_interval': 5000}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(PROJECT / 'train.py'), *(f'--{name}={value}' for name, value in settings.items())]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / 'out' / 'metrics.jsonl'
    while not metrics.exists() or metrics.read_text().count('"loss"') < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    last = torch.load('out/last.pt', weights_only=True)
    assert 0 < last['iter_num'] == max(losses('out')) < 5000
    assert f'stopped by SIGTERM after iteration {last["iter_num"]}; go on with: torchrun --nproc_per_node=2' in stdout


def test_gradients_are_exchanged_at_the_last_of_the_batches_of_a_step_alone(monkeypatch):
    exchanged = []

    class Network:
        """Stands where DistributedDataParallel would, and notes the batches after which it would exchange."""

        def __init__(self, model):
            self.model, self.silent = model, False

        @contextlib.contextmanager
        def no_sync(self):
            self.silent = True
            yield
            self.silent = False

        def __call__(self, *arguments, **more):
            exchanged.append(not self.silent)
            return self.model(*arguments, **more)

    begin = train.Run.begin

    def begin_wrapped(self):
        begin(self)
        self.network = Network(self.model)

    run(out_dir='plain', gradient_accumulation_steps=3, max_iters=4)
    monkeypatch.setattr(train.Run, 'begin', begin_wrapped)
    run(gradient_accumulation_steps=3, max_iters=4)
    assert exchanged == [False, False, True] * 4
    assert_same_run('plain', 'out')


def test_accumulation_that_cannot_be_shared_out_is_refused(monkeypatch):
    two = types.SimpleNamespace(count=2, rank=0, first=True, device=None)
    monkeypatch.setattr(train, 'Processes', lambda device, backend: two)
    with pytest.raises(UserError, match='gradient_accumulation_steps=3 cannot be shared out among 2 processes'):
        run(gradient_accumulation_steps=3)


# Fine-tuning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('blocks', 'untouched'), [(0, ['wte', 'wpe']), (1, ['wte', 'wpe', 'h.0.'])])
def test_what_is_frozen_stays_as_it_was_and_the_rest_learns(blocks, untouched):
    run(max_iters=4, out_dir='base')
    run(init_from='base', out_dir='tuned', freeze=blocks)
    before, after = weights('base'), weights('tuned')
    for name, tensor in after.items():
        frozen = name == 'lm_head.weight' or any(name.startswith(f'transformer.{part}') for part in untouched)
        assert torch.equal(tensor, before[name]) == frozen, name


def test_freezing_more_blocks_than_there_are_is_refused():
    with pytest.raises(UserError, match='--freeze=3: the model has 2 blocks'):
        run(freeze=3)


def test_lora_learns_additions_alone_and_ckpt_pt_has_them_in_ordinary_weights():
    run(max_iters=40, lr_decay_iters=40, learning_rate=1e-2, out_dir='base')
    run(
        init_from='base',
        out_dir='tuned',
        lora_rank=3,
        lora_alpha=6.0,
        max_iters=60,
        lr_decay_iters=60,
        learning_rate=1e-2,
    )
    base, merged, kept = weights('base'), weights('tuned'), weights('tuned', 'last.pt')
    lora = torch.load('tuned/last.pt', weights_only=True)['lora']
    matrices = [name for name in base if name.startswith('transformer.h.') and base[name].dim() == 2]
    assert len(lora) == 2 * len(matrices) == 16
    for name, tensor in base.items():
        assert torch.equal(kept[name], tensor), name  # apart from the additions nothing was learned
        change = merged[name].double() - tensor.double()
        if name in matrices:
            stem = name.removesuffix('weight')
            added = 6 / 3 * lora[f'{stem}lora_B'].double() @ lora[f'{stem}lora_A'].double()
            assert torch.allclose(change, added, atol=1e-6)
            assert torch.linalg.matrix_rank(added, rtol=1e-9) <= 3
            assert change.abs().max() > 1e-3
        else:
            assert change.abs().max() == 0
    assert losses('tuned')[60] < losses('tuned')[1] - 0.1
    model, _, _ = load_model('resume', 'tuned', device='cpu')  # an ordinary model for every other script
    assert not any('lora' in name for name in model.state_dict())


def test_a_model_with_lora_begins_as_it_was_and_merges_into_what_it_says():
    model, plain = random_gpt(dropout=0.0), random_gpt(dropout=0.0)
    idx = torch.randint(61, (2, 9))
    before = model(idx, idx)[0]
    add_lora(model, rank=2, alpha=4)
    assert torch.equal(model(idx, idx)[0], before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(split_state_dict(model)[1])
    for name, parameter in model.named_parameters():
        if '.lora_' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(merged_state_dict(model))
    assert torch.allclose(model(idx, idx)[0], plain(idx, idx)[0], atol=1e-4)
    assert not torch.allclose(model(idx, idx)[0], before, atol=1e-2)


@pytest.mark.parametrize('more', [{}, {'lora_rank': 2}, {'freeze': 1}])
def test_gradient_checkpointing_changes_no_number(more):
    run(out_dir='base', max_iters=1)
    for name, recompute in (('plain', False), ('recomputed', True)):
        run(init_from='base', out_dir=name, gradient_checkpointing=recompute, dropout=0.2, **more)
    assert losses('plain') == losses('recomputed')
    assert_same_run('plain', 'recomputed')


@pytest.mark.parametrize('epochs', [0.5, 1, 2])
def test_epochs_go_through_the_training_part(epochs):
    run(epochs=epochs, max_iters=10**6, batch_size=4)
    blocks = (len(np.fromfile('data/rhymes/train.bin', np.uint16)) - 1) // 16 - 1
    assert max(losses('out')) == math.ceil(epochs * blocks / 8)


def test_patience_ends_a_run_that_no_longer_gets_better(capsys):
    run(max_iters=400, patience=2, eval_interval=5, learning_rate=0.3, min_lr=0.3, warmup_iters=0, lr_decay_iters=400)
    found = evaluations('out')
    best = min(found, key=lambda iteration: found[iteration][1])
    assert max(found) == best + 2 * 5 < 400
    assert 'no better for 2 evaluations in a row' in capsys.readouterr().out


# Guards and sights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_that_iteration_and_leaves_the_last_good_checkpoint(monkeypatch, bad):
    run(out_dir='whole', max_iters=4)
    loss_of, calls = train.Run.loss_of, itertools.count()

    def diverging(self, network, x, y):
        loss = loss_of(self, network, x, y)
        return loss * bad if torch.is_grad_enabled() and next(calls) == 2 * 5 + 1 else loss  # in the sixth step

    monkeypatch.setattr(train.Run, 'loss_of', diverging)
    with pytest.raises(UserError, match=r'iteration 6: the loss is .*not finite.*--learning_rate'):
        run()
    assert max(losses('out')) == 5
    assert torch.load('out/last.pt', weights_only=True)['iter_num'] == 4
    assert all(torch.equal(tensor, weights('whole', 'last.pt')[n]) for n, tensor in weights('out', 'last.pt').items())


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory'),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_says_what_to_lower(monkeypatch, error):
    def out_of_memory(self, network, x, y):
        raise error

    monkeypatch.setattr(train.Run, 'loss_of', out_of_memory)
    with pytest.raises(UserError, match='out of memory: lower --batch_size'):
        run()


def test_weights_that_are_no_longer_finite_are_not_saved():
    run(max_iters=4)
    ruinous = {'learning_rate': 1e37, 'min_lr': 1e37, 'warmup_iters': 0, 'grad_clip': 0.0, 'decay_lr': False}
    with pytest.raises(UserError, match=r'iteration \d+: .*not finite'):
        run(init_from='resume', eval_interval=1, save_interval=1, **ruinous)
    last = torch.load('out/last.pt', weights_only=True)
    assert all(tensor.isfinite().all() for tensor in last['model'].values())
    assert all(tensor.isfinite().all() for tensor in weights('out').values())


@pytest.mark.parametrize('which', ['lora_A', 'lora_B'])
def test_additions_that_are_no_longer_finite_are_not_saved(monkeypatch, which):
    step = train.Run.step

    def ruinous(self, coming):
        found = step(self, coming)
        if self.iter_num == 3:  # after the last evaluation, so that saving alone can notice
            with torch.no_grad():
                dict(self.model.named_parameters())[f'transformer.h.0.mlp.c_fc.{which}'][0, 0] = math.nan
        return found

    monkeypatch.setattr(train.Run, 'step', ruinous)
    with pytest.raises(UserError, match='iteration 3: some weight has become inf or nan'):
        run(lora_rank=2, save_interval=1)
    last = torch.load('out/last.pt', weights_only=True)
    assert last['iter_num'] == 2
    assert all(tensor.isfinite().all() for tensor in last['lora'].values())


def test_a_run_in_float32_goes_on_in_float16():
    run(max_iters=4)
    run(init_from='resume', dtype='float16')
    assert max(losses('out')) == 8


def test_a_measurement_is_of_what_the_other_scripts_use(capsys):
    run(max_iters=40, lr_decay_iters=40, learning_rate=1e-2, out_dir='base')
    tuning = {'out_dir': 'tuned', 'lora_rank': 4, 'max_iters': 40, 'lr_decay_iters': 40, 'learning_rate': 1e-2}
    run(init_from='base', **tuning)
    found = evaluations('tuned')
    capsys.readouterr()
    run(init_from='resume', eval_only=True, **tuning)
    printed = float(capsys.readouterr().out.split('val: ')[1].split()[0])
    assert printed == pytest.approx(found[40][1], abs=1e-4)
    assert printed < found[0][1]


def test_a_checkpoint_of_nanogpt_is_gone_on_with(tmp_path):
    run(max_iters=4, out_dir='ours')
    ckpt = torch.load('ours/ckpt.pt', weights_only=True)
    names = ('model', 'optimizer', 'model_args', 'iter_num', 'best_val_loss')
    config = {name: value for name, value in ckpt['config'].items() if name in ('n_layer', 'n_embd', 'dataset', 'bias')}
    (tmp_path / 'out').mkdir()
    torch.save({name: ckpt[name] for name in names} | {'config': config}, 'out/ckpt.pt')
    with pytest.raises(UserError, match=r'ckpt\.pt was begun with lora_rank=0, and the settings say 2'):
        run(init_from='resume', lora_rank=2)
    run(init_from='resume')
    assert max(losses('out')) == 8


def test_another_order_of_the_data_is_told_of(capsys):
    run(max_iters=4)
    run(init_from='resume', batch_size=4)
    assert 'note: the run was begun with batch_size=8, now it is 4' in capsys.readouterr().err


def test_overwriting_takes_the_old_run_away_once_all_is_well(tmp_path):
    run()
    with pytest.raises(UserError, match=r'nowhere\.json'):
        run(eval_file='nowhere.json')
    assert len(losses('out')) == 8
    assert (tmp_path / 'out' / 'ckpt.pt').exists()
    (tmp_path / 'out' / '.last.pt.abc').write_bytes(b'half')
    run(max_iters=2, always_save_checkpoint=False, learning_rate=3.0, min_lr=3.0, warmup_iters=0)
    assert not (tmp_path / 'out' / 'ckpt.pt').exists()  # it would have been the old run's
    assert not (tmp_path / 'out' / '.last.pt.abc').exists()


@pytest.mark.parametrize(
    'typed',
    [
        ['config/x.py', '--init_from=gpt2', '--batch_size=2', '--overwrite'],
        ['config/x.py', '--init_from', 'gpt2', '--batch-size=2', '--overwrite', 'True'],
        ['config/x.py', '--init_from=resume', '--batch_size=2'],
        ['config/x.py', '--overwrite', '--batch_size=2'],
    ],
)
def test_the_command_that_goes_on_means_the_same_run_resumed(monkeypatch, tmp_path, typed):
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config' / 'x.py').write_text("dataset = 'rhymes'\nout_dir = 'elsewhere'")
    monkeypatch.setattr(sys, 'argv', ['train.py', *typed])
    python, script, *arguments = shlex.split(log.resume_command(1))
    assert (python, script) == ('python', 'train.py')
    assert arguments.count('--init_from=resume') == 1
    settings = configurator.read(Settings, arguments)
    found = (settings.init_from, settings.batch_size, settings.dataset, settings.out_dir)
    assert found == ('resume', 2, 'rhymes', 'elsewhere')


def test_other_errors_are_not_taken_for_too_little_memory(monkeypatch):
    def mistaken(self, network, x, y):
        raise RuntimeError('shapes')

    monkeypatch.setattr(train.Run, 'loss_of', mistaken)
    with pytest.raises(RuntimeError, match='shapes'):
        run()


def test_people_see_it_learn(capsys, tmp_path):
    pairs = [{'prompt': 'The cat went', 'response': ' up the hill'}, {'prompt': 'The dog', 'response': ' went'}]
    (tmp_path / 'pairs.json').write_text(json.dumps(pairs))
    run(
        max_iters=40,
        lr_decay_iters=40,
        eval_interval=20,
        learning_rate=1e-2,
        sample_prompt='The fox',
        eval_file='pairs.json',
    )
    out = capsys.readouterr()
    assert out.out.count("it says: 'The fox") == 3 or out.err.count("it says: 'The fox") == 3
    with open('out/metrics.jsonl') as file:
        rows = [json.loads(line) for line in file]
    scored = {row['iter']: row['pairs_logprob_per_response'] for row in rows if 'pairs_logprob_per_response' in row}
    assert sorted(scored) == [0, 20, 40]
    assert scored[40] > scored[20] > scored[0]
    model, tokenizer, _ = load_model('resume', device='cpu')
    encoded = [tokenizer.encode_pair(pair['prompt'], pair['response']) for pair in pairs]
    logprobs = [part.sum().item() for part in score(model, *zip(*encoded))]
    assert scored[40] == pytest.approx(sum(logprobs) / 2, abs=1e-5)
    assert imread('out/loss.png').shape[0] > 300


def test_looking_does_not_change_what_is_learned(tmp_path):
    (tmp_path / 'pairs.json').write_text('[["The cat", " went"]]')
    run(out_dir='unseen', dropout=0.2)
    run(out_dir='seen', dropout=0.2, sample_prompt='The', eval_file='pairs.json')
    assert_same_run('unseen', 'seen')


def test_weights_and_biases_gets_every_line(monkeypatch):
    logged = []
    fake = types.ModuleType('wandb')
    fake.init = lambda **settings: logged.append(settings) or types.SimpleNamespace(id='run-7')
    fake.log = lambda values, step: logged.append((step, values))
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    run(wandb_log=True, wandb_project='rhymes', max_iters=2)
    assert (logged[0]['project'], logged[0]['id']) == ('rhymes', None)
    assert [step for step, values in logged[1:] if 'loss' in values] == [1, 2]
    logged.clear()
    run(wandb_log=True, init_from='resume', max_iters=3)
    assert (logged[0]['id'], logged[0]['resume']) == ('run-7', 'allow')  # the same run there, too


def test_float16_has_a_scaler_and_its_state_is_kept():
    run(dtype='float16', out_dir='whole')
    run(dtype='float16', out_dir='halved', max_iters=4)
    assert torch.load('halved/last.pt', weights_only=True)['scaler']['scale'] > 1
    run(dtype='float16', out_dir='halved', init_from='resume')
    assert_same_run('whole', 'halved')


def test_nanogpts_settings_run_on_small_data(tmp_path):
    """Every setting that its character-level and fine-tuning examples have; what makes them long is overridden."""
    (tmp_path / 'long.txt').write_text(TEXT * 4)
    prepare_bin.main(prepare_bin.Settings(input='long.txt', dataset='characters', tokenizer='char', val_fraction=0.2))
    run(max_iters=1, out_dir='base')
    short = ('--device=cpu', '--max_iters=2', '--eval_iters=1', '--batch_size=2')
    for config, *changes in [
        (CHARACTERS, '--dataset=characters', '--n_embd=48', '--out_dir=of-characters'),
        (FINE_TUNING, '--dataset=rhymes', '--init_from=base', '--out_dir=tuned'),
    ]:
        (tmp_path / 'settings.py').write_text(config)
        process = run_script('train.py', 'settings.py', *short, *changes, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    assert torch.load('of-characters/last.pt', weights_only=True)['config']['dropout'] == 0.2
    assert torch.load('tuned/last.pt', weights_only=True)['config']['decay_lr'] is False


def test_a_second_run_into_the_same_folder_is_refused_as_a_person_meets_it(tmp_path):
    run(max_iters=1)
    arguments = [f'--{name}={value}' for name, value in SMALL.items()]
    assert_friendly_error(
        run_script('train.py', *arguments, cwd=tmp_path), 'out holds', '--init_from=resume', '--overwrite'
    )


# Batches ------------------------------------------------------------------------------------------------------------


def test_batches_come_in_order_from_another_thread_and_errors_with_them():
    def make(number):
        if number == 5:
            raise ValueError('five')
        return number * 10

    coming = prefetch(make, itertools.count(2))
    assert [next(coming) for _ in range(3)] == [20, 30, 40]
    with pytest.raises(ValueError, match='five'):
        next(coming)
    assert list(prefetch(make, range(3))) == [0, 10, 20]
    assert list(prefetch(make, [])) == []


def test_a_fingerprint_is_of_every_token_of_small_files_and_the_largest_id_of_all():
    tokens = np.arange(3_000_000, dtype=np.uint16)
    before = tokens_sha256(tokens)
    assert largest_token(tokens, piece=1000) == 65535
    assert largest_token(tokens[:0]) == -1
    tokens[2_999_999] ^= 1
    assert tokens_sha256(tokens) != before
    assert tokens_sha256(tokens[:-1]) != tokens_sha256(tokens)
