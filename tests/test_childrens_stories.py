"""The shipped stories: clean text, no repetitions, and token files that decode to it."""

import hashlib

import pytest
from helpers.datasets import CORPUS, assert_whole_and_apart, both_of, corpus, meta_of, stories_of
from helpers.models import needs_gpt2_vocabulary

import prepare_bin
from common.notes import forget_notes
from lm.tokenizer import EOT


def test_corpus_has_enough_stories_each_with_its_own_title():
    stories = stories_of(corpus())
    titles = [story.split('\n')[0] for story in stories]
    assert len(stories) >= 40
    assert len(corpus().encode()) >= 60_000
    assert len({title.casefold() for title in titles}) == len(titles)
    assert all(0 < len(title) <= 60 and title == title.strip() for title in titles)
    bodies = [story.split('\n', 1)[1].strip() for story in stories]
    assert len(set(bodies)) == len(bodies)
    assert min(map(len, bodies)) > 200


def test_corpus_has_no_paragraph_in_two_stories():
    seen = {}
    for number, story in enumerate(stories_of(corpus())):
        for paragraph in story.split('\n'):
            if len(paragraph) > 60:
                assert seen.setdefault(paragraph, number) == number, paragraph


def test_corpus_is_clean_text():
    text = corpus()
    assert '\r' not in text and '\ufffd' not in text and '\t' not in text and EOT not in text
    assert all(line == line.rstrip() for line in text.split('\n'))
    assert all(char == '\n' or char.isprintable() for char in text)


def test_corpus_token_files_decode_to_its_stories():
    files = [CORPUS / name for name in ('train.bin', 'val.bin', 'meta.json')]
    if not any(file.exists() for file in files):
        pytest.skip('the corpus has no token files yet')
    meta = meta_of(CORPUS)
    if meta['tokenizer'] == {'kind': 'gpt2'} and needs_gpt2_vocabulary.args[0]:
        pytest.skip(needs_gpt2_vocabulary.kwargs['reason'])
    train, val = both_of(CORPUS)
    assert train and val
    assert_whole_and_apart(train, val, stories_of(corpus()))
    for split in ('train', 'val'):
        assert meta[split]['sha256'] == hashlib.sha256((CORPUS / f'{split}.bin').read_bytes()).hexdigest()
    assert meta['sources'][0]['sha256'] == hashlib.sha256((CORPUS / 'childrens_stories.txt').read_bytes()).hexdigest()


@needs_gpt2_vocabulary
def test_prepare_bin_without_arguments_prepares_the_shipped_stories_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    forget_notes()
    prepare_bin.main(prepare_bin.Settings())
    for name in ('train.bin', 'val.bin', 'meta.json'):
        assert (tmp_path / 'data' / 'childrens_stories' / name).read_bytes() == (CORPUS / name).read_bytes()
    assert 'note: preparing the shipped stories' in capsys.readouterr().err
