"""Which precision to train in: measured at the start of a run where only that tells, and kept from then on.

An instruction for bfloat16 does not promise speed: on some CPUs that have one, bfloat16 is slower than float32.
"""

import time

import torch

from common.errors import UserError
from common.notes import note
from common.strings import show_value
from lm.hardware import DTYPES, autocast, pick_dtype, synchronize, training_dtypes

TOKENS = 512  # of the text that is measured: a fraction of a usual step


def choose_training_dtype(run):
    """Return the dtype of a run, and the reason in brackets: as set, as the run began, or the fastest here."""
    settings, begun_in = run.settings, (run.checkpoint or {}).get('dtype')
    if begun_in is not None and begun_in not in tuple(DTYPES):
        raise UserError(
            f'{settings.out_dir} cannot be resumed: its checkpoint says dtype {show_value(begun_in)}; '
            f'--init_from={settings.out_dir} --out_dir=ANOTHER starts a new run from its weights'
        )
    dtypes = training_dtypes(run.device, settings.dtype)
    if begun_in is not None and settings.dtype is None:
        return pick_dtype(begun_in), ' (as it began)' if len(dtypes) > 1 else ''
    if begun_in not in (None, settings.dtype):
        note(f'the run began in {begun_in}, now it computes in {settings.dtype}; its numbers will be others')
    if len(dtypes) == 1:
        return dtypes[0], ''
    seconds = measure_dtypes(run.raw_loss_fn, run.device, dtypes, run.blocks['train'].read([0]))
    seconds = dict(zip(dtypes, run.processes.sum(*seconds.values()), strict=True))  # so that all choose the same
    ratio = seconds[torch.bfloat16] / seconds[torch.float32]
    return min(seconds, key=seconds.get), f' (measured: bfloat16 takes {ratio:.2f} times as long as float32)'


def measure_dtypes(loss_fn, device, dtypes, batch):
    """Return {dtype: seconds} of a forward and backward pass over the beginning of a text, the better of two.

    loss_fn: inputs and targets in, loss out. batch: inputs and targets, (1, T) each. The first pass, which prepares the
    kernels, is not counted. Neither weights nor random generators change.
    """
    x, y = (ids[:, :TOKENS].to(device) for ids in batch)
    seconds = {dtype: [] for dtype in dtypes}
    with torch.random.fork_rng():
        for _ in range(3):
            for dtype in dtypes:
                synchronize(device)
                start = time.perf_counter()
                with autocast(device, dtype):
                    loss = loss_fn(x, y)
                loss.backward()
                synchronize(device)
                seconds[dtype].append(time.perf_counter() - start)
                for parameter in loss_fn.parameters():
                    parameter.grad = None
    return {dtype: min(values[1:]) for dtype, values in seconds.items()}


def name_dtype(dtype):
    """Return the name of a dtype, such as 'bfloat16'."""
    return str(dtype).removeprefix('torch.')
