"""Where a response begins: lm-evaluation-harness's rule, and what holds where that would lose text."""

import json

import pytest
from helpers.models import needs_gpt2_vocabulary
from helpers.tokenizers import any_text, bpe_tokenizer, char_tokenizer, fragments, gpt2_tokenizer, halves
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.strings import replace_surrogates
from lm.tokenizer import BPETokenizer

# Where a response begins ----------------------------------------------------------------------------------------------


def pair_of_the_harness(encode, context, continuation):
    """lm-evaluation-harness's rule: white space at the context's end counts as the continuation's, and the
    continuation's tokens are those of the whole text from as many on as the context alone has."""
    context, moved = context.rstrip(), context[len(context.rstrip()) :]
    own = encode(context)
    return own, encode(context + moved + continuation)[len(own) :]


@pytest.mark.slow
@settings(deadline=None, max_examples=600)
@given(pair=halves)
@example(('Once upon a time ', 'there'))
@example(('Once upon a time', ' there'))
@example(('The fog\n\n', 'lifted'))
@example(('th', 'e'))
@example(('a th', 'ere'))
@example(('The ANSWE', 'RS'))  # ·AN S WE, but ·AN SW ERS
@example(('Accordin', 'gly'))  # Acc ord in, but According ly
@example(('un\u3000', '\u2003er'))
@example(('👩\u200d', '👧'))
@example(('The little gi', 'rl ran home'))
@example(('He said.', '"'))
@example(('I', 'I'))
def test_joint_boundary_is_the_harness_rule_wherever_that_is_defined(tokenizer, pair):
    """And where it is not, what follows documents what holds instead."""
    prompt, response = pair
    encode = tokenizer.encode
    own, rest = pair_of_the_harness(encode, prompt, response)
    whole = encode(prompt + response)
    if not response:
        if prompt or tokenizer.eot is not None:
            assert tokenizer.encode_pair(prompt, '') == (encode(prompt) or [tokenizer.eot], [])
        return
    if not prompt.strip():
        if tokenizer.eot is None and len(whole) < 2:
            with pytest.raises(UserError, match='prompt is empty'):
                tokenizer.encode_pair(prompt, response)
        elif tokenizer.eot is None:
            assert tokenizer.encode_pair(prompt, response) == (whole[:1], whole[1:])
        else:
            assert tokenizer.encode_pair(prompt, response) == ([tokenizer.eot], whole)
        return
    prompt_ids, response_ids, boundary, note = tokenizer.split_pair(prompt, response)
    assert (prompt_ids, response_ids) == tokenizer.encode_pair(prompt, response)
    after_prompt = (prompt + response)[len(prompt.rstrip()) :]
    if tokenizer.decode_bytes(rest, own) == after_prompt.encode():
        assert (prompt_ids, response_ids, boundary, note) == (own, rest, None, None)
    else:  # a token crosses the boundary
        assert (prompt_ids, response_ids, boundary) == (own, tokenizer.encode_after(own, after_prompt), 'split')
        assert 'meet inside a token' in note
    assert tokenizer.decode_bytes([*prompt_ids, *response_ids]) == (prompt + response).encode()
    assert prompt_ids + response_ids == whole or boundary == 'split' or whole[: len(own)] != own


@settings(deadline=None, max_examples=300)
@given(prompt=any_text, response=any_text, boundary=st.sampled_from(('joint', 'separate')))
@example('🙂'[:1], '🙂', 'joint')
@example('👩\u200d', '👧 said', 'joint')
@example('half \ud83d', '\ude42 half', 'joint')  # two surrogates that would be one character
@example('half \ud83d', '\ude42 half', 'separate')
def test_the_ids_of_prompt_and_response_spell_the_text(byte_level, prompt, response, boundary):
    pair = byte_level.split_pair(prompt, response, boundary)
    ids = pair.prompt_ids + pair.response_ids
    if not prompt or (boundary == 'joint' and response and not prompt.strip()):  # <|endoftext|> is put before it
        assert ids.pop(0) == byte_level.eot
    assert byte_level.decode(ids) == replace_surrogates(prompt) + replace_surrogates(response)
    assert pair.boundary in (None, 'split')


