"""LoRA adapters as the peft library saves them: merged into the model that they adapt, with peft's numbers."""

import copy
import json
import math

import pytest
import torch
from helpers.models import random_gpt
from helpers.networks import random_network
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from common.errors import UserError
from common.notes import forget_notes
from lm.checkpoint import load_model, save_pretrained
from lm.tokenizer import train_bpe

IDX = torch.arange(24).view(2, 12)
TEXT = 'The cat sat on the mat, and the mat sat on the floor.'


@pytest.fixture
def base(tmp_path):
    forget_notes()
    tokenizer = train_bpe([TEXT] * 5, 270)
    save_pretrained(random_gpt(vocab_size=270, seed=4), tmp_path / 'base', tokenizer)
    return tmp_path / 'base'


def write_adapter(base, folder, **settings):
    """Train nothing: give every adapter of peft random weights, save them, and return peft's logits."""
    peft = pytest.importorskip('peft')
    model = GPT2LMHeadModel.from_pretrained(base).eval()
    defaults = {'r': 4, 'lora_alpha': 16, 'target_modules': ['c_attn', 'c_proj', 'c_fc'], 'fan_in_fan_out': True}
    model = peft.get_peft_model(model, peft.LoraConfig(task_type='CAUSAL_LM', **{**defaults, **settings})).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if 'lora_' in name or 'modules_to_save' in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(IDX).logits


def our_logits(folder):
    model, tokenizer, _ = load_model(folder, device='cpu')
    with torch.no_grad():
        return model(IDX, IDX)[0], tokenizer


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'use_rslora': True, 'target_modules': ['c_attn']},
        {'alpha_pattern': {'h.1.attn.c_attn': 32}, 'rank_pattern': {'mlp.c_fc': 2}},
        {'target_modules': ['c_attn', 'wpe']},
        {'modules_to_save': ['ln_f'], 'bias': 'all'},
    ],
    ids=lambda settings: ' '.join(settings) or 'plain',
)
def test_a_lora_adapter_is_merged_with_the_numbers_of_peft(base, tmp_path, settings, capsys):
    expected = write_adapter(base, tmp_path / 'adapter', **settings)
    capsys.readouterr()
    logits, tokenizer = our_logits(tmp_path / 'adapter')
    assert (logits - expected).abs().max() < 1e-4
    assert (logits - our_logits(base)[0]).abs().max() > 0.01
    assert tokenizer.vocab_size == 270  # the base model's
    assert f'is a LoRA adapter: it is merged into {base}' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'settings'),
    [
        ('llama', {'target_modules': 'all-linear'}),
        ('llama', {'target_modules': ['q_proj', 'embed_tokens', 'lm_head'], 'modules_to_save': ['norm']}),
        ('gemma2', {'target_modules': ['q_proj', 'down_proj'], 'use_rslora': True}),  # its output layer is tied
        ('gpt_neox', {'target_modules': ['query_key_value', 'dense'], 'bias': 'all'}),
        ('opt', {'target_modules': ['fc1', 'k_proj'], 'rank_pattern': {'layers.1.fc1': 2}}),
        ('gpt2', {'target_modules': ['c_attn', 'c_fc'], 'fan_in_fan_out': True}),  # of a shape that model.py lacks
    ],
)
def test_an_adapter_of_another_architecture(tmp_path, kind, settings):
    peft = pytest.importorskip('peft')
    forget_notes()
    more = {'n_inner': 48, 'n_embd': 32, 'n_layer': 2, 'n_head': 2} if kind == 'gpt2' else {}
    network = copy.deepcopy(random_network(kind, vocab_size=270, **more))
    network.save_pretrained(tmp_path / 'base')
    train_bpe([TEXT] * 5, 270).save(tmp_path / 'base')
    model = peft.get_peft_model(network, peft.LoraConfig(task_type='CAUSAL_LM', r=4, lora_alpha=16, **settings))
    model.peft_config['default'].base_model_name_or_path = str(tmp_path / 'base')
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    model.eval().save_pretrained(tmp_path / 'adapter')
    with torch.no_grad():
        expected = model(IDX).logits
    logits, tokenizer = our_logits(tmp_path / 'adapter')
    assert (logits - expected).abs().max() < 1e-4
    assert (logits - our_logits(tmp_path / 'base')[0]).abs().max() > 0.01
    assert tokenizer.vocab_size == 270


