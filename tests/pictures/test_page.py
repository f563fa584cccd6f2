"""What is in the file of a page, without a browser."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers.pages import (
    WORDS,
    a_page,
    a_token,
    alternative,
    json_of,
    piece_of,
    side_of,
    written,
)
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.strings import INVISIBLE
from lm.alternatives import record_tokens
from lm.tokenizer import CharTokenizer
from model import logits_to_logprobs
from pictures import page as pages
from pictures.page import Page, PageText, make_side


@pytest.mark.parametrize('models', [1, 2])
@pytest.mark.parametrize('sampler', [None, 'temperature 0.8'])
def test_every_number_of_the_records_is_in_the_json(tmp_path, models, sampler):
    page = a_page(models=models, sampler=sampler)
    kept = json_of(written(page, tmp_path).read_text(encoding='utf-8'))
    assert kept == pages.page_data(page)
    assert len(set(kept['pieces'])) == len(kept['pieces'])
    for text, kept_text in zip(page.texts, kept['texts'], strict=True):
        for side, columns in zip(text.sides, kept_text['sides'], strict=True):
            tokens = side.records
            assert columns['logprobs'] == pytest.approx([token.model_logprob for token in tokens], rel=1e-6)
            assert columns['entropies'] == pytest.approx([token.entropy for token in tokens], rel=1e-6)
            assert columns['ranks'] == [token.rank for token in tokens]
            assert [kept['pieces'][place] for place in columns['pieces']] == [
                pages.show_invisible(piece_of(t)) for t in tokens
            ]
            assert columns['logprob'] == pytest.approx(math.fsum(token.model_logprob for token in tokens), rel=1e-11)
            for token, places, probs in zip(tokens, columns['alternatives'], columns['probs'], strict=True):
                assert [kept['pieces'][place] for place in places] == [
                    pages.show_invisible(piece_of(a)) for a in token.alternatives
                ]
                assert probs == pytest.approx([math.exp(a.model_logprob) for a in token.alternatives], rel=1e-6)
            if sampler is None:
                assert columns['sampler_logprobs'] is columns['sampler_probs'] is columns['sampler_logprob'] is None
            else:
                total = math.fsum(token.sampler_logprob for token in tokens)
                assert columns['sampler_logprob'] == pytest.approx(total, rel=1e-11)
                assert columns['sampler_logprobs'] == pytest.approx([t.sampler_logprob for t in tokens], rel=1e-6)
                for token, probs in zip(tokens, columns['sampler_probs'], strict=True):
                    assert probs == pytest.approx([math.exp(a.sampler_logprob) for a in token.alternatives], rel=1e-6)


def test_a_side_shows_the_records_under_the_tokenizers_pieces():
    tokenizer = CharTokenizer('abcdefghijklmnopqrstuvwxyz \n\t')
    logits = torch.tensor(np.random.default_rng(1).normal(0, 2, tokenizer.vocab_size), dtype=torch.float32)
    order = logits.argsort(descending=True).tolist()
    records = record_tokens(logits.expand(2, -1), torch.tensor([order[0], order[15]]), 0.5, top_k=4)
    page = Page('', [], ['m'], 'temperature 0.5, top_k 4', [PageText('one', '', [make_side(records, tokenizer)])])
    data = pages.page_data(page)
    (side,) = data['texts'][0]['sides']
    of_model, of_sampler = logits_to_logprobs(logits), logits_to_logprobs(logits, 0.5, 4)
    assert side['ranks'] == [1, 16]
    assert [data['pieces'][place] for place in side['pieces']] == tokenizer.pieces([order[0], order[15]])
    assert side['logprobs'] == pytest.approx([of_model[order[0]].item(), of_model[order[15]].item()])
    assert side['sampler_logprobs'] == [pytest.approx(of_sampler[order[0]].item()), '-Infinity']
    for others, probs, sampler_probs in zip(side['alternatives'], side['probs'], side['sampler_probs'], strict=True):
        assert [data['pieces'][place] for place in others] == tokenizer.pieces(order[:10])
        assert probs == pytest.approx(of_model[order[:10]].exp().tolist())
        assert sampler_probs == pytest.approx(of_sampler[order[:10]].exp().tolist())


@pytest.mark.parametrize(
    ('value', 'kept'),
    [
        (-math.inf, '-Infinity'),
        (math.inf, 'Infinity'),
        (0.0, 0.0),
        (-1.23456789012, -1.234568),
        (1.23456789e-40, 1.234568e-40),
        (50256, 50256.0),
    ],
)
def test_numbers_keep_seven_significant_digits_and_infinities_are_words(value, kept):
    assert pages.round_number(value) == kept


def test_a_token_that_the_sampler_cannot_draw_has_an_infinite_sum():
    alternatives = [alternative('·a', 0.5, 1.0), alternative('·king', 0.25, 0.0)]
    tokens = [a_token(sampler_logprob=-math.inf, alternatives=alternatives), a_token(sampler_logprob=0.0)]
    (text,) = pages.page_data(Page('', [], ['m'], 'temperature 0', [PageText('', '', [side_of(tokens)])]))['texts']
    assert text['sides'][0]['sampler_logprob'] == '-Infinity'
    assert text['sides'][0]['sampler_logprobs'] == ['-Infinity', 0.0]


@pytest.mark.parametrize(
    'page',
    [
        Page('', [], ['m'], None, [PageText('t', '', [side_of([a_token(logprob=math.nan)])])]),
        Page('', [], ['m'], None, [PageText('t', '', [])]),
        Page('', [], ['a', 'b', 'c'], None, []),
        Page('', [], [], None, []),
    ],
    ids=['nan', 'a side is missing', 'three models', 'no model'],
)
def test_an_invalid_page_leaves_the_old_file_alone(tmp_path, page):
    (tmp_path / 'page.html').write_text('mine')
    with pytest.raises(ValueError):
        written(page, tmp_path)
    assert (tmp_path / 'page.html').read_text() == 'mine'
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_place_of_a_folder_is_a_user_error(tmp_path):
    (tmp_path / 'results').write_text('mine')
    with pytest.raises(UserError, match='results'):
        pages.write_page(a_page(), tmp_path / 'results' / 'page.html')


@pytest.mark.slow
@given(st.text() | st.text(alphabet='<>&/!-\u2028\u2029"\'\\script\0\r\n'))
def test_embedded_json_is_ascii_that_no_text_can_end(text):
    kept = pages.embed_json({text: [text]})
    assert kept.isascii() and kept.isprintable()
    assert not set('<>&') & set(kept)
    assert json.loads(kept) == {text: [text]}


@given(st.text(alphabet=st.characters()))
def test_invisible_characters_become_code_points(text):
    shown = pages.show_invisible(text)
    shown.encode('utf-8')  # no lone surrogates
    assert not INVISIBLE.search(shown)
    assert pages.show_invisible(shown) == shown
    back = re.sub(r'‹U\+([0-9A-F]{4,6})›', lambda point: chr(int(point[1], 16)), shown)
    if '‹' not in text:
        assert back == text


def test_spaces_and_letters_of_every_language_stay_as_they_are():
    text = 'Once\n\tupon a time · שלום 👨‍👩‍👧 می‌خواهم 中文 é'
    assert pages.show_invisible(text) == text
    assert pages.show_invisible('\x00\u202e\ud83d') == '‹U+0000›‹U+202E›‹U+D83D›'
    assert pages.show_invisible('a\u200e\u200f\u061cb\xad\ufeff') == 'a‹U+200E›‹U+200F›‹U+061C›b‹U+00AD›‹U+FEFF›'


class Elements(HTMLParser):
    """The elements of a document as a browser meets them, and the text outside of scripts and styles."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.text, self._inside = [], [], None
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside not in ('script', 'style'):
            self.text.append(data)


