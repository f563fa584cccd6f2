"""A page that compares two models, in headless Chromium."""

import math

import pytest
from helpers.browser import choose, fact, focused, line_of, line_of_all, tab_to_the_text, values
from helpers.pages import a_page, a_token, alternative, side_of

from pictures.page import Page, PageText


@pytest.mark.slow
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
    texts = [PageText('one', '', [side_of([a_token(logprob=logprob)]) for logprob in change]) for change in changes]
    with opened(Page('t', [], ['after', 'before'], None, texts)) as view:
        for number, (_, written) in enumerate(ratios):
            line_of(view, number).first.click()
            assert view.locator('[data-fact=change] span').text_content() == f'{written} than under before'


@pytest.mark.slow
def test_changes_too_large_for_a_float_and_large_perplexities(opened):
    sides = [side_of([a_token(logprob=-1.0)]), side_of([a_token(logprob=-2001.0)])]
    texts = [
        PageText('one', '', sides),
        PageText('two', '', [side_of([a_token(logprob=-math.log(p))]) for p in (12345, 98.7654)]),
    ]
    with opened(Page('t', [], ['after', 'before'], None, texts)) as view:
        line_of(view, 0).first.click()
        assert '3.88 × 10⁸⁶⁸ × likelier' in view.locator('[data-fact=change]').text_content()
        totals = ' '.join(view.locator('.totals').all_text_contents())
        for perplexity in ('2.718', '1.055 × 10⁸⁶⁹', '12,350', '98.77'):
            assert f'perplexity per token {perplexity} (1 token)' in totals
        assert 'Infinity' not in view.locator('#all').text_content()


@pytest.mark.slow
def test_two_models_side_by_side(opened):
    page = a_page(texts=2, tokens=8, models=2)
    with opened(page) as view:
        names = view.locator('article').first.locator('.totals b').all_text_contents()
        assert names == [f'{name}: model' for name in page.models]
        for which, at in ((0, 3), (1, 5)):
            line_of(view, 1, which).nth(at).hover()
            after, before = (side.records[at] for side in page.texts[1].sides)
            assert view.locator('.choices caption').all_text_contents() == page.models
            assert fact(view, 'rank') == [after.rank, before.rank]
            numbers = [
                math.exp(after.model_logprob),
                after.model_logprob,
                math.exp(before.model_logprob),
                before.model_logprob,
            ]
            assert fact(view, 'model probability') == pytest.approx(numbers, rel=1e-6)
            assert fact(view, 'change') == pytest.approx([after.model_logprob - before.model_logprob], abs=1e-5)
            probs = values(view, '.sides > :first-child .value')
            assert probs[:10] == pytest.approx(
                [math.exp(other.model_logprob) for other in after.alternatives], rel=1e-5
            )
            twins = [line_of(view, 1, side).nth(at).get_attribute('class').split()[-1] for side in (0, 1)]
            assert sorted(twins) == ['shown', 'twin']
        tab_to_the_text(view)
        view.keyboard.press('ArrowDown')
        choose(view, 'change')  # one line shows the change of both
        assert line_of(view, 1, 0).first.is_visible() and line_of_all(view, 1, 1).first.is_hidden()
        line_of(view, 0, 0).nth(2).click()
        view.keyboard.press('ArrowDown')
        assert focused(view) == (1, 0, 2)
        choose(view, 'model')
        line_of(view, 1, 1).nth(4).click()
        choose(view, 'change')  # hides that line
        tab_to_the_text(view)
        assert focused(view) == (1, 0, 4)


@pytest.mark.slow
def test_models_that_split_a_text_differently(opened):
    alternatives = [alternative('·a', 0.5), alternative('·b', 0.25)]
    coarse = side_of([a_token('·woodcutter', -3.0, 7, alternatives), a_token('·sat', -1.0, 2, alternatives)])
    fine = side_of([a_token(piece, -2.0, 3, alternatives) for piece in ('·wood', 'cutter', '·s', 'at')])
    other = side_of([a_token('·something', -2.0, 3, alternatives)])
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
        line_of(view, 1, 0).nth(1).hover()  # a different text
        assert fact(view, 'model probability')[1::2] == [-1.0]
        assert 'no token here' in view.locator('#detail').text_content()
