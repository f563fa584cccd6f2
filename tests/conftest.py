"""What every test has: no network, one thread, a small model, a copy of the project, a browser."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers.scripts import PROJECT, files_of_project
from helpers.type_checker import install_type_checks

from common.browser import NAMES, find_browser

# Lessons without tensors are left out: checks would only slow them down.
lessons = [path for path in (PROJECT / 'lessons').glob('*.py') if 'jaxtyping' in path.read_text(encoding='utf-8')]
install_type_checks('lm', *(f'lessons.{path.stem}' for path in lessons))

TIKTOKEN_CACHE = PROJECT.parent / 'shared' / 'tiktoken_cache'
if TIKTOKEN_CACHE.is_dir():
    os.environ.setdefault('TIKTOKEN_CACHE_DIR', str(TIKTOKEN_CACHE))
os.environ['HF_HUB_DISABLE_PROGRESS_BARS'] = '1'
os.environ['NANOGPT_PROBS_TUNE'] = 'never'
os.environ['NANOGPT_PROBS_CACHE'] = str(Path(tempfile.gettempdir()) / 'nanogpt-probs-tests')
torch.set_num_threads(1)  # tests run side by side, a process each
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, as would all it starts

LONGEST = ('test_experiment.py', 'test_report.py', 'test_bench.py', 'test_resume_eval.py', 'test_bigram.py')
files_with_browser = set()
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']
FLAGS += ['--disable-component-update', '--disable-sync']  # of Chromium


@pytest.fixture
def model():
    """A small GPT with random weights."""
    from helpers.models import random_gpt  # after TIKTOKEN_CACHE_DIR is set, which it looks at

    return random_gpt()


@pytest.fixture(scope='session')
def original(tmp_path_factory):
    """A copy of the project, compiled as after its first use."""
    folder = tmp_path_factory.mktemp('original') / 'project'
    for path in files_of_project():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / path, folder / path)
    subprocess.run([sys.executable, '-m', 'compileall', '-q', '-x', '/(tests|lessons)/', folder], check=True)
    return folder


@pytest.fixture
def project(original, tmp_path):
    """A copy of that for one test, gone after it."""
    yield shutil.copytree(original, tmp_path / 'project')
    shutil.rmtree(tmp_path / 'project')


@pytest.fixture(scope='session')
def world(tmp_path_factory):
    """A folder in which data was prepared and a model trained and saved; the finished processes that did it."""
    from helpers.world import make_world  # here: it imports all scripts, which takes seconds

    return make_world(tmp_path_factory.mktemp('world'))


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of that folder as the current one, for a test to change."""
    folder = shutil.copytree(world.folder, tmp_path / 'here')
    monkeypatch.chdir(folder)
    return folder


def pytest_collection_modifyitems(items):
    """Begin with the tests that take longest, so that no process waits for one at the end; see which need a browser."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    files_with_browser.update(item.path for item in items if 'chromium' in item.fixturenames)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Hide the event loop of Playwright from files without a browser, since asyncio.run refuses to start beside it.

    It belongs to this thread from the first test with a browser to the end.
    """
    loop = asyncio._get_running_loop()
    if item.path not in files_with_browser:
        asyncio._set_running_loop(None)
    try:
        return (yield)
    finally:
        asyncio._set_running_loop(loop or asyncio._get_running_loop())


@pytest.fixture(scope='session')
def chromium():
    """Headless Chromium, as installed on the system."""
    sync_api = pytest.importorskip(
        'playwright.sync_api', reason='needs playwright: pip install -r requirements-dev.txt'
    )
    program = find_browser()
    if program is None:
        pytest.skip(f'needs a browser: none of {", ".join(NAMES)} is installed')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        loop = asyncio._get_running_loop()
        yield browser
        asyncio._set_running_loop(loop)  # the last test may have no browser
        browser.close()
