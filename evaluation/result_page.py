"""The page of an evaluation: the rows of the report, token by token, with the other tokens that were likely.

The TokenRecords of a row are made while it is scored. If it was not known then that the page would show the row, its
whole window is scored again, in the same batches, so every number comes out bit for bit the same.
"""

import math

from tqdm import tqdm

from evaluation.results import KEPT, TEXT_SEGMENTS
from evaluation.scored_rows import score_units
from evaluation.sentences import (
    answer_sentences,
    describe_shown,
    method_sentences,
    report_heading,
    unusual_sentences,
)
from evaluation.sources import group_windows, window_start
from evaluation.tables import has_sampler
from pictures.page import Page, PageText, make_side, write_page

PAGE_TOKENS = 500  # of each response


def recorded_tokens(settings):
    """Return a function of a row's index: for how many of its tokens the page may need records.

    Without --save and --html there is no page. Otherwise it shows the first rows or, if two models are compared, the
    rows that changed most, which are not known before all are scored.
    """
    count = TEXT_SEGMENTS if settings.text else KEPT
    count = count if settings.save or settings.html else 0
    return lambda index: PAGE_TOKENS if index < count else 0


def complete_records(records, indices, source, subjects, settings, processes):
    """Add the records of rows that lack them; every process takes part, the first one gets them.

    records: {index: a list of TokenRecords for each model}. indices: the rows on the page.
    """
    missing = set(processes.broadcast([index for index in indices if index not in records]))
    windows = {window_start(index) for index in missing}
    units = (unit for unit in source.units() if window_start(unit[0]) in windows) if missing else ()
    for window in group_windows(units):
        share = processes.share(window)
        rows = score_units(share, source, subjects, settings, lambda index: PAGE_TOKENS if index in missing else 0)
        records |= {row['index']: row['records'] for row in processes.gather(rows) if 'records' in row}


def save_page(path, records, source, subjects, settings, results, summary):
    """Write the rows that the report shows as one HTML page."""
    rows = {row['index']: row for row in results.on_page}
    texts, missing = [], len(rows)
    for index, unit in tqdm(source.units(), unit=f' {results.unit}s', leave=False, disable=None):
        if index in rows:
            texts.append(page_text(rows[index], unit, records[index], source, subjects, settings, results.unit))
            missing -= 1
            if not missing:
                break
    page = Page(
        title=report_heading(summary),
        about=[
            *answer_sentences(summary),
            ' '.join(method_sentences(summary)),
            *unusual_sentences(summary),
            f'Shown: {describe_shown(results.on_page, summary)}.',
            summary['command'],
        ],
        models=[subject.name for subject in subjects],
        sampler=summary['sampler'] if has_sampler(summary) else None,
        texts=texts,
    )
    write_page(page, path)


def page_text(row, unit, records, source, subjects, settings, unit_name):
    """Return the PageText of a row. records: a list of TokenRecords for each model."""
    tokenizers = [subject.tokenizer for subject in subjects]
    item = source.encode(unit, tokenizers, settings.boundary, settings.separator)
    prompt_ids, _ = item.pairs[0][0]
    pairs = [choices[0] for choices in item.pairs]
    responses, sizes = [response for _, response in pairs], shown_sizes(pairs, tokenizers)
    label = str(row.get('id', f'{unit_name} {row["index"]}'))
    if any(size < len(response) for size, response in zip(sizes, responses)):
        label += f' (its first {sizes[0]} tokens of {row["tokens"]:,})'
    sides = [make_side(of_model[:size], tokenizer) for of_model, size, tokenizer in zip(records, sizes, tokenizers)]
    return PageText(label, tokenizers[0].decode(prompt_ids), sides)


def shown_sizes(pairs, tokenizers):
    """Return how many tokens of a response the page shows for each tokenizer: at most PAGE_TOKENS.

    If one of them has more, all are cut where the text of its first PAGE_TOKENS tokens ends. pairs: (prompt ids,
    response ids) of each.
    """
    ends = [
        tokenizer.byte_sizes(response, prompt).cumsum().tolist()  # of each token, in bytes
        for (prompt, response), tokenizer in zip(pairs, tokenizers)
    ]
    limit = min((end[PAGE_TOKENS - 1] for end in ends if len(end) > PAGE_TOKENS), default=math.inf)
    return [sum(place <= limit for place in end) for end in ends]
