"""The live page in headless Chromium: typed, clicked, dragged and by keyboard; its numbers are those of lm.scoring."""

import shutil
import socket
import threading

import pytest
import torch
import uvicorn

import lm
from lm.scoring import score
from model import logits_to_logprobs
from server.app import make_app
from server.engine import Engine, NamedModel

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']


class Settings:
    """What the application and the page read of the settings of serve.py."""

    host, allow_origin, dtype, quantize = '127.0.0.1', None, None, None


@pytest.fixture(scope='module')
def loaded():
    return lm.load('tiny-stories')


@pytest.fixture(scope='module')
def view(loaded):
    sync_api = pytest.importorskip('playwright.sync_api')
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if program is None:
        pytest.skip('needs Chromium')
    listener = socket.create_server(('127.0.0.1', 0))
    app = make_app(Engine([NamedModel('tiny-stories', *loaded, Settings())]), Settings())
    server = uvicorn.Server(uvicorn.Config(app, log_level='critical', access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    complaints = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        page = browser.new_page(viewport={'width': 1280, 'height': 800})
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('console', lambda message: complaints.append(message.text))
        page.set_default_timeout(15_000)
        page.goto(f'http://127.0.0.1:{listener.getsockname()[1]}/')
        page.wait_for_selector('#main:not([hidden])')
        yield page
        browser.close()
    server.should_exit = True
    thread.join(10)
    assert complaints == []


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
