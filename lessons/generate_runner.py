"""Runs a student's code for check_generate.py, in a process of its own: nothing of this project is imported here.

    python lessons/generate_runner.py MODEL.py TASK.pt RESULTS.jsonl

TASK.pt holds weights and calls. The student's GPT gets the weights, so that its numbers can be compared, and its
`generate` is called. Designs differ, so this accepts a method or a function, arguments of other names, a fixed response
as a list or a tensor, and a probability as a float, a tensor or a list with a number for each token. What comes back is
written line by line; a line {"doing": ...} before each call tells what was going on if the process is stopped.
"""

import contextlib
import dataclasses
import importlib.util
import inspect
import json
import os
import re
import sys
import time
import traceback
from functools import partial

import torch

# How the arguments after idx and max_new_tokens may be called; what has no such name is taken in this order.
NAMES = {'temperature': 'temp', 'top_k': 'top_?k|^k$', 'fixed_response': 'fix|resp|forc|target|given'}
OTHERS = 'p$|seed|stop|eos|penalty|beam|num|device|verbose|generator|show|plot'  # what none of these is called
WAYS = {  # to hand over a fixed response
    'a list': list,
    'a tensor (n,)': torch.tensor,
    'a tensor (1, n)': lambda ids: torch.tensor([ids]),
}


class WrongShape(Exception):
    """What is missing or of another kind than agreed upon, in a sentence."""


class WrongFixed(Exception):
    """No way to hand over a fixed response worked; holds the error of each."""


