"""The benchmark measures its jobs, saves the results, and says plainly what it cannot measure."""

import json
import re

import pytest
from helpers.models import random_gpt
from helpers.scripts import PROJECT, run_script

from common.errors import UserError
from lab import bench
from lab.bench_contenders import CONTENDERS, Task
from lab.bench_limits import least_seconds
from lab.bench_pages import describe_machine, installed_versions, results_file, save_result
from lm.checkpoint import save_pretrained
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder

START = {'sample.py': {'per_second': 0.5, 'seconds': [2.0], 'limit_per_second': None, 'peak_memory_mib': 9.0}}


@pytest.fixture
def small_gpt2(tmp_path):
    """Return a folder with a GPT-2 that is small enough to be measured quickly."""
    tokenizer = tokenizer_from_folder(PROJECT / 'models' / 'tiny')
    model = random_gpt(vocab_size=tokenizer.vocab_size, block_size=512, n_layer=1)
    save_pretrained(model, tmp_path / 'small', tokenizer)
    return tmp_path / 'small'


@pytest.mark.slow
def test_a_job_is_measured_and_saved(tmp_path, small_gpt2):
    path = results_file(tmp_path, describe_machine())
    path.write_text(json.dumps({'jobs': {'start': START}}))
    done = run_script(
        'lab.bench',
        *('--job=score', '--only=float32', '--rounds=2', '--save=.', f'--init_from={small_gpt2}'),
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(path.read_text())
    assert saved['jobs']['start'] == START  # other jobs' results stay
    assert saved['read_gb_per_second'] > 0
    assert saved['versions']['torch']
    score = saved['jobs']['score']
    assert {'float32', 'transformers float32', 'lm-eval float32'} <= set(score)
    for name, row in score.items():
        assert len(row['seconds']) == 2, name
        assert row['per_second'] == pytest.approx(400 / (sum(row['seconds']) / 2)), name
    page = path.with_suffix('.md').read_text()
    assert '| score | float32 |' in page  # a promise
    assert 'promises of docs/speed.md' in done.stdout
    assert '| sample.py | 0.5 | 1.00 x |' in page
    assert f'| float32 | {score["float32"]["per_second"]:.4g} | 1.00 x |' in page
    assert 'speedup of' in done.stdout
    assert '1.00 x' in done.stdout


@pytest.mark.slow
def test_contenders_take_turns_and_their_speeds_are_saved(tmp_path, small_gpt2, capsys):
    limits = {'read_gb_per_second': 10.0, 'float32_gflops': 100.0, 'bfloat16_gflops': 200.0}
    task = Task(
        str(small_gpt2), str(tmp_path), prompt_ids=(7454, 2402), new_tokens=4, layers=12 * 32**2, head=8192 * 32
    )
    settings = bench.Settings(rounds=2, only='no cache')
    result = bench.run_job('decode', task, str(small_gpt2), settings, limits)
    (row,) = result.values()
    assert row['per_second'] == pytest.approx(4 / (sum(row['seconds']) / 2))
    assert row['peak_memory_mib'] > 0
    assert 'no cache, one by one' in capsys.readouterr().out
    path, conditions = (
        tmp_path / 'speed.json',
        {'machine': describe_machine(), **limits, 'versions': installed_versions()},
    )
    save_result(path, conditions, 'start', START)
    save_result(path, conditions, 'decode', result)
    assert json.loads(path.read_text())['jobs'] == {'start': START, 'decode': result}
    page = path.with_suffix('.md').read_text()
    assert '| sample.py | 0.5 | 1.00 x |' in page
    assert f'| no cache, one by one | {row["per_second"]:.4g} |' in page
    with pytest.raises(UserError, match='no contender is left'):
        bench.compare_contenders('decode', task, bench.Settings(only='nobody'), limits)
    path.write_text('no JSON')
    with pytest.raises(UserError, match=r'speed\.json is damaged: it is not JSON'):
        save_result(path, conditions, 'start', START)


@pytest.mark.slow
def test_the_precision_of_each_model_is_that_of_the_same_pairs(small_gpt2, monkeypatch, capsys):
    make_pairs = bench.make_pairs
    monkeypatch.setattr(bench, 'make_pairs', lambda *arguments: make_pairs(*arguments)[:20])
    monkeypatch.chdir(small_gpt2.parent)
    bench.main(bench.Settings(job='precision', init_from='./small'))
    printed = capsys.readouterr().out
    rows = re.findall(r'(\S+) +│ (bfloat16|int8) +│ +([\d,]+) │ +(0\.\d+) │', printed)
    names = ['tiny', 'tiny', 'tiny-stories', 'tiny-stories', './small', './small']
    assert [name for name, *_ in rows] == names, printed
    assert [precision for _, precision, *_ in rows] == ['bfloat16', 'int8'] * 3
    assert all(0 < int(tokens) < 20 * 36 and float(mean) < 0.1 for *_, tokens, mean in rows)


def test_limits_count_what_must_be_read_and_multiplied():
    limits = {'read_gb_per_second': 10, 'float32_gflops': 100, 'bfloat16_gflops': 200}
    task = Task('', '', rows=1, new_tokens=10, layers=80_000_000, head=20_000_000)
    assert least_seconds('decode', 'float32', task, limits) == pytest.approx(10 * 0.04)  # 400 MB a token at 10 GB/s
    assert least_seconds('decode', 'CTranslate2 int8', task, limits) == pytest.approx(10 * 0.01)
    task.rows = 1000  # then products take longer than reading: 2 * 1e8 * 1000 / 1e11 = 2 seconds a step
    assert least_seconds('sample', 'float32', task, limits) == pytest.approx(10 * 2)
    task.pairs = (([1, 2, 3], [4, 5], '', ''), ([1, 2, 3], [6], '', ''))
    read, scored = 4 + 3, 2 + 1
    assert least_seconds('score', 'float32', task, limits) == pytest.approx(2 * (8e7 * read + 2e7 * scored) / 1e11)
    read = 3 + 1  # the prompt once
    assert least_seconds('prompts', 'bfloat16', task, limits) == pytest.approx(2 * (8e7 * read + 2e7 * scored) / 2e11)
    assert least_seconds('start', 'sample.py', task, limits) is None


def test_pairs_have_the_promised_sizes():
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
    ('settings', 'message'),
    [
        (bench.Settings(job='speed'), '--job=speed is not one of'),
        (bench.Settings(rounds=0), '--rounds=0'),
        (bench.Settings(job='decode', init_from='nowhere/at/all'), 'nowhere/at/all'),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        bench.main(settings)


@pytest.mark.slow
def test_a_mistake_ends_in_one_line(tmp_path):
    done = run_script('lab.bench', '--job=speed', cwd=tmp_path)
    assert done.returncode == 2
    assert '--job=speed is not one of' in done.stderr
    assert 'Traceback' not in done.stderr


def test_every_contender_has_a_description():
    for job in CONTENDERS.values():
        assert all(function.__doc__ for function, _ in job.values())
