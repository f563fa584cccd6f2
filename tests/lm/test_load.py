"""lm.load: one call gives a model that is ready to be asked, as fast as the scripts'."""

import pytest
import torch
from helpers.models import random_gpt

import lm
from common.errors import UserError
from lm import fast, matrices
from lm.checkpoint import load_model, save_pretrained
from lm.scoring import score


def test_a_loaded_model_is_optimised_and_says_what_the_plain_one_says():
    model, tokenizer = lm.load('tiny-stories', device='cpu')
    plain, _, _ = load_model('tiny-stories', device='cpu')
    assert isinstance(model.transformer.h[0], fast.PackedBlock) == matrices.can_pack(torch.ones(1))
    assert not model.training
    prompt, response = tokenizer.encode_pair('Once upon a time', ' there was a king.')
    found, expected = (score(one, [prompt], [response])[0] for one in (model, plain))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.skipif(not matrices.can_quantize(torch.ones(1)), reason='int8 needs an x86 CPU')
def test_int8_is_one_setting():
    model, _ = lm.load('tiny', device='cpu', quantize='int8')
    assert isinstance(model.lm_head.matrix, matrices.Int8Matrix)


def test_a_model_without_a_tokenizer_is_an_error(tmp_path):
    save_pretrained(random_gpt(), tmp_path)
    with pytest.raises(UserError, match='has no tokenizer'):
        lm.load(str(tmp_path), device='cpu')
