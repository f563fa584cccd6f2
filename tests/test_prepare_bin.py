"""Text files become token files: whole documents, each in one split, nothing lost; and the stories that are shipped."""

import errno
import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, needs_gpt2_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare_bin
from common import UserError
from prepare_bin import Settings, cut, hold_out, split_documents
from tokenizer import EOT, CharTokenizer, from_contents, train_bpe

STORIES = [
    f'The Tale of {name}\n\n'
    + '\n\n'.join(f'{name} went {way}, {number} times, and met a {beast}.' for number, way in enumerate(ways, 2))
    for name, beast, ways in [
        ('Ada', 'newt', ['up', 'down', 'out']),
        ('Bo', 'goose', ['home']),
        ('Cy', 'snail 🐌', ['slowly', 'on', 'and on', 'past the “inn”', 'under']),
        ('Dot', 'dragon', ['by', 'in']),
        ('Élan', 'hare', ['off', 'far', 'very far', 'back']),
        ('Flo', 'crow', ['up']),
        ('Gus', 'goat', ['over', 'around', 'through', 'up', 'down', 'home']),
        ('Hal', 'hen', ['to bed', 'to sea']),
        ('Ivy', 'ibis', ['aboard', 'ashore']),
        ('Jo', 'jackdaw', ['by train', 'by boat', 'on foot']),
        ('Kit', 'kite', ['up', 'up', 'up']),
        ('Lu', 'lynx', ['nowhere']),
    ]
]
TEXT = '\n\n\n'.join(STORIES) + '\n'


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
    """A folder with a small tokenizer that has <|endoftext|>."""
    folder = tmp_path_factory.mktemp('bpe')
    train_bpe(STORIES, 300).save(folder)
    return folder


def prepare(text=TEXT, **settings):
    """Run the script on a text; return its data folder."""
    if text is not None:
        Path('stories.txt').write_bytes(text.encode())
    prepare_bin.main(Settings(**{'input': 'stories.txt', 'dataset': 'tales'} | settings))
    return Path('data/tales')


def meta_of(folder):
    return json.loads((folder / 'meta.json').read_text(encoding='utf-8'))


def ids_of(folder, split):
    return np.fromfile(folder / f'{split}.bin', dtype=meta_of(folder)['dtype']).tolist()


def documents_of(folder, split):
    """The documents that a .bin file holds, by its <|endoftext|>; checks that these stand before, between, after."""
    tokenizer = from_contents(meta_of(folder)['tokenizer'])
    ids = ids_of(folder, split)
    if not ids:
        return []
    assert ids[0] == ids[-1] == tokenizer.eot
    marks = [place for place, id in enumerate(ids) if id == tokenizer.eot]
    return [tokenizer.decode(ids[start + 1 : end]) for start, end in itertools.pairwise(marks)]


def both_of(folder):
    return documents_of(folder, 'train'), documents_of(folder, 'val')


def assert_whole_and_apart(train, val, documents):
    """Every document in exactly one split, in the order of the text."""
    assert sorted(train + val) == sorted(documents)
    assert train == [document for document in documents if document in train]
    assert val == [document for document in documents if document in val]


# Splitting ------------------------------------------------------------------------------------------------------------


def test_documents_stay_whole_in_one_split_in_order(bpe):
    train, val = both_of(prepare(tokenizer=str(bpe), val_fraction=0.3))
    assert train and val
    assert_whole_and_apart(train, val, STORIES)


@needs_gpt2_vocabulary
def test_gpt2_is_the_default_and_its_tokens_decode_to_the_documents():
    folder = prepare(val_fraction=0.3)
    assert meta_of(folder)['tokenizer'] == {'kind': 'gpt2'}
    assert meta_of(folder)['vocab_size'] == 50257
    assert_whole_and_apart(*both_of(folder), STORIES)
    assert ids_of(folder, 'train')[0] == ids_of(folder, 'train')[-1] == 50256


documents_of_any_size = st.lists(st.integers(1, 400), min_size=2, max_size=60).map(
    lambda sizes: [f'{number} '.ljust(size, 'x') for number, size in enumerate(sizes)]
)


