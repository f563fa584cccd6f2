"""How a page is used with mouse and keyboard, in headless Chromium."""

import pytest
from helpers.browser import choose, focused, line_of, shown_piece, tab_to_the_text
from helpers.pages import a_page, a_token, piece_of, side_of

from pictures.page import Page, PageText


def test_the_keyboard_reaches_every_token(opened):
    page = a_page(texts=3, tokens=5, words=[f'·word{n}' for n in range(30)])
    page.texts[1].sides[0].records.clear()  # has no token to stop at
    page.texts[2].sides[0].records.pop()
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
            token = page.texts[place[0]].sides[0].records[place[2]]
            assert shown_piece(view) == piece_of(token)
            said = view.locator('[aria-live=polite]').text_content()
            assert said.startswith(f'{piece_of(token)}: model probability ') and f'rank {token.rank}' in said
        assert view.locator('.token[tabindex="0"]').count() == 1
        style = view.evaluate('getComputedStyle(document.activeElement).outlineStyle')
        assert style == 'solid'  # the focus is visible
        view.keyboard.press('Enter')
        line_of(view, 0).nth(0).hover()
        assert shown_piece(view) == piece_of(page.texts[0].sides[0].records[3])
        view.keyboard.press('ArrowLeft')  # moves the pin along
        line_of(view, 0).nth(0).hover()
        assert shown_piece(view) == piece_of(page.texts[0].sides[0].records[2])
        view.keyboard.press('Escape')
        line_of(view, 0).nth(1).hover()
        assert shown_piece(view) == piece_of(page.texts[0].sides[0].records[1])


@pytest.mark.slow
def test_the_number_of_a_text_takes_the_keyboard_there(opened):
    page = a_page(texts=40, tokens=30, models=2, words=[f'·word{n}' for n in range(30)])
    page.texts[20].prompt = 'Once upon a time. ' * 400  # longer than the window
    for side in page.texts[1].sides:
        side.records.clear()
    with opened(page) as view:
        chips, focus = view.locator('#chips a'), 'document.activeElement.textContent'
        assert chips.evaluate_all('all => all.filter((chip) => chip.tabIndex === 0).length') == 1
        chips.first.focus()
        tops = chips.evaluate_all('all => all.map((chip) => chip.offsetTop)')
        row = tops.count(tops[0])
        assert 10 < row < 36  # the second row exists and has at least five
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
        assert focused(view) == (0, 0, 0)  # one Tab stop for all of them
        for number in (12, 20, 39):
            chips.nth(number).focus()
            view.keyboard.press('Enter')
            assert focused(view) == (number, 0, 0)
            assert shown_piece(view) == piece_of(page.texts[number].sides[0].records[0])
            assert view.url.endswith(f'#text-{number}')
            box = view.locator(':focus').bounding_box()
            assert view.locator('.tools').bounding_box()['height'] <= box['y'] and box['y'] + box['height'] <= 800
            view.keyboard.press('ArrowRight')
            assert focused(view) == (number, 0, 1)
            view.keyboard.press('Shift+Tab')
            assert view.evaluate(focus) == str(number + 1)  # back to the number
            view.keyboard.press('Tab')
            assert focused(view) == (number, 0, 1)
        view.keyboard.press('Enter')
        chips.nth(5).click()  # moves the pin along, as arrows do
        assert focused(view) == (5, 0, 0)
        assert line_of(view, 5).first.get_attribute('aria-selected') == 'true'
        chips.nth(1).click()  # it has no token: the browser goes to its heading
        assert view.url.endswith('#text-1')
        choose(view, 'change')
        chips.nth(8).click()
        assert focused(view) == (8, 0, 0)


@pytest.mark.slow
def test_the_hint_names_only_keys_that_work(opened):
    def hint(page):
        with opened(page) as view:
            return view.locator('.by-keyboard').text_content()

    one, many = hint(a_page(texts=1)), hint(a_page(texts=2))
    assert 'number' not in one and '↑' not in one and one.endswith('Enter pins a token, Esc unpins it.')
    assert 'Tab goes to the numbers of the texts and to the tokens' in many and '↑ ↓ move to another line' in many


def test_in_text_from_right_to_left_the_left_arrow_moves_forward(opened):
    tokens = [a_token(piece) for piece in ('·שלום', '·עולם', '·גדול')]
    page = Page('שלום', [], ['m'], None, [PageText('דוגמה', 'אמרתי', [side_of(tokens)])])
    with opened(page) as view:
        lefts = line_of(view, 0).evaluate_all('all => all.map(t => t.getBoundingClientRect().left)')
        assert lefts == sorted(lefts, reverse=True)
        tab_to_the_text(view)
        view.keyboard.press('ArrowLeft')
        assert focused(view) == (0, 0, 1)


@pytest.mark.slow
def test_a_click_pins_and_escape_unpins(opened):
    page = a_page(texts=1, tokens=6, words=[f'·word{n}' for n in range(30)])
    pieces = [piece_of(token) for token in page.texts[0].sides[0].records]
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
        tokens.nth(5).click()  # the pin moves there
        tokens.nth(0).hover()
        assert shown_piece(view) == pieces[5]
        tokens.nth(5).click()  # and is removed
        tokens.nth(0).hover()
        assert shown_piece(view) == pieces[0]
        tokens.nth(2).click()
        view.get_by_role('button', name='unpin').click()
        tokens.nth(0).hover()
        assert shown_piece(view) == pieces[0]
        assert view.locator('[aria-selected=true]').count() == 0
