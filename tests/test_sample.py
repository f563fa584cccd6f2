"""The four scripts as a person meets them: run from a folder of their own, with good settings and with bad ones."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.scripts import PROJECT, assert_friendly_error, run_script
from matplotlib.image import imread

import configurator
import eval as eval_script
import prepare_bin
import sample
import train
from common.errors import UserError
from lm import checkpoint, fast
from lm.search import beam_search, beam_steps, most_probable, search_steps
from lm.settings import SamplingSettings

STORIES = '\n\n\n'.join(
    f'Once upon a time {name} had {number} red apples.\n{name} gave one to the fox, and the fox said: thank you!'
    for number, name in enumerate(['Ann', 'Ben', 'Cleo', 'Dan'] * 10)
)
SMALL = """
dataset = 'stories'
n_layer = 2
n_head = 2
n_embd = 32
block_size = 32
batch_size = 4
gradient_accumulation_steps = 1
max_iters = 100
eval_interval = 3
eval_iters = 2
warmup_iters = 1
lr_decay_iters = max_iters
device = 'cpu'
dtype = 'float32'
compile = False
"""
PAIRS = [
    {'prompt': 'Once upon a time', 'response': ' Ann had 3 red apples.'},
    {'prompt': 'Ben gave one to the fox', 'response': ', and the fox said: thank you'},
    {'prompt': 'The fox', 'response': ' purred [loudly] :smile:'},
]
RESUME = ('--init_from=resume', '--device=cpu')
FOLDER = ('--init_from=folder', '--device=cpu')
CHARACTERS = ('--init_from=resume', '--out_dir=out-characters', '--device=cpu')
MAIN = {
    'sample.py': (sample.main, sample.Settings),
    'eval.py': (eval_script.eval, eval_script.Settings),
    'prepare_bin.py': (prepare_bin.main, prepare_bin.Settings),
    'train.py': (train.main, train.Settings),
}


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder where someone has prepared data, trained on it and saved a model; and how that went."""
    folder = tmp_path_factory.mktemp('world')
    (folder / 'stories.txt').write_text(STORIES)
    (folder / 'pairs.json').write_text(json.dumps(PAIRS))
    (folder / 'prompt.txt').write_text('Cleo gave one\nto the fox')
    (folder / 'latin1.txt').write_bytes('Schneewittchen, schön'.encode('latin-1'))
    (folder / 'accents.txt').write_text('Çleo gave one', encoding='utf-8')
    (folder / 'empty.txt').write_text('')
    (folder / 'config').mkdir()
    (folder / 'config' / 'small.py').write_text(SMALL)
    prepared = run_script('prepare_bin.py', '--input=stories.txt', '--dataset=stories', '--train_bpe=300', cwd=folder)
    assert prepared.returncode == 0, prepared.stderr
    trained = run_script('train.py', 'config/small.py', '--max_iters=6', cwd=folder)
    assert trained.returncode == 0, trained.stderr
    with contextlib.chdir(folder):
        call('prepare_bin.py', '--input=stories.txt', '--dataset=characters', '--tokenizer=char')
        characters = ('--dataset=characters', '--out_dir=out-characters', '--max_iters=2', '--eval_interval=2')
        call('train.py', 'config/small.py', *characters)
        model, tokenizer, _ = checkpoint.load_model('resume', device='cpu')
        for parameter in model.parameters():
            parameter.data *= 5  # six steps leave its distributions flat; this does not
        checkpoint.save_pretrained(model, 'folder', tokenizer)
    return SimpleNamespace(folder=folder, prepared=prepared, trained=trained)


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of that folder, where this test stands and breaks what it likes."""
    folder = tmp_path / 'here'
    shutil.copytree(world.folder, folder)
    monkeypatch.chdir(folder)
    return folder


def call(script, *arguments):
    """Do in this process what a script does with these arguments."""
    main, settings_class = MAIN[script]
    return main(configurator.read(settings_class, [str(argument) for argument in arguments]))


def run_well(script, *arguments, cwd, env=None):
    """Run a script and return what it printed; nothing may go wrong."""
    process = run_script(script, *arguments, cwd=cwd, env={'MPLBACKEND': 'Agg', **(env or {})})
    assert process.returncode == 0, process.stderr
    assert 'Traceback' not in process.stderr
    assert 'Warning' not in process.stderr
    return process.stdout


def contents(folder):
    """Return every file in a folder with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def assert_runs_into_error(script, *arguments, words, cwd, env=None):
    """Run a script and see it fail with one line on stderr that holds these words, all files left as they were."""
    before = contents(cwd)
    assert_friendly_error(run_script(script, *arguments, cwd=cwd, env=env), *words)
    assert contents(cwd) == before


def assert_refuses(script, *arguments, words, cwd):
    """The same within this process, which saves a start of Python; return the line."""
    before = contents(cwd)
    with warnings.catch_warnings(), pytest.raises(UserError) as caught:
        warnings.simplefilter('error', UserWarning)  # they too are lines on stderr
        call(script, *arguments)
    message = str(caught.value)
    assert '\n' not in message
    assert '\x1b' not in message
    for word in words:
        assert word in message, message
    assert contents(cwd) == before
    return message


def as_typed(cases):
    """Name each case of a table by its arguments."""
    return [' '.join(arguments) for arguments, _ in cases]


def samples_in(out):
    """Return what sample.py printed as (text, line about the sampler, line about the model) of each sample."""
    text, *rest = out.split('\n---------------\n')
    found = []
    for part in rest:
        sampler, model, _, after = part.split('\n', 3)
        found.append((text, sampler, model))
        text = after
    return found


def number_after(name, line):
    return float(re.search(rf'{name} +(-?[\d.]+(?:e-?\d+)?)', line)[1])


