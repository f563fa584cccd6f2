"""The live page in headless Chromium: typed, clicked, dragged and by keyboard; its numbers are those of lm.scoring."""

import contextlib
import re

import pytest
import torch
from helpers.live_server import run_live_server

import lm
from common.files import PROJECT
from lm.scoring import score
from lm.settings import ModelSettings
from model import logits_to_logprobs
from server.engine import NamedModel

SETTINGS = ModelSettings()


@pytest.fixture(scope='module')
def loaded():
    return lm.load('tiny-stories')


@contextlib.contextmanager
def open_page(chromium, models, **options):
    """Yield the page of some models, as a browser shows it, and expect no complaint on its console."""
    complaints = []
    with run_live_server([NamedModel(name, *model, SETTINGS) for name, model in models.items()]) as server:
        page = chromium.new_page(**{'viewport': {'width': 1280, 'height': 800}, **options})
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('console', lambda message: complaints.append(message.text))
        page.set_default_timeout(15_000)
        page.goto(server.url)
        page.wait_for_selector('#main:not([hidden])')
        yield page
        page.close()
    assert complaints == []


@pytest.fixture(scope='module')
def view(chromium, loaded):
    with open_page(chromium, {'tiny-stories': loaded}) as page:
        yield page


def settle(view):
    """Wait until what was typed is in the tree, and has its numbers."""
    view.wait_for_function(
        "() => !isReading && !working && element('text').value === mainText.text && mainText.count === path.ids.length"
        ' && path.places.every(([node, n], at) => at === 0 || node.scores.logprobs[n] !== undefined)'
    )


def start_anew(view):
    view.locator('#new-text').click()
    settle(view)


def total(view):
    return float(view.locator('[data-total=logprobs] data').get_attribute('value'))


@pytest.mark.slow
def test_the_sliders_give_what_the_sampler_draws_from(view):
    random = torch.Generator().manual_seed(1)
    rows = [torch.randn(50, generator=random) * 3, torch.zeros(8), torch.tensor([2.0, 2.0, 1.0, 1.0, 1.0, -40.0])]
    rows.append(torch.tensor([-torch.inf, 0.0, 1e4, 1e4 - 1, -1e4]))
    for logits in rows:
        for given in (
            {},
            {'temperature': 0},
            {'temperature': 1e-3},
            {'temperature': 1.7, 'top_k': 3},
            {'top_p': 0.5},
            {'temperature': 0.8, 'top_k': 4, 'top_p': 0.9},
            {'min_p': 0.2},
            {'temperature': 1.7, 'top_k': 5, 'top_p': 0.95, 'min_p': 0.1},
            {'min_p': 1.0},
        ):
            expected = logits_to_logprobs(logits, **given).tolist()
            values = [str(value) for value in logits.tolist()]
            found = view.evaluate(
                "([values, given]) => [...samplerLogprobs(Float32Array.from(values, (v) => Number(v.replace('inf',"
                " 'Infinity'))), given)].map(String)",
                [values, given],
            )
            found = [float(value.replace('Infinity', 'inf')) for value in found]
            assert found == pytest.approx(expected, abs=1e-5), given


@pytest.mark.slow
def test_a_visit(view, loaded):
    model, tokenizer = loaded
    start_anew(view)
    text = view.locator('#text')
    text.press_sequentially('The old king had a daughter')
    settle(view)
    ids = tokenizer.encode('The old king had a daughter')
    assert total(view) == pytest.approx(score(model, [ids[:1]], [ids[1:]])[0].sum().item(), abs=1e-4)

    box = view.locator('#mirror > span > span').nth(2).bounding_box()
    view.mouse.click(box['x'] + 5, box['y'] + 5)
    view.wait_for_selector('.choice.chosen .piece:text("·king")')
    slider = view.locator('#slider-temperature').bounding_box()
    view.mouse.move(slider['x'] + slider['width'] * 0.4, slider['y'] + 8)
    view.mouse.down()
    view.mouse.move(slider['x'] + slider['width'] * 0.2, slider['y'] + 8, steps=3)
    view.mouse.up()
    given = view.evaluate('sampler')
    logits = model(torch.tensor([ids[:2]]))[0][0, -1]
    expected = logits_to_logprobs(logits, given['temperature'], given['top_k']).exp()
    shown = view.locator('#choices .choice').first
    assert float(shown.locator('.of-sampler data').get_attribute('value')) == pytest.approx(
        expected[int(shown.get_attribute('data-id'))].item(), abs=1e-5
    )
    settle(view)
    view.locator('#choices .choice:not(.chosen)').first.click()  # the text forks there, and goes on
    view.wait_for_function('() => !working && leaves().length === 2')
    settle(view)
    path = view.evaluate('path.ids')
    assert len(path) == 13 and path[:2] == ids[:2]
    assert total(view) == pytest.approx(score(model, [path[:1]], [path[1:]])[0].sum().item(), abs=1e-4)

    view.keyboard.press('Control+z')
    view.keyboard.press('Control+z')
    settle(view)
    assert text.input_value() == 'The old king had a daughter'
    view.keyboard.press('Control+Shift+z')
    view.keyboard.press('Control+Shift+z')
    settle(view)
    assert view.evaluate('path.ids') == path
    view.locator('#how').select_option('prove')
    view.locator('[data-count="1"]').click()
    view.wait_for_selector('#bound[data-exact=true]')
    view.locator('.found button').first.click()
    settle(view)

    view.wait_for_function('() => !document.getElementById("tree").innerText.includes("…\\n")')
    before = view.locator('#tree').inner_text()
    view.reload()
    view.wait_for_selector('#main:not([hidden])')
    settle(view)
    view.wait_for_function('() => !document.getElementById("tree").innerText.includes("…\\n")')
    assert view.locator('#tree').inner_text() == before

    text.focus()
    view.keyboard.press('Alt+ArrowLeft')  # by keyboard alone: a token, its alternatives, another one
    view.keyboard.press('Alt+ArrowDown')
    view.wait_for_function('() => document.activeElement.matches(".choice")')
    count = view.evaluate('leaves().length')
    view.keyboard.press('ArrowDown')
    view.keyboard.press('Enter')
    view.wait_for_function('(count) => !working && leaves().length > count', arg=count)
    settle(view)


