"""bench.py runs, keeps what it measured, and says plainly what cannot be measured."""

import json

import pytest
from helpers.models import random_gpt
from helpers.scripts import run_script

from lab import bench
from lab.bench_programs import CONTENDERS, Task
from lm.checkpoint import save_pretrained
from lm.tokenizer import GPT2Tokenizer


@pytest.fixture
def small_gpt2(tmp_path):
    """Return a folder with a model of GPT-2's vocabulary, small enough to be measured in a moment."""
    tokenizer = GPT2Tokenizer()
    try:
        tokenizer.encode('')
    except Exception as error:
        pytest.skip(f"needs GPT-2's vocabulary: {error}")
    save_pretrained(random_gpt(vocab_size=50257, block_size=512, n_layer=1), tmp_path / 'small', tokenizer)
    return tmp_path / 'small'


def test_a_job_is_measured_and_kept(tmp_path, small_gpt2):
    start = {'sample.py': {'per_second': 0.5, 'seconds': [2.0], 'floor_per_second': None, 'peak_memory_mib': 9.0}}
    (tmp_path / 'speed.json').write_text(json.dumps({'jobs': {'start': start}}))
    done = run_script(
        'bench.py',
        *('--job=score', '--only=float32', '--rounds=2', '--save=speed.json', f'--init_from={small_gpt2}'),
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / 'speed.json').read_text())
    assert kept['jobs']['start'] == start  # other jobs' results stay
    assert kept['read_gb_per_second'] > 0
    assert kept['versions']['torch']
    score = kept['jobs']['score']
    assert {'float32', 'transformers float32', 'lm-eval float32'} <= set(score)
    for name, row in score.items():
        assert len(row['seconds']) == 2, name
        assert row['per_second'] == pytest.approx(400 / (sum(row['seconds']) / 2)), name
    page = (tmp_path / 'speed.md').read_text()
    assert '| sample.py | 0.5 | 1.00 x |' in page
    assert f'| float32 | {score["float32"]["per_second"]:.4g} | 1.00 x |' in page
    assert 'float32 is' in done.stdout
    assert '1.00 x' in done.stdout


def test_floors_count_what_must_be_read_and_multiplied():
    limits = {'read_gb_per_second': 10, 'float32_gflops': 100, 'bfloat16_gflops': 200}
    task = Task('', '', rows=1, new_tokens=10, layers=80_000_000, head=20_000_000)
    assert bench.floor_of('decode', 'float32', task, limits) == pytest.approx(10 * 0.04)  # 400 MB at 10 GB/s a token
    assert bench.floor_of('decode', 'CTranslate2 int8', task, limits) == pytest.approx(10 * 0.01)
    task.rows = 1000  # then products take longer than reading: 2 * 1e8 * 1000 / 1e11 = 2 seconds a step
    assert bench.floor_of('sample', 'float32', task, limits) == pytest.approx(10 * 2)
    task.pairs = (([1, 2, 3], [4, 5], '', ''), ([1, 2, 3], [6], '', ''))
    read, said = 4 + 3, 2 + 1
    assert bench.floor_of('score', 'float32', task, limits) == pytest.approx(2 * (8e7 * read + 2e7 * said) / 1e11)
    read = 3 + 1  # the prompt once
    assert bench.floor_of('prompts', 'bfloat16', task, limits) == pytest.approx(2 * (8e7 * read + 2e7 * said) / 2e11)
    assert bench.floor_of('start', 'sample.py', task, limits) is None


def test_the_pairs_are_what_they_are_said_to_be():
    tokenizer = GPT2Tokenizer()
    try:
        ids = tokenizer.encode('The old bear went into the forest, and the forest was dark. ' * 40)
    except Exception as error:
        pytest.skip(f"needs GPT-2's vocabulary: {error}")
    pairs = bench.make_pairs('score', tokenizer, ids)
    assert len(pairs) == 400
    assert all(12 <= len(prompt) + len(response) <= 40 for prompt, response, *_ in pairs)
    assert all(tokenizer.decode(prompt + response) == before + after for prompt, response, before, after in pairs)
    prompts = bench.make_pairs('prompts', tokenizer, ids)
    assert (len(prompts), len({tuple(prompt) for prompt, *_ in prompts})) == (1000, 20)


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (['--job=speed'], '--job=speed is not one of'),
        (['--rounds=0'], '--rounds=0'),
        (['--init_from=nowhere/at/all', '--job=decode'], 'nowhere/at/all'),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, arguments, told):
    done = run_script('lab.bench', *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert 'Traceback' not in done.stderr


def test_every_contender_says_what_it_is():
    for job in CONTENDERS.values():
        assert all(function.__doc__ for function, _ in job.values())