def load_module(path):
    """Return the student's model.py as a module; what it imports is looked for beside it first."""
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120
    sys.path[0], sys.argv[:] = folder, [path]  # as if it had been started by itself
    os.chdir(folder)
    spec = importlib.util.spec_from_file_location('model', path)
    module = sys.modules['model'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_model(module, config, weights):
    """Return the student's GPT with these weights. Raises WrongShape if it does not take them."""
    missing = [name for name in ('GPT', 'GPTConfig') if not hasattr(module, name)]
    if missing:
        raise WrongShape(f'model.py has no {" and no ".join(missing)}, the names that nanoGPT uses')
    known = [field.name for field in dataclasses.fields(module.GPTConfig)]
    model = module.GPT(module.GPTConfig(**{name: value for name, value in config.items() if name in known}))
    own = dict(model.named_parameters())
    unlike = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    unlike += [name for name in weights if name not in model.state_dict()]
    if unlike:
        raise WrongShape(
            f"its GPT does not have nanoGPT's parameters, so it cannot be given weights: {', '.join(unlike[:5])}"
        )
    model.load_state_dict(weights, strict=False)  # buffers, such as a mask, stay
    return model.eval()


def find_generate(module, model):
    """Return the student's generate as a function of idx and so on: GPT's method, or a function in model.py.

    Beside nanoGPT's own there may be another, generate_with_probability say: the one with a fixed response counts.
    """
    names = sorted(name for name in {*dir(model), *dir(module)} if name.startswith('generate'))
    found = [
        getattr(place, name) for name in names for place in (model, module) if callable(getattr(place, name, None))
    ]
    if not found:
        raise WrongShape('model.py has no generate, neither as a method of GPT nor as a function')
    chosen = next((each for each in found if re.search(NAMES['fixed_response'], ' '.join(list_names(each)))), found[0])
    takes_ids = inspect.ismethod(chosen) or list_names(chosen)[0] in ('idx', 'ids', 'x')
    return chosen if takes_ids else partial(chosen, model)


def list_names(function):
    """Return the names of a function's parameters."""
    return [*inspect.signature(function).parameters, '']


def name_arguments(generate):
    """Return what the student calls temperature, top_k and fixed_response, as far as there are such arguments."""
    parameters = [
        parameter
        for parameter in inspect.signature(generate).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    free = [each.name for each in parameters[2:] if not isinstance(each.default, bool)]  # show_probs=False, for example
    found = {}
    for argument, pattern in NAMES.items():
        found[argument] = next((name for name in free if re.search(pattern, name.lower())), None)
        free = [name for name in free if name != found[argument]]
    free = [name for name in free if not re.search(OTHERS, name.lower())]
    for argument in [argument for argument in NAMES if found[argument] is None]:
        found[argument] = free.pop(0) if free else None
    return {argument: name for argument, name in found.items() if name is not None}


def read_value(value):
    """Return what stands for a probability as a list of floats, and what kind of thing it was."""
    kind = f'a {type(value).__name__}'
    if isinstance(value, torch.Tensor):
        value, kind = value.detach().double().flatten().tolist(), f'a tensor {tuple(value.shape)}'
    elif hasattr(value, 'tolist'):  # of numpy
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        numbers = [number for each in value for number in read_value(each)[0]]
        return numbers, f'{kind} with a number for each token' if len(numbers) > 1 else kind
    if isinstance(value, (bool, str, bytes)):  # float would take them
        raise TypeError(f'{value!r} is not a number')
    return [float(value)], kind


def read_ids(value):
    """Return what may be token ids as a list of ints, or None."""
    if isinstance(value, torch.Tensor):
        value = None if value.is_floating_point() or value.dtype == torch.bool else value.flatten().tolist()
    elif hasattr(value, 'tolist'):  # of numpy
        value = value.tolist()
    if not isinstance(value, list) or not value:
        return None
    value = value[0] if isinstance(value[0], list) else value  # of the first row of a batch
    return value if all(type(each) is int for each in value) else None


def read_outcome(outcome, prompt, n):
    """Return {ids, parts} of what generate returned: ids, and what may be their probability, in whichever order.

    prompt: its ids. n: how many more were asked for. parts: [numbers, kind] of each thing with one number, or n.
    """
    if isinstance(outcome, dict):
        outcome = tuple(outcome.values())
    things = list(outcome) if isinstance(outcome, (tuple, list)) else [outcome]
    kinds = ', '.join(type(thing).__name__ for thing in things)
    ids = {place: found for place, found in enumerate(map(read_ids, things)) if found}
    if not ids or len(things) < 2:
        raise WrongShape(f'generate must return the ids and their probability, (idx, prob); it returned: {kinds}')
    # Other ids may be there, too, say of the likeliest tokens.
    place = max(ids, key=lambda place: (ids[place][: len(prompt)] == prompt, len(ids[place]) == n))
    parts = []
    for thing in things[:place] + things[place + 1 :]:
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            parts.append(read_value(thing))
    if not parts:
        raise WrongShape(f'generate must return the probability as a number or a tensor; it returned: {kinds}')
    return {'ids': ids[place], 'parts': [part for part in parts if len(part[0]) in (1, n)] or parts[:1]}


def run_call(model, generate, names, ways, call):
    """Call generate as `call` says and return what came out; ways: how to try to hand over a fixed response."""
    arguments = {names[name]: call[name] for name in ('temperature', 'top_k') if name in names}
    prompt, n, fixed = call['prompt'], call['max_new_tokens'], call['fixed_response']
    changed = False

    def run_once(**more):
        nonlocal changed
        idx = torch.tensor([prompt])
        outcome = read_outcome(generate(idx, n, **arguments, **more), prompt, n)
        changed |= idx.tolist() != [prompt]
        return outcome

    def describe(outcome):
        return outcome | {'changed': changed, 'training': model.training}

    model.eval()
    torch.manual_seed(call['seed'])
    with torch.no_grad():
        if fixed is None:
            outcomes = [run_once() for _ in range(call['times'])]
            return describe(outcomes[0]) | {'last': [outcome['ids'][-1] for outcome in outcomes]}
        errors = {}
        for way in list(ways):
            try:
                outcome = run_once(**{names['fixed_response']: WAYS[way](fixed)})
            except Exception as error:
                errors[way] = error
                continue
            ways[:] = [way]  # and so from now on
            return describe(outcome)
        raise WrongFixed(errors)


def run_task(path, task, report):
    """Run all calls; `report` is called with a dict before and after each."""
    report({'doing': 'import'})
    module = load_module(path)
    report({'doing': 'build'})
    model = build_model(module, task['config'], task['weights'])
    report({'doing': 'forward'})
    with torch.no_grad():
        output = model(torch.tensor([task['text']]))
    logits = output[0] if isinstance(output, tuple) else output
    report({'logits': logits.reshape(-1, logits.shape[-1])[-1].double().tolist()})
    generate = find_generate(module, model)
    names, ways = name_arguments(generate), list(WAYS)
    report({'signature': str(inspect.signature(generate)), 'names': names})
    for call in task['calls']:
        if call['fixed_response'] is not None and 'fixed_response' not in names:
            continue
        report({'doing': call['name']})
        try:
            report({'call': call['name']} | run_call(model, generate, names, ways, call))
        except Exception as error:
            report({'call': call['name'], 'error': describe_error(error, path)})


def describe_error(error, path):
    """Return an exception in a line, with the last line of the student's code that led to it."""
    if isinstance(error, WrongShape):
        return str(error)
    if isinstance(error, WrongFixed):  # each error once, with the first way that led to it
        found = {describe_error(each, path): way for way, each in reversed(error.args[0].items())}
        return '; '.join(f'{text} (fixed_response was {way} of ids)' for text, way in reversed(found.items()))
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f' (line {own[-1].lineno}: {own[-1].line})' if own else ''
    return f'{type(error).__name__}: {error}{where}'


def main(path, task, results):
    """Run the task and write the results."""
    path = os.path.abspath(path)  # noqa: PTH100
    task = torch.load(task, weights_only=True)
    with open(results, 'a', encoding='utf-8') as file:

        def report(record):
            file.write(json.dumps(record | {'at': time.monotonic()}) + '\n')
            file.flush()

        try:
            run_task(path, task, report)
            report({'doing': 'done'})
        except BaseException as error:  # also sys.exit in their file
            report({'error': describe_error(error, path)})


if __name__ == '__main__':
    main(*sys.argv[1:])
    os._exit(0)  # a thread that their code has left running would keep this process alive
