"""Fine-tuning models of transformers: losses, gradients and weights are those that transformers itself computes."""

import copy
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.networks import KINDS, random_network, save_network
from helpers.scripts import PROJECT
from helpers.training import SMALL, assert_same_run, checkpoint, evaluations, losses, run, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

import export
import prepare_bin
import train
from common.errors import UserError
from common.notes import forget_notes
from lm.checkpoint import load_model
from lm.hub_model import HubModel, check_network
from lm.tokenizer import tokenizer_from_folder
from texts.token_files import open_tokens
from training.batches import make_blocks, training_batch
from training.lean_loss import LeanLoss
from training.lora import add_lora, merged_state_dict
from training.memory import bytes_of_fine_tuning, measure_kept_numbers
from training.setup import set_dropout

pytestmark = [pytest.mark.usefixtures('dataset'), pytest.mark.slow]

CHAT = '{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}'
GENERATION = {'eos_token_id': [0, 5], 'temperature': 0.6, 'top_p': 0.9, 'do_sample': True}


def save_model(kind):
    """Write a random model with the tokenizer of the dataset; return its network."""
    forget_notes()
    return save_network(kind, 'base', tokenizer_from_folder('data/rhymes'))


def fine_tune(**settings):
    run(init_from=settings.pop('init_from', 'base'), **settings)


# Losses and gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', [param.values[0] for param in KINDS])
def test_loss_and_gradients_are_those_of_transformers_labels(kind):
    """With the output layer apart, computed as a whole, and with layers recomputed; also after LoRA."""
    network = copy.deepcopy(random_network(kind))
    model = HubModel(network)
    check_network(model, 'it')
    set_dropout(model, 0.0)
    model.train()
    text = torch.randint(3, 61, (3, 40), generator=torch.Generator().manual_seed(0))
    idx, targets, labels = text[:, :-1], text[:, 1:].clone(), text.clone()
    targets[1, 4:9], labels[1, 5:10] = -1, -100  # not counted; transformers shifts labels itself
    for lora in (False, True):
        if lora:
            add_lora(model, 2, alpha=4)
            for name, parameter in model.named_parameters():
                if 'lora_B' in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        network.zero_grad()
        network(text, labels=labels, use_cache=False).loss.backward()
        expected = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        for model.whole, recompute in ((False, False), (True, False), (False, True)):
            model.gradient_checkpointing = recompute
            network.zero_grad()
            loss = LeanLoss(model)(idx, targets)
            loss.backward()
            assert loss.item() == pytest.approx(network(text, labels=labels, use_cache=False).loss.item(), rel=1e-5)
            found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                scale = gradient.abs().max().clamp(min=1e-3)  # that of a key's bias is zero but for rounding
                assert (found[name] - gradient).abs().max() <= 1e-4 * scale, name
        network.activation_checkpointing_disable()
        model.whole = False
    plain = HubModel(copy.deepcopy(random_network(kind))).eval()
    plain.load_state_dict(merged_state_dict(model))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(idx, idx)[0], model(idx, idx)[0], atol=1e-3, rtol=0)


