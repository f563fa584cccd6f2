"""The shape of the project: which room may import which, how long a file may be, and names that mean one thing."""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from helpers.scripts import PROJECT, files_of_project

# What each room may import, besides itself. 'scripts' are the files at the top; '' below stands for other libraries.
MAY_IMPORT = {
    'model': set(),
    'common': set(),
    'texts': {'common'},
    'lm': {'common', 'model'},
    'pictures': {'common', 'model', 'texts', 'lm'},
    'evaluation': {'common', 'model', 'texts', 'lm', 'pictures'},
    'training': {'common', 'model', 'texts', 'lm', 'pictures', 'evaluation'},
    'server': {'common', 'model', 'texts', 'lm', 'pictures', 'evaluation'},
}
ROOMS = set(MAY_IMPORT) - {'model'}
PROGRAMS = {'scripts', 'lab', 'lessons', 'notebooks'}  # may import every room, and the scripts
MAY_IMPORT |= {program: {*MAY_IMPORT, 'scripts'} for program in PROGRAMS}

FROM_PRETRAINED = ('model.py', 'lm.checkpoint', 'GPT.from_pretrained')  # nanoGPT's users expect this method

MAX_LINES = {'model.py': 450, 'tests': 500, 'lessons': 250}
OTHER_MAX_LINES = 400

# Public functions that share a name with one in another room.
SAME_NAME = {
    'main': 'where every script begins',
}


def python_files():
    """Return the project's Python files that are not tests, as paths from its folder."""
    return sorted(
        path for path in files_of_project() if path.suffix == '.py' and path.parts[0] not in ('tests', 'config')
    )


def room_of(path):
    """Return the room that a file belongs to: its folder, 'model' for model.py, 'scripts' for others at the top."""
    if len(path.parts) > 1:
        return path.parts[0]
    return 'model' if path.name == 'model.py' else 'scripts'


def parsed(path):
    """Return the syntax tree of a file."""
    return ast.parse((PROJECT / path).read_text(encoding='utf-8'))


def imports(tree, function=''):
    """Yield (module, dotted name of the function around it) of every import, those inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'a relative import of {node.module}'
            yield node.module, function
        is_named = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        yield from imports(node, '.'.join(filter(None, [function, node.name])) if is_named else function)


def room_imported(module):
    """Return the room that a module belongs to, None if it is another library's."""
    top = module.partition('.')[0]
    if top == 'model':
        return 'model'
    if (PROJECT / f'{top}.py').exists():
        return 'scripts'
    return top if top in MAY_IMPORT and (PROJECT / top).is_dir() else None


@pytest.mark.parametrize('room', sorted({room_of(path) for path in python_files()}))
def test_rooms_import_only_rooms_to_their_right(room):
    assert room in MAY_IMPORT, f'{room}/ is not in the map: add it here and to CONTRIBUTING.md'
    wrong = [
        f'{path} imports {module}'
        for path in python_files()
        if room_of(path) == room
        for module, function in imports(parsed(path))
        if room_imported(module) not in {None, room, *MAY_IMPORT[room]}
        and (str(path), module, function) != FROM_PRETRAINED
    ]
    assert not wrong, '\n'.join(wrong)


def test_model_needs_nothing_but_torch():
    found = {(module, function) for module, function in imports(parsed(Path('model.py')))} - {FROM_PRETRAINED[1:]}
    assert {module.partition('.')[0] for module, _ in found} <= {'torch', *sys.stdlib_module_names}


def test_scripts_are_imported_by_programs_only():
    """What two scripts share is in a room; only configurator.py, which reads their settings, is imported by them."""
    for path in python_files():
        if room_of(path) == 'scripts':
            scripts = {module for module, _ in imports(parsed(path)) if room_imported(module) == 'scripts'}
            assert scripts <= {'configurator'}, path


@pytest.mark.parametrize('source', ['import lm', 'def f():\n    from lm import search', 'class A:\n    import lm.fast'])
def test_imports_are_found_wherever_they_are(source):
    ((module, _),) = imports(ast.parse(source))
    assert room_imported(module) == 'lm'


def test_no_file_is_too_long():
    too_long = []
    for path in [path for path in files_of_project() if path.suffix == '.py']:
        limit = MAX_LINES.get(path.name, MAX_LINES.get(path.parts[0], OTHER_MAX_LINES))
        lines = (PROJECT / path).read_text(encoding='utf-8').count('\n')
        if lines > limit:
            too_long.append(f'{path} has {lines} lines, more than {limit}')
    assert not too_long, '\n'.join(too_long)


@pytest.mark.parametrize('room', sorted(room for room in {*ROOMS, 'lab'} if (PROJECT / room).is_dir()))
def test_a_room_says_in_one_sentence_what_it_is_for(room):
    sentence = ast.get_docstring(parsed(Path(room) / '__init__.py'))
    assert sentence is not None
    assert '\n' not in sentence
    assert sentence.endswith('.')
    assert '. ' not in sentence


def test_a_public_name_means_one_thing():
    """Lessons and the notebook's steps are left out: nothing is imported from them, and each is read alone."""
    rooms = defaultdict(set)
    for path in python_files():
        if room_of(path) not in ('lessons', 'notebooks'):
            place = path.name if room_of(path) == 'scripts' else room_of(path)
            for node in parsed(path).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
                    rooms[node.name].add(place)
    twice = {name: sorted(places) for name, places in rooms.items() if len(places) > 1 and name not in SAME_NAME}
    assert not twice, twice
    assert all(len(rooms[name]) > 1 for name in SAME_NAME), 'SAME_NAME lists a name that is used once'


def test_the_map_shows_every_file():
    """CONTRIBUTING.md has a tree of the top and of every room; lessons have a page of their own."""
    tree = (PROJECT / 'CONTRIBUTING.md').read_text(encoding='utf-8').split('```text\n')[1].split('```')[0]
    shown, folder = set(), ''
    for indent, name in re.findall(r'^( {4})?([\w.]+/?)(?= )', tree, re.MULTILINE):
        if not indent:
            folder = name if name.endswith('/') else ''
        if name.endswith('.py'):
            shown.add(f'{folder}{name}')
    files = {str(path) for path in python_files() if room_of(path) not in ('lessons', 'notebooks')}
    files -= {f'{room}/__init__.py' for room in {*ROOMS, 'lab'} - {'lm'}}
    assert shown == files
