"""Tokenizers of models of transformers: the same ids as AutoTokenizer, and the same text back."""

import json

import pytest
from helpers.models import random_gpt
from helpers.piece_tokenizers import bpe_with_bytes, save_tokenizer, unigram
from helpers.tokenizers import any_text, bpe_tokenizer, halves
from hypothesis import given, settings
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from common.errors import UserError
from lm.checkpoint import load_model, save_checkpoint, save_pretrained
from lm.hub_tokenizer import load_hub_tokenizer
from lm.tokenizer import tokenizer_from_contents
from lm.tokenizer_names import tokenizer_from_name

MAKE = {
    'llama': (lambda: bpe_with_bytes(True), 'LlamaTokenizer'),
    'gemma': (lambda: bpe_with_bytes(False), 'GemmaTokenizer'),
    'plain': (lambda: bpe_with_bytes(True), 'PreTrainedTokenizerFast'),
    'unigram': (unigram, 'PreTrainedTokenizerFast'),
    'byte-level': (bpe_tokenizer, 'PreTrainedTokenizerFast'),
}


@pytest.fixture(scope='module', params=MAKE)
def both(request, tmp_path_factory):
    """Our tokenizer and transformers', of the same folder."""
    folder, (make, name) = tmp_path_factory.mktemp(request.param), MAKE[request.param]
    if request.param == 'byte-level':
        make().save(folder)
    else:
        save_tokenizer(make(), folder, name)
    return load_hub_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


def gives_back(tokenizer, text):
    """Return whether a tokenizer has different ids for this text and every other; what it loses is noted elsewhere."""
    if text.startswith(' ') and tokenizer.encode(' x') == tokenizer.encode('x'):
        return False
    return tokenizer.id_of_text('<unk>') not in tokenizer.encode(text) and '▁' not in text


@settings(deadline=None)
@given(text=any_text)
def test_any_text_has_transformers_ids_and_comes_back(both, text):
    ours, theirs = both
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    if text:
        assert ours.encode_prompt(text) == theirs.encode(text)
    if gives_back(ours, text):
        assert ours.decode(ids) == text
        assert ours.decode(ours.encode_prompt(text) if text else []) == text
        assert ours.byte_sizes(ids).sum() == len(text.encode())
        for cut in range(len(ids) + 1):
            assert ours.decode_bytes(ids[:cut]) + ours.decode_bytes(ids[cut:], ids[:cut]) == text.encode()


@settings(deadline=None)
@given(pair=halves)
def test_a_prompt_and_its_response_spell_their_text(both, pair):
    ours, theirs = both
    prompt, response = pair
    if not prompt.strip() or not response or not gives_back(ours, prompt + response):
        return
    for boundary in ('joint', 'separate'):
        prompt_ids, response_ids = ours.encode_pair(prompt, response, boundary)
        assert ours.decode([*prompt_ids, *response_ids]) == prompt + response
    whole = theirs.encode(prompt + response)
    context = theirs.encode(prompt.rstrip())
    if whole[: len(context)] == context and len(whole) > len(context):
        assert ours.encode_pair(prompt, response) == (context, whole[len(context) :])


def test_pieces_are_visible(both):
    ours, _ = both
    pieces = ours.pieces(ours.encode('the fog'))
    assert ''.join(pieces).lstrip('·') == 'the·fog'


def test_what_a_checkpoint_or_a_dataset_stores_of_it_is_the_whole_tokenizer(both):
    ours, _ = both
    again = tokenizer_from_contents(json.loads(json.dumps(ours.contents)))
    assert type(again) is type(ours)
    assert (again.fingerprint, again.front, again.roles) == (ours.fingerprint, ours.front, ours.roles)
    text = ' Café, the fog\n\n 🙂x'
    assert again.encode(text) == ours.encode(text)
    assert again.decode(again.encode_prompt('the fog')) == 'the fog'


def test_a_saved_tokenizer_is_the_same_to_transformers(both, tmp_path):
    _, theirs = both
    theirs.chat_template = '{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}'
    theirs.save_pretrained(tmp_path / 'chat')
    tokenizer_from_contents(load_hub_tokenizer(tmp_path / 'chat').contents).save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(theirs)
    for text in ('The fog\n had  a <s> boat', ' x', 'Ü🙂'):
        assert again.encode(text) == theirs.encode(text)
        assert again.decode(again.encode(text)) == theirs.decode(theirs.encode(text))
    assert again.special_tokens_map == theirs.special_tokens_map
    assert again.apply_chat_template([{'role': 'user', 'content': 'hi'}]) is not None
    theirs.chat_template = None


