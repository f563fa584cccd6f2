"""Measure serve.py with many clients at once: how long they wait, and whether anybody's numbers change.

    python -m lab.serve_load --save=results/serve_load

First every request is made alone. Then the clients make the same requests at random, all at once, for a minute: the
distribution of the next token, the logprobs of a text, a drawn text. Each answer is compared with the one given alone.
"""

import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

import configurator
from common.errors import UserError
from common.files import PROJECT, atomic_write
from lab.bench_pages import describe_machine, print_table

STORIES = PROJECT / 'data/childrens_stories/childrens_stories.txt'
KINDS = {  # what is added to a request for each kind of work
    'next token': {'max_tokens': 1, 'logprobs': 5, 'temperature': 0},
    'score a text': {'max_tokens': 0, 'logprobs': 0, 'echo': True},
    'draw 40 tokens': {'max_tokens': 40, 'logprobs': 0, 'temperature': 0.8, 'top_k': 200},
}
WORDS = 8, 60  # in a text
TEXTS = 20  # for each kind


@dataclass
class Settings:
    """Measure serve.py with many clients at once."""

    init_from: str = 'tiny-stories'  # the model to serve
    clients: int = 30  # how many ask at the same time
    seconds: float = 60.0  # for how long
    save: str = ''  # a folder for serve_load.json


def main(settings):
    """Start a server, measure, print the table, and save it if asked."""
    if settings.clients < 1 or settings.seconds <= 0:
        raise UserError('--clients must be at least 1, and --seconds above 0')
    command = [sys.executable, PROJECT / 'serve.py', f'--init_from={settings.init_from}', '--open=False', '--port=0']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.match(r'(http://\S+)', server.stdout.readline())
            if not address:
                raise UserError('serve.py did not start: its error stands above')
            result = asyncio.run(measure_load(address[1], make_requests(), settings))
        finally:
            server.terminate()
    rows = [
        ['request', 'answers', 'median, s', '95 %, s', 'longest, s', 'largest difference of a logprob', 'other texts']
    ]
    for kind, row in result['requests'].items():
        waits = [f'{row[name]:.3f}' for name in ('median', 'p95', 'longest')]
        rows.append([kind, f'{row["answers"]:,}', *waits, f'{row["logprob_difference"]:.1e}', str(row['other_texts'])])
    print_table(f'{settings.clients} clients for {settings.seconds:g} seconds, {settings.init_from}', rows, names=1)
    print(f'{result["failures"]} requests failed')
    if settings.save:
        about = {name: value for name, value in vars(settings).items() if name != 'save'}
        result = {'machine': describe_machine(), 'settings': about, **result}
        with atomic_write(Path(settings.save) / 'serve_load.json') as temporary:
            temporary.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


def make_requests():
    """Return {kind: [request]}: the beginnings of sentences of the stories that come with the project."""
    rng = random.Random(1337)
    words = STORIES.read_text(encoding='utf-8').split()
    requests = {}
    for kind, fields in KINDS.items():
        starts = [rng.randrange(len(words) - WORDS[1]) for _ in range(TEXTS)]
        prompts = [' '.join(words[start : start + rng.randint(*WORDS)]) for start in starts]
        requests[kind] = [{'prompt': prompt, 'seed': seed, **fields} for seed, prompt in enumerate(prompts)]
    return requests


async def measure_load(address, requests, settings):
    """Return the waits of each kind of request with many clients, and how answers differ from those given alone."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits, trust_env=False) as client:
        alone = {kind: [await ask(client, request) for request in each] for kind, each in requests.items()}
        answers, failures = {kind: [] for kind in requests}, []
        end = time.perf_counter() + settings.seconds

        async def visit(number):
            rng = random.Random(number)
            while time.perf_counter() < end:
                kind, place = rng.choice(list(requests)), rng.randrange(TEXTS)
                try:
                    answers[kind].append((place, await ask(client, requests[kind][place])))
                except (httpx.HTTPError, KeyError) as error:
                    failures.append(repr(error))

        await asyncio.gather(*map(visit, range(settings.clients)))
    if missing := [kind for kind, each in answers.items() if not each]:
        raise UserError(f'--seconds={settings.seconds:g} is too short: no answer to {", ".join(missing)} came in time')
    found = {kind: compare_answers(each, alone[kind]) for kind, each in answers.items()}
    return {'requests': found, 'failures': len(failures), 'first_failures': failures[:3]}


async def ask(client, request):
    """Return (seconds, text, logprobs) of a completion."""
    begin = time.perf_counter()
    response = await client.post('/v1/completions', json=request)
    response.raise_for_status()
    choice = response.json()['choices'][0]
    return time.perf_counter() - begin, choice['text'], choice['logprobs']['token_logprobs']


def compare_answers(answers, alone):
    """Return how long [(place, answer)] took, and how they differ from the answers at these places given alone."""
    seconds = sorted(answer[0] for _, answer in answers)
    same = [(answer[2], alone[place][2]) for place, answer in answers if answer[1] == alone[place][1]]
    pairs = [pair for both in same for pair in zip(*both, strict=True) if None not in pair]
    return {
        'answers': len(answers),
        'median': statistics.median(seconds),
        'p95': seconds[int(0.95 * (len(seconds) - 1))],
        'longest': seconds[-1],
        'alone': statistics.median(answer[0] for answer in alone),
        'logprob_difference': max(abs(a - b) for a, b in pairs),
        'other_texts': len(answers) - len(same),
    }


if __name__ == '__main__':
    configurator.run(main, Settings)
