"""The HTML page: what is in the file without a browser; what a person sees and does in headless Chromium."""

import base64
import hashlib
import itertools
import json
import math
import re
import shutil
from contextlib import contextmanager
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from pictures import page as pages
from pictures.page import Alternative, Page, PageText, Side, Token

# Pieces that would break a page that is put together carelessly.
NASTY = [
    '</script>',
    '<!--<script>',
    '"\'&amp;\\',
    '<img·src=x·onerror=hacked=1>',
    '{{data}}',
    'a\u2028b\u2029c',
    '\x00\x1b\x7f',
    '\ud83d',
    '·🙂',
    '·שלום',
    '</style>]]>',
    '${hacked=1}',
    '__proto__',
]
WORDS = [
    *NASTY,
    '·king',
    '·the',
    '⏎',
    '·',
    '·a',
    ',',
    '.',
    's',
    '·princess',
    '·wood',
    'cutter',
    '·on',
    '·disproportionately',
]


def random_token(random, words, temperature=None):
    """A token drawn from a random distribution over words, with all its numbers as numpy has them."""
    logits = random.normal(0, 2.5, len(words))

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum()

    model = softmax(logits)
    sampler = None if temperature is None else softmax(logits / temperature)
    chosen = random.integers(len(words))
    order = np.argsort(-model, kind='stable')
    return Token(
        piece=words[chosen],
        logprob=float(np.log(model[chosen])),
        sampler_logprob=None if sampler is None else float(np.log(sampler[chosen])),
        rank=int(np.flatnonzero(order == chosen)[0]) + 1,
        entropy=float(-(model * np.log(model)).sum()),
        alternatives=[
            Alternative(words[id], float(model[id]), None if sampler is None else float(sampler[id]))
            for id in order[:10]
        ],
    )


def a_page(texts=2, tokens=12, models=1, sampler=None, words=WORDS, same_pieces=True, seed=0, **changes):
    """A page of random texts; with two models these say the same tokens unless told otherwise."""
    random = np.random.default_rng(seed)
    temperature = None if sampler is None else 0.8
    made = []
    for number in range(texts):
        sides = [Side([random_token(random, words, temperature) for _ in range(tokens)]) for _ in range(models)]
        if models == 2 and same_pieces:
            for one, other in zip(sides[0].tokens, sides[1].tokens):
                other.piece = one.piece
                other.rank = 12 + number  # not among the ten, whatever these are
        made.append(
            PageText(f'sample {number + 1}', f'Once upon\ta time </p> {NASTY[number % len(NASTY)]}\nand', sides)
        )
    values = {
        'title': 'A title with <b> & "quotes" </title>',
        'about': ['python sample.py --start="</script>"', 'seed 1'],
        'models': ['after <i>', 'before'][:models],
        'sampler': sampler,
        'texts': made,
    }
    return Page(**(values | changes))


def a_token(piece='·king', logprob=-1.0, rank=2, alternatives=(), sampler_logprob=None, entropy=1.0):
    return Token(piece, logprob, sampler_logprob, rank, entropy, list(alternatives))


def written(page, folder):
    path = folder / 'page.html'
    pages.write_page(page, path)
    return path


def json_of(document):
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', document, re.DOTALL)
    return json.loads(content, parse_constant=lambda word: pytest.fail(f'{word} is no JSON'))


# The file, without a browser ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('models', [1, 2])
@pytest.mark.parametrize('sampler', [None, 'temperature 0.8'])
def test_every_number_of_the_dataclasses_is_in_the_json(tmp_path, models, sampler):
    page = a_page(models=models, sampler=sampler)
    kept = json_of(written(page, tmp_path).read_text(encoding='utf-8'))
    assert kept == pages.page_data(page)
    assert len(set(kept['pieces'])) == len(kept['pieces'])
    for text, kept_text in zip(page.texts, kept['texts'], strict=True):
        for side, columns in zip(text.sides, kept_text['sides'], strict=True):
            tokens = side.tokens
            assert columns['logprobs'] == pytest.approx([token.logprob for token in tokens], rel=1e-6)
            assert columns['entropies'] == pytest.approx([token.entropy for token in tokens], rel=1e-6)
            assert columns['ranks'] == [token.rank for token in tokens]
            assert [kept['pieces'][place] for place in columns['pieces']] == [
                pages.show_invisible(t.piece) for t in tokens
            ]
            assert columns['logprob'] == pytest.approx(math.fsum(token.logprob for token in tokens), rel=1e-11)
            for token, places, probs in zip(tokens, columns['alternatives'], columns['probs'], strict=True):
                assert [kept['pieces'][place] for place in places] == [
                    pages.show_invisible(a.piece) for a in token.alternatives
                ]
                assert probs == pytest.approx([a.prob for a in token.alternatives], rel=1e-6)
            if sampler is None:
                assert columns['sampler_logprobs'] is columns['sampler_probs'] is columns['sampler_logprob'] is None
            else:
                total = math.fsum(token.sampler_logprob for token in tokens)
                assert columns['sampler_logprob'] == pytest.approx(total, rel=1e-11)
                assert columns['sampler_logprobs'] == pytest.approx([t.sampler_logprob for t in tokens], rel=1e-6)
                for token, probs in zip(tokens, columns['sampler_probs'], strict=True):
                    assert probs == pytest.approx([a.sampler_prob for a in token.alternatives], rel=1e-6)