@settings(deadline=None, max_examples=300)
@given(documents=documents_of_any_size, fraction=st.floats(0, 1), seed=st.integers(0, 5))
def test_share_of_val_is_as_near_as_whole_documents_allow(documents, fraction, seed):
    train, val = hold_out(documents, fraction, seed)
    assert_whole_and_apart(train, val, documents)
    sizes = [len(document) for document in documents]
    off = abs(sum(map(len, val)) - fraction * sum(sizes))
    assert off <= max(sizes) / 2 + 1e-6 or (fraction < 1 and len(train) == 1) or (fraction > 0 and len(val) == 1)


def test_share_of_val_is_near_a_tenth_of_many_documents():
    documents = [f'{number} '.ljust(100 + number % 300, 'x') for number in range(400)]
    _, val = hold_out(documents, 0.1, seed=1337)
    share = sum(map(len, val)) / sum(map(len, documents))
    assert share == pytest.approx(0.1, abs=0.003)


def test_val_is_drawn_from_everywhere_not_from_one_end():
    documents = [f'{number:04} '.ljust(50, 'x') for number in range(1000)]
    _, val = hold_out(documents, 0.1, seed=1337)
    numbers = [int(document[:4]) for document in val]
    assert np.mean(numbers) == pytest.approx(499.5, abs=4 * 288.7 / 100**0.5)  # four standard errors


def test_the_same_seed_splits_the_same_and_another_differently():
    documents = [f'{number} '.ljust(50, 'x') for number in range(100)]
    assert hold_out(documents, 0.3, 1) == hold_out(documents, 0.3, 1)
    assert hold_out(documents, 0.3, 1) != hold_out(documents, 0.3, 2)


def test_the_same_seed_writes_the_same_files_and_another_other_ones(bpe):
    def written(**settings):
        folder = prepare(tokenizer=str(bpe), val_fraction=0.3, **settings)
        return [(folder / name).read_bytes() for name in ('train.bin', 'val.bin', 'meta.json')]

    first = written()
    assert written() == first == written(seed=1337)
    assert any(written(seed=seed)[1] != first[1] for seed in (1, 2, 3))


@pytest.mark.parametrize(('fraction', 'empty', 'full'), [(0, 'val', 'train'), (1, 'train', 'val')])
@pytest.mark.parametrize('documents', [STORIES, STORIES[:2], STORIES[:1]], ids=len)
def test_fraction_0_and_1_leave_one_split_empty(bpe, documents, fraction, empty, full):
    folder = prepare('\n\n\n'.join(documents), tokenizer=str(bpe), val_fraction=fraction)
    assert documents_of(folder, full) == documents
    assert ids_of(folder, empty) == []
    assert meta_of(folder)[empty]['documents'] == meta_of(folder)[empty]['tokens'] == 0


@pytest.mark.parametrize('fraction', [-0.1, 1.1, float('nan')])
def test_a_fraction_that_is_none_is_an_error(fraction):
    with pytest.raises(UserError, match='val_fraction'):
        prepare(val_fraction=fraction)


# A text that is one document ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'fraction', 'expected'),
    [
        ('aaaa aaaa\naaaa\n\nbb bb\nbb', 0.6, 'aaaa aaaa\naaaa\n\n'),  # a paragraph's end, though a line's is nearer
        ('aa\n\nbb\n\ncc\n\ndd', 0.5, 'aa\n\nbb\n\n'),
        ('aa\n\nbb\n\ncc\n\ndd', 0.8, 'aa\n\nbb\n\ncc\n\n'),
        ('aa aa\nbb bb\ncc cc', 0.4, 'aa aa\n'),
        ('aa aa bb bb cc cc', 0.5, 'aa aa bb '),
        ('aaaaaaaaaa', 0.7, 'aaaaaaa'),
        ('中文中文中文', 0.5, '中文中'),
    ],
)
def test_one_text_is_cut_after_a_paragraph_else_a_line_else_a_word_else_anywhere(text, fraction, expected):
    assert cut(text, fraction) == ([expected], [text[len(expected) :]])


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.sampled_from('ab \n'), min_size=2), fraction=st.floats(0.01, 0.99))
def test_cutting_one_text_loses_nothing_and_leaves_neither_side_empty(text, fraction):
    (train,), (val,) = cut(text, fraction)
    assert train and val and train + val == text


