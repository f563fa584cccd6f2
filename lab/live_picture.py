"""The picture of the live page in the README: python -m lab.live_picture (needs Chromium, and playwright)."""

import subprocess
import sys
from dataclasses import dataclass

from playwright.sync_api import sync_playwright

import configurator
from common.browser import NAMES, find_browser
from common.errors import UserError
from common.files import PROJECT

PICTURE = PROJECT / 'results' / 'examples' / 'live.png'
SIZE = {'width': 1280, 'height': 720}  # CSS pixels
COMMAND = ['serve.py', '--init_from=tiny-stories', '--open=False', '--port=0']
TEXT = 'Once upon a time there was a'
TOKENS = 7  # of it


@dataclass
class Settings:
    """Take the picture of the live page in the README."""


def save_picture(_):
    """Serve the story model, explore a text with its page as a reader would, and take the picture."""
    program = find_browser()
    if program is None:
        raise UserError(f'a browser is needed: none of {", ".join(NAMES)} is installed')
    with (
        subprocess.Popen([sys.executable, *COMMAND], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        try:
            address = server.stdout.readline().split()[0]
            browser = playwright.chromium.launch(executable_path=program, args=['--no-sandbox'])
            page = browser.new_page(viewport=SIZE)
            page.goto(address)
            explore(page)
            page.screenshot(path=PICTURE)
            browser.close()
        finally:
            server.terminate()
    print(PICTURE.relative_to(PROJECT))


def explore(page):
    """Type a text, go on, fork it where the typed text ends, and point there."""
    page.locator('#text').fill(TEXT)
    wait(page)
    page.locator('[data-count="10"]').click()
    wait(page)
    page.evaluate('pointAt', TOKENS)
    page.locator('.choice', has_text='·girl').click()
    wait(page)
    page.evaluate('pointAt', TOKENS)
    page.wait_for_selector('.choice.chosen')
    page.mouse.move(0, 0)
    page.evaluate('document.activeElement.blur()')


def wait(page):
    """Wait until the page has all numbers of its text."""
    page.wait_for_function(
        "() => !isReading && !working && path.ids.length > 1 && element('text').value === mainText.text"
        ' && path.places.every(([node, n], at) => at === 0 || node.scores.logprobs[n] !== undefined)'
    )
    page.wait_for_timeout(400)


if __name__ == '__main__':
    configurator.run(save_picture, Settings)
