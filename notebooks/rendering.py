"""What the forms of the notebook show, as HTML that fits a dark page and a phone, too."""

import html
import math

from common.strings import shorten, show_invisible
from lm.wording import format_perplexity
from notebooks.runs import count_epochs, decimal

NO_NAME = '(a column without a name)'
LONGEST = 300  # characters of an example

# One look for Jupyter and Colab; only what their own styles lack. The labels of widgets are above them, not beside.
STYLE = """<style>
.ft-form { max-width: 60em; padding: 2px; font-size: 14px; line-height: 1.45; overflow-x: hidden; }
.ft-form .widget-html, .ft-form .widget-html-content { height: auto; line-height: 1.45; font-size: 14px; }
.ft-form .widget-html, .ft-form .widget-html-content { min-width: 0; max-width: 100%; }
.ft-form .widget-html-content { flex: 1 1 0; }
.ft-form .ft-field { flex-flow: column; align-items: stretch; height: auto; max-width: 40em; margin: 2px 0 6px; }
.ft-form .widget-box, .ft-form .widget-checkbox { margin: 0; max-width: 100%; overflow: visible; }
.ft-form .widget-box { width: 100%; }
.ft-form .ft-field > .widget-label { width: auto; height: auto; text-align: left; }
.ft-form .ft-field > .widget-label { white-space: normal; line-height: 1.35; font-weight: 600; }
.ft-form .ft-field > select, .ft-form .ft-field > input { flex: 0 0 auto; height: 32px; }
.ft-form .ft-field > textarea { flex: 0 0 auto; }
.ft-form .ft-field.widget-slider { flex-flow: row wrap; align-items: center; }
.ft-form .ft-field.widget-slider > .widget-label { flex: 1 1 8em; }
.ft-form .ft-field.widget-slider .slider-container { flex: 3 1 100%; order: 1; }
@media (min-width: 501px) {
  .ft-form .ft-field.widget-slider .slider-container { flex-basis: 8em; order: 0; }
}
.ft-form .widget-radio-box label { display: flex; align-items: flex-start; width: auto; height: auto; }
.ft-form .widget-radio-box label { white-space: normal; line-height: 1.4; text-align: left; margin-bottom: 4px; }
.ft-form .widget-radio-box input { flex: 0 0 auto; margin: 3px 8px 0 0; order: -1; }
.ft-form .widget-textarea textarea { min-height: 4.5em; }
.ft-form .jupyter-button { height: 34px; line-height: 32px; }
.ft-form .widget-image { margin: 0; }
.ft-line { border-left: 4px solid #8fb3d9; padding: 4px 10px; margin: 6px 0; overflow-wrap: anywhere; }
.ft-line.bad { border-color: #c0392b; } .ft-line.good { border-color: #3c8d40; }
.ft-hint { opacity: .75; }
.ft-scroll { overflow-x: auto; }
.ft-form table.ft { border-collapse: collapse; margin: 6px 0; }
.ft-form table.ft th, .ft-form table.ft td { border: 1px solid #8884; padding: 4px 10px; text-align: right; }
@media (max-width: 500px) { .ft-form table.ft th, .ft-form table.ft td { padding: 3px 2px; font-size: 12px; } }
.ft-form table.ft th { font-weight: 600; } .ft-form table.ft .best { font-weight: 700; }
.ft-form table.ft th:first-child { text-align: left; }
.ft-sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17em, 100%), 1fr)); gap: 10px; }
.ft-side { border: 1px solid #8884; border-radius: 4px; padding: 6px 10px; }
.ft-text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 6px 0; }
.ft-prompt { font-weight: 600; }
.ft-page { width: 100%; height: 640px; border: 1px solid #8884; background: #fff; }
.jp-RenderedMarkdown details { margin-bottom: 1em; }
.jp-RenderedText pre { word-break: normal; overflow-wrap: anywhere; }
@media (pointer: coarse) { /* for fingers; below 16px, an iPhone enlarges the page when a field is touched */
  .ft-form .jupyter-button { height: 44px; line-height: 42px; }
  .ft-form .ft-field > select, .ft-form .ft-field > input { height: 44px; }
  .ft-form .ft-field > select, .ft-form .ft-field > input, .ft-form textarea { font-size: 16px; }
  .ft-form .widget-checkbox, .ft-form .widget-checkbox label { height: auto; min-height: 44px; align-items: center; }
  .ft-form .widget-checkbox label { display: flex; gap: 8px; }
  .ft-form .widget-radio-box label { padding: 10px 0; margin: 0; }
  .ft-form .widget-checkbox input, .ft-form .widget-radio-box input { width: 20px; height: 20px; }
  .ft-form .widget-slider .slider-container { height: 36px; padding-top: 16px; box-sizing: border-box; }
  .ft-form .widget-slider .noUi-touch-area { transform: scale(2.5); }
  .jp-RenderedMarkdown summary { padding: 11px 0; }
}
</style>"""


