"""Where a response begins: lm-evaluation-harness's rule, and what holds where that leaves no response."""

import itertools

import pytest
from helpers.models import needs_gpt2_vocabulary
from helpers.tokenizers import char_tokenizer, fragments, gpt2_tokenizer, halves
from hypothesis import example, given, settings

from common.errors import UserError

# Where a response begins ----------------------------------------------------------------------------------------------


def pair_of_the_harness(encode, context, continuation):
    """lm-evaluation-harness's rule: white space at the context's end counts as the continuation's, and the
    continuation's tokens are those of the whole text from as many on as the context alone has."""
    context, moved = context.rstrip(), context[len(context.rstrip()) :]
    own = encode(context)
    return own, encode(context + moved + continuation)[len(own) :]


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
        if tokenizer.eot is None:
            with pytest.raises(UserError, match='prompt is empty'):
                tokenizer.encode_pair(prompt, response)
        else:
            assert tokenizer.encode_pair(prompt, response) == ([tokenizer.eot], whole)
        return
    prompt_ids, response_ids = tokenizer.encode_pair(prompt, response)
    if rest:
        assert (prompt_ids, response_ids) == (own, rest)
        if whole[: len(own)] == own:
            assert prompt_ids + response_ids == whole
            assert tokenizer.decode(prompt_ids + response_ids) == prompt + response
    else:  # a merge swallowed the boundary: the tokens that both share, then the others of the whole text
        shared = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, own))]
        assert (prompt_ids, response_ids) == (shared or [tokenizer.eot], whole[len(shared) :])
        assert response_ids


@needs_gpt2_vocabulary
def test_white_space_at_the_end_of_a_prompt_moves_to_the_response():
    tokenizer = gpt2_tokenizer()
    expected = (tokenizer.encode('Once upon a time'), tokenizer.encode(' there'))
    assert tokenizer.encode_pair('Once upon a time', ' there') == expected
    assert tokenizer.encode_pair('Once upon a time ', 'there') == expected


@needs_gpt2_vocabulary
def test_split_moves_back_where_a_merge_swallows_the_boundary():
    tokenizer = gpt2_tokenizer()
    (the,) = tokenizer.encode(' the')
    assert tokenizer.encode(' th') != [the]
    assert tokenizer.encode_pair('All th', 'e') == (tokenizer.encode('All'), [the])
    assert tokenizer.encode_pair(' th', 'e') == ([tokenizer.eot], [the])
    prompt_ids, response_ids = tokenizer.encode_pair('The ANSWE', 'RS')
    assert (tokenizer.pieces(prompt_ids), tokenizer.pieces(response_ids)) == (['The', '·AN'], ['SW', 'ERS'])


def test_empty_prompt_is_end_of_text_and_empty_response_has_no_ids(byte_level):
    for boundary in ('joint', 'separate'):
        assert byte_level.encode_pair('', ' the', boundary) == ([byte_level.eot], byte_level.encode(' the'))
        assert byte_level.encode_pair('the ', '', boundary) == (byte_level.encode('the '), [])
        assert byte_level.encode_pair('', '', boundary) == ([byte_level.eot], [])
    assert byte_level.encode_pair(' \n', 'the') == ([byte_level.eot], byte_level.encode(' \nthe'))
    assert byte_level.encode_prompt('') == [byte_level.eot]
    assert byte_level.encode_prompt('the ') == byte_level.encode('the ')


def test_empty_prompt_of_a_tokenizer_without_end_of_text_is_an_error():
    for boundary in ('joint', 'separate'):
        with pytest.raises(UserError, match='prompt is empty'):
            char_tokenizer().encode_pair('', 'the', boundary)
    with pytest.raises(UserError, match='prompt is empty'):
        char_tokenizer().encode_prompt('')


@settings(deadline=None, max_examples=100)
@given(prompt=fragments.filter(bool), response=fragments)
def test_separate_boundary_encodes_each_side_by_itself(tokenizer, prompt, response):
    expected = (tokenizer.encode(prompt), tokenizer.encode(response))
    assert tokenizer.encode_pair(prompt, response, boundary='separate') == expected


def test_unknown_boundary_is_an_error(tokenizer):
    with pytest.raises(UserError, match=r"'apart'.*joint.*separate"):
        tokenizer.encode_pair('the', ' fog', boundary='apart')
