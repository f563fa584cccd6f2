"""The report about another model: fine-tune it, measure it, draw the figures, put its numbers on a copy of the page.

What the page says about `tiny` and `tiny-stories` in particular need not hold for another model. Those paragraphs have
a comment, `<!-- of these models -->`, and in the copy they begin with ✎: they have to be rewritten. Those with
`<!-- of these models only -->` quote runs that are not made of another model, and are left out.
"""

import os
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

from common.errors import UserError
from common.files import expand_path, file_sha256, make_folder
from common.json_files import read_json
from common.text_files import read_text_chunks
from lab import corpora, experiment_pages
from lab.experiment_runs import (
    HELDOUT,
    OUT,
    RESULTS,
    STORIES,
    VAL_FRACTION,
    prepare_dataset,
    read_result,
    run_training,
    write_results,
)
from lab.measure_models import SWEPT, draw_sample, make_figures, measure_pairs, measure_texts, vary_fine_tuning
from lab.result_pictures import draw_sweep
from lm import checkpoint
from lm.gpt2_files import require_gpt
from texts.plain_text import split_documents

CONFIG = 'config/finetune_stories.py'
RATE, RATES = 3e-5, (1e-5, 3e-5, 1e-4)  # that of CONFIG, and those that are compared
DRAWS, CACHED = 1000, 200  # as in experiment.py
PROVED = 'the exact search, with proof'
AFTER = 'after'  # the folder of the fine-tuned model, in out-experiment/<report>
MARK = '✎ '
OF_THESE, ONLY_OF_THESE = '<!-- of these models -->', '<!-- of these models only -->'
HEAD = """# How likely? A report on {name} before and after stories

Every figure, output and number on this page was made by

```bash
{command}
```

The *before* is `{name}`; the *after* is `{name}`, fine-tuned on {megabytes:.1f} MB of children's stories
(`{training}`).
Of texts that neither has seen, the first {measured:,} bytes are measured, in whole documents.
Where nothing else is said, the outputs are those of `{name}`. Paragraphs that begin with ✎ say what was found for two
other models, `tiny` and `tiny-stories`; their numbers are new, their sentences are not: **rewrite them**, then take
the ✎ away.

"""
FOOT = (
    '---\n\n`python -m lab.report --init_from={name} --pdf` makes a PDF of this page, `--tar` the archive to hand in.\n'
)


