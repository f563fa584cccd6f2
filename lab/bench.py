"""Measure how fast this project is, compared with other programs and with what the hardware allows.

    pip install -r requirements-bench.txt
    python -m lab.bench --job=decode
    python -m lab.bench --job=all --save=results/speed

The model has the shape of the smallest GPT-2 (124 M parameters; random weights are as fast as real ones), or with
--init_from=llama that of a small Llama (135 M, as SmolLM). Jobs:

    decode     generate one text of 100 tokens         train      two training steps of 4 x 256 tokens
    busy       the same, beside a busy program         start      from the command to the first token
    sample     generate ten texts of 200 tokens        prepare    turn 100 MB of text into tokens
    score      score 400 pairs of 12 to 40 tokens      prompts    score 1,000 responses to 20 prompts
    growth     how time and memory grow with the length of a text and with the number of pairs
    precision  how far bfloat16 and int8 move the logprobs

The contenders (bench_contenders.py) take turns, each in its own process, and the median of the rounds counts. Let the
machine do nothing else meanwhile. OpenVINO and llama.cpp join if their environment is there (bench_peers.py). At the
end stands which of our promises were kept on this machine.
"""

import contextlib
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

import configurator
from common.errors import UserError
from common.files import PROJECT
from lab.bench_contenders import CONTENDERS, Task, run_contender
from lab.bench_limits import count_work, least_seconds, measure_hardware_limits
from lab.bench_pages import (
    describe_machine,
    growth_picture,
    installed_versions,
    print_growth,
    print_precision,
    print_promises,
    print_speed,
    results_file,
    save_result,
)
from lab.result_pictures import draw_growth
from lm import checkpoint, fast
from lm.hardware import peak_memory_mib
from lm.scoring import score_pairs
from lm.tokenizer import GPT2Tokenizer
from lm.tokenizer_names import tokenizer_from_name
from model import GPT, GPTConfig

JOBS = (*CONTENDERS, 'growth', 'precision')
STORIES = PROJECT / 'data/childrens_stories/childrens_stories.txt'
LLAMA = {  # SmolLM's shape
    'hidden_size': 576,
    'intermediate_size': 1536,
    'num_hidden_layers': 30,
    'num_attention_heads': 9,
    'num_key_value_heads': 3,
    'vocab_size': 49152,
    'tie_word_embeddings': True,
}
PAIRS_SCORED = (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)  # where growth notes time and memory


@dataclass
class Settings:
    """Measure speed, compared with other programs and with the hardware's limits."""

    job: str = 'all'  # decode, busy, sample, score, prompts, train, start, prepare, growth, precision; with commas
    rounds: int = 5  # how often each contender does the job; the median counts
    only: str = ''  # only contenders whose name contains this; empty: all
    init_from: str = ''  # a model folder to measure with; llama: a random Llama of 135 M; empty: a random GPT-2
    save: str = ''  # a folder for the results: a file for each machine, with versions; other jobs in it are kept


def main(settings):
    """Run the jobs one after the other and print a table for each."""
    jobs = list(JOBS) if settings.job == 'all' else settings.job.split(',')
    for job in jobs:
        if job not in JOBS:
            raise UserError(f'--job={job} is not one of {", ".join(JOBS)}, all')
    if settings.rounds < 1:
        raise UserError(f'--rounds={settings.rounds}: it must be at least 1')
    with tempfile.TemporaryDirectory() as scratch:
        # Which way to multiply is measured here and now; what was remembered may be of a day with other work beside.
        os.environ['NANOGPT_PROBS_CACHE'] = scratch
        folder = settings.init_from
        if folder in ('', 'llama'):
            folder = f'{scratch}/{folder or "gpt2"}'
            save_random_model(folder)
        tasks = {job: make_task(job, folder, scratch) for job in jobs if job in CONTENDERS}  # fails early
        limits = measure_hardware_limits() if tasks or settings.save else {}
        if limits:
            print(', '.join(f'{name.replace("_", " ")} {value:.3g}' for name, value in limits.items()))
        conditions = {'machine': describe_machine(), **limits, 'versions': installed_versions()}
        results, path = {}, Path(settings.save) if settings.save else None
        for job in jobs:
            results[job] = run_job(job, tasks.get(job), folder, settings, limits)
            if path:
                save_result(results_file(path, conditions['machine']), conditions, job, results[job])
        if path and 'growth' in results:
            draw_growth(path / growth_picture(conditions['machine']), **results['growth'])
        print_promises(results)


