"""All lessons: short, on the page of lessons with a picture, and run there by a command that works."""

import ast
import importlib
import re

import pytest
from helpers.scripts import PROJECT

PAGE = (PROJECT / 'lessons' / 'README.md').read_text(encoding='utf-8')
FILES = sorted((PROJECT / 'lessons').glob('*.py'))
LESSONS = [path.stem for path in FILES if "if __name__ == '__main__'" in path.read_text(encoding='utf-8')]


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_lesson_is_short_and_says_what_it_is_about(path):
    source = path.read_text(encoding='utf-8')
    assert len(source.splitlines()) <= 250
    assert len(ast.get_docstring(ast.parse(source)).splitlines()) >= 5


def test_the_page_has_every_lesson_with_a_picture():
    assert sorted(re.findall(r'`python -m lessons\.(\w+)`', PAGE)) == LESSONS
    for lesson in LESSONS:
        assert re.search(rf'!\[.+\]\(\.\./results/lessons/{lesson}[\w-]*\.png\)', PAGE), lesson
        assert (PROJECT / 'tests' / f'test_lesson_{lesson}.py').exists()


@pytest.mark.parametrize('lesson', LESSONS)
def test_a_lesson_says_where_its_pictures_go(lesson):
    assert importlib.import_module(f'lessons.{lesson}').Settings().plot_dir == 'results/lessons'
