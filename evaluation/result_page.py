"""The page of an evaluation: the rows that the report shows, token by token, with what else each model could have said.

A row's TokenRecords are made while it is scored. Where it was not known then that the page would show the row, its
whole window is scored again: in the same batches, so that every number comes out the same to the last bit.
"""

import math
from itertools import accumulate, groupby

from tqdm import tqdm

from evaluation.measures import KEPT, TEXT_SEGMENTS
from evaluation.rows import score_units
from evaluation.sentences import answer, how_measured, page_title, which_text
from lm.scoring import WINDOW
from pictures.page import Page, PageText, make_side, write_page

PAGE_TOKENS = 500  # of each response


def recorded_tokens(settings):
    """Return a function of a row's index: for how many tokens the page may need records, as far as that is known.

    Without --save there is no page. Otherwise it shows the first rows or, when two models are compared, those that
    changed most, which are all of them if there are few.
    """
    first = 0 if settings.save is None else TEXT_SEGMENTS if settings.text else KEPT
    return lambda index: PAGE_TOKENS if index < first else 0


def complete_records(records, indices, source, subjects, settings, processes):
    """Add the records of rows that lack them; every process takes part, the first one gets them.

    records: {index: a list of TokenRecords for each model}. indices: of the rows on the page.
    """
    missing = set(processes.broadcast([index for index in indices if index not in records]))
    windows = {index // WINDOW for index in missing}
    units = (unit for unit in source.units() if unit[0] // WINDOW in windows) if missing else ()
    for _, window in groupby(units, key=lambda unit: unit[0] // WINDOW):
        share = processes.share(list(window))
        rows = score_units(share, source, subjects, settings, lambda index: PAGE_TOKENS if index in missing else 0)
        records |= {row['index']: row['records'] for row in processes.gather(rows) if 'records' in row}


def save_page(path, records, source, subjects, settings, results, summary):
    """Write the rows that the report shows as one page."""
    rows = results.on_page
    left = {row['index']: row for row in rows}
    tokenizers = [subject.tokenizer for subject in subjects]
    texts, units = [], source.units()
    for index, unit in tqdm(units, unit=f' {results.unit}s', leave=False, disable=None):
        if not left:
            break
        if index not in left:
            continue
        row = left.pop(index)
        pairs = [choices[0] for choices in source.encode(unit, tokenizers, settings.boundary, settings.separator).pairs]
        sizes = shown_sizes([response for _, response in pairs], tokenizers)
        label = str(row.get('id', f'{results.unit} {index}'))
        if any(size < len(response) for size, (_, response) in zip(sizes, pairs)):
            label += f' (its first {sizes[0]} tokens of {row["tokens"]:,})'
        sides = [
            make_side(of_model[:size], tokenizer)
            for of_model, size, tokenizer in zip(records[index], sizes, tokenizers)
        ]
        texts.append(PageText(label, tokenizers[0].decode(pairs[0][0]), sides))
    write_page(
        Page(
            title=page_title(summary),
            about=[
                *answer(summary),
                how_measured(summary),
                f'Shown: {which_text(rows, summary)}.',
                summary['command'],
            ],
            models=[subject.name for subject in subjects],
            sampler=summary['sampler'] if settings.temperature != 1 else None,
            texts=texts,
        ),
        path,
    )


def shown_sizes(responses, tokenizers):
    """Return how many tokens of a response the page shows, as each tokenizer cuts it: at most PAGE_TOKENS.

    If one of them has more, all are cut where the text of its first PAGE_TOKENS ends.
    """
    ends = [
        list(accumulate(len(tokenizer.decode_bytes([id])) for id in response))  # in bytes, of each token
        for response, tokenizer in zip(responses, tokenizers)
    ]
    limit = min((end[PAGE_TOKENS - 1] for end in ends if len(end) > PAGE_TOKENS), default=math.inf)
    return [sum(place <= limit for place in end) for end in ends]