def rows_in(out):
    """Return (tokens, logprob, probability) of each row of the table that eval.py printed."""
    rows = re.findall(r'│ +(\d+) │.*│ +(-?[\d.]+) │ +(\S+) │$', out, flags=re.MULTILINE)
    return [(int(tokens), float(logprob), float(prob)) for tokens, logprob, prob in rows]


# sample.py ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def single(world, tmp_path_factory):
    """What sample.py prints for one sample, run from an empty folder."""
    cwd = tmp_path_factory.mktemp('elsewhere')
    return run_well('sample.py', *RESUME, f'--out_dir={world.folder / "out"}', '--max_new_tokens=20', cwd=cwd)


def test_sample_prints_the_text_and_both_of_its_probabilities(single):
    ((text, sampler, model),) = samples_in(single)
    assert text.startswith('Once upon a time')
    assert len(text) > len('Once upon a time')
    assert sampler.startswith('sampler (temperature 0.8, top_k 200)')
    assert model.startswith('model (temperature 1, every token)')
    for line in (sampler, model):
        logprob = number_after('logprob', line)
        assert number_after('probability', line) == pytest.approx(math.exp(logprob), rel=1e-3)
        assert number_after('perplexity per token', line) == pytest.approx(math.exp(-logprob / 20), rel=1e-3)
        assert '(20 tokens)' in line


def test_the_first_of_three_samples_is_the_single_one(single, here):
    samples = samples_in(run_well('sample.py', *RESUME, '--max_new_tokens=20', '--num_samples=3', cwd=here))
    (text, *lines), *_ = samples
    ((same_text, *same_lines),) = samples_in(single)
    assert text == f'sample 1 of 3\n{same_text}'
    for line, same in zip(lines, same_lines, strict=True):  # sums of other batches may be rounded otherwise
        assert number_after('logprob', line) == pytest.approx(number_after('logprob', same), abs=1e-3)
    assert len({text for text, _, _ in samples}) == 3
    assert all(text.partition('\n')[2].startswith('Once upon a time') for text, _, _ in samples)


def test_charts_change_no_text_and_each_run_has_a_folder_of_its_own(single, here):
    draw = ('sample.py', *RESUME, '--show_probs=True')
    out = run_well(*draw, '--max_new_tokens=20', '--plot_steps=3', cwd=here)
    assert samples_in(out) == samples_in(single)
    assert '(the first 3 of 20 steps; --plot_steps draws more)' in out
    (first,) = (here / 'results').iterdir()
    assert {path.name for path in first.iterdir()} == {'step_01.png', 'step_02.png', 'step_03.png', 'sheet.png'}
    before = contents(first)

    out = run_well(*draw, '--max_new_tokens=2', '--num_samples=2', cwd=here)
    assert '--plot_steps draws more' not in out
    (second,) = set((here / 'results').iterdir()) - {first}
    for name in ('sample_01', 'sample_02'):
        assert {path.name for path in (second / name).iterdir()} == {'step_01.png', 'step_02.png', 'sheet.png'}
    assert contents(first) == before
    assert all(data.startswith(b'\x89PNG') for data in contents(here / 'results').values())


def logprob_by_transformers(folder, prompt, response, temperature=1.0):
    """The reference: the summed logprob of a response, with nothing of ours."""
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

    tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
    prompt_ids, ids = tokenizer.encode(prompt).ids, tokenizer.encode(prompt + response).ids
    assert ids[: len(prompt_ids)] == prompt_ids
    with torch.no_grad():
        logits = GPT2LMHeadModel.from_pretrained(folder)(torch.tensor([ids])).logits[0]
    logprobs = (logits / temperature).log_softmax(-1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(len(prompt_ids), len(ids)))


def test_a_fixed_response_has_the_logprob_that_transformers_computes(here):
    pair = PAIRS[0]
    setting = f'--fixed_response={pair["response"]}'
    out = run_well('sample.py', *FOLDER, f'--start={pair["prompt"]}', setting, '--top_k=1', cwd=here)
    ((text, sampler, model),) = samples_in(out)
    assert text == pair['prompt'] + pair['response']
    assert number_after('logprob', model) == pytest.approx(logprob_by_transformers(here / 'folder', **pair), abs=1e-4)
    at_temperature = logprob_by_transformers(here / 'folder', **pair, temperature=0.8)
    assert sampler.startswith('sampler (temperature 0.8)')
    assert number_after('logprob', sampler) == pytest.approx(at_temperature, abs=1e-4)
    assert abs(number_after('logprob', model) - number_after('logprob', sampler)) > 0.1


@pytest.fixture
def laconic(here):
    """A model folder whose model ends its text as soon as it has read prompt.txt."""
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    with torch.no_grad():
        prompt = torch.tensor([tokenizer.encode((here / 'prompt.txt').read_text())])
        model.transformer.wte.weight[tokenizer.eot] = model.hidden(prompt)[0, -1]
    checkpoint.save_pretrained(model, here / 'laconic', tokenizer)
    return here / 'laconic'


def test_a_prompt_from_a_file_greedily_until_end_of_text(laconic, here, capsys):
    arguments = (f'--init_from={laconic}', '--start=FILE:prompt.txt', '--temperature=0', '--device=cpu')
    ((text, sampler, model),) = samples_in(run_well('sample.py', *arguments, '--stop_at_eot', cwd=here))
    assert text == 'Cleo gave one\nto the fox<|endoftext|>'
    assert '(1 tokens)' in sampler
    assert 'probability 1,' in sampler
    assert 0.5 < number_after('probability', model) <= 1

    call('sample.py', *arguments, '--max_new_tokens=5')
    ((longer, sampler, _),) = samples_in(capsys.readouterr().out)
    assert longer.startswith(text)
    assert '(5 tokens)' in sampler


