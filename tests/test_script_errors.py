"""Mistakes that people make, and what the scripts say: one line on stderr, exit code 2, no file changed."""

import json
import pickle
import sys
import time

import numpy as np
import pytest
import torch
from helpers.scripts import assert_friendly_error, run_script
from helpers.world import CHARACTERS, FOLDER, PAIRS, RESUME, as_typed, assert_refuses, assert_runs_into_error

# In a process of its own --------------------------------------------------------------------------------------------


def test_an_unknown_setting(here):
    assert_runs_into_error('sample.py', '--temprature=1', words=['--temprature', 'did you mean temperature?'], cwd=here)


def test_a_value_of_the_wrong_type(here):
    arguments = ('config/small.py', '--batch_size=many')
    assert_runs_into_error('train.py', *arguments, words=['--batch_size=many', 'int'], cwd=here)


def test_a_config_file_with_a_syntax_error(here):
    (here / 'broken.py').write_text('batch_size = = 3')
    words = ['broken.py', 'not Python', 'line 1']
    assert_refuses('train.py', 'broken.py', words=words, cwd=here)


def test_a_prompt_with_characters_that_the_model_lacks(here):
    words = ["'ß' (U+00DF)", "'é' (U+00E9)"]
    assert_refuses('sample.py', *CHARACTERS, '--start=Once é upon ß', words=words, cwd=here)


def test_no_checkpoint(here):
    words = ['there is no checkpoint', 'nowhere', '--out_dir', '--init_from=tiny-stories']
    assert_refuses('sample.py', '--init_from=resume', '--out_dir=nowhere', words=words, cwd=here)


def test_a_checkpoint_cut_short(here):
    with open(here / 'out' / 'ckpt.pt', 'r+b') as file:
        file.truncate(100_000)
    assert_refuses('sample.py', *RESUME, words=['ckpt.pt', 'truncated'], cwd=here)


def test_weights_cut_short(here):
    with open(here / 'folder' / 'model.safetensors', 'r+b') as file:
        file.truncate(50_000)
    words = ['model.safetensors', 'damaged']
    assert_refuses('eval.py', *FOLDER, '--eval_data=pairs.json', words=words, cwd=here)


def test_a_pair_without_a_response(here):
    (here / 'pairs.json').write_text(json.dumps([*PAIRS, {'prompt': 'Once'}]))
    words = ['pairs.json', 'pair 3', 'response', '--response_key']
    assert_refuses('eval.py', *FOLDER, '--eval_data=pairs.json', words=words, cwd=here)


def test_no_dataset(here):
    words = ['data/nothing/train.bin', 'python prepare_bin.py', '--dataset=nothing']
    arguments = ('config/small.py', '--dataset=nothing', '--out_dir=new')
    assert_refuses('train.py', *arguments, words=words, cwd=here)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--dataset=stories'], ['--input=', '--dataset=']),
        (['--input=nowhere.txt', '--dataset=stories'], ['nowhere.txt', 'No such file']),
        (
            ['--input=latin1.txt', '--dataset=stories', '--tokenizer=tiny'],
            ['latin1.txt', 'not UTF-8', 'byte 19', 'iconv'],
        ),
        (['--input=empty.txt', '--dataset=stories', '--tokenizer=tiny'], ['no text', 'empty.txt']),
        (['--input=stories.txt,accents.txt', '--dataset=stories', '--tokenizer=data/characters'], ["'Ç' (U+00C7)"]),
    ],
    ids=['no input', 'no file', 'not UTF-8', 'empty', 'unknown characters'],
)
def test_text_that_cannot_be_prepared(here, arguments, words):
    assert_runs_into_error('prepare_bin.py', *arguments, words=words, cwd=here)


@pytest.mark.slow
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
    (['--start=FILE:out'], ['FILE:out', 'folder']),
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


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (None, ['pairs.json', 'No such file']),
        ('', ['pairs.json', 'no pairs']),
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
        ([*CHARACTERS, '--fixed_response=A'], ['prompt is empty', 'no other to score']),
    ],
    ids=['setting', 'temperature', 'number', 'file', 'characters', 'prompt'],
)
def test_eval_refuses(here, arguments, words):
    assert_refuses('eval.py', *FOLDER, *arguments, words=words, cwd=here)


class Intruder:
    """Creates a file when it is unpickled."""

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
    assert 'weights_only' not in message  # turning that off would run the code


@pytest.mark.parametrize(
    'what',
    [b'', b'hello', pickle.dumps([1]), ['a list'], {'weights': torch.zeros(2)}, {'model': 3, 'model_args': {}}],
    ids=['empty', 'text', 'pickle', 'list', 'weights', 'number'],
)
def test_a_file_that_is_not_a_checkpoint(here, what):
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
        ({'model_type': 'llama'}, ['folder', 'more layers than there are weights']),
        ({'n_layer': 3}, ['folder', 'lacks weights']),
        ({'n_embd': 64}, ['folder', '(300, 32)', '(300, 64)']),
        ({'n_head': 0}, ['folder', 'n_head is 0']),
        ({'activation_function': 'rexlu'}, ['folder', "'rexlu'"]),
    ],
    ids=['missing', 'model_type', 'n_layer', 'n_embd', 'n_head', 'activation'],
)
def test_a_damaged_model_folder(here, change, words):
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
    (
        ['--init_from=resume', '--dataset=characters'],
        ['data/characters', 'another tokenizer', 'resume with --dataset=stories', 'prepare_bin.py'],
    ),
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
    (here / 'data' / 'stories' / 'meta.json').unlink()  # nanoGPT's data does not name its tokenizer
    with open(here / 'data' / 'stories' / 'train.bin', 'ab') as file:
        np.full(10, 50256, dtype=np.uint16).tofile(file)
    arguments = ('config/small.py', '--init_from=folder', '--out_dir=new')
    assert_refuses('train.py', *arguments, words=['train.bin', '50256'], cwd=here)
