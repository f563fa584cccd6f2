"""The report of an evaluation: report.md and its pictures."""

import html
import re

from common.files import atomic_write
from common.strings import shorten, show_control_characters
from evaluation.sentences import (
    answer_sentences,
    count_rows,
    describe_shown,
    method_sentences,
    report_heading,
    unusual_sentences,
)
from evaluation.tables import ROLES, measure_lines, row_columns, row_remarks, shown_measures
from pictures.before_after import draw_before_after
from pictures.reliability import draw_reliability
from pictures.text_gain import draw_text_gain
from pictures.token_sheet import draw_token_sheet

TOKENS = 150  # of a response that the report shows
CHARACTERS = 600  # of a prompt that the report shows


def write_report(folder, results, summary):
    """Write report.md and its pictures into a folder."""
    rows = results.on_page
    parts = [
        f'# {report_heading(summary)}',
        ' '.join(answer_sentences(summary)),
        ' '.join(method_sentences(summary)),
        *map(escape_markdown, unusual_sentences(summary)),
        '## All together',
        markdown_table(measure_lines(summary)),
        glossary(summary),
        *before_after_part(folder, rows, summary),
        *text_part(folder, rows, summary),
        *tokens_part(folder, rows, summary),
        *reliability_part(folder, summary),
        *multiple_choice_part(rows, summary),
        *rows_part(rows, summary),
        '## How to reproduce it',
        f'```bash\n{summary["command"]}\n```',
        origins(summary),
    ]
    with atomic_write(folder / 'report.md') as path:
        path.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def glossary(summary):
    """Return a list that explains the measures in the table."""
    lines = [f'- **{measure.label}**: {measure.meaning}' for measure in shown_measures(summary)]
    rates = [measures.get('greedy_rate', {}).get('value') for measures in summary['measures'].values()]
    if any(rate in (0, 1) for rate in rates):
        lines.append('- resampling cannot tell how uncertain a share of 0 % or 100 % is')
    return '\n'.join(lines)


def before_after_part(folder, rows, summary):
    """Draw each response's probability under both models, and return the part of the report that shows it."""
    if 'comparison' not in summary or summary['data']['kind'] != 'pairs':
        return []
    per_byte = summary['comparison']['per'] == 'byte'
    labels = [f'{shorten(row["prompt"], 32, from_end=True)} │{row["response"]}' for row in rows]
    before, after = (
        [side['logprob'] / (max(1, side['bytes']) if per_byte else 1) for side in sides]
        for sides in ([row['before'] for row in rows], rows)
    )
    names = [summary[role]['init_from'] for role in ('compare_to', 'model')]
    unit = 'per byte (geometric mean)' if per_byte else 'of the whole response'
    draw_before_after(folder / 'before_after.png', labels, before, after, names, unit)
    return [
        '## What changed',
        '![before and after](before_after.png)',
        f'*Probability before and after: {describe_shown(rows, summary)}.*',
    ]


def text_part(folder, rows, summary):
    """Draw the probability of each response's text beside that of its usual tokens, with the part that shows it."""
    if 'whole_text' not in summary:
        return []
    labels = [f'{shorten(row["prompt"], 32, from_end=True)} │{row["response"]}' for row in rows]
    columns = ([row['text'][name] for row in rows] for name in ('tokens_logprob', 'log_lower', 'log_upper'))
    draw_text_gain(folder / 'tokens_and_text.png', labels, *columns)
    return [
        '## Tokens and text',
        '![tokens and text](tokens_and_text.png)',
        f'*How much likelier a text is than the tokens it is usually cut into: {describe_shown(rows, summary)}.*',
    ]


def tokens_part(folder, rows, summary):
    """Draw the tokens, coloured by their logprob or its change, and return the part of the report that shows them."""
    compared = 'comparison' in summary
    if compared and summary['comparison']['per'] == 'byte':
        return [
            'Tokens are not coloured by how much each changed: the two models cut the text into different tokens, so '
            'there are no pairs of tokens to compare.'
        ]
    lines = []
    for row in rows:
        values = row['token_logprobs']
        if compared:
            values = [after - before for after, before in zip(values, row['before']['token_logprobs'], strict=True)]
        more = len(values) - TOKENS
        pieces = [*row['pieces'][:TOKENS], f' … and {more:,} more'] if more > 0 else row['pieces']
        lines.append((row.get('prompt', ''), pieces, [*values[:TOKENS], 0.0] if more > 0 else values))
    meaning, scale = ('change of the logprob', 'around 0') if compared else ('logprob', 'below 0')
    draw_token_sheet(folder / 'tokens.png', lines, f'{meaning} of the token', scale)
    return [
        '## Token by token',
        '![token by token](tokens.png)',
        f'*The tokens, coloured by {meaning}: {describe_shown(rows, summary)}.*',
    ]


