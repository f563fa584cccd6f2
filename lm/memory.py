"""How much memory is free, and how much a computation will take: what cannot fit is refused before it begins."""

import re
import sys
from pathlib import Path

import torch

from common.errors import UserError
from model import GPT

GROUPS = (  # of the limits that Linux puts on a container: its folder, limit, use, and the part of it that can be freed
    ('/sys/fs/cgroup', 'memory.max', 'memory.current', 'inactive_file'),
    ('/sys/fs/cgroup/memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
)


def require_memory(device, estimate, multiples=None, **values):
    """Raise UserError unless about estimate(**values) bytes are free; the message names the largest values that fit.

    values: settings and their values, which are counts. Each of the largest is for the others as they are.
    multiples: {name: a number that divides the values of this setting}.
    """
    free, needed = free_memory(device), estimate(**values)
    if free is None or needed <= free:
        return
    largest = {name: largest_fitting(estimate, free, values, name) for name in values}
    largest = {name: value - value % (multiples or {}).get(name, 1) for name, value in largest.items()}
    fitting = [f'--{name}={value}' for name, value in largest.items() if value]
    raise UserError(
        f'{" ".join(f"--{name}={value}" for name, value in values.items())} would take about {format_bytes(needed)} of '
        f'memory, and {format_bytes(free)} are free; '
        + (f'{" or ".join(fitting)} would fit' if fitting else 'only a smaller model would fit')
    )


def largest_fitting(estimate, free, values, name):
    """Return the largest value of one setting with which an estimate is at most `free` bytes; 0 if there is none."""
    low, high = 0, values[name]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if estimate(**{**values, name: middle}) <= free else (low, middle - 1)
    return low


def format_bytes(count):
    """Return a number of bytes in a unit that fits."""
    for unit, size in (('TB', 10**12), ('GB', 10**9)):
        if count >= size:
            return f'{count // size:,} {unit}' if count >= 10 * size else f'{count / size:.1f} {unit}'
    return f'{count // 10**6} MB'


# What computations take -----------------------------------------------------------------------------------------------


def bytes_of_samples(model, samples, tokens, prompt_tokens):
    """Estimate the bytes that generating a batch of samples takes, each of `tokens` tokens after the prompt."""
    length = min(prompt_tokens + tokens, model.block_size)
    caches = 1 if length == prompt_tokens + tokens else 2  # beyond block_size a new one is filled beside the old one
    cache, width = sizes_of_token(model)
    prompt = 40 * width * min(prompt_tokens, model.block_size)  # ten numbers a channel in one layer
    logits = 40 * model.n_ids  # ten numbers for each id while a token is chosen
    return samples * (caches * length * cache + prompt + logits)


def bytes_of_beams(model, beams, tokens, prompt_tokens):
    """Estimate the bytes that a beam search takes."""
    candidates = 500 * min(2 * beams, model.n_ids ** min(tokens, 4))  # as Python objects
    beams = min(beams, model.n_ids ** min(tokens - 1, 4))  # there are no more before the last step
    length = min(prompt_tokens + tokens, model.block_size)
    return beams * (2 * length * sizes_of_token(model)[0] + 40 * model.n_ids) + candidates


def sizes_of_token(model):
    """Return the bytes of one token's keys and values, and how many channels it has."""
    cache = model.new_cache(1, 1)
    if isinstance(model, GPT):
        return cache.nbytes, model.config.n_embd
    with torch.no_grad():
        x = model.hidden(torch.zeros(1, 1, dtype=torch.int64, device=model.device), cache)
    return cache.nbytes, x.size(-1)


# What is free ---------------------------------------------------------------------------------------------------------


def free_memory(device):
    """Return about how many bytes of memory a device has free; None if the system does not say."""
    if device.type == 'cuda':
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type == 'mps':
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free = [_available(), _left_in_address_space(), *(_left_in_group(*group) for group in GROUPS)]
    return min((count for count in free if count is not None), default=None)


def _available():
    """Return what Linux can give without swapping; on a Mac, all there is."""
    found = re.search(r'^MemAvailable:\s+(\d+) kB', _read('/proc/meminfo'), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    if sys.platform == 'darwin':
        import os

        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return None


def _left_in_address_space():
    """Return what `ulimit -v` leaves to this process; None without a limit."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = re.search(r'^VmSize:\s+(\d+) kB', _read('/proc/self/status'), re.MULTILINE)
    return None if limit == resource.RLIM_INFINITY or not used else max(0, limit - int(used[1]) * 1024)


def _left_in_group(folder, limit, use, freeable):
    """Return what the limit of a container leaves; None if there is none."""
    limit, use = _read(f'{folder}/{limit}').strip(), _read(f'{folder}/{use}').strip()
    if not (limit.isdecimal() and use.isdecimal()):  # 'max': no limit
        return None
    found = re.search(rf'^{freeable} (\d+)', _read(f'{folder}/memory.stat'), re.MULTILINE)
    return max(0, int(limit) - int(use) + (int(found[1]) if found else 0))


def _read(path):
    try:
        return Path(path).read_text(encoding='ascii', errors='replace')
    except OSError:
        return ''
