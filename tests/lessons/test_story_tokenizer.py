"""lessons/story_tokenizer.py: nothing is lost, and models are compared on the same bytes."""

import functools
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.models import random_gpt
from helpers.scripts import PROJECT, run_lesson
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from common.errors import UserError
from lessons.bpe import BPE
from lessons.story_tokenizer import CASES, PASSAGE, WORD, Settings, StoryTokenizer, compute_bits, main
from lm.tokenizer import EOT
from model import logits_to_logprobs

STORIES = (PROJECT / 'data/childrens_stories/childrens_stories.txt').read_text(encoding='utf-8')
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
stories_like = st.lists(st.sampled_from(['the', 'Elin', 'THE', 'tHE', 'fox', 'ß', 'é', '🦊', '7', *' .,\n"\'!', EOT]))
any_text = st.text(st.characters(exclude_categories=['Cs'])) | stories_like.map(''.join)


@functools.cache
def passages():
    return PASSAGE.findall(STORIES)


@functools.cache
def story_tokenizer(vocab_size=1536):
    return StoryTokenizer.train(EOT.join(passages()[:194]), vocab_size)


def tiny():
    """Return a tokenizer simple enough to check by hand: two words, the end of a sentence and a comma."""
    return StoryTokenizer(words=['fox', 'Elin'], gaps={'. ': '⇧', ', ': '⇩'})


# Nothing is lost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', [StoryTokenizer, tiny, story_tokenizer], ids=['bytes', 'tiny', 'stories'])
def test_lossless_on_the_corpus_and_on_awkward_texts(make):
    tokenizer = make()
    for text in (STORIES, *passages(), *AWKWARD, *(f'{text}{EOT}The {text}' for text in AWKWARD)):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize('make', [StoryTokenizer, tiny, story_tokenizer], ids=['bytes', 'tiny', 'stories'])
def test_lossless_on_any_text_and_any_bytes(make):
    tokenizer = make()

    @settings(deadline=None, max_examples=300)
    @given(any_text)
    @example(f'one{EOT}two {EOT} {EOT}{EOT}')
    def any_text_comes_back(text):
        for specials in (True, False):
            ids = tokenizer.encode(text, specials)
            assert tokenizer.decode(ids) == text
            assert tokenizer.encode(text.encode(), specials) == ids
            assert all(0 <= id < tokenizer.vocab_size for id in ids)

    @settings(deadline=None, max_examples=200)
    @given(st.binary())
    @example('🦊'.encode()[:2] + b' the ' + '🦊'.encode()[2:])
    @example(b'\xed\xa0\x80 \xed\xb2\x80')  # surrogates, which are no UTF-8
    @example(bytes(range(256)))
    def any_bytes_come_back(data):
        assert tokenizer.decode_bytes(tokenizer.encode(data)) == data

    any_text_comes_back()
    any_bytes_come_back()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 1535), max_size=30) | st.lists(st.integers(500, 620), max_size=30))
def test_a_model_may_write_any_ids_in_any_order(ids):
    tokenizer = story_tokenizer()
    data = tokenizer.decode_bytes(ids)
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    assert len(tokenizer.pieces(ids)) == len(ids) and all(tokenizer.pieces(ids))


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
        'import sys; from lessons.story_tokenizer import StoryTokenizer;'
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


# The comparison is fair -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(any_text.map(lambda text: text * 20))
@example('one two ' * 300)
@example('x' * 1200)
def test_passages_are_the_whole_text(text):
    cut = PASSAGE.findall(text)
    assert ''.join(cut) == text
    assert all(len(passage) <= 500 for passage in cut)


def test_passages_end_with_a_paragraph_where_there_is_one():
    assert all(passage.endswith('\n\n') for passage in passages()[:-1] if '\n\n' in passage)
    assert sum(passage.endswith('\n\n') for passage in passages()) > 0.95 * len(passages())


