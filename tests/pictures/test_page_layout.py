"""How a page fits into windows of any size and on paper, in headless Chromium."""

import math

import pytest
from helpers.browser import hexadecimal, line_of
from helpers.pages import WORDS, a_page, a_token, alternative, palette, side_of

from pictures.page import Page, PageText

pytestmark = pytest.mark.slow  # test_page_in_browser.py opens a page, too

LONG = [*WORDS, '·' + 'x' * 80, '-' * 64, '‹e2 80›']


@pytest.mark.parametrize('models', [1, 2])
def test_a_window_360_pixels_wide_needs_no_horizontal_scrolling(opened, models):
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
            assert box['y'] + box['height'] <= panel['y'] + 1  # the panel does not cover its token
            assert 150 < panel['height'] < 400
            assert panel['y'] + panel['height'] <= 741
            inside = view.evaluate('[panel.scrollWidth, panel.clientWidth]')
            assert inside[0] <= inside[1]


# The distance of each number in a table from the bar or the number before it.
GAPS = """all => all.flatMap((row) => {
    const boxes = [...row.querySelectorAll('.track, data')].map((part) => part.getBoundingClientRect());
    return boxes.slice(1).map((box, at) => box.left - boxes[at].right);
})"""


@pytest.mark.parametrize('models', [1, 2])
@pytest.mark.parametrize('sampler', [None, 'temperature 0.8'])
def test_small_numbers_do_not_run_into_each_other(opened, models, sampler):
    tiny = None if sampler is None else 7.6e-12
    alternatives = [alternative('·disproportionately', 0.0999, tiny) for _ in range(10)]
    token = a_token('·disproportionately', math.log(7.7e-12), 31_234, alternatives, tiny and math.log(tiny))
    page = Page('t', [], ['after', 'before'][:models], sampler, [PageText('one', 'The', [side_of([token])] * models)])
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
def test_the_panel_shows_the_row_of_the_token(opened, models, sampler, size):
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
                assert head['y'] >= panel['y']  # the heading is visible too


def test_on_paper_it_is_light_and_without_the_panel(opened):
    with opened(a_page(), color_scheme='dark') as view:
        view.emulate_media(media='print')
        assert view.locator('#panel').is_hidden() and view.locator('#legend').is_visible()
        colour = view.locator('.s0').first.evaluate('token => getComputedStyle(token).backgroundColor')
        assert hexadecimal(colour) == palette(0)['s0']
