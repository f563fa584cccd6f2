"""Measure how fast this project is, beside what people would use instead and what the hardware could do at most.

    pip install -r requirements-bench.txt
    python -m lab.bench --job=decode
    python -m lab.bench --job=all --save=results/speed/speed.json

Jobs, with GPT-2's smallest shape (124 M parameters, random weights, as fast as the real ones): decode (one text of 100
tokens), sample (ten of 200), score (400 pairs of 12 to 40 tokens), prompts (1,000 responses to 20 prompts), train (two
steps of 4 x 256 tokens), start (from the command to the first token), prepare (100 MB of text to tokens), growth (time
and memory as texts get longer and pairs more), precision (what bfloat16 and int8 do to the numbers). Contenders take
turns, each in a process of its own, and the median of the rounds counts; give the machine nothing else to do meanwhile.
"""

import json
import multiprocessing
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import configurator
from common.errors import UserError
from common.files import PROJECT, atomic_write
from lab.bench_programs import CONTENDERS, TRAIN_STEPS, Task, work
from lab.result_pictures import draw_growth
from lm import checkpoint, fast
from lm.hardware import peak_flops, peak_memory_mib
from lm.scoring import score_pairs
from lm.tokenizer import GPT2Tokenizer
from model import GPT, GPTConfig

JOBS = (*CONTENDERS, 'growth', 'precision')
STORIES = PROJECT / 'data/childrens_stories/childrens_stories.txt'
UNITS = {
    'decode': 'tokens',
    'sample': 'tokens',
    'score': 'pairs',
    'prompts': 'responses',
    'train': 'tokens',
    'start': 'starts',
    'prepare': 'megabytes',
}


@dataclass
class Settings:
    """Measure speed, beside other programs and the hardware's limits."""

    job: str = 'all'  # decode, sample, score, prompts, train, start, prepare, growth, precision; several with commas
    rounds: int = 5  # how often each contender does the job; the median counts
    only: str = ''  # contenders whose name has this in it; all of them if empty
    init_from: str = ''  # a folder with GPT-2 to measure with; a random one of its smallest shape if empty
    save: str = ''  # a JSON file that keeps everything measured, with versions and the machine; jobs in it are replaced


def main(settings):
    """Run the jobs one after the other and print a table for each."""
    jobs = list(JOBS) if settings.job == 'all' else settings.job.split(',')
    for job in jobs:
        if job not in JOBS:
            raise UserError(f'--job={job} is not one of {", ".join(JOBS)}, all')
    if settings.rounds < 1:
        raise UserError(f'--rounds={settings.rounds}: it is at least 1')
    with tempfile.TemporaryDirectory() as scratch:
        folder = settings.init_from or f'{scratch}/gpt2'
        if not settings.init_from:
            torch.manual_seed(1337)
            checkpoint.save_pretrained(GPT(GPTConfig(vocab_size=50257)), folder, GPT2Tokenizer())
        shape = settings.init_from or '124M random'
        limits = hardware_limits()
        kept = {'machine': machine(), **limits, 'versions': versions()}
        print(', '.join(f'{name.replace("_", " ")} {value:.3g}' for name, value in limits.items()))
        for job in jobs:
            if job == 'growth':
                result = growth(folder, shape)
                if settings.save:
                    draw_growth(Path(settings.save).with_name('growth.png'), **result)
            elif job == 'precision':
                result = {name: precision(name) for name in ('tiny', 'tiny-stories', folder)}
                result[shape] = result.pop(folder)
                print_precision(result)
            else:
                result = compare(job, make_task(job, folder, scratch), settings, limits)
            if settings.save:
                keep(Path(settings.save), kept, job, result)


# What is done -------------------------------------------------------------------------------------------------------