@pytest.mark.slow
def test_texts_are_prepared_with_the_tokenizer_that_the_model_has(both, tmp_path):
    ours, theirs = both
    theirs.save_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'llama', 'vocab_size': ours.vocab_size}))
    named = tokenizer_from_name(str(tmp_path))
    assert (named.fingerprint, named.front) == (ours.fingerprint, ours.front)


@pytest.mark.parametrize(
    ('spoiled', 'words'),
    [
        ({'front': [-1]}, 'not a list of its ids'),
        ({'front': [10**6]}, 'not a list of its ids'),
        ({'front': 'x'}, 'not a list of its ids'),
        ({'config': [1]}, 'its tokenizer_config cannot be read'),
        ({'config': '{'}, 'its tokenizer_config cannot be read'),
        ({'config': '[]'}, 'its tokenizer_config cannot be read: it is not a JSON object'),
        ({'json': '[]'}, 'not a JSON object'),
    ],
)
def test_damaged_contents_are_refused(tmp_path, spoiled, words):
    save_tokenizer(bpe_with_bytes(True), tmp_path, 'LlamaTokenizer')
    with pytest.raises(UserError, match=words):
        tokenizer_from_contents(load_hub_tokenizer(tmp_path).contents | spoiled)


def test_an_end_token_that_the_tokenizer_lacks_changes_no_other_token(both, tmp_path):
    """The model's config may name an id beyond the vocabulary; it gets a name, and pieces stay pieces."""
    ours, theirs = both
    theirs.save_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({'vocab_size': 2000, 'eos_token_id': ours.vocab_size}))
    again = load_hub_tokenizer(tmp_path)
    assert type(again) is type(ours) and again.roles.ends == (ours.vocab_size,)
    assert again.decode(again.encode_prompt('the fog')) == 'the fog'


def test_a_wordpiece_tokenizer_is_refused_by_name(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({'[UNK]': 0, 'a': 1}, unk_token='[UNK]'))
    tokenizer.save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match='WordPiece'):
        load_hub_tokenizer(tmp_path)
    (tmp_path / 'tokenizer.json').unlink()
    assert load_hub_tokenizer(tmp_path) is None


def test_a_gpt2_may_have_a_tokenizer_of_pieces(tmp_path):
    """As some models for other languages than English: the network of GPT-2, and a tokenizer of SentencePiece."""
    save_tokenizer(unigram(), tmp_path, 'PreTrainedTokenizerFast')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    save_pretrained(random_gpt(vocab_size=len(theirs)), tmp_path)
    model, tokenizer, _ = load_model(tmp_path, device='cpu')
    assert tokenizer.encode_prompt('the fog') == theirs.encode('the fog')
    (tmp_path / 'out').mkdir()
    save_checkpoint(tmp_path / 'out' / 'ckpt.pt', model, tokenizer)
    for again in (load_model('resume', tmp_path / 'out', device='cpu')[1], tokenizer_from_name(str(tmp_path / 'out'))):
        assert (again.fingerprint, again.front) == (tokenizer.fingerprint, tokenizer.front)


def test_the_chat_template_of_a_gpt2_survives_training(tmp_path):
    save_pretrained(random_gpt(vocab_size=400), tmp_path / 'base', bpe_tokenizer())
    (tmp_path / 'base' / 'chat_template.jinja').write_text('{{ messages[0].content }}!')
    model, tokenizer, _ = load_model(tmp_path / 'base', device='cpu')
    (tmp_path / 'out').mkdir()
    save_checkpoint(tmp_path / 'out' / 'ckpt.pt', model, tokenizer)
    model, tokenizer, _ = load_model('resume', tmp_path / 'out', device='cpu')
    save_pretrained(model, tmp_path / 'again', tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / 'again')
    assert theirs.apply_chat_template([{'role': 'user', 'content': 'Hi'}], tokenize=False) == 'Hi!'
    assert theirs.encode('the fog') == tokenizer.encode('the fog')
