"""Devices and compilers as people name them and have them."""

import pytest
import torch
from torch._inductor import cpp_builder, exc

from common.errors import UserError
from lm.hardware import check_compiler, explain_compile_errors, pick_device


@pytest.fixture
def machine_with(monkeypatch):
    """A function that sets which kinds of GPU torch finds, and lets it use them."""

    def set_up(*kinds):
        for kind, module in (('cuda', torch.cuda), ('mps', torch.backends.mps)):
            monkeypatch.setattr(module, 'is_available', lambda kind=kind: kind in kinds)
        zeros = torch.zeros
        monkeypatch.setattr(torch, 'zeros', lambda *size, device=None: zeros(*size))

    return set_up


@pytest.mark.parametrize(
    ('kinds', 'name', 'device'),
    [
        (['cuda'], 'gpu', 'cuda'),
        (['cuda'], 'gpu:1', 'cuda:1'),
        (['cuda', 'mps'], 'GPU', 'cuda'),
        (['mps'], 'gpu', 'mps'),
        (['mps'], None, 'mps'),
        ([], None, 'cpu'),
        ([], 'CPU', 'cpu'),
    ],
)
def test_gpu_means_cuda_or_mps(machine_with, kinds, name, device):
    machine_with(*kinds)
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize('name', ['gpu', 'GPU:0', 'cuda', 'gpuu', 'cpu:x'])
def test_a_device_that_is_not_there_is_refused(machine_with, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    if name == 'cuda' and torch.cuda.device_count():
        pytest.skip('this machine has one')
    with pytest.raises(UserError, match=f'--device={name} cannot be used.*--device=cpu'):
        pick_device(name)


def test_compiling_without_a_compiler_is_refused_in_one_line(monkeypatch):
    def none_found():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, 'get_cpp_compiler', none_found)
    with pytest.raises(UserError, match=r'^--compile=True .* no C\+\+ compiler .*; or leave --compile out$'):
        check_compiler(torch.device('cpu'))


def test_a_compiler_that_fails_is_quoted_in_one_line():
    @explain_compile_errors()
    def compiled():
        error = exc.CppCompileError(['g++', 'x.cpp'], 'x.cpp:1:10: fatal error: Python.h: No such file\nmore\n' * 50)
        raise exc.InductorError(error, None)

    with pytest.raises(
        UserError, match=r'^--compile=True does not work here: x.cpp:1:10: fatal error: Python.h'
    ) as caught:
        compiled()
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_other_errors_of_a_compiled_model_keep_their_traceback():
    with pytest.raises(RuntimeError, match='shapes'), explain_compile_errors():
        raise RuntimeError('shapes')
