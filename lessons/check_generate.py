"""Check a student's `generate`, which also returns how likely its response was, against this project's.

    python -m lessons.check_generate their_folder              a folder with their model.py, or the file itself

Their GPT, an extended nanoGPT, gets the weights of the story model, and their generate(idx, max_new_tokens,
temperature, top_k, fixed_response) is called as ours is: with fixed responses, with drawn ones, with a text longer than
the context. Their code runs in a process of its own, with a limit of time and memory, and what it prints is not shown.
That keeps a hanging or crashing program away from this one, but it is no sandbox: check only code that you would run.

Other designs are right, too: a method or a function, the probability or its logarithm, a float or a tensor, for all
tokens or for each. generate_calls.py has the calls, generate_findings.py judges what comes back, and for a wrong number
generate_mistakes.py looks for what it is instead. The exit code is 0 if all is right, 1 if something is wrong, and 2 if
it could not be checked.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `model` is ours, even if this is run in their folder

import torch
from rich.console import Console
from rich.table import Table

import configurator
from common.errors import UserError
from common.files import PROJECT, expand_path
from common.limits import limit_time_and_memory
from common.strings import show_invisible
from lessons.generate_calls import CALLS, STORY, Outcome
from lessons.generate_findings import Findings
from lm.checkpoint import load_model
from model import GPT

RUNNER = PROJECT / 'lessons' / 'generate_runner.py'
CONTEXT = 48  # tokens: the story model's context is cut to this, so that a text is soon longer
DOING = {
    'import': 'while model.py was imported',
    'build': 'while its GPT was made and given weights',
    'forward': 'while its GPT computed logits',
}
HINTS = {  # what to do about an error while model.py was imported
    'ModuleNotFoundError': '; install it here, or import it where it is used',
    'SyntaxError': '',
}
AT_IMPORT = '; what model.py does beside defining its classes belongs under if __name__ == "__main__":'
ENVIRONMENT = {
    'CUDA_VISIBLE_DEVICES': '',
    'MPLBACKEND': 'Agg',
    'PYTHONDONTWRITEBYTECODE': '1',
    'TORCH_COMPILE_DISABLE': '1',  # compiling takes minutes, and needs a compiler
}
OTHER_LOGITS = (
    'Their GPT itself, given the same weights, computes other logits than ours, so its probabilities cannot be '
    'compared. Look at forward, and at whether model.eval() turns dropout off; both nanoGPT and GPT-2 would be right.'
)
console = Console(width=None if sys.stdout.isatty() else 110, highlight=False, markup=False, emoji=False)


@dataclass
class Settings:
    """Check the generate in a student's model.py: python -m lessons.check_generate their_folder"""

    time_limit: float = 120.0  # seconds for all their code
    memory_limit: int = 4096  # MiB that it may take (on Linux)


# Their code, in a process of its own --------------------------------------------------------------------------------


def build_task(model, tokenizer, calls):
    """Return what generate_runner.py needs: weights, the shape of the model, a text, and the calls in ids."""
    calls = [call._asdict() | {'name': str(number)} for number, call in enumerate(calls)]
    for call in calls:
        prompt, response = tokenizer.encode_pair(call['prompt'], call.pop('response') or '')
        call |= {'prompt': prompt, 'fixed_response': response or None}
        call['max_new_tokens'] = len(response) or call['max_new_tokens']
    shape = {**vars(model.config), 'dropout': 0.2}  # if it is on, it shows
    text = tokenizer.encode_prompt(STORY)[:CONTEXT]
    return {'config': shape, 'weights': model.state_dict(), 'text': text, 'calls': calls}


