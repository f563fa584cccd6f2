"""Training on pairs: the loss is that of the responses, as transformers computes it and as eval.py scores them."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import random_network
from helpers.piece_tokenizers import save_llama_tokenizer
from helpers.training import PAIRS, SMALL, assert_same_run, losses, run

import prepare_bin
import train
from common.errors import UserError
from common.files import file_sha256
from common.processes import Processes
from evaluation.sources import PairSource
from lm.checkpoint import load_model, save_pretrained
from lm.scoring import score_pairs
from train import Settings

pytestmark = pytest.mark.usefixtures('dataset')
QUESTIONS = Path('data/questions')


def encoded_pairs(tokenizer):
    """Return (prompt ids, response ids) of all pairs, as eval.py scores them."""
    source = PairSource('pairs.json')
    return [source.encode(pair, [tokenizer], 'joint', ' ').pairs[0][0] for _, pair in source.units()]


def mean_loss(model, pairs):
    """Return the mean loss of responses in nats per token, from eval.py's scores."""
    scores = list(score_pairs(model, pairs))
    return -math.fsum(score.model_logprobs.sum().item() for score in scores) / sum(len(ids) for _, ids in pairs)


def change_meta(change):
    """Write the dataset's meta.json again, after change(meta)."""
    meta = json.loads((QUESTIONS / 'meta.json').read_text())
    change(meta)
    (QUESTIONS / 'meta.json').write_text(json.dumps(meta))


@pytest.mark.slow
def test_the_gradients_of_a_step_are_those_of_transformers_with_labels_of_minus_100(monkeypatch):
    """All responses of a step count the same, however they are spread over its batches."""
    from transformers import GPT2LMHeadModel

    run(max_iters=1, block_size=64, learning_rate=0.0)
    model, tokenizer, _ = load_model('resume', device='cpu')
    save_pretrained(model, 'folder', tokenizer)
    more = {'dataset': 'questions', 'init_from': 'folder', 'grad_clip': 0.0}
    more |= {'block_size': 40, 'batch_size': 2, 'gradient_accumulation_steps': 3, 'overwrite': True}
    ours = train.Run(Settings(**SMALL | more), Processes())
    ours.prepare()
    batches = [ours.load_batch(number) for number in itertools.islice(ours.batch_numbers(), 3)]
    assert len({(y != -1).sum().item() for *_, y in batches}) > 1  # they do not count equally many tokens
    found = {}
    monkeypatch.setattr(
        ours.scaler, 'step', lambda _: found.update({name: p.grad.clone() for name, p in ours.model.named_parameters()})
    )
    loss, _ = ours.step(iter(batches))

    theirs = GPT2LMHeadModel.from_pretrained('folder').train()
    x, y = (torch.cat(parts) for parts in zip(*(batch[1:] for batch in batches), strict=True))
    ids = torch.cat([x, y[:, -1:].clamp(min=0)], dim=1)
    labels = torch.cat([torch.full_like(y[:, :1], -100), torch.where(y == -1, -100, y)], dim=1)
    output = theirs(ids, labels=labels)
    output.loss.backward()
    assert loss == pytest.approx(output.loss.item(), rel=1e-5)
    for name, parameter in theirs.named_parameters():
        is_conv1d = name.endswith(('c_attn.weight', 'c_proj.weight', 'c_fc.weight'))
        expected = parameter.grad.T if is_conv1d else parameter.grad[: len(found[name])]  # block_size is smaller here
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_the_loss_is_the_mean_of_what_eval_scores_and_of_the_end(capsys):
    """With one pair in each window, as eval.py reads it."""
    run(max_iters=20, block_size=64, dataset='questions', learning_rate=1e-2)
    model, tokenizer, _ = load_model('resume', device='cpu')
    pairs = [(prompt, [*response, tokenizer.eot]) for prompt, response in encoded_pairs(tokenizer)]
    longest = max(len(prompt + response) for prompt, response in pairs) - 1
    assert all(2 * len(prompt + response) > longest for prompt, response in pairs)  # no two fit
    more = {'dataset': 'questions', 'init_from': 'out', 'eval_only': True, 'block_size': longest, 'eval_iters': 100}
    made = train.Run(Settings(**SMALL | more), Processes())
    count = 0
    for split, loss in made.estimate_loss().items():
        data = np.fromfile(QUESTIONS / f'{split}.bin', np.uint16).tobytes()
        here = [pair for pair in pairs if np.array(pair[0] + pair[1], np.uint16).tobytes() in data]
        assert len(made.blocks[split]) == len(here)
        assert loss == pytest.approx(mean_loss(model, here), rel=1e-5)
        count += len(here)
    assert count == len(PAIRS)
    assert 'nats per token of the responses (' in capsys.readouterr().out


