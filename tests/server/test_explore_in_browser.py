"""The live page in headless Chromium: typed, clicked, dragged and by keyboard; its numbers are those of lm.scoring."""

import contextlib
import json
import re

import pytest
import torch
from helpers.live_server import run_live_server

import lm
from common.files import PROJECT
from lm.scoring import cut_text, score, segment_ends
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


def tab_to(view, selector):
    """Press Tab until an element has the focus."""
    for _ in range(80):
        if view.evaluate('selector => document.activeElement.matches(selector)', selector):
            return
        view.keyboard.press('Tab')
    raise AssertionError(f'Tab does not lead to {selector}')


@pytest.mark.slow
def test_a_visit_by_keyboard_alone(view, loaded):
    model, tokenizer = loaded
    press = view.keyboard.press
    view.reload()
    view.wait_for_selector('#main:not([hidden])')
    assert view.evaluate('document.activeElement.id') == 'text'  # whoever comes can type at once
    view.evaluate('document.activeElement.blur()')
    tab_to(view, '#new-text')
    press('Enter')
    view.keyboard.type('The queen said that')
    settle(view)
    ids = tokenizer.encode('The queen said that')
    assert view.evaluate('path.ids') == ids

    press('Alt+ArrowLeft')  # "that"
    press('Alt+ArrowLeft')  # "said"
    assert view.evaluate('at') == ids.index(tokenizer.encode(' said')[0])
    place = view.evaluate('at')
    rank = int(view.locator('[data-fact=rank] data').get_attribute('value'))
    view.wait_for_function('() => document.getElementById("announced").textContent.includes("rank")')
    assert f'rank {rank},' in view.locator('#announced').text_content()

    tab_to(view, '.sliders button')
    press('Enter')  # whatever another visitor has set
    assert view.evaluate('sampler.temperature') == 0.8
    view.evaluate('document.activeElement.blur()')
    tab_to(view, '#slider-temperature')
    press('ArrowLeft')
    press('ArrowLeft')
    tab_to(view, '#slider-top_k')
    press('Home')
    press('PageUp')
    tab_to(view, '#slider-min_p')
    press('ArrowRight')
    given = view.evaluate('sampler')
    assert given['temperature'] == pytest.approx(0.7) and given['min_p'] == 0.01 and given['top_k'] < 10
    logits = model(torch.tensor([ids[:place]]))[0][0, -1]
    expected = logits_to_logprobs(logits, **given).exp()
    for choice in view.locator('#choices .choice:not(.cut)').all():
        shown = float(choice.locator('.of-sampler data').get_attribute('value'))
        assert shown == pytest.approx(expected[int(choice.get_attribute('data-id'))].item(), abs=1e-5)
    assert view.locator('#choices .choice:not(.cut)').count() == (expected > 0).sum()

    tab_to(view, '#choices .choice')
    press('End')
    press('ArrowUp')
    forced = int(view.evaluate('document.activeElement.dataset.id'))
    press('Enter')  # the text forks, and goes on by ten tokens
    view.wait_for_function('() => !working && leaves().some((leaf) => leaf.how === "draw")')
    settle(view)
    forked = view.evaluate('path.ids')
    assert forked[: place + 1] == [*ids[:place], forced] and len(forked) == place + 11
    assert total(view) == pytest.approx(score(model, [forked[:1]], [forked[1:]])[0].sum().item(), abs=1e-4)

    view.evaluate('document.activeElement.blur()')
    tab_to(view, '#tree .node')
    current = view.evaluate('tree.current')
    press('F2')
    view.keyboard.type('by keyboard')
    press('Enter')
    assert view.evaluate('nodeOf(tree.current).name') == 'by keyboard'
    press('ArrowUp')
    press('Enter')  # another node is the current one
    assert view.evaluate('tree.current') != current
    settle(view)
    press('ArrowLeft')
    press('ArrowLeft')
    press('ArrowRight')
    press('End')
    rows = view.locator('.node').count()  # some may be folded
    press('Delete')
    view.wait_for_function(f'() => document.querySelectorAll(".node").length < {rows}')
    press('Control+z')
    view.wait_for_function(f'() => document.querySelectorAll(".node").length >= {rows}')
    settle(view)

    view.evaluate('document.activeElement.blur()')
    tab_to(view, '#how')
    view.keyboard.type('greed')
    before = view.evaluate('path.ids')
    tab_to(view, '#text')
    press('Control+Enter')
    view.wait_for_function('(n) => !working && path.ids.length > n', arg=len(before))
    settle(view)
    after = view.evaluate('path.ids')
    assert after[len(before)] == model(torch.tensor([before]))[0][0, -1].argmax()
    tab_to(view, '#show-help')
    press('Enter')
    assert view.locator('#help').is_visible()
    press('Escape')
    assert view.locator('#help').is_hidden()


