"""The pages of the experiment: their prose is written by people, their tables and numbers are put right by code.

Each generated table is between two comments, which readers of the page do not see:

    <!-- generated: search -->
    ...
    <!-- end -->

Only what is between them is replaced. Numbers in the prose have sources (check_page_numbers.py).
"""

import math
import re
import shlex
import tempfile
from pathlib import Path

from common.errors import UserError
from common.files import atomic_write
from evaluation.markdown import markdown_table
from evaluation.sentences import comparison_sentences
from evaluation.tables import format_interval
from lab import check_page_numbers
from lab.experiment_runs import KINDS, OUT, RESULTS, read_result, read_scored_pairs, run_code, run_script

TEXTS = {
    'heldout': 'held-out fairy tales',
    'simple': 'held-out TinyStories',
    'stories': 'stories, validation part',
    'prose': 'prose, validation part',
}
CORPORA = {  # the training texts, by the names of their files
    'novels': 'novels',
    'victorian_children': "Victorian children's books",
    'childrens_stories': "children's books",
    'fairytales': 'fairy tales',
    'simple_stories': 'simple stories',
    'tinystories': 'TinyStories',
}
MOST_CHANGED = 5  # pairs at either end that the report shows
BLOCK = re.compile(r'(?P<start><!-- generated: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)', re.DOTALL)
SESSION = re.compile(  # a block with one command and its output
    r'^```text\n\$ python (?P<command>(?:sample|visualize|eval)\.py(?: [^\n]+)?)\n(?:(?!\$ |```)[^\n]*\n)*```$',
    re.MULTILINE,
)
PROGRAM = re.compile(  # a block of Python, and one with what it prints
    r'^(?P<block>```python\n(?P<code>(?:(?!```)[^\n]*\n)*)```\n\n)```text\n(?!\$ )(?:(?!```)[^\n]*\n)*```$',
    re.MULTILINE,
)


# Pages --------------------------------------------------------------------------------------------------------------


def pages_with_numbers():
    """Return the paths of the pages whose numbers have sources."""
    folders = [
        path for pattern in ('results/*/README.md', 'models/*/README.md', 'docs/*.md') for path in Path().glob(pattern)
    ]
    return [Path('README.md'), RESULTS / 'REPORT.md', *sorted(folders)]


def fill_blocks(page, blocks):
    """Replace the generated blocks of a page. blocks: name -> Markdown, for exactly the blocks on the page."""
    text = page.read_text(encoding='utf-8')
    names = [block['name'] for block in BLOCK.finditer(text)]
    if sorted(names) != sorted(blocks):
        raise UserError(f'{page} has the generated blocks {", ".join(names)}; it must have {", ".join(blocks)}')
    save_if_changed(page, BLOCK.sub(lambda block: f'{block["start"]}\n{blocks[block["name"]]}\n\n{block["end"]}', text))


def refresh_numbers(page):
    """Replace the numbers of a page that have sources by what their sources say."""
    save_if_changed(page, check_page_numbers.refresh_numbers(page))


def rerun_sessions(page, models=()):
    """Replace the outputs on a page by what its commands print now. models: folders that they read, beside OUT."""

    def rerun(session):
        with tempfile.TemporaryDirectory() as folder:  # for the files it writes, which are not needed
            for path in (OUT, *map(Path, models)):
                link = Path(folder) / path
                if not link.exists():  # an absolute path does, and a folder in OUT
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(path.resolve())
            printed = run_script(*shlex.split(session['command']), quiet=True, cwd=folder)
        return f'```text\n$ python {session["command"]}\n{printed.strip()}\n```'

    def rerun_program(program):
        return f'{program["block"]}```text\n{run_code(program["code"]).strip()}\n```'

    text = SESSION.sub(rerun, page.read_text(encoding='utf-8'))
    save_if_changed(page, PROGRAM.sub(rerun_program, text))


def save_if_changed(page, text):
    """Write the text of a page, if it has changed."""
    if text != page.read_text(encoding='utf-8'):
        with atomic_write(page) as temporary:
            temporary.write_text(text, encoding='utf-8')


# How the models were chosen -----------------------------------------------------------------------------------------


def models_blocks(common, search, shipped):
    """Return the generated blocks of results/models/README.md.

    common: the settings that the short runs share. search: {name: short run}, which says what was `varied` in it.
    shipped: {model: its run}.
    """
    blocks = {'common-settings': f'`{" ".join(f"--{key}={value}" for key, value in common.items())}`'}
    blocks['search'] = runs_table(search.values())
    for name, run in shipped.items():
        blocks[name] = runs_table([{'varied': {}, **run}])
    return blocks


def runs_table(runs):
    """Return a Markdown table of training runs."""
    rows = [['changed setting', 'million parameters', 'epochs', 'training part', 'validation part', 'best validation']]
    for run in runs:
        varied = ', '.join(f'`{key}={value}`' for key, value in run['varied'].items()) or '(none)'
        best = min(row['val'] for row in run['curve'])
        sizes = f'{run["parameters"] / 1e6:.2f}', f'{run["epochs"]:.2f}'
        rows.append([varied, *sizes, f'{run["train"]:.4f}', f'{run["val"]:.4f}', f'{best:.4f}'])
    return markdown_table(rows)


# The effect of fine-tuning ------------------------------------------------------------------------------------------


