"""Runs a student's code for check_generate.py, in a process of its own: nothing of this project is imported here.

    python lessons/generate_runner.py MODEL.py TASK.pt RESULTS.jsonl

TASK.pt holds weights and calls. The student's GPT gets the weights, so that its numbers can be compared, and its
`generate` is called. Designs differ, so this accepts a method or a function, arguments of other names, a fixed response
as a list or a tensor, and a probability as a float, a tensor or a list with a number for each token. What comes back is
written line by line; a line {"doing": ...} before each call tells what was going on if the process is stopped.
"""

import dataclasses
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback

import torch

# How the arguments after idx and max_new_tokens may be called; what has no such name is taken in this order.
NAMES = {'temperature': 'temp', 'top_k': '^top|k$', 'fixed_response': 'fix|resp|forc|target|given'}
WAYS = {  # to hand over a fixed response
    'a list': list,
    'a tensor (n,)': torch.tensor,
    'a tensor (1, n)': lambda ids: torch.tensor([ids]),
}


class WrongShape(Exception):
    """What is missing or of another kind than agreed upon, in a sentence."""


def load_module(path):
    """Return the student's model.py as a module; what it imports is looked for beside it first."""
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120
    sys.path[0] = folder  # in place of the folder of this file
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
    """Return the student's generate as a function of idx and so on: GPT's method, or a function in model.py."""
    if hasattr(model, 'generate'):
        return model.generate
    if not hasattr(module, 'generate'):
        raise WrongShape('model.py has no generate, neither as a method of GPT nor as a function')
    first = next(iter(inspect.signature(module.generate).parameters))

    def generate(*arguments, **named):
        return module.generate(model, *arguments, **named)

    parameters = list(inspect.signature(module.generate).parameters.values())
    generate.__signature__ = inspect.Signature(parameters[1:] if first not in ('idx', 'ids', 'x') else parameters)
    return generate


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
    for argument in [argument for argument in NAMES if found[argument] is None]:
        found[argument] = free.pop(0) if free else None
    return {argument: name for argument, name in found.items() if name is not None}


def read_value(value):
    """Return what stands for a probability as a list of floats, and what kind of thing it was."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().flatten().tolist(), f'tensor {tuple(value.shape)}'
    if isinstance(value, (list, tuple)):
        return [number for each in value for number in read_value(each)[0]], f'list of {len(value)}'
    return [float(value)], type(value).__name__


def read_outcome(outcome):
    """Return {ids, value, kind} of what generate returned: ids and a probability, in whichever order."""
    parts = list(outcome) if isinstance(outcome, (tuple, list)) else [outcome]
    is_ids = [isinstance(part, torch.Tensor) and not part.is_floating_point() and part.numel() > 0 for part in parts]
    is_ids = [whole and part.dtype != torch.bool for whole, part in zip(is_ids, parts)]
    kinds = ', '.join(type(part).__name__ for part in parts)
    if True not in is_ids or len(parts) < 2:
        raise WrongShape(f'generate must return the ids and their probability, (idx, prob); it returned: {kinds}')
    ids = parts.pop(is_ids.index(True))
    for part in parts:  # there may be more, say charts
        try:
            value, kind = read_value(part)
        except (TypeError, ValueError, RuntimeError):
            continue
        return {'ids': ids.flatten().tolist(), 'value': value, 'kind': kind}
    raise WrongShape(f'generate must return the probability as a number or a tensor; it returned: {kinds}')


def run_call(generate, names, ways, call):
    """Call generate as `call` says and return what came out; ways: how to try to hand over a fixed response."""
    arguments = {names[name]: call[name] for name in ('temperature', 'top_k') if name in names}
    idx, fixed = torch.tensor([call['prompt']]), call['fixed_response']
    n = call['max_new_tokens']
    torch.manual_seed(call['seed'])
    with torch.no_grad():
        if fixed is None:
            outcomes = [read_outcome(generate(idx.clone(), n, **arguments)) for _ in range(call['times'])]
            return outcomes[0] | {'last': [outcome['ids'][-1] for outcome in outcomes]}
        first_error = None
        for way in list(ways):
            try:
                more = {names['fixed_response']: WAYS[way](fixed)}
                outcome = read_outcome(generate(idx.clone(), n, **arguments, **more))
            except Exception as error:
                first_error = first_error or error
                continue
            ways[:] = [way]  # and so from now on
            return outcome | {'way': way}
        raise first_error


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
            report({'call': call['name']} | run_call(generate, names, ways, call))
        except Exception as error:
            report({'call': call['name'], 'error': describe_error(error, path)})


def describe_error(error, path):
    """Return an exception in a line, with the last line of the student's code that led to it."""
    if isinstance(error, WrongShape):
        return str(error)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f' (line {own[-1].lineno}: {own[-1].line})' if own else ''
    return f'{type(error).__name__}: {error}{where}'


def main(path, task, results):
    """Run the task and write the results."""
    path = os.path.abspath(path)  # noqa: PTH100
    task = torch.load(task, weights_only=True)
    with open(results, 'a', encoding='utf-8') as file:

        def report(record):
            file.write(json.dumps(record) + '\n')
            file.flush()

        try:
            run_task(path, task, report)
            report({'doing': 'done'})
        except BaseException as error:  # also sys.exit in their file
            report({'error': describe_error(error, path)})


if __name__ == '__main__':
    main(*sys.argv[1:])