@pytest.mark.slow
def test_only_responses_are_learned():
    """Prompts are read in each step, but a model from scratch cannot say them afterwards, unless all tokens count."""
    more = {'max_iters': 80, 'lr_decay_iters': 80, 'eval_interval': 80, 'learning_rate': 1e-2, 'block_size': 64}
    run(dataset='questions', **more)
    for split in ('train', 'val'):
        (QUESTIONS / f'{split}.mask.bin').unlink()
    change_meta(lambda meta: [meta[split].pop('mask_sha256') for split in ('train', 'val')])
    run(dataset='questions', out_dir='all', **more)
    found = {}
    for name in ('out', 'all'):
        model, tokenizer, _ = load_model(name, device='cpu')
        pairs = encoded_pairs(tokenizer)
        found[name] = mean_loss(model, [(prompt[:1], prompt[1:]) for prompt, _ in pairs]), mean_loss(model, pairs)
    (prompts, responses), (all_prompts, all_responses) = found['out'], found['all']
    assert responses < 1 and all_responses < 1.5
    assert prompts > math.log(290)  # no better than if all tokens were equally likely
    assert all_prompts < 2


@pytest.mark.slow
def test_a_run_on_pairs_resumes_bit_for_bit_and_only_with_its_mask():
    more = {'dataset': 'questions', 'block_size': 24, 'dropout': 0.3, 'lora_rank': 2}
    run(out_dir='whole', **more)
    run(out_dir='halved', max_iters=4, **more)
    run(out_dir='halved', init_from='resume', **more)
    assert max(losses('halved')) == 8
    assert_same_run('whole', 'halved')
    path = QUESTIONS / 'train.mask.bin'
    mask = np.fromfile(path, np.uint8)
    mask[np.flatnonzero(mask)[0]] = 0
    mask.tofile(path)
    with pytest.raises(UserError, match=r'train\.mask\.bin is not the file that the meta\.json beside it describes'):
        run(out_dir='halved', init_from='resume', **more)
    change_meta(lambda meta: meta['train'].update(mask_sha256=file_sha256(path)))
    with pytest.raises(UserError, match='data/questions is not the data that the run in halved started with'):
        run(out_dir='halved', init_from='resume', **more)


@pytest.mark.slow
def test_pairs_may_be_fewer_tokens_than_a_block_or_longer_than_one(capsys):
    run(dataset='questions', block_size=2000, batch_size=1, max_iters=1, eval_interval=1)
    printed = capsys.readouterr()
    assert 'are cut' not in printed.err
    assert 'of responses count' in printed.out
    run(dataset='questions', block_size=8, max_iters=1, eval_interval=1)
    assert '--block_size avoids that' in capsys.readouterr().err


def test_pairs_of_which_none_is_for_validation_are_refused():
    settings = prepare_bin.Settings(pairs='pairs.json', dataset='questions', tokenizer='data/rhymes', val_fraction=0)
    prepare_bin.main(settings)
    with pytest.raises(UserError, match=r'val\.bin has no response to learn'):
        run(dataset='questions')


@pytest.mark.slow
def test_a_llama_learns_responses_with_its_own_tokenizer(capsys):
    """Its prompts begin with <s> and its responses end with </s>; the loss is that of transformers."""
    from transformers import AutoModelForCausalLM

    n_ids = save_llama_tokenizer(Path('llama'))
    random_network('llama', vocab_size=n_ids, max_position_embeddings=64).save_pretrained('llama')
    prepare_bin.main(prepare_bin.Settings(pairs='pairs.json', dataset='questions', tokenizer='llama'))
    more = {'dataset': 'questions', 'init_from': 'llama', 'block_size': 64, 'batch_size': 4, 'eval_iters': 100}
    run(**more, lora_rank=2, max_iters=3, eval_interval=3)
    assert 'nats per token of the responses (' in capsys.readouterr().out
    made = train.Run(Settings(**SMALL | more | {'eval_only': True}), Processes())
    theirs = AutoModelForCausalLM.from_pretrained('llama').eval()
    for split, loss in made.estimate_loss().items():
        x, y = made.blocks[split].read(range(len(made.blocks[split])))
        assert (x[:, 0] == 1).all()  # <s>
        assert (y == 2).any()  # </s>
        with torch.no_grad():
            logits = theirs(x).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1).item()
        assert loss == pytest.approx(expected, rel=1e-5)