@settings(deadline=None, max_examples=100)
@given(pair=st.tuples(st.sampled_from(['the', 'é', '👩', ' ']), fragments))
def test_single_characters_are_never_split(pair):
    prompt, response = pair
    tokenizer = char_tokenizer()
    if prompt.strip() and set(prompt + response) <= set(tokenizer.decode(range(tokenizer.vocab_size))):
        encoded = tokenizer.split_pair(prompt, response)
        assert (encoded.boundary, encoded.note) == (None, None)
        assert tokenizer.decode(encoded.prompt_ids + encoded.response_ids) == prompt + response


@needs_gpt2_vocabulary
@pytest.mark.parametrize(
    ('prompt', 'response'),
    [
        ('The little gi', 'rl ran home'),
        ('All th', 'e'),
        ('The ANSWE', 'RS'),
        ('She said.', '" Then she left'),
        ('Accor', 'dingly, he left'),
    ],
)
def test_a_prompt_that_ends_inside_a_word_loses_no_character(prompt, response):
    tokenizer = gpt2_tokenizer()
    pair = tokenizer.split_pair(prompt, response)
    assert tokenizer.decode(pair.prompt_ids) == prompt
    assert tokenizer.decode(pair.response_ids) == response
    assert pair.boundary == 'split'
    last, first = tokenizer.pieces([pair.prompt_ids[-1], pair.response_ids[0]])
    assert pair.note.endswith(f'as …{last}|{first}…')


def test_a_tokenizer_that_changes_the_text_says_what_is_scored():
    """One that puts a space before every text, as some models' tokenizer.json does."""
    text = json.loads(bpe_tokenizer().contents['json'])
    text['pre_tokenizer']['add_prefix_space'] = True
    tokenizer = BPETokenizer.from_json(json.dumps(text))
    pair = tokenizer.split_pair('the fo', 'g on')
    assert pair.boundary == 'respelled'
    assert "scored was ' the fo g on'" in pair.note


@needs_gpt2_vocabulary
def test_white_space_at_the_end_of_a_prompt_moves_to_the_response():
    tokenizer = gpt2_tokenizer()
    expected = (tokenizer.encode('Once upon a time'), tokenizer.encode(' there'))
    assert tokenizer.encode_pair('Once upon a time', ' there') == expected
    assert tokenizer.encode_pair('Once upon a time ', 'there') == expected


def test_empty_prompt_is_end_of_text_and_empty_response_has_no_ids(byte_level):
    for boundary in ('joint', 'separate'):
        assert byte_level.encode_pair('', ' the', boundary) == ([byte_level.eot], byte_level.encode(' the'))
        assert byte_level.encode_pair('the ', '', boundary) == (byte_level.encode('the '), [])
        assert byte_level.encode_pair('', '', boundary) == ([byte_level.eot], [])
    assert byte_level.encode_pair(' \n', 'the') == ([byte_level.eot], byte_level.encode(' \nthe'))
    assert byte_level.encode_prompt('') == [byte_level.eot]
    assert byte_level.encode_prompt('the ') == byte_level.encode('the ')


def test_without_a_token_that_begins_a_text_the_first_one_is_not_scored():
    tokenizer = char_tokenizer()
    for boundary in ('joint', 'separate'):
        pair = tokenizer.split_pair('', 'the', boundary)
        assert (pair.prompt_ids, pair.response_ids) == (tokenizer.encode('t'), tokenizer.encode('he'))
        assert pair.boundary == 'first'
        assert 'the first token, t, has no probability' in pair.note
        for response in ('', 't'):
            with pytest.raises(UserError, match='no other to score'):
                tokenizer.encode_pair('', response, boundary)
    with pytest.raises(UserError, match='prompt is empty'):
        tokenizer.encode_prompt('')


@settings(deadline=None, max_examples=100)
@given(prompt=fragments.filter(bool), response=fragments)
def test_separate_boundary_encodes_each_side_by_itself(tokenizer, prompt, response):
    prompt_ids = tokenizer.encode(prompt)
    expected = (prompt_ids, tokenizer.encode_after(prompt_ids, response))
    assert tokenizer.encode_pair(prompt, response, boundary='separate') == expected


def test_unknown_boundary_is_an_error(tokenizer):
    with pytest.raises(UserError, match=r"'apart'.*joint.*separate"):
        tokenizer.encode_pair('the', ' fog', boundary='apart')
