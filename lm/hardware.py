"""The hardware: which device to use, in which precision, whether it can compile, its peak speed and memory."""

import re
import sys
import time
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch

from common.errors import UserError, is_out_of_memory

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

# Dense bfloat16 FLOP/s (float16 if the card has no bfloat16) from the manufacturers' data sheets.
DATASHEET_FLOPS = {
    'B200': 2250e12,
    'H200': 989e12,
    'H100': 989e12,
    'A100': 312e12,
    'L40S': 362e12,
    'L4': 121e12,
    'A10': 125e12,
    'V100': 125e12,
    'T4': 65e12,
    'RTX 4090': 165e12,
    'RTX 3090': 71e12,
}


def pick_device(name=None):
    """Return the torch.device called `name`: 'cpu', 'cuda', 'cuda:1', 'mps', or 'gpu', which is cuda or else mps.

    None is the best available: cuda, else mps, else the CPU. Raises UserError if there is no such device.
    """
    gpu = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else None
    if name is None:
        return torch.device(gpu or 'cpu')
    kind, colon, number = name.strip().lower().partition(':')
    if kind == 'gpu' and gpu is None:
        raise UserError(f'--device={name} cannot be used: torch finds no GPU on this machine; try --device=cpu')
    try:
        name = (gpu if kind == 'gpu' else kind) + colon + number
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a valid name may lack a device; 'meta' holds no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        if is_out_of_memory(error):
            raise UserError(f'--device={name} has no memory left: another program may use it') from error
        raise UserError(f'--device={name} cannot be used on this machine; try --device=cpu') from error
    return device


def pick_dtype(name=None):
    """Return the torch.dtype called `name`; float32 for None, because exact probabilities are the purpose."""
    if name is None:
        return torch.float32
    if name not in DTYPES:
        raise UserError(f'--dtype={name} is not one of {", ".join(DTYPES)}')
    return DTYPES[name]


def training_dtypes(device, name=None):
    """Return the dtypes of which one is the fastest to train in: several, float32 first, if only measuring tells which.

    name: that of the only one; None: bfloat16 on a CUDA card, or float16 if the card has no bfloat16; on a CPU with
    instructions for bfloat16, float32 and bfloat16; elsewhere float32. float16 overflows above 65,504, so its gradients
    need a scaler.
    """
    if name is not None:
        return [pick_dtype(name)]
    if device.type == 'cuda':
        return [torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16]
    capabilities = torch.cpu.get_capabilities() if device.type == 'cpu' else {}
    has_bfloat16 = any(capabilities.get(name) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))  # the last on Arm
    return [torch.float32, torch.bfloat16] if has_bfloat16 else [torch.float32]


def autocast(device, dtype):
    """Compute matrix products in `dtype`; weights, normalisation and losses stay in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def check_compiler(device):
    """Raise UserError if torch.compile lacks what it needs, before anything is computed or deleted."""
    from torch._dynamo.eval_frame import check_if_dynamo_supported

    with explain_compile_errors():
        check_if_dynamo_supported()  # not on every system and version of Python
        if device.type == 'cpu':
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()


@contextmanager
def explain_compile_errors():
    """Turn the errors of torch.compile, with their pages of code, into a UserError; also a function's decorator."""
    try:
        yield
    except RuntimeError as error:
        if 'torch.compile' not in str(error) and not type(error).__module__.startswith(('torch._dynamo', 'torch._ind')):
            raise
        text = str(error)
        if 'InvalidCxxCompiler' in f'{type(error).__name__} {text}':
            reason = 'no C++ compiler was found; install g++ or clang++ (on Windows cl, of Visual Studio)'
        else:  # a compiler's own message is the most useful line
            lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
            reason = next((line for line in lines if 'error:' in line), lines[0])[:300]
        raise UserError(f'--compile=True does not work here: {reason}; or leave --compile out') from error


def synchronize(device):
    """Wait until the device has finished its work; call this before reading a clock."""
    if device.type in ('cuda', 'mps'):
        getattr(torch, device.type).synchronize()


@lru_cache
def peak_flops(device, dtype):
    """Return the peak FLOP/s of the device: from its data sheet if known, otherwise measured with large products."""
    if device.type == 'cuda' and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        known = [flops for card, flops in DATASHEET_FLOPS.items() if re.search(rf'\b{card}\b', name)]
        if known:
            return known[0]
    best, n, seconds = 0.0, 256, 0.0
    while n <= 8192 and seconds < 0.02:  # larger products come closer to the peak; stop when they take too long
        a = torch.randn(n, n, device=device).to(dtype)
        for _ in range(4):
            synchronize(device)
            start = time.perf_counter()
            a @ a
            synchronize(device)
            seconds = time.perf_counter() - start
            best = max(best, 2 * n**3 / seconds)
        n *= 2
    return best


def peak_memory_mib():
    """Return the peak memory of this process so far, in MiB; None if the system does not report it."""
    try:  # Linux: getrusage would include the memory of the program that started this one
        status = Path('/proc/self/status').read_text(encoding='ascii', errors='replace')
        return round(int(re.search(r'^VmHWM:\s+(\d+) kB', status, re.MULTILINE)[1]) / 2**10, 1)
    except (OSError, TypeError):
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == 'darwin' else 2**10), 1)  # bytes on a Mac, KiB elsewhere
