"""lessons/bpe.py: against `tokenizers`, against tiktoken, against counting all pairs again."""

import functools
import html
import json
import os
import re
import sysconfig
import time
from itertools import islice, pairwise
from pathlib import Path

import pytest
import tiktoken
from helpers.lessons import here_and_as_command, run_in_folder
from helpers.models import needs_gpt2_vocabulary
from helpers.scripts import PROJECT, run_lesson
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.cells import cell_len
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

import lm
from common.errors import UserError
from lessons.bpe import (
    BPE,
    BYTES,
    Settings,
    colour_pieces,
    count_words,
    learn_merges,
    learn_merges_slowly,
    main,
    merge_pair,
    spell_word,
    split_words,
)
from lessons.token_colours import align_ids
from lm.tokenizer import EOT, GPT2Tokenizer

STORIES = (PROJECT / 'data/childrens_stories/childrens_stories.txt').read_text(encoding='utf-8')
AWKWARD = [
    '',
    ' ',
    'a',
    "it's IT'S we'll WE'LL 'tis it''s 's 'sa 'll'd",
    '1234567890 3.14159 1,000,000 ½ ² ٣ Ⅷ 2024-02-29T12:00Z',
    'naïve café Ærøskøbing Łódź e\u0301 ﬁ ß ẞ',
    '日本語のテキスト 中文，标点。 한국어 עברית العربية ไทย हिन्दी',
    '🙂 👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f1f3\U0001f1f1 \U0001d54f',
    '   leading, trailing   ',
    'runs  of   white    space\t\t\ttabs\n\n\n\nlines \n \n\r\n\r\n\u00a0\u2003\u3000\u2028x\u2029\x0b\x0c',
    '\x00\x01\x1b[0m\x1c\x1d\x1e\x1f\x7f\x85\ufeff\ufffd\u200b\u202e \x1f x\x1cy',
    'a' * 300 + ' ' * 70 + '=' * 90 + '\n' * 40,
    '<|endoftext <|endoftext| endoftext|>',
]
small_texts = st.text('aab ', max_size=40) | st.text("abc é🦊'.\n1", max_size=40)
any_text = st.text(st.characters(exclude_categories=['Cs'])) | small_texts


def python_source():
    """Return a million bytes that are not prose: the source of the standard library."""
    files = sorted(Path(sysconfig.get_path('stdlib')).glob('*.py'))
    return ''.join(file.read_text('utf-8', 'replace') for file in files).encode()[:1_000_000].decode(errors='ignore')


@functools.cache
def stories_bpe():
    return BPE.train(STORIES, 2000)


@functools.cache
def gpt2_merges():
    """Return GPT-2's merges from its file vocab.bpe, which is in tiktoken's cache next to encoder.json."""
    for path in Path(os.environ['TIKTOKEN_CACHE_DIR']).iterdir():
        lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
        if lines[0].startswith('#version'):
            break
    else:
        pytest.skip('vocab.bpe is not in TIKTOKEN_CACHE_DIR')
    return merges_from_letters(line.split(' ') for line in lines[1:])


def merges_from_letters(pairs):
    """Return pairs of ids for pairs of texts in which each letter is a byte, as in vocabulary files."""
    ids = {letter: id for id, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for left, right in pairs:
        merges.append((ids[left], ids[right]))
        ids[left + right] = len(ids)
    return merges


def reference_merges(texts, num_merges):
    """Return the merges that `tokenizers` learns.

    Its trainer takes the most frequent pair, and of equally frequent ones the pair with the smallest ids, left before
    right (the order of `Merge` in its src/models/bpe/trainer.rs). The alphabet has the first ids, sorted by the letters
    for bytes: the 188 printable ones of Latin-1, then the 68 others from U+0100 on. This is GPT-2's order of bytes and
    ours, so ties are resolved the same way. Special tokens come first and shift all ids by the same number.
    """
    bpe = HuggingFaceTokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + num_merges, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return bpe, merges_from_letters(json.loads(bpe.to_str())['model']['merges'])


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'read', [lambda: STORIES, pytest.param(python_source, marks=pytest.mark.slow)], ids=['stories', 'python']
)
def test_same_merges_and_ids_as_tokenizers(read):
    text = read()
    ours = BPE.train(text, 3000)
    reference, merges = reference_merges([text], 3000)
    assert len(ours.merges) == 3000
    assert list(ours.merges) == merges
    assert ours.encode(text) == reference.encode(text).ids