def test_the_loss_is_right_in_bfloat16():
    for kind in ('gemma2', 'phi'):
        model = HubModel(copy.deepcopy(random_network(kind))).train()
        idx, targets = torch.randint(3, 61, (2, 8, 40))  # more tokens than a chunk has
        results = []
        for loss_of in (LeanLoss(model), lambda *batch, model=model: model(*batch)[1]):
            model.zero_grad()
            with torch.autocast('cpu', torch.bfloat16):
                loss = loss_of(idx, targets)
            loss.backward()
            results.append((loss.item(), model.network.get_output_embeddings().weight.grad))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
        assert torch.allclose(results[0][1], results[1][1], rtol=0.03, atol=0.003)


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['llama', 'gemma2', 'gpt_neox', 'opt'])
def test_a_run_gives_the_weights_of_a_plain_loop_with_transformers(kind):
    before = save_model(kind)
    network = copy.deepcopy(before).train()
    steps = {'max_iters': 4, 'gradient_accumulation_steps': 2, 'decay_lr': False, 'learning_rate': 1e-4}
    fine_tune(**steps)
    parameters = list(network.parameters())
    groups = [
        {'params': [p for p in parameters if p.dim() >= 2], 'weight_decay': 0.1},
        {'params': [p for p in parameters if p.dim() < 2], 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    for module in network.modules():  # OPT's own is 0.1; a run has none unless it is asked for
        if hasattr(module, 'dropout') and isinstance(module.dropout, float):
            module.dropout = 0.0
    blocks = make_blocks(open_tokens('rhymes', 'train'), None, 16)
    for step in range(4):
        for number in (2 * step, 2 * step + 1):
            x, y = training_batch(blocks, 8, number, 1337)
            text = torch.cat([x, y[:, -1:]], 1)
            (network(text, labels=text, use_cache=False).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    trained = load_model('resume', 'out', device='cpu')[0].network
    for (name, weight), expected, old in zip(trained.named_parameters(), parameters, before.parameters(), strict=True):
        if 'k_proj.bias' not in name and 'query_key_value.bias' not in name:  # with gradients of rounding errors only
            change = (expected - old).abs().mean()
            assert change > 1e-5, name
            assert (weight - expected).abs().mean() < 0.01 * change, name
    idx = torch.randint(3, 200, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(trained(idx).logits, network.eval()(idx).logits, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ('kind', 'more'),
    [
        ('gemma2', {}),
        ('gpt_neox', {'dropout': 0.2}),
        ('llama', {'lora_rank': 2, 'dropout': 0.2, 'gradient_checkpointing': True}),
        ('mixtral', {'freeze': 1}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, more):
    save_model(kind)
    fine_tune(out_dir='whole', **more)
    fine_tune(out_dir='halved', max_iters=4, **more)
    fine_tune(out_dir='halved', init_from='resume', **more)
    assert max(losses('halved')) == 8
    assert_same_run('whole', 'halved')


def test_what_is_frozen_stays_and_lora_trains_only_its_additions():
    save_model('opt')
    before = load_model('base', device='cpu')[0].state_dict()
    fine_tune(freeze=2, out_dir='frozen')
    changed = {name for name, tensor in weights('frozen').items() if not torch.equal(tensor, before[name])}
    assert changed and all('layers.2' in name or 'final_layer_norm' in name or 'project' in name for name in changed)
    fine_tune(lora_rank=2, out_dir='lora')
    kept = weights('lora', 'last.pt')
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())
    changed = {name for name, tensor in weights('lora').items() if not torch.equal(tensor, before[name])}
    added = {name.removesuffix('lora_A') + 'weight' for name in checkpoint('lora')['lora'] if name.endswith('lora_A')}
    assert changed == added and len(added) == 3 * 6
    with pytest.raises(UserError, match='--freeze=4: the model has only 3 blocks'):
        fine_tune(freeze=4)


def test_what_a_run_says_and_refuses(capsys):
    save_model('gpt_neox')
    fine_tune(dropout=0.1, sample_prompt='The cat', max_iters=2, block_size=1024)  # more than the model's 48
    printed = capsys.readouterr()
    assert "--dropout=0.1 is what models of type 'gpt_neox' call attention_dropout, hidden_dropout" in printed.err
    assert '768 per step' in printed.out and "sample: 'The cat" in printed.out
    fine_tune(init_from='resume', eval_only=True, block_size=1024)
    with pytest.raises(UserError, match="muon is for models of the GPT-2 architecture; base is of type 'gpt_neox'"):
        fine_tune(optimizer='muon')
    with pytest.raises(UserError, match=r'batch_size=100000000 would take about .* would fit'):
        fine_tune(batch_size=10**8)
    with open('data/rhymes/meta.json') as file:
        assert json.load(file)['tokenizer']['kind'] == 'bpe'
    prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='others', train_bpe=300))
    with pytest.raises(UserError, match='made with another tokenizer than the one of base'):
        fine_tune(dataset='others')
    Path('data/rhymes/meta.json').unlink()
    fine_tune(overwrite=True, max_iters=1)
    assert 'data/rhymes does not say with which tokenizer it was made; its tokens are taken for those of base' in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize('kind', ['llama', 'gemma2', 'opt', 'mixtral'])
def test_the_memory_that_a_batch_takes_is_known_before(kind):
    """The estimate for four texts is what autograd keeps for them, counted here with a hook."""
    model = HubModel(copy.deepcopy(random_network(kind, max_position_embeddings=64))).train()
    idx, parameters, kept = torch.randint(3, 61, (4, 64)), {p.data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    estimate = bytes_of_fine_tuning(model, measure_kept_numbers(model), False, 4, batch_size=4)[1]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LeanLoss(model)(idx, idx)
    counted = sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)
    assert 0.8 < estimate / counted < 1.25


def test_two_processes_compute_the_losses_of_one(tmp_path):
    save_model('gemma2')
    settings = SMALL | {'init_from': 'base', 'lora_rank': 2, 'gradient_checkpointing': True, 'max_iters': 6}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(PROJECT / 'train.py'), *(f'--{name}={value}' for name, value in settings.items()), '--out_dir=two']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    run(**settings, out_dir='one')
    assert list(losses('two').values()) == pytest.approx(list(losses('one').values()), abs=1e-5)
    for a, b in zip(evaluations('one').values(), evaluations('two').values(), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


# Afterwards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['llama', 'gemma2', 'gpt_neox', 'opt', 'mixtral'])
def test_an_exported_model_has_the_same_logprobs_in_transformers(kind, capsys):
    save_model(kind)
    theirs = AutoTokenizer.from_pretrained('base')
    theirs.chat_template = CHAT
    theirs.save_pretrained('base')
    with open('base/generation_config.json', 'w') as file:
        json.dump(GENERATION, file)
    fine_tune(lora_rank=2)
    capsys.readouterr()
    export.main(export.Settings(out_dir='out', folder='exported'))
    assert 'differs by more than 0\n' in capsys.readouterr().out
    model, tokenizer, _ = load_model('resume', 'out', device='cpu')
    network, again = AutoModelForCausalLM.from_pretrained('exported'), AutoTokenizer.from_pretrained('exported')
    ids = again.encode('The cat went over the hill.')
    assert ids == tokenizer.encode_prompt('The cat went over the hill.')
    idx = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(
            model(idx, idx)[0].log_softmax(-1), network.eval()(idx).logits.log_softmax(-1), atol=1e-5, rtol=0
        )
    with open('exported/generation_config.json') as file:
        assert json.load(file) == GENERATION
    turn = [{'role': 'user', 'content': 'Hi'}]
    assert again.apply_chat_template(turn, tokenize=False) == '<user>Hi'
    with open('exported/README.md') as file:
        card = file.read()
    assert f'A model of type `{network.config.model_type}` of' in card and 'GPT-2 of' not in card
    export.main(export.Settings(init_from='exported', folder='half', dtype='bfloat16'))
    assert AutoModelForCausalLM.from_pretrained('half', dtype='auto').dtype == torch.bfloat16


DAMAGES = {
    'a list': (lambda c: c.update(hub_config=[1]), 'what it says about its model cannot be read'),
    'no JSON': (lambda c: c.update(hub_config='{'), 'not JSON'),
    'nested': (lambda c: c.update(hub_config='[' * 200_000), 'nested too deeply'),
    'JSON list': (lambda c: c.update(hub_config='[]'), 'not a JSON object'),
    'generation_config': (lambda c: c.update(generation_config=[1]), 'what it says about its model cannot be read'),
    'no type': (lambda c: change_config(c, model_type=None), 'cannot load this model'),
    'unknown type': (lambda c: change_config(c, model_type='mine'), 'cannot load this model'),
    'no language model': (lambda c: change_config(c, model_type='vit'), "'vit', which is no causal language model"),
    'layers': (lambda c: change_config(c, num_hidden_layers=10**9), 'more layers than there are weights'),
    'vocabulary': (lambda c: change_config(c, vocab_size=2**40), 'weights are missing'),
    'heads': (
        lambda c: change_config(c, num_attention_heads=0),
        'cannot load this model',
    ),
    'width': (lambda c: change_config(c, hidden_size=16), 'weights are missing or of another shape'),
    'a weight less': (lambda c: c['model'].pop('network.model.norm.weight'), 'weights are missing'),
    'no weights': (lambda c: c.update(model={}), 'more layers than there are weights'),
    'weights in a list': (lambda c: c.update(model=[1]), 'it contains a list'),
    'int8': (lambda c: c['model'].update(x=torch.zeros(2, dtype=torch.int8)), 'must be plain floats'),
    'tokenizer': (lambda c: c.update(tokenizer={'kind': 'pieces', 'json': '[]'}), 'cannot read the tokenizer'),
}


def change_config(checkpoint, **changes):
    config = json.loads(checkpoint['hub_config'])
    checkpoint['hub_config'] = json.dumps({name: v for name, v in (config | changes).items() if v is not None})


def test_a_damaged_checkpoint_is_one_line():
    save_model('llama')
    fine_tune(max_iters=1)
    for name, (spoil, words) in DAMAGES.items():
        damaged = checkpoint('out', 'ckpt.pt')
        spoil(damaged)
        torch.save(damaged, 'damaged.pt')
        with pytest.raises(UserError, match=words) as caught:
            load_model('damaged.pt', device='cpu')
        assert '\n' not in str(caught.value), name
        assert len(str(caught.value)) < 600, name


def train_until_killed(step, **settings):
    """Train in a process of its own, which is killed as it begins its n-th step."""

    def kill_myself(self, batches, steps=itertools.count(), usual=train.Run.step):  # noqa: B008 (called once)
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(self, batches)

    def child():
        train.Run.step = kill_myself
        fine_tune(**settings)

    process = multiprocessing.get_context('fork').Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_lora_killed_three_times_equals_an_uninterrupted_run():
    save_model('llama')
    more = {'lora_rank': 2, 'dropout': 0.2, 'save_interval': 2}
    fine_tune(out_dir='whole', **more)
    for kills, reached in ((1, 0), (3, 2), (3, 4)):
        is_new = reached == 0
        train_until_killed(kills, out_dir='killed', init_from='base' if is_new else 'resume', **more)
        assert checkpoint('killed')['iter_num'] == reached
    fine_tune(out_dir='killed', init_from='resume', **more)
    assert_same_run('whole', 'killed')