def test_one_text_without_separators_goes_in_part_to_val(bpe):
    paragraphs = [f'Paragraph {number} is about as long as each of the others.' for number in range(40)]
    folder = prepare('\n\n'.join(paragraphs), tokenizer=str(bpe), val_fraction=0.2)
    (train,), (val,) = both_of(folder)
    assert train.strip('\n') == '\n\n'.join(paragraphs[:32])
    assert val == '\n\n'.join(paragraphs[32:])


def test_one_text_of_a_title_and_one_long_paragraph_is_not_cut_after_the_title():
    text = 'The Title\n\n' + 'word ' * 2000
    _, (val,) = cut(text, 0.9)
    assert len(val) / len(text) == pytest.approx(0.1, abs=0.05)


# Separators -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('written', 'separator'),
    [('\\n\\n\\n', '\n\n\n'), ('\\n---\\n', '\n---\n'), ('\n---\n', '\n---\n'), ('\\t', '\t'), ('***', '***')],
)
def test_a_separator_is_given_as_it_is_written_in_python(bpe, written, separator):
    folder = prepare(separator.join(STORIES), tokenizer=str(bpe), separator=written, val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)


@pytest.mark.parametrize('separator', ['§', '\\n— ✂ —\\n', '\\u2042'])
def test_a_separator_may_be_any_character(bpe, separator):
    text = separator.replace('\\n', '\n').replace('\\u2042', '\u2042').join(STORIES)
    folder = prepare(text, tokenizer=str(bpe), separator=separator, val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)


@pytest.mark.parametrize('separator', ['', '\\', '\\x', '\\u12'])
def test_a_separator_that_is_none_is_an_error(bpe, separator):
    with pytest.raises(UserError, match='separator'):
        prepare(tokenizer=str(bpe), separator=separator)
    assert not Path('data').exists()


def test_lines_of_white_space_count_as_empty():
    text = 'One\n \nmore\n  \n\t\t\nTwo\n\n\n\n\n \nThree\n   '
    assert split_documents(text, '\n\n\n') == ['One\n\nmore', 'Two', 'Three']


def test_empty_lines_around_documents_go_and_indents_stay():
    assert split_documents('\n\n\n\n  One\n\n\n\n\n\n\n  Two\n two\n\n\n\n', '\n\n\n') == ['  One', '  Two\n two']


def test_windows_line_ends_and_byte_order_mark_make_no_difference(bpe):
    plain = both_of(prepare(tokenizer=str(bpe), val_fraction=0.3))
    windows = both_of(prepare('\ufeff' + TEXT.replace('\n', '\r\n'), tokenizer=str(bpe), val_fraction=0.3))
    assert windows == plain


# Which files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'input', ['a.txt,b.txt,sub/c.txt', '*.txt,sub/*.txt', '[ab].txt,sub/c.txt', '**/*.txt', '?.txt,sub/c.txt']
)
def test_names_and_patterns_are_read_in_order(bpe, input):
    Path('sub').mkdir()
    for name, stories in (('a', STORIES[:3]), ('b', STORIES[3:7]), ('sub/c', STORIES[7:])):
        Path(f'{name}.txt').write_text('\n\n\n'.join(stories), encoding='utf-8')
    folder = prepare(None, input=input, tokenizer=str(bpe), val_fraction=0)
    assert documents_of(folder, 'train') == STORIES
    assert [source['name'] for source in meta_of(folder)['sources']] == ['a.txt', 'b.txt', 'c.txt']


def test_a_file_that_is_named_twice_is_read_once(bpe):
    """Or a story would stand in train.bin and val.bin both."""
    folder = prepare(input='stories.txt,*.txt,./stories.txt', tokenizer=str(bpe), val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)
    assert len(meta_of(folder)['sources']) == 1


def test_a_name_that_looks_like_a_pattern_is_found(bpe):
    Path('story[1].txt').write_text(TEXT, encoding='utf-8')
    folder = prepare(None, input='story[1].txt', tokenizer=str(bpe), val_fraction=0)
    assert documents_of(folder, 'train') == STORIES


def test_a_file_that_the_project_ships_is_found_from_any_folder(bpe):
    folder = prepare(None, input='data/childrens_stories/childrens_stories.txt', tokenizer=str(bpe), val_fraction=0)
    assert documents_of(folder, 'train') == split_documents(corpus(), '\n\n\n')


