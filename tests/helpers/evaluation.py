"""Evaluations in tests: pairs to score, ways to run eval.py, and what it leaves in a folder."""

import json
import os
import random
import re
import subprocess
import sys

import eval as eval_script
from helpers.scripts import PROJECT

WORDS = [
    *('the', 'a', 'king', 'queen', 'fox', 'little', 'old', 'went'),
    *('said', 'to', 'and', 'in', 'forest', 'house', 'gold'),
]


def evaluate(**settings):
    """Evaluate in this process, on the CPU."""
    return eval_script.eval(eval_script.Settings(device='cpu', **settings))


def write_pairs(path, count, seed=0):
    """Write JSON lines of random pairs, some with distractors, some of them long."""
    rng = random.Random(seed)

    def words(least, most):
        return ' '.join(rng.choices(WORDS, k=rng.randint(least, most)))

    with open(path, 'w') as file:
        for index in range(count):
            pair = {'prompt': words(0, 8), 'response': words(1, 6)}
            if index % 5 == 0:
                pair['distractors'] = [words(1, 4), words(1, 4)]
            if index % 40 == 7:
                pair['prompt'] = words(30, 60)
            file.write(json.dumps(pair) + '\n')


def run_two(cwd, *arguments):
    """Run eval.py as two processes."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(PROJECT / 'eval.py'), *arguments]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def rows_in(folder):
    """Return the rows of pairs.jsonl."""
    return [json.loads(line) for line in (folder / 'pairs.jsonl').read_text().split('\n') if line]


def summary_in(folder):
    """Return what is in summary.json."""
    return json.loads((folder / 'summary.json').read_text())


def page_of(folder):
    """Return the numbers that are embedded in page.html."""
    page = (folder / 'page.html').read_text()
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
