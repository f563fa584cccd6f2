"""Function calling: how a chat model, which only writes text, comes to use Python functions.

    python -m lessons.tools                                     schemas, then a scripted model at work: needs no key
    python -m lessons.tools --provider=anthropic --stream=True --question='How long do 300 km take at 100 km/h?'

Beside a question the model gets a list of functions, each described by a JSON schema. Instead of an answer it may write
calls: names, and arguments as JSON. The program makes the calls and sends the results back, until the model answers in
words. All that takes is built here: a schema made from a function's signature and docstring, a call with its arguments
checked and turned into Python values, and the loop. (How a chat looks to OpenAI and to Anthropic is in chat.py.) What
to look for: nothing that the model gets wrong ends the loop. It is told of it, like any other result, and tries again.
"""

import dataclasses
import enum
import inspect
import json
import types
import typing
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from jsonschema import Draft202012Validator
from rich.console import Console
from rich.markup import escape

import configurator
from common.errors import UserError
from lessons.chat import Result, Scripted, connected, draw_conversation, print_results
from lessons.problems import calculate


class Unit(enum.Enum):
    HOURS = 'hours'
    MINUTES = 'minutes'


@dataclass
class Leg:
    """Part of a journey.

    Args:
        kilometres: how long it is
        speed: in kilometres an hour
    """

    kilometres: float
    speed: float = 80.0


def travel_time(legs: list[Leg], unit: Unit = Unit.HOURS, pause: float | None = None) -> float:
    """Return how long a journey takes.

    Args:
        legs: its parts, in order
        unit: of what is returned
        pause: hours of rest between two parts
    """
    hours = sum(leg.kilometres / leg.speed for leg in legs) + (pause or 0) * (len(legs) - 1)
    return hours if unit is Unit.HOURS else 60 * hours


# From a function to its schema, and from JSON to its arguments -------------------------------------------------------

JSON_NAMES = {str: 'string', int: 'integer', float: 'number', bool: 'boolean', types.NoneType: 'null'}


def describe(function):
    """Return what a model is told about a function: name, description, and the schema of its parameters."""
    text = (docstring_parser.parse(inspect.getdoc(function) or '').description or '').strip()
    return {'name': function.__name__, 'description': text, 'parameters': whole_schema(function, schema_of_call)}


def whole_schema(kind, make):
    """Return the schema that `make` makes of a function or a type, with all dataclasses that it refers to."""
    schema = make(kind, shared := {})
    by_name = {each.__name__: of for each, of in shared.items()}
    if len(by_name) < len(shared):
        raise TypeError(f'{kind} uses two dataclasses of the same name')
    return schema | ({'$defs': by_name} if by_name else {})


def schema_of_call(called, shared):
    """Return the schema of the arguments that a function, or a dataclass, is called with."""
    kinds, doc = typing.get_type_hints(called), docstring_parser.parse(inspect.getdoc(called) or '')
    described = {of.arg_name: ' '.join((of.description or '').split()) for of in doc.params}
    properties, required = {}, []
    for name, parameter in inspect.signature(called).parameters.items():
        if name not in kinds or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f'{called.__name__}: {parameter} must have a type and be given by its name')
        properties[name] = schema_of(kinds[name], shared)
        if described.get(name):
            properties[name]['description'] = described[name]
        if parameter.default is parameter.empty:
            required.append(name)
        else:
            with suppress(TypeError, ValueError):  # a default that JSON has no word for is still the default
                properties[name]['default'] = plain(parameter.default)
    return {'type': 'object', 'properties': properties, 'required': required, 'additionalProperties': False}


def schema_of(kind, shared):
    """Return the JSON schema (https://json-schema.org, draft 2020-12) of a type.

    shared: class -> schema. A dataclass is described there, once, and referred to, so that it may even hold itself.
    """
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return {}  # everything fits
    if origin in JSON_NAMES:
        return {'type': JSON_NAMES[origin]}
    if origin in (typing.Union, types.UnionType):  # Optional[int] is one, and so is int | None
        return {'anyOf': [schema_of(part, shared) for part in parts]}
    if origin is list:
        return {'type': 'array', 'items': schema_of(parts[0] if parts else Any, shared)}
    if origin is dict and parts[:1] in ((), (str,)):
        return {'type': 'object', 'additionalProperties': schema_of(parts[1] if parts else Any, shared)}
    if origin is Literal or isinstance(kind, enum.EnumType):
        return {'enum': plain(parts or list(kind))}
    if dataclasses.is_dataclass(kind):
        if kind not in shared:
            shared[kind] = {}  # known before its fields are looked at, among which it may be again
            shared[kind] = schema_of_call(kind, shared)
        return {'$ref': f'#/$defs/{kind.__name__}'}
    raise TypeError(f'{kind}: JSON has str, int, float, bool, None, list, dict[str, ...], Literal, enums, dataclasses')


def plain(value):
    """Return a Python value as JSON has it; TypeError or ValueError where JSON has nothing for it."""

    def of_object(value):
        return value.value if isinstance(value, enum.Enum) else dataclasses.asdict(value)

    return json.loads(json.dumps(value, default=of_object, allow_nan=False))