def escape(text):
    """Return a text as HTML, in which nothing of it has a meaning of its own."""
    return html.escape(show_invisible(text))


def line(text, kind=''):
    """Return a sentence about what happens. kind: 'busy', 'good', 'bad' or ''."""
    role = 'alert' if kind == 'bad' else 'status'
    mark = {'busy': '… ', 'good': '✓ ', 'bad': '✗ '}.get(kind, '')
    return f'<div class="ft-line {kind}" role="{role}">{mark}{escape(text)}</div>' if text else ''


def hint(text):
    """Return an explanation of a choice."""
    return f'<span class="ft-hint">{escape(text)}</span>' if text else ''


def hints(texts):
    """Return several sentences, each on a line of its own."""
    return ''.join(f'<div>{hint(text)}</div>' for text in texts)


def column_label(column):
    """Return the name of a column with an example."""
    example = next(filter(str.strip, column.examples), '')
    return f'{column.name or NO_NAME}: {shorten(example, 60)}'


def examples(column):
    """Return the first texts of a column, shortened."""
    cut = [text if len(text) <= LONGEST else f'{text[:LONGEST]} …' for text in map(str.strip, column.examples)]
    texts = ''.join(f'<li class="ft-text">{escape(text)}</li>' for text in cut)
    return f'<div>The first texts (on average {column.length:,.0f} characters long):</div><ol>{texts}</ol>'


def parts(texts, counts):
    """Return what the texts in use are called, and a table of their parts: part -> documents, bytes, tokens."""
    names = {
        'train': 'training: learned from',
        'val': 'validation: to compare runs',
        'test': 'test: to measure at the end',
    }
    rows = [[names[part], f'{of["documents"]:,}', f'{of["tokens"]:,}'] for part, of in counts.items()]
    return hint(f'In use: {texts}') + table(['part', 'documents', 'tokens'], rows)


def table(head, rows):
    """Return a table; a cell that is a tuple is (text, class)."""
    cells = [[cell if isinstance(cell, tuple) else (cell, '') for cell in row] for row in rows]
    body = ''.join(
        f'<tr><th scope="row">{escape(first[0])}</th>'
        + ''.join(f'<td class="{kind}">{escape(text)}</td>' for text, kind in others)
        + '</tr>'
        for first, *others in cells
    )
    heads = ''.join(f'<th scope="col">{escape(text)}</th>' for text in head)
    return f'<div class="ft-scroll"><table class="ft"><tr>{heads}</tr>{body}</table></div>'


# Measurements ---------------------------------------------------------------------------------------------------------

MOST = 1_000_000  # a larger perplexity says no more
CHANCE = 0.05  # the p-value from which on a difference may well be chance
MEASURES = {'perplexity': 'perplexity per token', 'bits_per_byte': 'bits per byte'}


def measurement(found, part):
    """Return perplexity and bits per byte, before or before and after training.

    found: what `steps.measure` returns. part: how much the test part holds.
    """
    measures = found['measures']
    roles = {'model': 'now'}
    if 'compare_to' in measures:
        roles = {'compare_to': 'before', 'model': 'after', 'difference': 'difference'}
    rows = [[name, *(with_interval(measures[role][key]) for role in roles)] for key, name in MEASURES.items()]
    about = (
        f'On the test part, which training never saw (documents: {part["documents"]:,}, tokens: {part["tokens"]:,}). '
        'In brackets: the 95% interval.'
    )
    return hint(about) + table(['', *roles.values()], rows) + conclusion(found)


def with_interval(value):
    """Return a number with its interval, if it has one: a single segment gives none."""
    number, low, high = value.values()
    if number is None or low is high is None:
        return short(number)
    return f'{short(number)} ({short(low)} to {short(high)})'


