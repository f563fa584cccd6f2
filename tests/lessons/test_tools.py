"""lessons/tools.py: schemas are valid and describe what a function accepts; calls get Python values and return text."""

import dataclasses
import enum
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lessons import tools
from lessons.chat import Call
from lessons.problems import calculate
from lessons.tools import describe_function, from_json_value, run_call, to_json_value

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
    return Draft202012Validator(describe_function(function)['parameters']).is_valid(values)


# Schemas --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('function', [rich, calculate, tools.travel_time])
def test_schemas_are_valid_and_json(function):
    description = describe_function(function)
    Draft202012Validator.check_schema(description['parameters'])
    assert json.loads(json.dumps(description)) == description
    assert re.fullmatch(r'[a-zA-Z0-9_-]{1,64}', description['name'])  # what both APIs allow


def test_a_schema_word_for_word():
    assert describe_function(tools.travel_time) == {
        'name': 'travel_time',
        'description': 'Return how long a journey takes.',
        'parameters': {
            'type': 'object',
            'properties': {
                'legs': {'type': 'array', 'items': {'$ref': '#/$defs/Leg'}, 'description': 'its parts, in order'},
                'unit': {'enum': ['hours', 'minutes'], 'description': 'of the returned time', 'default': 'hours'},
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
                        'kilometres': {'type': 'number', 'description': 'its length'},
                        'speed': {'type': 'number', 'description': 'in kilometres per hour', 'default': 80.0},
                    },
                    'required': ['kilometres'],
                    'additionalProperties': False,
                }
            },
        },
    }


def test_descriptions_defaults_and_required_parameters():
    description = describe_function(rich)
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
    description = describe_function(say)
    assert description['description'] == 'Say it.'
    assert description['parameters']['properties']['word']['description'] == 'what to say'


def test_a_function_without_parameters_or_docstring():
    def nothing():
        pass

    parameters = {'type': 'object', 'properties': {}, 'required': [], 'additionalProperties': False}
    assert describe_function(nothing) == {'name': 'nothing', 'description': '', 'parameters': parameters}


def test_defaults_that_json_cannot_express_are_left_out():
    def odd(a: float = float('inf'), b: Any = object(), c: int = 3):  # noqa: B008
        pass

    parameters = describe_function(odd)['parameters']
    assert parameters['required'] == []
    assert [name for name, schema in parameters['properties'].items() if 'default' in schema] == ['c']


def test_unsupported_types_are_named():
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
            describe_function(function)


def test_two_dataclasses_of_the_same_name_are_an_error():
    other = dataclasses.make_dataclass('Point', [('z', int)])

    def both(a: Point, b: other):
        pass

    with pytest.raises(TypeError, match='same name'):
        describe_function(both)


# Values ---------------------------------------------------------------------------------------------------------------


WRONG = {
    'missing': lambda values: values.pop('count'),
    'unknown': lambda values: values.update(counts=2),
    'a text for a number': lambda values: values.update(count='1'),
    'a fraction': lambda values: values.update(count=1.5),
    'a truth value for a number': lambda values: values.update(count=True),
    'a number for a truth value': lambda values: values.update(exact=1),
    'null where it is not allowed': lambda values: values.update(ratio=None),
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
def test_wrong_arguments_are_rejected_before_the_call(spoil):
    values = json.loads(json.dumps(MINIMAL))
    assert is_valid(values)
    spoil(values)
    assert not is_valid(values)
    result = run_call(Call('1', 'rich', values), [rich])
    assert result.is_error and 'wrong arguments' in result.text


def test_all_errors_are_reported_with_their_place():
    values = {'legs': [{'kilometres': 1}, {'kilometres': 'far', 'sped': 3}], 'unit': 'years'}
    text = run_call(Call('1', 'travel_time', json.dumps(values)), [tools.travel_time]).text
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
    assert not run_call(Call('1', 'record', values), [record]).is_error
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


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'values'), KINDS, ids=[str(kind) for kind, _ in KINDS])
def test_to_json_and_back_is_the_same_value(kind, values):
    schema = tools.make_schema(kind, tools.make_type_schema)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)

    @given(values)
    @settings(max_examples=30, deadline=None)
    def holds(value):
        written = to_json_value(value)
        assert validator.is_valid(written)
        back = from_json_value(kind, json.loads(json.dumps(written)))
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
        ('calculate', {'expression': '-' * 99_999 + '1'}, ['Error']),
    ],
)
def test_every_error_becomes_a_result(name, arguments, words):
    result = run_call(Call('7', name, arguments), [raises, rich, calculate])
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

    assert run_call(Call('1', 'give', ''), [give])[1:] == (text, False)
