"""Models on disk: Hugging Face folders old and new, nanoGPT's checkpoints both ways, and files that must be refused."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from helpers.models import needs_gpt2_vocabulary, random_gpt
from helpers.scripts import PROJECT
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from common.errors import UserError
from lm.checkpoint import load_model, save_checkpoint, save_pretrained
from lm.tokenizer import CharTokenizer, GPT2Tokenizer, train_bpe
from model import GPT

IDX = torch.arange(24).view(2, 12)
TEXT = ['The cat sat on the mat, and the mat sat on the floor.', 'A cow and a crow went for a walk.'] * 5


def logits(model, idx=IDX):
    with torch.no_grad():
        return model(idx, idx)[0]


@pytest.fixture
def folder(tmp_path):
    """A folder as transformers saves it today: keys with the prefix, no mask buffers."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    theirs = GPT2LMHeadModel(config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / 'model')
    torch.save(theirs.state_dict(), tmp_path / 'state.pt')
    torch.save(theirs(IDX).logits.detach(), tmp_path / 'logits.pt')
    return tmp_path / 'model'


def expected_logits(folder):
    return torch.load(folder.parent / 'logits.pt')


def change_config(folder, **changes):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_of_todays_transformers(folder):
    assert all(name.startswith('transformer.') for name in load_file(folder / 'model.safetensors'))
    model, tokenizer, checkpoint = load_model(folder, device='cpu')
    assert torch.allclose(logits(model), expected_logits(folder), atol=1e-5)
    assert (tokenizer, checkpoint, model.gelu, model.training) == (None, None, 'tanh', False)
    assert torch.equal(logits(GPT.from_pretrained(folder).eval()), logits(model))


def test_a_folder_as_the_real_gpt2_on_the_hub(folder):
    """Keys without the prefix, causal masks as buffers, hardly anything in config.json."""
    state = {
        name.removeprefix('transformer.'): tensor for name, tensor in load_file(folder / 'model.safetensors').items()
    }
    for layer in range(2):
        state[f'h.{layer}.attn.bias'] = torch.ones(16, 16).tril().view(1, 1, 16, 16)
        state[f'h.{layer}.attn.masked_bias'] = torch.tensor(-1e4)
    save_file(state, folder / 'model.safetensors')
    config = {'model_type': 'gpt2', 'vocab_size': 61, 'n_ctx': 16, 'n_embd': 16, 'n_layer': 2, 'n_head': 2}
    (folder / 'config.json').write_text(json.dumps(config))
    assert torch.allclose(logits(load_model(folder, device='cpu')[0]), expected_logits(folder), atol=1e-5)


def test_an_old_pytorch_model_bin(folder):
    (folder / 'model.safetensors').unlink()
    (folder.parent / 'state.pt').rename(folder / 'pytorch_model.bin')  # with lm_head.weight, tied
    assert torch.allclose(logits(load_model(folder, device='cpu')[0]), expected_logits(folder), atol=1e-5)


