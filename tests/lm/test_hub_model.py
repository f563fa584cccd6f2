"""Models of transformers behind our interface, held to transformers' own numbers, for each architecture."""

import json

import pytest
import torch
from helpers.networks import KINDS, random_network
from safetensors.torch import load_file, save_file

from common.errors import UserError
from lm import fast, matrices
from lm.checkpoint import load_model
from lm.hub_model import HubModel, check_network, load_hub_model
from lm.scoring import score
from lm.search import beam_search, most_probable

N_IDS = 59  # of 61: the others are padding


@pytest.fixture(params=KINDS)
def network(request):
    return random_network(request.param)


@pytest.fixture
def model(network):
    model = HubModel(network)
    check_network(model, 'it')
    assert not model.whole
    model.n_ids = N_IDS
    return model


def random_ids(*shape, seed=1):
    return torch.randint(3, N_IDS, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def reference_logprobs(network, idx, n_ids=N_IDS):
    """Return transformers' logprobs after each token, (B, T, V), computed at once, with padding ids masked."""
    logits = network(idx, use_cache=False).logits.double()
    logits[..., n_ids:] = -torch.inf
    return logits.log_softmax(-1)


def assert_same(logits, expected):
    torch.testing.assert_close(logits.double().log_softmax(-1), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_are_those_of_transformers_with_and_without_a_cache(model, network):
    idx = random_ids(3, 20)  # beyond every window
    expected = reference_logprobs(network, idx)
    assert_same(model.logits(model.hidden(idx)), expected)
    cache = model.new_cache(3, 4)  # too small, so that it grows
    for place in range(20):
        assert_same(model.decode(idx[:, place], cache), expected[:, place])
    assert cache.lengths.tolist() == [20] * 3
    assert cache.nbytes > 0


@torch.no_grad()
def test_a_cache_can_be_copied_cut_back_and_hold_rows_of_different_lengths(model, network):
    idx = random_ids(3, 20)
    expected = reference_logprobs(network, idx)
    cache = model.new_cache(1, 8)
    model.hidden(idx[:1, :9], cache)
    copies = cache.expand(2)
    assert_same(model.decode(idx[[0, 0], 9], copies), expected[[0, 0], 9])
    assert_same(model.decode(idx[:1, 9], cache), expected[:1, 9])  # it does not share memory with its copies

    cache = model.new_cache(3, 20)
    model.hidden(idx, cache)
    starts = [4, 12, 7]
    cache.rewind(torch.tensor(starts))
    new = torch.stack([row[start : start + 3] for row, start in zip(idx, starts)])
    for row, start, logits in zip(range(3), starts, model.logits(model.hidden(new, cache))):
        assert_same(logits, expected[row, start : start + 3])
    cache = cache.take(torch.tensor([2, 0, 2]))
    assert cache.lengths.tolist() == [10, 7, 10]
    logits = model.decode(torch.stack([idx[2, 10], idx[0, 7], idx[2, 10]]), cache)
    assert_same(logits, torch.stack([expected[2, 10], expected[0, 7], expected[2, 10]]))


@torch.no_grad()
def test_drawing_scoring_and_searching_give_transformers_numbers(model, network):
    idx, n = random_ids(1, 5), 6
    model.n_ids = V = 61  # transformers' beam search cannot mask ids before the softmax
    greedy, _ = model.generate(idx, n, temperature=0)
    settings = {'max_new_tokens': n, 'eos_token_id': None}
    assert greedy.tolist() == network.generate(idx, do_sample=False, **settings).tolist()
    beams, logprobs = beam_search(model, idx, n, beam_width=4)
    theirs = network.generate(idx, num_beams=4, num_return_sequences=4, length_penalty=0.0, **settings)
    assert beams.tolist() == theirs.tolist()
    found, best, _ = most_probable(model, idx, 2, k=3)
    longer = torch.cat([idx.expand(V, -1), torch.arange(V)[:, None]], dim=1)
    of_two = reference_logprobs(network, idx, V)[0, -1, :, None] + reference_logprobs(network, longer, V)[:, -1]
    torch.testing.assert_close(best, of_two.flatten().sort(descending=True).values[:3], atol=1e-5, rtol=1e-5)
    for row, logprob in zip([*beams, *found], [*logprobs, *best]):
        response = row[idx.size(1) :].tolist()
        of_tokens = reference_logprobs(network, row[None], V)[0, idx.size(1) - 1 : -1]
        expected = sum(of_tokens[place, id].item() for place, id in enumerate(response))
        assert logprob.item() == pytest.approx(expected, rel=1e-5)
        assert score(model, [idx[0].tolist()], [response])[0].sum().item() == pytest.approx(expected, rel=1e-5)
        _, prob = model.generate(idx, fixed_response=response)
        assert torch.tensor(prob).log().item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('quantize', [None, 'int8'])
def test_packed_matrices_give_the_same_numbers(quantize):
    if not (matrices.can_quantize if quantize else matrices.can_pack)(torch.ones(1)):
        pytest.skip('this CPU or this build of torch cannot')
    for kind in ('llama', 'mistral', 'qwen2', 'qwen3', 'opt', 'gpt_neox'):
        network = random_network(kind, seed=7)
        idx = random_ids(2, 12)
        expected = network(idx, use_cache=False).logits
        model = fast.pack(HubModel(network), quantize)
        random_network.cache_clear()  # its layers have been replaced
        cache = model.new_cache(2, 4)
        pieces = [model.hidden(idx[:, start:end], cache) for start, end in ((0, 5), (5, 6), (6, 7), (7, 12))]
        for x in (model.hidden(idx), torch.cat(pieces, dim=1)):
            error = (model.logits(x) - expected).std() / expected.std()
            assert error < (0.15 if quantize else 1e-4)  # eight bits are coarse for matrices of 32 numbers
        assert (kind in ('opt', 'gpt_neox')) != any(
            type(part).__name__ == 'PackedDecoderLayer' for part in model.modules()
        )


def test_texts_end_where_the_models_positions_do(model):
    if model.block_size > 100:
        pytest.skip('its positions have no limit')
    with pytest.raises(ValueError, match='do not fit into block_size=48'):
        model.hidden(random_ids(1, 49))


# Loading --------------------------------------------------------------------------------------------------------------


def save(folder, kind='llama', **settings):
    random_network(kind, **settings).save_pretrained(folder)
    return folder


def test_a_folder_is_loaded_with_the_same_numbers(tmp_path):
    network = random_network('llama')
    model, tokenizer, checkpoint = load_model(save(tmp_path))
    assert tokenizer is None and checkpoint is None
    model.n_ids, idx = N_IDS, random_ids(2, 12)
    with torch.no_grad():
        assert_same(model.logits(model.hidden(idx)), reference_logprobs(network, idx))


def test_a_gpt2_that_model_py_does_not_compute_is_left_to_transformers(tmp_path):
    model, _, _ = load_model(save(tmp_path, 'gpt2', tie_word_embeddings=False, n_inner=50))
    assert isinstance(model, HubModel)


@pytest.mark.parametrize('kind', ['bert', 'mamba', 't5'])
def test_what_is_no_causal_language_model_is_refused_by_name(tmp_path, kind):
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    sizes = {'d_model': 16, 'd_kv': 4, 'd_ff': 16, 'num_layers': 1, 'num_heads': 2} if kind == 't5' else {}
    sizes = sizes or {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 16}
    auto = AutoModelForMaskedLM if kind == 'bert' else AutoModel
    auto.from_config(AutoConfig.for_model(kind, vocab_size=61, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"'{kind}'"):
        load_hub_model(tmp_path)


def test_a_lack_of_memory_is_not_taken_for_another_architecture(monkeypatch):
    def run_out(model, idx, cache=None):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(HubModel, 'hidden', run_out)
    with pytest.raises(RuntimeError, match='allocate memory'):
        check_network(HubModel(random_network('llama')), 'it')


def test_missing_weights_are_not_made_up(tmp_path):
    weights = load_file(save(tmp_path) / 'model.safetensors')
    del weights['model.layers.1.mlp.up_proj.weight']
    save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(UserError, match=r'missing.*layers\.1\.mlp\.up_proj'):
        load_hub_model(tmp_path)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'model.norm.weight': torch.ones(32, dtype=torch.int8)}, 'model.norm.weight is of another type than float'),
        ({'model.norm.weight': torch.full((32,), torch.nan)}, 'not finite'),
        ({'model.norm.weight': torch.ones(33)}, 'of another shape .* model.norm.weight'),
        ({'num_hidden_layers': 10**6}, 'more layers than there are weights'),
        ({'intermediate_size': 10**9}, 'weights are missing'),
        ({'vocab_size': 10**9}, 'weights are missing'),
        ({'num_attention_heads': 0}, 'cannot load this model'),
        (b'\xff' * 100, 'model.safetensors is damaged'),
        (None, 'has no safetensors'),
    ],
    ids=lambda change: '' if isinstance(change, str) else next(iter(change)) if isinstance(change, dict) else None,
)
def test_a_damaged_or_hostile_folder_is_one_error(tmp_path, change, words):
    weights = save(tmp_path) / 'model.safetensors'
    if change is None:
        weights.unlink()
    elif isinstance(change, bytes):
        weights.write_bytes(change)
    elif '.' in next(iter(change)):
        save_file(load_file(weights) | change, weights, metadata={'format': 'pt'})
    else:
        config = json.loads((tmp_path / 'config.json').read_text())
        (tmp_path / 'config.json').write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words) as error:
        load_hub_model(tmp_path)
    assert '\n' not in str(error.value)


