"""Function calling: how a chat model, which only writes text, comes to use Python functions.

    python -m lessons.tools                                     schemas, then a scripted model at work: needs no key
    python -m lessons.tools --provider=anthropic --stream=True --question='How long do 300 km take at 100 km/h?'

Along with a question the model gets a list of functions, each described by a JSON schema. Instead of an answer it may
write calls: names, and arguments as JSON. The program runs the calls and sends the results back, until the model
answers in words. All of that is built here: a schema made from a function's signature and docstring, a call whose
arguments are checked and converted to Python values, and the loop. (chat.py has the APIs of OpenAI and Anthropic.) What
to look for: no mistake of the model ends the loop. It goes back as a result, and the model tries again.
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
from common.strings import show_invisible
from lessons.chat import NoAnswerError, Result, ScriptedChat, connect_provider, draw_conversation, print_results
from lessons.problems import calculate


class Unit(enum.Enum):
    HOURS = 'hours'
    MINUTES = 'minutes'


@dataclass
class Leg:
    """Part of a journey.

    Args:
        kilometres: its length
        speed: in kilometres per hour
    """

    kilometres: float
    speed: float = 80.0


def travel_time(legs: list[Leg], unit: Unit = Unit.HOURS, pause: float | None = None) -> float:
    """Return how long a journey takes.

    Args:
        legs: its parts, in order
        unit: of the returned time
        pause: hours of rest between two parts
    """
    hours = sum(leg.kilometres / leg.speed for leg in legs) + (pause or 0) * (len(legs) - 1)
    return hours if unit is Unit.HOURS else 60 * hours


# From a function to its schema, and from JSON to its arguments -------------------------------------------------------

JSON_NAMES = {str: 'string', int: 'integer', float: 'number', bool: 'boolean', types.NoneType: 'null'}


def describe_function(function):
    """Return what a model is told about a function: name, description, and the schema of its parameters."""
    text = (docstring_parser.parse(inspect.getdoc(function) or '').description or '').strip()
    return {'name': function.__name__, 'description': text, 'parameters': make_schema(function, make_call_schema)}


def make_schema(subject, make):
    """Return the schema that `make` builds for a function or type, including all dataclasses that it refers to."""
    schema = make(subject, shared := {})
    by_name = {kind.__name__: of_kind for kind, of_kind in shared.items()}
    if len(by_name) < len(shared):
        raise TypeError(f'{subject} uses two dataclasses of the same name')
    return schema | ({'$defs': by_name} if by_name else {})


def make_call_schema(called, shared):
    """Return the schema of the arguments of a function or dataclass."""
    kinds, doc = typing.get_type_hints(called), docstring_parser.parse(inspect.getdoc(called) or '')
    described = {entry.arg_name: ' '.join((entry.description or '').split()) for entry in doc.params}
    properties, required = {}, []
    for name, parameter in inspect.signature(called).parameters.items():
        if name not in kinds or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f'{called.__name__}: {parameter} needs a type, and must accept its name as a keyword')
        properties[name] = make_type_schema(kinds[name], shared)
        if described.get(name):
            properties[name]['description'] = described[name]
        if parameter.default is parameter.empty:
            required.append(name)
        else:
            with suppress(TypeError, ValueError):  # a default that JSON cannot express still makes it optional
                properties[name]['default'] = to_json_value(parameter.default)
    return {'type': 'object', 'properties': properties, 'required': required, 'additionalProperties': False}


def make_type_schema(kind, shared):
    """Return the JSON schema (https://json-schema.org, draft 2020-12) of a type.

    shared: class -> schema. Each dataclass is described there once and referred to, so it may even contain itself.
    """
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return {}  # accepts everything
    if origin in JSON_NAMES:
        return {'type': JSON_NAMES[origin]}
    if origin in (typing.Union, types.UnionType):  # Optional[int] is one, and so is int | None
        return {'anyOf': [make_type_schema(part, shared) for part in parts]}
    if origin is list:
        return {'type': 'array', 'items': make_type_schema(parts[0] if parts else Any, shared)}
    if origin is dict and parts[:1] in ((), (str,)):
        return {'type': 'object', 'additionalProperties': make_type_schema(parts[1] if parts else Any, shared)}
    if origin is Literal or isinstance(kind, enum.EnumType):
        return {'enum': to_json_value(parts or list(kind))}
    if dataclasses.is_dataclass(kind):
        if kind not in shared:
            shared[kind] = {}  # registered before its fields, which may refer to it
            shared[kind] = make_call_schema(kind, shared)
        return {'$ref': f'#/$defs/{kind.__name__}'}
    raise TypeError(f'{kind}: JSON has str, int, float, bool, None, list, dict[str, ...], Literal, enums, dataclasses')


def to_json_value(value):
    """Convert a Python value to one that JSON can express. Raises TypeError or ValueError if there is none."""

    def convert(value):
        return value.value if isinstance(value, enum.Enum) else dataclasses.asdict(value)

    return json.loads(json.dumps(value, default=convert, allow_nan=False))


def call_with_json(called, values):
    """Call a function or dataclass with JSON values that fit its schema."""
    kinds = typing.get_type_hints(called)
    return called(**{name: from_json_value(kinds[name], value) for name, value in values.items()})


def from_json_value(kind, value):
    """Convert a JSON value that fits the schema of a type to a value of that type: the inverse of `to_json_value`."""
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # the first type that fits
        fits = (part for part in parts if Draft202012Validator(make_schema(part, make_type_schema)).is_valid(value))
        return from_json_value(next(fits), value)
    if origin is list and parts:
        return [from_json_value(parts[0], part) for part in value]
    if origin is dict and parts:
        return {key: from_json_value(parts[1], part) for key, part in value.items()}
    if dataclasses.is_dataclass(kind):
        return call_with_json(kind, value)
    return kind(value) if origin in (int, float) or isinstance(kind, enum.EnumType) else value  # in JSON, 3.0 is 3


# One call, then the loop --------------------------------------------------------------------------------------------


def run_call(call, functions):
    """Run a model's Call and return its Result, whatever happens."""
    by_name = {function.__name__: function for function in functions}
    try:
        if call.name not in by_name:
            raise LookupError(f'there is no function {call.name}, only {", ".join(by_name)}')
        values = json.loads(call.arguments or '{}') if isinstance(call.arguments, str) else call.arguments
        errors = Draft202012Validator(describe_function(by_name[call.name])['parameters']).iter_errors(values)
        if wrong := '; '.join(f'{error.json_path}: {error.message}' for error in errors):
            raise ValueError(f'wrong arguments: {wrong}')
        result = call_with_json(by_name[call.name], values)
        with suppress(TypeError, ValueError):  # if JSON cannot express it, the model gets Python's str
            result = result if isinstance(result, str) else json.dumps(to_json_value(result), ensure_ascii=False)
        return Result(call, str(result), is_error=False)
    except Exception as error:  # including the function's own: the model can read the message and correct itself
        return Result(call, f'{type(error).__name__}: {error}', is_error=True)


def answer_with_tools(chat, question, functions, max_turns=8, on_results=lambda results: None):
    """Return the model's answer in words, after running all calls that it makes on the way.

    chat: a Chat; its tools become the functions. max_turns: how many replies the model may write. on_results: called
    with the Results of each reply's calls. Raises NoAnswerError if the last allowed reply still contains calls.
    """
    chat.tools = [describe_function(function) for function in functions]
    chat.add_question(question)
    replies = 1
    while (reply := chat.get_reply()).calls:
        if replies == max_turns:  # the model would never see these results
            raise NoAnswerError(f'no answer in {max_turns} replies, only calls; try --max_turns={2 * max_turns}')
        results = [run_call(call, functions) for call in reply.calls]  # parallel calls are answered together
        on_results(results)
        chat.add_results(results)
        replies += 1
    return reply.text


# With a key, a model; without one, a script -------------------------------------------------------------------------
SCRIPT = [  # two wrong calls at once; better ones, and one to an unknown function; then an answer with the results
    ('', ('calculate', {'expression': '7 * (3 + 5'}), ('travel_time', {'legs': [{'km': 300}]})),
    ('', ('calculate', {'expression': '7 * 8'}), ('travel_time', {'legs': [{'kilometres': 300}]}), ('look_up', {})),
    ('7 * (3 + 5) is {0}, and 300 km take {1} hours.',),
]


@dataclass
class Settings:
    """Let a chat model call Python functions: a calculator, and one that computes how long a journey takes."""

    provider: str | None = None  # openai or anthropic, with its key in the environment; None: a script, no network
    model: str | None = None  # the provider's name for it (None: a small one)
    base_url: str | None = None  # of another server with the provider's API, perhaps on this computer
    question: str = 'What is 7 * (3 + 5)? And how long do 300 km take?'
    stream: bool = False  # print the answer while the model writes it
    max_turns: int = 8  # replies that the model may write, including the answer
    plot_dir: str = 'results/lessons'  # folder for tools.png, a picture of the conversation


def main(settings):
    """Print the schemas, then the conversation."""
    if settings.max_turns < 1:
        raise UserError(f'--max_turns={settings.max_turns}: the model needs at least 1 reply')
    if settings.provider is None and replace(settings, max_turns=8, plot_dir='') != Settings(plot_dir=''):
        raise UserError('without --provider a script plays the model, and it knows only its own question; set one')
    console, functions, turns = Console(highlight=False, soft_wrap=True), [calculate, travel_time], []

    def show_results(results):
        turns.append(results)
        print_results(console, results)

    server = settings.provider, settings.model, settings.base_url
    script = nullcontext(partial(ScriptedChat, SCRIPT, 'a script in place of a model'))
    with connect_provider(*server) if settings.provider else script as start_chat:
        for function in functions:
            print(inspect.getsource(function), 'becomes', sep='\n')
            console.print_json(data=describe_function(function))
        chat = start_chat(on_text=(lambda t: print(show_invisible(t), end='', flush=True)) if settings.stream else None)
        console.print(f'\n[bold]{escape(settings.question)}[/] (to {chat.model})')
        text = show_invisible(answer_with_tools(chat, settings.question, functions, settings.max_turns, show_results))
        print('' if settings.stream else text)
    draw_conversation(path := Path(settings.plot_dir) / 'tools.png', chat.model, settings.question, turns, text)
    print(f'the conversation as a picture: {path}')


if __name__ == '__main__':
    configurator.run(main, Settings)
