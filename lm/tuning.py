"""Which way to store and multiply matrices is the fastest here: measured once, then remembered.

No way is the fastest everywhere: what wins on one CPU is slowest on another, and one row wants another way than many.
So when a model is first loaded, the matrices of one layer are multiplied in each of them, for a fraction of a second.
The outcome is kept in the user's cache folder, for each machine, version of torch, number of threads, shape, precision
and number of rows. Some ways take seconds to store the matrices of a model, so how often these will be multiplied
counts, too. All ways compute the same numbers, up to rounding.
"""

import contextlib
import hashlib
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from common.errors import UserError
from common.files import atomic_write
from common.json_files import read_json_object
from lm import matrices

VERSION = 3  # of the ways to choose from: raise it when one of them changes
SECONDS = 0.15  # to measure for; making the matrices takes about as long again
ROUNDS = 3, 50  # at least and at most
MANY_ROWS = 64  # stands for any number from FEW_ROWS on
FEW_ROWS = 17
WEIGHTS = 2**22  # at most this many are measured; of larger layers, the first rows of each matrix
MARGIN = 0.85  # another way than the expected one must take less than this part of its time
MANY_PRODUCTS = 2000  # with each matrix, if it is not known how many
WAIT = 5.0  # seconds, for another process that measures
TUNE = ('once', 'again', 'never')

FLOATS = {
    'packed': matrices.PackedMatrix,
    'packed for one row': matrices.PackedMatrixOfOne,
    'packed in fours': matrices.PackedMatrixOfFour,
    'transposed': matrices.TransposedMatrix,
    'plain': matrices.PlainMatrix,
    'split': matrices.SplitMatrix,
}
ENGINES = {
    'fbgemm': matrices.Int8Matrix,
    'x86': matrices.X86Int8Matrix,
    'onednn': matrices.OneDnnInt8Matrix,
    'qnnpack': matrices.QnnpackInt8Matrix,
}
PORTABLE = {'portable': matrices.PortableInt8Matrix}


@dataclass
class Choice:
    """How matrices are stored and multiplied."""

    name: str
    threads: int | None = None  # how many compute a few rows; None for all
    times: 'Times | None' = None  # None if none were measured
    remembered: bool = False

    @property
    def matrix(self):
        """The class of the matrices."""
        return {**FLOATS, **ENGINES, **PORTABLE}[self.name]

    def __str__(self):
        chosen = describe_way(self.name, self.threads)
        if self.times is None:
            return chosen
        took = ', '.join(f'{describe_way(*way)} {value:.2f}' for way, value in self.times.products.items())
        making = ', '.join(f'{name} {value:.0f}' for name, value in self.times.making.items())
        when = 'remembered' if self.remembered else 'measured now'
        return f'{chosen} ({when}, ms for a layer: {took}; to store it: {making})'


@dataclass
class Times:
    """How long the ways take for a layer, in milliseconds."""

    products: dict  # {(name, threads): for the products with its matrices}
    making: dict  # {name: to store the matrices}

    def total(self, way, count):
        """Return the time of storing a layer's matrices in a way, (name, threads), and `count` products with each."""
        return self.making[way[0]] + count * self.products[way]


def describe_way(name, threads):
    """Return a way's name, with the number of threads if it is not all."""
    return f'{name} on {threads} thread{"s" * (threads > 1)}' if threads else name


