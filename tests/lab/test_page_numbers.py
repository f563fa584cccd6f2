"""The numbers and tables on the project's pages are those of the files they come from."""

import ast
import json
import re
import shutil

import pytest
from helpers.markdown import anchors, parts, python_blocks
from helpers.scripts import PROJECT

import model
from lab import experiment, measure_report
from lab.bench_pages import results_file, speed_page
from lab.check_page_numbers import COMMENT, find_disagreements, read_quotations
from lm.checkpoint import load_model

FULLY_SOURCED = ['results/REPORT.md']  # every measured number on it has a source
PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for pattern in ('*.md', 'docs/*.md', 'models/*/README.md', 'results/**/*.md')
    for path in PROJECT.glob(pattern)
    if COMMENT.search(path.read_text(encoding='utf-8'))
)


def read_report():
    """Return the text of the report."""
    return (PROJECT / 'results/REPORT.md').read_text(encoding='utf-8')


def test_pages_have_sources():
    models = {'models/tiny/README.md', 'models/tiny-stories/README.md', 'results/models/README.md'}
    assert {*FULLY_SOURCED, *models, 'results/fine_tuning/README.md'} <= {*PAGES}


@pytest.mark.parametrize('page', PAGES)
def test_numbers_on_a_page_are_those_of_their_files(page):
    complaints = find_disagreements(PROJECT / page, all_sourced=page in FULLY_SOURCED)
    assert not complaints, '\n'.join(complaints)
    assert any(found for _, _, found in read_quotations(PROJECT / page))


def test_generated_tables_are_those_of_the_stored_numbers(tmp_path, monkeypatch):
    for file in [PROJECT / 'README.md', *PROJECT.glob('results/**/*.json*'), *PROJECT.glob('results/**/*.md')]:
        copy = tmp_path / file.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    monkeypatch.chdir(tmp_path)
    experiment.refresh_pages()
    for page in ('README.md', 'results/REPORT.md', 'results/models/README.md', 'results/fine_tuning/README.md'):
        refreshed = (tmp_path / page).read_text(encoding='utf-8')
        assert refreshed == (PROJECT / page).read_text(encoding='utf-8'), (
            f'python -m lab.experiment --part=pages: {page}'
        )


def test_the_page_of_speeds_has_the_stored_numbers():
    for path in (PROJECT / 'results/speed').glob('*.json'):
        saved = json.loads(path.read_text(encoding='utf-8'))
        assert speed_page(saved) == path.with_suffix('.md').read_text(encoding='utf-8')
        assert path == results_file(path.parent, saved['machine'])  # each machine has its own


def test_the_report_quotes_attention_as_it_is_in_the_model():
    def body(tree):
        (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == 'attend']
        statements = function.body[1:] if ast.get_docstring(function) else function.body
        return [ast.unparse(function.args), *map(ast.unparse, statements)]

    (quoted,) = [block for block in python_blocks(read_report()) if 'def attend' in block]
    with open(model.__file__, encoding='utf-8') as file:
        assert body(ast.parse(quoted)) == body(ast.parse(file.read()))


EXCERPTS = [text for language, text in parts((PROJECT / 'results/REPORT.md').read_text('utf-8')) if language == 'py']


@pytest.mark.parametrize('excerpt', EXCERPTS, ids=[excerpt.split('\n')[0].strip('# ') for excerpt in EXCERPTS])
def test_the_report_quotes_code_as_it_is_in_its_file(excerpt):
    """Line by line, in order; ... stands for what is left out."""
    name, *lines = [line.strip() for line in excerpt.splitlines() if line.strip()]
    code = [line.strip() for line in (PROJECT / name.strip('# ')).read_text(encoding='utf-8').splitlines()]
    place, skip = 0, True  # at first, and after ..., lines may be missing
    for line in lines:
        if line == '...':
            skip = True
            continue
        found = code.index(line, place)
        assert skip or not any(code[place:found]), f'{name}: something is left out before {line!r}'
        place, skip = found + 1, False


def test_the_report_answers_every_question():
    report = read_report()
    asked = re.findall(r'^\| \[([\d.ab]+)\]\(#([\w-]+)\) \|', report, re.MULTILINE)
    names = ['1.1a', '1.1b', '1.2a', '1.2b', '1.3a', '1.3b', '2.1a', '2.1b', '2.2a', '2.2b', '2.3a', '2.3b']
    assert [name for name, _ in asked] == [*names, '3.1', '3.2a', '3.2b']
    headings = re.findall(r'^## (.+)$', report, re.MULTILINE)
    for name, anchor in asked:
        (heading,) = [heading for heading in headings if heading.startswith(f'{name} ')]
        assert anchor in anchors(f'## {heading}\n')


def test_the_numbers_of_the_report_can_be_repeated():
    """Those that take a moment; the slow test of the experiment runs all of them."""
    gpt, tokenizer, _ = load_model('tiny-stories', device='cpu')
    stored = json.loads((PROJECT / 'results/report/report.json').read_text(encoding='utf-8'))
    choices = measure_report.count_choices(gpt, tokenizer, 'The old king had a', (0.2, 1.0))
    assert choices['1.0']['choices'] == pytest.approx(stored['temperature']['1.0']['choices'], rel=1e-3)
    for now, before in zip(
        measure_report.compare_runners_up(gpt, tokenizer, 'I live in', 5, temperature=0.0001),
        stored['i_live_in'],
        strict=True,
    ):
        assert (now['piece'], now['runner_up']) == (before['piece'], before['runner_up'])
        assert now['gap'] == pytest.approx(before['gap'], rel=1e-3)
    attention = measure_report.follow_attention(gpt, tokenizer, 'The king had a')
    assert attention['weights'] == pytest.approx(stored['attention']['weights'], abs=1e-4)
    assert attention['difference'] < 1e-5


def test_a_line_through_points_is_that_of_least_squares():
    line = measure_report.fit_line([(1, -2.0), (2, -4.0), (4, -8.0)])
    assert line == {'slope': pytest.approx(-2), 'correlation': pytest.approx(-1)}
    assert measure_report.fit_line([(0, 0.0), (1, 2.0), (2, 1.0)])['slope'] == pytest.approx(0.5)
