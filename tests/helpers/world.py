"""A folder as a person has it after preparing data and training on it, and ways to run the scripts there.

conftest.py makes the fixtures `world` and `here` of it.
"""

import contextlib
import json
import re
import warnings
from types import SimpleNamespace

import pytest
import torch

import configurator
import eval as eval_script
import prepare_bin
import sample
import train
from common.errors import UserError
from helpers.scripts import assert_friendly_error, run_script
from lm import checkpoint

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


def make_world(folder):
    """Prepare data in a folder, train on it and save a model there.

    Returns the folder and the finished processes of prepare_bin.py and train.py.
    """
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
            parameter.data *= 5  # six steps leave its distributions flat; this makes them steep
        checkpoint.save_pretrained(model, 'folder', tokenizer)
    return SimpleNamespace(folder=folder, prepared=prepared, trained=trained)


def call(script, *arguments):
    """Run a script in this process, which saves starting Python; return what its main returns."""
    main, settings_class = MAIN[script]
    return main(configurator.read(settings_class, [str(argument) for argument in arguments]))


def call_well(capsys, script, *arguments):
    """Run a script in this process and return what it printed; it must succeed without a warning."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        call(script, *arguments)
    return capsys.readouterr().out


def run_well(script, *arguments, cwd, env=None):
    """Run a script in a process of its own and return what it printed; it must succeed without a warning."""
    process = run_script(script, *arguments, cwd=cwd, env={'MPLBACKEND': 'Agg', **(env or {})})
    assert process.returncode == 0, process.stderr
    assert 'Traceback' not in process.stderr
    assert 'Warning' not in process.stderr
    return process.stdout


def contents(folder):
    """Return the bytes of every file in a folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def assert_runs_into_error(script, *arguments, words, cwd, env=None):
    """Check that a script fails with one line on stderr that contains these words, and changes no file."""
    before = contents(cwd)
    assert_friendly_error(run_script(script, *arguments, cwd=cwd, env=env), *words)
    assert contents(cwd) == before


def assert_refuses(script, *arguments, words, cwd):
    """Check the same within this process; return the line."""
    before = contents(cwd)
    with warnings.catch_warnings(), pytest.raises(UserError) as caught:
        warnings.simplefilter('error', UserWarning)  # they would be lines on stderr, too
        call(script, *arguments)
    message = str(caught.value)
    assert '\n' not in message
    assert '\x1b' not in message
    for word in words:
        assert word in message, message
    assert contents(cwd) == before
    return message


def as_typed(cases):
    """Return the ids of parametrised cases: their arguments, as typed."""
    return [' '.join(arguments) for arguments, _ in cases]


def samples_in(out):
    """Return (text, line of the sampler, line of the model) of each sample that sample.py printed."""
    text, *rest = out.split('\n---------------\n')
    found = []
    for part in rest:
        sampler, model, _, after = part.split('\n', 3)
        found.append((text, sampler, model))
        text = after
    return found


def number_after(name, line):
    """Return the number that follows a name in a line."""
    return float(re.search(rf'{name} +(-?[\d.]+(?:e-?\d+)?)', line)[1])


def rows_in(out):
    """Return (tokens, logprob, probability) of each row of the table that eval.py printed."""
    rows = re.findall(r'│ +(\d+) │.*│ +(-?[\d.]+) │ +(\S+) │$', out, flags=re.MULTILINE)
    return [(int(tokens), float(logprob), float(prob)) for tokens, logprob, prob in rows]


def logprob_by_transformers(folder, prompt, response, temperature=1.0):
    """Return the summed logprob of a response, computed without any code of this project."""
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

    tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
    prompt_ids, ids = tokenizer.encode(prompt).ids, tokenizer.encode(prompt + response).ids
    assert ids[: len(prompt_ids)] == prompt_ids
    with torch.no_grad():
        logits = GPT2LMHeadModel.from_pretrained(folder)(torch.tensor([ids])).logits[0]
    logprobs = (logits / temperature).log_softmax(-1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(len(prompt_ids), len(ids)))
