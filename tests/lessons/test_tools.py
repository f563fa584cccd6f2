"""lessons/tools.py: schemas are valid and say what a function takes; loops run against a server of both APIs."""

import dataclasses
import enum
import http.server
import itertools
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

import pytest
from helpers.scripts import assert_friendly_error, run_lesson
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from matplotlib.image import imread
from test_arithmetic import problems_of

import configurator
from common.errors import UserError
from lessons import arithmetic, tools
from lessons.arithmetic import oracle, writer
from lessons.chat import Call, connected
from lessons.problems import calculate
from lessons.tools import answered, ask, describe, plain, to_python

# Functions to describe ------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 'red'
    BLUE = 'blue'


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@dataclass
class Point:
    """A place.

    Attributes:
        x: to the right
        y: up
    """

    x: float
    y: float = 0.0


@dataclass
class Shape:
    name: str
    corners: list[Point]
    colour: Colour = Colour.RED
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class Tree:
    value: int
    children: 'list[Tree]' = field(default_factory=list)


def rich(
    count: int,
    shape: Shape,
    tree: Tree,
    ratio: float = 0.5,
    exact: bool = False,
    mode: Literal['fast', 'good', 3, None] = 'good',
    size: Size = Size.LARGE,
    colours: list[Colour] = (Colour.RED,),
    origin: Point | None = None,
    label: Optional[str] = None,  # noqa: UP045
    either: Union[int, str, list[Point]] = 1,  # noqa: UP007
    sizes: dict[str, Size] | None = None,
    anything: Any = None,
    some: list = (),
    *,
    last: Point = Point(1.0, 2.0),  # noqa: B008
) -> str:
    """Take everything.

    More of it, on
    two lines.

    Args:
        count: how many,
            on two lines
        shape (Shape): what it looks like
        last: the last one

    Returns:
        a text
    """
    return repr((count, shape, tree, ratio, exact, mode, size, colours, origin, label, either, sizes, anything, last))


MINIMAL = {'count': 1, 'shape': {'name': 'a', 'corners': []}, 'tree': {'value': 1}}


def is_valid(values, function=rich):
    return Draft202012Validator(describe(function)['parameters']).is_valid(values)


# Schemas --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('function', [rich, calculate, tools.travel_time])
def test_schemas_are_valid_and_json(function):
    description = describe(function)
    Draft202012Validator.check_schema(description['parameters'])
    assert json.loads(json.dumps(description)) == description
    assert re.fullmatch(r'[a-zA-Z0-9_-]{1,64}', description['name'])  # what both APIs allow


def test_a_schema_word_for_word():
    assert describe(tools.travel_time) == {
        'name': 'travel_time',
        'description': 'Return how long a journey takes.',
        'parameters': {
            'type': 'object',
            'properties': {
                'legs': {'type': 'array', 'items': {'$ref': '#/$defs/Leg'}, 'description': 'its parts, in order'},
                'unit': {'enum': ['hours', 'minutes'], 'description': 'of what is returned', 'default': 'hours'},
                'pause': {
                    'anyOf': [{'type': 'number'}, {'type': 'null'}],
                    'description': 'hours of rest between two parts',
                    'default': None,
                },
            },
            'required': ['legs'],
            'additionalProperties': False,
            '$defs': {
                'Leg': {
                    'type': 'object',
                    'properties': {
                        'kilometres': {'type': 'number', 'description': 'how long it is'},
                        'speed': {'type': 'number', 'description': 'in kilometres an hour', 'default': 80.0},
                    },
                    'required': ['kilometres'],
                    'additionalProperties': False,
                }
            },
        },
    }


def test_descriptions_defaults_and_what_is_required():
    description = describe(rich)
    properties = description['parameters']['properties']
    assert description['description'] == 'Take everything.\n\nMore of it, on\ntwo lines.'
    assert properties['count']['description'] == 'how many, on two lines'
    assert properties['shape']['description'] == 'what it looks like'
    assert 'description' not in properties['tree']
    assert description['parameters']['required'] == ['count', 'shape', 'tree']
    defaults = {name: schema['default'] for name, schema in properties.items() if 'default' in schema}
    assert defaults == {
        'ratio': 0.5,
        'exact': False,
        'mode': 'good',
        'size': 2,
        'colours': ['red'],
        'origin': None,
        'label': None,
        'either': 1,
        'sizes': None,
        'anything': None,
        'some': [],
        'last': {'x': 1.0, 'y': 2.0},
    }
    of_shape = description['parameters']['$defs']['Shape']
    assert of_shape['required'] == ['name', 'corners']  # notes has a default, though JSON cannot tell which
    assert of_shape['properties']['colour'] == {'enum': ['red', 'blue'], 'default': 'red'}
    assert description['parameters']['$defs']['Point']['properties']['y']['description'] == 'up'