@pytest.mark.parametrize('name', ['nowhere.txt', 'nowhere*.txt', '.'])
def test_a_file_that_cannot_be_read_is_named(name):
    with pytest.raises(UserError) as error:
        prepare(input=name)
    assert name in str(error.value)
    assert not Path('data').exists()


def test_a_file_that_is_not_utf8_is_an_error_that_names_the_place():
    Path('latin1.txt').write_bytes('Es war einmal ein Fräulein'.encode('latin-1'))
    with pytest.raises(UserError, match=r'latin1\.txt .*UTF-8.*byte 20'):
        prepare(input='latin1.txt')


@pytest.mark.parametrize('text', ['', '\n\n\n\n', ' \n\t\n\n\n \r\n'])
def test_a_text_without_text_is_an_error(text):
    with pytest.raises(UserError, match='no text'):
        prepare(text)
    assert not Path('data').exists()


@pytest.mark.parametrize('missing', ['input', 'dataset'])
def test_input_and_dataset_must_be_said(missing):
    with pytest.raises(UserError, match=r'--input=.* --dataset='):
        prepare(**{missing: ''})


# Tokenizers -----------------------------------------------------------------------------------------------------------


def test_characters_have_the_separator_before_between_and_after():
    folder = prepare(tokenizer='char', val_fraction=0.3)
    meta = meta_of(folder)
    tokenizer = from_contents(meta['tokenizer'])
    assert isinstance(tokenizer, CharTokenizer)
    assert meta['tokenizer']['chars'] == sorted(set(TEXT))
    parts = []
    for split in ('train', 'val'):
        text = tokenizer.decode(ids_of(folder, split))
        assert text.startswith('\n\n\n') and text.endswith('\n\n\n')
        parts.append(text.strip('\n').split('\n\n\n'))
    assert_whole_and_apart(*parts, STORIES)


def test_a_bpe_is_trained_on_the_training_part_only():
    text = '\n\n\n'.join(f'{letter}{letter} ' * 500 for letter in 'abcdefghij')
    folder = prepare(text, train_bpe=300, val_fraction=0.3)
    meta = meta_of(folder)
    tokenizer = from_contents(meta['tokenizer'])
    train, val = both_of(folder)
    assert (len(train), len(val)) == (7, 3)
    for document in train:
        assert len(tokenizer.encode(document)) < 1000
    for document in val:
        assert len(tokenizer.encode(document)) >= 1000  # it never saw this letter, so it has no token of two of them


def test_a_trained_bpe_has_the_size_asked_for():
    folder = prepare(train_bpe=300, val_fraction=0.3)
    assert meta_of(folder)['vocab_size'] == 300
    assert_whole_and_apart(*both_of(folder), STORIES)


def test_a_bpe_of_too_few_tokens_is_an_error_and_writes_nothing():
    with pytest.raises(UserError, match='100 were asked for'):
        prepare(train_bpe=100)
    assert not Path('data').exists()


class CodePoints:
    """A tokenizer whose ids are Unicode's code points."""

    def __init__(self, vocab_size, eot):
        self.vocab_size, self.eot, self.contents = vocab_size, eot, {'kind': 'code points'}

    def encode_batch(self, texts):
        return [[ord(char) for char in text] for text in texts]


@pytest.mark.parametrize(('vocab_size', 'dtype'), [(2**16, np.uint16), (2**16 + 1, np.uint32), (0x110000, np.uint32)])
def test_ids_beyond_16_bits_take_32(monkeypatch, vocab_size, dtype):
    last = chr(vocab_size - 1)
    monkeypatch.setattr(prepare_bin, 'from_name', lambda name: CodePoints(vocab_size, eot=0))
    folder = prepare(f'ab{last}', tokenizer='any', val_fraction=0)
    assert np.fromfile(folder / 'train.bin', dtype).tolist() == [0, ord('a'), ord('b'), ord(last), 0]
    assert meta_of(folder)['dtype'] == np.dtype(dtype).name
    assert meta_of(folder)['vocab_size'] == vocab_size


# What is written down, and what happens when writing fails ------------------------------------------------------------


