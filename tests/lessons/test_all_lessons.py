"""All lessons: short, listed on their page with a picture, and run by the command given there."""

import ast
import importlib
import re

import pytest
from helpers.scripts import PROJECT, assert_friendly_error, run_lesson

PAGE = (PROJECT / 'lessons' / 'README.md').read_text(encoding='utf-8')
FILES = sorted(path for path in (PROJECT / 'lessons').glob('*.py') if path.stem != '__init__')
PROGRAMS = [path.stem for path in FILES if "if __name__ == '__main__'" in path.read_text(encoding='utf-8')]
LESSONS = [name for name in PROGRAMS if name not in ('check_generate', 'generate_runner')]  # those are for teachers


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_lesson_is_short_and_has_an_introduction(path):
    source = path.read_text(encoding='utf-8')
    assert len(source.splitlines()) <= 250
    assert len(ast.get_docstring(ast.parse(source)).splitlines()) >= 5


def test_the_page_has_every_lesson_with_a_picture():
    assert sorted(re.findall(r'`python -m lessons\.(\w+)`', PAGE)) == LESSONS
    for lesson in LESSONS:
        assert re.search(rf'!\[.+\]\(\.\./results/lessons/{lesson}[\w-]*\.png\)', PAGE), lesson
        assert (PROJECT / 'tests' / 'lessons' / f'test_{lesson}.py').exists()


@pytest.mark.parametrize('lesson', LESSONS)
def test_the_default_folder_of_pictures(lesson):
    assert importlib.import_module(f'lessons.{lesson}').Settings().plot_dir == 'results/lessons'


@pytest.mark.parametrize(
    ('lesson', 'arguments', 'word'),
    [
        ('tools', ['--provider=openai'], 'OPENAI_API_KEY'),
        *(
            pytest.param(lesson, arguments, word, marks=pytest.mark.slow)
            for lesson, arguments, word in (
                ('arithmetic', ['--problems=2', '--init_from=./nowhere'], 'nowhere'),
                ('attention_by_hand', ['--text=Hello'], '--text=Hello'),
                ('bigram', ['--steps=0'], '--steps'),
                ('bpe', ['--num_merges=0'], '--num_merges'),
                ('dictionary', ['--rounds=0'], '--rounds'),
                ('features', ['--layer=0'], '--layer'),
                ('prompting', ['--steps=0'], '--steps'),
                ('story_tokenizer', ['--epochs=0'], '--epochs'),
            )
        ),
    ],
)
def test_an_error_is_one_line(lesson, arguments, word, tmp_path):
    assert_friendly_error(run_lesson(lesson, *arguments, cwd=tmp_path, OPENAI_API_KEY=''), word)