def test_weights_in_several_shards(folder):
    state = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    names = sorted(state)
    files = {'model-00001-of-00002.safetensors': names[::2], 'model-00002-of-00002.safetensors': names[1::2]}
    for file, part in files.items():
        save_file({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    assert torch.allclose(logits(load_model(folder, device='cpu')[0]), expected_logits(folder), atol=1e-5)


def test_the_exact_gelu_is_remembered(folder):
    change_config(folder, activation_function='gelu')
    model = load_model(folder, device='cpu')[0]
    assert model.gelu == 'none'
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.allclose(logits(model), logits_of(theirs), atol=1e-5)
    assert not torch.allclose(logits(model), expected_logits(folder), atol=1e-5)


def logits_of(theirs):
    with torch.no_grad():
        return theirs(IDX).logits


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('gelu', ['tanh', 'none'])
def test_transformers_loads_what_we_write(tmp_path, bias, gelu):
    tokenizer = train_bpe(TEXT, 270)
    model = random_gpt(vocab_size=288, n_ids=tokenizer.vocab_size, bias=bias, gelu=gelu)
    save_pretrained(model, tmp_path, tokenizer)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert theirs.config.vocab_size == tokenizer.vocab_size  # the padding is left out
    ours = logits(model)[..., : tokenizer.vocab_size]
    assert torch.allclose(logits_of(theirs), ours, atol=1e-5)
    ids = AutoTokenizer.from_pretrained(tmp_path)(TEXT[0])['input_ids']
    assert ids == tokenizer.encode(TEXT[0])
    again, same_tokenizer, _ = load_model(tmp_path, device='cpu')
    assert torch.allclose(logits(again), ours, atol=1e-6)
    assert same_tokenizer.contents == tokenizer.contents


def test_sixteen_bit_folders_load_as_float32(tmp_path):
    model = random_gpt()
    save_pretrained(model, tmp_path, dtype=torch.float16)
    assert load_file(tmp_path / 'model.safetensors')['transformer.wte.weight'].dtype == torch.float16
    again = load_model(tmp_path, device='cpu')[0]
    assert again.lm_head.weight.dtype == torch.float32
    assert torch.allclose(logits(again), logits(model), atol=0.05)
    assert load_model(tmp_path, device='cpu', dtype='bfloat16')[0].lm_head.weight.dtype == torch.bfloat16


# nanoGPT ------------------------------------------------------------------------------------------------------------


def nanogpt_checkpoint(model, **changes):
    """What nanoGPT's train.py saves, by its documented keys."""
    names = ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'vocab_size', 'dropout')
    return {
        'model': {f'_orig_mod.{name}': tensor for name, tensor in model.state_dict().items()},
        'optimizer': {},
        'model_args': {name: asdict(model.config)[name] for name in names},
        'iter_num': 3,
        'best_val_loss': torch.tensor(1.5),
        'config': {'dataset': 'shakespeare_char'},
    } | changes


def nanogpt_logits(state, config, idx):
    """GPT-2 as nanoGPT computes it, from the state dict by name: exact GELU, attention written out."""
    C, nh = config['n_embd'], config['n_head']
    T = idx.shape[1]

    def linear(x, name):
        return F.linear(x, state[f'{name}.weight'], state.get(f'{name}.bias'))

    def norm(x, name):
        return F.layer_norm(x, (C,), state[f'{name}.weight'], state.get(f'{name}.bias'), 1e-5)

    x = state['transformer.wte.weight'][idx] + state['transformer.wpe.weight'][:T]
    for layer in range(config['n_layer']):
        h = f'transformer.h.{layer}'
        q, k, v = (
            part.unflatten(-1, (nh, C // nh)).transpose(1, 2)
            for part in linear(norm(x, f'{h}.ln_1'), f'{h}.attn.c_attn').split(C, -1)
        )
        weights = (q @ k.mT / (C // nh) ** 0.5).masked_fill(torch.ones(T, T).tril() == 0, -torch.inf).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f'{h}.attn.c_proj')
        x = x + linear(F.gelu(linear(norm(x, f'{h}.ln_2'), f'{h}.mlp.c_fc')), f'{h}.mlp.c_proj')
    return norm(x, 'transformer.ln_f') @ state['lm_head.weight'].T


@pytest.mark.parametrize('bias', [True, False])
def test_a_nanogpt_checkpoint_loads_and_ours_has_its_layout(tmp_path, monkeypatch, bias):
    monkeypatch.chdir(tmp_path)
    source = random_gpt(gelu='none', bias=bias)
    theirs = nanogpt_checkpoint(source)
    (tmp_path / 'out').mkdir()
    torch.save(theirs, tmp_path / 'out' / 'ckpt.pt')
    model, _, checkpoint = load_model('resume', device='cpu')
    assert model.gelu == 'none'
    assert (checkpoint['iter_num'], checkpoint['best_val_loss'].item()) == (3, 1.5)
    assert torch.allclose(logits(model), nanogpt_logits(source.state_dict(), theirs['model_args'], IDX), atol=1e-4)

    rest = {name: theirs[name] for name in ('optimizer', 'iter_num', 'best_val_loss', 'config')}
    save_checkpoint(tmp_path / 'ours' / 'ckpt.pt', model, None, **rest)
    ours = torch.load(tmp_path / 'ours' / 'ckpt.pt', weights_only=True)
    assert ours.keys() >= theirs.keys()
    assert ours['model_args'] == theirs['model_args']  # nothing more: nanoGPT calls GPTConfig(**model_args)
    assert ours['model'].keys() == {name.removeprefix('_orig_mod.') for name in theirs['model']}
    assert torch.allclose(nanogpt_logits(ours['model'], ours['model_args'], IDX), logits(model), atol=1e-4)
    assert torch.equal(logits(load_model('resume', 'ours', device='cpu')[0]), logits(model))
    assert torch.equal(logits(load_model('ours', device='cpu')[0]), logits(model))  # a folder with a ckpt.pt


def test_a_nanogpt_checkpoint_finds_its_characters_beside_its_data(tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(tmp_path)
    chars = [chr(ord('A') + i) for i in range(61)]
    meta = {'vocab_size': 61, 'itos': dict(enumerate(chars)), 'stoi': {c: i for i, c in enumerate(chars)}}
    (tmp_path / 'data' / 'shakespeare_char').mkdir(parents=True)
    (tmp_path / 'data' / 'shakespeare_char' / 'meta.pkl').write_bytes(pickle.dumps(meta))
    (tmp_path / 'out').mkdir()
    torch.save(nanogpt_checkpoint(random_gpt()), tmp_path / 'out' / 'ckpt.pt')
    tokenizer = load_model('resume', device='cpu')[1]
    assert tokenizer.decode(tokenizer.encode('HELLO')) == 'HELLO'


@needs_gpt2_vocabulary
def test_a_padded_gpt2_vocabulary_is_masked(tmp_path):
    save_checkpoint(tmp_path / 'ckpt.pt', random_gpt(vocab_size=50304), None)
    model, tokenizer, _ = load_model('resume', tmp_path, device='cpu')
    assert isinstance(tokenizer, GPT2Tokenizer)
    assert model.n_ids == 50257
    assert (logits(model)[..., 50257:] == -torch.inf).all()


def test_a_checkpoint_brings_its_tokenizer(tmp_path):
    for tokenizer in (CharTokenizer('abc é'), train_bpe(TEXT, 260)):
        model = random_gpt(vocab_size=tokenizer.vocab_size + 3)
        save_checkpoint(tmp_path / 'ckpt.pt', model, tokenizer)
        again, same, _ = load_model('resume', tmp_path, device='cpu')
        assert same.contents == tokenizer.contents
        assert again.n_ids == tokenizer.vocab_size


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'changes',
    [
        {'scale_attn_by_inverse_layer_idx': True},
        {'scale_attn_weights': False},
        {'activation_function': 'relu'},
        {'layer_norm_epsilon': 1e-2},
    ],
)
@torch.no_grad()
def test_variants_that_model_py_does_not_compute_are_left_to_transformers(folder, changes):
    change_config(folder, **changes)
    idx = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(1))
    model = load_model(folder, device='cpu')[0]
    assert not isinstance(model, GPT)
    expected = GPT2LMHeadModel.from_pretrained(folder).eval()(idx).logits
    torch.testing.assert_close(model.logits(model.hidden(idx)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'model_type': 'llama'}, 'more layers than there are weights'),
        ({'add_cross_attention': True}, 'weights are missing'),
        ({'n_inner': 48}, r'of another shape .*\.mlp\.'),
        ({'tie_word_embeddings': False}, r'weights are missing .* lm_head'),
        ({'n_layer': 3}, 'lacks weights: transformer.h.2'),
        ({'n_layer': 1}, 'unknown weights: transformer.h.1'),
        ({'n_positions': 20}, r'wpe.weight is \(16, 16\)'),
        ({'n_head': 3}, 'n_head=3'),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused_by_name(folder, changes, words):
    change_config(folder, **changes)
    with pytest.raises(UserError, match=words):
        load_model(folder, device='cpu')


def test_an_inner_width_that_is_the_usual_one_is_not_refused(folder):
    change_config(folder, n_inner=64)
    load_model(folder, device='cpu')


def test_an_untied_output_layer_is_refused(folder):
    state = load_file(folder / 'model.safetensors')
    state['lm_head.weight'] = state['transformer.wte.weight'] + 1
    save_file(state, folder / 'model.safetensors')
    with pytest.raises(UserError, match='untied'):
        load_model(folder, device='cpu')


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(folder, tmp_path, share):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r'model\.safetensors is damaged'):
        load_model(folder, device='cpu')
    save_checkpoint(tmp_path / 'ckpt.pt', random_gpt(), None)
    path = tmp_path / 'ckpt.pt'
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r'ckpt\.pt cannot be read'):
        load_model('resume', tmp_path, device='cpu')


@pytest.mark.parametrize('content', [{'a': 1}, [1, 2], {'model': {}, 'model_args': {'depth': 3}}, torch.zeros(3)])
def test_foreign_checkpoints_are_refused(tmp_path, content):
    torch.save(content, tmp_path / 'ckpt.pt')
    with pytest.raises(UserError, match='is not a checkpoint'):
        load_model('resume', tmp_path, device='cpu')


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    content = nanogpt_checkpoint(random_gpt())
    content['model_args']['n_embd'] = 32
    torch.save(content, tmp_path / 'ckpt.pt')
    with pytest.raises(UserError, match=r'wte\.weight is \(61, 16\), but its config means \(61, 32\)'):
        load_model('resume', tmp_path, device='cpu')


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / 'ckpt.pt', random_gpt(vocab_size=40), CharTokenizer(map(chr, range(50, 100))))
    with pytest.raises(UserError, match='do not belong together'):
        load_model('resume', tmp_path, device='cpu')


def test_names_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match='there is no folder'):
        load_model('./nowhere')
    with pytest.raises(UserError, match='there is no checkpoint'):
        load_model('resume', tmp_path)
    with pytest.raises(UserError, match=r'it has no config\.json'):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r'only train\.py can use it'):
        load_model('scratch')
    with pytest.raises(UserError, match='neither a folder nor a valid name'):
        load_model('what is this?')


# Writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    'save',
    ["save_checkpoint('ckpt.pt', model, None)", pytest.param("save_pretrained(model, '.')", marks=pytest.mark.slow)],
)
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, save):
    """In a process of its own, whose files the system lets grow no further than 100 kB, as a full disk would."""
    code = f"""
import resource, signal, sys
from lm.checkpoint import save_checkpoint, save_pretrained
from common.errors import UserError
from helpers.models import random_gpt
model = random_gpt(n_embd=8)
{save}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model = random_gpt(n_embd=256)
try:
    {save}
except UserError as error:
    print(error)
"""
    env = os.environ | {'PYTHONPATH': f'{PROJECT}{os.pathsep}{PROJECT / "tests"}'}
    process = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith('cannot write ')
    names = {path.name for path in tmp_path.iterdir()}
    assert names in ({'ckpt.pt'}, {'model.safetensors', 'config.json'})
    assert load_model(tmp_path, device='cpu')[0].config.n_embd == 8


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = random_gpt()
    model.transformer.ln_f.weight.data[3] = torch.nan
    save_checkpoint(tmp_path / 'ckpt.pt', model, None)
    with pytest.raises(UserError, match=r'ln_f\.weight is not finite'):
        load_model('resume', tmp_path, device='cpu')


def test_a_tokenizer_beside_a_checkpoint_without_one_is_found(tmp_path):
    tokenizer = train_bpe(TEXT, 260)
    torch.save(nanogpt_checkpoint(random_gpt(vocab_size=260)), tmp_path / 'ckpt.pt')
    tokenizer.save(tmp_path)
    assert load_model('resume', tmp_path, device='cpu')[1].contents == tokenizer.contents