def reliability_part(folder, summary):
    """Draw the reliability diagram, and return the part of the report that shows it."""
    tables = {
        summary[role]['init_from']: calibration['table']
        for role, calibration in summary['calibration'].items()
        if calibration['table']
    }
    if not tables:
        return []
    draw_reliability(folder / 'reliability.png', tables)
    return [
        '## Does it know how much it knows?',
        '![reliability](reliability.png)',
        '*How often did the model’s likeliest token come, when the model gave it a certain probability? On the '
        'diagonal, as often as the model said. Points with few tokens (lower plot) mean little.*',
    ]


def multiple_choice_part(rows, summary):
    """Return the part about the questions: what was right, and what each model preferred instead."""
    if 'multiple_choice' not in summary:
        return []
    roles = [role for role in ('compare_to', 'model') if role in summary]
    lines = [['prompt', 'right response', *(f'{summary[role]["init_from"]} prefers' for role in roles)]]
    for row in rows:
        if 'choices' in row:
            sides = [row['before'] if role == 'compare_to' else row for role in roles]
            right = escape_markdown(row['choices'][0]['text'])
            lines.append([escape_markdown(row['prompt']), right, *map(preferred_choice, sides)])
    explanation = (
        'A question counts as right if its right response is likelier than every distractor. '
        f'Shown: the questions among {describe_shown(rows, summary)}.'
    )
    return ['## Multiple choice', explanation, *([markdown_table(lines)] if len(lines) > 1 else [])]


def preferred_choice(side):
    """Return the choice that a model finds likeliest, as Markdown."""
    if side['right']:
        return 'the right one ✓'
    return escape_markdown(max(side['choices'][1:], key=lambda choice: choice['logprob'])['text'])


def rows_part(rows, summary):
    """Return the table of responses, each with its tokens and numbers; nothing for a running text."""
    if summary['data']['kind'] == 'text':
        return []
    columns = row_columns(summary)
    headings = [column.heading.replace('\n', ' ') for column in columns]
    lines = [['prompt', 'tokens of the response', *headings, 'ranks']]
    for row in rows:
        ranks = ' '.join(f'{rank:,}' for rank in row['token_ranks'][:TOKENS])
        more = f' … and {row["tokens"] - TOKENS:,} more' if row['tokens'] > TOKENS else ''
        cells = [column.cell(row) for column in columns]
        remarks = ''.join(f' ({remark})' for remark in row_remarks(row))
        response = inline_code(row['pieces'][:TOKENS]) + more + remarks
        # With a chat template, the prompt is what the template made of it, token by token.
        prompt = escape_markdown(row['prompt'])
        if 'prompt_pieces' in row:
            cut = '… ' if len(row['prompt_pieces']) > TOKENS else ''
            prompt = cut + inline_code(row['prompt_pieces'][-TOKENS:])
        lines.append([prompt, response, *cells, ranks + more])
    return [
        '## Each response',
        'Tokens are separated by │; `·` is a space, `⏎` a newline. Rank 1 is the token that greedy decoding picks. '
        f'Shown: {describe_shown(rows, summary)}; pairs.jsonl has every number.',
        markdown_table(lines),
    ]


def origins(summary):
    """Return a list of the models, data and versions that the numbers come from."""
    data, lines = summary['data'], []
    for role in ('compare_to', 'model'):
        if role in summary:
            model = summary[role]
            lines.append(
                f'- {ROLES[role] if "compare_to" in summary else "model"}: `{model["init_from"]}`, '
                f'{model["parameters"]:,} parameters, weights SHA-256 `{model["weights_sha256"][:16]}…`'
            )
    if data['name'] is not None:
        lines.append(f'- data: `{data["name"]}`, SHA-256 `{data["sha256"][:16]}…`')
    lines.append('- versions: ' + ', '.join(f'{name} {number}' for name, number in summary['versions'].items()))
    kept = summary['run']['kept_from_before']
    scored = f' for the last {summary["rows"] - kept:,} of {count_rows(summary)}; the others were scored earlier'
    lines.append(f'- it took {summary["run"]["seconds"]:,} seconds{scored if kept else ""}')
    return '\n'.join(lines)


# Markdown -----------------------------------------------------------------------------------------------------------


def markdown_table(lines):
    """Return a Markdown table of headings and rows, numbers on the right."""
    headings, *rows = lines
    is_text = [not all(re.match(r'[-+]?\d|—|yes|no|inf', row[place]) for row in rows) for place in range(len(headings))]
    rule = ['---' if text else '---:' for text in is_text]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [headings, rule, *rows])


def escape_markdown(text):
    """Return Markdown that shows a text as it is; only the end of a very long one."""
    text = html.escape(show_control_characters(shorten(' '.join(text.split()), CHARACTERS, from_end=True)), quote=False)
    return re.sub(r'([\\`*_\[\]~|#])', r'\\\1', text) or '(empty)'


def inline_code(pieces):
    """Return pieces as Markdown code."""
    text = '│'.join(pieces).replace('|', '\\|')
    ticks = '`' * (max((len(run) for run in re.findall('`+', text)), default=0) + 1)
    space = ' ' if text.startswith('`') or text.endswith('`') else ''
    return f'{ticks}{space}{text}{space}{ticks}' if text else '(empty)'