@pytest.mark.parametrize(
    'text',
    [
        'Say it.\n\nArgs:\n    word: what to say',
        'Say it.\n\n:param word: what to say',
        'Say it.\n\nParameters\n----------\nword : str\n    what to say',
    ],
    ids=['google', 'rest', 'numpy'],
)
def test_docstrings_of_any_common_style(text):
    def say(word: str):
        pass

    say.__doc__ = text
    description = describe(say)
    assert description['description'] == 'Say it.'
    assert description['parameters']['properties']['word']['description'] == 'what to say'


def test_a_function_without_parameters_or_docstring():
    def nothing():
        pass

    parameters = {'type': 'object', 'properties': {}, 'required': [], 'additionalProperties': False}
    assert describe(nothing) == {'name': 'nothing', 'description': '', 'parameters': parameters}


def test_defaults_that_json_has_no_word_for_are_left_out():
    def odd(a: float = float('inf'), b: Any = object(), c: int = 3):  # noqa: B008
        pass

    parameters = describe(odd)['parameters']
    assert parameters['required'] == []
    assert [name for name, schema in parameters['properties'].items() if 'default' in schema] == ['c']


def test_what_cannot_be_described_is_named():
    def untyped(a):
        pass

    def many(*numbers: int):
        pass

    def positional(a: int, /):
        pass

    def binary(a: bytes):
        pass

    def keyed(a: dict[int, str]):
        pass

    for function, word in ((untyped, 'a'), (many, 'numbers'), (positional, 'a'), (binary, 'bytes'), (keyed, 'dict')):
        with pytest.raises(TypeError, match=word):
            describe(function)


def test_two_dataclasses_of_one_name_are_not_mixed_up():
    other = dataclasses.make_dataclass('Point', [('z', int)])

    def both(a: Point, b: other):
        pass

    with pytest.raises(TypeError, match='same name'):
        describe(both)


# Values ---------------------------------------------------------------------------------------------------------------


WRONG = {
    'missing': lambda values: values.pop('count'),
    'unknown': lambda values: values.update(counts=2),
    'a text for a number': lambda values: values.update(count='1'),
    'a fraction': lambda values: values.update(count=1.5),
    'a truth value for a number': lambda values: values.update(count=True),
    'a number for a truth value': lambda values: values.update(exact=1),
    'null where nothing says so': lambda values: values.update(ratio=None),
    'not in the enum': lambda values: values.update(colours=['green']),
    'not in the Literal': lambda values: values.update(mode='bad'),
    'missing inside': lambda values: values['shape'].pop('name'),
    'unknown inside': lambda values: values['shape'].update(size=1),
    'wrong deep inside': lambda values: values['shape'].update(corners=[{'x': 1}, {'x': 'two'}]),
    'wrong in a tree': lambda values: values['tree'].update(children=[{'value': 1, 'children': [{}]}]),
    'none of a union': lambda values: values.update(either=1.5),
    'not an object': lambda values: values.update(sizes=[1]),
}