def test_code_that_comes_with_a_model_is_never_executed(tmp_path):
    (tmp_path / 'config.json').write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MyModel"}}'
    )
    (tmp_path / 'mine.py').write_text(f'open({str(tmp_path / "executed")!r}, "w")')
    with pytest.raises(UserError, match='never executed'):
        load_hub_model(tmp_path)
    assert not (tmp_path / 'executed').exists()


def test_an_unknown_output_layer_goes_through_the_whole_network(capsys):
    network = random_network('llama', seed=3)
    network.register_forward_hook(lambda module, inputs, output: output.__setitem__('logits', output.logits * 1.5))
    model = HubModel(network)
    check_network(model, 'it')
    assert model.whole
    assert 'right, but slower' in capsys.readouterr().err
    idx, model.n_ids = random_ids(1, 9), N_IDS
    expected = reference_logprobs(network, idx)
    assert score(model, [idx[0, :4].tolist()], [idx[0, 4:].tolist()])[0].sum().item() == pytest.approx(
        sum(expected[0, place, id].item() for place, id in enumerate(idx[0, 4:].tolist(), start=3)), rel=1e-5
    )


def test_a_model_that_reads_ahead_is_refused():
    network = random_network('bert', seed=3)
    with pytest.raises(UserError, match='from left to right'):
        check_network(HubModel(network), 'it')