def test_text_is_shown_token_by_token(here, monkeypatch):
    class Screen(io.StringIO):
        def __init__(self):
            super().__init__()
            self.seen = []

        def flush(self):
            self.seen.append(self.getvalue())

    screen = Screen()
    monkeypatch.setattr(sys, 'stdout', screen)
    call('sample.py', *RESUME, '--fixed_response= Ann had 3 apples', '--start=Once')
    assert 'Once' in screen.seen
    assert 'Once Ann' in screen.seen
    assert 'Once Ann had 3' in screen.seen


# eval.py ------------------------------------------------------------------------------------------------------------


def test_eval_prints_what_transformers_computes_and_totals_that_add_up(here):
    out = run_well('eval.py', *FOLDER, '--eval_data=pairs.json', cwd=here)
    rows = rows_in(out)
    assert len(rows) == len(PAIRS)
    for (_, logprob, prob), pair in zip(rows, PAIRS, strict=True):
        assert logprob == pytest.approx(logprob_by_transformers(here / 'folder', **pair), abs=1e-4)
        assert prob == pytest.approx(math.exp(logprob), rel=1e-3)
    n, total = sum(tokens for tokens, _, _ in rows), sum(logprob for _, logprob, _ in rows)
    assert re.search(rf'over {len(rows)} responses, {n} tokens, \d+ bytes: model probability', out)
    assert number_after('have logprob', out) == pytest.approx(total, abs=2e-4)
    assert number_after('sum of probabilities +│', out) == pytest.approx(sum(prob for *_, prob in rows), rel=1e-3)
    assert number_after('perplexity per token +│', out) == pytest.approx(math.exp(-total / n), rel=1e-3)


def test_eval_takes_every_setting_of_sample_but_those_of_its_searches_and_its_page(here):
    values = {field.name: field.default for field in dataclasses.fields(SamplingSettings)}
    own = {'html', 'beam_width', 'length_penalty', 'show_beams', 'most_probable', 'budget'}
    assert values.keys() == {field.name for field in dataclasses.fields(sample.Settings)} - own
    values |= {'init_from': 'resume', 'device': 'cpu', 'max_new_tokens': 3, 'show_probs': True, 'plot_steps': 1}
    arguments = [f'--{name}={value}' for name, value in values.items()]
    out = run_well('eval.py', *arguments, '--eval_data=pairs.json', cwd=here)
    assert 'Sampler values are those at temperature 0.8' in out
    assert out.count('drawn: ') == len(PAIRS)
    (folder,) = (here / 'results').iterdir()
    assert {path.name for path in folder.iterdir()} == {'pair_01', 'pair_02', 'pair_03'}
    assert {path.name for path in (folder / 'pair_03').iterdir()} == {'step_01.png', 'sheet.png'}


def test_eval_scores_a_single_pair(here, capsys):
    pair = PAIRS[1]
    (row,), _ = call('eval.py', *FOLDER, f'--start={pair["prompt"]}', f'--fixed_response={pair["response"]}')
    reference = logprob_by_transformers(here / 'folder', **pair)
    assert row['logprob'] == pytest.approx(reference, abs=1e-4)
    ((tokens, logprob, _),) = rows_in(capsys.readouterr().out)
    assert (tokens, logprob) == (row['tokens'], pytest.approx(reference, abs=1e-4))


def test_eval_shows_names_and_texts_as_they_are(here, capsys):
    (here / 'folder').rename(here / 'model [old] :smile:')
    call('eval.py', '--init_from=model [old] :smile:', '--eval_data=pairs.json', '--device=cpu')
    out = capsys.readouterr().out
    assert 'model [old] :smile:' in out
    assert '[loudly]' in out.replace('│', '')


# prepare_bin.py and train.py ----------------------------------------------------------------------------------------


def test_prepare_bin_says_in_meta_json_what_it_made(world):
    folder = world.folder / 'data' / 'stories'
    meta = json.loads((folder / 'meta.json').read_text())
    assert meta['tokenizer']['kind'] == 'bpe'
    assert (meta['vocab_size'], meta['dtype']) == (300, 'uint16')
    sha256 = hashlib.sha256(STORIES.encode()).hexdigest()
    assert meta['sources'] == [{'name': 'stories.txt', 'bytes': len(STORIES), 'sha256': sha256}]
    assert meta['train']['documents'] + meta['val']['documents'] == 40
    for split in ('train', 'val'):
        ids = np.fromfile(folder / f'{split}.bin', dtype=np.uint16)
        assert meta[split]['tokens'] == len(ids)
        assert meta[split]['sha256'] == hashlib.sha256((folder / f'{split}.bin').read_bytes()).hexdigest()
        assert f'{len(ids):,} tokens' in world.prepared.stdout
    assert 'python train.py config/train_tiny.py --dataset=stories' in world.prepared.stdout


def test_train_takes_a_config_file_and_what_overrides_it(world):
    ckpt = torch.load(world.folder / 'out' / 'ckpt.pt', weights_only=True)
    assert ckpt['iter_num'] == 6
    assert ckpt['config']['max_iters'] == 6
    assert ckpt['config']['lr_decay_iters'] == 100
    assert ckpt['model_args']['n_embd'] == 32
    metrics = [json.loads(line) for line in (world.folder / 'out' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in metrics if 'val_loss' in line] == [0, 3, 6]
    assert [line['iter'] for line in metrics if 'lr' in line] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]['val_loss'] < metrics[0]['val_loss']
    assert 'python sample.py --out_dir=out' in world.trained.stdout