@pytest.mark.parametrize('spoil', WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_before_the_call(spoil):
    values = json.loads(json.dumps(MINIMAL))
    assert is_valid(values)
    spoil(values)
    assert not is_valid(values)
    result = answered(Call('1', 'rich', values), [rich])
    assert result.is_error and 'wrong arguments' in result.text


def test_all_that_is_wrong_is_told_with_its_place():
    values = {'legs': [{'kilometres': 1}, {'kilometres': 'far', 'sped': 3}], 'unit': 'years'}
    text = answered(Call('1', 'travel_time', json.dumps(values)), [tools.travel_time]).text
    assert all(word in text for word in ('$.legs[1].kilometres', "'far'", 'sped', '$.unit', 'years'))


def test_a_function_gets_python_values():
    seen = {}

    def record(
        shape: Shape,
        tree: Tree,
        size: Size,
        ratio: float,
        count: int,
        either: Point | int | None,
        more: dict[str, Point],
    ):
        seen.update(locals())

    values = {
        'shape': {'name': 'a', 'corners': [{'x': 1}, {'x': 2, 'y': 3}], 'colour': 'blue'},
        'tree': {'value': 1, 'children': [{'value': 2, 'children': [{'value': 3}]}]},
        'size': 1,
        'ratio': 2,
        'count': 3.0,
        'either': {'x': 1},
        'more': {'a': {'x': 1}},
    }
    assert not answered(Call('1', 'record', values), [record]).is_error
    assert seen['shape'] == Shape('a', [Point(1.0), Point(2.0, 3.0)], Colour.BLUE)
    assert seen['tree'] == Tree(1, [Tree(2, [Tree(3)])])
    assert seen['size'] is Size.SMALL
    assert seen['either'] == Point(1.0) and seen['more'] == {'a': Point(1.0)}
    assert type(seen['ratio']) is float and type(seen['count']) is int
    assert type(seen['shape'].corners[0].x) is float


POINTS = st.builds(Point, st.floats(allow_nan=False, allow_infinity=False), st.integers(-9, 9).map(float))
TREES = st.recursive(st.builds(Tree, st.integers()), lambda trees: st.builds(Tree, st.integers(), st.lists(trees)))
SHAPES = st.builds(Shape, st.text(), st.lists(POINTS), st.sampled_from(Colour), st.dictionaries(st.text(), st.text()))
KINDS = [
    (Shape, SHAPES),
    (Tree, TREES),
    (Point | None, st.none() | POINTS),
    (dict[str, list[Size]], st.dictionaries(st.text(), st.lists(st.sampled_from(Size)))),
    (Literal['a', 2, None], st.sampled_from(['a', 2, None])),
    (int | str | list[Tree] | bool, st.integers() | st.text() | st.lists(TREES) | st.booleans()),
]


@pytest.mark.parametrize(('kind', 'values'), KINDS, ids=[str(kind) for kind, _ in KINDS])
def test_to_json_and_back_is_the_same_value(kind, values):
    schema = tools.whole_schema(kind, tools.schema_of)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)

    @given(values)
    @settings(max_examples=30, deadline=None)
    def holds(value):
        written = plain(value)
        assert validator.is_valid(written)
        back = to_python(kind, json.loads(json.dumps(written)))
        assert back == value and type(back) is type(value)

    holds()


def raises(kind: Literal['value', 'key', 'os', 'stop']) -> str:
    """Fail."""
    raise {'value': ValueError('too blue'), 'key': KeyError('x'), 'os': OSError(2, 'gone'), 'stop': StopIteration()}[
        kind
    ]


@pytest.mark.parametrize(
    ('name', 'arguments', 'words'),
    [
        ('look_up', '{}', ['look_up', 'raises', 'rich']),
        ('raises', '{"kind": "value"}', ['ValueError', 'too blue']),
        ('raises', {'kind': 'key'}, ['KeyError', 'x']),
        ('raises', {'kind': 'os'}, ['FileNotFoundError', 'gone']),
        ('raises', {'kind': 'stop'}, ['StopIteration']),
        ('raises', '{"kind": "val', ['JSONDecodeError']),
        ('raises', '["value"]', ['wrong arguments', 'object']),
        ('raises', 'null', ['wrong arguments', 'object']),
        ('raises', '', ['wrong arguments', 'kind']),
        ('calculate', {'expression': '1 / 0'}, ['ZeroDivisionError']),
        ('calculate', {'expression': '9 ** 9 ** 9'}, ['too large']),
        ('calculate', {'expression': '(9 ** 3000) * (9 ** 3000)'}, ['digits']),
        ('calculate', {'expression': '-' * 999 + '1'}, ['Error']),
    ],
)
def test_whatever_goes_wrong_is_a_result(name, arguments, words):
    result = answered(Call('7', name, arguments), [raises, rich, calculate])
    assert result.is_error and result.call.id == '7'
    assert all(word in result.text for word in words), result.text