@pytest.mark.parametrize('make', [lambda: BPE.train(STORIES, 743), lambda: story_tokenizer(1000)], ids=['bpe', 'words'])
def test_bits_cover_all_tokens_of_a_text(make):
    tokenizer = make()
    assert tokenizer.vocab_size == 1000
    model = random_gpt(vocab_size=1000, block_size=300)
    texts = passages()[:5]
    for text, bits in zip(texts, compute_bits(model, tokenizer, texts), strict=True):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text  # nothing of it is left out
        with torch.no_grad():
            logprobs = logits_to_logprobs(model(torch.tensor([[tokenizer.eot, *ids]]), torch.tensor([[*ids, 0]]))[0][0])
        expected = [-logprobs[place, id].item() / math.log(2) for place, id in enumerate(ids)]
        assert np.allclose(bits, expected, atol=1e-3)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token():
    model = random_gpt(vocab_size=1536, block_size=300)
    torch.nn.init.zeros_(model.lm_head.weight)
    (bits,) = compute_bits(model, story_tokenizer(), passages()[:1])
    assert np.allclose(bits, math.log2(1536), atol=1e-4)


def test_fewer_tokens_per_word_than_bpe_of_the_same_size_on_held_out_text():
    rest = ''.join(passages()[194:])
    words = len(WORD.findall(rest))
    for vocab_size, margin in ((1536, 0.05), (2048, 0.05)):
        bpe, ours = BPE.train(EOT.join(passages()[:194]), vocab_size - 257), story_tokenizer(vocab_size)
        assert bpe.vocab_size == ours.vocab_size == vocab_size
        assert len(ours.encode(rest)) / words < len(bpe.encode(rest)) / words - margin


# The lesson -----------------------------------------------------------------------------------------------------------


def read_table(output, test):
    """Return {tokenizer: [tokens per word, seconds, bits per token, bits per byte]} of seed 0."""
    rows = re.findall(r'│ (BPE|words and marks) +│ +0 +│ +(\S+) +│ +(\S+) +│ +(\S+) +│ +(\S+) +│', output)
    table = {name: [float(number) for number in numbers] for name, *numbers in rows}
    words, size = len(WORD.findall(''.join(test))), len(''.join(test).encode())
    for per_word, _, per_token, per_byte in table.values():
        assert per_byte == pytest.approx(per_token * per_word * words / size, abs=0.005)
    return table


@pytest.mark.slow
def test_the_lesson_prints_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = ''.join(passages()[:40]).rstrip()
    (tmp_path / 'few.txt').write_text(text, encoding='utf-8')
    main(Settings(input='few.txt', vocab_size=400, epochs=1, seeds=1))
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    cut = PASSAGE.findall(text)
    assert read_table(output, cut[len(cut) * 9 // 10 :]).keys() == {'BPE', 'words and marks'}
    assert imread(tmp_path / 'results/lessons/story_tokenizer-curves.png').ndim == 3


@pytest.mark.slow
def test_the_lesson_compares_by_bytes(tmp_path):
    process = run_lesson('story_tokenizer', '--seeds=1', cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert max(map(len, process.stdout.splitlines())) <= 100
    table = read_table(process.stdout, passages()[len(passages()) * 9 // 10 :])
    bpe, ours = table['BPE'], table['words and marks']
    assert ours[0] < bpe[0] - 0.04
    assert 2 < ours[3] < bpe[3] + 0.1 < 2.9  # about as good, a byte; seeds and machines differ by some hundredths
    low, high = map(float, re.search(r'95 % \[(\S+), (\S+)\]', process.stdout).groups())
    assert low < ours[3] - bpe[3] < high
    for name in ('story_tokenizer.png', 'story_tokenizer-curves.png'):
        image = imread(tmp_path / 'results/lessons' / name)
        assert image.shape[1] > 500 and image[:, :, :3].std() > 0.02


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        ({'input': 'nowhere.txt'}, 'nowhere.txt'),
        ({'input': 'short.txt'}, '20 passages of text'),
        ({'epochs': 0}, '--epochs'),
        ({'seeds': 0}, '--seeds'),
        ({'sentence': ''}, '--sentence'),
        ({'vocab_size': 100}, '--vocab_size=262'),
        pytest.param({'vocab_size': 50_000}, '--vocab_size=50000: .* too few words', marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_invalid_settings_are_reported(wrong, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'short.txt').write_text('short')
    with pytest.raises(UserError, match=words):
        main(Settings(**wrong))