def run_student(path, task, time_limit, memory_limit):
    """Run generate_runner.py; return its records, and why it ended before it was done, or None."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ('task.pt', 'results.jsonl')]
        torch.save(task, files[0])
        files[1].touch()
        environment = {**os.environ, **ENVIRONMENT}
        environment.pop('PYTHONPATH', None)  # or their imports could find this project
        silent, why = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.DEVNULL), None
        with limit_time_and_memory(60, memory_limit):  # which the new process inherits
            command = [sys.executable, RUNNER, path, *files]
            process = subprocess.Popen(command, **silent, env=environment, start_new_session=True)
        try:
            if process.wait(time_limit):
                why = f'it ended with exit code {process.returncode}'
        except subprocess.TimeoutExpired:
            why = f'it was stopped after {time_limit:g} seconds (--time_limit)'
        finally:
            stop(process)
        records = [json.loads(line) for line in files[1].read_text(encoding='utf-8').splitlines() if line[-1:] == '}']
    last = records[-1] if records else {}
    if last.get('doing') == 'done':
        return records, None  # however it ended after that
    if why is None and 'error' not in last:
        why = 'it ended the process by itself'
    return records, why


def stop(process):
    """End a process and all that it has started."""
    if hasattr(os, 'killpg'):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


# What came back ------------------------------------------------------------------------------------------------------


def check(path, time_limit=120.0, memory_limit=4096):
    """Return the Findings about the generate in a student's model.py.

    Raises UserError if it could not be checked: without a GPT, or if it cannot be imported or takes too long for that.
    """
    model, tokenizer, _ = load_model('tiny-stories', device='cpu')
    model.crop_block_size(CONTEXT)
    task = build_task(model.eval(), tokenizer, CALLS)
    records, why = run_student(path, task, time_limit, memory_limit)
    doing, found = None, {}
    for record in records:
        doing = record.get('doing', doing)
        found |= {} if 'call' in record else record
    why = why or found.get('error')
    if 'names' not in found:
        hint = HINTS.get(why.partition(':')[0], AT_IMPORT) if doing == 'import' else ''
        raise UserError(f'{path} could not be checked: {DOING.get(doing, "at its start")}, {why}{hint}')
    findings = Findings(choose_gelu(model, task['text'], found['logits']), tokenizer)
    findings.signature, findings.names = found['signature'], found['names']
    if findings.model is None:
        findings.add_wrong(OTHER_LOGITS)
        return findings
    if 'fixed_response' not in found['names']:
        findings.add_wrong('generate has no argument for a fixed response: fixed_response, a list of ids.')
    outcomes = []
    for record in records:
        if 'call' in record:
            given = task['calls'][int(record['call'])]
            call = CALLS[int(record['call'])]
            outcomes.append(Outcome(call, record, given['prompt'], given['max_new_tokens'], given['fixed_response']))
    if why:
        findings.add_wrong(describe_end(records, doing, why, time_limit))
    findings.judge(outcomes)
    return findings


def describe_end(records, doing, why, time_limit):
    """Return a sentence about why their code ended before all calls had come back, in the call `doing`."""
    last, done = CALLS[int(doing)].describe(), sum('call' in record for record in records)
    if 'was stopped' not in why:
        return f'generate ends everything: in {last}, {why}.'
    start, at = (next(each['at'] for each in list_ if 'doing' in each) for list_ in (records, records[::-1]))
    if done == 0 or at - start < time_limit / 2:  # most of the time went into one call
        return f'generate does not come back from {last}: {why}.'
    return f'It takes too long: {why} in {last}; {done} of {len(CALLS)} calls had come back. Give it more time.'


def choose_gelu(model, text, logits):
    """Return our model with the GELU, GPT-2's or nanoGPT's, that gives a student's logits after a text; None: neither.

    Between the two the logits of the story model differ by about 0.01.
    """
    differences = {}
    for gelu in ('tanh', 'none'):
        ours = GPT(model.config, gelu).eval()
        ours.load_state_dict(model.state_dict())
        with torch.no_grad():
            expected = ours(torch.tensor([text]))[0][0, -1].double()
        if len(logits) == len(expected):
            differences[(expected - torch.tensor(logits, dtype=torch.float64)).abs().max().item()] = ours
    closest = min(differences, default=math.inf)
    return differences[closest] if closest < 2e-3 else None


def print_findings(path, findings):
    """Print what was tried, what came out and what was expected, then what is wrong."""
    names = ''.join(
        f', {theirs}' if theirs == ours else f', {theirs} for {ours}' for ours, theirs in findings.names.items()
    )
    console.print(f'{path}\ngenerate{show_invisible(findings.signature)}, called with idx, max_new_tokens{names}\n')
    table = Table('', 'tried', 'theirs', 'ours', title='sampler probability of the response')
    for call, theirs, ours, mark in findings.rows:
        table.add_row(mark, call.describe(), show_invisible(theirs), ours)
    if findings.rows:
        console.print(table)
    for sentence in findings.notes:
        console.print(f'note: {show_invisible(sentence)}')
    for number, sentence in enumerate(findings.wrong, 1):
        console.print(f'{number}. {show_invisible(sentence)}')
    ending = f'{len(findings.wrong)} to look at' if findings.wrong else 'nothing is wrong'
    console.print(f'\ngenerate in {path}: {ending}')


def find_model(name):
    """Return the path of model.py in a folder, or of a .py file itself. Raises UserError if there is none."""
    path = expand_path(name)
    if path.suffix == '.py' and path.is_file():
        return path.resolve()
    if not path.is_dir():
        raise UserError(f'{path} is neither a folder nor a .py file; name the folder that has their model.py')
    if not (path / 'model.py').is_file():
        below = sorted(path.glob('*/model.py'))
        hint = f'; did you mean {below[0].parent}?' if below else ', the file in which nanoGPT has its generate'
        raise UserError(f'{path} has no model.py{hint}')
    return (path / 'model.py').resolve()


def main(name, settings):
    """Check, print, and exit with 1 if something is wrong."""
    for limit in ('time_limit', 'memory_limit'):
        if not getattr(settings, limit) > 0:
            raise UserError(f'--{limit}={getattr(settings, limit)}: it must be above 0')
    if name is None:
        raise UserError('name their folder first: python -m lessons.check_generate their_folder')
    path = find_model(name)
    findings = check(path, settings.time_limit, settings.memory_limit)
    print_findings(path, findings)
    sys.exit(1 if findings.wrong else 0)


if __name__ == '__main__':
    their_folder = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith('-') else None
    configurator.run(partial(main, their_folder), Settings)