def short(number):
    """Return a number in four digits, or in whole numbers if it is large, or in six decimals if small.

    None stands for an infinite one.
    """
    if number is None:
        return 'infinite'
    size = abs(number)
    return f'{number:,.0f}' if size >= 1000 else f'{number:z.6f}' if 0 < size < 0.001 else f'{number:.4g}'


def conclusion(found):
    """Return what the numbers mean, as a sentence."""
    measures = found['measures']
    if 'difference' not in measures:
        now = short(measures['model']['perplexity']['value'])
        return line(f'The model hesitates as if it had to choose among {now} equally likely tokens each time.')
    change = measures['difference']['perplexity']
    if change['value'] is None:
        return line('One of the perplexities is infinite, so they cannot be compared.')
    if None not in change.values() and change['low'] <= 0 <= change['high']:
        return line('The interval of the difference contains 0: the change may be chance.')
    verb = 'better' if change['value'] < 0 else 'worse'
    if found['comparison']['p_value'] >= CHANCE:  # the interval of a few segments is too narrow
        return line(
            f'After fine-tuning, the model predicts the test part {verb}, but this part is too small to tell whether '
            'that is more than chance: choose more texts.'
        )
    return line(f'After fine-tuning, the model predicts texts like yours {verb}, and that is more than chance.')


def runs(made, rates, epochs, before):
    """Return the table of runs: a row for each learning rate, a column for each number of epochs.

    made: Runs that can be compared. before: their perplexity on the validation part before training, None if unknown.
    """
    rates = sorted({*rates, *(run.learning_rate for run in made)})
    epochs = sorted({*epochs, *(run.epochs for run in made)})
    best = min((run.best for run in made if run.best is not None), default=None)
    of = {(run.learning_rate, run.epochs): run for run in made}
    rows = [[decimal(rate), *(run_cell(of.get((rate, count)), best) for count in epochs)] for rate in rates]
    head = ['learning rate', *map(count_epochs, epochs)]
    first = '' if before is None else f'Before training it is {short(before)}. '
    about = f'Perplexity on the validation part, lower is better. {first}★ the lowest; ↑ higher than before training.'
    return hint(about) + table(head, rows)


def run_cell(run, best):
    """Return what the table says about a run, and how."""
    if run is None:
        return '·'
    if run.best is None:
        of_outcome = {'done': short(None), 'too large': short(None), '': '…'}
        return of_outcome.get(run.outcome, run.outcome)
    shown = short(run.best) if run.best < MOST else f'over {MOST:,}'
    worse = ' ↑' if run.before is not None and run.best > run.before else ''
    stopped = {'stopped': ' (stopped)', '': ' …'}.get(run.outcome, '')
    if run.best == best and not worse:
        return f'★ {shown}{stopped}', 'best'
    return f'{shown}{worse}{stopped}'


# Samples --------------------------------------------------------------------------------------------------------------


def samples(written):
    """Return texts side by side. written: a list of (prompt, {heading: [Sample]})."""
    return ''.join(
        f'<div><h4 class="ft-prompt">{escape(prompt)} …</h4><div class="ft-sides">'
        + ''.join(side(heading, prompt, texts) for heading, texts in by_model.items())
        + '</div></div>'
        for prompt, by_model in written
    )


def side(heading, prompt, texts):
    """Return what one model wrote after a prompt, and how likely each text is."""
    shown = ''.join(
        f'<div class="ft-text"><span class="ft-prompt">{escape(prompt)}</span>{escape(sample.text)}</div>'
        f'<div>{hint(likelihood(sample.response))}</div>'
        for sample in texts
    )
    return f'<div class="ft-side"><strong>{escape(heading)}</strong>{shown}</div>'


def likelihood(response):
    """Return how likely a text was to be sampled, and how well the model itself predicts it."""
    n = len(response.ids)
    if not n:
        return ''
    model = math.fsum(response.model_logprobs)
    drawn = chance(math.fsum(response.sampler_logprobs))
    return (
        f'Sampler: {drawn} that these {n} tokens are drawn. Model: perplexity {format_perplexity(model, n)} per token.'
    )


def chance(logprob):
    """Return how likely something is, in words."""
    exponent = -logprob / math.log(10)
    if not exponent:
        return 'it is certain'
    return f'1 in 10^{exponent:.0f}' if exponent >= 1 else f'1 in {10**exponent:.2g}'


def frame(page):
    """Return a page inside the page."""
    title = 'Every token, and what could have come instead'
    return f'<iframe class="ft-page" title="{title}" srcdoc="{html.escape(page)}"></iframe>'