@pytest.mark.parametrize(
    ('value', 'kept'),
    [
        (None, None),
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


def test_what_the_sampler_cannot_say_has_an_infinite_sum():
    alternatives = [Alternative('·a', 0.5, 1.0), Alternative('·king', 0.25, 0.0)]
    tokens = [a_token(sampler_logprob=-math.inf, alternatives=alternatives), a_token(sampler_logprob=0.0)]
    (text,) = pages.page_data(Page('', [], ['m'], 'temperature 0', [PageText('', '', [Side(tokens)])]))['texts']
    assert text['sides'][0]['sampler_logprob'] == '-Infinity'
    assert text['sides'][0]['sampler_logprobs'] == ['-Infinity', 0.0]


@pytest.mark.parametrize(
    'page',
    [
        Page('', [], ['m'], None, [PageText('t', '', [Side([a_token(logprob=math.nan)])])]),
        Page('', [], ['m'], None, [PageText('t', '', [])]),
        Page('', [], ['a', 'b', 'c'], None, []),
        Page('', [], [], None, []),
    ],
    ids=['nan', 'a side is missing', 'three models', 'no model'],
)
def test_what_cannot_be_a_page_leaves_the_old_file_alone(tmp_path, page):
    (tmp_path / 'page.html').write_text('mine')
    with pytest.raises(ValueError):
        written(page, tmp_path)
    assert (tmp_path / 'page.html').read_text() == 'mine'
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_where_a_folder_should_be_is_an_error_of_the_persons(tmp_path):
    (tmp_path / 'results').write_text('mine')
    with pytest.raises(UserError, match='results'):
        pages.write_page(a_page(), tmp_path / 'results' / 'page.html')


@given(st.text() | st.text(alphabet='<>&/!-\u2028\u2029"\'\\script\0\r\n'))
def test_embedded_json_is_ascii_that_no_text_can_end(text):
    kept = pages.embed_json({text: [text]})
    assert kept.isascii() and kept.isprintable()
    assert not set('<>&') & set(kept)
    assert json.loads(kept) == {text: [text]}


@given(st.text(alphabet=st.characters()))
def test_what_would_not_show_is_written_as_its_code_point(text):
    shown = pages.show_invisible(text)
    shown.encode('utf-8')  # no halves of characters
    assert not pages.INVISIBLE.search(shown)
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


def test_no_text_makes_elements_of_its_own():
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
        for token in one.sides[0].tokens:
            assert pages.show_invisible(token.piece) in text
    assert 'need JavaScript' in text


def test_the_policy_lets_in_this_style_and_this_script_only(tmp_path):
    document = written(a_page(), tmp_path).read_text(encoding='utf-8')
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', document)
    policy = dict(rule.strip().split(' ', 1) for rule in policy.split(';'))
    for tag in ('style', 'script'):
        (content,) = re.findall(f'<{tag}>(.*?)</{tag}>', document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(f'{tag}-src') == f"'sha256-{digest}'"
    assert policy == {'default-src': "'none'", 'base-uri': "'none'", 'form-action': "'none'"}


def test_nothing_in_the_template_is_from_elsewhere_or_makes_html_of_text():
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


# Colours --------------------------------------------------------------------------------------------------------------


def linear(colour):
    """Linear red, green and blue, 0 to 1, of '#rrggbb' (sRGB, IEC 61966-2-1)."""
    values = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return linear(colour) @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    """WCAG 2's contrast ratio."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb):
    """CIE L*a*b* of linear sRGB under D65."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = np.cbrt(np.maximum(np.array(to_xyz) @ rgb / [0.95047, 1, 1.08883], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# What is left of linear red, green and blue to eyes without one kind of cone: Machado, Oliveira and Fernandes 2009, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1.
EYES = {
    'all cones': np.eye(3),
    'protanopia': [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    'deuteranopia': [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    'tritanopia': [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def palette(scheme):
    """name -> '#rrggbb' of the page's colours in the light (0) or the dark (1) scheme."""
    template = pages.TEMPLATE.read_text(encoding='utf-8')
    pairs = re.findall(r'--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);', template)
    return {name: both[scheme] for name, *both in pairs}


@pytest.mark.parametrize('scheme', [0, 1], ids=['light', 'dark'])
def test_text_can_be_read_on_every_colour(scheme):
    colours = palette(scheme)
    classes = [name for name in colours if re.fullmatch(r'[sd]\d', name)]
    assert len(classes) == 13
    for name in classes:
        assert contrast(colours[name], colours[f'on-{name}']) >= 4.5
    for ink, background in itertools.product(('ink', 'quiet', 'link', 'chosen-ink'), ('page', 'card')):
        assert contrast(colours[ink], colours[background]) >= 4.5
    for part in ('ring', 'chosen'):  # not text: 3 is enough
        assert contrast(colours[part], colours['card']) >= (3 if part == 'ring' else 2.5)


@pytest.mark.parametrize('scheme', [0, 1], ids=['light', 'dark'])
@pytest.mark.parametrize('eyes', EYES)
def test_colours_are_told_apart_by_all_eyes_and_the_scale_in_grey_too(scheme, eyes):
    colours = palette(scheme)
    seen = {name: lab(np.array(EYES[eyes]) @ linear(colour)) for name, colour in colours.items()}
    lightness = [seen[f's{n}'][0] for n in range(6)]
    steps = np.diff(lightness) * (1 if scheme else -1)
    assert (steps > 3).all()  # one way
    assert abs(lightness[-1] - lightness[0]) > 65
    for one, other in itertools.combinations([f'd{n}' for n in range(7)], 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 9, (one, other)
    for n in range(3):
        assert np.linalg.norm(seen[f'd{n}'] - seen[f'd{6 - n}']) > 15  # less likely, and likelier


# In a browser ---------------------------------------------------------------------------------------------------------

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']
FLAGS += ['--disable-component-update', '--disable-sync']


@pytest.fixture(scope='module')
def chromium():
    """Headless Chromium, as the system has it."""
    sync_api = pytest.importorskip(
        'playwright.sync_api', reason='needs playwright: pip install -r requirements-dev.txt'
    )
    names = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'msedge')
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f'needs a browser: none of {", ".join(names)} is installed')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """A function that writes a page and opens it from the disk; in the end nothing was loaded, nothing complained."""

    @contextmanager
    def open_page(page, width=1200, height=800, **options):
        path = written(page, tmp_path)
        context = chromium.new_context(viewport={'width': width, 'height': height}, **options)
        complaints, requests = [], []
        context.on('request', lambda request: requests.append(request.url))
        context.on('console', lambda message: complaints.append(message.text))
        view = context.new_page()
        view.on('pageerror', lambda error: complaints.append(str(error)))
        view.set_default_timeout(10_000)
        view.goto(path.as_uri())
        yield view
        if options.get('java_script_enabled', True):
            assert view.evaluate('typeof hacked') == 'undefined'
        assert complaints == []
        assert requests == [path.as_uri()]
        context.close()

    return open_page


def line_of(view, text, side=0):
    """The tokens of a text as one model cuts it."""
    return view.locator('article').nth(text).get_by_role('listbox').nth(side).get_by_role('option')


def values(view, selector):
    """The numbers for machines in a part of the panel."""
    return [
        float(value) for value in view.locator(f'#detail {selector} data').evaluate_all('all => all.map(d => d.value)')
    ]


def fact(view, name):
    return values(view, f'[data-fact="{name}"]')


def shown_piece(view):
    return view.locator('#detail .head .piece').text_content()


def test_texts_show_as_text_and_nothing_else(opened):
    page = a_page(texts=len(NASTY), tokens=30, sampler='temperature 0.8')
    with opened(page) as view:
        assert view.title() == page.title
        assert view.locator('h1').text_content() == page.title
        assert view.locator('.about li').all_text_contents() == page.about
        assert view.locator('article').count() == len(page.texts)
        for number, text in enumerate(page.texts):
            pieces = [pages.show_invisible(token.piece) for token in text.sides[0].tokens]
            assert line_of(view, number).all_text_contents() == pieces
            assert view.locator('article .prompt').nth(number).text_content() == pages.show_invisible(text.prompt)
        assert view.locator('article img, article script, article b:not(.totals b)').count() == 0


def test_pointing_at_a_token_shows_its_numbers(opened):
    page = a_page(texts=1, tokens=25, sampler='temperature 0.8')
    with opened(page) as view:
        for at, token in enumerate(page.texts[0].sides[0].tokens):
            line_of(view, 0).nth(at).hover()
            assert shown_piece(view) == pages.show_invisible(token.piece)
            assert fact(view, 'model probability') == pytest.approx([math.exp(token.logprob), token.logprob], rel=1e-6)
            sampler = [math.exp(token.sampler_logprob), token.sampler_logprob]
            assert fact(view, 'sampler probability') == pytest.approx(sampler, rel=1e-6)
            assert fact(view, 'rank') == [token.rank]
            assert fact(view, 'entropy') == pytest.approx([token.entropy, math.exp(token.entropy)], rel=1e-5)

            rows = [(other.piece, other.prob, other.sampler_prob) for other in token.alternatives]
            if token.rank > 10:
                rows.append((token.piece, math.exp(token.logprob), math.exp(token.sampler_logprob)))
            names = [name.removesuffix(' (stands here)') for name in view.locator('.choices .name').all_text_contents()]
            assert names == [pages.show_invisible(piece) for piece, _, _ in rows]
            assert values(view, '.value:not(.of-sampler)') == pytest.approx([model for _, model, _ in rows], rel=1e-5)
            assert values(view, '.value.of-sampler') == pytest.approx([sampler for *_, sampler in rows], rel=1e-5)
            (chosen,) = view.locator('.choices .chosen .rank').all_text_contents()
            assert int(chosen) == token.rank
            assert view.locator('.choices .below').count() == (token.rank > 10)

            # The bars: as long as the probabilities, on a scale that the key names.
            (scale,) = re.findall(r'from 0 to ([\d.]+) %', view.locator('#detail .key').text_content())
            tracks = view.locator('.choices .track').evaluate_all(
                'all => all.map(t => t.getBoundingClientRect().width)'
            )
            lengths = view.locator('.choices .fill').evaluate_all(
                'all => all.map(f => f.getBoundingClientRect().width)'
            )
            marks = view.locator('.choices .mark').evaluate_all(
                'all => all.map(m => m.getBoundingClientRect().left + 1 - m.parentNode.getBoundingClientRect().left)'
            )
            share = 100 / float(scale)
            expected = [max(1, model * share * track) for (_, model, _), track in zip(rows, tracks, strict=True)]
            assert lengths == pytest.approx(expected, abs=0.6)
            assert marks == pytest.approx([s * share * track for (*_, s), track in zip(rows, tracks)], abs=0.6)


def test_totals_are_what_sample_prints(opened):
    page = a_page(texts=1, tokens=600, sampler='temperature 0.8')
    tokens = page.texts[0].sides[0].tokens
    with opened(page) as view:
        for place, name, logprobs in (
            (0, 'model', [token.logprob for token in tokens]),
            (1, 'sampler (temperature 0.8)', [token.sampler_logprob for token in tokens]),
        ):
            line = view.locator('.totals').nth(place)
            total = math.fsum(logprobs)
            assert line.locator('b').text_content() == name
            assert float(line.locator('data').get_attribute('value')) == pytest.approx(total, rel=1e-11)
            text = line.text_content()
            assert f'logprob {total:.4f}, ' in text
            assert f'perplexity per token {math.exp(-total / 600):.4g}' in text
            # The probability is far too small for a float, and is there all the same.
            mantissa, exponent = re.search(r'probability ([\d.]+) × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)', text).groups()
            exponent = int(exponent.translate(str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789')))
            assert exponent < -324 and 1 <= float(mantissa) < 10
            assert math.log(float(mantissa)) + exponent * math.log(10) == pytest.approx(total, abs=1e-5)


def test_a_click_pins_and_escape_lets_go(opened):
    page = a_page(texts=1, tokens=6, words=[f'·word{n}' for n in range(30)])
    pieces = [token.piece for token in page.texts[0].sides[0].tokens]
    with opened(page) as view:
        tokens = line_of(view, 0)
        tokens.nth(1).click()
        tokens.nth(3).hover()
        assert shown_piece(view) == pieces[1]
        assert tokens.nth(1).get_attribute('aria-selected') == 'true'
        view.keyboard.press('Escape')
        assert tokens.nth(1).get_attribute('aria-selected') == 'false'
        tokens.nth(4).hover()
        assert shown_piece(view) == pieces[4]
        tokens.nth(2).click()
        tokens.nth(5).click()  # the pin goes there
        tokens.nth(0).hover()
        assert shown_piece(view) == pieces[5]
        tokens.nth(5).click()  # and is taken out
        tokens.nth(0).hover()
        assert shown_piece(view) == pieces[0]
        tokens.nth(2).click()
        view.get_by_role('button', name='unpin').click()
        tokens.nth(0).hover()
        assert shown_piece(view) == pieces[0]
        assert view.locator('[aria-selected=true]').count() == 0


def tab_to_the_text(view):
    for _ in range(20):
        view.keyboard.press('Tab')
        if view.evaluate('document.activeElement.matches(".token")'):
            return
    pytest.fail('Tab does not come to a token')


def focused(view):
    """(text, side, token) of the token that has the focus."""
    return tuple(
        view.evaluate("""() => {
            const token = document.activeElement, article = token.closest('article');
            const boxes = [...article.querySelectorAll('[role=listbox]')], box = token.closest('[role=listbox]');
            const tokens = [...box.querySelectorAll('.token')];
            const articles = [...document.querySelectorAll('article')];
            return [articles.indexOf(article), boxes.indexOf(box), tokens.indexOf(token)];
        }""")
    )


def test_the_keyboard_reaches_every_token(opened):
    page = a_page(texts=3, tokens=5, words=[f'·word{n}' for n in range(30)])
    page.texts[1].sides[0].tokens.clear()  # nothing to stop at
    page.texts[2].sides[0].tokens.pop()
    with opened(page) as view:
        tab_to_the_text(view)
        assert view.locator('.token[tabindex="0"]').count() == 1
        for key, place in [
            ('ArrowRight', (0, 0, 1)),
            ('ArrowRight', (0, 0, 2)),
            ('ArrowLeft', (0, 0, 1)),
            ('Home', (0, 0, 0)),
            ('ArrowLeft', (0, 0, 0)),
            ('End', (0, 0, 4)),
            ('ArrowRight', (0, 0, 4)),
            ('ArrowDown', (2, 0, 3)),
            ('ArrowDown', (2, 0, 3)),
            ('ArrowUp', (0, 0, 3)),
        ]:
            view.keyboard.press(key)
            assert focused(view) == place, key
            token = page.texts[place[0]].sides[0].tokens[place[2]]
            assert shown_piece(view) == token.piece
            said = view.locator('[aria-live=polite]').text_content()
            assert said.startswith(f'{token.piece}: model probability ') and f'rank {token.rank}' in said
        assert view.locator('.token[tabindex="0"]').count() == 1
        style = view.evaluate('getComputedStyle(document.activeElement).outlineStyle')
        assert style == 'solid'  # one sees where one is
        view.keyboard.press('Enter')
        line_of(view, 0).nth(0).hover()
        assert shown_piece(view) == page.texts[0].sides[0].tokens[3].piece
        view.keyboard.press('ArrowLeft')  # takes the pin along
        line_of(view, 0).nth(0).hover()
        assert shown_piece(view) == page.texts[0].sides[0].tokens[2].piece
        view.keyboard.press('Escape')
        line_of(view, 0).nth(1).hover()
        assert shown_piece(view) == page.texts[0].sides[0].tokens[1].piece


def test_a_number_of_a_text_leads_the_keyboard_there(opened):
    page = a_page(texts=40, tokens=30, models=2, words=[f'·word{n}' for n in range(30)])
    page.texts[20].prompt = 'Once upon a time. ' * 400  # longer than the window
    for side in page.texts[1].sides:
        side.tokens.clear()
    with opened(page) as view:
        chips, focus = view.locator('#chips a'), 'document.activeElement.textContent'
        assert chips.evaluate_all('all => all.filter((chip) => chip.tabIndex === 0).length') == 1
        chips.first.focus()
        tops = chips.evaluate_all('all => all.map((chip) => chip.offsetTop)')
        row = tops.count(tops[0])
        assert 10 < row < 36  # there is a second row, and its fifth is there
        for key, number in [
            ('ArrowLeft', 1),
            ('ArrowRight', 2),
            ('ArrowRight', 3),
            ('ArrowDown', row + 3),
            ('ArrowLeft', row + 2),
            ('ArrowUp', 2),
            ('ArrowUp', 2),
            ('End', 40),
            ('ArrowRight', 40),
            ('Home', 1),
        ]:
            view.keyboard.press(key)
            assert view.evaluate(focus) == str(number), key
        view.keyboard.press('Tab')
        assert focused(view) == (0, 0, 0)  # one stop for all of them
        for number in (12, 20, 39):
            chips.nth(number).focus()
            view.keyboard.press('Enter')
            assert focused(view) == (number, 0, 0)
            assert shown_piece(view) == page.texts[number].sides[0].tokens[0].piece
            assert view.url.endswith(f'#text-{number}')
            box = view.locator(':focus').bounding_box()
            assert view.locator('.tools').bounding_box()['height'] <= box['y'] and box['y'] + box['height'] <= 800
            view.keyboard.press('ArrowRight')
            assert focused(view) == (number, 0, 1)
            view.keyboard.press('Shift+Tab')
            assert view.evaluate(focus) == str(number + 1)  # back at the number
            view.keyboard.press('Tab')
            assert focused(view) == (number, 0, 1)
        view.keyboard.press('Enter')
        chips.nth(5).click()  # takes the pin along, as arrows do
        assert focused(view) == (5, 0, 0)
        assert line_of(view, 5).first.get_attribute('aria-selected') == 'true'
        chips.nth(1).click()  # nothing to stop at: the browser goes to the heading
        assert view.url.endswith('#text-1')
        choose(view, 'change')
        chips.nth(8).click()
        assert focused(view) == (8, 0, 0)


def test_the_hint_names_keys_that_there_are(opened):
    def hint(page):
        with opened(page) as view:
            return view.locator('.by-keyboard').text_content()

    one, many = hint(a_page(texts=1)), hint(a_page(texts=2))
    assert 'number' not in one and '↑' not in one and one.endswith('Enter pins a token, Esc lets go of it.')
    assert 'Tab to the texts’ numbers and to the tokens' in many and '↑ ↓ to another line' in many


def test_in_text_from_right_to_left_the_left_arrow_goes_on(opened):
    tokens = [a_token(piece) for piece in ('·שלום', '·עולם', '·גדול')]
    page = Page('שלום', [], ['m'], None, [PageText('דוגמה', 'אמרתי', [Side(tokens)])])
    with opened(page) as view:
        lefts = line_of(view, 0).evaluate_all('all => all.map(t => t.getBoundingClientRect().left)')
        assert lefts == sorted(lefts, reverse=True)
        tab_to_the_text(view)
        view.keyboard.press('ArrowLeft')
        assert focused(view) == (0, 0, 1)


def class_by_hand(mode, token, before=None):
    """The colour's class, from the numbers: probabilities and entropies in steps, GLTR's buckets of ranks."""
    if mode == 'change':
        ratio = math.exp(token.logprob - before.logprob)
        return 'd' + str(sum(ratio > bound for bound in (0.1, 1 / 3, 0.8, 1.25, 3, 10)))
    if mode == 'rank':
        return 's0' if token.rank <= 10 else 's2' if token.rank <= 100 else 's4' if token.rank <= 1000 else 's5'
    if mode == 'entropy':
        return 's' + str(sum(math.exp(token.entropy) > bound for bound in (2, 5, 15, 50, 200)))
    prob = math.exp(token.logprob if mode == 'model' else token.sampler_logprob)
    return 's' + str(sum(prob < bound for bound in (0.5, 0.2, 0.05, 0.01, 0.001)))


def choose(view, mode):
    view.locator(f'input[value={mode}] + span').click()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_every_token_has_the_colour_of_its_value_in_every_mode(opened, scheme):
    page = a_page(texts=3, tokens=40, models=2, sampler='temperature 0.8')
    random = np.random.default_rng(1)
    for token in (token for text in page.texts for side in text.sides for token in side.tokens):
        token.rank = int(np.exp(random.uniform(0, 9)))
        token.entropy = random.uniform(0, 7)
    with opened(page, color_scheme=scheme) as view:
        background = view.evaluate('getComputedStyle(document.documentElement).backgroundColor')
        assert (sum(map(int, re.findall(r'\d+', background))) < 200) == (scheme == 'dark')
        assert view.locator('input[name=mode]').evaluate_all('all => all.map(i => i.value)') == [
            *('model', 'rank', 'entropy', 'sampler', 'change')
        ]
        seen = set()
        for mode in ('model', 'rank', 'entropy', 'sampler', 'change'):
            choose(view, mode)
            counts = [int(text) for text in view.locator('.legend .count').all_text_contents()]
            assert sum(counts) == (120 if mode == 'change' else 240)  # a change is one for both models
            assert counts == [
                view.locator(f'.running:not([hidden]) .token.{name}').count()
                for name in view.locator('.swatch').evaluate_all('all => all.map(s => s.classList[1])')
            ]
            for number, text in enumerate(page.texts):
                one, other = text.sides
                for which, side in enumerate(text.sides):
                    names = line_of_all(view, number, which).evaluate_all('all => all.map(t => t.classList[1])')
                    wanted = [
                        class_by_hand(mode, token, other.tokens[at])
                        for at, token in enumerate(one.tokens if mode == 'change' else side.tokens)
                    ]
                    assert names == wanted
                    seen.update(names)
            # What the browser makes of the colours, on the tokens themselves.
            for ink, paper in view.locator('.token').evaluate_all(
                'all => all.map(t => getComputedStyle(t)).map(s => [s.color, s.backgroundColor])'
            ):
                assert contrast(hexadecimal(ink), hexadecimal(paper)) >= 4.5
        assert seen == {f's{n}' for n in range(6)} | {f'd{n}' for n in range(7)}


def line_of_all(view, text, side):
    """Like line_of, and where the line is hidden too."""
    return view.locator('article').nth(text).locator('[role=listbox]').nth(side).locator('.token')


def hexadecimal(rgb):
    return '#' + ''.join(f'{int(part):02x}' for part in re.fullmatch(r'rgb\((\d+), (\d+), (\d+)\)', rgb).groups())


LONG = [*WORDS, '·' + 'x' * 80, '-' * 64, '‹e2 80›']


@pytest.mark.parametrize('models', [1, 2])
def test_a_window_360_pixels_wide_needs_no_scrolling_sideways(opened, models):
    page = a_page(texts=30, tokens=40, models=models, sampler='temperature 0.8, top_k 200', words=LONG)
    page.about.append('python eval.py --init_from=' + 'x' * 200)
    page.models = ['a-model-with-a-rather-long-name-' * 3, 'before'][:models]
    with opened(page, width=360, height=740, has_touch=True, is_mobile=True) as view:

        def fits():
            return view.evaluate('[document.documentElement.scrollWidth, innerWidth]') == [360, 360]

        assert fits()
        for text, at in ((0, 0), (0, 39), (12, 20), (29, 39)):
            token = line_of(view, text, models - 1).nth(at)
            token.tap()
            assert token.get_attribute('aria-selected') == 'true'
            assert fits()
            panel, box = view.locator('#panel').bounding_box(), token.bounding_box()
            assert box['y'] + box['height'] <= panel['y'] + 1  # the panel lets one see what it is about
            assert 150 < panel['height'] < 400
            assert panel['y'] + panel['height'] <= 741
            inside = view.evaluate('[panel.scrollWidth, panel.clientWidth]')
            assert inside[0] <= inside[1]


# How far the numbers of a table are from what stands before them: a bar, another number.
GAPS = """all => all.flatMap((row) => {
    const boxes = [...row.querySelectorAll('.track, data')].map((part) => part.getBoundingClientRect());
    return boxes.slice(1).map((box, at) => box.left - boxes[at].right);
})"""


@pytest.mark.parametrize('models', [1, 2])
@pytest.mark.parametrize('sampler', [None, 'temperature 0.8'])
def test_small_numbers_do_not_run_into_each_other(opened, models, sampler):
    tiny = None if sampler is None else 7.6e-12
    alternatives = [Alternative('·disproportionately', 0.0999, tiny) for _ in range(10)]
    token = a_token('·disproportionately', math.log(7.7e-12), 31_234, alternatives, tiny and math.log(tiny))
    page = Page('t', [], ['after', 'before'][:models], sampler, [PageText('one', 'The', [Side([token])] * models)])
    with opened(page) as view:
        for width in (360, 480, 800, 880, 1100, 1280, 1500):
            view.set_viewport_size({'width': width, 'height': 800})
            line_of(view, 0).first.hover()
            gaps = view.locator('.choices tbody tr').evaluate_all(GAPS)
            assert len(gaps) == 11 * models * (1 if sampler is None else 2)
            assert min(gaps) >= 4, width
            ranks = view.locator('.choices .rank')
            assert ranks.evaluate_all('all => all.filter((cell) => cell.scrollWidth > cell.clientWidth).length') == 0
            assert view.locator('.track').first.bounding_box()['width'] > 20
            inside = view.evaluate('[panel.scrollWidth, panel.clientWidth]')
            assert inside[0] <= inside[1], width


@pytest.mark.parametrize('models', [1, 2])
@pytest.mark.parametrize('sampler', [None, 'temperature 0.8, top_k 200'])
@pytest.mark.parametrize('size', [(360, 640), (1280, 420)])
def test_the_panel_shows_the_row_of_what_stands_there(opened, models, sampler, size):
    page = a_page(texts=1, tokens=30, models=models, sampler=sampler)
    with opened(page, *size) as view:
        for side in range(models):
            for at in range(0, 30, 5):
                line_of(view, 0, side).nth(at).click()
                before = view.evaluate('scrollY')
                line_of(view, 0, side).nth(at).dispatch_event('pointerover')
                assert view.evaluate('scrollY') == before  # only the panel scrolls
                panel, head = view.locator('#panel').bounding_box(), view.locator('.head').bounding_box()
                row = view.locator('.choices').nth(side).locator('.chosen').bounding_box()
                assert row['y'] >= head['y'] + head['height'] - 1
                assert row['y'] + row['height'] <= panel['y'] + panel['height']
                assert head['y'] >= panel['y']  # and which token it is about


def test_large_changes_are_written_for_people(opened):
    ratios = [
        (1.25, '1.25 × likelier'),
        (1 / 3, '3 × less likely'),
        (2984.3, '2,980 × likelier'),
        (1 / 2984.3, '2,980 × less likely'),
        (987_654, '988,000 × likelier'),
        (2.5e6, '2.50 × 10⁶ × likelier'),
        (9.999e11, '1.00 × 10¹² × likelier'),
        (3.06e300, '3.06 × 10³⁰⁰ × likelier'),
        (math.inf, '∞ × likelier'),
    ]
    changes = [(-1.0, -1.0 - math.log(r)) if r > 1 else (-1.0 + math.log(r), -1.0) for r, _ in ratios]
    texts = [PageText('one', '', [Side([a_token(logprob=logprob)]) for logprob in change]) for change in changes]
    with opened(Page('t', [], ['after', 'before'], None, texts)) as view:
        for number, (_, written) in enumerate(ratios):
            line_of(view, number).first.click()
            assert view.locator('[data-fact=change] span').text_content() == f'{written} than under before'


def test_changes_too_large_for_a_float_and_large_perplexities(opened):
    sides = [Side([a_token(logprob=-1.0)]), Side([a_token(logprob=-2001.0)])]
    texts = [
        PageText('one', '', sides),
        PageText('two', '', [Side([a_token(logprob=-math.log(p))]) for p in (12345, 98.7654)]),
    ]
    with opened(Page('t', [], ['after', 'before'], None, texts)) as view:
        line_of(view, 0).first.click()
        assert '3.88 × 10⁸⁶⁸ × likelier' in view.locator('[data-fact=change]').text_content()
        totals = ' '.join(view.locator('.totals').all_text_contents())
        for perplexity in ('2.718', '1.055 × 10⁸⁶⁹', '12,350', '98.77'):
            assert f'perplexity per token {perplexity} (1 token)' in totals
        assert 'Infinity' not in view.locator('#all').text_content()


def test_the_words_are_explained_to_whoever_asks(opened):
    with opened(a_page()) as view:
        explained = view.locator('header details li')
        assert explained.first.is_hidden()
        view.locator('summary').click()
        words = view.locator('header details li b').all_text_contents()
        assert explained.first.is_visible() and explained.count() == len(words)
        assert [word.lower() for word in words] == [
            *('logprob', 'model probability', 'sampler probability', 'rank', 'entropy', 'perplexity per token'),
            'geometric mean',
        ]


def test_two_models_side_by_side(opened):
    page = a_page(texts=2, tokens=8, models=2)
    with opened(page) as view:
        names = view.locator('article').first.locator('.totals b').all_text_contents()
        assert names == [f'{name}: model' for name in page.models]
        for which, at in ((0, 3), (1, 5)):
            line_of(view, 1, which).nth(at).hover()
            after, before = (side.tokens[at] for side in page.texts[1].sides)
            assert view.locator('.choices caption').all_text_contents() == page.models
            assert fact(view, 'rank') == [after.rank, before.rank]
            numbers = [math.exp(after.logprob), after.logprob, math.exp(before.logprob), before.logprob]
            assert fact(view, 'model probability') == pytest.approx(numbers, rel=1e-6)
            assert fact(view, 'change') == pytest.approx([after.logprob - before.logprob], abs=1e-5)
            probs = values(view, '.sides > :first-child .value')
            assert probs[:10] == pytest.approx([other.prob for other in after.alternatives], rel=1e-5)
            twins = [line_of(view, 1, side).nth(at).get_attribute('class').split()[-1] for side in (0, 1)]
            assert sorted(twins) == ['shown', 'twin']
        tab_to_the_text(view)
        view.keyboard.press('ArrowDown')
        choose(view, 'change')  # one line says it all
        assert line_of(view, 1, 0).first.is_visible() and line_of_all(view, 1, 1).first.is_hidden()
        line_of(view, 0, 0).nth(2).click()
        view.keyboard.press('ArrowDown')
        assert focused(view) == (1, 0, 2)
        choose(view, 'model')
        line_of(view, 1, 1).nth(4).click()
        choose(view, 'change')  # hides that line
        tab_to_the_text(view)
        assert focused(view) == (1, 0, 4)


def test_models_that_cut_a_text_into_other_tokens(opened):
    alternatives = [Alternative('·a', 0.5, None), Alternative('·b', 0.25, None)]
    coarse = Side([a_token('·woodcutter', -3.0, 7, alternatives), a_token('·sat', -1.0, 2, alternatives)])
    fine = Side([a_token(piece, -2.0, 3, alternatives) for piece in ('·wood', 'cutter', '·s', 'at')])
    other = Side([a_token('·something', -2.0, 3, alternatives)])
    page = Page(
        't',
        [],
        ['coarse', 'fine'],
        None,
        [PageText('one', 'The', [coarse, fine]), PageText('two', '', [coarse, other])],
    )
    with opened(page) as view:
        assert view.locator('input[value=change]').count() == 0
        line_of(view, 0, 1).nth(3).hover()  # at, in ·sat
        assert fact(view, 'model probability')[1::2] == [-1.0, -2.0]
        assert view.locator('.facts thead th').all_text_contents() == ['coarse: ·sat', 'fine: at']
        assert view.locator('[data-fact=change]').count() == 0
        line_of(view, 0, 0).nth(0).hover()
        assert view.locator('.facts thead th').all_text_contents() == ['coarse: ·woodcutter', 'fine: ·wood']
        line_of(view, 1, 0).nth(1).hover()  # another text altogether
        assert fact(view, 'model probability')[1::2] == [-1.0]
        assert 'no token that covers' in view.locator('#detail').text_content()


def test_a_sampler_that_cuts_off_what_stands_there(opened):
    alternatives = [Alternative('·a', 0.5, 1.0), Alternative('·king', 0.25, 0.0)]
    token = a_token(sampler_logprob=-math.inf, alternatives=alternatives)
    with opened(Page('t', [], ['m'], 'temperature 0', [PageText('one', 'The', [Side([token])])])) as view:
        line_of(view, 0).first.hover()
        assert fact(view, 'sampler probability') == [0, -math.inf]
        assert values(view, '.of-sampler') == [1, 0]
        assert (
            'logprob -∞, probability 0, perplexity per token ∞ (1 token)'
            in view.locator('.totals').nth(1).text_content()
        )
        choose(view, 'sampler')
        assert line_of(view, 0).first.get_attribute('class').split()[1] == 's5'


@pytest.mark.parametrize(
    'texts',
    [
        [],
        [PageText('nothing', '', [Side([])])],
        [PageText('one', '', [Side([a_token()])]), PageText('nothing', 'Once', [Side([])])],
    ],
    ids=['no text', 'no token', 'one token'],
)
def test_what_is_empty_is_a_page_too(opened, texts):
    with opened(Page('', [], ['m'], None, texts)) as view:
        assert view.locator('article').count() == len(texts)
        if any(text.sides[0].tokens for text in texts):
            line_of(view, 0).first.click()
            assert view.locator('.choices .below .rank').text_content() == '2'


def test_two_hundred_texts_of_a_hundred_tokens_have_the_bars_of_one(opened):
    tokens = a_page(texts=1, tokens=100).texts[0].sides[0].tokens
    page = Page('many', [], ['m'], None, [PageText(f'text {n}', 'Once', [Side(tokens)]) for n in range(200)])
    with opened(page) as view:
        assert view.locator('.token').count() == 20_000
        assert view.locator('.track').count() == 0  # no bars before they are asked for
        # Each token that is pointed at replaces the bars of the one before; no time is measured, machines may be busy.
        view.evaluate("""() => {
            for (const token of document.querySelectorAll('.token:nth-child(50)'))
                token.dispatchEvent(new PointerEvent('pointerover', { bubbles: true, pointerType: 'mouse' }));
        }""")
        assert view.locator('.track').count() in (10, 11)
        view.locator('#chips a').nth(150).click()
        tools, article = view.locator('.tools').bounding_box(), view.locator('article').nth(150).bounding_box()
        assert tools['y'] == 0 and 0 <= article['y'] - tools['height'] < 60  # right below what stays in sight


def test_without_javascript_the_browser_shows_the_text(opened):
    page = a_page(words=[f'·word{n}' for n in range(30)])
    with opened(page, java_script_enabled=False) as view:
        shown = view.locator('noscript p')
        assert shown.first.is_visible() and 'need JavaScript' in shown.first.text_content()
        assert ' '.join(token.piece for token in page.texts[1].sides[0].tokens) in shown.all_text_contents()
        assert view.locator('#all').is_hidden()


def test_on_paper_it_is_light_and_without_the_panel(opened):
    with opened(a_page(), color_scheme='dark') as view:
        view.emulate_media(media='print')
        assert view.locator('#panel').is_hidden() and view.locator('#legend').is_visible()
        colour = view.locator('.s0').first.evaluate('token => getComputedStyle(token).backgroundColor')
        assert hexadecimal(colour) == palette(0)['s0']


def test_what_is_smuggled_in_is_neither_run_nor_fetched(chromium, tmp_path):
    """Even if text became HTML one day, the policy would stop it."""
    path = written(a_page(), tmp_path)
    view = chromium.new_page()
    view.goto(path.as_uri())
    violations = view.evaluate("""async () => {
        const stopped = [];
        document.addEventListener('securitypolicyviolation', (event) => stopped.push(event.effectiveDirective));
        const image = '<img src="http://127.0.0.1:9/x.png" onerror="window.hacked = 1">';
        document.body.insertAdjacentHTML('beforeend', image);
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
        await fetch('http://127.0.0.1:9/').catch(() => {});
        await new Promise((done) => setTimeout(done, 200));
        return stopped.sort();
    }""")
    assert {'img-src', 'connect-src', 'script-src-elem', 'script-src-attr'} <= set(violations)
    assert view.evaluate('typeof hacked') == 'undefined'
    view.close()
