"""What bench.py shows and keeps: tables in the terminal, a JSON file, and a Markdown page made from it."""

import json
import platform
import re
import statistics
import sys
from importlib.metadata import distributions
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from common.errors import UserError
from common.files import atomic_write
from common.json_files import read_json_object
from evaluation.markdown import markdown_table
from lab.bench_contenders import CONTENDERS, PEERS
from lab.bench_promises import promise_rows

UNITS = {
    'decode': 'tokens',
    'busy': 'tokens',
    'sample': 'tokens',
    'score': 'pairs',
    'prompts': 'responses',
    'train': 'tokens',
    'start': 'starts',
    'prepare': 'megabytes',
}
COLUMNS = (
    'The speedup of a contender says how many times as fast it is as the one in the row. The hardware limit is the '
    'speed if reading the weights and multiplying the matrices took all the time; "reached" is the share of it.'
)
COMPARED = ('torch', 'transformers', 'ctranslate2', 'lm_eval', 'minicons', 'tiktoken', 'numpy')
COMPARED_PEERS = ('openvino_genai', 'optimum_intel', 'llama_cpp_python')  # in their own environment
PRECISION_HEADS = ('model', 'computed in', 'tokens', 'mean absolute difference from float32', 'worst', 'mean')


# Rows of the tables -------------------------------------------------------------------------------------------------


def our_contenders(job, result):
    """Return the names of this project's own contenders in a result."""
    names = list(CONTENDERS[job])
    own = [name for name in names if name in ('float32', 'bfloat16', 'int8')] or names[:1]
    return [name for name in result if name in own]


def speed_rows(job, result):
    """Yield the headings, then a row of text for each contender.

    Name, range of speeds, median speed, how much faster each of our contenders is, hardware limit, how much of it is
    reached, peak memory.
    """
    own = our_contenders(job, result)
    speedups = [f'speedup of {name}' for name in own]
    yield ['', 'lowest - highest', f'{UNITS[job]}/s', *speedups, 'hardware limit', 'reached', 'peak MiB']
    for name, row in result.items():
        speeds = sorted(row['per_second'] * statistics.median(row['seconds']) / seconds for seconds in row['seconds'])
        limit, memory = row['limit_per_second'], row['peak_memory_mib']
        yield [
            name,
            f'{speeds[0]:.3g} - {speeds[-1]:.3g}',
            f'{row["per_second"]:.4g}',
            *(f'{result[mine]["per_second"] / row["per_second"]:.2f} x' for mine in own),
            f'{limit:.3g}' if limit else '—',
            f'{row["per_second"] / limit:.0%}' if limit else '—',
            f'{memory:,.0f}' if memory and job not in ('start', 'prepare') else '—',  # the work is in a child process
        ]


def precision_rows(result):
    """Yield the headings, then a row of text for each model and precision."""
    yield list(PRECISION_HEADS)
    for model, precisions in result.items():
        for precision, row in precisions.items():
            numbers = (f'{row["mean_absolute"]:.4f}', f'{row["worst"]:.3f}', f'{row["mean"]:+.4f}')
            yield [model, precision, f'{row["tokens"]:,}', *numbers]


# In the terminal ----------------------------------------------------------------------------------------------------


def print_speed(job, result):
    """Print how fast each contender was."""
    print_table(f'{job}: {UNITS[job]} per second, median of the rounds', speed_rows(job, result), names=1)


def print_promises(results):
    """Print which promises are kept on this machine, as far as they were measured. results: {job: result}."""
    rows = list(promise_rows(results))
    if rows[1:]:
        print_table('promises of docs/speed.md', rows, names=3)


def print_precision(result):
    """Print how far the logprobs are from those in float32."""
    print_table('precision: logprobs of a real text', precision_rows(result), names=2)


def print_growth(shape, decode, score):
    """Print how time and memory grow with the context and with the number of pairs."""
    for title, rows in ((f'decode, {shape}, float32', decode), ('score, models/tiny', score)):
        numbers = ([f'{x:,.4g}' if isinstance(x, float) else f'{x:,}' for x in row.values()] for row in rows)
        print_table(title, [list(rows[0]), *numbers], names=0)