def make_task(job, folder, scratch):
    """Return the Task of a job, made of the stories that come with the project."""
    story = STORIES.read_text(encoding='utf-8')
    model, tokenizer, _ = checkpoint.load_model(folder, device='cpu')
    rows, new_tokens = (10, 200) if job == 'sample' else (1, 100)
    task = Task(folder, scratch, rows=rows, new_tokens=new_tokens)
    task.layers = 12 * model.config.n_layer * model.config.n_embd**2  # C * 3C, C * C, and twice C * 4C
    task.head = model.lm_head.weight.numel()
    if job in ('score', 'prompts'):
        task.pairs = make_pairs(job, tokenizer, tokenizer.encode(story))
    if job == 'prepare':
        task.text = f'{scratch}/text.txt'
        make_text(task.text, story, 100_000_000)
    return task


def make_pairs(job, tokenizer, ids):
    """Cut pairs from the ids of a text: (prompt ids, response ids, and both as text).

    score: 400 pairs that come to 12 to 40 tokens, cut in two anywhere. prompts: 50 responses of 4 to 12 tokens to each
    of 20 prompts of 20 to 40 tokens.
    """
    rng = random.Random(1337)

    def cut(size):
        start = rng.randrange(len(ids) - size)
        return ids[start : start + size]

    pairs = []
    if job == 'score':
        for _ in range(400):
            text = cut(rng.randint(12, 40))
            end = rng.randint(4, len(text) - 4)
            pairs.append((text[:end], text[end:]))
    else:
        for _ in range(20):
            prompt = cut(rng.randint(20, 40))
            pairs += [(prompt, cut(rng.randint(4, 12))) for _ in range(50)]
    return tuple((*pair, *map(tokenizer.decode, pair)) for pair in pairs)


def make_text(path, story, size):
    """Write a text of `size` bytes: the stories' sentences in any order, 2 kB or so to a document."""
    rng = random.Random(1337)
    sentences = re.findall(r'[^.!?]+[.!?]+\W*', ' '.join(story.split()))
    with open(path, 'w', encoding='utf-8') as file:
        while file.tell() < size:
            file.write(''.join(rng.choices(sentences, k=25)).strip() + '\n\n\n')


# Measuring ----------------------------------------------------------------------------------------------------------


def compare(job, task, settings, limits):
    """Let the contenders take turns; print and return what each of them reached."""
    contenders = start_contenders(job, task, settings.only)
    if not contenders:
        raise UserError(f'--only={settings.only} leaves no one to do the job {job}')
    seconds = {name: [] for name in contenders}
    for _ in range(settings.rounds):
        for name, (_, pipe) in list(contenders.items()):
            pipe.send('go')
            answer = pipe.recv()
            if isinstance(answer, Exception):
                print(f'{name} failed: {answer}', file=sys.stderr)
                del contenders[name], seconds[name]
            else:
                seconds[name].append(answer)
    if not contenders:
        raise UserError(f'no one finished the job {job}')
    memory = {}
    for name, (process, pipe) in contenders.items():
        pipe.send(None)
        memory[name] = pipe.recv()
        process.join()
    amount = amount_of(job, task)
    floors = {name: floor_of(job, name, task, limits) for name in seconds}
    result = {
        name: {
            'per_second': amount / statistics.median(times),
            'seconds': times,
            'floor_per_second': floors[name] and amount / floors[name],
            'peak_memory_mib': memory[name],
        }
        for name, times in seconds.items()
    }
    print_table(job, result)
    return result


def start_contenders(job, task, only):
    """Return {name: (process, pipe)} of those that are ready; say which are not, and why."""
    context = multiprocessing.get_context('spawn')
    contenders = {}
    for name in CONTENDERS[job]:
        if only not in name:
            continue
        here, there = context.Pipe()
        process = context.Process(target=work, args=(job, name, task, there), daemon=True)
        process.start()
        answer = here.recv()
        if answer == 'ready':
            contenders[name] = process, here
        elif isinstance(answer, ImportError):
            print(f'{name} is left out: {answer} is not installed (requirements-bench.txt)', file=sys.stderr)
        else:
            print(f'{name} is left out: {answer}', file=sys.stderr)
    return contenders


