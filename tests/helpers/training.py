"""Small training runs, and what they leave behind."""

import json
import os

import torch

import train
from train import Settings

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
PAIRS = [
    {'prompt': f'Where did the {animal} go, by the {place}?', 'response': f'The {animal} went {way} the hill.'}
    for animal in ('cat', 'dog', 'cow', 'hen', 'fox', 'owl', 'pig', 'ant', 'bee', 'elk')
    for place, way in (('old tree', 'up'), ('red gate', 'down'), ('sea', 'over and over'))
]


def run(**settings):
    """Train a small model on the rhymes, in the current folder."""
    train.main(Settings(**SMALL | {'overwrite': settings.get('init_from') != 'resume'} | settings))


def run_in_child(folder, settings):
    """Train in a process of its own, which can be killed."""
    os.chdir(folder)
    torch.set_num_threads(1)
    run(**settings)


def rows_of(out_dir):
    with open(f'{out_dir}/metrics.jsonl') as file:
        return [json.loads(line) for line in file]


def losses(out_dir):
    """Return the logged losses: iteration -> loss."""
    return {row['iter']: row['loss'] for row in rows_of(out_dir) if 'loss' in row}


def evaluations(out_dir):
    """Return the evaluations: iteration -> (train loss, val loss)."""
    return {row['iter']: (row['train_loss'], row['val_loss']) for row in rows_of(out_dir) if 'val_loss' in row}


def checkpoint(out_dir, file='last.pt'):
    return torch.load(f'{out_dir}/{file}', weights_only=True)


def weights(out_dir, file='ckpt.pt'):
    return checkpoint(out_dir, file)['model']


def assert_same_run(one, other):
    """Every logged loss, every evaluation and every weight is the same to the last bit."""
    assert losses(one) == losses(other)
    assert evaluations(one) == evaluations(other)
    for file in ('ckpt.pt', 'last.pt'):
        a, b = checkpoint(one, file), checkpoint(other, file)
        assert a['iter_num'] == b['iter_num']
        for part in ('model', 'lora'):
            assert a.get(part, {}).keys() == b.get(part, {}).keys()
            for name, tensor in a.get(part, {}).items():
                assert torch.equal(tensor, b[part][name]), name
