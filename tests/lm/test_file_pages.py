"""Weights that were read can be given back: memory falls, and nothing is lost."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lm.file_pages import page_out, page_out_read


def resident_mib():
    """Return how much of mapped files is in this process's memory, in MiB."""
    return int(re.search(r'RssFile:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 2**10


@pytest.fixture
def weights(tmp_path):
    """Return {name: tensor} of a file of 64 MiB."""
    torch.manual_seed(4)
    save_file({name: torch.randn(2**11, 2**11) for name in 'abcd'}, tmp_path / 'w.safetensors')
    return load_file(tmp_path / 'w.safetensors')


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux is told')
def test_the_memory_of_a_mapped_file_is_given_back(weights):
    sums = {name: tensor.double().sum().item() for name, tensor in weights.items()}
    before = resident_mib()
    page_out([tensor.t() for tensor in weights.values()])
    assert resident_mib() < before - 50
    assert {name: tensor.double().sum().item() for name, tensor in weights.items()} == sums


def test_ordinary_memory_is_left_alone():
    tensors = [torch.randn(2**20) for _ in range(3)]
    copies = [tensor.clone() for tensor in tensors]
    page_out(tensors)
    page_out([torch.zeros(0), torch.zeros(3)])
    assert all(map(torch.equal, tensors, copies))


def test_all_are_yielded_and_the_last_given_back(weights):
    assert {name: tensor.sum() for name, tensor in page_out_read(weights)}.keys() == weights.keys()
    if sys.platform.startswith('linux'):
        before = resident_mib()
        assert sum(tensor.double().abs().sum() for tensor in weights.values()) > 0
        assert resident_mib() > before + 50