def save_random_model(folder):
    """Write a folder with random weights and a tokenizer: a Llama if it is called so, else the smallest GPT-2."""
    torch.manual_seed(1337)
    if Path(folder).name != 'llama':
        checkpoint.save_pretrained(GPT(GPTConfig(vocab_size=50257)), folder, GPT2Tokenizer())
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**LLAMA, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)
    tokenizer_from_name('tiny').save(Path(folder))  # it has no more ids than the model


def run_job(job, task, folder, settings, limits):
    """Do one job, print its table and return its result."""
    shape = settings.init_from or '124M random'
    if job == 'growth':
        result = measure_growth(folder)
        print_growth(shape, **result)
    elif job == 'precision':
        models = {'tiny': 'tiny', 'tiny-stories': 'tiny-stories', shape: folder}
        result = {name: measure_precision(init_from) for name, init_from in models.items()}
        print_precision(result)
    else:
        result = compare_contenders(job, task, settings, limits)
        print_speed(job, result)
    return result


# The work -----------------------------------------------------------------------------------------------------------


def make_task(job, folder, scratch):
    """Return the Task of a job, made from the stories that come with the project."""
    story = STORIES.read_text(encoding='utf-8')
    model, tokenizer, _ = checkpoint.load_model(folder, device='cpu')
    rows, new_tokens = (10, 200) if job == 'sample' else (1, 100)
    task = Task(folder, scratch, rows=rows, new_tokens=new_tokens)
    task.prompt_ids = tuple(tokenizer.encode_prompt(task.prompt))
    task.layers, task.head = count_matrices(model)
    if job in ('score', 'prompts'):
        task.pairs = make_pairs(job, tokenizer, tokenizer.encode(story))
    if job == 'prepare':
        task.text = f'{scratch}/text.txt'
        write_text(task.text, story, 100_000_000)
    return task


def count_matrices(model):
    """Return how many numbers the matrices of a model's layers have, and how many its output layer has."""
    if isinstance(model, GPT):
        embeddings, head = [model.transformer.wte.weight, model.transformer.wpe.weight], model.lm_head.weight
    else:
        embeddings = [model.network.get_input_embeddings().weight]
        head = model.network.get_output_embeddings().weight
    apart = {id(weight) for weight in (*embeddings, head)}
    layers = [weight for weight in model.parameters() if weight.dim() == 2 and id(weight) not in apart]
    return sum(weight.numel() for weight in layers), head.numel()


def make_pairs(job, tokenizer, ids):
    """Take pairs from the ids of a text: (prompt ids, response ids, and both as text).

    score: 400 pairs with 12 to 40 tokens in all, split anywhere. prompts: 20 prompts of 20 to 40 tokens, each with 50
    responses of 4 to 12 tokens.
    """
    rng = random.Random(1337)

    def random_slice(size):
        start = rng.randrange(len(ids) - size)
        return ids[start : start + size]

    pairs = []
    if job == 'score':
        for _ in range(400):
            text = random_slice(rng.randint(12, 40))
            end = rng.randint(4, len(text) - 4)
            pairs.append((text[:end], text[end:]))
    else:
        for _ in range(20):
            prompt = random_slice(rng.randint(20, 40))
            pairs += [(prompt, random_slice(rng.randint(4, 12))) for _ in range(50)]
    return tuple((*pair, *map(tokenizer.decode, pair)) for pair in pairs)


def write_text(path, story, size):
    """Write a text of `size` bytes: the stories' sentences in random order, about 2 kB per document."""
    rng = random.Random(1337)
    sentences = re.findall(r'[^.!?]+[.!?]+\W*', ' '.join(story.split()))
    with open(path, 'w', encoding='utf-8') as file:
        while file.tell() < size:
            file.write(''.join(rng.choices(sentences, k=25)).strip() + '\n\n\n')


# Speed --------------------------------------------------------------------------------------------------------------


def compare_contenders(job, task, settings, limits):
    """Let the contenders take turns; return {name: speed, seconds of each round, hardware limit, peak memory}."""
    contenders = start_contenders(job, task, settings.only, limits)
    if not contenders:
        raise UserError(f'--only={settings.only}: no contender is left for the job {job}')
    with keep_cpu_busy() if job == 'busy' else contextlib.nullcontext():
        seconds = time_rounds(contenders, settings.rounds)
    if not contenders:
        raise UserError(f'no contender finished the job {job}')
    memory = {}
    for name, (process, pipe) in contenders.items():
        pipe.send(None)
        memory[name] = pipe.recv()
        process.join()
    amount = count_work(job, task)
    least = {name: least_seconds(job, name, task, limits) for name in seconds}
    return {
        name: {
            'per_second': amount / statistics.median(times),
            'seconds': times,
            'limit_per_second': least[name] and amount / least[name],
            'peak_memory_mib': memory[name],
        }
        for name, times in seconds.items()
    }


