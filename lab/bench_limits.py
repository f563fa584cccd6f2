"""What the hardware allows: how fast it reads memory and multiplies, and how fast a job could be done at most."""

import time

import torch

from lab.bench_contenders import TRAIN_BATCH, TRAIN_STEPS
from lm import matrices
from lm.hardware import peak_flops

BYTES = {'float32': 4, 'bfloat16': 2, 'int8': 1}  # per weight


def measure_hardware_limits():
    """Measure how fast this machine reads memory, in GB/s, and multiplies matrices, in GFLOP/s."""
    numbers = torch.ones(2**27)  # 512 MiB, far more than any cache holds
    best = float('inf')
    for _ in range(8):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    device = torch.device('cpu')
    return {
        'read_gb_per_second': numbers.nbytes / best / 1e9,
        'float32_gflops': max(peak_flops(device, torch.float32), measure_packed_flops(torch.float32)) / 1e9,
        'bfloat16_gflops': max(peak_flops(device, torch.bfloat16), measure_packed_flops(torch.bfloat16)) / 1e9,
    }


@torch.no_grad()
def measure_packed_flops(dtype):
    """Return the FLOP/s of oneDNN's product with a packed matrix; 0.0 if it has none for this dtype.

    On some CPUs it is far faster than torch's plain product, whose MKL does not use their widest instructions.
    """
    n = 2048
    x = torch.randn(n, n).to(dtype)
    if not matrices.can_pack(x):
        return 0.0
    matrix = matrices.PackedMatrix(torch.nn.Linear(n, n, bias=False, dtype=dtype))
    best = float('inf')
    for _ in range(16):
        started = time.perf_counter()
        matrix(x)
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def count_work(job, task):
    """Return how much one round does, in the job's unit."""
    if job in ('decode', 'busy', 'sample'):
        return task.rows * task.new_tokens
    if job in ('score', 'prompts'):
        return len(task.pairs)
    batch_size, tokens = TRAIN_BATCH
    return {'train': TRAIN_STEPS * batch_size * tokens, 'start': 1, 'prepare': 100}[job]


def least_seconds(job, name, task, limits):
    """Return the least time in which a contender could do the job on this machine, in seconds; None if unknown.

    The weights must be read and the products computed. Attention and everything small is left out, so the true limit
    is a little higher. int8 products have no limit here: torch offers no way to measure what the CPU could do.
    """
    name = name.replace('q8_0', 'int8')
    precision = next((precision for precision in ('bfloat16', 'int8') if precision in name), 'float32')
    flops = limits.get(f'{"bfloat16" if name == "train.py" else precision}_gflops')
    flops = flops and flops * 1e9
    if job in ('decode', 'busy', 'sample') and 'cache' not in name:
        weights = task.layers + task.head
        reading = weights * BYTES[precision] / (limits['read_gb_per_second'] * 1e9)
        return task.new_tokens * max(reading, 2 * weights * task.rows / flops if flops else 0.0)
    if job in ('score', 'prompts') and flops:
        inputs = sum(len(prompt) + len(response) - 1 for prompt, response, *_ in task.pairs)
        if job == 'prompts':  # every prompt is read once
            prompts = {tuple(prompt) for prompt, *_ in task.pairs}
            inputs = sum(map(len, prompts)) + sum(len(response) - 1 for _, response, *_ in task.pairs)
        outputs = sum(len(response) for _, response, *_ in task.pairs)
        return 2 * (task.layers * inputs + task.head * outputs) / flops
    if job == 'train' and flops:
        return 6 * (task.layers + task.head) * count_work(job, task) / flops
    return None
