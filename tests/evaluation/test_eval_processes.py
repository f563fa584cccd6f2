"""eval.py as several processes, and its memory."""

import itertools
import json

import pytest
from helpers.evaluation import rows_in, run_two, summary_in, write_pairs
from helpers.models import random_gpt
from helpers.scripts import PROJECT, run_script

from common.processes import Processes
from lm import checkpoint
from lm.tokenizer import CharTokenizer


@pytest.mark.parametrize(('count', 'n'), [(1, 5), (2, 512), (3, 512), (5, 3)])
def test_the_work_is_shared_evenly_and_in_order(count, n):
    parts = []
    for rank in range(count):
        processes = Processes()
        processes.count, processes.rank = count, rank
        parts.append(processes.share(list(range(n))))
    assert list(itertools.chain(*parts)) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow
def test_two_processes_give_the_same_rows(here):
    write_pairs('many.jsonl', 1100)
    arguments = ['--init_from=one', '--compare_to=two', '--device=cpu', '--eval_data=many.jsonl', '--show=5']
    alone = run_script('eval.py', *arguments, '--save=./alone', cwd=here)
    assert alone.returncode == 0, alone.stderr
    shared = run_two(here, *arguments, '--save=./shared')
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count('bits per byte') == 1  # everything is printed once
    pairs = list(zip(rows_in(here / 'alone'), rows_in(here / 'shared'), strict=True))
    assert [one['index'] for one, _ in pairs] == list(range(1100))
    for one, other in pairs:
        for key in ('index', 'prompt', 'response', 'pieces'):
            assert one[key] == other[key]
        # Other batches round differently: far down, two tokens that are equally likely may change places.
        assert one['token_ranks'] == pytest.approx(other['token_ranks'], rel=0.002)
        for a, b in ((one, other), (one['before'], other['before'])):
            assert a['token_logprobs'] == pytest.approx(b['token_logprobs'], abs=1e-5)
            assert a['logprob'] == pytest.approx(b['logprob'], abs=1e-5, rel=1e-6)


@pytest.mark.slow
def test_two_processes_report_every_pair_that_cannot_be_encoded(here):
    text = (PROJECT / 'eval_data.json').read_text()
    tokenizer = CharTokenizer(sorted(set(text)))
    checkpoint.save_pretrained(random_gpt(vocab_size=tokenizer.vocab_size, block_size=48), here / 'chars', tokenizer)
    with open('few.jsonl', 'w') as file:
        file.writelines(json.dumps(['The', ' fox' if index < 15 else ' für']) + '\n' for index in range(20))
    arguments = ['--init_from=chars', '--device=cpu', '--eval_data=few.jsonl', '--skip_bad=True']
    reported = [
        process.stderr.count('left out')
        for process in (run_script('eval.py', *arguments, cwd=here), run_two(here, *arguments))
    ]
    assert reported == [5, 5]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pairs(here):
    write_pairs('few.jsonl', 1000)
    write_pairs('many.jsonl', 10_000)
    peaks = []
    for name in ('few', 'many'):
        arguments = ('--init_from=one', '--device=cpu', f'--eval_data={name}.jsonl', f'--save=./{name}', '--show=0')
        process = run_script('eval.py', *arguments, cwd=here)
        assert process.returncode == 0, process.stderr
        peaks.append(summary_in(here / name)['run']['peak_memory_mib'][-1][1])
    assert peaks[1] < 1.1 * peaks[0]