def test_no_text_becomes_html_elements():
    nasty = a_page(models=2, sampler='temperature 0.8')
    harmless = a_page(models=2, sampler='temperature 0.8', words=[f'·word{n}' for n in range(len(WORDS))])
    harmless.title, harmless.about, harmless.models = 'title', ['one', 'two'], ['after', 'before']
    for text in harmless.texts:
        text.prompt = 'Once'
    one, other = Elements(pages.render_page(nasty)), Elements(pages.render_page(harmless))
    assert one.tags == other.tags
    assert [tag for tag, _ in one.tags].count('script') == 2


def test_without_javascript_the_text_is_there():
    page = a_page()
    text = ''.join(Elements(pages.render_page(page)).text)
    for one in page.texts:
        assert one.label in text and pages.show_invisible(one.prompt) in text
        for token in one.sides[0].records:
            assert pages.show_invisible(piece_of(token)) in text
    assert 'need JavaScript' in text


def test_the_policy_allows_only_this_style_and_this_script(tmp_path):
    document = written(a_page(), tmp_path).read_text(encoding='utf-8')
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', document)
    policy = dict(rule.strip().split(' ', 1) for rule in policy.split(';'))
    for tag in ('style', 'script'):
        (content,) = re.findall(f'<{tag}>(.*?)</{tag}>', document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(f'{tag}-src') == f"'sha256-{digest}'"
    assert policy == {'default-src': "'none'", 'base-uri': "'none'", 'form-action': "'none'"}


def test_the_template_loads_nothing_and_makes_no_html_from_text():
    template = pages.TEMPLATE.read_text(encoding='utf-8')
    for word in (
        'http:',
        'https:',
        '//cdn',
        'url(',
        '@import',
        'innerHTML',
        'insertAdjacentHTML',
        'document.write',
        'eval(',
    ):
        assert word not in template


def test_a_page_is_small():
    """A token with its ten alternatives takes some 200 bytes; twice that with a sampler's numbers."""
    words = [f'·word{n}' for n in range(2000)]
    bare = len(pages.render_page(a_page(texts=0)))
    per_token = {
        sampler: (len(pages.render_page(a_page(texts=1, tokens=100, sampler=sampler, words=words))) - bare) / 100
        for sampler in (None, 'temperature 0.8')
    }
    assert bare < 50_000
    assert per_token[None] < 350 and per_token['temperature 0.8'] < 480
