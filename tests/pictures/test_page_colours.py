"""The page's colours: readable, and distinct for all eyes; every token has the colour of its value."""

import itertools
import math
import re

import numpy as np
import pytest
from helpers.browser import choose, hexadecimal, line_of_all
from helpers.pages import a_page, contrast, linear, palette


def lab(rgb):
    """CIE L*a*b* of linear sRGB under D65."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = np.cbrt(np.maximum(np.array(to_xyz) @ rgb / [0.95047, 1, 1.08883], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# What eyes without one kind of cone see of linear red, green and blue: Machado, Oliveira and Fernandes 2009, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1.
EYES = {
    'all cones': np.eye(3),
    'protanopia': [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    'deuteranopia': [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    'tritanopia': [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize('scheme', [0, 1], ids=['light', 'dark'])
def test_text_is_readable_on_every_colour(scheme):
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
def test_colours_are_distinct_for_all_eyes_and_the_scale_in_grey_too(scheme, eyes):
    colours = palette(scheme)
    seen = {name: lab(np.array(EYES[eyes]) @ linear(colour)) for name, colour in colours.items()}
    lightness = [seen[f's{n}'][0] for n in range(6)]
    steps = np.diff(lightness) * (1 if scheme else -1)
    assert (steps > 3).all()  # steadily lighter or darker
    assert abs(lightness[-1] - lightness[0]) > 65
    for one, other in itertools.combinations([f'd{n}' for n in range(7)], 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 9, (one, other)
    for n in range(3):
        assert np.linalg.norm(seen[f'd{n}'] - seen[f'd{6 - n}']) > 15  # less likely, and likelier


def expected_class(mode, token, before=None):
    """The colour's class, from the numbers: probabilities and entropies in steps, GLTR's buckets of ranks."""
    if mode == 'change':
        ratio = math.exp(token.model_logprob - before.model_logprob)
        return 'd' + str(sum(ratio > bound for bound in (0.1, 1 / 3, 0.8, 1.25, 3, 10)))
    if mode == 'rank':
        return 's0' if token.rank <= 10 else 's2' if token.rank <= 100 else 's4' if token.rank <= 1000 else 's5'
    if mode == 'entropy':
        return 's' + str(sum(math.exp(token.entropy) > bound for bound in (2, 5, 15, 50, 200)))
    prob = math.exp(token.model_logprob if mode == 'model' else token.sampler_logprob)
    return 's' + str(sum(prob < bound for bound in (0.5, 0.2, 0.05, 0.01, 0.001)))


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['light', pytest.param('dark', marks=pytest.mark.slow)])
def test_every_token_has_the_colour_of_its_value_in_every_mode(opened, scheme):
    page = a_page(texts=3, tokens=40, models=2, sampler='temperature 0.8')
    random = np.random.default_rng(1)
    for token in (token for text in page.texts for side in text.sides for token in side.records):
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
            assert sum(counts) == (120 if mode == 'change' else 240)  # a change is counted once for both models
            assert counts == [
                view.locator(f'.running:not([hidden]) .token.{name}').count()
                for name in view.locator('.swatch').evaluate_all('all => all.map(s => s.classList[1])')
            ]
            for number, text in enumerate(page.texts):
                one, other = text.sides
                for which, side in enumerate(text.sides):
                    names = line_of_all(view, number, which).evaluate_all('all => all.map(t => t.classList[1])')
                    wanted = [
                        expected_class(mode, token, other.records[at])
                        for at, token in enumerate(one.records if mode == 'change' else side.records)
                    ]
                    assert names == wanted
                    seen.update(names)
            # The colours as the browser computes them for the tokens.
            for ink, paper in view.locator('.token').evaluate_all(
                'all => all.map(t => getComputedStyle(t)).map(s => [s.color, s.backgroundColor])'
            ):
                assert contrast(hexadecimal(ink), hexadecimal(paper)) >= 4.5
        assert seen == {f's{n}' for n in range(6)} | {f'd{n}' for n in range(7)}