@settings(deadline=None, max_examples=150)
@given(small_texts)
@example('zy yx ba ab')
@example('aaaaaaa aaaa aaa aa')
@example('é è ê 🦊🦉 \n a')
def test_same_merges_as_tokenizers_with_many_ties(text):
    merges = [pair for pair, *_ in learn_merges(count_words(text))]
    assert merges == reference_merges([text], 1000)[1]


@settings(deadline=None, max_examples=150)
@given(small_texts)
@example('aaaaaaa aaaa aaa aa')
@example('abababab bababa')
def test_updated_counts_equal_recounted_ones(text):
    words = count_words(text)
    assert [(pair, often) for pair, often, _ in learn_merges(words)] == list(learn_merges_slowly(words))


@pytest.mark.slow
def test_updated_counts_equal_recounted_ones_in_prose():
    words = count_words(STORIES)
    merges = [(pair, often) for pair, often, _ in islice(learn_merges(words), 300)]
    assert merges == list(islice(learn_merges_slowly(words), 300))


def test_the_first_merge_looks_only_at_words_with_its_pair():
    words = count_words(STORIES)
    (pair, often, looked_at), *_ = learn_merges(words)
    assert looked_at == sum(pair in pairwise(word) for word in words)
    assert often == sum(times * list(pairwise(word)).count(pair) for word, times in words.items())


def test_learns_1000_merges_from_a_megabyte_in_seconds():
    text = python_source()
    assert len(text.encode()) > 900_000
    started = time.perf_counter()
    assert len(BPE.train(text, 1000).merges) == 1000
    assert time.perf_counter() - started < 10  # a third of a second on an idle core


def test_learning_ends_when_each_word_is_one_token():
    bpe = BPE.train('so it goes so it goes', 1000)
    assert bpe.pieces(bpe.encode('so it goes so it goes')) == ['so', '·it', '·goes', '·so', '·it', '·goes']
    assert len(bpe.merges) < 20
    for text in ('', 'a', 'a\nb', EOT):
        assert BPE.train(text, 10).merges == {}


def test_a_merge_takes_pairs_from_the_left():
    assert merge_pair((1, 1, 1), (1, 1), 2) == (2, 1)
    assert merge_pair((1, 1, 1, 1), (1, 1), 2) == (2, 2)
    assert merge_pair((3, 1, 2, 1, 2, 1), (1, 2), 4) == (3, 4, 4, 1)
    assert merge_pair((), (1, 2), 4) == ()


# Using what was learned -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', [BPE, stories_bpe], ids=['bytes', 'stories'])
def test_round_trip_of_any_bytes(make):
    bpe = make()

    @settings(deadline=None, max_examples=300)
    @given(st.binary() | any_text.map(str.encode))
    @example(b'\xff\xfe\x80')
    @example('🦊'.encode()[:2] + b' the ' + '🦊'.encode()[2:])
    @example(b'\xed\xa0\x80 \xed\xb2\x80')  # surrogates, which are no UTF-8
    @example(bytes(range(256)))
    def round_trip(data):
        assert bpe.decode_bytes(bpe.encode(data)) == data

    round_trip()


@settings(deadline=None, max_examples=300)
@given(any_text)
@example(f'one{EOT}two {EOT} {EOT}{EOT}')
def test_round_trip_of_any_text(text):
    bpe = stories_bpe()
    for specials in (True, False):
        ids = bpe.encode(text, specials)
        assert bpe.decode(ids) == text
        assert bpe.encode(text.encode(), specials) == ids
        assert all(0 <= id < bpe.vocab_size for id in ids)


def test_round_trip_of_the_stories_and_fewer_tokens_with_each_larger_vocabulary():
    merges = list(stories_bpe().merges)
    counts = []
    for size in (0, 1, 10, 100, 1000, 2000):
        bpe = BPE(merges[:size])
        ids = bpe.encode(STORIES)
        assert bpe.decode(ids) == STORIES
        counts.append(len(ids))
    assert counts[0] == len(STORIES.encode())
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == len(counts)


def test_a_lone_surrogate_is_read_as_in_tiktoken():
    bpe = stories_bpe()
    assert bpe.decode(bpe.encode('a\ud800b')) == 'a\ufffdb'
    assert bpe.decode(bpe.encode('\ud83e\udd8a')) == '🦊'


@settings(deadline=None)
@given(any_text)
def test_words_are_the_whole_text(text):
    assert ''.join(split_words(text)) == text
    assert ''.join(split_words(text, (EOT, ' '))) == text


