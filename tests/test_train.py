"""Training: the order of the data, the schedule, resuming, and that it learns."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import needs_gpt2_vocabulary, random_gpt

import prepare_bin
import train
from batches import evaluation_batches, read_meta, shuffled_blocks, training_batch
from checkpoint import load
from common import UserError
from tokenizer import GPT2_FINGERPRINT, BPETokenizer, GPT2Tokenizer
from train import Settings, learning_rate_at

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
    train.main(Settings(**SMALL | settings))


def losses(out_dir):
    with open(f'{out_dir}/metrics.jsonl') as file:
        rows = [json.loads(line) for line in file]
    return {row['iter']: row['loss'] for row in rows if 'loss' in row}


def weights(out_dir):
    return torch.load(f'{out_dir}/ckpt.pt', weights_only=True)['model']


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
    assert learning_rate_at(0, settings) == pytest.approx(1 / 11)
    assert learning_rate_at(10, settings) == 1.0
    assert learning_rate_at(60, settings) == pytest.approx(0.55)
    assert learning_rate_at(35, settings) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate_at(110, settings) == learning_rate_at(10**6, settings) == 0.1
    assert learning_rate_at(10**6, Settings(decay_lr=False, learning_rate=0.3)) == 0.3


def test_it_learns_and_the_checkpoint_says_what_it_learned(capsys):
    run(max_iters=60, lr_decay_iters=60, eval_interval=30, learning_rate=1e-2)
    curve = losses('out')
    assert sorted(curve) == list(range(1, 61))
    assert curve[1] == pytest.approx(math.log(290), rel=0.1)  # knows nothing yet
    assert curve[60] < 2
    model, tokenizer, checkpoint = load('resume', device='cpu')
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
    best = load('resume', device='cpu')[2]['best_val_loss']
    before = weights('out')
    run(init_from='resume', max_iters=8, learning_rate=10.0, decay_lr=False, always_save_checkpoint=False)
    assert load('resume', device='cpu')[2]['best_val_loss'] == best
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights('out').items())


def test_fine_tuning_starts_from_a_folder_with_its_tokenizer_a_shorter_context_and_dropout(tmp_path):
    run()
    model, tokenizer, _ = load('resume', device='cpu')
    model.save_pretrained('folder', tokenizer)
    made, same, checkpoint = train.make_model(
        Settings(**SMALL | {'init_from': 'folder', 'block_size': 8, 'dropout': 0.2}),
        read_meta('rhymes'),
        torch.device('cpu'),
    )
    assert (made.config.block_size, made.config.dropout, checkpoint) == (8, 0.2, None)
    assert {m.p for m in made.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    assert same.contents == tokenizer.contents
    assert made.training
    run(init_from='folder', max_iters=2, out_dir='tuned')
    assert load('resume', 'tuned', device='cpu')[2]['iter_num'] == 2


def test_eval_only_measures_and_writes_nothing(capsys, tmp_path):
    run()
    model = load('resume', device='cpu')[0]
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
    random_gpt(vocab_size=50257, n_embd=8).save_pretrained('folder', tokenizer)
    prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='rhymes', tokenizer='gpt2'))
    run(init_from='folder', max_iters=2)
    assert isinstance(load('resume', device='cpu')[1], BPETokenizer)


def test_training_drops_out_after_an_evaluation_as_before_and_computes_in_the_dtype_asked_for(monkeypatch):
    seen = []
    forward = train.GPT.forward

    def watched(self, idx, targets, want_logits=True):
        hook = self.transformer.h[0].mlp.c_fc.register_forward_hook(
            lambda module, inputs, output: seen.append((self.training, torch.is_grad_enabled(), output.dtype))
        )
        try:
            return forward(self, idx, targets, want_logits)
        finally:
            hook.remove()

    monkeypatch.setattr(train.GPT, 'forward', watched)
    run(max_iters=5, dtype='bfloat16', gradient_accumulation_steps=1)
    assert {dtype for _, _, dtype in seen} == {torch.bfloat16}
    assert [training for training, grad, _ in seen if grad] == [True] * 5
    assert {training for training, grad, _ in seen if not grad} == {False}


def test_where_nothing_was_better_nothing_is_said_to_be_saved(capsys, tmp_path):
    run(max_iters=4, learning_rate=1e3, min_lr=1e3, warmup_iters=0, always_save_checkpoint=False)
    assert 'nothing was saved' in capsys.readouterr().out
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
    assert load('resume', 'other', device='cpu')[1].vocab_size == 65
