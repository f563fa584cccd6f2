"""What the tests of the notebook share: a person without a network, the forms of the notebook, Colab."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers.notebooks import Book

from notebooks import steps


@pytest.fixture
def someone(monkeypatch):
    """The environment of a person without a network, a GPU or a token."""
    for name in ('HF_TOKEN', 'PYTHONPATH'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')


@pytest.fixture
def book(tmp_path, monkeypatch, someone):
    """A Book in an empty folder."""
    monkeypatch.chdir(tmp_path)
    yield Book()
    steps.forget_models()


@pytest.fixture
def colab(monkeypatch):
    """Colab's modules as far as the notebook uses them; `downloaded` lists the downloads."""
    files = ModuleType('google.colab.files')
    files.downloaded = []
    files.download = files.downloaded.append
    userdata = ModuleType('google.colab.userdata')
    userdata.get = {'HF_TOKEN': 'hf_aSecret'}.__getitem__
    google, package = ModuleType('google'), ModuleType('google.colab')
    package.files, package.userdata = files, userdata
    for name, module in {'google': google, 'google.colab': package, 'google.colab.files': files}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return files
