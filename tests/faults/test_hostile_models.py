"""Damaged and hostile models: one line that names the true cause, exit code 2, in little time and memory."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from faults import hostile_files as make
from faults.harness import assert_one_line, run

MEMORY = 15 * 10**8  # bytes; a model of some kilobytes needs half a gigabyte, for what is imported
DEEP_OBJECT = '{"a":' * 200_000
BROKEN_SHAPE = {'n_layer': 10**5, 'n_embd': 10**9, 'vocab_size': 10**12, 'n_head': 0, 'n_positions': 2**40}


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    """A folder with a model folder and a run that have nothing wrong with them."""
    folder = tmp_path_factory.mktemp('whole')
    make.make_model_folder(folder / 'model')
    (folder / 'run').mkdir()
    make.make_run(folder / 'run')
    return folder


def check(whole, tmp_path, kind, spoil, words, script='sample.py', *more):
    """Damage a copy of the model folder or of the run, load it, and check for one line with these words."""
    folder = make.copy_tree(whole / kind, tmp_path / kind)
    spoil(folder)
    arguments = [f'--init_from={kind}', '--device=cpu', *more]
    if script == 'sample.py':
        arguments += ['--start=The fog', '--max_new_tokens=3']
    outcome = run(script, *arguments, cwd=tmp_path, seconds=30, memory=MEMORY)
    assert_one_line(outcome, *words)
    assert len(outcome.lines[0]) < 900, outcome.lines[0]
    return outcome


# config.json and the files beside it ----------------------------------------------------------------------------------

CONFIGS = {
    'nested': (make.write('config.json', make.DEEP), ['config.json is damaged', 'nested too deeply']),
    'nested objects': (make.write('config.json', DEEP_OBJECT), ['nested too deeply']),
    'a list': (make.write('config.json', '[]'), ['holds a list']),
    'null': (make.write('config.json', 'null'), ['holds null']),
    'half': (make.cut('config.json'), ['config.json is damaged', 'not JSON']),
    'empty': (make.write('config.json', ''), ['not JSON']),
    'latin-1': (make.write('config.json', b'{"a": "\xe9"}'), ['config.json is not UTF-8 text', '0xe9']),
    'a long number': (make.write('config.json', '{"n_layer": ' + '9' * 5000 + '}'), ['config.json is damaged']),
    'of another kind': (make.change_json('config.json', model_type=['gpt2'] * 10**5), ["model_type is ['gpt2'"]),
    'activation': (make.change_json('config.json', activation_function={'a': [1] * 10**6}), ['activation_function']),
    'n_inner': (make.change_json('config.json', n_inner='x' * 10**6), ['n_inner']),
    'no n_layer': (make.change_json('config.json', n_layer=None), ["lacks 'n_layer'"]),
    **{
        f'{name}={value!r}': (
            make.change_json('config.json', **{name: value}),
            ['config.json is damaged', 'whole number'],
        )
        for name, value in [
            *(('n_layer', value) for value in (10**9 * 3, -1, 2.5, '12', True, [12])),
            *(('vocab_size', value) for value in (0, 10**12, 400.0)),
            *(('n_embd', value) for value in (-16, 10**30, {'a': 1})),
        ]
    },
    'n_layer=10**5': (make.change_json('config.json', n_layer=10**5), ['100,000 layers', 'weights']),
    'n_layer=10**9': (make.change_json('config.json', n_layer=10**9), ['1,000,000,000 layers']),
    'n_layer=20': (make.change_json('config.json', n_layer=20), ['lacks weights']),
    'n_embd=2**30': (make.change_json('config.json', n_embd=2**30), ['but its config means']),
    'n_positions=2**30': (make.change_json('config.json', n_positions=2**30), ['but its config means']),
    'vocab_size=2**30': (make.change_json('config.json', vocab_size=2**30), ['but its config means']),
    'n_head=7': (make.change_json('config.json', n_head=7), ['not a multiple of n_head=7']),
    'generation_config nested': (
        make.write('generation_config.json', make.DEEP),
        ['generation_config.json is damaged'],
    ),
    'special tokens nested': (make.write('special_tokens_map.json', make.DEEP), ['special_tokens_map.json is damaged']),
    'tokenizer_config a list': (make.write('tokenizer_config.json', '[1]'), ['tokenizer_config.json is damaged']),
    'added token -1': (make.write('added_tokens.json', '{"<x>": -1}'), ['added tokens have the id -1']),
    'added token 2**32 - 1': (make.write('added_tokens.json', '{"<x>": 4294967295}'), ['4,294,967,295']),
    'added token infinite': (make.write('added_tokens.json', '{"<x>": 1e999}'), ['added tokens have the id']),
    'added token null': (make.write('added_tokens.json', '{"<x>": null}'), ['added tokens have the id None']),
}


@pytest.mark.situation('damaged or hostile config.json')
@pytest.mark.parametrize('name', CONFIGS)
def test_a_damaged_config(whole, tmp_path, name):
    check(whole, tmp_path, 'model', *CONFIGS[name])


# Weights --------------------------------------------------------------------------------------------------------------

NOT_FLOATS = ('int8', 'uint8', 'bool', 'int64', 'complex64', 'float4_e2m1fn_x2')


def as_four_bits(state):
    return {
        name: torch.zeros(tensor.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        for name, tensor in state.items()
    }


def give_name(state, name):
    state[name] = torch.zeros(3)


WEIGHTS = {
    **{
        name: (make.cast_weights(getattr(torch, name)), [f'of {name}', 'must be plain floats'])
        for name in NOT_FLOATS
        if 'float4' not in name
    },
    'float4': (make.change_weights(as_four_bits), ['of packed four-bit numbers']),
    'not finite': (make.change_weights(lambda s: {n: t * torch.nan for n, t in s.items()}), ['is not finite']),
    'float64 beyond float32': (
        make.change_weights(lambda s: {n: t.double() * 1e300 for n, t in s.items()}),
        ['finite'],
    ),
    'too large to compute with': (make.scale_weights(1e30), ['logits are not finite']),
    'header of 2**60 bytes': (make.write_header({}, size=2**60), ['header too large']),
    'header longer than the file': (make.write_header({}, size=1000), ['damaged or not a safetensors file']),
    'nested header': (make.write_header(make.DEEP.encode()), ['damaged or not a safetensors file']),
    'shape that overflows': (make.write_header(make.tensor_header([2**40, 2**40], [0, 8]), b'\0' * 8), ['overflow']),
    'shape beyond the file': (make.write_header(make.tensor_header([400, 16], [0, 8]), b'\0' * 8), ['damaged or not']),
    'negative shape': (make.write_header(make.tensor_header([-1], [0, 4]), b'\0' * 4), ['damaged or not']),
    'unknown type': (make.write_header(make.tensor_header([1], [0, 4], 'F31'), b'\0' * 4), ['damaged or not']),
    'six-bit floats': (make.write_header(make.tensor_header([4], [0, 3], 'F6_E2M3'), b'\0' * 3), ['F6_E2M3']),
    'overlapping tensors': (
        make.write_header({**make.tensor_header([2], [0, 8]), 'b': make.tensor_header([2], [4, 12])}, b'\0' * 12),
        ['damaged or not'],
    ),
    'escapes in a name': (make.change_weights(lambda s: give_name(s, '\x1b[2Jx')), ['has unknown weights']),
    'a name of a megabyte': (
        make.change_weights(lambda s: give_name(s, 'x' * 10**6)),
        ['has unknown weights: transformer.xxx'],
    ),
    'half': (make.cut('model.safetensors'), ['model.safetensors is damaged']),
    'one byte': (make.write('model.safetensors', b'x'), ['model.safetensors is damaged']),
    'a web page': (make.write('model.safetensors', '<!DOCTYPE html>' * 99), ['model.safetensors is damaged']),
    'no weights': (lambda folder: (folder / 'model.safetensors').unlink(), ['has no weights']),
    'index nested': (make.index_of(make.DEEP), ['index.json is damaged', 'nested too deeply']),
    'index of null': (make.index_of({'weight_map': None}), ['its weight_map does not say']),
    'index with null': (make.index_of({'weight_map': {'a': None}}), ['is in None, which is not the name']),
    'index with a list': (make.index_of({'weight_map': ['part.safetensors']}), ['its weight_map does not say']),
    'index above': (make.index_of({'weight_map': {'a': '../../etc/passwd'}}), ['../../etc/passwd']),
    'index absolute': (make.index_of({'weight_map': {'a': '/etc/passwd'}}), ['/etc/passwd']),
    'index of itself': (make.index_of({'weight_map': {'a': 'model.safetensors.index.json'}}), ['damaged or not']),
    'index of nothing': (make.index_of({'weight_map': {'a': 'gone.safetensors'}}), ['gone.safetensors: No such file']),
    'bin: a list': (make.as_torch_file(lambda state: list(state.values())), ['it contains a list']),
    'bin: a number': (make.as_torch_file(lambda state: {**state, 'x': 1}), ["'x' is not a tensor but a int"]),
    'bin: numbers as names': (make.as_torch_file(lambda s: dict(enumerate(s.values()))), ['0 is not a tensor']),
    'bin: sparse': (make.as_torch_file(lambda s: {n: t.to_sparse() for n, t in s.items()}), ['is sparse']),
    'bin: int8': (make.as_torch_file(lambda s: {n: t.to(torch.int8) for n, t in s.items()}), ['of int8']),
}


@pytest.mark.situation('damaged or hostile weights')
@pytest.mark.parametrize('name', WEIGHTS)
def test_damaged_weights(whole, tmp_path, name):
    outcome = check(whole, tmp_path, 'model', *WEIGHTS[name])
    assert '\x1b' not in outcome.err


@pytest.mark.situation('weights whose logits overflow', 7)
def test_logits_that_overflow_are_named_everywhere(whole, tmp_path):
    folder = make.copy_tree(whole / 'model', tmp_path / 'model')
    make.scale_weights(1e30)(folder)
    (tmp_path / 'text.txt').write_text('The fog. ' * 300)
    common = ('--init_from=model', '--device=cpu')
    for script, *arguments in (
        ('sample.py', '--start=The', '--temperature=0', '--max_new_tokens=3'),
        ('sample.py', '--start=The', '--fixed_response= fog'),
        ('sample.py', '--start=The', '--beam_width=2', '--max_new_tokens=2'),
        ('sample.py', '--start=The', '--most_probable=2', '--max_new_tokens=2'),
        ('eval.py', '--start=The', '--fixed_response= fog'),
        ('eval.py', '--text=text.txt'),
        ('visualize.py', 'layers', '--start=The fog'),
    ):
        assert_one_line(run(script, *arguments, *common, cwd=tmp_path, seconds=20), 'logits are not finite')


# Checkpoints ----------------------------------------------------------------------------------------------------------


def large_strides(tensor):
    return torch.ones(1).expand(2**30, 2**20)


def quantize(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def same_bytes(checkpoint):
    """A model of 40 layers, all of which are the same few bytes."""
    one = checkpoint['model']['transformer.h.0.mlp.c_fc.weight']
    for layer in range(40):
        checkpoint['model'][f'transformer.h.{layer}.mlp.c_fc.weight'] = one


CHECKPOINTS = {
    'a list': (make.change_checkpoint(lambda checkpoint: [1, 2]), ['it contains a list']),
    'a tensor': (make.change_checkpoint(lambda checkpoint: torch.zeros(3)), ['it contains a Tensor']),
    'without model': (
        make.change_checkpoint(lambda c: {'model_args': c['model_args']}),
        ['is not a checkpoint', 'model'],
    ),
    'model is a list': (make.set_checkpoint(model=[1]), ['it contains a list']),
    'model is None': (make.set_checkpoint(model=None), ['it contains a NoneType']),
    'model of numbers': (make.set_checkpoint(model={'a': 1}), ["'a' is not a tensor but a int"]),
    'model of lists of lists': (make.set_checkpoint(model={'a': make.laughs()}), ["'a' is not a tensor but a list"]),
    'model_args is a text': (make.set_checkpoint(model_args='x'), ['is not a checkpoint']),
    'model_args unknown': (make.set_shape(n_experts=8), ["unexpected keyword argument 'n_experts'"]),
    'config is a text': (make.set_checkpoint(config='x'), ['its config is a str']),
    'config is a list': (make.set_checkpoint(config=[['a', 1]]), ['its config is a list']),
    'gelu of lists of lists': (make.set_checkpoint(gelu=make.laughs(28)), ['is neither tanh nor none']),
    'tokenizer is a number': (make.set_checkpoint(tokenizer=5), ['of an unknown kind']),
    'tokenizer nested': (make.set_checkpoint(tokenizer={'kind': 'bpe', 'json': make.DEEP}), ['nested too deeply']),
    'tokenizer a list': (make.set_checkpoint(tokenizer={'kind': 'bpe', 'json': '[]'}), ['not a JSON object']),
    'characters twice': (make.set_checkpoint(tokenizer={'kind': 'char', 'chars': ['a', 'a']}), ['are the same']),
    'characters of numbers': (make.set_checkpoint(tokenizer={'kind': 'char', 'chars': [1]}), ['single characters']),
    'n_layer=10**9': (make.set_shape(n_layer=10**9), ['1,000,000,000 layers']),
    'n_layer=10**12': (make.set_shape(n_layer=10**12), ['n_layer is 1000000000000', 'whole number']),
    'n_layer of lists of lists': (make.set_shape(n_layer=make.laughs()), ['n_layer is [[[']),
    'dropout of text': (make.set_shape(dropout='x'), ["dropout is 'x'"]),
    'bias of text': (make.set_shape(bias='no'), ["bias is 'no'"]),
    'vocab_size=2**30': (make.set_shape(vocab_size=2**30), ['but its config means']),
    'sparse': (make.set_weight(lambda tensor: tensor.to_sparse()), ['is sparse', 'plain floats']),
    'sparse rows': (make.set_weight(lambda tensor: tensor.to_sparse_csr()), ['is sparse']),
    'meta': (make.set_weight(lambda tensor: tensor.to('meta')), ['a tensor without numbers']),
    'quantized': (make.set_weight(quantize), ['is quantized']),
    'nested tensor': (make.set_weight(lambda t: torch.nested.nested_tensor([t[0], t[1]])), ['is nested']),
    'int64': (make.set_weight(lambda tensor: tensor.long()), ['of int64']),
    'absurd strides': (make.set_weight(large_strides), ['is refused', 'stores only']),
    'one number for all': (make.set_weight(lambda t: t[:1, :1].clone().expand(400, 16)), ['is refused', 'stores only']),
    'many weights on the same bytes': (make.change_checkpoint(same_bytes), ['is refused', 'stores only']),
    'a scalar': (make.set_weight(lambda tensor: torch.tensor(1.0)), ['but its config means']),
    'compressed': (make.compress_checkpoint, ['is refused', 'in memory']),
    'code': (make.pickle_calling(os.system, 'touch executed'), ['code in a file is never executed']),
    'a bytearray of 10**13': (make.pickle_calling(bytearray, 10**13), ['ckpt.pt']),
    'plain pickle': (make.write('ckpt.pt', pickle.dumps({'model': {}}, 2)), ['ckpt.pt']),
    'nested pickle': (make.write('ckpt.pt', b'\x80\x02' + b']' * 200_000 + b'a' * 199_999 + b'.'), ['ckpt.pt']),
    'half': (make.cut('ckpt.pt'), ['ckpt.pt cannot be read']),
    'all but the end': (make.cut('ckpt.pt', 0.99), ['ckpt.pt cannot be read']),
    'zeros': (make.write('ckpt.pt', bytes(10**5)), ['ckpt.pt']),
    'text': (make.write('ckpt.pt', 'hello\n'), ['ckpt.pt']),
}


@pytest.mark.situation('damaged or hostile checkpoint')
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', CHECKPOINTS)
def test_a_damaged_checkpoint(whole, tmp_path, name):
    check(whole, tmp_path, 'run', *CHECKPOINTS[name])
    assert not (tmp_path / 'executed').exists()


# Files that are no regular files --------------------------------------------------------------------------------------

REASONS = {
    'pipe': 'it is a pipe, socket or device',
    'folder': 'it is a folder',
    'device': 'it is a pipe, socket or device',
    'broken link': 'nowhere, which does not exist',
    'loop': 'Too many levels of symbolic links',
}
LOADED = [
    ('model', 'config.json'),
    ('model', 'model.safetensors'),
    ('model', 'tokenizer.json'),
    ('model', 'generation_config.json'),
    ('model', 'tokenizer_config.json'),
    ('run', 'ckpt.pt'),
]


@pytest.mark.situation('a pipe, folder, device or broken link in place of a file')
@pytest.mark.parametrize('kind', REASONS)
@pytest.mark.parametrize(('model', 'file'), LOADED)
def test_no_regular_file(whole, tmp_path, model, file, kind):
    check(whole, tmp_path, model, make.replace(file, kind), ['cannot read', file, REASONS[kind]])


@pytest.mark.situation('a file without permission')
@pytest.mark.parametrize(('model', 'file'), LOADED)
def test_a_file_without_permission_is_not_called_damaged(whole, tmp_path, model, file):
    """Root may read everything; elsewhere, as here, only the bits of a link's target can be taken away."""
    if os.geteuid() == 0:
        pytest.skip('root may read every file')
    outcome = check(whole, tmp_path, model, lambda folder: (folder / file).chmod(0), [file, 'Permission denied'])
    assert 'damaged' not in outcome.err


