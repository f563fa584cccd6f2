"""What people name as their model: paths with ~, checkpoints under other names, folders that are no model."""

import json
import pickle
from dataclasses import dataclass

import huggingface_hub
import pytest
import torch
from helpers.models import random_gpt
from huggingface_hub.errors import GatedRepoError

import lm.locate
from common.errors import UserError
from common.notes import forget_notes
from lm.checkpoint import load_model, save_checkpoint, save_pretrained
from lm.hub_download import choose_files
from lm.settings import ModelChoice, choose_model
from lm.tokenizer import CharTokenizer, GPT2Tokenizer, tokenizer_from_folder

LETTERS = CharTokenizer('abcdefghij')


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    forget_notes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))


def a_checkpoint(path, **more):
    save_checkpoint(path, random_gpt(vocab_size=10), LETTERS, **more)


def test_a_tilde_is_the_home_folder_and_makes_no_folder(tmp_path):
    a_checkpoint('~/x/ckpt.pt')
    assert (tmp_path / 'home' / 'x' / 'ckpt.pt').exists()
    assert not (tmp_path / '~').exists()
    for arguments in (('~/x',), ('~/x/ckpt.pt',), ('resume', '~/x')):
        assert load_model(*arguments, device='cpu')[0].n_ids == 10
    save_pretrained(random_gpt(vocab_size=10), '~/folder', LETTERS)
    assert load_model('~/folder', device='cpu')[1].contents == LETTERS.contents
    chosen = choose_model(ModelChoice(out_dir='~/x'))
    assert (chosen.init_from, chosen.out_dir) == ('resume', str(tmp_path / 'home' / 'x'))


def test_a_checkpoint_under_another_name(tmp_path, capsys):
    a_checkpoint('out/last.pt')
    for name in ('out/last.pt', 'out'):
        assert load_model(name, device='cpu')[1].contents == LETTERS.contents
    assert 'out has no ckpt.pt; its last.pt is used' in capsys.readouterr().err
    a_checkpoint('out/best.pt')
    with pytest.raises(UserError, match=r'best\.pt, last\.pt; name one of them: --init_from=out/last\.pt'):
        load_model('out', device='cpu')
    a_checkpoint('out/ckpt.pt')
    assert load_model('out', device='cpu')[0].n_ids == 10


def test_a_file_that_is_no_checkpoint(tmp_path):
    save_pretrained(random_gpt(vocab_size=10), 'folder', LETTERS)
    with pytest.raises(UserError, match='is a file; give the folder that contains it'):
        load_model('folder/model.safetensors', device='cpu')


def test_a_folder_called_gpt2_that_is_no_model(tmp_path, monkeypatch, capsys):
    (tmp_path / 'gpt2').mkdir()
    (tmp_path / 'gpt2' / 'notes.txt').write_text('things to try')
    save_pretrained(random_gpt(vocab_size=10), 'cache', LETTERS)
    asked = []
    monkeypatch.setattr(lm.locate, 'download_model', lambda name, hint: asked.append(name) or tmp_path / 'cache')
    load_model('gpt2', device='cpu')
    assert asked == ['gpt2']
    assert 'the folder gpt2 here has no model in it (no config.json, no ckpt.pt), so the gpt2 of the hub is used' in (
        capsys.readouterr().err
    )
    a_checkpoint('gpt2/ckpt.pt')
    load_model('gpt2', device='cpu')
    assert asked == ['gpt2']


def test_a_folder_called_tiny_that_is_no_model(tmp_path, capsys):
    (tmp_path / 'tiny').mkdir()
    assert load_model('tiny', device='cpu')[1].eot is not None
    assert 'the tiny of this project is used' in capsys.readouterr().err


def test_another_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'empty is not a model folder: it has no config\.json'):
        load_model('empty', device='cpu')


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        *[(name, 'gpt2') for name in ('gpt-2', 'GPT2', 'gpt2small', 'openai-community/gpt2')],
        *[('gpt2_medium', 'gpt2-medium'), ('./gpt2-XL', 'gpt2-xl'), ('tiny_stories', 'tiny-stories')],
    ],
)
def test_a_name_that_is_nearly_that_of_a_model_gets_the_right_one(monkeypatch, name, meant):
    offline(monkeypatch, OSError('no network'))
    with pytest.raises(UserError, match=f'did you mean --init_from={meant}\\?$'):
        lm.locate.locate_model(name)


def test_a_model_that_needs_permission_is_named_so(monkeypatch):
    offline(monkeypatch, GatedRepoError.__new__(GatedRepoError))  # its __init__ wants the hub's answer
    with pytest.raises(UserError, match=r"'meta-llama/Llama-3\.2-1B' .*restricted: .* hf auth login"):
        lm.locate.locate_model('meta-llama/Llama-3.2-1B')


