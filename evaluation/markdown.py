"""How the results of eval.py are shown: tables for the terminal, and a page with pictures for keeping."""

import html
import re

from common.files import atomic_write
from common.strings import shorten, show_control_characters
from evaluation.sentences import MEASURES, ROLES, answer, how_measured, measure_lines, page_title, rows_text, which_text
from evaluation.tables import row_columns
from pictures.before_after import draw_before_after
from pictures.reliability import draw_reliability
from pictures.token_sheet import draw_token_sheet

TOKENS = 150  # of a response that the page shows, and
CHARACTERS = 600  # of a prompt


# A page for keeping -------------------------------------------------------------------------------------------------


def write_report(folder, results, summary):
    """Write report.md and its pictures into a folder."""
    text = summary['data']['kind'] == 'text'
    shown = results.on_page
    which = which_text(shown, summary)
    pictures = draw_pictures(folder, shown, which, summary)
    parts = [f'# {page_title(summary)}', ' '.join(answer(summary)), how_measured(summary)]
    parts += ['## All together', markdown_table(measure_lines(summary)), glossary(summary)]
    parts += pictures
    if 'multiple_choice' in summary:
        parts += multiple_choice_part(shown, which, summary)
    if not text:
        parts += rows_part(shown, which, summary)
    parts += ['## To have it again', f'```bash\n{summary["command"]}\n```', made_with(summary)]
    with atomic_write(folder / 'report.md') as path:
        path.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def glossary(summary):
    """Explain the measures that the table has."""
    names = [*summary['measures']['model'], *summary.get('multiple_choice', {}).get('model', [])]
    lines = [f'- **{MEASURES[name][0]}**: {MEASURES[name][1]}' for name in names]
    if any(of.get('greedy_rate', {}).get('value') in (0, 1) for role, of in summary['measures'].items()):
        lines.append('- of a share that is 0 % or 100 %, resampling cannot tell how sure it is')
    lines.append(
        '- **calibration error**: how far the model’s sureness is from how often it was right, on average (ECE)'
    )
    return '\n'.join(lines)


def draw_pictures(folder, rows, which, summary):
    """Draw what there is to draw, and return the parts of the page that show it."""
    parts = []
    compared, names = 'compare_to' in summary, [summary[role]['init_from'] for role in ROLES if role in summary]
    if rows and compared and summary['data']['kind'] == 'pairs':
        per_byte = summary['comparison']['per'] == 'byte'
        labels = [f'{shorten(row.get("prompt", ""), 32, from_end=True)} │{row["response"]}' for row in rows]
        sides = [[row['before'] for row in rows], rows]
        logprobs = [[side['logprob'] / (max(1, side['bytes']) if per_byte else 1) for side in of] for of in sides]
        unit = 'per byte (geometric mean)' if per_byte else 'of the whole response'
        draw_before_after(folder / 'before_after.png', labels, *logprobs, names[::-1], unit)
        parts += [
            '## What changed',
            '![before and after](before_after.png)',
            f'*Probability before and after, {which}.*',
        ]
    if rows and compared and summary['comparison']['per'] == 'byte':
        parts.append(
            'Tokens are not coloured by how much each changed: the two models cut the text into different tokens, so '
            'there is no pair of numbers to compare.'
        )
    elif rows:
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
        picture, caption = '![token by token](tokens.png)', f'*The tokens, coloured by {meaning}: {which}.*'
        parts += ['## Token by token', picture, caption]
    tables = {summary[role]['init_from']: of['table'] for role, of in summary['calibration'].items() if of['table']}
    if tables:
        draw_reliability(folder / 'reliability.png', tables)
        parts += [
            '## Does it know how much it knows?',
            '![reliability](reliability.png)',
            '*Of the tokens that the model found likeliest and gave a certain probability, what share came? On the '
            'diagonal, as many as it said. Points of few tokens (below) mean little.*',
        ]
    return parts


def multiple_choice_part(rows, which, summary):
    """Return the part about the questions: what was right, and what each model took instead."""
    roles = [role for role in ('compare_to', 'model') if role in summary]
    lines = [['prompt', 'right response', *(f'{summary[role]["init_from"]} prefers' for role in roles)]]
    for row in rows:
        if 'choices' in row:
            sides = [row['before'] if role == 'compare_to' else row for role in roles]
            lines.append([plain(row['prompt']), plain(row['choices'][0]['text']), *map(preferred, sides)])
    explanation = (
        f'A response is right if it is likelier than each of its distractors. Shown are the questions in {which}.'
    )
    return ['## Multiple choice', explanation, *([markdown_table(lines)] if len(lines) > 1 else [])]


def preferred(side):
    """Say which choice a model finds likeliest."""
    if side['right']:
        return 'the right one ✓'
    return plain(max(side['choices'][1:], key=lambda choice: choice['logprob'])['text'])


def rows_part(rows, which, summary):
    """Return the table of responses, each with its tokens and numbers."""
    columns = row_columns(summary)
    headings = [heading.replace('\n', ' ') for heading, _ in columns]
    lines = [['prompt', 'tokens of the response', *headings, 'ranks']]
    for row in rows:
        ranks = ' '.join(f'{rank:,}' for rank in row['token_ranks'][:TOKENS])
        more = f' … and {row["tokens"] - TOKENS:,} more' if row['tokens'] > TOKENS else ''
        cells = [write(row) for _, write in columns]
        lines.append([plain(row['prompt']), code(row['pieces'][:TOKENS]) + more, *cells, ranks + more])
    return [
        '## Each response',
        'A token ends at │; `·` is a space, `⏎` a new line. The rank of a token is 1 where greedy decoding says it. '
        f'Shown: {which}; pairs.jsonl has every number.',
        markdown_table(lines),
    ]


def made_with(summary):
    """Say which models, data and versions it was."""
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
    of_these = f' for the last {summary["rows"] - kept:,} of {rows_text(summary)}; the others were kept from before'
    lines.append(f'- it took {summary["run"]["seconds"]:,} seconds{of_these if kept else ""}')
    return '\n'.join(lines)


def markdown_table(lines):
    """Return a Markdown table of a heading and rows, numbers to the right."""
    heading, *rows = lines
    is_text = [not all(re.match(r'[-+]?\d|—|yes|no|inf', row[place]) for row in rows) for place in range(len(heading))]
    rule = ['---' if text else '---:' for text in is_text]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [heading, rule, *rows])


def plain(text):
    """Return a text as Markdown that shows it as it is, the end of a very long one."""
    text = html.escape(show_control_characters(shorten(' '.join(text.split()), CHARACTERS, from_end=True)), quote=False)
    return re.sub(r'([\\`*_\[\]~|#])', r'\\\1', text) or '(empty)'


def code(pieces):
    """Return pieces as Markdown code."""
    text = '│'.join(pieces).replace('|', '\\|')
    ticks = '`' * (max((len(run) for run in re.findall('`+', text)), default=0) + 1)
    space = ' ' if text.startswith('`') or text.endswith('`') else ''
    return f'{ticks}{space}{text}{space}{ticks}' if text else '(empty)'
