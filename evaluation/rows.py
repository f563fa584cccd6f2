"""From pairs to rows: what one model, or two, say about each response, in plain types."""

import math
from itertools import islice
from typing import NamedTuple

from common.errors import UserError
from evaluation.sources import refuse_pair
from lm.scoring import score_window
from lm.tokenizer import Tokenizer
from model import LanguageModel


class Subject(NamedTuple):
    """A model that is evaluated."""

    name: str
    model: LanguageModel
    tokenizer: Tokenizer


def score_units(units, source, subjects, settings, recorded_tokens):
    """Return a row for each (index, unit): the first model's values, and the second model's as `before`.

    recorded_tokens: a function of the index that says for how many tokens of the response the row gets `records`, a
    list of TokenRecords for each model. A unit that cannot be encoded gives a row that says why it is `left_out`, if
    such units may be skipped.
    """
    tokenizers = [subject.tokenizer for subject in subjects]
    encoded, rows = [], []
    for index, unit in units:
        try:
            encoded.append((index, source.encode(unit, tokenizers, settings.boundary, settings.separator)))
        except UserError as error:
            if not settings.skip_bad:
                refuse_pair(error)
            rows.append({'left_out': str(error)})
    sides, records = [], []
    for number, (_, model, tokenizer) in enumerate(subjects):
        choices_of = [item.pairs[number] for _, item in encoded]  # of each unit: the response, then its distractors
        pairs, record = [], {}
        for (index, _), choices in zip(encoded, choices_of):
            record[len(pairs)] = recorded_tokens(index)
            pairs += choices
        scores = iter(score_window(model, pairs, settings.temperature, record))
        scores = [list(islice(scores, len(choices))) for choices in choices_of]
        sides.append(
            [describe_side(choices, of, tokenizer, settings.temperature) for choices, of in zip(choices_of, scores)]
        )
        records.append([of[0].records for of in scores])
    same_tokens = have_same_tokens(subjects)
    for (index, item), of_models, (after, *before) in zip(encoded, zip(*records), zip(*sides), strict=True):
        row = {'index': index, **item.row, **after}
        if before:
            row['before'] = before[0]
            row['log_ratio'] = log_ratio(after, before[0], per='response' if same_tokens else 'byte')
        if recorded_tokens(index):
            row['records'] = list(of_models)
        rows.append(row)
    return rows


def have_same_tokens(subjects):
    """Return whether all models have the same tokenizer, so that their tokens can be compared one by one."""
    return len({subject.tokenizer.fingerprint for subject in subjects}) == 1


def log_ratio(after, before, per):
    """Return the difference of two sides' logprobs; per byte if their tokens differ."""
    if per == 'response':
        return after['logprob'] - before['logprob']
    return after['logprob'] / max(1, after['bytes']) - before['logprob'] / max(1, before['bytes'])


def describe_side(choices, scores, tokenizer, temperature):
    """Return what one model says about a response (the first of the choices), in plain types."""
    sums = [math.fsum(score.model_logprobs.tolist()) for score in scores]
    (_, ids), score, logprob = choices[0], scores[0], sums[0]
    ranks = score.ranks.tolist()
    side = {
        'pieces': tokenizer.pieces(ids),
        'tokens': len(ids),
        'bytes': len(tokenizer.decode_bytes([id for id in ids if id != tokenizer.eot])),  # <|endoftext|> is not text
        'logprob': logprob,
        'prob': math.exp(logprob),
        'prob_per_token': math.exp(logprob / len(ids)) if ids else None,
        'perplexity': math.exp(min(-logprob / len(ids), 709)) if ids else None,
        'greedy': all(rank == 1 for rank in ranks),
        'token_logprobs': score.model_logprobs.tolist(),
        'token_ranks': ranks,
        'token_top_logprobs': score.top_logprobs.tolist(),
    }
    if temperature != 1:
        sampler = math.fsum(score.sampler_logprobs.tolist())
        side['sampler_logprob'] = sampler if sampler > -math.inf else None  # JSON has no infinity
        side['sampler_prob'] = math.exp(sampler)
        side['token_sampler_logprobs'] = [
            logprob if logprob > -math.inf else None for logprob in score.sampler_logprobs.tolist()
        ]
    if len(choices) > 1:
        # The space before a choice does not count, as in lm-evaluation-harness.
        sizes = [len(tokenizer.decode_bytes(ids).lstrip()) for _, ids in choices]
        per_byte = [total / max(1, size) for total, size in zip(sums, sizes)]
        side['choices'] = [
            {'text': tokenizer.decode(ids), 'bytes': size, 'logprob': total}
            for (_, ids), size, total in zip(choices, sizes, sums)
        ]
        # It must be likelier than every distractor: ties count as wrong.
        side['right'] = sums[0] > max(sums[1:])
        side['right_per_byte'] = per_byte[0] > max(per_byte[1:])
    return side