def amount_of(job, task):
    """Return how much is done in one round, in the job's unit."""
    if job in ('decode', 'sample'):
        return task.rows * task.new_tokens
    if job in ('score', 'prompts'):
        return len(task.pairs)
    return {'train': TRAIN_STEPS * 4 * 256, 'start': 1, 'prepare': 100}[job]


def hardware_limits():
    """Measure how fast this machine reads memory, in GB/s, and multiplies matrices, in GFLOP/s."""
    numbers = torch.ones(2**27)  # 512 MiB, far more than any cache
    best = float('inf')
    for _ in range(8):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    device = torch.device('cpu')
    return {
        'read_gb_per_second': numbers.nbytes / best / 1e9,
        'float32_gflops': max(peak_flops(device, torch.float32), packed_flops(torch.float32)) / 1e9,
        'bfloat16_gflops': max(peak_flops(device, torch.bfloat16), packed_flops(torch.bfloat16)) / 1e9,
    }


@torch.no_grad()
def packed_flops(dtype):
    """Return the FLOP/s of oneDNN's product with a packed matrix, 0.0 where there is none.

    On some CPUs it is far above torch's plain product, whose MKL does not use their widest instructions.
    """
    n = 2048
    x = torch.randn(n, n).to(dtype)
    if not fast.can_pack(x):
        return 0.0
    matrix = fast.PackedMatrix(torch.nn.Linear(n, n, bias=False, dtype=dtype))
    best = float('inf')
    for _ in range(16):
        started = time.perf_counter()
        matrix(x)
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def floor_of(job, name, task, limits):
    """Return the seconds below which the job cannot be done: weights must be read, products computed; None if unknown.

    Attention and everything small is left out, so the true floor is a little higher. int8 products have no floor here:
    torch has no way to measure what the CPU could do.
    """
    precision = next((precision for precision in ('bfloat16', 'int8') if precision in name), 'float32')
    flops = limits.get(f'{"bfloat16" if name == "train.py" else precision}_gflops')
    flops = flops and flops * 1e9
    if job in ('decode', 'sample') and 'cache' not in name:
        size = {'float32': 4, 'bfloat16': 2, 'int8': 1}[precision]
        reading = (task.layers + task.head) * size / (limits['read_gb_per_second'] * 1e9)
        return task.new_tokens * max(reading, 2 * (task.layers + task.head) * task.rows / flops if flops else 0.0)
    if job in ('score', 'prompts') and flops:
        inputs = sum(len(prompt) + len(response) - 1 for prompt, response, *_ in task.pairs)
        if job == 'prompts':  # every prompt is read once
            prompts = {tuple(prompt) for prompt, *_ in task.pairs}
            inputs = sum(map(len, prompts)) + sum(len(response) - 1 for _, response, *_ in task.pairs)
        outputs = sum(len(response) for _, response, *_ in task.pairs)
        return 2 * (task.layers * inputs + task.head * outputs) / flops
    if job == 'train' and flops:
        return 6 * (task.layers + task.head) * amount_of(job, task) / flops
    return None


def own_ways(job):
    """Return the names of this project's own contenders."""
    names = list(CONTENDERS[job])
    return [name for name in names if name in ('float32', 'bfloat16', 'int8')] or names[:1]


