"""eval.py as a whole: every number against model.generate, two models, running text, what is kept and taken up."""

import functools
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import rich.console
import torch
from helpers.models import random_gpt
from helpers.scripts import PROJECT, assert_friendly_error, run_script
from matplotlib.image import imread

import eval as eval_script
from common.errors import UserError
from common.processes import Processes
from evaluation import result_folder, tables
from evaluation.measures import arrow
from evaluation.sources import join_response
from lm import checkpoint, scoring
from lm.scoring import score
from lm.tokenizer import CharTokenizer, tokenizer_from_folder, train_bpe

WORDS = [
    'the',
    'a',
    'king',
    'queen',
    'fox',
    'little',
    'old',
    'went',
    'said',
    'to',
    'and',
    'in',
    'forest',
    'house',
    'gold',
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


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two small random models of one tokenizer, one of another, and pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    shared = tokenizer_from_folder(PROJECT / 'models' / 'tiny')
    other = train_bpe([(PROJECT / 'eval_data.json').read_text()], 400)
    for name, tokenizer, seed in [('one', shared, 1), ('two', shared, 2), ('other', other, 3)]:
        model = random_gpt(vocab_size=tokenizer.vocab_size, block_size=48, n_embd=16, seed=seed)
        for parameter in model.parameters():
            parameter.data *= 0.5
        checkpoint.save_pretrained(model, tmp_path / name, tokenizer)
    write_pairs('pairs.jsonl', 90)
    return tmp_path


def run_two(cwd, *arguments):
    """Run eval.py as two processes."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(PROJECT / 'eval.py'), *arguments]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def rows_in(folder):
    return [json.loads(line) for line in (folder / 'pairs.jsonl').read_text().split('\n') if line]


def summary_in(folder):
    return json.loads((folder / 'summary.json').read_text())


# Each number --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('boundary', ['joint', 'separate'])
def test_every_row_is_what_generate_and_steps_say(here, boundary):
    """Pairs beyond the context included, at a temperature, with both models' values."""
    settings = {'init_from': 'one', 'eval_data': 'pairs.jsonl', 'temperature': 0.8, 'boundary': boundary}
    rows, summary = evaluate(**settings)
    model, tokenizer, _ = checkpoint.load_model('one', device='cpu')
    pairs = rows_in(here)
    assert [row['index'] for row in rows] == list(range(90))
    assert any(len(tokenizer.encode(pair['prompt'])) > 48 for pair in pairs)
    for pair, row in zip(pairs, rows, strict=True):
        assert (row['prompt'], row['response']) == (pair['prompt'], pair['response'])
        prompt, response = tokenizer.encode_pair(
            pair['prompt'], join_response(pair['prompt'], pair['response']), boundary
        )
        idx = torch.tensor([prompt])
        _, prob = model.generate(idx, fixed_response=response)
        _, sampler_prob = model.generate(idx, fixed_response=response, temperature=0.8)
        assert row['prob'] == pytest.approx(prob, rel=1e-4)
        assert row['sampler_prob'] == pytest.approx(sampler_prob, rel=1e-4)
        assert row['sampler_logprob'] == pytest.approx(math.log(sampler_prob), abs=1e-4)
        steps = list(model.steps(idx, fixed_response=response))
        assert row['token_logprobs'] == pytest.approx([step.model_logprob.item() for step in steps], abs=1e-5)
        greedy, _ = model.generate(idx, len(response), temperature=0)
        assert row['greedy'] == (greedy[0, len(prompt) :].tolist() == response)
        assert row['pieces'] == tokenizer.pieces(response)
        n = len(response)
        assert (row['tokens'], row['bytes']) == (n, len(tokenizer.decode_bytes(response)))
        assert row['logprob'] == pytest.approx(math.log(prob), abs=1e-4)
        assert row['prob_per_token'] == pytest.approx(prob ** (1 / n), rel=1e-4)
        assert row['perplexity'] == pytest.approx(prob ** (-1 / n), rel=1e-4)
    measures = summary['measures']['model']
    logprob, tokens = math.fsum(row['logprob'] for row in rows), sum(row['tokens'] for row in rows)
    assert measures['sum_of_probs']['value'] == pytest.approx(math.fsum(row['prob'] for row in rows))
    assert measures['sampler_sum_of_probs']['value'] == pytest.approx(math.fsum(row['sampler_prob'] for row in rows))
    assert measures['perplexity']['value'] == pytest.approx(math.exp(-logprob / tokens))
    for interval in measures.values():
        assert interval['low'] <= interval['value'] <= interval['high']


def test_multiple_choice_is_won_by_the_likeliest(here):
    rows, summary = evaluate(init_from='one', eval_data='pairs.jsonl')
    model, tokenizer, _ = checkpoint.load_model('one', device='cpu')
    right = right_per_byte = 0
    questions = [(row, pair) for row, pair in zip(rows, rows_in(here), strict=True) if 'distractors' in pair]
    assert all(('choices' in row) == (row['index'] % 5 == 0) for row in rows)
    for row, pair in questions:
        texts = [join_response(pair['prompt'], text) for text in (pair['response'], *pair['distractors'])]
        encoded = [tokenizer.encode_pair(pair['prompt'], text) for text in texts]
        sums = [score.sum().item() for score in score(model, *zip(*encoded))]
        assert [choice['logprob'] for choice in row['choices']] == pytest.approx(sums, abs=1e-4)
        assert row['right'] == (max(sums) == sums[0] and sums.count(sums[0]) == 1)
        right += row['right']
        per_byte = [total / len(text.encode()) for total, text in zip(sums, texts)]
        right_per_byte += max(per_byte) == per_byte[0]
    choice = summary['multiple_choice']
    assert choice['questions'] == len(questions) == 18
    assert choice['model']['acc']['value'] == pytest.approx(right / 18)
    assert choice['model']['acc_norm']['value'] == pytest.approx(right_per_byte / 18)


def test_a_distractor_that_is_the_response_makes_a_question_nobody_can_answer(here):
    (here / 'tie.json').write_text('[{"prompt": "The", "response": " fox", "distractors": [" fox"]}]')
    (row,), _ = evaluate(init_from='one', eval_data='tie.json')
    assert row['right'] is False


def test_what_is_at_the_edges_has_its_value(here):
    edges = [['The king', ''], ['', 'the fox'], ['', ''], ['a  ', 'b'], ['x', 'fox ' * 60], ['', '<|endoftext|>']]
    (here / 'edges.json').write_text(json.dumps(edges))
    rows, summary = evaluate(init_from='one', eval_data='edges.json')
    assert [row['tokens'] > 0 for row in rows] == [False, True, False, True, True, True]
    assert (rows[0]['prob'], rows[0]['logprob'], rows[0]['perplexity'], rows[0]['greedy']) == (1, 0, None, True)
    assert rows[3]['pieces'][0].startswith('·')  # the white space has moved
    assert rows[4]['tokens'] > 48
    assert (rows[5]['tokens'], rows[5]['bytes']) == (1, 0)  # <|endoftext|> is no text
    assert summary['rows'] == 6


def test_greedy_at_temperature_zero_is_one_or_nothing(here):
    rows, _ = evaluate(init_from='one', eval_data='pairs.jsonl', temperature=0, save='./zero')
    assert {row['sampler_prob'] for row in rows} == {0.0}
    assert {row['sampler_logprob'] for row in rows_in(here / 'zero')} == {None}  # JSON has no infinity


@pytest.mark.network
def test_published_probabilities_of_gpt2():
    """Measured by others with the real weights: some encoded apart, some with a response that brings its space."""
    published = [
        ('Once upon a time ', 'there was a king', 0.8, 'separate', 4.31e-11),
        ('Long, long ago ', 'two boys lived in a village', 0.8, 'separate', 3.78e-16),
        ('she was so pretty that they thought ', 'she must be some fairy princess', 0.8, 'separate', 8.84e-16),
        ('I live in', ' New Zealand', 1.0, 'joint', 9.9892e-04),
        ('Cricket is', ' a game', 1.0, 'joint', 1.7348e-02),
    ]
    try:
        checkpoint.load_model('gpt2', device='cpu')
    except UserError as error:
        pytest.skip(f'needs the weights of gpt2: {error}')
    for prompt, response, temperature, boundary, expected in published:
        settings = {'start': prompt, 'fixed_response': response, 'temperature': temperature, 'boundary': boundary}
        (row,), _ = evaluate(init_from='gpt2', **settings)
        assert row.get('sampler_prob', row['prob']) == pytest.approx(expected, rel=5e-3)


# Two models ---------------------------------------------------------------------------------------------------------


def test_two_models_side_by_side(here, capsys):
    rows, summary = evaluate(init_from='two', compare_to='one', eval_data='pairs.jsonl')
    alone, _ = evaluate(init_from='one', eval_data='pairs.jsonl')
    for row, before in zip(rows, alone, strict=True):
        assert row['before']['logprob'] == before['logprob']
        assert row['before']['token_ranks'] == before['token_ranks']
        assert row['log_ratio'] == row['logprob'] - before['logprob']
    ratios = [row['log_ratio'] for row in rows]
    comparison = summary['comparison']
    arrows = [arrow(ratio) for ratio in ratios]
    assert [comparison[key] for key in ('rose', 'fell', 'same')] == [arrows.count(sign) for sign in '↑↓=']
    assert comparison['mean_log_ratio']['value'] == pytest.approx(sum(ratios) / 90)
    before, after = (summary['measures'][role]['bits_per_byte']['value'] for role in ('compare_to', 'model'))
    assert summary['measures']['difference']['bits_per_byte']['value'] == pytest.approx(after - before)
    out = capsys.readouterr().out
    printed = re.findall(r'(-?[\d.]+) │ +(-?[\d.]+) │ +\S+ │ +\S+ │ ([+-][\d.]+) ([↑↓=]) │$', out, flags=re.MULTILINE)
    assert len(printed) == 90
    for (before, after, ratio, sign), row in zip(printed, rows, strict=True):
        assert (float(before), float(after)) == pytest.approx((row['before']['logprob'], row['logprob']), abs=1e-4)
        assert float(ratio) == pytest.approx(row['log_ratio'], abs=1e-4)
        assert sign == arrow(float(ratio))


def test_a_model_against_itself_differs_in_nothing(here):
    _, summary = evaluate(init_from='one', compare_to='one', eval_data='pairs.jsonl')
    comparison = summary['comparison']
    assert (comparison['same'], comparison['p_value']) == (90, 1)
    assert comparison['mean_log_ratio'] == {'value': 0, 'low': 0, 'high': 0}


def test_models_of_different_tokens_are_compared_by_byte(here, capsys):
    rows, summary = evaluate(init_from='other', compare_to='one', eval_data='pairs.jsonl', save='./mixed')
    for row in rows:
        per_byte = row['logprob'] / row['bytes'] - row['before']['logprob'] / row['before']['bytes']
        assert row['log_ratio'] == pytest.approx(per_byte)
        assert row['bytes'] == row['before']['bytes']
    assert summary['comparison']['per'] == 'byte'
    assert 'logprob_per_token' not in summary['measures']['difference']
    page = (here / 'mixed' / 'report.md').read_text()
    assert 'Tokens are not coloured' in page
    assert not (here / 'mixed' / 'tokens.png').exists()
    assert (here / 'mixed' / 'before_after.png').exists()


# Running text -------------------------------------------------------------------------------------------------------


def test_running_text_token_by_token(here):
    text = (PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt').read_text()[:1200]
    (here / 'text.txt').write_text(text)
    _, summary = evaluate(init_from='one', compare_to='other', text='text.txt', stride=1)
    for role, name in (('model', 'one'), ('compare_to', 'other')):
        model, tokenizer, _ = checkpoint.load_model(name, device='cpu')
        ids = [tokenizer.eot, *tokenizer.encode(text)]
        logprob = 0
        for place in range(1, len(ids)):
            logits, _ = model(torch.tensor([ids[max(0, place - 48) : place]]))
            logprob += torch.log_softmax(logits[0, -1].double(), -1)[ids[place]].item()
        bits = -logprob / len(text.encode()) / math.log(2)
        found = summary['measures'][role]
        # The other's tokens come in segments of several, the later ones of which see a little less far back.
        assert found['bits_per_byte']['value'] == pytest.approx(bits, rel=1e-6 if role == 'model' else 2e-2)
        assert found['perplexity']['value'] == pytest.approx(math.exp(-logprob / (len(ids) - 1)), rel=0.1)
    assert 'greedy_rate' not in summary['measures']['model']


def test_a_text_is_kept_taken_up_and_shared_out_like_pairs(here, monkeypatch):
    (here / 'text.txt').write_text(
        (PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt').read_text()[:9000]
    )
    monkeypatch.setattr(eval_script, 'WINDOW', 10)
    monkeypatch.setattr(result_folder, 'WINDOW', 10)
    evaluate(init_from='one', text='text.txt', save='./text')
    rows = rows_in(here / 'text')
    whole = (here / 'text' / 'pairs.jsonl').read_bytes()
    assert sum(row['bytes'] for row in rows) == 9000
    assert ''.join(row['response'] for row in rows) == (here / 'text.txt').read_text()
    (here / 'text' / 'pairs.jsonl').rename(here / 'text' / 'pairs.jsonl.part')
    with open(here / 'text' / 'pairs.jsonl.part', 'r+b') as file:
        file.truncate(len(whole) // 2)
    evaluate(init_from='one', text='text.txt', save='./text', resume_eval=True)
    assert (here / 'text' / 'pairs.jsonl').read_bytes() == whole


# What is kept -------------------------------------------------------------------------------------------------------


def test_save_leaves_a_folder_that_tells_it_all(here, capsys):
    rows, summary = evaluate(init_from='two', compare_to='one', eval_data='pairs.jsonl', save='named', show=3)
    folder = here / 'results' / 'named'
    assert {path.name for path in folder.iterdir()} == {
        'pairs.jsonl', 'summary.json', 'report.md', 'page.html', 'before_after.png', 'tokens.png', 'reliability.png',
    }  # fmt: skip
    assert len(rows) == 3
    assert rows_in(folder)[:3] == rows
    assert len(rows_in(folder)) == 90
    assert summary_in(folder) == json.loads(json.dumps(summary))
    assert summary['complete'] is True
    assert summary['model']['weights_sha256'] != summary['compare_to']['weights_sha256']
    assert summary['settings']['init_from'] == 'two'
    assert summary['command'] == (
        'python eval.py --init_from=two --device=cpu --eval_data=pairs.jsonl --compare_to=one --save=named --show=3'
    )
    page = (folder / 'report.md').read_text()
    for picture in re.findall(r'!\[.*?\]\((.*?)\)', page):
        assert (folder / picture).exists()
    assert summary['command'] in page
    assert 'and 87 more' in capsys.readouterr().out


def test_the_weights_hash_follows_the_weights(here):
    one, again, two = (checkpoint.load_model(name, device='cpu')[0] for name in ('one', 'one', 'two'))
    assert checkpoint.weights_sha256(one) == checkpoint.weights_sha256(again) != checkpoint.weights_sha256(two)
    with torch.no_grad():
        again.transformer.ln_f.bias[0] += 1e-7
    assert checkpoint.weights_sha256(one) != checkpoint.weights_sha256(again)
    assert len(checkpoint.weights_sha256(one.to(torch.bfloat16))) == 64


def test_the_same_evaluation_may_be_repeated_and_another_may_not(here):
    settings = {'init_from': 'one', 'eval_data': 'pairs.jsonl', 'save': './kept'}
    evaluate(**settings)
    before = (here / 'kept' / 'pairs.jsonl').read_bytes()
    evaluate(**settings, show=1)
    assert (here / 'kept' / 'pairs.jsonl').read_bytes() == before
    for change in [{'temperature': 0.5}, {'init_from': 'two'}, {'boundary': 'separate'}, {'compare_to': 'two'}]:
        with pytest.raises(UserError, match=r'another .*; choose another --save'):
            evaluate(**{**settings, **change})
        with pytest.raises(UserError, match=f'begun with another {"model" if "init_from" in change else ""}'):
            evaluate(**{**settings, **change}, resume_eval=True)
    evaluate(**settings | {'save': './both', 'compare_to': 'two'})
    with pytest.raises(UserError, match='another compare_to'):
        evaluate(**settings | {'save': './both'})
    write_pairs('pairs.jsonl', 91)
    with pytest.raises(UserError, match='another data'):
        evaluate(**settings)
    assert (here / 'kept' / 'pairs.jsonl').read_bytes() == before


def test_resume_from_any_byte(here, monkeypatch):
    """Cut anywhere, in a line or between two, the file comes back the same to the last byte."""
    monkeypatch.setattr(eval_script, 'WINDOW', 16)
    monkeypatch.setattr(result_folder, 'WINDOW', 16)
    settings = {'init_from': 'one', 'compare_to': 'two', 'eval_data': 'pairs.jsonl', 'save': './cut', 'show': 0}
    _, summary = evaluate(**settings)
    finished, part = here / 'cut' / 'pairs.jsonl', here / 'cut' / 'pairs.jsonl.part'
    whole = finished.read_bytes()
    rng = random.Random(3)
    lines = list(itertools.accumulate(len(line) for line in whole.splitlines(keepends=True)))
    for size in [0, 1, lines[15], lines[15] - 1, lines[16], len(whole), *(rng.randrange(len(whole)) for _ in range(4))]:
        finished.unlink()
        part.write_bytes(whole[:size])
        with pytest.raises(UserError, match='--resume_eval=True'):
            evaluate(**settings)
        _, again = evaluate(**settings, resume_eval=True)
        assert finished.read_bytes() == whole
        assert not part.exists()
        for key in ('measures', 'calibration', 'comparison', 'multiple_choice', 'rows', 'logprob'):
            assert again[key] == summary[key]


def test_killed_at_a_random_moment_and_resumed_ten_times(here):
    """SIGKILL, as a power cut would: the final file is that of an evaluation that nobody disturbed."""
    write_pairs('many.jsonl', 6000)
    arguments = ['--init_from=one', '--device=cpu', '--eval_data=many.jsonl', '--show=0']
    command = [sys.executable, str(PROJECT / 'eval.py'), *arguments]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    start = time.monotonic()
    whole = run_script('eval.py', *arguments, '--save=./whole', cwd=here)
    duration = time.monotonic() - start
    assert whole.returncode == 0, whole.stderr
    rng = random.Random(4)
    part = here / 'killed' / 'pairs.jsonl.part'
    kills, kept = 0, []
    while kills < 10:
        resume = ['--resume_eval=True'] if part.parent.exists() and any(part.parent.glob('pairs.jsonl*')) else []
        process = subprocess.Popen(
            [*command, '--save=./killed', *resume],
            cwd=here,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            _, stderr = process.communicate(timeout=rng.uniform(0.3, 0.7) * duration)
            assert process.returncode == 0, stderr
            part.parent.rename(here / f'done{kills}')  # it was quicker: begin once more
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            kept.append(part.read_bytes().count(b'\n') if part.exists() else 0)
    resume = ['--resume_eval=True'] if part.exists() or (part.parent / 'pairs.jsonl').exists() else []
    final = run_script('eval.py', *arguments, '--save=./killed', *resume, cwd=here)
    assert final.returncode == 0, final.stderr
    assert (here / 'killed' / 'pairs.jsonl').read_bytes() == (here / 'whole' / 'pairs.jsonl').read_bytes()
    assert max(kept) > 0  # some were killed in the midst of it


def test_control_c_says_how_to_go_on(here):
    write_pairs('many.jsonl', 20_000)
    command = [sys.executable, str(PROJECT / 'eval.py'), '--init_from=one', '--device=cpu', '--eval_data=many.jsonl']
    part = here / 'results' / 'many' / 'pairs.jsonl.part'
    process = subprocess.Popen([*command, '--save=many'], cwd=here, stderr=subprocess.PIPE, text=True)
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        'go on with: python eval.py --init_from=one --device=cpu --eval_data=many.jsonl --save=many --resume_eval=True'
        in stderr
    )
    assert 'Traceback' not in stderr


def test_two_processes_give_the_same_rows(here):
    write_pairs('many.jsonl', 1100)
    arguments = ['--init_from=one', '--compare_to=two', '--device=cpu', '--eval_data=many.jsonl', '--show=5']
    alone = run_script('eval.py', *arguments, '--save=./alone', cwd=here)
    assert alone.returncode == 0, alone.stderr
    shared = run_two(here, *arguments, '--save=./shared')
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count('bits per byte') == 1  # everything is said once
    pairs = list(zip(rows_in(here / 'alone'), rows_in(here / 'shared'), strict=True))
    assert [one['index'] for one, _ in pairs] == list(range(1100))
    for one, other in pairs:
        for key in ('index', 'prompt', 'response', 'pieces', 'token_ranks'):
            assert one[key] == other[key]
        for a, b in ((one, other), (one['before'], other['before'])):
            assert a['token_logprobs'] == pytest.approx(b['token_logprobs'], abs=1e-5)
            assert a['logprob'] == pytest.approx(b['logprob'], abs=1e-5, rel=1e-6)


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


# Mistakes -----------------------------------------------------------------------------------------------------------


REFUSED = [
    (['--boundary=apart'], ['--boundary=apart', 'joint', 'separate']),
    (['--resume_eval=True'], ['--save']),
    (['--resume_eval=True', '--save=./new'], ['new', 'no evaluation']),
    (['--resamples=0'], ['--resamples=0']),
    (['--show=-1'], ['--show=-1']),
    (['--text=nothing'], ['--text=nothing', 'neither']),
    (['--text=pairs.jsonl', '--fixed_response=a'], ['--text', '--fixed_response']),
    (['--text=pairs.jsonl', '--stride=0'], ['--stride=0', '1 to 48']),
    (['--compare_to=nowhere/at/all'], ['nowhere/at/all']),
    (['--save=pairs.jsonl/x'], ['--save', 'pairs.jsonl/x']),
]


@pytest.mark.parametrize(('arguments', 'words'), REFUSED, ids=[' '.join(arguments) for arguments, _ in REFUSED])
def test_what_cannot_be_meant_is_refused(here, arguments, words):
    basis = ['--init_from=one', '--device=cpu', '--eval_data=pairs.jsonl']
    with pytest.raises(UserError) as error:
        eval_script.eval(eval_script.configurator.read(eval_script.Settings, [*basis, *arguments]))
    for word in words:
        assert word in str(error.value)


def test_a_bad_pair_in_the_midst_is_found_before_anything_is_scored(here):
    with open('pairs.jsonl', 'a') as file:
        file.write('{"prompt": "Once"}\n')
    arguments = ('--init_from=one', '--device=cpu', '--eval_data=pairs.jsonl')
    process = run_script('eval.py', *arguments, cwd=here)
    assert_friendly_error(process, 'pairs.jsonl: pair 90 has no "response"', '--skip_bad=True')
    process = run_script('eval.py', *arguments, '--skip_bad=True', cwd=here)
    assert process.returncode == 0
    assert process.stderr.strip() == 'pairs.jsonl: pair 90 has no "response"; left out'
    assert 'over 90 responses' in process.stdout


def test_a_summary_that_is_damaged_is_told_of(here):
    evaluate(init_from='one', eval_data='pairs.jsonl', save='./kept')
    (here / 'kept' / 'summary.json').write_text('{"settings": ')
    with pytest.raises(UserError, match='no readable summary'):
        evaluate(init_from='one', eval_data='pairs.jsonl', save='./kept')


def test_files_that_are_not_of_an_evaluation_are_not_overwritten(here):
    (here / 'mine').mkdir()
    for name in ('pairs.jsonl', 'report.md', 'summary.json'):
        (here / 'mine' / name).write_text('{"prompt": "The", "response": " fox"}')
        before = (here / 'mine' / name).read_bytes()
        for resume in (False, True):
            with pytest.raises(UserError, match='no readable summary'):
                evaluate(init_from='one', eval_data='pairs.jsonl', save='./mine', resume_eval=resume)
        assert (here / 'mine' / name).read_bytes() == before
        (here / 'mine' / name).unlink()
    with pytest.raises(UserError, match='no evaluation to go on with'):
        evaluate(init_from='one', eval_data='pairs.jsonl', save='./typo', resume_eval=True)
    assert not (here / 'typo').exists()


def test_a_reader_who_has_read_enough_does_not_leave_it_unfinished(here):
    script = f'{sys.executable} {PROJECT}/eval.py --init_from=one --device=cpu --eval_data=pairs.jsonl --save=./kept'
    process = subprocess.run(['bash', '-o', 'pipefail', '-c', f'{script} | head -2'], cwd=here, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == b''
    assert summary_in(here / 'kept')['complete'] is True
    assert len(rows_in(here / 'kept')) == 90


def test_what_was_left_out_is_told_and_written_down(here):
    (here / 'few.jsonl').write_text('["The", " fox"]\n["The"]\n\xff\n["The", " bear"]\n', encoding='latin-1')
    _, summary = evaluate(init_from='one', eval_data='few.jsonl', skip_bad=True, save='./few')
    assert (summary['rows'], summary['data']['left_out']) == (2, 2)
    assert '2 of 4 pairs were wrong and are left out' in (here / 'few' / 'report.md').read_text()
    (here / 'none.jsonl').write_text('["The"]\n')
    with pytest.raises(UserError, match='nothing is left'):
        evaluate(init_from='one', eval_data='none.jsonl', skip_bad=True)


@pytest.mark.parametrize(('count', 'n'), [(1, 5), (2, 512), (3, 512), (5, 3)])
def test_the_work_is_shared_out_evenly_and_in_order(count, n):
    parts = []
    for rank in range(count):
        processes = Processes()
        processes.count, processes.rank = count, rank
        parts.append(processes.share(list(range(n))))
    assert list(itertools.chain(*parts)) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_two_processes_tell_of_every_pair_that_cannot_be_encoded(here):
    text = (PROJECT / 'eval_data.json').read_text()
    tokenizer = CharTokenizer(sorted(set(text)))
    checkpoint.save_pretrained(random_gpt(vocab_size=tokenizer.vocab_size, block_size=48), here / 'chars', tokenizer)
    with open('few.jsonl', 'w') as file:
        file.writelines(json.dumps(['The', ' fox' if index < 15 else ' für']) + '\n' for index in range(20))
    arguments = ['--init_from=chars', '--device=cpu', '--eval_data=few.jsonl', '--skip_bad=True']
    told = [
        process.stderr.count('left out')
        for process in (run_script('eval.py', *arguments, cwd=here), run_two(here, *arguments))
    ]
    assert told == [5, 5]


@pytest.mark.parametrize('columns', [80, 110, 200])
@pytest.mark.parametrize('compared', [False, True])
def test_no_number_is_cut_off_in_a_terminal(here, monkeypatch, capsys, columns, compared):
    monkeypatch.setattr(tables, 'Console', functools.partial(rich.console.Console, force_terminal=True, width=columns))
    rows, _ = evaluate(
        init_from='one', compare_to='two' if compared else None, eval_data='pairs.jsonl', temperature=0.8
    )
    out = re.sub(r'\x1b\[[\d;]*m', '', capsys.readouterr().out)
    table = [line for line in out.split('over 90 responses')[0].splitlines() if line.startswith('│')]
    assert '…' not in ''.join(table)
    assert all(len(line) <= columns for line in table)
    assert all(f'{row["logprob"]:.4f}' in out for row in rows)
    assert min(len(line[2:].split(' │')[0].ljust(24)) for line in table) >= 24


def test_texts_cannot_command_the_terminal_or_the_page(here, capsys):
    nasty = [['a\x1b[31m\0', ' b<b>|*c*`d`\x07 [x](y)'], ['# |<|endoftext|>', ' `']]
    (here / 'nasty.json').write_text(json.dumps(nasty))
    evaluate(init_from='one', eval_data='nasty.json', save='./nasty')
    page = (here / 'nasty' / 'report.md').read_text()
    for text in (capsys.readouterr().out, page):
        assert not set('\x1b\0\x07') & set(text)
        assert '‹U+001B›' in text
    assert all(line.count(' | ') == page.split('## Each response')[1].splitlines()[4].count(' | ')
               for line in page.split('## Each response')[1].splitlines() if line.startswith('| '))  # fmt: skip
    assert r'\# \|&lt;\|endoftext\|&gt;' in page


def test_very_long_responses_do_not_fill_the_page(here):
    (here / 'long.json').write_text(json.dumps([['The ' * 2000, 'fox ' * 400], ['The', ' fox']]))
    evaluate(init_from='one', compare_to='two', eval_data='long.json', save='./long')
    page = (here / 'long' / 'report.md').read_text()
    assert 'more' in page
    assert len(page) < 20_000
    assert imread(here / 'long' / 'tokens.png').shape[0] < 2000


@pytest.mark.parametrize('compared', [True, False])
def test_the_page_to_explore_says_what_pairs_jsonl_says(here, compared):
    settings = {'compare_to': 'other', 'temperature': 1.0} if compared else {'temperature': 0.7}
    evaluate(init_from='one', eval_data='pairs.jsonl', save='./kept', **settings)
    numbers = page_of(here / 'kept')
    assert numbers['models'] == ['one', 'other'][: 1 + compared]
    for row, text in zip(rows_in(here / 'kept'), numbers['texts'], strict=True):
        for side, shown in zip((row, row.get('before')), text['sides']):
            assert [numbers['pieces'][place] for place in shown['pieces']] == side['pieces']
            assert shown['ranks'] == side['token_ranks']
            assert shown['logprobs'] == pytest.approx(side['token_logprobs'], rel=1e-6)
            assert shown['logprob'] == pytest.approx(side['logprob'], rel=1e-9)
            likeliest = [math.exp(logprob) for logprob in side['token_top_logprobs']]
            assert [probs[0] for probs in shown['probs']] == pytest.approx(likeliest, rel=1e-4)
            if compared:
                assert shown['sampler_logprob'] is None
            else:
                assert shown['sampler_logprob'] == pytest.approx(side['sampler_logprob'], rel=1e-9)
                assert shown['sampler_logprobs'] == pytest.approx(side['token_sampler_logprobs'], rel=1e-6)


def page_of(folder):
    page = (folder / 'page.html').read_text()
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1])


def test_of_a_very_long_response_the_page_shows_the_same_beginning_under_both_models(here, monkeypatch):
    monkeypatch.setattr(eval_script, 'PAGE_TOKENS', 7)
    text = ' The little old king went to the forest and said nothing at all.'
    (here / 'long.json').write_text(json.dumps([['The', text], ['The', ' fox']]))
    evaluate(init_from='one', compare_to='other', eval_data='long.json', save='./long')
    numbers = page_of(here / 'long')
    long, short = numbers['texts']
    shown = [''.join(numbers['pieces'][place] for place in side['pieces']).replace('·', ' ') for side in long['sides']]
    assert all(text.startswith(beginning) for beginning in shown)
    assert min(map(len, shown)) > 0
    assert max(len(side['pieces']) for side in long['sides']) == 7
    assert max(map(len, shown)) - min(map(len, shown)) < 8  # but for a token that lies across the cut
    assert re.fullmatch(r'pair 0 \(its first \d tokens of \d+\)', long['label'])
    assert short['label'] == 'pair 1'


def test_of_many_pairs_the_page_says_which_it_shows(here):
    write_pairs('many.jsonl', 130)
    evaluate(init_from='one', compare_to='two', eval_data='many.jsonl', save='./many')
    numbers = page_of(here / 'many')
    assert len(numbers['texts']) == 100
    assert any('the 100 that changed most, of 130' in line for line in numbers['about'])


@pytest.mark.parametrize(
    'settings', [{'seed': -1}, {'show': 0}, {'temperature': 0.0}, {'show': 3, 'compare_to': 'two'}]
)
def test_the_page_does_not_depend_on_what_is_printed(here, settings):
    evaluate(init_from='one', eval_data='pairs.jsonl', save='./kept', **settings)
    page = (here / 'kept' / 'report.md').read_text()
    assert 'Shown: all of them' in page
    assert page.split('## Each response')[1].count('\n| ') == 92


def test_a_short_text_and_a_single_question_have_their_measures(here, capsys):
    (here / 'short.txt').write_text('Once upon a time there was a fox.')
    (here / 'one.json').write_text('[{"prompt": "The", "response": " fox", "distractors": [" of"]}]')
    evaluate(init_from='one', text='short.txt', save='./short')
    assert re.search(r'bits per byte +│ +[\d.]+ │', capsys.readouterr().out)  # and no interval of a single segment
    evaluate(init_from='one', eval_data='one.json')
    assert re.search(r'acc +│ +\d+\.0% │', capsys.readouterr().out)


def test_the_window_is_the_one_that_scoring_uses():
    assert eval_script.WINDOW == result_folder.WINDOW == scoring.WINDOW
