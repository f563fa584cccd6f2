"""The model's own start, end and padding tokens: read, kept, used, and written again."""

import json

import pytest
import torch
from helpers.models import random_gpt
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.notes import forget_notes
from lm import search
from lm.checkpoint import load_model, save_checkpoint, save_pretrained
from lm.responses import generate_responses
from lm.roles import Roles
from lm.settings import SamplingSettings
from lm.tokenizer import EOT, CharTokenizer, tokenizer_from_contents, train_bpe

STORY = 'Once upon a time there was a cat, and the cat sat on the mat.'
PLAIN = SamplingSettings(temperature=1.0, top_k=None, max_new_tokens=40, seed=5)


@pytest.fixture(autouse=True)
def fresh_notes():
    forget_notes()


def write_folder(folder, rows=3, generation=None, **config):
    """Write a model of 270 tokens and some more rows whose config.json names its own tokens."""
    tokenizer = train_bpe([STORY] * 5, 270)
    save_pretrained(random_gpt(vocab_size=270 + rows, block_size=64, seed=3), folder)
    tokenizer.save(folder)
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if generation:
        (folder / 'generation_config.json').write_text(json.dumps(generation))


@pytest.mark.parametrize(
    ('generation', 'config', 'roles'),
    [
        (None, {}, Roles(0, (0,))),
        (None, {'eos_token_id': 66, 'bos_token_id': 67, 'pad_token_id': 68}, Roles(67, (66,), 68)),
        (None, {'eos_token_id': [66, 70]}, Roles(0, (66, 70))),
        ({'eos_token_id': [66, 70]}, {'eos_token_id': 0, 'bos_token_id': 67}, Roles(67, (66, 70))),
        (None, {'eos_token_id': 271}, Roles(0, (271,))),
        (None, {'eos_token_id': None, 'pad_token_id': -1}, Roles(0, (0,))),
    ],
)
def test_the_models_own_tokens_are_read_and_kept(tmp_path, generation, config, roles):
    write_folder(tmp_path / 'old', generation=generation, **config)
    model, tokenizer, _ = load_model(tmp_path / 'old', device='cpu')
    assert tokenizer.roles == roles
    assert tokenizer_from_contents(tokenizer.contents).roles == roles
    assert tokenizer.encode_prompt('') == [roles.bos]
    assert tokenizer.encode_pair('', 'a cat')[0] == [roles.bos]
    save_checkpoint(tmp_path / 'out' / 'ckpt.pt', model, tokenizer)
    assert load_model(tmp_path / 'out', device='cpu')[1].roles == roles
    save_pretrained(model, tmp_path / 'new', tokenizer)
    assert load_model(tmp_path / 'new', device='cpu')[1].roles == roles
    written = json.loads((tmp_path / 'new' / 'config.json').read_text())
    assert written['eos_token_id'] in (roles.ends[0], list(roles.ends))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / 'new').generation_config
    assert theirs.eos_token_id in (roles.ends[0], list(roles.ends))
    assert (theirs.bos_token_id, theirs.pad_token_id) == (roles.bos, roles.pad)
    assert AutoTokenizer.from_pretrained(tmp_path / 'new').eos_token_id == roles.ends[0]


def test_an_end_token_that_the_tokenizer_lacks_gets_a_name(tmp_path, capsys):
    write_folder(tmp_path, eos_token_id=271)
    model, tokenizer, _ = load_model(tmp_path, device='cpu')
    assert 'ids that its tokenizer lacks, called <|271|> here' in capsys.readouterr().err
    assert (tokenizer.decode([271]), model.n_ids) == ('<|271|>', 272)


def test_a_default_that_the_model_does_not_have_is_ignored_and_said(tmp_path, capsys):
    """transformers writes 50256 into every config.json that does not say otherwise."""
    letters = CharTokenizer('abc ')
    save_pretrained(random_gpt(vocab_size=4), tmp_path, letters)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(config | {'eos_token_id': 50256, 'bos_token_id': 50256}))
    _, tokenizer, _ = load_model(tmp_path, device='cpu')
    assert tokenizer.roles == Roles()
    assert 'eos_token_id 50256 is ignored, since its model has only 4 ids' in capsys.readouterr().err


def test_end_token_of_special_tokens_map(tmp_path):
    write_folder(tmp_path, rows=1)
    (tmp_path / 'special_tokens_map.json').write_text(json.dumps({'eos_token': '<|done|>', 'bos_token': EOT}))
    _, tokenizer, _ = load_model(tmp_path, device='cpu')
    assert tokenizer.roles == Roles(0, (270,))


def test_any_of_the_end_tokens_ends_a_text():
    model = random_gpt()
    *_, (free,) = generate_responses(model, [1], PLAIN)
    ends = (free.ids[9], free.ids[4])
    *_, (response,) = generate_responses(model, [1], PLAIN, eot=ends)
    assert response.ids == free.ids[: min(free.ids.index(end) for end in ends) + 1]


def test_searches_end_at_any_of_the_end_tokens():
    model, idx = random_gpt(vocab_size=7), torch.tensor([[1]])
    sequences, logprobs, _ = search.most_probable(model, idx, 3, k=300, eos=(2, 4))
    beams, beam_logprobs = search.beam_search(model, idx, 3, 300, eos=[2, 4])
    assert len(sequences) == 5**2 * 7 + 5 * 2 + 2  # of three tokens, two, and one
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert beams.tolist()[0] == sequences.tolist()[0]
    assert beam_logprobs[0].item() == pytest.approx(logprobs[0].item(), abs=1e-5)
    for sequence in sequences[:, 1:].tolist():  # filled up with its own end
        end = next((place for place, id in enumerate(sequence) if id in (2, 4)), 2)
        assert set(sequence[end:]) == {sequence[end]}


def test_transformers_stops_where_we_do_after_an_export(tmp_path):
    write_folder(tmp_path / 'old', rows=0)
    model, tokenizer, _ = load_model(tmp_path / 'old', device='cpu')
    prompt = tokenizer.encode('Once upon a time')
    greedy = SamplingSettings(temperature=0.0, top_k=None, max_new_tokens=12, seed=5)
    *_, (free,) = generate_responses(model, prompt, greedy)
    end = free.ids[3]
    tokenizer.roles = Roles(0, (end, 69))
    *_, (ours,) = generate_responses(model, prompt, greedy, eot=tokenizer.roles.ends)
    save_pretrained(model, tmp_path / 'new', tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / 'new').eval()
    ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert ids[0, len(prompt) :].tolist() == ours.ids
    assert len(ours.ids) < 12