def test_meta_json_counts_what_is_there(bpe):
    Path('more.txt').write_text('Möwe\n', encoding='utf-8')
    folder = prepare(input='stories.txt,more.txt', tokenizer=str(bpe), val_fraction=0.3)
    meta = meta_of(folder)
    for split in ('train', 'val'):
        content, documents = (folder / f'{split}.bin').read_bytes(), documents_of(folder, split)
        assert meta[split] == {
            'documents': len(documents),
            'bytes': len(''.join(documents).encode()),
            'tokens': len(content) // 2,
            'sha256': hashlib.sha256(content).hexdigest(),
        }
    for source, name in zip(meta['sources'], ('stories.txt', 'more.txt'), strict=True):
        content = Path(name).read_bytes()
        assert source == {'name': name, 'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    assert meta['vocab_size'] == 300
    assert sorted(path.name for path in folder.iterdir()) == ['meta.json', 'train.bin', 'val.bin']


def test_a_write_that_fails_leaves_the_old_files(bpe, monkeypatch):
    folder = prepare(tokenizer=str(bpe))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('common.os.fsync', full)
    with pytest.raises(Exception, match='No space left'):
        prepare('Another story.', tokenizer=str(bpe), val_fraction=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_ids_that_do_not_fit_leave_the_old_files(bpe, monkeypatch):
    folder = prepare(tokenizer=str(bpe))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(prepare_bin, 'from_name', lambda name: CodePoints(300, eot=70_000))
    with pytest.raises(OverflowError):
        prepare('Another story.', tokenizer='any', val_fraction=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_character_that_only_val_has_and_the_tokenizer_lacks_leaves_the_old_files(bpe):
    folder = prepare(tokenizer=str(bpe))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    CharTokenizer(sorted(set(TEXT))).save('letters')
    _, val = hold_out(STORIES, 0.1, seed=1337)
    assert val
    with pytest.raises(UserError, match='U\\+1F40A'):
        prepare(TEXT.replace(val[-1], val[-1][:-1] + '🐊'), tokenizer='letters')
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_where_the_folder_should_be_is_an_error(bpe):
    Path('data').mkdir()
    Path('data/tales').write_text('mine')
    with pytest.raises(UserError, match='tales'):
        prepare(tokenizer=str(bpe))
    assert Path('data/tales').read_text() == 'mine'


# The stories that are shipped -----------------------------------------------------------------------------------------

CORPUS = PROJECT / 'data' / 'childrens_stories'


def corpus():
    return (CORPUS / 'childrens_stories.txt').read_text(encoding='utf-8')


def test_corpus_has_enough_stories_each_with_its_own_title():
    stories = split_documents(corpus(), '\n\n\n')
    titles = [story.split('\n')[0] for story in stories]
    assert len(stories) >= 40
    assert len(corpus().encode()) >= 60_000
    assert len({title.casefold() for title in titles}) == len(titles)
    assert all(0 < len(title) <= 60 and title == title.strip() for title in titles)
    bodies = [story.split('\n', 1)[1].strip() for story in stories]
    assert len(set(bodies)) == len(bodies)
    assert min(map(len, bodies)) > 200


def test_corpus_says_no_paragraph_twice_in_different_stories():
    seen = {}
    for number, story in enumerate(split_documents(corpus(), '\n\n\n')):
        for paragraph in story.split('\n'):
            if len(paragraph) > 60:
                assert seen.setdefault(paragraph, number) == number, paragraph


def test_corpus_is_clean_text():
    text = corpus()
    assert '\r' not in text and '\ufffd' not in text and '\t' not in text and EOT not in text
    assert all(line == line.rstrip() for line in text.split('\n'))
    assert all(char == '\n' or char.isprintable() for char in text)


def test_corpus_token_files_decode_to_exactly_its_stories():
    files = [CORPUS / name for name in ('train.bin', 'val.bin', 'meta.json')]
    if not any(file.exists() for file in files):
        pytest.skip('the corpus has no token files yet')
    meta = meta_of(CORPUS)
    if meta['tokenizer'] == {'kind': 'gpt2'} and needs_gpt2_vocabulary.args[0]:
        pytest.skip(needs_gpt2_vocabulary.kwargs['reason'])
    train, val = both_of(CORPUS)
    assert train and val
    assert_whole_and_apart(train, val, split_documents(corpus(), '\n\n\n'))
    for split in ('train', 'val'):
        assert meta[split]['sha256'] == hashlib.sha256((CORPUS / f'{split}.bin').read_bytes()).hexdigest()
    assert meta['sources'][0]['sha256'] == hashlib.sha256((CORPUS / 'childrens_stories.txt').read_bytes()).hexdigest()
