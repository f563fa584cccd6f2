"""What a page shows in headless Chromium."""

import math
import re

import pytest
from helpers.browser import choose, fact, line_of, shown_piece, values
from helpers.pages import NASTY, a_page, a_token, alternative, piece_of, side_of, written

from pictures import page as pages
from pictures.page import Page, PageText


@pytest.mark.slow
def test_texts_show_as_text_and_nothing_else(opened):
    page = a_page(texts=len(NASTY), tokens=30, sampler='temperature 0.8')
    with opened(page) as view:
        assert view.title() == page.title
        assert view.locator('h1').text_content() == page.title
        assert view.locator('.about li').all_text_contents() == page.about
        assert view.locator('article').count() == len(page.texts)
        for number, text in enumerate(page.texts):
            pieces = [pages.show_invisible(piece_of(token)) for token in text.sides[0].records]
            assert line_of(view, number).all_text_contents() == pieces
            assert view.locator('article .prompt').nth(number).text_content() == pages.show_invisible(text.prompt)
        assert view.locator('article img, article script, article b:not(.totals b)').count() == 0


@pytest.mark.parametrize('tokens', [8, pytest.param(25, marks=pytest.mark.slow)])
def test_pointing_at_a_token_shows_its_numbers(opened, tokens):
    page = a_page(texts=1, tokens=tokens, sampler='temperature 0.8')
    with opened(page) as view:
        for at, token in enumerate(page.texts[0].sides[0].records):
            line_of(view, 0).nth(at).hover()
            assert shown_piece(view) == pages.show_invisible(piece_of(token))
            assert fact(view, 'model probability') == pytest.approx(
                [math.exp(token.model_logprob), token.model_logprob], rel=1e-6
            )
            sampler = [math.exp(token.sampler_logprob), token.sampler_logprob]
            assert fact(view, 'sampler probability') == pytest.approx(sampler, rel=1e-6)
            assert fact(view, 'rank') == [token.rank]
            assert fact(view, 'entropy') == pytest.approx([token.entropy, math.exp(token.entropy)], rel=1e-5)

            rows = [
                (piece_of(other), math.exp(other.model_logprob), math.exp(other.sampler_logprob))
                for other in token.alternatives
            ]
            if token.rank > 10:
                rows.append((piece_of(token), math.exp(token.model_logprob), math.exp(token.sampler_logprob)))
            names = [name.removesuffix(' (in the text)') for name in view.locator('.choices .name').all_text_contents()]
            assert names == [pages.show_invisible(piece) for piece, _, _ in rows]
            assert values(view, '.value:not(.of-sampler)') == pytest.approx([model for _, model, _ in rows], rel=1e-5)
            assert values(view, '.value.of-sampler') == pytest.approx([sampler for *_, sampler in rows], rel=1e-5)
            (chosen,) = view.locator('.choices .chosen .rank').all_text_contents()
            assert int(chosen) == token.rank
            assert view.locator('.choices .below').count() == (token.rank > 10)

            # The length of the bars is the probability, on the scale in the key.
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
    tokens = page.texts[0].sides[0].records
    with opened(page) as view:
        for place, name, logprobs in (
            (0, 'model', [token.model_logprob for token in tokens]),
            (1, 'sampler (temperature 0.8)', [token.sampler_logprob for token in tokens]),
        ):
            line = view.locator('.totals').nth(place)
            total = math.fsum(logprobs)
            assert line.locator('b').text_content() == name
            assert float(line.locator('data').get_attribute('value')) == pytest.approx(total, rel=1e-11)
            text = line.text_content()
            assert f'logprob {total:.4f}, ' in text
            assert f'perplexity per token {math.exp(-total / 600):.4g}' in text
            # The probability is shown although it is far too small for a float.
            mantissa, exponent = re.search(r'probability ([\d.]+) × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)', text).groups()
            exponent = int(exponent.translate(str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789')))
            assert exponent < -324 and 1 <= float(mantissa) < 10
            assert math.log(float(mantissa)) + exponent * math.log(10) == pytest.approx(total, abs=1e-5)


def test_the_terms_are_explained_on_request(opened):
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


@pytest.mark.slow
def test_a_sampler_that_cuts_off_the_token_in_the_text(opened):
    alternatives = [alternative('·a', 0.5, 1.0), alternative('·king', 0.25, 0.0)]
    token = a_token(sampler_logprob=-math.inf, alternatives=alternatives)
    with opened(Page('t', [], ['m'], 'temperature 0', [PageText('one', 'The', [side_of([token])])])) as view:
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
        [PageText('nothing', '', [side_of([])])],
        [PageText('one', '', [side_of([a_token()])]), PageText('nothing', 'Once', [side_of([])])],
    ],
    ids=['no text', 'no token', 'one token'],
)
def test_empty_texts_make_a_page_too(opened, texts):
    with opened(Page('', [], ['m'], None, texts)) as view:
        assert view.locator('article').count() == len(texts)
        if any(text.sides[0].records for text in texts):
            line_of(view, 0).first.click()
            assert view.locator('.choices .below .rank').text_content() == '2'


@pytest.mark.slow
def test_of_20000_tokens_only_the_shown_one_has_bars(opened):
    tokens = a_page(texts=1, tokens=100).texts[0].sides[0].records
    page = Page('many', [], ['m'], None, [PageText(f'text {n}', 'Once', [side_of(tokens)]) for n in range(200)])
    with opened(page) as view:
        assert view.locator('.token').count() == 20_000
        assert view.locator('.track').count() == 0  # no bars before a token is shown
        # The bars of each new token replace the bars of the last. Time is not measured, since machines may be busy.
        view.evaluate("""() => {
            for (const token of document.querySelectorAll('.token:nth-child(50)'))
                token.dispatchEvent(new PointerEvent('pointerover', { bubbles: true, pointerType: 'mouse' }));
        }""")
        assert view.locator('.track').count() in (10, 11)
        view.locator('#chips a').nth(150).click()
        tools, article = view.locator('.tools').bounding_box(), view.locator('article').nth(150).bounding_box()
        assert tools['y'] == 0 and 0 <= article['y'] - tools['height'] < 60  # right below the sticky tools


def test_without_javascript_the_browser_shows_the_text(opened):
    page = a_page(words=[f'·word{n}' for n in range(30)])
    with opened(page, java_script_enabled=False) as view:
        shown = view.locator('noscript p')
        assert shown.first.is_visible() and 'need JavaScript' in shown.first.text_content()
        assert ' '.join(piece_of(token) for token in page.texts[1].sides[0].records) in shown.all_text_contents()
        assert view.locator('#all').is_hidden()


def test_injected_html_is_neither_run_nor_fetched(chromium, tmp_path):
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
