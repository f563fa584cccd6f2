"""What several tests need: small random models, GPT-2's vocabulary where it is at hand, scripts run by hand."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import GPT, GPTConfig

PROJECT = Path(__file__).resolve().parent.parent
TIKTOKEN_CACHE = PROJECT.parent / 'shared' / 'tiktoken_cache'
if TIKTOKEN_CACHE.is_dir():
    os.environ.setdefault('TIKTOKEN_CACHE_DIR', str(TIKTOKEN_CACHE))
os.environ['HF_HUB_DISABLE_PROGRESS_BARS'] = '1'
torch.set_num_threads(1)  # tests run side by side, a process each
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, as would all it starts

needs_gpt2_vocabulary = pytest.mark.skipif(
    not os.environ.get('TIKTOKEN_CACHE_DIR'),
    reason="needs GPT-2's vocabulary without a network: set TIKTOKEN_CACHE_DIR to a folder that holds it",
)


def random_gpt(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=16, seed=0, n_ids=None, gelu='tanh', **rest):
    """Return a GPT whose weights are large enough that its distributions are far from flat."""
    torch.manual_seed(seed)
    config = GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, **rest)
    model = GPT(config, gelu=gelu, n_ids=n_ids).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if '.ln_' in name and name.endswith('weight'):
            parameter.data += 1
    return model


@pytest.fixture
def model():
    return random_gpt()


def run_script(script, *arguments, cwd, env=None, timeout=120):
    """Run a script of the project as a person does, from folder `cwd`; return the finished process."""
    return subprocess.run(
        [sys.executable, str(PROJECT / script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_lesson(name, *arguments, cwd, timeout=300, **env):
    """Run a lesson as a person does, but from folder `cwd`, into which its pictures go; return the finished process."""
    return subprocess.run(
        [sys.executable, '-m', f'lessons.{name}', *arguments],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(PROJECT), 'PYTHONIOENCODING': 'utf-8', **env},
        capture_output=True,
        encoding='utf-8',
        timeout=timeout,
    )


def assert_friendly_error(process, *words):
    """A mistake of the person's ends with exit code 2 and one line on stderr that holds these words."""
    assert process.returncode == 2, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith('error: ')
    for word in words:
        assert word in lines[0], lines[0]


# A copy of the project, for whatever writes into its folder ---------------------------------------------------------


@functools.cache
def files_of_project():
    """Return the paths of the files that belong to the project, those that git ignores left out."""
    listing = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z']
    try:
        out = subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        paths = [Path(path) for path in out.split('\0') if path]
    except (OSError, subprocess.CalledProcessError):  # a copy without git
        here = [path.relative_to(PROJECT) for path in PROJECT.rglob('*') if path.is_file()]
        paths = [path for path in here if not re.match(r'\.(?!ci/)|out[^/]*/|venv/|.*__pycache__', str(path))]
    return [path for path in paths if (PROJECT / path).exists()]


@pytest.fixture(scope='session')
def original(tmp_path_factory):
    """A copy of the project, compiled as after its first use."""
    folder = tmp_path_factory.mktemp('original') / 'project'
    for path in files_of_project():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / path, folder / path)
    subprocess.run([sys.executable, '-m', 'compileall', '-q', '-l', folder], check=True)
    return folder


@pytest.fixture
def project(original, tmp_path):
    """A copy of that for one test, gone after it."""
    yield shutil.copytree(original, tmp_path / 'project')
    shutil.rmtree(tmp_path / 'project')
