"""The likeliest next tokens after a prompt, as bars in the terminal."""

import math

from common.strings import shorten
from lm.alternatives import record_tokens
from lm.settings import model_name
from lm.wording import describe_model_probability, describe_sampler, differs_from_model
from pictures.terminal import new_table, print_parts

WIDTH = 24  # characters of the longest bar
EIGHTHS = ' ▏▎▍▌▋▊▉'


def print_next_tokens(model, tokenizer, settings, prompt, idx, count):
    """Print a table of the `count` likeliest tokens after a prompt, (1, T) ids.

    Of each its probability under the model and, if it is another, under the sampler; its surprisal in bits; and how
    likely it and all likelier ones are together.
    """
    sampler = settings.sampler()
    (step,) = model.steps(idx, 1, seed=settings.seed, **sampler)
    (record,) = record_tokens(step.logits, step.ids, count=count, text=step.text, **sampler)
    title = f'what comes after “{shorten(prompt, 60)}”: {model_name(settings)}, {describe_model_probability(settings)}'
    columns = ['token', '>probability', '', '>bits', '>cumulative']
    has_sampler = differs_from_model(**sampler)
    if has_sampler:
        columns.append('>sampler')
        title += f'; sampler: {describe_sampler(settings, fixed=False)}'
    table = new_table(title, *columns)
    total, largest = 0.0, math.exp(record.alternatives[0].model_logprob)
    pieces = tokenizer.pieces([other.id for other in record.alternatives])
    for other, piece in zip(record.alternatives, pieces, strict=True):
        prob = math.exp(other.model_logprob)
        total += prob
        row = [shorten(piece, 24), f'{prob:.4g}', make_bar(prob / largest), f'{-other.model_logprob / math.log(2):.2f}']
        row.append(f'{total:.4f}')
        if has_sampler:
            row.append(f'{math.exp(other.sampler_logprob):.4g}' if other.sampler_logprob > -math.inf else '—')
        table.add_row(*row)
    print_parts(table, f'entropy {record.entropy / math.log(2):.3f} bits')


def make_bar(share):
    """Return a bar of text whose length is a share, 0 to 1, of the longest, to an eighth of a character."""
    eighths = round(8 * WIDTH * share)
    return '█' * (eighths // 8) + EIGHTHS[eighths % 8].strip()
