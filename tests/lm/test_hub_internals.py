"""Attention, residual stream and embeddings of models of transformers, against model.py and transformers' own."""

import pytest
import torch
from helpers.networks import KINDS, random_network

from lm import internals
from lm.checkpoint import load_pretrained
from lm.hub_model import HubModel

IDX = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    """The same GPT-2 in model.py and in transformers."""
    network = random_network('gpt2', n_embd=32, n_layer=3, n_head=4, n_positions=48)
    folder = tmp_path_factory.mktemp('gpt2')
    network.save_pretrained(folder)
    return load_pretrained(folder).eval(), HubModel(network)


@torch.no_grad()
def test_a_gpt2_looks_the_same_inside_in_model_py_and_in_transformers(both):
    ours, theirs = both
    assert internals.count_layers_and_heads(ours) == internals.count_layers_and_heads(theirs) == (3, 4)
    for function in (internals.layer_attentions, internals.layer_logits):
        of_ours, of_theirs = (torch.stack(list(function(model, IDX))) for model in both)
        torch.testing.assert_close(of_ours, of_theirs, atol=1e-4, rtol=1e-4)
    assert torch.equal(internals.token_embeddings(ours), internals.token_embeddings(theirs))
    for of_ours, of_theirs in zip(*(internals.logit_lens(model, IDX) for model in both)):
        torch.testing.assert_close(of_ours, of_theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_inside_any_architecture(kind):
    network = random_network(kind)
    model = HubModel(network)
    n_layer, n_head = internals.count_layers_and_heads(model)
    attentions = list(internals.layer_attentions(model, IDX))
    assert len(attentions) == n_layer
    for weights in attentions:
        assert weights.shape == (2, n_head, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, n_head, 12))
        assert (weights.triu(1) == 0).all()
    lens = internals.logit_lens(model, IDX)
    expected = network(IDX, use_cache=False).logits.log_softmax(-1)
    assert lens.ids.shape == (n_layer + 1, 2, 12)
    torch.testing.assert_close(lens.logprobs[-1], expected.amax(-1), atol=1e-4, rtol=0)
    of_next = expected[:, :-1].gather(-1, IDX[:, 1:, None])[..., 0]
    torch.testing.assert_close(lens.next_logprobs[-1], of_next, atol=1e-4, rtol=0)
    assert (lens.next_logprobs[0] - of_next).abs().max() > 0.01  # the embedding predicts something else
    assert torch.equal(internals.token_embeddings(model), network.get_input_embeddings().weight)