def make_report_about(chosen, folder):
    """Write a report about a model, with its figures and numbers, into a folder. chosen: the Settings of report.py."""
    name, iterations, texts = name_model(chosen.init_from), chosen.iterations, expand_path(chosen.corpora)
    work, dataset = OUT / folder.name, f'stories-{folder.name}'
    stories, heldout = begin_report(chosen, folder, work, dataset)
    for part in ('examples', 'report', 'fine_tuning'):
        make_folder(folder / part)
    size = sum((texts / story).stat().st_size for story in stories)
    fraction = min(VAL_FRACTION, chosen.measured / size)
    prepare_dataset(texts, stories, dataset, f'--tokenizer={name}', val_fraction=fraction)
    heldout = {text: copy_beginning(path, work / 'texts', chosen.measured) for text, path in heldout.items()}
    settings = {
        'init_from': name,
        'dataset': dataset,
        'eval_interval': max(1, iterations // 4),
        'eval_iters': 10,  # it costs GPT-2 a minute on a laptop
        'eval_file': 'eval_data.json',
    }
    run = run_training(f'{folder.name}/{AFTER}', CONFIG, **settings, max_iters=iterations)
    models = (f'--out_dir={work / AFTER}', f'--compare_to={name}')
    measure_pairs(models, folder)
    scored = measure_texts(models, folder, {**heldout, 'stories': dataset})
    run['texts'] = {text: scored[text]['model'] for text in SWEPT}
    vary(f'{folder.name}/', settings, heldout, iterations, run, folder)
    numbers = make_figures(name, folder, heldout['heldout'], DRAWS, CACHED, device=None)
    language = read_result('report/report.json')['language']  # of the texts: no model is asked
    write_results('report/report.json', {**numbers, 'language': language}, folder)
    draw_sample(name, folder / 'examples/steps.png', '--show_probs=True', '--plot_steps=10')
    write_report_page(chosen, folder, run['command'], size)


def begin_report(chosen, folder, work, dataset):
    """Return the names of the stories, and {name: path} of the held-out texts, for a report that begins or goes on.

    Raises UserError, before anything is changed, if it was started with other settings, weights or texts.
    """
    name, texts = name_model(chosen.init_from), expand_path(chosen.corpora)
    model, _, _ = checkpoint.load_model(name, device='cpu')
    require_gpt(model, name, 'the report goes through model.py line by line, so it is about')
    stories, heldout = find_texts(texts)
    made_of = {
        'weights': checkpoint.weights_sha256(model),
        'texts': [file_sha256(path) for path in (*(texts / story for story in stories), *heldout.values())],
    }
    if chosen.again:
        put_away(folder, work, dataset)
    record_start(chosen, made_of, work, dataset)
    return stories, heldout


def put_away(folder, work, dataset):
    """If a report is complete, keep its page as REPORT-old.md, and delete its runs and its dataset.

    Otherwise `--again` is being repeated after an interruption, and the report is resumed. Raises UserError if there is
    an old page already.
    """
    page, kept = folder / 'REPORT.md', folder / 'REPORT-old.md'
    if page.is_file():
        if kept.exists():
            raise UserError(f'{page} would be kept as {kept}, which is there already: move it or delete it first')
        page.replace(kept)
        for old in (work, Path('data') / dataset):
            shutil.rmtree(old, ignore_errors=True)


def record_start(chosen, made_of, work, dataset):
    """Write down what a new report is made with. Raises UserError if this one was started with anything else.

    made_of: SHA-256 of the `weights`, and a list of those of the `texts`.
    """
    asked = {'init_from': name_model(chosen.init_from), 'corpora': str(expand_path(chosen.corpora).resolve())}
    asked |= {'iterations': chosen.iterations, 'measured': chosen.measured}
    record, start_over = work / 'settings.json', f'delete {work} and data/{dataset} to start over'
    if record.is_file():
        first = read_json(record)
        if other := ' '.join(f'--{name}={first[name]}' for name in asked if first[name] != asked[name]):
            raise UserError(f'this report was started with {other}: use the same to continue, or {start_over}')
        for what, sha256 in made_of.items():
            if first[what] != sha256:
                raise UserError(f'the {what} have changed since this report was started: {start_over}')
    elif work.exists() or (Path('data') / dataset).exists():
        raise UserError(f'there are files of an earlier report, and its settings are unknown: {start_over}')
    else:
        make_folder(work)
        write_results(record.name, asked | made_of, work)


def name_model(name):
    """Return the name of a model for commands: the path of a folder, from here if it is below, otherwise in full."""
    folder, here = expand_path(name), Path.cwd().resolve()
    if not folder.is_dir():
        return name
    folder = folder.resolve()
    return (folder.relative_to(here) if folder.is_relative_to(here) else folder).as_posix()


def find_texts(folder):
    """Return the names of the stories in a folder, and {name: path} of the held-out texts; build them if need be."""
    heldout = {name: folder / file for name, file in HELDOUT.items()}
    stories = [file for file in STORIES if (folder / file).is_file()]
    if not stories or not all(path.is_file() for path in heldout.values()):
        defaults = corpora.Settings()
        corpora.build_folder(folder, defaults.stories, defaults.heldout_stories)
        stories = [file for file in STORIES if (folder / file).is_file()]
    return stories, heldout


def copy_beginning(path, folder, size):
    """Write the first documents of a text, those that begin in its first `size` bytes, into a folder; return where."""
    documents, total = [], 0
    for document in split_documents(read_text_chunks(path), corpora.SEPARATOR):
        if total >= size:
            break
        documents.append(document)
        total += len(document.encode())
    make_folder(folder)
    copy = folder / path.name
    copy.write_text(corpora.SEPARATOR.join(documents), encoding='utf-8')
    return copy


def vary(prefix, settings, texts, iterations, run, folder):
    """Fine-tune in shorter runs with other learning rates and lengths; write and draw what came out."""
    quarter, half = iterations // 4, iterations // 2
    short = [{**settings, 'learning_rate': each, 'max_iters': quarter, 'eval_interval': quarter} for each in RATES]
    longer = [{**settings, 'learning_rate': RATE, 'max_iters': half, 'eval_interval': half}]
    by_rate = vary_fine_tuning(CONFIG, texts, short, prefix)
    longer = vary_fine_tuning(CONFIG, texts, longer, prefix)
    write_results('fine_tuning/sweep.json', {**by_rate, **longer, 'longest': run}, folder)
    by_length = [*(short for short in by_rate.values() if short['learning_rate'] == RATE), *longer.values(), run]
    draw_sweep(folder / 'fine_tuning/sweep.png', by_rate.values(), by_length)


# The page -------------------------------------------------------------------------------------------------------------


def write_report_page(chosen, folder, training, size):
    """Write the page of a report: the project's own, with this model's outputs, tables and numbers.

    training: the command that fine-tuned the model. size: of the training texts, in bytes.
    """
    name, page = name_model(chosen.init_from), folder / 'unfinished.md'
    text = (RESULTS / 'REPORT.md').read_text(encoding='utf-8')
    if not read_result('report/report.json', folder)['search']['proved']:
        text = text.replace(PROVED, 'the exact search, stopped by its limits before a proof')
    body = text[text.index('| question |') : text.rindex('---\n\n`python -m lab.experiment')]
    body = mark_paragraphs(turn_commands(turn_paths(body, folder), name, f'{OUT / folder.name / AFTER}'))
    head = HEAD.format(
        name=name, command=report_command(chosen), training=training, megabytes=size / 1e6, measured=chosen.measured
    )
    page.write_text(head + body + FOOT.format(name=name), encoding='utf-8')
    experiment_pages.fill_blocks(page, experiment_pages.report_blocks(folder))
    experiment_pages.refresh_numbers(page)
    experiment_pages.rerun_sessions(page, [name] if Path(name).is_dir() else [])
    page.replace(folder / 'REPORT.md')


def report_command(chosen):
    """Return the command that makes a report with these settings."""
    given = [(field, getattr(chosen, field.name)) for field in fields(chosen)]
    flags = [f'--{field.name}={value}' for field, value in given if value != field.default]
    return shlex.join(['python', '-m', 'lab.report', *flags])


def turn_paths(text, folder):
    """Return a page for another folder: links, and sources of numbers, lead to the same files unless it has its own."""

    def turn(found):
        path = found['path']
        if re.match('#|https?:', path) or (folder / path).exists():
            return found[0]
        return f'{found["before"]}{os.path.relpath(RESULTS / path, folder)}'

    text = re.sub(r'(?P<before>\]\()(?P<path>[^)#]+)', turn, text)
    return re.sub(r'(?P<before><!-- )(?P<path>[\w./-]+\.json)(?=:\s)', turn, text)


def turn_commands(text, name, out_dir):
    """Return a page whose commands and lines of Python are about another model."""
    pair, one = (
        shlex.join(flags) for flags in ([f'--out_dir={out_dir}', f'--compare_to={name}'], [f'--init_from={name}'])
    )
    text = text.replace('--init_from=tiny-stories --compare_to=tiny', pair)
    scripts = r'^(?:\$ )?python (?:sample\.py|visualize\.py \w+)(?= --)'
    text = re.sub(scripts, lambda found: f'{found[0]} {one}', text, flags=re.M)
    return text.replace("lm.load('tiny-stories')", f'lm.load({name!r})')


def mark_paragraphs(text):
    """Return a page on which the paragraphs about particular models begin with a mark, or are left out."""
    paragraphs = [part for part in text.split('\n\n') if ONLY_OF_THESE not in part]
    return '\n\n'.join(f'{MARK}{part}' if OF_THESE in part else part for part in paragraphs).replace(
        f'{OF_THESE}\n', ''
    )
