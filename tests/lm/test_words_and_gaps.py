"""lm/story_tokenizer.py: nothing is lost, what costs a token, and what it learns from a text."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.scripts import PROJECT
from helpers.stories import STORIES, any_story_text, passages, story_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from lessons.bpe import BPE, learn_merges, spell_word
from lm.story_tokenizer import CASES, StoryTokenizer, learn_pieces
from lm.tokenizer import EOT, tokenizer_from_contents
from lm.tokenizer_names import tokenizer_from_name

AWKWARD = [
    '',
    ' ',
    'a',
    ' a ',
    "'tis it''s 's rock'n'roll ’n’ '' don't DON'T Don'T",
    'ß ẞ ǅ ǆ Ǆ ŉ ﬁ İstanbul ı ΑΣ ας Σ ας.Σ e\u0301 É ⅷ Ⓐ ⓐ ª ʰ ᾳ ᾼ',
    'iPhone McDonald eLIN ELIN elin Elin e E i I THE tHE The. the. THE. tHE',
    '日本語のテキスト 中文，标点。 עברית हिन्दी 🙂👩‍👩‍👧‍👦 \U0001d54f',
    'a  b   c\t\td\n\n\n\ne \n f\r\ng\u00a0h\u2003i\u2028j\x0bk_l__m',
    '\x00\x01\x1b[0m\x85\ufeff\ufffd\u200b',
    ' ⇧ ⇪ ⇩ • ◦ ⇧the',
    'x' * 300 + ' ' * 70 + '=' * 90,
    '<|endoftext <|endoftext| endoftext|>',
]


def tiny():
    """Return a tokenizer simple enough to check by hand: two words, the end of a sentence and a comma."""
    return StoryTokenizer(words=['fox', 'Elin'], gaps={'. ': '⇧', ', ': '⇩'})


# Nothing is lost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', [StoryTokenizer, tiny, story_tokenizer], ids=['bytes', 'tiny', 'stories'])
def test_lossless_on_the_corpus_and_on_awkward_texts(make):
    tokenizer = make()
    for text in (STORIES[-20_000:], *AWKWARD, *(f'{text}{EOT}The {text}' for text in AWKWARD)):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize('make', [StoryTokenizer, tiny, story_tokenizer], ids=['bytes', 'tiny', 'stories'])
def test_lossless_on_any_text_and_any_bytes(make):
    tokenizer = make()

    @settings(deadline=None, max_examples=100)
    @given(any_story_text)
    @example(f'one{EOT}two {EOT} {EOT}{EOT}')
    def any_text_comes_back(text):
        for specials in (True, False):
            ids = tokenizer.encode(text, specials)
            assert tokenizer.decode(ids) == text
            assert tokenizer.encode(text.encode(), specials) == ids
            assert all(0 <= id < tokenizer.vocab_size for id in ids)

    @settings(deadline=None, max_examples=100)
    @given(st.binary())
    @example('🦊'.encode()[:2] + b' the ' + '🦊'.encode()[2:])
    @example(b'\xed\xa0\x80 \xed\xb2\x80')  # surrogates, which are no UTF-8
    @example(bytes(range(256)))
    def any_bytes_come_back(data):
        assert tokenizer.decode_bytes(tokenizer.encode(data)) == data

    any_text_comes_back()
    any_bytes_come_back()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 1535), max_size=30) | st.lists(st.integers(500, 620), max_size=30))
def test_a_model_may_write_any_ids_in_any_order(ids):
    tokenizer = story_tokenizer()
    data = tokenizer.decode_bytes(ids)
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    assert len(tokenizer.pieces(ids)) == len(ids) and all(tokenizer.pieces(ids))


@pytest.mark.slow
def test_lossless_whatever_the_training_text():
    for text in (*AWKWARD, *(text * 3 for text in AWKWARD), f'A b. A b.{EOT}A b. A b.', STORIES[:5000].swapcase()):
        for vocab_size in (0, 300, 600):
            tokenizer = StoryTokenizer.train(text, vocab_size)
            assert tokenizer.vocab_size <= max(vocab_size, StoryTokenizer().vocab_size)
            for other in (text, *AWKWARD):
                assert tokenizer.decode(tokenizer.encode(other)) == other


def test_a_lone_surrogate_is_read_as_in_other_tokenizers():
    assert story_tokenizer().decode(story_tokenizer().encode('a\ud800b')) == 'a\ufffdb'


# What costs a token ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'pieces'),
    [
        ('fox fox', 'fox fox⇩'),
        ('Fox', 'fox'),
        ('Fox fox Elin', 'fox fox Elin'),
        ('Fox. Elin, fox', 'fox .· Elin ,· fox'),
        ('Fox, Fox. fox. Fox', 'fox ,· ⇧ fox .· ⇩ fox .· fox'),
        ('ELIN FOX', '⇪ Elin ⇪ fox'),
        ('Foxes', 'fox +e +s'),
        ('Hi, fox', '• +h +i ,· fox'),
        ('Fox elin', 'fox • +e +l +i +n'),
        ('Fox iX', 'fox • +i +X'),
        ('Fox,fox', 'fox ◦ +, fox'),
        ('Fox, - fox', 'fox ,· +- +· fox'),
        (' fox ', '◦ +· fox ◦ +·'),
        (f'Fox{EOT}Fox', f'fox {EOT} fox'),
    ],
)
def test_only_the_unexpected_costs_a_token(text, pieces):
    if pieces == 'fox fox⇩':  # the text begins without a capital, which a mark has to say
        pieces = '⇩ fox fox'
    assert tiny().pieces(tiny().encode(text)) == pieces.split()


def test_pieces_of_the_stories_read_as_words_and_gaps():
    tokenizer = story_tokenizer()
    pieces = tokenizer.pieces(tokenizer.encode('"I can\'t," said Elin.\n\n"You CAN," said the old man. and He went.'))
    text = '" I can\'t ,"· said Elin .⏎⏎" you ⇪ can ,"· said the old man .· ⇩ and ⇧ he went .'
    assert [piece.lstrip('+') for piece in pieces if piece != '◦'] == text.split()


def test_marks_change_case():
    assert {mark: change('fOx') for mark, change in CASES.items()} == {'⇧': 'FOx', '⇪': 'FOX', '⇩': 'fOx'}


def test_the_learned_vocabulary():
    text = 'The fox saw Elin. The Owl saw Elin. A fox, the fox, an elk. ' * 3 + 'Zebra'
    tokenizer = StoryTokenizer.train(text, 300, share=0)
    kinds = {kind: [token.decode() for k, token in tokenizer.tokens if k == kind] for kind in ('word', 'gap')}
    assert set(kinds['word']) == {'', 'the', 'fox', 'saw', 'Elin', 'Owl', 'a', 'an', 'elk'}
    assert tokenizer.expected_after == {'. ': '⇧', ', ': '⇩'}
    assert b'zebra' in tokenizer.tokens[tokenizer.encode('the zebra')[-1]]  # of what was seen once, pieces


@pytest.mark.parametrize('vocab_size', [512, 1024, 1536, 2048])
def test_the_vocabulary_has_the_requested_size(vocab_size):
    tokenizer = story_tokenizer(vocab_size)
    assert tokenizer.vocab_size == len(tokenizer.tokens) == vocab_size
    assert len(set(tokenizer.tokens)) == vocab_size
    assert tokenizer.tokens[tokenizer.eot] == ('special', EOT.encode())
    with pytest.raises(UserError, match=str(vocab_size)):
        tokenizer.decode([vocab_size])


@pytest.mark.slow
def test_training_in_another_process_gives_the_same_tokens():
    script = (
        'import sys; from lm.story_tokenizer import StoryTokenizer;'
        'print(StoryTokenizer.train(open(sys.argv[1], encoding="utf-8").read()[:30000], 900).fingerprint)'
    )
    file = PROJECT / 'data/childrens_stories/childrens_stories.txt'
    env = {**os.environ, 'PYTHONHASHSEED': '1', 'PYTHONPATH': str(PROJECT)}  # strings have other hashes there
    there = subprocess.run([sys.executable, '-c', script, str(file)], env=env, capture_output=True, text=True)
    assert there.stdout.strip() == StoryTokenizer.train(STORIES[:30000], 900).fingerprint, there.stderr


def test_a_very_long_gap_is_fast():
    text = 'The end' + '=' * 100_000 + 'the' + 'e' * 20_000
    tokenizer = tiny()
    assert tokenizer.decode(tokenizer.encode(text)) == text


# A text that follows another -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 1535), max_size=12) | st.lists(st.integers(500, 620), max_size=12), any_story_text)
@example([], 'the')
def test_a_text_after_any_ids_comes_back(before, text):
    tokenizer = story_tokenizer()
    ids = tokenizer.encode_after(before, text)
    assert tokenizer.decode(ids, before) == text
    whole = tokenizer.split_bytes([*before, *ids])
    assert whole == tokenizer.split_bytes(before) + tokenizer.split_bytes(ids, before)
    assert tokenizer.byte_sizes(ids, before).tolist() == [len(data) for data in whole[len(before) :]]


@settings(deadline=None, max_examples=100)
@given(any_story_text, any_story_text, st.sampled_from(['joint', 'separate']))
@example('Once upon a ti', 'me', 'joint')
@example('He said. ', 'then', 'separate')
@example('The fox', 'es ran', 'separate')
def test_prompt_and_response_spell_the_text(prompt, response, boundary):
    tokenizer = story_tokenizer()
    pair = tokenizer.split_pair(prompt, response, boundary)
    assert pair.boundary in (None, 'split')
    ids = pair.prompt_ids + pair.response_ids
    added = not prompt or (boundary == 'joint' and response and not prompt.strip())  # <|endoftext|>, before a response
    assert tokenizer.decode(ids) == EOT * bool(added) + prompt + response


def test_a_response_has_its_space_and_no_capital():
    tokenizer = story_tokenizer()
    prompt_ids, response_ids = tokenizer.encode_pair('Once upon a time there was', ' a king')
    assert tokenizer.decode(response_ids, prompt_ids) == ' a king'
    assert tokenizer.decode(response_ids) == 'A king'  # with nothing before it


# Kept in files --------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_tokenizer_again(tmp_path):
    tokenizer = story_tokenizer()
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(tokenizer.contents))
    again = tokenizer_from_name(str(path))
    assert again.fingerprint == tokenizer.fingerprint != story_tokenizer(1024).fingerprint
    assert again.encode(STORIES[:20_000]) == tokenizer.encode(STORIES[:20_000])
    assert again.encode_array(STORIES[:20_000], np.uint16).tolist() == tokenizer.encode(STORIES[:20_000])


@pytest.mark.parametrize(
    'changes',
    [
        {'words': [1]},
        {'words': ['the', 'The']},
        {'gaps': [['. ', 'x']]},
        {'gaps': ['. ']},
        {'merges': [['no', 'such']]},
        {'merges': [['a']]},
        {'merges': [['中', 'a']]},
        {'merges': 'none'},
    ],
    ids=str,
)
def test_a_damaged_file_is_an_error(changes):
    with pytest.raises(UserError, match='description of a'):
        tokenizer_from_contents(tiny().contents | changes)


def test_a_model_with_it_cannot_be_exported_and_is_told_why(tmp_path):
    with pytest.raises(UserError, match=r'cannot be exported, since transformers has none .* --train_bpe'):
        tiny().save(tmp_path)
    assert not list(tmp_path.iterdir())


# What it learns -------------------------------------------------------------------------------------------------------


def test_pieces_are_those_of_byte_pair_encoding_from_scratch():
    words = {'foxes': 3, 'boxes': 2, "can't": 2, 'ærø': 5, 'xyz': 1}
    merges = [pair for pair, *_ in learn_merges({spell_word(word): n for word, n in words.items()})]
    tokenizer, reference = StoryTokenizer(learn_pieces(words, 1000)), BPE(merges, specials=())
    assert [token for kind, token in tokenizer.tokens if kind == 'piece'] == reference.tokens
    assert learn_pieces(words, 0) == []


def test_texts_may_come_one_by_one():
    texts = passages()[:50]
    one_by_one, at_once = (StoryTokenizer.train(given, 900) for given in (iter(texts), EOT.join(texts)))
    assert one_by_one.contents == at_once.contents