@pytest.mark.slow
def test_ends_are_renamed_folded_compared_deleted_and_saved(view, loaded, tmp_path):
    model, tokenizer = loaded
    start_anew(view)
    view.locator('#files summary').click()
    view.locator('#forget').click()
    view.locator('#text').fill('Once upon a time there was a')
    settle(view)
    view.locator('#how').select_option('greedy')
    view.locator('[data-count="10"]').click()
    view.wait_for_function('() => !working && path.ids.length > 10')
    settle(view)
    ids = view.evaluate('path.ids')
    for n in range(len(ids) - 10, len(ids)):
        assert ids[n] == model(torch.tensor([ids[:n]]))[0][0, -1].argmax()

    view.locator('#how').select_option('prove')  # Stop ends a search that would take long
    view.locator('#k').fill('5')
    view.locator('[data-count="50"]').click()
    view.wait_for_selector('#bound')
    view.locator('#stop').click()
    view.wait_for_function('() => !working && document.getElementById("bound").innerText.startsWith("Not proved")')
    assert view.locator('#stop').is_hidden()

    view.locator('#how').select_option('draw')
    view.evaluate('pointAt(4)')
    view.wait_for_selector('#choices .chosen')  # the alternatives to this token are there
    view.locator('#choices .choice:not(.chosen)').nth(1).click()
    view.wait_for_function('() => !working && leaves().length === 2 && nodeOf(tree.current).how === "draw"')
    settle(view)
    view.locator('#tree-rename').click()
    view.keyboard.type('the <b>other</b>')
    view.keyboard.press('Enter')
    view.wait_for_function('() => leaves().every(({ id }) => sumOver(pathTo(id).places, "logprobs") !== null)')
    view.locator('#tree-compare').click()
    for leaf in view.evaluate('leaves().map(({ id }) => [id, pathTo(id).ids])'):
        found = float(view.locator(f'tr[data-leaf="{leaf[0]}"] data').first.get_attribute('value'))
        assert found == pytest.approx(score(model, [leaf[1][:4]], [leaf[1][4:]])[0].sum().item(), abs=1e-4)
    rows = view.locator('.node').count()
    view.locator('.fold').first.click()
    assert view.locator('.node').count() == 1
    view.locator('.fold').first.click()
    assert view.locator('.node').count() == rows

    saved = {}
    for button in ('save-tree', 'save-page'):
        view.locator('#files summary').click()
        with view.expect_download() as download:
            view.locator(f'#{button}').click()
        saved[button] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[button])
    assert 'the <b>other</b>' not in re.sub('<script.*?</script>', '', saved['save-page'].read_text(), flags=re.S)
    texts = view.evaluate('leaves().map(({ id, name }) => [name, spell(pathTo(id).bytes).text])')
    view.locator('.node').nth(1).click()
    view.locator('#tree-delete').click()
    assert view.evaluate('leaves().length') == 1
    tree = json.loads(saved['save-tree'].read_text())
    foreign = {**tree, 'tokenizer': 'another', 'nodes': [{**n, 'ids': [10**6] * len(n['ids'])} for n in tree['nodes']]}
    for name, content in (('tree', tree), ('foreign', foreign)):
        path = tmp_path / f'{name}.json'
        path.write_text(json.dumps(content))
        view.locator('#files summary').click()
        view.locator('#forget').click()
        view.set_input_files('#file', path)
        view.wait_for_function('() => leaves().length === 2')
        settle(view)
        assert view.evaluate('leaves().map(({ id, name }) => [name, spell(pathTo(id).bytes).text])') == texts
        opened = view.evaluate('leaves().map(({ id }) => pathTo(id).ids)')
        assert all(tokenizer.decode(one) == text for one, (_, text) in zip(opened, texts))
    assert 'split anew' in view.locator('#notice').inner_text()
    path.write_text('{"format": 1}')
    view.set_input_files('#file', path)
    view.wait_for_selector('#notice:has-text("foreign.json cannot be opened")')
    view.locator('#notice button').click()

    view.locator('#inside summary').click()
    view.wait_for_selector('.looks li')
    shown = view.locator('.looks data').evaluate_all('all => all.map((one) => Number(one.value))')
    assert shown == sorted(shown, reverse=True) and 0 < sum(shown) <= 1.001
    view.locator('#inside summary').click()


@pytest.mark.slow
def test_nasty_texts_stay_text(view, loaded):
    for nasty in ('</script><img src=x onerror=hacked=1>', 'שלום \u202eabc\u202c', '🙂 👩‍👧 a\u200bb', 'a\n\n\tb'):
        start_anew(view)
        view.locator('#text').fill(nasty)
        settle(view)
        ids = view.evaluate('path.ids')
        assert ids == loaded[1].encode(nasty)
        assert total(view) == pytest.approx(score(loaded[0], [ids[:1]], [ids[1:]])[0].sum().item(), abs=1e-4)
        assert view.locator('#text').input_value() == nasty
        assert view.locator('#mirror').text_content() == nasty + '\u200b'
    assert view.evaluate('typeof hacked') == 'undefined'