def test_train_goes_on_where_it_stopped(here):
    before = (here / 'out' / 'metrics.jsonl').read_text()
    run_well('train.py', 'config/small.py', '--init_from=resume', '--max_iters=8', cwd=here)
    assert torch.load(here / 'out' / 'ckpt.pt', weights_only=True)['iter_num'] == 8
    after = (here / 'out' / 'metrics.jsonl').read_text()
    assert after.startswith(before)
    metrics = [json.loads(line) for line in after.splitlines()]
    call('train.py', 'config/small.py', '--max_iters=8', '--out_dir=at-once')
    at_once = [json.loads(line) for line in (here / 'at-once' / 'metrics.jsonl').read_text().splitlines()]
    assert metrics[-1]['val_loss'] == pytest.approx(at_once[-1]['val_loss'], abs=1e-5)
    assert [line['iter'] for line in metrics if 'val_loss' in line] == [0, 3, 6, 8]
    assert [line['iter'] for line in metrics if 'lr' in line] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_train_goes_on_where_the_log_was_cut_short(here):
    with open(here / 'out' / 'metrics.jsonl', 'a') as file:
        file.write('{"iter": 7, "lo')
    call('train.py', 'config/small.py', '--init_from=resume', '--max_iters=8')
    metrics = [json.loads(line) for line in (here / 'out' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in metrics if 'lr' in line] == [1, 2, 3, 4, 5, 6, 7, 8]


# Whoever reads what a script prints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('script', 'setting', 'comment'),
    [
        ('sample.py', '--temperature FLOAT', "1 is the model's own distribution, below 1 is bolder, 0 is greedy"),
        ('eval.py', '--stride {None}|INT', 'tokens of text scored at a time; fewer see more before them'),
        ('train.py', '--gradient_accumulation_steps INT', 'batches that make up one step'),
        ('prepare_bin.py', '--train_bpe {None}|INT', 'train a BPE of this many tokens on the training part first'),
    ],
)
def test_help_has_the_comment_of_each_setting(tmp_path, script, setting, comment):
    out = run_well(script, '--help', cwd=tmp_path, env={'COLUMNS': '100'})
    out = ' '.join(out.replace('│', ' ').split())
    assert f'{setting} {comment}' in out
    for field in dataclasses.fields(MAIN[script][1]):
        assert f'--{field.name} ' in out