@pytest.mark.parametrize(
    ('returned', 'text'),
    [
        ('as it is: ü', 'as it is: ü'),
        (Shape('ü', [Point(1.0)]), '{"name": "ü", "corners": [{"x": 1.0, "y": 0.0}], "colour": "red", "notes": {}}'),
        ([Colour.RED, None, True], '["red", null, true]'),
        ({1, 2}, '{1, 2}'),  # JSON has no sets
        (float('nan'), 'nan'),
        (None, 'null'),
    ],
)
def test_results_are_text(returned, text):
    def give() -> Any:
        return returned

    assert answered(Call('1', 'give', ''), [give])[1:] == (text, False)


# A server that speaks both APIs ---------------------------------------------------------------------------------------


def openai_shape(reply, stream):
    """Return what /v1/chat/completions sends: a chat.completion, or the chunks of one."""
    calls = [
        {'id': id, 'type': 'function', 'function': {'name': name, 'arguments': arguments}}
        for id, name, arguments in reply['calls']
    ]
    reason = reply['reason'] or ('tool_calls' if calls else 'stop')
    head = {'id': 'chatcmpl-1', 'created': 1, 'model': 'm', 'object': 'chat.completion'}
    usage = {'prompt_tokens': 5, 'completion_tokens': 7, 'total_tokens': 12}
    if not stream:
        message = {'role': 'assistant', 'content': reply['text'] or None, 'refusal': None, 'annotations': []}
        message |= {'tool_calls': calls} if calls else {}
        choice = {'index': 0, 'message': message, 'logprobs': None, 'finish_reason': reason}
        return {**head, 'choices': [choice], 'usage': usage}
    deltas = [{'role': 'assistant', 'content': None if calls else '', 'refusal': None}]
    deltas += [{'content': piece} for piece in cut(reply['text'])]
    for index, call in enumerate(calls):
        deltas.append({'tool_calls': [{'index': index, **call, 'function': {**call['function'], 'arguments': ''}}]})
    pieces = [cut(call['function']['arguments']) for call in calls]
    for row in itertools.zip_longest(*pieces):  # parallel calls interleaved: only their index tells them apart
        for index, piece in enumerate(row):
            if piece is not None:
                deltas.append({'tool_calls': [{'index': index, 'function': {'arguments': piece}}]})
    chunks = [{'index': 0, 'delta': delta, 'logprobs': None, 'finish_reason': None} for delta in deltas]
    chunks.append({'index': 0, 'delta': {}, 'logprobs': None, 'finish_reason': reason})
    head['object'] = 'chat.completion.chunk'
    return [
        *((None, {**head, 'choices': [chunk]}) for chunk in chunks),
        *[(None, {**head, 'choices': [], 'usage': usage}), (None, '[DONE]')],
    ]


def anthropic_shape(reply, stream):
    """Return what /v1/messages sends: a message, or the events of one."""
    blocks = [{'type': 'thinking', 'thinking': 'Hm.', 'signature': 'c2lnbmVk'}]
    blocks += [{'type': 'text', 'text': reply['text']}] if reply['text'] else []
    blocks += [
        {'type': 'tool_use', 'id': id, 'name': name, 'input': json.loads(arguments)}
        for id, name, arguments in reply['calls']
    ]
    reason = {'length': 'max_tokens', None: 'tool_use' if reply['calls'] else 'end_turn'}[reply['reason']]
    message = {'id': 'msg_1', 'type': 'message', 'role': 'assistant', 'model': 'm', 'content': blocks}
    message |= {'stop_reason': reason, 'stop_sequence': None, 'usage': {'input_tokens': 5, 'output_tokens': 7}}
    if not stream:
        return message
    events = [{'type': 'message_start', 'message': {**message, 'content': [], 'stop_reason': None}}, {'type': 'ping'}]
    for index, block in enumerate(blocks):
        empty = {'thinking': {'thinking': '', 'signature': ''}, 'text': {'text': ''}, 'tool_use': {'input': {}}}
        start = block | empty[block['type']]
        if block['type'] == 'thinking':
            deltas = [{'type': 'thinking_delta', 'thinking': piece} for piece in cut(block['thinking'])]
            deltas.append({'type': 'signature_delta', 'signature': block['signature']})
        elif block['type'] == 'text':
            deltas = [{'type': 'text_delta', 'text': piece} for piece in cut(block['text'])]
        else:
            pieces = ['', *cut(json.dumps(block['input']))]
            deltas = [{'type': 'input_json_delta', 'partial_json': piece} for piece in pieces]
        events.append({'type': 'content_block_start', 'index': index, 'content_block': start})
        events += [{'type': 'content_block_delta', 'index': index, 'delta': delta} for delta in deltas]
        events.append({'type': 'content_block_stop', 'index': index})
    delta = {'stop_reason': reason, 'stop_sequence': None}
    events += [{'type': 'message_delta', 'delta': delta, 'usage': {'output_tokens': 7}}, {'type': 'message_stop'}]
    return [(event['type'], event) for event in events]