@pytest.mark.slow
def test_a_long_text_is_read_in_segments_and_the_page_says_so(view, loaded):
    model, tokenizer = loaded
    text = 'The king had a daughter. She was kind, and he loved her. ' * 340 + 'But a wolf came and ate a shoe.'
    start_anew(view)
    view.locator('#text').fill(text)
    settle(view)
    ids = tokenizer.encode(text)
    assert view.evaluate('path.ids') == ids and len(ids) > 5000
    remark = view.locator('#remarks').text_content()
    assert 'sees at most 256' in remark and 'segments of 128, as by eval.py --text' in remark
    pairs = list(cut_text(ids, segment_ends(len(ids), 256, 128), 256, []))
    expected = torch.cat(list(score(model, *zip(*pairs))))  # of ids[1:]
    assert total(view) == pytest.approx(expected.sum().item(), abs=2e-3)
    shown = view.evaluate('path.places.slice(1).map(([node, n]) => Number(node.scores.logprobs[n]))')
    assert shown == pytest.approx(expected.tolist(), abs=1e-4)
    for place in (5000, len(ids) - 2):  # the panel, and the alternatives that it computes in the browser
        view.evaluate('(place) => { pointAt(place); placeCaret(place); }', place)
        view.wait_for_selector('.choice.chosen')
        fact = float(view.locator('[data-fact=model] data').first.get_attribute('value'))
        chosen = float(view.locator('.choice.chosen .of-model data').get_attribute('value'))
        assert fact == pytest.approx(expected[place - 1].exp().item(), abs=1e-5)
        assert chosen == pytest.approx(fact, abs=1e-5)
    view.locator('#how').select_option('greedy')  # what comes next sees the last 256 tokens
    view.locator('[data-count="1"]').click()
    view.wait_for_function('(n) => !working && path.ids.length > n', arg=len(ids))
    settle(view)
    assert view.evaluate('path.ids.at(-1)') == model(torch.tensor([ids[-256:]]))[0][0, -1].argmax()


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


@pytest.mark.slow
def test_the_lesson_shows_the_numbers_of_docs_teaching(chromium, loaded):
    page = (PROJECT / 'docs' / 'teaching.md').read_text(encoding='utf-8')
    lesson = page.partition('## A lesson of ten minutes')[2].partition('\n## ')[0]
    seen = []
    with open_page(chromium, {'tiny-stories': loaded, 'tiny': lm.load('tiny')}) as view:

        def look():
            settle(view)
            view.wait_for_function("() => !element('choices').classList.contains('waiting')")
            view.wait_for_timeout(200)  # what a slider changes is drawn with the next frame
            seen.append(view.locator('#main').inner_text())

        def point_at(place):
            box = view.locator('#mirror > span > span').nth(place).bounding_box()
            view.mouse.move(box['x'] + 5, box['y'] + 8)
            view.wait_for_selector('.choice.chosen')

        view.locator('#text').press_sequentially('Once upon a time there was a')
        settle(view)
        point_at(4)
        look()
        view.keyboard.press('End')
        look()
        for name, value in (('temperature', '0.2'), ('temperature', '2'), ('temperature', '1'), ('top_p', '0.5')):
            view.locator(f'#slider-{name}').fill(value)
            look()
        view.locator('.sliders button').click()
        look()
        view.locator('[data-count="10"]').click()
        view.wait_for_function('() => !working && path.ids.length === 17')
        look()
        point_at(7)
        view.locator('.choice', has_text='·girl').click()
        view.wait_for_function('() => !working && leaves().length === 2 && path.ids.length === 18')
        view.locator('#tree-compare').click()
        view.wait_for_function("() => !element('result').innerText.includes('…')")
        look()
        view.locator('.node').first.click()
        view.locator('#how').select_option('prove')
        view.locator('[data-count="10"]').click()
        view.wait_for_selector('#bound[data-exact=true]')
        view.wait_for_function('() => !working')
        look()
        view.locator('#measure').click()
        view.locator('#response').fill('little dragon')
        view.keyboard.press('Enter')
        view.wait_for_function('() => !working && document.querySelectorAll(".bounds").length === 2')
        view.locator('[value=change] + span').click()
        look()
        point_at(4)
        view.locator('#inside summary').click()
        view.wait_for_selector('.looks li')
        look()
        ranks = view.locator('.lens td:last-child').all_inner_texts()
    numbers = re.findall(r'\d+\.\d+(?: %)?', lesson)
    assert len(numbers) > 15
    assert [one for one in numbers if one not in '\n'.join(seen)] == []
    assert ranks[1:] == ['26', '22', '2', '2'] and 'is 26 after the first layer, 22, 2, and 2 after' in lesson
    assert '·upon 220 ×' in seen[-1] and '·upon` became 220 times' in lesson


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
