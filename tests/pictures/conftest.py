"""What the tests of pictures share: a page in a browser, and an empty folder to write pictures into."""

from contextlib import contextmanager

import matplotlib
import pytest
from helpers.pages import written
from matplotlib import pyplot

matplotlib.use('Agg')


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