def choose_matrix(linears, quantize=None, rows=1, tune='once', products=MANY_PRODUCTS):
    """Return the Choice for a model. linears: the Linear layers of one of its layers.

    quantize: None or 'int8'. rows: how many a product will mostly have. products: how many there will be with each
    matrix, about. tune: 'once' measures if nothing is remembered, 'again' in any case; 'never' takes the usual way, so
    that numbers are the same to the last digit. The environment variable NANOGPT_PROBS_TUNE overrules 'once'. Raises
    UserError for any other word.
    """
    tune = os.environ.get('NANOGPT_PROBS_TUNE', tune) if tune == 'once' else tune
    if tune not in TUNE:
        raise UserError(f'--tune={tune} is not one of {", ".join(TUNE)}')
    weight = linears[0].weight
    ways = ways_to_multiply(weight, quantize)
    if len(ways) == 1:
        return Choice(next(iter(ways)))
    rows = rows if rows < FEW_ROWS else MANY_ROWS
    # In fours, rows are rounded alike in batches of any size.
    usual = 'packed in fours' if rows > 1 and 'packed in fours' in ways else next(iter(ways))
    if tune == 'never':
        return Choice(usual)
    for name in useless_ways(rows):
        ways.pop(name, None)
    times, remembered = find_times(linears, ways, quantize, rows, tune)
    # In whole models, which need far more memory than one layer, `split` gains more: up to a third for one row.
    names = [*(['split'] if rows == 1 else []), usual, *ways]
    expected = (next(name for name in names if name in ways), None)  # None: with all threads
    total = {way: times.total(way, products) for way in times.products}
    fastest = min(total, key=total.get)
    if total[fastest] > MARGIN * total[expected]:
        fastest = expected
    return Choice(*fastest, times, remembered)


def find_times(linears, ways, quantize, rows, tune):
    """Return (Times of the ways, whether they were remembered)."""
    weight = linears[0].weight
    shapes = [(linear.out_features, linear.in_features, linear.bias is not None) for linear in linears]
    is_transposed = weight.T.is_contiguous() and not weight.is_contiguous()  # as GPT-2's files are
    key = describe_case(shapes, weight.dtype, quantize, rows, is_transposed)
    if tune == 'once' and (times := read_times(key, ways)):
        return times, True
    with wait_for_others():  # so that all processes of a run choose alike
        if tune == 'once' and (times := read_times(key, ways)):
            return times, True
        times = measure_ways(ways, shapes, weight.dtype, rows, is_transposed)
        remember_times(key, times)
    return times, False


def ways_to_multiply(weight, quantize):
    """Return {name: class} of what can multiply with such weights on this machine, the usual one first."""
    if not quantize:
        ways = dict(FLOATS)
        if not matrices.can_pack(weight):
            ways = {name: way for name, way in ways.items() if 'packed' not in name}
        if not matrices.can_split(weight):
            del ways['split']
        return ways
    supported = torch.backends.quantized.supported_engines
    ways = {name: way for name, way in ENGINES.items() if name in supported}
    if 'fbgemm' in supported:  # on x86
        del ways['qnnpack']
        if matrices.Int8Matrix.seven_bits:  # only FBGEMM can do with seven; `x86` means FBGEMM there
            return {'fbgemm': matrices.Int8Matrix}
    return ways or PORTABLE


def useless_ways(rows):
    """Return the names of ways that cannot be the best for this number of rows, so that others are measured longer."""
    return ['packed'] if rows == 1 else ['packed', 'packed for one row']  # in fours differs from `packed` below 4 only