def cut(text, size=3):
    return [text[start : start + size] for start in range(0, len(text), size)]


def check_openai(body):
    """Raise AssertionError where OpenAI would answer 400."""
    assert body.keys() <= {'model', 'messages', 'max_completion_tokens', 'tools', 'stream'}
    waiting = []
    for message in body['messages']:
        if message['role'] == 'tool':
            assert message.keys() == {'role', 'tool_call_id', 'content'} and isinstance(message['content'], str)
            waiting.remove(message['tool_call_id'])
            continue
        assert not waiting, 'tool_calls must be followed by an answer to each'
        assert message.keys() <= {'role', 'content', 'tool_calls'}
        for call in message.get('tool_calls', []):
            assert call.keys() == {'id', 'type', 'function'} and call['function'].keys() == {'name', 'arguments'}
            assert isinstance(call['function']['arguments'], str)
            waiting.append(call['id'])
        assert message['role'] == 'user' or message.get('tool_calls') or isinstance(message['content'], str)
    assert not waiting
    assert body.get('tools') != []
    for tool in body.get('tools', []):
        assert tool.keys() == {'type', 'function'}
        assert tool['function'].keys() == {'name', 'description', 'parameters'}
        Draft202012Validator.check_schema(tool['function']['parameters'])


def check_anthropic(body):
    """Raise AssertionError where Anthropic would answer 400."""
    assert body.keys() <= {'model', 'messages', 'max_tokens', 'tools', 'stream'}
    roles = [message['role'] for message in body['messages']]
    assert roles == ['user', 'assistant'] * (len(roles) // 2) + ['user']
    waiting = set()
    for message in body['messages']:
        assert message['content']
        blocks = [] if isinstance(message['content'], str) else message['content']
        results = {block['tool_use_id'] for block in blocks if block['type'] == 'tool_result'}
        assert message['role'] == 'assistant' or results == waiting, 'all results belong into the next message'
        waiting = {block['id'] for block in blocks if block['type'] == 'tool_use'}
        for block in blocks:
            keys = {
                'text': {'type', 'text'},
                'thinking': {'type', 'thinking', 'signature'},
                'tool_use': {'type', 'id', 'name', 'input'},
                'tool_result': {'type', 'tool_use_id', 'content', 'is_error'},
            }[block['type']]
            assert {key for key, value in block.items() if value is not None} == keys, block
            assert block['type'] != 'thinking' or block['signature'] == 'c2lnbmVk'
    for tool in body.get('tools', []):
        assert tool.keys() == {'name', 'description', 'input_schema'}
        Draft202012Validator.check_schema(tool['input_schema'])


class Server(http.server.ThreadingHTTPServer):
    """Says what `script` holds, in the shape of the API that is asked; keeps the bodies of all requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.script, self.bodies, self.keys = [], [], []

    def url(self, provider):
        return f'http://127.0.0.1:{self.server_port}' + ('/v1' if provider == 'openai' else '')


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.bodies.append(body)
        of_openai = self.path == '/v1/chat/completions'
        self.server.keys.append(self.headers['Authorization'].removeprefix('Bearer '))
        assert of_openai or (self.path == '/v1/messages' and self.headers['anthropic-version'])
        try:
            (check_openai if of_openai else check_anthropic)(body)
        except (AssertionError, KeyError, ValueError) as error:
            return self.refuse(400, f'bad request: {error!r}', of_openai)
        reply = self.server.script(body) if callable(self.server.script) else self.server.script.pop(0)
        if reply == 'half a stream':
            return self.send(200, 'text/event-stream', 'data: {"id"', length=1000)
        if isinstance(reply, int):
            return self.refuse(reply, 'not today', of_openai)
        stream = body.get('stream', False)
        shape = (openai_shape if of_openai else anthropic_shape)(reply, stream)
        if not stream:
            return self.send(200, 'application/json', json.dumps(shape))
        lines = []
        for event, data in shape:
            lines += [f'event: {event}'] if event else []
            lines += [f'data: {data if isinstance(data, str) else json.dumps(data)}', '']
        return self.send(200, 'text/event-stream; charset=utf-8', '\n'.join([*lines, '']))

    def refuse(self, status, message, of_openai):
        error = {'type': 'invalid_request_error', 'message': message}
        error = {'error': {**error, 'param': None, 'code': None}} if of_openai else {'type': 'error', 'error': error}
        self.send(status, 'application/json', json.dumps(error))

    def send(self, status, kind, text, length=None):
        data = text.encode()
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'key-1')
    monkeypatch.setenv('ANTHROPIC_API_KEY', 'key-1')
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def says(text='', *calls, reason=None):
    """A reply in no API's shape; calls: (id, name, arguments), the arguments as JSON text or an object."""
    calls = [(id, name, of if isinstance(of, str) else json.dumps(of)) for id, name, of in calls]
    return {'text': text, 'calls': calls, 'reason': reason}


def results_in(body):
    """Return [(call id, text, is_error or None)] of the results that a request brought last."""
    messages = body['messages']
    if isinstance(messages[-1]['content'], list):
        return [(block['tool_use_id'], block['content'], block['is_error']) for block in messages[-1]['content']]
    last = itertools.takewhile(lambda message: message['role'] == 'tool', reversed(messages))
    return [(message['tool_call_id'], message['content'], None) for message in last][::-1]


both = pytest.mark.parametrize('provider', ['openai', 'anthropic'])
streaming = pytest.mark.parametrize('stream', [False, True], ids=['whole', 'stream'])


def conversation(server, provider, stream, script, question='How much?', functions=(calculate, raises), **settings):
    """Run the loop against the server; return (answer, pieces said, results watched)."""
    server.script, said, watched = script, [], []
    with connected(provider, 'm', server.url(provider)) as begin:
        chat = begin(say=said.append if stream else None)
        return ask(chat, question, list(functions), watch=watched.extend, **settings), said, watched


# Loops ----------------------------------------------------------------------------------------------------------------


@both
@streaming
def test_an_answer_without_calls(server, provider, stream):
    text, said, watched = conversation(server, provider, stream, [says('Nothing is free: ü⏎')])
    assert text == 'Nothing is free: ü⏎'
    assert said == (cut(text) if stream else [])
    assert watched == []
    (body,) = server.bodies
    assert body['messages'] == [{'role': 'user', 'content': 'How much?'}]
    assert body['model'] == 'm' and body.get('stream', False) == stream
    assert server.keys == ['key-1']
    tool = body['tools'][0] if provider == 'anthropic' else body['tools'][0]['function']
    schema = tool['input_schema' if provider == 'anthropic' else 'parameters']
    assert tool['name'] == 'calculate' and schema == describe(calculate)['parameters']


@both
@streaming
def test_parallel_calls_are_answered_together_and_in_order(server, provider, stream):
    calls = [(f'call_{n}', 'calculate', {'expression': f'{n} * (3 + {n})'}) for n in range(1, 4)]
    script = [says('Let me see.', *calls), says('', ('call_9', 'calculate', {'expression': '6 * 7'})), says('42.')]
    text, said, watched = conversation(server, provider, stream, script)
    assert text == '42.'
    assert ''.join(said) == ('Let me see.42.' if stream else '')
    second, third = server.bodies[1:]
    results = results_in(second)
    assert [id for id, _, _ in results] == ['call_1', 'call_2', 'call_3']
    assert [text for _, text, _ in results] == [str(n * (3 + n)) for n in range(1, 4)]
    assert results_in(third) == [('call_9', '42', False if provider == 'anthropic' else None)]
    assert [result.text for result in watched] == ['4', '10', '18', '42']
    assert third['messages'][: len(second['messages'])] == second['messages']  # all that was said is sent again


@both
@streaming
def test_what_the_model_gets_wrong_goes_back_to_it(server, provider, stream):
    script = [
        says(
            '',
            ('a', 'look_up', {'word': 'x'}),
            ('b', 'calculate', {'expresion': '1 + 1'}),
            ('c', 'raises', {'kind': 'value'}),
            ('d', 'calculate', {'expression': '1 + 1'}),
        ),
        says('2'),
    ]
    text, _, watched = conversation(server, provider, stream, script)
    assert text == '2'
    results = {id: (text, is_error) for id, text, is_error in results_in(server.bodies[1])}
    assert list(results) == ['a', 'b', 'c', 'd']
    for id, words in {'a': 'there is no look_up', 'b': "'expression' is a required", 'c': 'too blue', 'd': '2'}.items():
        assert words in results[id][0]
        assert results[id][1] == (None if provider == 'openai' else id != 'd')
    assert [result.is_error for result in watched] == [True, True, True, False]


@streaming
def test_broken_json_goes_back_to_the_model(server, stream):
    script = [says('', ('a', 'calculate', '{"expression": "1 +'), ('b', 'calculate', '')), says('Sorry.')]
    text, _, _ = conversation(server, 'openai', stream, script)
    assert text == 'Sorry.'
    (_, first, _), (_, second, _) = results_in(server.bodies[1])
    assert 'JSONDecodeError' in first and 'required' in second


@both
@streaming
def test_the_turn_limit(server, provider, stream):
    made = []

    def count() -> int:
        made.append(1)
        return len(made)

    forever = [says('', (f'call_{n}', 'count', {})) for n in range(9)]
    with pytest.raises(UserError, match='no answer in 3 replies'):
        conversation(server, provider, stream, list(forever), functions=[count], max_turns=3)
    assert len(server.bodies) == 3
    assert len(made) == 2  # the last call would have been for nobody
    text, _, _ = conversation(server, provider, stream, [*forever[:2], says('two')], functions=[count], max_turns=3)
    assert text == 'two'


@both
@streaming
def test_a_reply_that_was_cut_off_is_no_answer_and_no_call(server, provider, stream):
    made = []

    def note(text: str) -> None:
        made.append(text)

    for reply in (says('The answer is', reason='length'), says('', ('a', 'note', {'text': 'half'}), reason='length')):
        with pytest.raises(UserError, match='broke off'):
            conversation(server, provider, stream, [reply], functions=[note])
    assert made == []


@both
@streaming
def test_a_second_question_goes_on_with_the_conversation(server, provider, stream):
    server.script = [says('', ('a', 'calculate', {'expression': '1 + 1'})), says('two'), says('three')]
    with connected(provider, 'm', server.url(provider)) as begin:
        chat = begin(say=(lambda piece: None) if stream else None)
        assert ask(chat, 'one and one?', [calculate]) == 'two'
        assert ask(chat, 'and one more?', []) == 'three'
    first, *_, answer, second = server.bodies[2]['messages']
    assert (first['content'], second['content']) == ('one and one?', 'and one more?')
    assert answer['role'] == 'assistant' and 'two' in str(answer['content'])
    assert 'tools' not in server.bodies[2]


@both
@streaming
def test_what_the_server_refuses_is_told(server, provider, stream):
    with pytest.raises(UserError, match=rf'{provider} \(m\).*not today'):
        conversation(server, provider, stream, [401])


@both
def test_a_stream_that_breaks_off_is_told(server, provider):
    with pytest.raises(UserError, match=provider):
        conversation(server, provider, True, ['half a stream'])


@both
def test_no_server_is_told(provider, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'key-1')
    monkeypatch.setenv('ANTHROPIC_API_KEY', 'key-1')
    with (
        pytest.raises(UserError, match=f'{provider}.*[Cc]onnection'),
        connected(provider, None, 'http://127.0.0.1:9') as begin,
    ):
        chat = begin()
        chat.client = chat.client.with_options(max_retries=0)
        ask(chat, 'hello?', [])


@both
def test_a_missing_library_is_told_with_what_to_install(provider, monkeypatch):
    monkeypatch.setitem(sys.modules, provider, None)
    with pytest.raises(UserError, match=f'pip install {provider}=='), connected(provider):
        pass


@both
def test_a_missing_key_is_told(provider, monkeypatch):
    monkeypatch.delenv(f'{provider.upper()}_API_KEY', raising=False)
    with pytest.raises(UserError, match=f'set {provider.upper()}_API_KEY'), connected(provider):
        pass


@both
@pytest.mark.parametrize('calculator', [False, True], ids=['by head', 'calculator'])
def test_a_chat_model_is_scored_on_arithmetic(server, provider, calculator):
    """The server's model reckons only with the calculator; by head, its answer is always 7."""

    def script(body):
        last = body['messages'][-1]['content']
        if isinstance(last, str) and last.startswith('Work out') and body.get('tools'):
            return says('', ('a', 'calculate', {'expression': re.match(r'Work out (.*?)\. The', last)[1]}))
        return says(f'So it is\n{results_in(body)[0][1]}' if body.get('tools') else 'It is 7')

    server.script = script
    problems = problems_of([(0, 3), (3, 7)], each=5)
    with connected(provider, 'm', server.url(provider)) as begin:
        answers = writer(begin, calculator)(problems)
    assert answers == (oracle(problems) if calculator else [7.0] * 10)


def test_the_arithmetic_lesson_with_a_chat_model(server, tmp_path, capsys):
    url, folder = server.url('anthropic'), f'--plot_dir={tmp_path}'
    arguments = ['--provider=anthropic', f'--base_url={url}', '--problems=2', '--length=3', '--depth=1', folder]
    given = configurator.read(arithmetic.Settings, arguments)
    server.script = [says('It is 1000000.'), *[says('I cannot.')] * 4, says('On and on', reason='length')]
    arithmetic.main(given)
    out = capsys.readouterr().out
    assert 'claude-haiku-5-5' in out and 'its mistakes: no answer 5, something else 1' in out
    assert (tmp_path / 'arithmetic.png').exists()
    server.script = lambda body: 401
    with pytest.raises(UserError, match='not today'):
        arithmetic.main(given)


# The lesson -----------------------------------------------------------------------------------------------------------


def test_without_a_key_the_lesson_still_teaches(tmp_path):
    process = run_lesson('tools', cwd=tmp_path, OPENAI_API_KEY='', ANTHROPIC_API_KEY='')
    assert process.returncode == 0 and process.stderr == ''
    for words in ('"$ref": "#/$defs/Leg"', 'a script in place of a model', 'LookupError', 'wrong arguments', '3.75'):
        assert words in process.stdout
    assert '\n7 * (3 + 5) is 56, and 300 km take 3.75 hours.\n' in process.stdout


@both
@streaming
def test_the_lesson_asks_a_model(server, provider, stream, tmp_path, capsys):
    server.script = [
        says('', ('a', 'travel_time', {'legs': [{'kilometres': 90}], 'unit': 'minutes'})),
        says('It takes [bold] 67.5 minutes.'),
    ]
    arguments = [
        f'--provider={provider}',
        f'--base_url={server.url(provider)}',
        f'--stream={stream}',
        '--question=When?',
        f'--plot_dir={tmp_path}',
    ]
    tools.main(configurator.read(tools.Settings, arguments))
    out = capsys.readouterr().out
    assert 'travel_time {"legs"' in out and out.count('67.5') == 2
    assert f'It takes [bold] 67.5 minutes.\nthe conversation as a picture: {tmp_path}' in out
    assert imread(tmp_path / 'tools.png').std() > 0.01


def test_mistakes_are_named():
    for arguments, word in (
        (['--max_turns=0'], '--max_turns=0'),
        (['--question=Why?'], '--provider'),
        (['--provider=somebody'], 'openai'),
    ):
        with pytest.raises(UserError, match=word):
            tools.main(configurator.read(tools.Settings, arguments))


def test_a_mistake_ends_in_one_line(tmp_path):
    assert_friendly_error(run_lesson('tools', '--provider=openai', cwd=tmp_path, OPENAI_API_KEY=''), 'OPENAI_API_KEY')