@pytest.mark.slow
def test_nasty_texts_stay_text(view, loaded):
    for nasty in ('</script><img src=x onerror=hacked=1>', 'שלום \u202eabc\u202c', '🙂 👩‍👧 a\u200bb', 'a\n\n\tb'):
        start_anew(view)
        view.locator('#text').fill(nasty)
        settle(view)
        assert view.evaluate('path.ids') == loaded[1].encode(nasty)
        assert view.locator('#text').input_value() == nasty
        assert view.locator('#mirror').text_content() == nasty + '\u200b'
    assert view.evaluate('typeof hacked') == 'undefined'


@pytest.mark.slow
def test_a_long_text_is_read_in_segments_and_the_page_says_so(view, loaded):
    text = 'The king had a daughter. She was kind, and he loved her. ' * 340
    start_anew(view)
    view.locator('#text').fill(text)
    settle(view)
    assert view.evaluate('path.ids.length') > 5000
    assert 'sees at most 256' in view.locator('#remarks').text_content()


@pytest.mark.slow
@pytest.mark.parametrize('size', [{}, {'viewport': {'width': 360, 'height': 740}, 'color_scheme': 'dark'}], ids=str)
def test_two_models_side_by_side(chromium, loaded, size):
    models = {'tiny-stories': loaded, 'tiny': lm.load('tiny')}
    text = 'Once upon a time there was a king'
    with open_page(chromium, models, **size) as view:
        view.locator('#text').fill(text)
        settle(view)
        view.wait_for_selector('.differ button')
        ids = loaded[1].encode(text)
        first, second = (score(model, [ids[:1]], [ids[1:]])[0] for model, _ in models.values())
        for name, expected in (('logprobs', first), ('other-logprobs', second)):
            found = float(view.locator(f'[data-total={name}] data').get_attribute('value'))
            assert found == pytest.approx(expected.sum().item(), abs=1e-4)
        changes = (first - second).abs()
        most = changes.argmax().item()
        view.locator('.differ button').first.click()  # it leads to where they differ most
        assert view.evaluate('at') == 1 + most
        facts = view.locator('[data-fact=model] b data').evaluate_all('all => all.map((one) => Number(one.value))')
        assert facts == pytest.approx([one[most].exp().item() for one in (first, second)], abs=1e-5)
        view.locator('[value=change] + span').click()
        assert view.locator('#mirror .d6, #mirror .d5').count() > 0
        view.locator('#measure').click()
        view.locator('#response').fill('and a queen')
        view.keyboard.press('Enter')
        view.wait_for_function('() => !working && document.querySelectorAll(".bounds").length === 2')
        assert view.evaluate('document.documentElement.scrollWidth <= innerWidth')


def test_colours_and_numbers_are_those_of_the_page_to_hand_in():
    live, static = (PROJECT / name for name in ('server/explore.html', 'pictures/page.html'))
    live, static = live.read_text(encoding='utf-8'), static.read_text(encoding='utf-8')

    def colours(page):
        return dict(re.findall(r'(--(?:on-)?[sd]\d): *(light-dark\([^;]*\));', page))

    def function(page, name):
        return re.search(rf'function {name}\(.*?\n\}}', page, re.S).group()

    assert len(colours(live)) == 26 and colours(live) == colours(static)
    for name in ('powerOfTen', 'probabilityOf', 'multipleOf', 'percent'):
        assert function(live, name) == function(static, name)