def fine_tuning_blocks(pairs, kinds, texts, samples, sweep):
    """Return the generated blocks of results/fine_tuning/README.md.

    pairs: the summary that eval.py saved. The others: as experiment.py saved them.
    """
    return {
        'pairs': ' '.join(comparison_sentences(pairs)),
        'kinds': kinds_table(kinds),
        'texts': texts_table(texts),
        'samples': samples_tables(samples),
        'sweep': sweep_table(sweep),
    }


def report_blocks(results):
    """Return the generated blocks of the report, from the numbers in the folder `results`."""
    rows = read_scored_pairs(results)
    texts, report = (read_result(f'{name}.json', results) for name in ('fine_tuning/texts', 'report/report'))
    by_change = sorted(rows, key=lambda row: row['log_ratio'], reverse=True)
    return {
        'changed-most': pairs_table([*by_change[:MOST_CHANGED], *by_change[-MOST_CHANGED:]]),
        'all-pairs': pairs_table(rows),
        'texts': texts_table(texts),
        'beginnings': beginnings_table(report['length']['beginnings']),
        'language': language_table(report['language']['texts']),
    }


def pairs_table(rows):
    """Return a Markdown table of pairs: the probability of each response before and after, and an arrow."""
    table = [['prompt', 'response', 'before', 'after', 'change of the logprob']]
    for row in rows:
        probs = (f'{side["prob"]:.1e}' for side in (row['before'], row))
        change = row['log_ratio']
        arrow = '↑' if change > 0 else '↓' if change < 0 else '='
        texts = (escape_cell(row[key].strip()) for key in ('prompt', 'response'))
        table.append([*texts, *probs, f'{arrow} {change:+.1f}'.replace('-', '−')])
    return markdown_table(table)


def beginnings_table(beginnings):
    """Return a Markdown table of the mean logprob per token of the first 1, 2, 4, ... tokens of texts."""
    names = {
        'stories': 'the 52 stories, with their titles',
        'without_titles': 'the same, without titles',
        'tales': 'held-out fairy tales',
    }
    table = [['mean logprob per token of the first ... tokens', *beginnings['stories']]]
    for name, means in beginnings.items():
        cells = [f'{means[length]:.2f}' if length in means else '' for length in beginnings['stories']]
        table.append([names[name], *cells])
    return markdown_table(table)


def language_table(texts):
    """Return a Markdown table of the statistics of texts, a row for each."""
    columns = {
        'words': '{words:,}',
        'words per sentence, mean': '{words_per_sentence:.2f}',
        'median': '{median_words_per_sentence}',
        'letters per word': '{letters_per_word:.2f}',
        'different words in 10,000': '{distinct_words:,.0f}',
        'spoken': '{dialogue_share:.1%}',
        'most common first five words': '*{words}*: {count:,} of {documents:,}',
    }
    table = [['text', *columns]]
    for name, text in texts.items():
        *forms, of_opening = columns.values()
        known = {**text, 'distinct_words': text['distinct_words'] or math.nan}  # None for a short text
        cells = [form.format(**known) for form in forms]
        table.append([CORPORA[name], *cells, of_opening.format(**text['opening'])])
    return markdown_table(table)


def kinds_table(kinds):
    """Return a Markdown table of how the pairs of each kind changed."""
    rows = [['kind of pair', 'pairs', 'became likelier', 'mean log-ratio']]
    for kind, values in kinds.items():
        ratio = f'{values["mean_log_ratio"]:+.2f}'
        rows.append([KINDS.get(kind, kind), str(values['pairs']), str(values['rose']), ratio])
    return markdown_table(rows)


def texts_table(texts):
    """Return a Markdown table of bits per byte and perplexity of each text, before and after."""
    rows = [
        ['text', 'bytes', 'bits per byte, before', 'bits per byte, after', 'perplexity, before', 'perplexity, after']
    ]
    for name, values in texts.items():
        cells = [
            format_interval(values[role][measure], form)
            for measure, form in (('bits_per_byte', '{:.3f}'), ('perplexity', '{:.1f}'))
            for role in ('compare_to', 'model')
        ]
        rows.append([TEXTS[name], f'{values["bytes"]:,}', *cells])
    return markdown_table(rows)


def samples_tables(samples):
    """Return what both models wrote from the same prompts and seeds: a Markdown table for each text."""
    parts = []
    for prompt, texts in samples['tiny'].items():
        for before, after in zip(texts, samples['tiny-stories'][prompt]):
            rows = [['`tiny`', '`tiny-stories`'], [escape_cell(before['text']), escape_cell(after['text'])]]
            parts += [f'`--start="{prompt}" --seed={before["seed"]}`', markdown_table(rows)]
    return '\n\n'.join(parts)


def escape_cell(text):
    """Return a text for a table cell: Markdown's special characters are escaped, newlines become `⏎`."""
    return re.sub(r'([\\`*_\[\]|<])', r'\\\1', ' ⏎ '.join(line for line in text.split('\n') if line.strip()))


def sweep_table(sweep):
    """Return a Markdown table of the outcome of each way to fine-tune."""
    rows = [['learning rate', 'epochs', 'TinyStories: bits per byte', 'fairy tales', 'pairs: mean logprob']]
    for run in sweep.values():
        simple, tales = (f'{run["texts"][text]["bits_per_byte"]["value"]:.3f}' for text in ('simple', 'heldout'))
        rows.append(
            [f'{run["learning_rate"]:g}', f'{run["epochs"]:.2f}', simple, tales, f'{run["pairs"][-1]["logprob"]:.2f}']
        )
    return markdown_table(rows)