def offline(monkeypatch, error):
    """Let the hub answer with an error, and the cache be empty."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', fail)
    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda *_, **__: None)


def test_of_a_model_on_the_hub_one_form_of_each_file_is_needed():
    twins = [
        'pytorch_model.bin',
        'onnx/model.onnx',
        'model.gguf',
        'vocab.json',
        'merges.txt',
        'tokenizer.model',
        'x.py',
    ]
    shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    index = 'model.safetensors.index.json'
    for weights, wanted in (
        (['model.safetensors', index, *shards], ['model.safetensors']),
        ([index, *shards, 'model.fp16-00001-of-00001.safetensors'], [index, *shards]),
        ([], ['pytorch_model.bin']),
    ):
        there = ['config.json', 'tokenizer.json', *twins, *weights]
        assert sorted(choose_files(there)) == sorted(['config.json', 'tokenizer.json', *wanted])
    assert choose_files(['vocab.json', 'tokenizer.model']) == ['tokenizer.model']
    assert choose_files(['vocab.json', 'merges.txt', 'tokenizer.model']) == ['vocab.json', 'merges.txt']


def test_a_shipped_model_is_found_by_its_folder_from_anywhere_but_not_by_an_empty_name():
    assert lm.locate.locate_model('models/tiny') == lm.locate.locate_model('tiny')
    with pytest.raises(UserError, match='the name of the model is empty'):
        lm.locate.locate_model('')


@dataclass
class GPTConfig:
    """As in build-nanogpt's train_gpt2.py."""

    block_size: int = 16
    vocab_size: int = 50304
    n_layer: int = 1
    n_head: int = 2
    n_embd: int = 16


GPTConfig.__module__ = 'train_gpt2'


@dataclass
class Secrets:
    """Something else that a checkpoint may hold."""

    key: int = 1


def save_as(path, content, monkeypatch):
    """Write a file as a script called train_gpt2.py would."""
    module = type(torch)('train_gpt2')
    module.GPTConfig = GPTConfig
    monkeypatch.setitem(__import__('sys').modules, 'train_gpt2', module)
    torch.save(content, path)
    monkeypatch.delitem(__import__('sys').modules, 'train_gpt2')


def test_a_checkpoint_of_build_nanogpt_is_read(tmp_path, monkeypatch, capsys):
    model = random_gpt(vocab_size=50304, block_size=16, n_layer=1, n_head=2, n_embd=16)
    content = {'model': model.state_dict(), 'config': GPTConfig(), 'step': 19072, 'val_loss': 3.05}
    (tmp_path / 'log').mkdir()
    save_as(tmp_path / 'log' / 'model_19072.pt', content, monkeypatch)
    for name in ('log/model_19072.pt', 'log'):
        again, tokenizer, checkpoint = load_model(name, device='cpu')
        assert torch.equal(again.lm_head.weight, model.lm_head.weight)
        assert (again.gelu, again.n_ids, isinstance(tokenizer, GPT2Tokenizer)) == ('tanh', 50257, True)
        assert checkpoint['config']['n_layer'] == 1
    assert 'read as a checkpoint of build-nanogpt' in capsys.readouterr().err


def test_other_classes_in_a_checkpoint_are_refused_with_a_way_out(tmp_path):
    torch.save({'model': {}, 'config': Secrets()}, tmp_path / 'model_1.pt')
    with pytest.raises(UserError, match=r'Secrets.*never executed.*state_dict'):
        load_model('model_1.pt', device='cpu')


# nanoGPT's meta.pkl ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [50257, 50304])
def test_meta_pkl_without_characters_means_gpt2s_tokens(tmp_path, size, capsys):
    (tmp_path / 'meta.pkl').write_bytes(pickle.dumps({'vocab_size': size}))
    assert isinstance(tokenizer_from_folder(tmp_path), GPT2Tokenizer)
    assert f"its vocab_size of {size} is that of GPT-2's BPE, which is used" in capsys.readouterr().err


def test_meta_pkl_without_characters_and_of_another_size(tmp_path):
    (tmp_path / 'meta.pkl').write_bytes(pickle.dumps({'vocab_size': 100277}))
    with pytest.raises(UserError, match=r"has no 'itos'.*vocab_size is 100277"):
        tokenizer_from_folder(tmp_path)


def test_meta_pkl_with_methods_of_a_tokenizer_is_refused_in_plain_words(tmp_path):
    methods = {'vocab_size': 50257, 'encode': LETTERS.encode, 'decode': LETTERS.decode}
    (tmp_path / 'meta.pkl').write_bytes(pickle.dumps(methods))
    with pytest.raises(UserError, match=r'a method, perhaps of a tokenizer.*never executed.*delete it') as error:
        tokenizer_from_folder(tmp_path)
    assert 'getattr' not in str(error.value)
    assert json.dumps(str(error.value)).count('\\n') == 0
