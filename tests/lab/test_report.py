"""The report as HTML, as PDF and in an archive, and the report about another model."""

import contextlib
import io
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import random_gpt
from helpers.scripts import PROJECT, assert_friendly_error, run_in_this_process, run_script
from helpers.stories import make_tales

from common.errors import UserError
from lab import experiment_pages, hand_in, measure_report, report, report_about, report_document
from lab.check_page_numbers import find_disagreements
from lab.experiment_runs import HELDOUT
from lm.checkpoint import save_pretrained
from lm.scoring import score
from lm.search import Budget
from lm.tokenizer import tokenizer_from_folder

PAGE = PROJECT / 'results/REPORT.md'
SHORT = {  # what makes a script quick
    'train.py': ('--eval_iters=1', '--batch_size=1', '--gradient_accumulation_steps=1'),
    'eval.py': ('--resamples=5', '--show=1'),
    'sample.py': ('--plot_steps=1',),
}


# As a document --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_document_needs_no_other_file(tmp_path):
    report_document.write_html(PAGE, tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text(encoding='utf-8')
    sources, links = re.findall(r'<img [^>]*?src="([^"]{0,30})', text), set(re.findall(r'href="([^"]*)"', text))
    assert len(sources) > PAGE.read_text(encoding='utf-8').count('\n![')  # formulas are pictures, too
    assert all(source.startswith('data:image/') for source in sources)
    assert links
    assert all(link.startswith('https://') or f'id="{link[1:]}"' in text for link in links)
    assert str(PROJECT) not in text
    assert '(results/fine_tuning/README.md)' in text  # the name of a file that a link leads to
    for hidden in ('<!--', 'report.json:', '$$', 'generated:'):
        assert hidden not in text
    assert '·king' in text


@pytest.mark.slow
def test_the_report_is_printed_as_pdf(tmp_path, chromium):
    report_document.write_pdf(PAGE, tmp_path / 'report.pdf')
    assert (tmp_path / 'report.pdf').read_bytes().startswith(b'%PDF')
    assert (tmp_path / 'report.pdf').stat().st_size > 500_000
    assert [path.name for path in tmp_path.iterdir()] == ['report.pdf']


def test_without_a_browser_the_page_is_left_for_another(tmp_path, monkeypatch):
    monkeypatch.setattr(report_document, 'find_browser', lambda: None)
    (tmp_path / 'page.md').write_text('# A title\n\nA *word*.\n')
    with pytest.raises(UserError, match=r'page\.html in any browser'):
        report_document.write_pdf(tmp_path / 'page.md', tmp_path / 'page.pdf')
    assert '<em>word</em>' in (tmp_path / 'page.html').read_text()


def test_an_option_is_not_broken_after_its_dashes(tmp_path):
    (tmp_path / 'page.md').write_text('Say `python sample.py --top_k=None` or `a<b`.\n')
    report_document.write_html(tmp_path / 'page.md', tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert '<code><span>python</span> <span>sample.py</span> <span>--top_k=None</span></code>' in text
    assert '<code><span>a&lt;b</span></code>' in text


def test_a_table_that_a_script_printed_is_not_cut_between_pages(tmp_path):
    (tmp_path / 'page.md').write_text('```text\n$ a\n┏━┓\n┃<┃\n└─┘\nb\n┏━┓\n└─┘\n```\n')
    report_document.write_html(tmp_path / 'page.md', tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text(encoding='utf-8')
    whole = '<span class="whole">'
    assert f'$ a\n{whole}┏━┓\n┃&lt;┃\n└─┘</span>\nb\n{whole}┏━┓\n└─┘</span></pre>' in text


def test_probabilities_too_small_for_a_float_are_powers_of_ten():
    assert [measure_report.write_power(exponent) for exponent in (-4243.8, -15.1, 0)] == ['10⁻⁴²⁴⁴', '10⁻¹⁵', '10⁰']


class Letters:
    """A tokenizer whose tokens are the digits."""

    def encode_prompt(self, text):
        return [int(digit) for digit in text]


@pytest.mark.slow
def test_missed_continuations_are_those_that_all_continuations_show():
    gpt, prompts, n = random_gpt(vocab_size=6, block_size=400), ['12', '5', '30', '44'], 3
    found = measure_report.count_misses(gpt, Letters(), prompts, n)
    ways, losses = list(itertools.product(range(6), repeat=n)), []
    for prompt in prompts:
        ids = Letters().encode_prompt(prompt)
        best = max(logprobs.sum().item() for logprobs in score(gpt, [ids] * len(ways), ways))
        greedy = gpt.steps(torch.tensor([ids]), n, temperature=0)
        losses.append(best - sum(step.model_logprob.item() for step in greedy))
    assert (found['prompts'], found['proved']) == (4, 4)
    assert found['beams_1']['missed'] == sum(loss > 1e-4 for loss in losses)
    assert found['beams_1']['loss'] == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert (found['beams_20']['missed'], found['beams_20']['loss']) == (0, pytest.approx(0, abs=1e-5))


@pytest.mark.slow
def test_a_product_is_zero_where_numpy_says_so():
    found, course = measure_report.find_underflow(random_gpt(block_size=500), Letters(), '1', seed=1)
    probs = np.exp(np.diff([0, *course]))
    for precision in ('float32', 'float64'):
        product = np.cumprod(probs.astype(precision))
        assert found[precision]['tokens'] == pytest.approx(int((product == 0).argmax()) + 1, abs=1)  # rounding
    assert len(course) == found['float64']['tokens']


def test_a_missing_picture_is_named(tmp_path):
    (tmp_path / 'page.md').write_text('![a](not_there.png)\n')
    with pytest.raises(UserError, match=r'not_there\.png is missing'):
        report_document.write_html(tmp_path / 'page.md', tmp_path / 'page.html')


@pytest.mark.slow
def test_what_is_handed_in_runs_and_has_no_owner(tmp_path):
    (tmp_path / 'report.pdf').write_bytes(b'%PDF')
    told = hand_in.HOW_TO_RUN.format(page='results', model='', pair='', again='')
    hand_in.write_archive(tmp_path / 'hand-in.tar', PAGE, tmp_path / 'report.pdf', told)
    with tarfile.open(tmp_path / 'hand-in.tar') as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path, filter='data')
    assert {(member.uname, member.gname, member.uid, member.gid) for member in members} == {('', '', 0, 0)}
    names = {member.name.removeprefix('nanoGPT-probs/') for member in members}
    assert {'REPORT.pdf', 'HOW_TO_RUN.md', 'model.py', 'eval_data.json', 'results/REPORT.md'} <= names
    figures = re.findall(r'^!\[[^]]*\]\((.*)\)$', PAGE.read_text(encoding='utf-8'), re.MULTILINE)
    assert {f'results/{figure}' for figure in figures} <= names
    (command,) = re.findall(r'python (sample.py --start="I live in" --max.*?) \|', told)
    script, *arguments = command.replace('"I live in"', 'I live in').replace('--start=I live in ', '').split()
    program = [sys.executable, script, '--start=I live in', *arguments]
    process = subprocess.run(program, cwd=tmp_path / 'nanoGPT-probs', capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert 'probability 1,' in process.stdout


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (report.Settings(), '--pdf, --tar, or --init_from=gpt2'),
        (report.Settings(init_from='gpt2', iterations=3), '--iterations=3: it must be at least 4'),
    ],
)
def test_what_to_make_must_be_said(settings, message, monkeypatch):
    monkeypatch.chdir(PROJECT)
    with pytest.raises(UserError, match=message):
        report.main(settings)


def test_settings_of_a_report_that_is_there_are_said_to_have_no_effect(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(report, 'RESULTS', tmp_path)
    monkeypatch.setattr(report, 'print_and_pack', lambda page, settings: None)
    report.main(report.Settings(pdf=True, measured=9))
    assert capsys.readouterr().err == 'note: --measured has no effect without --init_from\n'
    (tmp_path / 'report-gpt2').mkdir()
    (tmp_path / 'report-gpt2/REPORT.md').touch()
    report.main(report.Settings(init_from='gpt2', pdf=True, iterations=9))
    assert 'note: --iterations has no effect: ' in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_cannot_be_had_is_one_line():
    process = run_script('lab.report', '--init_from=gpt2-xl', cwd=PROJECT, env={'HF_HUB_OFFLINE': '1'})
    assert_friendly_error(process, 'gpt2-xl')
    assert not (PROJECT / 'results/report-gpt2-xl').exists()


# About another model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def other(tmp_path_factory):
    """The folder of a report about a small random model, made from texts of a few pages; and the model's."""
    here = tmp_path_factory.mktemp('other')
    model = tmp_path_factory.mktemp('model') / 'random'
    save_pretrained(random_gpt(vocab_size=8192, block_size=256), model, tokenizer_from_folder(PROJECT / 'models/tiny'))
    speeds = 'speed/amd-epyc-2-threads-avx512_bf16.json'
    for name in ('report/report.json', 'judging/judgements.json', speeds):
        (here / 'results' / name).parent.mkdir(parents=True)
        shutil.copy(PROJECT / 'results' / name, here / 'results' / name)
    sessions = {  # those that are run; the others take as long again
        'python eval.py --init_from=tiny-stories --compare_to=tiny --show=5',
        'python visualize.py trace --start="The king had a" --save=trace.png',
        'python sample.py --start="I live in" --max_new_tokens=5 --temperature=0.0001',
    }
    text = experiment_pages.SESSION.sub(
        lambda found: found[0] if f'python {found["command"]}' in sessions else '', PAGE.read_text(encoding='utf-8')
    )
    (here / 'results/REPORT.md').write_text(text, encoding='utf-8')
    (here / 'texts').mkdir()
    for name, who, count in (('tinystories.txt', 'a boy', 200), *((name, 'a girl', 20) for name in HELDOUT.values())):
        (here / 'texts' / name).write_text(make_tales(who, count))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(here)
        patch.setattr('lab.experiment_runs.subprocess.run', partial(run_in_this_process, SHORT))
        patch.setattr(report_about, 'RATES', (report_about.RATE,))
        patch.setattr(report_about, 'DRAWS', 5)
        patch.setattr(report_about, 'CACHED', 5)
        patch.setattr(measure_report, 'SEARCHED', 10)
        for budget in ('TEXT_BUDGET', 'SEARCH_BUDGET'):
            patch.setattr(measure_report, budget, Budget(prefixes=2))
        folder = report_about.RESULTS / 'report-random'
        settings = report.Settings(init_from=str(model), corpora=str(here / 'texts'), iterations=4, measured=4000)
        report_about.make_report_about(settings, folder)
    return here / folder, model


@pytest.mark.slow
def test_a_report_about_another_model_has_its_numbers(other, monkeypatch):
    folder, model = other
    monkeypatch.chdir(folder.parent.parent)
    text = (folder / 'REPORT.md').read_text(encoding='utf-8')
    assert find_disagreements(folder / 'REPORT.md', all_sourced=False) == []
    assert f'python -m lab.report --init_from={model} --corpora=' in text
    assert f'$ python sample.py --init_from={model} --start="I live in"' in text
    assert '$ python eval.py --out_dir=out-experiment/report-random/after' in text
    assert f"lm.load('{model}')" in text
    assert 'the exact search, stopped by its limits before a proof' in text  # after two prefixes
    assert text.count('Once upon a time, on the edge of a thick forest') >= 2  # the appendix and the output of eval.py
    for picture in re.findall(r'^!\[[^]]*\]\((.*)\)$', text, re.MULTILINE):
        assert (folder / picture).exists() != picture.startswith('..'), picture
        assert (PROJECT / 'results' / folder.name / picture).resolve().exists() or (folder / picture).exists()


@pytest.mark.parametrize(
    ('changed', 'made_of', 'message'),
    [
        ({'measured': 5000}, 'same', 'started with --measured=4000: use the same to continue, or delete'),
        ({'iterations': 8}, 'same', 'started with --iterations=4'),
        ({'corpora': 'elsewhere'}, 'same', 'started with --corpora=.*texts'),
        ({}, 'others', 'the weights have changed since this report was started'),
    ],
    ids=str,
)
def test_a_report_is_resumed_only_with_what_it_was_started_with(changed, made_of, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, work = Path('results/report-a'), Path('out-experiment/report-a')
    settings = report.Settings(init_from='gpt2', corpora='texts', iterations=4, measured=4000)
    for _ in range(2):
        report_about.record_start(settings, {'weights': 'same'}, work, 'stories-report-a')
    with pytest.raises(UserError, match=message):
        report_about.record_start(replace(settings, **changed), {'weights': made_of}, work, 'stories-report-a')
    (work / 'settings.json').unlink()
    with pytest.raises(UserError, match='settings are unknown: delete'):
        report_about.record_start(settings, {'weights': 'same'}, work, 'stories-report-a')
    report_about.put_away(folder, work, 'stories-report-a')
    assert work.is_dir()  # a report that is not complete goes on
    folder.mkdir(parents=True)
    (folder / 'REPORT.md').write_text('mine')
    report_about.put_away(folder, work, 'stories-report-a')
    assert not work.exists() and (folder / 'REPORT-old.md').read_text() == 'mine'
    (folder / 'REPORT.md').touch()
    with pytest.raises(UserError, match=r'REPORT-old\.md, which is there already'):
        report_about.put_away(folder, work, 'stories-report-a')
    assert (folder / 'REPORT-old.md').read_text() == 'mine'


def test_commands_name_a_folder_as_it_is_found_from_the_project(tmp_path, monkeypatch):
    """A report shows no path with the name of its author."""
    model = tmp_path / 'ann/project/models/mine'
    model.mkdir(parents=True)
    (model / 'config.json').touch()
    monkeypatch.chdir(tmp_path / 'ann/project')
    for typed in ('models/mine', './models/mine/', str(model)):
        assert report_about.name_model(typed) == 'models/mine'
    assert report_about.name_model('gpt2') == 'gpt2'
    assert report_about.name_model('..') == str(tmp_path / 'ann')
    page = tmp_path / 'page.md'
    page.write_text('```text\n$ python eval.py --init_from=models/mine\nold\n```\n')
    monkeypatch.setattr(
        experiment_pages, 'run_script', lambda *_, cwd, quiet: str((Path(cwd) / 'models/mine/config.json').is_file())
    )
    experiment_pages.rerun_sessions(page, ['models/mine'])
    assert page.read_text() == '```text\n$ python eval.py --init_from=models/mine\nTrue\n```\n'


@pytest.mark.parametrize('name', ['/a b/c', r'C:\Users\ann', 'gpt2'])
def test_commands_on_a_page_name_any_folder(name):
    text = report_about.turn_commands('python visualize.py trace --save=a.png', name, 'out/a')
    assert shlex.split(text) == ['python', 'visualize.py', 'trace', f'--init_from={name}', '--save=a.png']


@pytest.mark.parametrize(('parameters', 'prefixes'), [(5_000_000, 2000), (124_000_000, 200)])
def test_a_large_model_searches_through_fewer_prefixes(parameters, prefixes):
    model = SimpleNamespace(get_num_params=lambda: parameters)
    assert measure_report.reduce_for(model, Budget(prefixes=2000)).prefixes == prefixes


def test_texts_are_measured_in_whole_documents(tmp_path):
    (tmp_path / 'tales.txt').write_text('One day.\n\n\nThe fox ran.\nIt fell.\n\n\nThe end.\n', encoding='utf-8')
    copies = [report_about.copy_beginning(tmp_path / 'tales.txt', tmp_path / str(size), size) for size in (1, 9, 999)]
    assert [len(copy.read_text(encoding='utf-8').split('\n\n\n')) for copy in copies] == [1, 2, 3]
    assert copies[1].read_text(encoding='utf-8') == 'One day.\n\n\nThe fox ran.\nIt fell.'


@pytest.mark.slow
def test_what_was_said_of_other_models_is_marked(other):
    folder, _ = other
    text, ours = (path.read_text(encoding='utf-8') for path in (folder / 'REPORT.md', PAGE))
    marked = [part for part in text.split('\n\n') if part.startswith('✎ ')]
    assert len(marked) == ours.count('<!-- of these models -->') > 5
    assert any('Of 64 responses' in part for part in marked)
    assert not [part for part in text.split('\n\n') if 'tiny' in part and '`tiny' in part and part not in marked][1:]
    assert '<!-- of these models' not in text
    assert '# How likely? A report on' in text[:40]