def print_table(title, rows, names):
    """Print rows of text, the first of which has the headings; all columns but the first `names` are numbers."""
    heads, *rows = rows
    table = Table(title=title, title_justify='left')
    for column, head in enumerate(heads):
        table.add_column(head, justify='left' if column < names else 'right')
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


# In files -----------------------------------------------------------------------------------------------------------


def describe_machine():
    """Return the processor, its threads and instructions, the system and the version of Python."""
    cpu = torch.cpu.get_capabilities()
    known = ('avx2', 'avx512_f', 'avx512_vnni', 'avx_vnni', 'avx512_bf16', 'amx_tile')
    return {
        'processor': cpu.get('cpu_name') or platform.processor(),
        'threads': torch.get_num_threads(),
        'instructions': [name for name in known if cpu.get(name)],
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
    }


def installed_versions():
    """Return {package: version} of everything that is compared; None if it is not installed."""
    here = {dist.name.lower().replace('-', '_'): dist.version for dist in distributions()}
    folders = [str(folder) for folder in PEERS.glob('lib/python*/site-packages')]
    theirs = {dist.name.lower().replace('-', '_'): dist.version for dist in distributions(path=folders)}
    found = {name: here.get(name) for name in COMPARED}
    return found | {name: theirs.get(name) for name in COMPARED_PEERS}


def results_file(folder, machine):
    """Return the path of a machine's JSON file in a folder: each machine has its own."""
    widest = machine['instructions'][-1] if machine['instructions'] else machine['system']
    name = f'{machine["processor"]}-{machine["threads"]}-threads-{widest}'
    return folder / f'{re.sub("[^a-z0-9_]+", "-", name.lower())}.json'


def growth_picture(machine):
    """Return the name of the picture beside a machine's JSON file."""
    return results_file(Path(), machine).stem + '-growth.png'


def save_result(path, conditions, job, result):
    """Put one job's result into the JSON file at `path`, keep the other jobs in it, and write the page beside it.

    conditions: the machine, its limits and the versions.
    """
    try:
        before = read_json_object(path, missing={})
    except UserError as error:
        raise UserError(f'--save: {error}; name another folder') from error
    saved = {**before, **conditions, 'jobs': {**before.get('jobs', {}), job: result}}
    with atomic_write(path) as temporary:
        temporary.write_text(f'{json.dumps(saved, indent=2)}\n', encoding='utf-8')
    with atomic_write(path.with_suffix('.md')) as temporary:
        temporary.write_text(speed_page(saved), encoding='utf-8')


def speed_page(saved):
    """Return a Markdown page with everything in the JSON file."""
    parts = ['# How fast it is', describe_conditions(saved), COLUMNS]
    promises = list(promise_rows(saved['jobs']))
    if promises[1:]:
        parts += ['## Promises', 'What docs/speed.md promises, on this machine.', markdown_table(promises)]
    for job, result in saved['jobs'].items():
        parts.append(f'## {job}')
        if job == 'growth':
            parts.append(f'![How time and memory grow]({growth_picture(saved["machine"])})')
        elif job == 'precision':
            parts.append(markdown_table(precision_rows(result)))
        else:
            rounds = len(next(iter(result.values()))['seconds'])
            rows = ([name, *cells] for name, _, *cells in speed_rows(job, result))  # without the range
            parts += [markdown_table(rows), f'Median of {rounds} rounds.']
    return '\n\n'.join(parts) + '\n'


def describe_conditions(saved):
    """Return a paragraph that says how, on which machine and with which versions the numbers were measured."""
    machine = saved['machine']
    versions = ', '.join(f'{name} {number}' for name, number in saved['versions'].items() if number)
    return (
        f'Measured with `python -m lab.bench --job=... --save=...` on {machine["processor"]}, '
        f'{machine["threads"]} threads ({", ".join(machine["instructions"])}), {machine["system"]}, '
        f'Python {machine["python"]}; {versions}. The machine reads {saved["read_gb_per_second"]:.1f} GB/s from memory '
        f'and multiplies matrices at {saved["float32_gflops"]:.0f} GFLOP/s in float32, '
        f'{saved["bfloat16_gflops"]:.0f} in bfloat16.'
    )