def start_contenders(job, task, only, limits):
    """Return {name: (process, pipe)} of those that are ready; print which are left out, and why."""
    no_bfloat16 = limits['bfloat16_gflops'] < limits['float32_gflops'] / 4
    context = multiprocessing.get_context('spawn')
    contenders = {}
    for name in CONTENDERS[job]:
        if only not in name:
            continue
        if no_bfloat16 and 'bfloat16' in name:
            print(f'{name} is left out: {limits["bfloat16_gflops"]:.3g} GFLOP/s on this CPU', file=sys.stderr)
            continue
        here, there = context.Pipe()
        process = context.Process(target=run_contender, args=(job, name, task, there), daemon=True)
        process.start()
        answer = here.recv()
        if answer == 'ready':
            contenders[name] = process, here
        elif isinstance(answer, ImportError):
            print(f'{name} is left out: {answer} is not installed (requirements-bench.txt)', file=sys.stderr)
        else:
            print(f'{name} is left out: {answer}', file=sys.stderr)
    return contenders


@contextlib.contextmanager
def keep_cpu_busy():
    """Let another program compute all the time, on one core."""
    with subprocess.Popen([sys.executable, '-c', 'while True: pass']) as program:
        try:
            yield
        finally:
            program.kill()


def time_rounds(contenders, rounds):
    """Return {name: seconds of each round}; a contender that fails is reported and removed from `contenders`."""
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (_, pipe) in list(contenders.items()):
            pipe.send('go')
            answer = pipe.recv()
            if isinstance(answer, Exception):
                print(f'{name} failed: {answer}', file=sys.stderr)
                del contenders[name], seconds[name]
            else:
                seconds[name].append(answer)
    return seconds


# Growth and precision -----------------------------------------------------------------------------------------------


def measure_growth(folder):
    """Measure how time and memory grow: a token's time with its context, scoring with the number of pairs."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:  # its peak memory is that of scoring
        score = pool.submit(measure_growth_of_scoring).result()
    return {'decode': measure_growth_of_decoding(folder), 'score': score}


def measure_growth_of_decoding(folder):
    """Return the median milliseconds per token, and the size of the cache, every 64 tokens of context."""
    model, tokenizer, _ = checkpoint.load_model(folder, device='cpu')
    fast.pack(model)
    prompt = torch.tensor([tokenizer.encode_prompt('Once upon a time')])
    model.generate(prompt, 8)
    seconds, started = [], time.perf_counter()
    for _ in model.steps(prompt, model.block_size - prompt.size(1), temperature=0.8, top_k=200, seed=1):
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


def measure_growth_of_scoring():
    """Return the seconds and the peak memory after 1,000 to 100,000 pairs, with models/tiny."""
    model = fast.pack(checkpoint.load_model('tiny', device='cpu')[0])
    rng = random.Random(1337)
    pairs = ([rng.choices(range(model.n_ids), k=rng.randint(4, 12)) for _ in range(2)] for _ in range(PAIRS_SCORED[-1]))
    rows, started = [], time.perf_counter()
    for number, _ in enumerate(score_pairs(model, map(tuple, pairs)), 1):
        if number in PAIRS_SCORED:
            seconds = time.perf_counter() - started
            rows.append({'pairs': number, 'seconds': seconds, 'peak_memory_mib': peak_memory_mib()})
    return rows


def measure_precision(init_from):
    """Return how far the logprobs of a real text in bfloat16 and in int8 are from those in float32."""
    logprobs = {}
    for name, dtype, quantize in (('float32', None, None), ('bfloat16', 'bfloat16', None), ('int8', None, 'int8')):
        model, tokenizer, _ = checkpoint.load_model(init_from, device='cpu', dtype=dtype)
        fast.pack(model, quantize)
        pairs = [pair[:2] for pair in make_pairs('score', tokenizer, tokenizer.encode(STORIES.read_text('utf-8')))]
        logprobs[name] = torch.cat([score.model_logprobs for score in score_pairs(model, pairs)])
    differences = {name: values - logprobs['float32'] for name, values in logprobs.items() if name != 'float32'}
    return {
        name: {
            'tokens': len(difference),
            'mean_absolute': difference.abs().mean().item(),
            'worst': difference.abs().max().item(),
            'mean': difference.mean().item(),
        }
        for name, difference in differences.items()
    }


if __name__ == '__main__':
    configurator.run(main, Settings)