def print_table(job, result):
    """Print what each contender reached, and how this project's ways compare with it."""
    own = [name for name in result if name in own_ways(job)]
    table = Table(title=f'{job}: {UNITS[job]} a second, the median', title_justify='left')
    table.add_column('')
    columns = (f'{UNITS[job]}/s', *(f'{name} is' for name in own), 'floor', 'of it', 'peak MiB')
    for column in ('lowest - highest', *columns):
        table.add_column(column, justify='right')
    for row in table_rows(job, result, own):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def table_rows(job, result, own):
    """Yield a row of text for each contender: name, range, speed, how much faster each own way is, floor, memory."""
    for name, row in result.items():
        speeds = sorted(row['per_second'] * statistics.median(row['seconds']) / seconds for seconds in row['seconds'])
        floor, memory = row['floor_per_second'], row['peak_memory_mib']
        yield (
            name,
            f'{speeds[0]:.3g} - {speeds[-1]:.3g}',
            f'{row["per_second"]:.4g}',
            *(f'{result[mine]["per_second"] / row["per_second"]:.2f} x' for mine in own),
            f'{floor:.3g}' if floor else '',
            f'{row["per_second"] / floor:.0%}' if floor else '',
            f'{memory:,.0f}' if memory and job not in ('start', 'prepare') else '',  # those are processes of their own
        )


def growth(folder, shape):
    """Measure how time and memory grow: a token's time with its context, scoring with the number of pairs."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:  # whose peak memory is scoring's alone
        score = pool.submit(growth_of_scoring).result()
    decode = growth_of_decoding(folder)
    for name, rows in ((f'decode, {shape}, float32', decode), ('score, models/tiny', score)):
        table = Table(*rows[0], title=name, title_justify='left')
        for row in rows:
            table.add_row(*(f'{value:,.4g}' if isinstance(value, float) else f'{value:,}' for value in row.values()))
        Console().print(table)
    return {'decode': decode, 'score': score}


def growth_of_decoding(folder):
    """Return the median milliseconds of a token, and the size of the cache, for contexts of ever 64 tokens more."""
    model, tokenizer, _ = checkpoint.load_model(folder, device='cpu')
    fast.pack(model)
    prompt = torch.tensor([tokenizer.encode_prompt('Once upon a time')])
    model.generate(prompt, 8)
    seconds, started = [], time.perf_counter()
    for _ in model.steps(prompt, model.config.block_size - prompt.size(1), temperature=0.8, top_k=200, seed=1):
        now = time.perf_counter()
        seconds.append(now - started)
        started = now
    return [
        {
            'context': end,
            'milliseconds': 1e3 * statistics.median(seconds[end - 64 : end]),
            'cache_mib': 2 * 4 * model.config.n_layer * model.config.n_embd * end / 2**20,  # keys and values, float32
        }
        for end in range(64, len(seconds) + 1, 64)
    ]


def growth_of_scoring():
    """Return the seconds and the peak memory up to the thousandth .. hundred thousandth pair, with models/tiny."""
    model = fast.pack(checkpoint.load_model('tiny', device='cpu')[0])
    rng = random.Random(1337)
    pairs = ([rng.choices(range(model.n_ids), k=rng.randint(4, 12)) for _ in range(2)] for _ in range(100_000))
    rows, started = [], time.perf_counter()
    for number, _ in enumerate(score_pairs(model, map(tuple, pairs)), 1):
        if number in (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000):
            seconds = time.perf_counter() - started
            rows.append({'pairs': number, 'seconds': seconds, 'peak_memory_mib': peak_memory_mib()})
    return rows


def precision(name):
    """Return how far the logprobs of a real text in bfloat16 and in int8 are from those in float32."""
    logprobs = {}
    for way, dtype, quantize in (('float32', None, None), ('bfloat16', 'bfloat16', None), ('int8', None, 'int8')):
        model, tokenizer, _ = checkpoint.load_model(name, device='cpu', dtype=dtype)
        fast.pack(model, quantize)
        pairs = [pair[:2] for pair in make_pairs('score', tokenizer, tokenizer.encode(STORIES.read_text('utf-8')))]
        logprobs[way] = torch.cat([score.model_logprobs for score in score_pairs(model, pairs)])
    differences = {way: values - logprobs['float32'] for way, values in logprobs.items() if way != 'float32'}
    return {
        way: {
            'tokens': len(difference),
            'mean_absolute': difference.abs().mean().item(),
            'worst': difference.abs().max().item(),
            'mean': difference.mean().item(),
        }
        for way, difference in differences.items()
    }


def print_precision(result):
    """Print how far the logprobs are from float32's."""
    table = Table(title='precision: logprobs of a real text, less those in float32', title_justify='left')
    for column in ('model', 'computed in', 'tokens', 'mean of |difference|', 'worst', 'mean difference'):
        table.add_column(column, justify='left' if column in ('model', 'computed in') else 'right')
    for row in precision_rows(result):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def precision_rows(result):
    """Yield a row of text for each model and precision."""
    for name, ways in result.items():
        for way, row in ways.items():
            numbers = (f'{row["mean_absolute"]:.4f}', f'{row["worst"]:.3f}', f'{row["mean"]:+.4f}')
            yield (name, way, f'{row["tokens"]:,}', *numbers)


