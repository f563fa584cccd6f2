"""The training log: metrics, samples, scores, Weights & Biases."""

import json
import sys
import types

import pytest
from helpers.training import assert_same_run, rows_of, run
from matplotlib.image import imread

from common.errors import UserError
from lm.checkpoint import load_model
from lm.scoring import score

pytestmark = pytest.mark.usefixtures('dataset')


@pytest.mark.slow
def test_each_evaluation_prints_a_sample_and_scores_pairs(capsys, tmp_path):
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
    assert out.out.count("sample: 'The fox") == 3 or out.err.count("sample: 'The fox") == 3
    key = 'pairs_logprob_per_response'
    scored = {row['iter']: row[key] for row in rows_of('out') if key in row}
    assert sorted(scored) == [0, 20, 40]
    assert scored[40] > scored[20] > scored[0]
    model, tokenizer, _ = load_model('resume', device='cpu')
    encoded = [tokenizer.encode_pair(pair['prompt'], pair['response']) for pair in pairs]
    logprobs = [part.sum().item() for part in score(model, *zip(*encoded))]
    assert scored[40] == pytest.approx(sum(logprobs) / 2, abs=1e-5)
    assert imread('out/loss.png').shape[0] > 300


def test_samples_and_scores_do_not_change_training(tmp_path):
    (tmp_path / 'pairs.json').write_text('[["The cat", " went"]]')
    run(out_dir='without', dropout=0.2)
    run(out_dir='with', dropout=0.2, sample_prompt='The', eval_file='pairs.json')
    assert_same_run('without', 'with')


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
    assert (logged[0]['id'], logged[0]['resume']) == ('run-7', 'allow')  # the same run in Weights & Biases


def test_a_missing_wandb_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='pip install wandb'):
        run(wandb_log=True)