@pytest.mark.situation('a damaged model, in every script', 18)
def test_every_script_says_the_same(whole, tmp_path):
    kinds = {
        'nested': (make.write('config.json', make.DEEP), 'nested too deeply'),
        'pipe': (make.replace('model.safetensors', 'pipe'), 'it is a pipe'),
        'int8': (make.cast_weights(torch.int8), 'of int8'),
    }
    (tmp_path / 'text.txt').write_text('The fog. ' * 500)
    assert (
        run('prepare_bin.py', '--input=text.txt', '--dataset=mine', f'--tokenizer={whole / "model"}', cwd=tmp_path).code
        == 0
    )
    for name, (spoil, words) in kinds.items():
        folder = make.copy_tree(whole / 'model', tmp_path / name)
        spoil(folder)
        for script, *arguments in (
            ('sample.py', f'--init_from={name}', '--device=cpu'),
            ('eval.py', f'--init_from={name}', '--device=cpu'),
            ('eval.py', f'--init_from={whole / "model"}', f'--compare_to={name}', '--device=cpu'),
            ('export.py', f'--init_from={name}', '--folder=exported'),
            ('train.py', f'--init_from={name}', '--dataset=mine', '--out_dir=o', '--device=cpu', '--max_iters=1'),
            ('visualize.py', 'layers', f'--init_from={name}', '--device=cpu'),
        ):
            assert_one_line(run(script, *arguments, cwd=tmp_path, seconds=20, memory=MEMORY), words)
    assert not (Path(tmp_path) / 'exported').exists()
    assert json.loads((whole / 'model' / 'config.json').read_text())['n_layer'] == 2