def test_words_are_split_as_in_gpt2():
    text = "I'd say  it's 42.5 km\n\n  on, isn't it?"
    words = ['I', "'d", ' say', ' ', ' it', "'s", ' 42', '.', '5', ' km', '\n\n ', ' on', ',', ' isn', "'t", ' it', '?']
    assert split_words(text) == words


def test_bytes_come_first_in_the_order_of_gpt2():
    assert sorted(BYTES) == list(range(256))
    assert BPE().encode('!A~ \n') == [0, 32, 93, 220, 198]
    assert [BYTES[id] for id in spell_word('é')] == list('é'.encode())


# Special tokens -------------------------------------------------------------------------------------------------------


def test_special_tokens_come_last_and_are_one_id_each():
    bpe = BPE.train(STORIES, 500, specials=(EOT, '<|user|>'))
    assert (bpe.vocab_size, bpe.eot) == (758, 756)
    assert bpe.specials == {EOT: 756, '<|user|>': 757}
    assert bpe.encode(f'{EOT}<|user|>') == [756, 757]
    assert bpe.encode(f'The cat{EOT} the') == [*bpe.encode('The cat'), 756, *bpe.encode(' the')]
    assert bpe.pieces([757, 756]) == ['<|user|>', EOT]
    assert BPE(specials=()).eot is None


def test_what_looks_like_a_special_token_can_be_read_as_text():
    bpe = stories_bpe()
    ids = bpe.encode(f'The end.{EOT}', specials=False)
    assert bpe.eot not in ids
    assert bpe.decode(ids) == f'The end.{EOT}'


def test_no_merge_goes_across_a_special_token():
    bpe = BPE.train(f'ab{EOT}cd{EOT}' * 50, 100)
    assert bpe.tokens[256:] == [b'ab', b'cd', EOT.encode()]


def test_of_two_special_tokens_the_longer_is_read():
    bpe = BPE(specials=('<|a|>', '<|a|><|b|>', '.*'))
    assert bpe.encode('<|a|><|b|>.*<|a|>') == [257, 258, 256]


def test_a_special_token_named_twice_is_one():
    bpe = BPE(specials=(EOT, EOT, '<|user|>'))
    assert bpe.decode(bpe.encode(f'<|user|>{EOT}')) == f'<|user|>{EOT}'
    assert bpe.vocab_size == 258


def test_unknown_ids_are_an_error():
    with pytest.raises(UserError, match='-1'):
        BPE().decode([-1])
    with pytest.raises(UserError, match='257'):
        BPE().decode([257])


# GPT-2's --------------------------------------------------------------------------------------------------------------


@needs_gpt2_vocabulary
def test_given_gpt2s_merges_the_vocabulary_is_gpt2s():
    ours, theirs = BPE(gpt2_merges()), GPT2Tokenizer()
    assert (ours.vocab_size, ours.eot, ours.fingerprint) == (theirs.vocab_size, theirs.eot, theirs.fingerprint)


@needs_gpt2_vocabulary
def test_given_gpt2s_merges_ids_are_tiktokens():
    ours, theirs = BPE(gpt2_merges()), tiktoken.get_encoding('gpt2')
    lines = STORIES.splitlines(keepends=True)
    assert len(lines) >= 1000
    for text in (*lines, STORIES, *AWKWARD, python_source()[:100_000], *(f'{text}{EOT} {text}' for text in AWKWARD)):
        assert ours.encode(text) == theirs.encode(text, allowed_special='all')
        assert ours.encode(text, specials=False) == theirs.encode(text, disallowed_special=())


@needs_gpt2_vocabulary
@settings(deadline=None, max_examples=300)
@given(any_text | st.text("\x1f\x85\u00a0\u2003\u2028 \n\t'sdml1٣½éa."))
def test_given_gpt2s_merges_ids_are_tiktokens_for_any_text(text):
    ours = gpt2_again()
    assert ours.encode(text) == tiktoken.get_encoding('gpt2').encode(text, allowed_special='all')


@functools.cache
def gpt2_again():
    return BPE(gpt2_merges())


# The lesson -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@here_and_as_command
def test_the_lesson_prints_and_draws(as_command, tmp_path, capsys):
    arguments = ['--num_merges=300', '--sentence=The $5_fox^ saw {me} [bold]there[/bold] 中 :smile:']
    out, _ = run_in_folder('bpe', *arguments, as_command=as_command, folder=tmp_path, capsys=capsys)
    assert 'the│·f│at│·│cat' in out
    assert '300 merges' in out and re.search(r'\[ +b', out) and re.search(r'/ +b', out)
    assert f'{EOT} as a special token is id 556' in out
    assert max(map(len, out.splitlines())) <= 100
    for name in ('bpe.png', 'bpe-compression.png'):
        image = imread(tmp_path / 'results/lessons' / name)
        assert image.shape[1] > 500 and image[:, :, :3].std() > 0.02


