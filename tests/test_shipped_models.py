"""The models that are shipped: what they are, that transformers agrees, and that a newcomer's first command works."""

import math

import pytest
import torch
from helpers.scripts import PROJECT, run_script
from transformers import AutoTokenizer, GPT2LMHeadModel

from lm.checkpoint import load_model
from lm.scoring import score

STORY = 'Once upon a time there was a king who had three daughters, and the youngest was the fairest of them all.'

SIMPLE = (
    'Once upon a time there was a little girl named Mia. She had a red ball. One day the ball rolled into the garden. '
    'Mia was very sad. Her mom said, "Do not cry. I will help you find your ball."'
)


@pytest.mark.parametrize('name', ['tiny', 'tiny-stories'])
def test_a_shipped_model_is_small_and_transformers_computes_the_same(name):
    folder = PROJECT / 'models' / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    model, tokenizer, _ = load_model(name, device='cpu')
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer.encode(STORY)
    assert AutoTokenizer.from_pretrained(folder)(STORY)['input_ids'] == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        assert torch.allclose(model(torch.tensor([ids]), torch.tensor([ids]))[0], expected, atol=1e-4)
    end = STORY.index(' who')
    prompt, response = tokenizer.encode_pair(STORY[:end], STORY[end:])
    assert prompt + response == ids
    logprobs = expected[0].double().log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(response)[:, None])
    _, prob = model.generate(torch.tensor([prompt]), fixed_response=response)
    assert math.log(prob) == pytest.approx(logprobs.sum().item(), rel=1e-5)


def test_stories_made_the_model_expect_stories():
    def bits_per_byte(name, text):
        model, tokenizer, _ = load_model(name, device='cpu')
        prompt, response = tokenizer.encode_pair('', text)
        return -score(model, [prompt], [response])[0].sum().item() / math.log(2) / len(text.encode())

    assert bits_per_byte('tiny-stories', SIMPLE) < 1 < bits_per_byte('tiny', SIMPLE)


@pytest.mark.slow
def test_the_first_command_needs_neither_network_nor_settings(tmp_path):
    offline = {'HF_HUB_OFFLINE': '1', 'TIKTOKEN_CACHE_DIR': str(tmp_path / 'nothing')}
    process = run_script('sample.py', '--max_new_tokens=20', cwd=tmp_path, env=offline, fresh=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith('Once upon a time')
    assert process.stdout.count('logprob') == 2
    assert list(tmp_path.iterdir()) == []
    process = run_script('eval.py', cwd=tmp_path, env=offline, fresh=True)
    assert process.returncode == 0, process.stderr
    assert '64 responses' in process.stdout