def call(called, values):
    """Call a function, or make a dataclass, with JSON values that fit its schema."""
    kinds = typing.get_type_hints(called)
    return called(**{name: to_python(kinds[name], value) for name, value in values.items()})


def to_python(kind, value):
    """Turn a JSON value that fits the schema of a type into a value of that type: `plain` backwards."""
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # the first that fits
        fits = (part for part in parts if Draft202012Validator(whole_schema(part, schema_of)).is_valid(value))
        return to_python(next(fits), value)
    if origin is list and parts:
        return [to_python(parts[0], part) for part in value]
    if origin is dict and parts:
        return {key: to_python(parts[1], part) for key, part in value.items()}
    if dataclasses.is_dataclass(kind):
        return call(kind, value)
    return kind(value) if origin in (int, float) or isinstance(kind, enum.EnumType) else value  # to JSON, 3.0 is 3


# One call, then the loop --------------------------------------------------------------------------------------------


def answered(wanted, functions):
    """Make the Call that a model wants and return its Result, whatever happens."""
    function = {function.__name__: function for function in functions}.get(wanted.name)
    try:
        if function is None:
            raise LookupError(f'there is no {wanted.name}, only {", ".join(each.__name__ for each in functions)}')
        values = json.loads(wanted.arguments or '{}') if isinstance(wanted.arguments, str) else wanted.arguments
        errors = Draft202012Validator(describe(function)['parameters']).iter_errors(values)
        if wrong := '; '.join(f'{error.json_path}: {error.message}' for error in errors):
            raise ValueError(f'wrong arguments: {wrong}')
        result = call(function, values)
        with suppress(TypeError, ValueError):  # what JSON has nothing for is told as Python writes it
            result = result if isinstance(result, str) else json.dumps(plain(result), ensure_ascii=False)
        return Result(wanted, str(result), is_error=False)
    except Exception as error:  # also what the function itself raises: the model can read it, and may know better
        return Result(wanted, f'{type(error).__name__}: {error}', is_error=True)


def ask(chat, question, functions, max_turns=8, watch=lambda results: None):
    """Return the model's answer in words, after whatever calls it makes on the way.

    chat: a Chat; its tools become the functions. max_turns: how many replies the model has. watch: is shown the Results
    of each reply's calls. Raises UserError where the last reply that is allowed is yet another call.
    """
    chat.tools = [describe(function) for function in functions]
    chat.write(question)
    replies = 1
    while (reply := chat.reply()).calls:
        if replies == max_turns:  # nobody would read what comes of these calls
            raise UserError(f'no answer in {max_turns} replies, only calls; try --max_turns={2 * max_turns}')
        results = [answered(wanted, functions) for wanted in reply.calls]  # parallel calls are answered together
        watch(results)
        chat.answer(results)
        replies += 1
    return reply.text


# With a key, a model; without one, a script -------------------------------------------------------------------------

SCRIPT = [  # two wrong calls at once; better ones, and one of nothing; then words around what came of them
    ('', ('calculate', {'expression': '7 * (3 + 5'}), ('travel_time', {'legs': [{'km': 300}]})),
    ('', ('calculate', {'expression': '7 * 8'}), ('travel_time', {'legs': [{'kilometres': 300}]}), ('look_up', {})),
    ('7 * (3 + 5) is {0}, and 300 km take {1} hours.',),
]


@dataclass
class Settings:
    """Let a chat model call Python functions: a calculator, and one that works out how long a journey takes."""

    provider: str | None = None  # openai or anthropic, its key in the environment; None: a script, no network
    model: str | None = None  # its name there (None: a small one)
    base_url: str | None = None  # of another server that speaks the provider's API, on this computer perhaps
    question: str = 'What is 7 * (3 + 5)? And how long do 300 km take?'
    stream: bool = False  # print the answer while it is written
    max_turns: int = 8  # replies that the model has, those with calls and the answer
    plot_dir: str = 'results/lessons'  # tools.png, a picture of the conversation, goes in here


def main(settings):
    """Print the schemas, then the conversation."""
    if settings.max_turns < 1:
        raise UserError(f'--max_turns={settings.max_turns}: the model must have at least 1 reply')
    if settings.provider is None and replace(settings, max_turns=8, plot_dir='') != Settings(plot_dir=''):
        raise UserError('without --provider a script plays the model, and it knows only its own question; name one')
    console, functions, turns = Console(highlight=False, soft_wrap=True), [calculate, travel_time], []

    def watch(results):
        turns.append(results)
        print_results(console, results)

    say = (lambda piece: print(piece, end='', flush=True)) if settings.stream else None
    script = nullcontext(partial(Scripted, SCRIPT, 'a script in place of a model'))
    with connected(settings.provider, settings.model, settings.base_url) if settings.provider else script as begin:
        for function in functions:
            print(inspect.getsource(function), 'becomes', sep='\n')
            console.print_json(data=describe(function))
        chat = begin(say=say)
        console.print(f'\n[bold]{escape(settings.question)}[/] (asked of {chat.model})')
        text = ask(chat, settings.question, functions, settings.max_turns, watch)
        print('' if settings.stream else text)
    draw_conversation(path := Path(settings.plot_dir) / 'tools.png', chat.model, settings.question, turns, text)
    print(f'the conversation as a picture: {path}')


if __name__ == '__main__':
    configurator.run(main, Settings)