@pytest.mark.parametrize('script', MAIN)
def test_help_explains_every_setting(script):
    """A comment that a formatter moved to another line would be lost."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        configurator.read(MAIN[script][1], ['--help'])
    text = ' '.join(re.sub('[│╭╮╰╯─]', ' ', out.getvalue()).split())
    for part in re.split(r' (?=--\w+ [{A-Z])', text)[1:]:
        assert not re.match(r'--\w+ \S+ \(default', part), part


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no such pipes')
@pytest.mark.parametrize(
    'arguments',
    [
        ('sample.py', *RESUME, '--max_new_tokens=3'),
        ('sample.py', *RESUME, '--max_new_tokens=3', '--num_samples=2'),
        ('eval.py', *FOLDER, '--eval_data=pairs.json'),
        ('prepare_bin.py', '--help'),
    ],
    ids=['stream', 'batch', 'table', 'help'],
)
def test_a_reader_that_leaves_early_is_no_error(here, arguments):
    script, *rest = arguments
    read_end, write_end = os.pipe()
    os.close(read_end)  # `| head` after it has read enough, without a race
    try:
        process = subprocess.run(
            [sys.executable, PROJECT / script, *rest],
            cwd=here,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': ''},
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(write_end)
    assert 'Traceback' not in process.stderr
    assert 'BrokenPipe' not in process.stderr
    assert process.returncode in (0, 1)


@pytest.mark.parametrize(
    'arguments',
    [('eval.py', *FOLDER, '--eval_data=pairs.json'), ('prepare_bin.py', '--help')],
    ids=['table', 'help'],
)
def test_output_goes_where_not_every_character_can_be_written(here, arguments):
    """As when it is redirected to a file on Windows, which has no ⏎ in its encoding."""
    script, *rest = arguments
    process = run_script(script, *rest, cwd=here, env={'PYTHONIOENCODING': 'ascii'})
    assert process.returncode == 0, process.stderr


# What goes wrong, as a person sees it -------------------------------------------------------------------------------


def test_a_setting_that_there_is_not(here):
    assert_runs_into_error('sample.py', '--temprature=1', words=['--temprature', 'did you mean temperature?'], cwd=here)


def test_a_value_of_the_wrong_type(here):
    arguments = ('config/small.py', '--batch_size=many')
    assert_runs_into_error('train.py', *arguments, words=['--batch_size=many', 'int'], cwd=here)


def test_a_config_file_with_a_syntax_error(here):
    (here / 'broken.py').write_text('batch_size = = 3')
    words = ['broken.py', 'not Python', 'line 1']
    assert_runs_into_error('train.py', 'broken.py', words=words, cwd=here)


def test_a_prompt_with_characters_that_the_model_lacks(here):
    words = ["'ß' (U+00DF)", "'é' (U+00E9)"]
    assert_runs_into_error('sample.py', *CHARACTERS, '--start=Once é upon ß', words=words, cwd=here)


def test_no_checkpoint(here):
    words = ['there is no checkpoint', 'nowhere', '--out_dir', '--init_from=tiny-stories']
    assert_runs_into_error('sample.py', '--init_from=resume', '--out_dir=nowhere', words=words, cwd=here)


def test_a_checkpoint_cut_short(here):
    with open(here / 'out' / 'ckpt.pt', 'r+b') as file:
        file.truncate(100_000)
    assert_runs_into_error('sample.py', *RESUME, words=['ckpt.pt', 'truncated'], cwd=here)


def test_weights_cut_short(here):
    with open(here / 'folder' / 'model.safetensors', 'r+b') as file:
        file.truncate(50_000)
    words = ['model.safetensors', 'damaged']
    assert_runs_into_error('eval.py', *FOLDER, '--eval_data=pairs.json', words=words, cwd=here)


def test_a_pair_without_a_response(here):
    (here / 'pairs.json').write_text(json.dumps([*PAIRS, {'prompt': 'Once'}]))
    words = ['pairs.json', 'pair 3', '"response"']
    assert_runs_into_error('eval.py', *FOLDER, '--eval_data=pairs.json', words=words, cwd=here)


def test_no_dataset(here):
    words = ['data/nothing/train.bin', 'python prepare_bin.py', '--dataset=nothing']
    arguments = ('config/small.py', '--dataset=nothing', '--out_dir=new')
    assert_runs_into_error('train.py', *arguments, words=words, cwd=here)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], ['--input=', '--dataset=']),
        (['--input=nowhere.txt', '--dataset=stories'], ['nowhere.txt', 'No such file']),
        (['--input=latin1.txt', '--dataset=stories'], ['latin1.txt', 'not UTF-8', 'byte 19', 'iconv']),
        (['--input=empty.txt', '--dataset=stories'], ['no text', 'empty.txt']),
        (['--input=stories.txt,accents.txt', '--dataset=stories', '--tokenizer=data/characters'], ["'Ç' (U+00C7)"]),
    ],
    ids=['no settings', 'no file', 'not UTF-8', 'empty', 'unknown characters'],
)
def test_text_that_cannot_be_prepared(here, arguments, words):
    assert_runs_into_error('prepare_bin.py', *arguments, words=words, cwd=here)


def test_a_hub_that_cannot_be_reached(here):
    (here / 'cache').mkdir()
    unreachable = {'HF_HOME': str(here / 'cache'), 'HF_ENDPOINT': 'http://127.0.0.1:9', 'NO_PROXY': '127.0.0.1'}
    started = time.monotonic()
    process = run_script('sample.py', '--init_from=gpt2', cwd=here, env=unreachable)
    assert time.monotonic() - started < 40
    assert_friendly_error(process, "'gpt2'", 'hub', '--init_from=tiny-stories')


def test_a_gpt2_vocabulary_that_cannot_be_fetched(here):
    nowhere = dict.fromkeys(['HTTPS_PROXY', 'https_proxy'], 'http://127.0.0.1:9')
    env = {**nowhere, 'NO_PROXY': '', 'no_proxy': '', 'TIKTOKEN_CACHE_DIR': str(here / 'cache')}
    words = ["GPT-2's vocabulary", 'TIKTOKEN_CACHE_DIR', 'tiny-stories']
    assert_runs_into_error('prepare_bin.py', '--input=stories.txt', '--dataset=stories', words=words, cwd=here, env=env)


# What goes wrong, as a script says it -------------------------------------------------------------------------------


REFUSED_BY_SAMPLE = [
    (['--temperature'], ['--temperature', 'needs a value']),
    (['nowhere.py'], ['nowhere.py', 'No such file']),
    (['config/small.py'], ['dataset (in config/small.py)', 'there is no setting']),
    (['--temperature=-1'], ['--temperature=-1', 'positive']),
    (['--temperature=nan'], ['--temperature=nan', 'positive']),
    (['--temperature=inf'], ['--temperature=inf', 'positive']),
    (['--top_k=0'], ['--top_k=0', 'at least 1', 'None']),
    (['--max_new_tokens=-1'], ['--max_new_tokens=-1', 'negative']),
    (['--num_samples=-1'], ['--num_samples=-1']),
    (['--num_samples=0'], ['--num_samples=0']),
    (['--plot_steps=-1'], ['--plot_steps=-1', 'negative']),
    (['--device=toaster'], ['--device=toaster', '--device=cpu']),
    (['--device=meta'], ['--device=meta', '--device=cpu']),
    (['--device=hpu'], ['--device=hpu', '--device=cpu']),
    (['--dtype=int4'], ['--dtype=int4', 'bfloat16']),
    (['--start=FILE:nowhere.txt'], ['FILE:nowhere.txt', 'No such file']),
    (['--start=FILE:out'], ['FILE:out', 'directory']),
    (['--start=FILE:latin1.txt'], ['latin1.txt', 'not UTF-8', 'byte 19']),
    (['--init_from=scratch'], ['scratch', 'train.py']),
    (['--init_from=stories.txt'], ['stories.txt is a file']),
    (['--init_from=./nowhere'], ['./nowhere']),
    (['--init_from=no such model!'], ['no such model!']),
    ([*CHARACTERS, '--start='], ['prompt', '<|endoftext|>']),
    ([*CHARACTERS, '--fixed_response= für Anna'], ["'ü' (U+00FC)"]),
]


@pytest.mark.parametrize(('arguments', 'words'), REFUSED_BY_SAMPLE, ids=as_typed(REFUSED_BY_SAMPLE))
def test_sample_refuses(here, arguments, words):
    assert_refuses('sample.py', *RESUME, '--max_new_tokens=1', *arguments, words=words, cwd=here)


def test_the_smallest_temperatures_are_greedy(here, capsys):
    texts = set()
    for temperature in ('0', '1e-300', '1e-40', '1e-9'):
        call('sample.py', *FOLDER, f'--temperature={temperature}', '--max_new_tokens=5')
        ((text, sampler, _),) = samples_in(capsys.readouterr().out)
        assert 'probability 1,' in sampler
        texts.add(text)
    assert len(texts) == 1


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (None, ['pairs.json', 'No such file']),
        ('', ['pairs.json', 'not JSON']),
        ('{"prompt": "Once",}', ['pairs.json', 'not JSON', 'line 1']),
        (b'["sch\xf6n"]', ['pairs.json', 'not UTF-8']),
        ('[]', ['pairs.json', 'no pairs']),
        ('[{"prompt": "Once", "response": " Ann"}, "Once"]', ['pairs.json', 'pair 1', '"prompt"']),
        ('[{"prompt": "Once", "response": 5}]', ['pairs.json', 'pair 0', '"response"']),
        ('[{"prompt": null, "response": " Ann"}]', ['pairs.json', 'pair 0', '"prompt"']),
    ],
    ids=['missing', 'nothing', 'comma', 'latin-1', 'empty', 'no object', 'a number', 'null'],
)
def test_eval_refuses_data(here, text, words):
    path = here / 'pairs.json'
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refuses('eval.py', *FOLDER, '--eval_data=pairs.json', words=words, cwd=here)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--eval_dta=x'], ['--eval_dta', 'did you mean eval_data?']),
        (['--temperature=-1'], ['--temperature=-1', 'positive']),
        (['--num_samples=-1'], ['--num_samples=-1', 'negative']),
        (['--fixed_response= Ann', '--start=FILE:nowhere.txt'], ['FILE:nowhere.txt', 'No such file']),
        ([*CHARACTERS, '--fixed_response= Änne', '--start=Once'], ["'Ä' (U+00C4)"]),
        ([*CHARACTERS, '--fixed_response= Ann'], ['prompt', '<|endoftext|>']),
    ],
    ids=['setting', 'temperature', 'number', 'file', 'characters', 'prompt'],
)
def test_eval_refuses(here, arguments, words):
    assert_refuses('eval.py', *FOLDER, *arguments, words=words, cwd=here)


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('script', ['sample.py', 'train.py'])
@pytest.mark.parametrize('protocol', [2, 4, 'torch'])
def test_a_checkpoint_with_code_in_it_does_not_run(here, script, protocol):
    intruder = {'model': Intruder(here / 'intruder was here'), 'model_args': {}}
    if protocol == 'torch':
        torch.save(intruder, here / 'out' / 'ckpt.pt')
    else:
        (here / 'out' / 'ckpt.pt').write_bytes(pickle.dumps(intruder, protocol))
    (here / 'out' / 'last.pt').unlink()
    config = ['config/small.py'] if script == 'train.py' else []
    message = assert_refuses(script, *config, *RESUME, words=['ckpt.pt'], cwd=here)
    assert 'weights_only' not in message  # that is how to run what it holds


@pytest.mark.parametrize(
    'what',
    [b'', b'hello', pickle.dumps([1]), ['a list'], {'weights': torch.zeros(2)}, {'model': 3, 'model_args': {}}],
    ids=['empty', 'text', 'pickle', 'list', 'weights', 'number'],
)
def test_a_checkpoint_that_is_none(here, what):
    if isinstance(what, bytes):
        (here / 'out' / 'ckpt.pt').write_bytes(what)
    else:
        torch.save(what, here / 'out' / 'ckpt.pt')
    assert_refuses('sample.py', *RESUME, words=['ckpt.pt'], cwd=here)


def test_a_checkpoint_without_its_optimizer_cannot_be_resumed(here):
    ckpt = torch.load(here / 'out' / 'ckpt.pt', weights_only=True)
    del ckpt['optimizer']
    torch.save(ckpt, here / 'out' / 'ckpt.pt')
    (here / 'out' / 'last.pt').unlink()
    words = ['no optimizer', '--init_from=out']
    assert_refuses('train.py', 'config/small.py', '--init_from=resume', words=words, cwd=here)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (None, ['folder', 'no config.json']),
        ({'model_type': 'llama'}, ["'llama'", 'gpt2']),
        ({'n_layer': 3}, ['folder', 'lacks weights']),
        ({'n_embd': 64}, ['folder', '(300, 32)', '(300, 64)']),
        ({'n_head': 0}, ['folder', 'n_head=0']),
        ({'activation_function': 'relu'}, ["'relu'"]),
    ],
    ids=['missing', 'model_type', 'n_layer', 'n_embd', 'n_head', 'activation'],
)
def test_a_model_folder_that_cannot_be_meant(here, change, words):
    config = here / 'folder' / 'config.json'
    if change is None:
        config.unlink()
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    assert_refuses('sample.py', *FOLDER, words=words, cwd=here)


REFUSED_BY_TRAIN = [
    (['--n_embd=33'], ['n_embd=33', 'n_head=2']),
    (['--n_head=0'], ['n_head=0']),
    (['--n_embd=0'], ['n_embd=0']),
    (['--n_layer=-1'], ['n_layer=-1']),
    (['--block_size=0'], ['block_size=0']),
    (['--batch_size=0'], ['batch_size=0']),
    (['--gradient_accumulation_steps=0'], ['gradient_accumulation_steps=0']),
    (['--eval_interval=0'], ['eval_interval=0']),
    (['--eval_iters=0'], ['eval_iters=0']),
    (['--log_interval=0'], ['log_interval=0']),
    (['--learning_rate=-1'], ['learning_rate=-1']),
    (['--beta2=1.5'], ['beta2=1.5']),
    (['--seed=-1'], ['seed=-1']),
    (['--dropout=1.5'], ['dropout', '1.5']),
    (['--device=toaster'], ['--device=toaster', '--device=cpu']),
    (['--dtype=int4'], ['--dtype=int4', 'bfloat16']),
    (['--block_size=5000'], ['train.bin', 'too few', 'block_size=5000']),
    (['--block_size=500'], ['val.bin', 'too few', 'block_size=500']),
    (['--init_from=resume', '--out_dir=nowhere'], ['there is no checkpoint', 'nowhere']),
    (['--init_from=resume', '--dataset=characters'], ['data/characters', 'another tokenizer', 'prepare_bin.py']),
    (['--init_from=folder', '--dataset=characters'], ['data/characters', '--tokenizer=folder']),
    (['--init_from=folder', '--block_size=0'], ['block_size=0']),
    (['--wandb_log'], ['--wandb_log', 'pip install wandb']),
    (['--out_dir=stories.txt'], ['stories.txt']),
]


@pytest.mark.parametrize(('arguments', 'words'), REFUSED_BY_TRAIN, ids=as_typed(REFUSED_BY_TRAIN))
def test_train_refuses(here, monkeypatch, arguments, words):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    out_dir = 'out' if '--init_from=resume' in arguments else 'new'
    arguments = ('config/small.py', f'--out_dir={out_dir}', '--max_iters=1', *arguments)
    assert_refuses('train.py', *arguments, words=words, cwd=here)


@pytest.mark.parametrize(
    ('file', 'damage', 'words'),
    [
        ('val.bin', None, ['val.bin', 'prepare_bin.py']),
        ('train.bin', b'\0', ['train.bin']),
        ('meta.json', b'{', ['meta.json']),
    ],
    ids=['no val.bin', 'half a token', 'no JSON'],
)
def test_train_refuses_damaged_data(here, file, damage, words):
    path = here / 'data' / 'stories' / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + damage)
    assert_refuses('train.py', 'config/small.py', '--out_dir=new', '--max_iters=20', words=words, cwd=here)


def test_train_refuses_tokens_that_the_model_does_not_have(here):
    (here / 'data' / 'stories' / 'meta.json').unlink()  # as nanoGPT leaves its data, without a word about the tokenizer
    with open(here / 'data' / 'stories' / 'train.bin', 'ab') as file:
        np.full(10, 50256, dtype=np.uint16).tofile(file)
    arguments = ('config/small.py', '--init_from=folder', '--out_dir=new')
    assert_refuses('train.py', *arguments, words=['train.bin', '50256'], cwd=here)


def test_out_dir_alone_asks_for_the_model_that_was_trained_there(here):
    named = run_script('sample.py', *RESUME, '--out_dir=out', '--max_new_tokens=5', cwd=here)
    alone = run_script('sample.py', '--out_dir=out', '--device=cpu', '--max_new_tokens=5', cwd=here)
    assert named.returncode == alone.returncode == 0
    assert alone.stdout == named.stdout
    assert_refuses('sample.py', '--out_dir=nowhere', words=['no checkpoint nowhere'], cwd=here)


def test_a_reduced_precision_is_named_beside_every_number(here):
    process = run_script('sample.py', *RESUME, '--dtype=bfloat16', '--max_new_tokens=5', cwd=here)
    numbers = [line for line in process.stdout.splitlines() if 'logprob' in line]
    assert len(numbers) == 2
    assert all('computed in bfloat16' in line for line in numbers)
    process = run_script('eval.py', *RESUME, '--eval_data=pairs.json', '--dtype=bfloat16', cwd=here)
    assert process.stdout.count('computed in bfloat16') == 2  # over the table and over the totals


# Looking ahead ------------------------------------------------------------------------------------------------------


def test_beams_are_printed_best_first_and_drawn_as_a_tree(here):
    settings = ('--start=Ann gave', '--beam_width=4', '--max_new_tokens=6', '--show_beams=True', '--plot_steps=4')
    printed = run_well('sample.py', *FOLDER, *settings, cwd=here)
    assert 'model (temperature 1, every token)' in printed
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    prompt = tokenizer.encode_prompt('Ann gave')
    sequences, logprobs = beam_search(model, torch.tensor([prompt]), 6, 4)
    pieces = [''.join(tokenizer.pieces(row[len(prompt) :])) for row in sequences.tolist()]
    assert re.findall(r'^ +\d  (.*)$', printed, re.MULTILINE) == pieces
    found = re.findall(r'logprob (\S+), probability (\S+), perplexity per token \S+ \(6 tokens\)', printed)
    assert [float(logprob) for logprob, _ in found] == pytest.approx(logprobs.tolist(), abs=1e-3)
    assert [float(prob) for _, prob in found] == pytest.approx(logprobs.exp().tolist(), rel=1e-3)
    (picture,) = (here / 'results').glob('folder-beams-ann-gave-*/beams.png')
    assert 'the first 4 steps' in printed
    assert imread(picture).shape[1] > 500


def test_the_most_probable_continuations_are_printed_with_their_proof(here):
    settings = ('--start=The fox', '--most_probable=3', '--max_new_tokens=3', '--budget=None')
    printed = run_well('sample.py', *FOLDER, *settings, cwd=here)
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    prompt = tokenizer.encode_prompt('The fox')
    sequences, logprobs, bound = most_probable(model, torch.tensor([prompt]), 3, 3)
    pieces = [''.join(tokenizer.pieces(row[len(prompt) :])) for row in sequences.tolist()]
    assert re.findall(r'^ +\d  (.*)$', printed, re.MULTILINE) == pieces
    found = [float(logprob) for logprob in re.findall(r'logprob (\S+), probability', printed)]
    assert found == pytest.approx(logprobs.tolist(), abs=1e-3)
    assert re.search(r'exact: [\d,]+ prefixes opened', printed)
    assert float(re.search(r'nothing unseen can exceed p = (\S+) ', printed)[1]) == pytest.approx(
        math.exp(bound), rel=1e-3
    )


@pytest.mark.parametrize(
    ('budget', 'opened'),
    [('1', '1 prefix'), ('1,100s', '1 prefix'), ('0s', '0 prefixes'), ('0MB', '0 prefixes')],
)
def test_a_spent_budget_is_told_of_with_the_gap_that_is_left(here, budget, opened):
    settings = ('--start=The fox', '--most_probable=2', '--max_new_tokens=30', f'--budget={budget}')
    printed = run_well('sample.py', *FOLDER, *settings, cwd=here)
    assert 'the likeliest so far (not proved)' in printed
    assert f'not proved: {opened} opened' in printed
    assert f'the budget ({budget}) is spent' in printed
    found = [float(prob) for prob in re.findall(r', probability (\S+),', printed)]
    assert found[0] <= float(re.search(r'nothing unseen can exceed p = (\S+) ', printed)[1]) <= 1


def test_what_was_computed_in_int8_is_exact_up_to_its_rounding(here):
    settings = ('--start=The fox', '--most_probable=2', '--max_new_tokens=2')
    if not fast.can_quantize(torch.ones(1)):
        pytest.skip('int8 needs an x86 CPU')
    assert 'exact (up to rounding, computed in int8): ' in run_well(
        'sample.py', *FOLDER, *settings, '--quantize=int8', cwd=here
    )
    assert 'exact (up to rounding, computed in bfloat16): ' in run_well(
        'sample.py', *FOLDER, *settings, '--dtype=bfloat16', cwd=here
    )


def test_settings_without_effect_are_told_of(here):
    for settings, name in (
        (('--most_probable=2', '--max_new_tokens=2', '--num_samples=3'), 'num_samples'),
        (('--beam_width=2', '--max_new_tokens=2', '--length_penalty=1.0'), 'length_penalty'),
        (('--max_new_tokens=2', '--budget=5s'), 'budget'),
    ):
        process = run_script('sample.py', *FOLDER, *settings, cwd=here)
        assert process.returncode == 0
        assert process.stderr == f'note: --{name} has no effect here\n'


def test_branches_are_what_the_search_went_through(here):
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    idx = torch.tensor([tokenizer.encode_prompt('The fox')])
    steps = list(beam_steps(model, idx, 6, 4, eos=5))
    _, finished = steps[-1]
    levels = sample.branches(steps, finished, tokenizer)
    assert len(levels) == len(steps)
    ends = {}  # (level, place) -> probability of all so far, by following the tree
    for number, level in enumerate(levels):
        for place, branch in enumerate(level):
            before = 1.0 if number == 0 else ends[number - 1, branch.parent]
            ends[number, place] = before * branch.prob
            assert ends[number, place] == pytest.approx(math.exp(branch.total), rel=1e-6)
        assert sum(branch.best for branch in level) <= 1
        assert all(branch.kept for branch in level if branch.best)
    assert max(ends.values()) >= math.exp(finished[0].logprob) * (1 - 1e-6)
    found = {round(branch.total, 9) for level in levels for branch in level if branch.kept}
    assert {round(beam.logprob, 9) for beam in finished} <= found


def test_ctrl_c_ends_a_search_with_what_it_has_found(here, monkeypatch, capsys):
    def interrupted(*arguments):
        yield from itertools.islice(search_steps(*arguments), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr('lm.search.search_steps', interrupted)
    call('sample.py', *FOLDER, '--start=The fox', '--most_probable=2', '--max_new_tokens=30', '--budget=None')
    printed = capsys.readouterr().out
    assert 'not proved: 1 prefix opened' in printed
    assert 'wait; interrupted' in printed
    assert 'nothing unseen can exceed' in printed


def test_with_stop_at_eot_continuations_of_all_lengths_compete(here):
    settings = ('--start=The fox', '--most_probable=200', '--max_new_tokens=3', '--stop_at_eot=True')
    printed = run_well('sample.py', *FOLDER, *settings, cwd=here)
    assert set(re.findall(r'\((\d) tokens\)', printed)) > {'3'}


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (('--beam_width=0',), ['--beam_width=0']),
        (('--most_probable=0',), ['--most_probable=0']),
        (('--beam_width=2', '--max_new_tokens=0'), ['--max_new_tokens=0']),
        (('--beam_width=2', '--most_probable=2'), ['--beam_width', '--most_probable']),
        (('--beam_width=2', '--fixed_response=x'), ['--beam_width', '--fixed_response']),
        (('--most_probable=2', '--show_probs=True'), ['--most_probable', '--show_probs']),
        (('--show_beams=True',), ['--beam_width']),
        (('--show_beams=True', '--beam_width=41'), ['--beam_width=41', '40']),
        (('--show_beams=True', '--beam_width=2', '--plot_steps=0'), ['--plot_steps=0']),
        (('--beam_width=2', '--length_penalty=1000.0'), ['--length_penalty=1000']),
        (('--beam_width=2', '--length_penalty=nan'), ['--length_penalty=nan']),
        (('--most_probable=2', '--budget=5s,6s'), ['--budget=5s,6s', 'twice']),
        (('--most_probable=2', '--budget=soon'), ["'soon'", '60s']),
        (('--top_p=0',), ['--top_p=0']),
        (('--top_p=1.5',), ['--top_p=1.5']),
    ],
)
def test_searches_that_cannot_be_meant_are_refused(here, settings, words):
    assert_runs_into_error('sample.py', *FOLDER, *settings, words=words, cwd=here)


# A page -------------------------------------------------------------------------------------------------------------


def embedded(path):
    """Return the numbers that a page holds."""
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_a_page_has_all_steps_of_all_samples(here):
    settings = ('--start=Ann gave', '--num_samples=2', '--max_new_tokens=25', '--show_probs=True', '--html=True')
    printed = run_well('sample.py', *FOLDER, *settings, cwd=here)
    (path,) = (here / 'results').glob('folder-ann-gave-*/page.html')
    assert str(path.relative_to(here)) in printed
    assert list(path.parent.iterdir()) == [path]  # instead of forty PNGs
    sides = [text['sides'][0] for text in embedded(path)['texts']]
    assert [len(side['pieces']) for side in sides] == [25, 25]
    found = {
        name: [float(logprob) for logprob in re.findall(rf'^{name} .*logprob (\S+),', printed, re.MULTILINE)]
        for name in ('model', 'sampler')
    }
    assert [side['logprob'] for side in sides] == pytest.approx(found['model'], abs=1e-4)
    assert [side['sampler_logprob'] for side in sides] == pytest.approx(found['sampler'], abs=1e-4)