def measure_ways(ways, shapes, dtype, rows, is_transposed=False):
    """Return the Times of a layer in each of the ways, the median of several rounds.

    shapes: (outputs, inputs, has a bias) of each matrix. is_transposed: whether they are in memory as (inputs,
    outputs). Few rows are also multiplied with half of the threads. The ways take turns, so that none finds its
    matrices in the CPU's cache because it was used just before, if they are too large to stay there.
    """
    total = sum(outputs * inputs for outputs, inputs, _ in shapes)
    every = torch.get_num_threads()
    half = [every // 2] if every > 1 and rows < FEW_ROWS else []
    seconds = {(name, threads): [] for threads in (None, *half) for name in ways}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), keep_number_of_threads():
        linears = [
            nn.Linear(size, part_of(outputs, WEIGHTS / total), bias, dtype=dtype) for outputs, size, bias in shapes
        ]
        part = sum(linear.weight.numel() for linear in linears) / total
        if is_transposed:
            for linear in linears:
                linear.weight = nn.Parameter(linear.weight.T.contiguous().T)
        made, making = {}, {}
        for name, way in ways.items():
            begin = time.perf_counter()
            made[name] = [way(linear) for linear in linears]
            making[name] = time.perf_counter() - begin
        enough = {name: max(rows, way.enough_rows) for name, way in ways.items()}
        inputs = {name: [torch.randn(enough[name], size, dtype=dtype) for _, size, _ in shapes] for name in ways}
        end = time.perf_counter() + SECONDS
        for number in range(ROUNDS[1] + 1):
            for (name, threads), times in seconds.items():
                torch.set_num_threads(threads or every)
                begin = time.perf_counter()
                for matrix, x in zip(made[name], inputs[name], strict=True):
                    matrix(x)
                times.append(time.perf_counter() - begin)
            if number >= ROUNDS[0] and time.perf_counter() > end:
                break
    products = {way: 1e3 * statistics.median(times[1:]) / part for way, times in seconds.items()}
    return Times(products, {name: 1e3 * value / part for name, value in making.items()})


def part_of(outputs, part):
    """Return how many of a matrix's outputs are measured: a multiple of 64, as kernels cut them, if it is not whole."""
    return outputs if part >= 1 else max(64, round(outputs * part / 64) * 64)


@contextlib.contextmanager
def keep_number_of_threads():
    """Set the number of torch's threads back to what it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What is remembered -------------------------------------------------------------------------------------------------


def describe_case(shapes, dtype, quantize, rows, is_transposed):
    """Return a key for a measurement: the machine, the versions, and what was measured."""
    capabilities = sorted((name, str(value)) for name, value in torch.cpu.get_capabilities().items())
    machine = hashlib.sha256(json.dumps(capabilities).encode()).hexdigest()[:12]
    sizes = 'transposed ' * is_transposed + ' '.join(
        f'{outputs}x{inputs}{"+" if bias else ""}' for outputs, inputs, bias in shapes
    )
    precision = quantize or str(dtype).removeprefix('torch.')
    threads = torch.get_num_threads()
    return f'{VERSION}, torch {torch.__version__}, CPU {machine}, {threads} threads, {precision}, {rows} rows, {sizes}'


def cache_file():
    """Return the path of the file with what was measured."""
    return Path(os.environ.get('NANOGPT_PROBS_CACHE') or user_cache_dir('nanogpt-probs')) / 'tuning.json'


def read_all():
    """Return {key: {'products', 'making'}} of what was measured; nothing if the file is missing or damaged."""
    try:
        return read_json_object(cache_file(), missing={})
    except (UserError, OSError):
        return {}


def read_times(key, ways):
    """Return the Times that were remembered for a key; None if there are none that can be used."""
    entry = read_all().get(key)
    try:
        times = Times({(name, threads): value for name, threads, value in entry['products']}, dict(entry['making']))
        is_sound = all(type(value) is float for value in (*times.products.values(), *times.making.values()))
        is_complete = {(name, None) for name in ways} <= set(times.products) and set(times.making) == set(ways)
    except (TypeError, KeyError, ValueError):
        return None
    return times if is_sound and is_complete and {name for name, _ in times.products} == set(ways) else None


def remember_times(key, times):
    """Write Times into the user's cache folder; if that is not possible, they are measured again next time."""
    entry = {'products': [[*way, value] for way, value in times.products.items()], 'making': times.making}
    try:
        with atomic_write(cache_file()) as temporary:
            temporary.write_text(json.dumps(read_all() | {key: entry}, indent=1) + '\n', encoding='utf-8')
    except (UserError, OSError):
        pass


@contextlib.contextmanager
def wait_for_others():
    """Measure when no other process does: they would disturb each other, and choose differently."""
    lock = FileLock(cache_file().with_suffix('.lock'))
    with contextlib.suppress(Timeout, OSError):  # a cache folder that cannot be written to, for example
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT)
    try:
        yield
    finally:
        lock.release()
