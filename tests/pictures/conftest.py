"""What the tests of pictures share: a browser with a page in it, and an empty folder to write pictures into."""

import shutil
from contextlib import contextmanager

import matplotlib
import pytest
from helpers.pages import written
from matplotlib import pyplot

matplotlib.use('Agg')

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']
FLAGS += ['--disable-component-update', '--disable-sync']


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def last_figure(monkeypatch):
    """Keep figures open, so that a test sees what was drawn; a function that returns the last one."""
    close = pyplot.close
    monkeypatch.setattr(pyplot, 'close', lambda figure: None)
    yield pyplot.gcf
    close('all')


@pytest.fixture(scope='session')
def chromium():
    """Headless Chromium, as installed on the system."""
    sync_api = pytest.importorskip(
        'playwright.sync_api', reason='needs playwright: pip install -r requirements-dev.txt'
    )
    names = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'msedge')
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f'needs a browser: none of {", ".join(names)} is installed')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """A function that writes a page and opens it from disk; afterwards nothing was loaded and no error was reported."""

    @contextmanager
    def open_page(page, width=1200, height=800, **options):
        path = written(page, tmp_path)
        context = chromium.new_context(viewport={'width': width, 'height': height}, **options)
        complaints, requests = [], []
        context.on('request', lambda request: requests.append(request.url))
        context.on('console', lambda message: complaints.append(message.text))
        view = context.new_page()
        view.on('pageerror', lambda error: complaints.append(str(error)))
        view.set_default_timeout(10_000)
        view.goto(path.as_uri())
        yield view
        if options.get('java_script_enabled', True):
            assert view.evaluate('typeof hacked') == 'undefined'
        assert complaints == []
        assert requests == [path.as_uri()]
        context.close()

    return open_page
