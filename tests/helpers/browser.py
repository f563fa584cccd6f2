"""What the tests of the page read from it and do to it in a browser; `view` is Playwright's page."""

import re

import pytest


def line_of(view, text, side=0):
    """Return the tokens of a text as one model splits it."""
    return view.locator('article').nth(text).get_by_role('listbox').nth(side).get_by_role('option')


def line_of_all(view, text, side):
    """Return what line_of returns, even if the line is hidden."""
    return view.locator('article').nth(text).locator('[role=listbox]').nth(side).locator('.token')


def values(view, selector):
    """Return the numbers for machines in a part of the panel."""
    return [
        float(value) for value in view.locator(f'#detail {selector} data').evaluate_all('all => all.map(d => d.value)')
    ]


def fact(view, name):
    """Return the numbers in a row of the panel."""
    return values(view, f'[data-fact="{name}"]')


def shown_piece(view):
    """Return the piece that the panel shows."""
    return view.locator('#detail .head .piece').text_content()


def choose(view, mode):
    """Choose what tokens are coloured by."""
    view.locator(f'input[value={mode}] + span').click()


def tab_to_the_text(view):
    """Press Tab until a token has the focus."""
    for _ in range(20):
        view.keyboard.press('Tab')
        if view.evaluate('document.activeElement.matches(".token")'):
            return
    pytest.fail('Tab does not reach a token')


def focused(view):
    """Return (text, side, token) of the token that has the focus."""
    return tuple(
        view.evaluate("""() => {
            const token = document.activeElement, article = token.closest('article');
            const boxes = [...article.querySelectorAll('[role=listbox]')], box = token.closest('[role=listbox]');
            const tokens = [...box.querySelectorAll('.token')];
            const articles = [...document.querySelectorAll('article')];
            return [articles.indexOf(article), boxes.indexOf(box), tokens.indexOf(token)];
        }""")
    )


def hexadecimal(rgb):
    """Return '#rrggbb' of a browser's 'rgb(r, g, b)'."""
    return '#' + ''.join(f'{int(part):02x}' for part in re.fullmatch(r'rgb\((\d+), (\d+), (\d+)\)', rgb).groups())