@pytest.mark.slow
def test_the_lesson_works_without_gpt2(tmp_path):
    nowhere = {'TIKTOKEN_CACHE_DIR': str(tmp_path / 'none'), 'HTTPS_PROXY': 'http://127.0.0.1:9'}
    process = run_lesson('bpe', '--num_merges=3', cwd=tmp_path, **nowhere)
    assert process.returncode == 0, process.stderr
    assert 'Without GPT-2' in process.stdout and '3 merges' in process.stdout
    assert (tmp_path / 'results/lessons/bpe-compression.png').exists()


@pytest.mark.slow
def test_a_class_colours_its_own_text_and_gets_the_ids(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = 'The fox said <b>"no"</b> & left. 🦊\nEnd.\n'
    Path('mine.txt').write_text(text, encoding='utf-8')
    main(Settings(text='FILE:mine.txt', tokenizer='ours, tiny', num_merges=50, plot_dir='handed_in'))
    out, page = capsys.readouterr().out, Path('handed_in/tokens.html').read_text(encoding='utf-8')
    ours, tiny = BPE.train(STORIES, 50), lm.load('tiny')[1]
    for name, tokenizer in (('ours, 50 merges', ours), ('tiny', tiny)):
        ids = tokenizer.encode(text)
        heading = f'{name}: {len(ids)} tokens for {len(text)} characters, {len(text.encode())} bytes'
        assert heading in out
        section = next(part for part in page.split('<section>') if f'<h2>{heading}' in part)
        found = re.findall(r'<span class="t c(\d)">(.*?)<small>(\d+)</small>', section)
        assert [int(id) for *_, id in found] == ids
        assert [html.unescape(piece) for _, piece, _ in found] == tokenizer.pieces(ids)
        assert all(left[0] != right[0] for left, right in pairwise(found))
    assert imread('handed_in/tokens.png').shape[1] > 500
    assert not Path('handed_in/bpe.png').exists()


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [({'tokenizer': './nowhere'}, 'nowhere'), ({'tokenizer': ','}, '--tokenizer'), ({'text': 'FILE:no.txt'}, 'no.txt')],
    ids=str,
)
def test_a_text_or_tokenizer_that_is_not_there_is_an_error(wrong, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        main(Settings(**{'text': 'A fox.', 'num_merges': 5} | wrong))


@pytest.mark.parametrize('width', [8, 30, 100])
def test_each_id_is_below_its_piece(width):
    pieces, ids = ['the', '·fox', '你好', '!', '‹f0 9f›'], [3, 12345, 67, 0, 999]
    lines = [line.plain for line in align_ids(pieces, ids, width)]
    found = []
    for above, below in zip(lines[::2], lines[1::2]):
        cells = ''.join(char + '\0' * (cell_len(char) - 1) for char in above)  # one character for each cell
        found += [(cells[m.start() :].replace('\0', ''), int(m[0])) for m in re.finditer(r'\d+', below)]
    assert [id for _, id in found] == ids
    assert all(rest.startswith(piece) for (rest, _), piece in zip(found, pieces, strict=True))


def test_neighbours_have_different_colours_and_a_line_between_them():
    text = colour_pieces(['·the', '·fox', '[b]', 'x'])
    assert text.plain == '·the│·fox│[b]│x'
    assert all(left.style != right.style for left, right in pairwise(text.spans))


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        ({'input': 'nowhere.txt'}, 'nowhere.txt'),
        ({'input': 'latin.txt'}, 'latin.txt is not UTF-8'),
        ({'input': 'short.txt'}, r'1,000 characters in --input \(5 now\)'),
        ({'num_merges': 0}, '--num_merges'),
        ({'sentence': ''}, '--sentence'),
        ({'plot_dir': 'short.txt', 'num_merges': 2}, 'short.txt'),
    ],
    ids=str,
)
def test_invalid_settings_are_reported(wrong, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('latin.txt').write_bytes('é'.encode('latin-1') * 2000)
    Path('short.txt').write_text('short')
    with pytest.raises(UserError, match=words):
        main(Settings(**wrong))
