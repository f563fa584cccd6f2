"""How matrices are multiplied is measured once on a machine, remembered, and changes no number."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest
import torch
from helpers.models import random_gpt
from helpers.scripts import PROJECT

from lm import fast, matrices, tuning

EVERY = {**tuning.FLOATS, **tuning.ENGINES, **tuning.PORTABLE}
SUPPORTED = list(tuning.ways_to_multiply(torch.ones(1), None))
QUANTIZED = [name for name in tuning.ENGINES if name in torch.backends.quantized.supported_engines]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv('NANOGPT_PROBS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('NANOGPT_PROBS_TUNE')
    return tmp_path / 'cache/tuning.json'


def linear_layers(bias=True):
    torch.manual_seed(2)
    return [torch.nn.Linear(24, 72, bias), torch.nn.Linear(24, 24, bias)]


def change_entries(text, **values):
    return json.dumps({key: entry | values for key, entry in json.loads(text).items()})


@pytest.mark.parametrize('name', SUPPORTED)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('rows', [1, 5, 64])
@torch.no_grad()
def test_every_way_computes_the_same_product(name, bias, rows):
    linear = torch.nn.Linear(40, 30, bias)
    matrix = EVERY[name](linear)
    x = torch.randn(max(rows, matrix.enough_rows), 40)
    assert torch.allclose(matrix(x), linear(x), atol=1e-5)
    expected = torch.nn.functional.gelu(linear(x), approximate='tanh')
    assert torch.allclose(matrix(x, gelu='tanh'), expected, atol=1e-5)
    stream = torch.randn(len(x), 30)
    expected = stream + linear(x)
    assert torch.allclose(matrix(x, add_to=stream), expected, atol=1e-5)


@pytest.mark.parametrize('name', SUPPORTED)
@torch.no_grad()
def test_a_model_has_the_same_logprobs_in_every_way(name, monkeypatch):
    monkeypatch.setattr(tuning, 'choose_matrix', None)
    monkeypatch.setattr(fast, 'choose_matrix', lambda *_: tuning.Choice(name))
    plain, packed = random_gpt(), fast.pack(random_gpt())
    for rows, tokens in ((1, 1), (3, 7)):
        idx = torch.randint(plain.n_ids, (rows, tokens))
        expected, got = (model.logits(model.hidden(idx)).log_softmax(-1) for model in (plain, packed))
        assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize('name', [*QUANTIZED, 'portable'])
@torch.no_grad()
def test_int8_without_the_usual_engine_is_a_product_of_rounded_numbers(name):
    if name == 'onednn' and matrices.Int8Matrix.seven_bits:
        pytest.skip('oneDNN overflows where the CPU has no instructions for eight bits')
    linear = torch.nn.Linear(64, 32)
    x = torch.randn(5, 64)
    scale, rounded = matrices.quantize_rows(linear.weight.detach())
    exact = x @ (rounded * scale[:, None]).T + linear.bias
    tolerance = 1e-5 if name == 'portable' else 0.08
    assert torch.allclose(EVERY[name](linear)(x), exact, atol=tolerance)


def test_where_torch_has_no_engine_int8_takes_the_portable_path(monkeypatch):
    monkeypatch.setattr(tuning, 'ways_to_multiply', lambda *_: tuning.PORTABLE)
    model = fast.pack(random_gpt(), 'int8')
    assert isinstance(model.lm_head.matrix, matrices.PortableInt8Matrix)
    assert model.lm_head.matrix.weight.dtype == torch.int8
    plain, idx = random_gpt(), torch.randint(60, (2, 9))
    with torch.no_grad():
        difference = model.logits(model.hidden(idx)).log_softmax(-1) - plain.logits(plain.hidden(idx)).log_softmax(-1)
    assert difference[..., : plain.n_ids].abs().mean() < 0.05


def test_what_was_measured_is_remembered_for_this_case_alone(cache):
    first = tuning.choose_matrix(linear_layers())
    assert {name for name, _ in first.times.products} == set(first.times.making) == set(SUPPORTED) - {'packed'}
    later = tuning.choose_matrix(linear_layers())
    assert later == dataclasses.replace(first, remembered=True)
    for changed in ({'rows': 3}, {'rows': 64}):
        assert not tuning.choose_matrix(linear_layers(), **changed).remembered
    assert tuning.choose_matrix(linear_layers(), rows=1000).remembered  # as for 64
    assert not tuning.choose_matrix(linear_layers(bias=False)).remembered
    assert tuning.choose_matrix(
        linear_layers(), products=1
    ).remembered  # the same times, for another number of products
    assert not tuning.choose_matrix(linear_layers(), tune='again').remembered
    assert len(json.loads(cache.read_text())) == 4


@pytest.mark.parametrize('how', ['setting', 'environment'])
def test_whoever_wants_the_same_last_digits_everywhere_measures_nothing(cache, how, monkeypatch):
    if how == 'environment':
        monkeypatch.setenv('NANOGPT_PROBS_TUNE', 'never')
    choice = tuning.choose_matrix(linear_layers(), tune='never' if how == 'setting' else 'once')
    assert choice == tuning.Choice(SUPPORTED[0])
    assert not cache.exists()


@pytest.mark.parametrize(('took', 'threads'), [(0.95, None), (0.8, 1)])
def test_the_expected_way_is_left_only_for_a_clearly_faster_one(took, threads, monkeypatch):
    names = [name for name in SUPPORTED if name != 'packed']
    times = tuning.Times({(name, None): 1.0 for name in names} | {('plain', 1): took}, dict.fromkeys(names, 0.0))
    monkeypatch.setattr(tuning, 'measure_ways', lambda *_: times)
    choice = tuning.choose_matrix(linear_layers())
    assert choice.threads == threads
    assert (choice.name == 'plain') == (threads == 1)
    assert tuning.choose_matrix(linear_layers()).threads == threads  # remembered, too


def test_matrices_that_are_used_a_few_times_are_not_stored_in_a_slow_way(monkeypatch):
    names = [name for name in SUPPORTED if name != 'packed']
    takes = {'plain': (2.0, 0.0), 'packed for one row': (1.3, 30.0), 'split': (1.0, 145.0)}
    times = tuning.Times(
        {(name, None): takes.get(name, (9.0, 0.0))[0] for name in names},
        {name: takes.get(name, (9.0, 0.0))[1] for name in names},
    )
    monkeypatch.setattr(tuning, 'measure_ways', lambda *_: times)
    chosen = {count: tuning.choose_matrix(linear_layers(), products=count).name for count in (1, 100, 2000)}
    assert chosen == {1: 'plain', 100: 'packed for one row', 2000: 'split'}


@pytest.mark.slow
def test_two_processes_at_once_choose_alike(tmp_path):
    code = (
        'import torch; torch.set_num_threads(1); from lm import tuning\n'
        'layers = [torch.nn.Linear(24, 72), torch.nn.Linear(24, 24)]\n'
        'print(tuning.choose_matrix(layers).remembered)'
    )
    both = [
        subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, cwd=PROJECT) for _ in '12'
    ]
    assert sorted(process.communicate()[0].strip() for process in both) == ['False', 'True']


@pytest.mark.parametrize(
    'damage',
    [
        lambda text: text[: len(text) // 2],
        lambda text: '[1, 2]',
        lambda text: text.replace('"making"', '"naking"'),
        lambda text: text.replace('plain', 'abacus'),
        lambda text: change_entries(text, making=['x']),
        lambda text: change_entries(text, products=[['plain', None, 'x']]),
        lambda text: json.dumps(dict.fromkeys(json.loads(text), 7)),
    ],
)
def test_a_damaged_or_foreign_entry_is_not_used(cache, damage):
    tuning.choose_matrix(linear_layers(), tune='again')
    cache.write_text(damage(cache.read_text()))
    assert not tuning.choose_matrix(linear_layers()).remembered
    tuning.choose_matrix(linear_layers(), tune='again')
    assert tuning.choose_matrix(linear_layers()).remembered


def test_measuring_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    layers = linear_layers()
    torch.manual_seed(3)
    tuning.choose_matrix(layers, tune='again')
    assert torch.equal(torch.rand(2), expected)


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('NANOGPT_PROBS_CACHE', str(tmp_path / 'file'))
    assert tuning.choose_matrix(linear_layers(), tune='again').times
    assert not tuning.choose_matrix(linear_layers()).remembered


@pytest.mark.slow
def test_measuring_takes_a_third_of_a_second():
    layers = [torch.nn.Linear(1024, 4096), torch.nn.Linear(4096, 1024)]
    begin = time.perf_counter()
    tuning.choose_matrix(layers, tune='again')
    assert time.perf_counter() - begin < 1.5  # on a machine that does other work besides


def test_the_choice_is_printed_and_saved(capsys):
    from lm.settings import SamplingSettings, optimise_for_inference

    optimise_for_inference(random_gpt(), SamplingSettings(init_from='mine', verbose=True, tune='again'))
    said = capsys.readouterr().err
    assert 'matrices of mine: ' in said
    assert 'measured now, ms for a layer: ' in said
