"""Folders as years of fine-tunes have them: tokens added in files of their own, compared with transformers."""

import json

import pytest
import torch
from helpers.models import random_gpt
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from common.errors import UserError
from common.notes import forget_notes
from lm.checkpoint import load_model, save_checkpoint, save_pretrained
from lm.scoring import score
from lm.tokenizer import EOT, tokenizer_from_folder, train_bpe

STORY = 'Once upon a time there was a cat, and the cat sat on the mat.'
START, PAD = '<|startoftext|>', '<|pad|>'


@pytest.fixture(autouse=True)
def fresh_notes():
    forget_notes()


def write_old_folder(folder, added=None, rows=0, **files):
    """Write a model with vocab.json and merges.txt, whose tokenizer has 270 tokens, and the given JSON files."""
    bpe = train_bpe([STORY] * 5, 270)
    save_pretrained(random_gpt(vocab_size=270 + rows, block_size=64, seed=3), folder)
    description = json.loads(bpe.contents['json'])['model']
    (folder / 'vocab.json').write_text(json.dumps(description['vocab'] | {EOT: 0}))
    merges = [' '.join(merge) if isinstance(merge, list) else merge for merge in description['merges']]
    (folder / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n')
    if added is not None:
        files['added_tokens'] = added
    for name, content in files.items():
        (folder / f'{name}.json').write_text(json.dumps(content))


def logprob_by_transformers(folder, ids, n_prompt):
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        logprobs = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(n_prompt, len(ids)))


def our_logprob(model, tokenizer, prompt, response):
    return score(model, *([ids] for ids in tokenizer.encode_pair(prompt, response)))[0].sum().item()


DESCRIBED = {'content': START, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
FORMS = {
    'added_tokens': {'added_tokens': {START: 270, PAD: 271}},
    'decoder': {'tokenizer_config': {'added_tokens_decoder': {'270': DESCRIBED, '271': {**DESCRIBED, 'content': PAD}}}},
    'map': {'special_tokens_map': {'bos_token': START, 'pad_token': {'content': PAD, 'lstrip': False}}},
    'additional': {'special_tokens_map': {'additional_special_tokens': [START, PAD]}},
}


@pytest.mark.parametrize('form', FORMS)
def test_an_added_start_token_is_one_token_and_scores_as_in_transformers(tmp_path, form, capsys):
    write_old_folder(tmp_path, rows=2, **FORMS[form])
    model, tokenizer, _ = load_model(tmp_path, device='cpu')
    assert capsys.readouterr().err == ''
    text = f'{START}Once upon a time{PAD}'
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1], ids.count(270), model.n_ids) == (270, 271, 1, 272)
    assert tokenizer.decode(ids) == text
    prompt, response = f'{START}Once upon a time', f' there was a cat{PAD}'
    prompt_ids, response_ids = tokenizer.encode_pair(prompt, response)
    expected = logprob_by_transformers(tmp_path, prompt_ids + response_ids, len(prompt_ids))
    assert our_logprob(model, tokenizer, prompt, response) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize('form', FORMS)
def test_the_ids_are_those_of_transformers(tmp_path, form):
    write_old_folder(tmp_path, rows=2, **FORMS[form])
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    text = f'{START}Once upon a time{PAD} <|startof {EOT}{START}'
    assert tokenizer_from_folder(tmp_path).encode(text) == theirs(text)['input_ids']


def test_export_keeps_the_rows_of_added_tokens(tmp_path):
    write_old_folder(tmp_path / 'old', rows=2, **FORMS['added_tokens'])
    model, tokenizer, _ = load_model(tmp_path / 'old', device='cpu')
    save_pretrained(model, tmp_path / 'new', tokenizer)
    again, same, _ = load_model(tmp_path / 'new', device='cpu')
    assert again.config.vocab_size == again.n_ids == 272
    assert same.encode(f'{START} a cat') == tokenizer.encode(f'{START} a cat')
    assert torch.equal(again.transformer.wte.weight, model.transformer.wte.weight)


def test_an_added_token_beyond_a_gap_keeps_its_id(tmp_path):
    write_old_folder(tmp_path, added={START: 273}, rows=4)
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.encode(START) == [273]
    assert tokenizer.decode([271, 273]) == f'<|271|>{START}'


def test_an_added_token_whose_id_is_taken_is_left_out_and_said(tmp_path, capsys):
    write_old_folder(tmp_path, added={START: 5})
    assert len(tokenizer_from_folder(tmp_path).encode(START)) > 1
    assert f'{START} was added as token 5, which is' in capsys.readouterr().err


def test_a_model_with_more_ids_than_its_tokenizer_masks_them_and_says_so(tmp_path, capsys):
    write_old_folder(tmp_path, rows=50)
    model, tokenizer, _ = load_model(tmp_path, device='cpu')
    assert (model.n_ids, tokenizer.vocab_size) == (270, 270)
    assert 'has 320 ids and its tokenizer 270; the other 50 are masked' in capsys.readouterr().err


def test_a_model_with_fewer_ids_scores_what_transformers_scores(tmp_path, capsys):
    """A padding token was added to the tokenizer, but the model was not resized."""
    write_old_folder(tmp_path, added={PAD: 270})
    model, tokenizer, _ = load_model(tmp_path, device='cpu')
    assert 'has 271 tokens and its model only 270 ids' in capsys.readouterr().err
    prompt_ids, response_ids = tokenizer.encode_pair('Once upon a time', ' there was a cat')
    expected = logprob_by_transformers(tmp_path, prompt_ids + response_ids, len(prompt_ids))
    assert our_logprob(model, tokenizer, 'Once upon a time', ' there was a cat') == pytest.approx(expected, abs=1e-3)
    with pytest.raises(UserError, match=r'tokens that the model lacks: <\|pad\|>'):
        tokenizer.encode(f'a cat{PAD}')
    save_checkpoint(tmp_path / 'out' / 'ckpt.pt', model, tokenizer)  # and a fine-tuned one loads again
    assert load_model(tmp_path / 'out', device='cpu')[1].limit == 270
    save_pretrained(model, tmp_path / 'new', tokenizer)
    assert load_model(tmp_path / 'new', device='cpu')[0].config.vocab_size == 270
