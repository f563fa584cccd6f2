"""Fixtures that several tests of tokenizers use."""

import pytest
from helpers.models import needs_gpt2_vocabulary
from helpers.tokenizers import MAKE


@pytest.fixture(scope='module', params=[pytest.param('gpt2', marks=needs_gpt2_vocabulary), 'bpe', 'char', 'story'])
def tokenizer(request):
    return MAKE[request.param]()


@pytest.fixture(scope='module', params=[pytest.param('gpt2', marks=needs_gpt2_vocabulary), 'bpe'])
def byte_level(request):
    """One of the tokenizers that have an id for every text."""
    return MAKE[request.param]()


@pytest.fixture(scope='module')
def saved(byte_level, tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    byte_level.save(folder)
    return folder