# What is kept -------------------------------------------------------------------------------------------------------


def machine():
    """Describe the machine: processor, cores, system."""
    cpu = torch.cpu.get_capabilities()
    known = ('avx2', 'avx512_f', 'avx512_vnni', 'avx_vnni', 'avx512_bf16', 'amx_tile')
    return {
        'processor': cpu.get('cpu_name') or platform.processor(),
        'threads': torch.get_num_threads(),
        'instructions': [name for name in known if cpu.get(name)],
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
    }


def versions():
    """Return the versions of everything that was measured."""
    found = {}
    for name in ('torch', 'transformers', 'ctranslate2', 'lm_eval', 'minicons', 'tiktoken', 'numpy'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def keep(path, kept, job, result):
    """Put a job's result into the JSON file, beside what other jobs left there."""
    try:
        before = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    except ValueError as error:
        raise UserError(f'--save={path} is there already and is not JSON; name another file') from error
    everything = {**before, **kept, 'jobs': {**before.get('jobs', {}), job: result}}
    with atomic_write(path) as temporary:
        temporary.write_text(f'{json.dumps(everything, indent=2)}\n', encoding='utf-8')
    with atomic_write(path.with_suffix('.md')) as temporary:
        temporary.write_text('\n'.join(page(everything)) + '\n', encoding='utf-8')


def page(everything):
    """Yield the lines of a page with everything that was measured."""
    machine = everything['machine']
    yield '# How fast it is'
    yield ''
    yield (
        f'`python -m lab.bench --job=... --save=...` on {machine["processor"]}, {machine["threads"]} threads '
        f'({", ".join(machine["instructions"])}), {machine["system"]}, Python {machine["python"]}; '
        f'{", ".join(f"{name} {number}" for name, number in everything["versions"].items() if number)}. '
        f'Reading memory: {everything["read_gb_per_second"]:.1f} GB/s. Multiplying: {everything["float32_gflops"]:.0f} '
        f'GFLOP/s in float32, {everything["bfloat16_gflops"]:.0f} in bfloat16.'
    )
    for job, result in everything['jobs'].items():
        yield from ('', f'## {job}', '')
        if job == 'growth':
            yield '![How time and memory grow](growth.png)'
            continue
        if job == 'precision':
            yield '| model | computed in | tokens | mean of abs. difference from float32 | worst | mean difference |'
            yield '| --- | --- | ---: | ---: | ---: | ---: |'
            yield from (f'| {" | ".join(row)} |' for row in precision_rows(result))
            continue
        own = [name for name in result if name in own_ways(job)]
        yield f'| | {UNITS[job]}/s | {" | ".join(f"{name} is" for name in own)} | floor | of it | peak MiB |'
        yield f'| --- | ---: | {" | ".join("---:" for _ in own)} | ---: | ---: | ---: |'
        for name, _, *cells in table_rows(job, result, own):
            yield f'| {name} | {" | ".join(cells)} |'
        yield from ('', f'The median of {len(next(iter(result.values()))["seconds"])} rounds.')


if __name__ == '__main__':
    configurator.run(main, Settings)