@pytest.mark.slow
def test_adapters_of_another_architecture_that_cannot_be_merged(tmp_path):
    network = random_network('gemma2', vocab_size=270)
    network.save_pretrained(tmp_path / 'base')
    train_bpe([TEXT] * 5, 270).save(tmp_path / 'base')
    (tmp_path / 'adapter').mkdir()
    config = {'peft_type': 'LORA', 'base_model_name_or_path': str(tmp_path / 'base'), 'r': 2, 'lora_alpha': 3}
    (tmp_path / 'adapter' / 'adapter_config.json').write_text(json.dumps(config))
    path, place = tmp_path / 'adapter' / 'adapter_model.safetensors', 'base_model.model.model'
    for weights, words in (
        ({'embed_tokens.lora_embedding_A': (2, 270), 'embed_tokens.lora_embedding_B': (32, 2)}, 'differently'),
        ({'layers.9.mlp.up_proj.lora_A.weight': (2, 32), 'layers.9.mlp.up_proj.lora_B.weight': (64, 2)}, 'not have'),
        ({'norm.weight': (7,)}, 'is it an adapter of another model'),
    ):
        save_file({f'{place}.{name}': torch.ones(shape) for name, shape in weights.items()}, path)
        with pytest.raises(UserError, match=words):
            load_model(tmp_path / 'adapter', device='cpu')
    save_file({f'{place}.embed_tokens.weight': torch.randn(273, 32)}, path)  # three tokens more
    model = load_model(tmp_path / 'adapter', device='cpu')[0]
    assert model.config.vocab_size == len(model.network.get_output_embeddings().weight) == 273


def test_an_adapter_with_embeddings_for_an_added_token(base, tmp_path):
    """As peft saves them if the tokenizer grew: the whole matrix, under both of its names."""
    write_adapter(base, tmp_path / 'adapter')
    path = tmp_path / 'adapter' / 'adapter_model.safetensors'
    rows, place = torch.randn(271, 16), 'base_model.model'
    save_file({f'{place}.transformer.wte.weight': rows, f'{place}.lm_head.weight': rows.clone()}, path)
    tokenizer = json.loads((base / 'tokenizer.json').read_text())
    tokenizer['added_tokens'].append({**tokenizer['added_tokens'][0], 'id': 270, 'content': '<|new|>'})
    (tmp_path / 'adapter' / 'tokenizer.json').write_text(json.dumps(tokenizer))
    model, tokenizer, _ = load_model(tmp_path / 'adapter', device='cpu')
    assert torch.equal(model.lm_head.weight, rows)
    assert (model.n_ids, tokenizer.encode('<|new|>')) == (271, [270])
    save_file({f'{place}.transformer.wte.weight': rows, f'{place}.lm_head.weight': rows + 1}, path)
    with pytest.raises(UserError, match='output layer and the token embeddings differently'):
        load_model(tmp_path / 'adapter', device='cpu')


def test_the_formula_without_peft(base, tmp_path):
    A, B = torch.randn(2, 16), torch.randn(48, 2)
    place = 'base_model.model.transformer.h.0.attn.c_attn'
    (tmp_path / 'adapter').mkdir()
    save_file(
        {f'{place}.lora_A.weight': A, f'{place}.lora_B.weight': B}, tmp_path / 'adapter/adapter_model.safetensors'
    )
    config = {'peft_type': 'LORA', 'base_model_name_or_path': str(base), 'r': 2, 'lora_alpha': 3}
    (tmp_path / 'adapter' / 'adapter_config.json').write_text(json.dumps(config))
    plain, adapted = (load_model(folder, device='cpu')[0] for folder in (base, tmp_path / 'adapter'))
    change = adapted.transformer.h[0].attn.c_attn.weight - plain.transformer.h[0].attn.c_attn.weight
    assert torch.allclose(change, 3 / 2 * B @ A, atol=1e-5)
    config |= {'use_rslora': True}
    (tmp_path / 'adapter' / 'adapter_config.json').write_text(json.dumps(config))
    adapted = load_model(tmp_path / 'adapter', device='cpu')[0]
    change = adapted.transformer.h[0].attn.c_attn.weight - plain.transformer.h[0].attn.c_attn.weight
    assert torch.allclose(change, 3 / math.sqrt(2) * B @ A, atol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'peft_type': 'IA3'}, "peft_type='IA3'.*merge_and_unload"),
        ({'use_dora': True}, 'use_dora=True.*merge_and_unload'),
        ({'base_model_name_or_path': None}, 'names no base_model_name_or_path'),
    ],
)
def test_other_adapters_are_refused_with_a_way_out(base, tmp_path, changes, words):
    write_adapter(base, tmp_path / 'adapter')
    path = tmp_path / 'adapter' / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=words):
        load_model(tmp_path / 'adapter', device='cpu')


def test_an_adapter_of_another_model_is_refused(base, tmp_path):
    write_adapter(base, tmp_path / 'adapter')
    path = tmp_path / 'adapter' / 'adapter_model.safetensors'
    state = load_file(path)
    name = next(name for name in state if name.endswith('c_attn.lora_A.weight'))
    save_file(state | {name: torch.zeros(4, 32)}, path)
    with pytest.raises(UserError, match='another model'):
        load_model(tmp_path / 'adapter', device='cpu')
