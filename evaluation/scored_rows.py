"""From prompts and responses to rows: what one model, or two, say about each response, in plain types."""

import math
from itertools import islice
from typing import NamedTuple

from common.errors import UserError
from evaluation.sources import refuse_pair
from evaluation.text_bounds import describe_texts
from lm.scoring import score_window
from lm.settings import text_budget
from lm.tokenizer import Tokenizer
from lm.wording import differs_from_model
from model import LanguageModel


class Subject(NamedTuple):
    """A model that is evaluated."""

    name: str
    model: LanguageModel
    tokenizer: Tokenizer


def score_units(units, source, subjects, settings, recorded_tokens):
    """Return a row for each (index, unit): the first model's values and, under `before`, the second model's.

    recorded_tokens: a function of the index: for how many tokens of the response the row gets `records`, a list of
    TokenRecords for each model. With --skip_bad, a unit that cannot be encoded gives a row with the reason under
    `left_out`.
    """
    items, rows = encode_units(units, source, subjects, settings)
    of_models = [
        score_items(items, number, subject, settings, recorded_tokens) for number, subject in enumerate(subjects)
    ]
    same_tokens = have_same_tokens(subjects)
    for (index, item), scored in zip(items, zip(*of_models), strict=True):
        (after, *before), records = zip(*scored)
        row = {'index': index, **item.row, **after}
        if before:
            row['before'] = before[0]
            row['log_ratio'] = log_ratio(after, before[0], per='response' if same_tokens else 'byte')
        if recorded_tokens(index):
            row['records'] = list(records)
        rows.append(row)
    return rows


def encode_units(units, source, subjects, settings):
    """Return [(index, Item)] of the units, and a row for each unit that is left out."""
    items, left_out = [], []
    tokenizers = [subject.tokenizer for subject in subjects]
    for index, unit in units:
        try:
            items.append((index, source.encode(unit, tokenizers, settings.boundary, settings.separator)))
        except UserError as error:
            if not settings.skip_bad:
                if source.count > 1:
                    refuse_pair(error)
                raise
            left_out.append({'left_out': str(error)})
    return items, left_out


def score_items(items, number, subject, settings, recorded_tokens):
    """Return (side, TokenRecords of the response) of each item, for the subject of this number."""
    choices_of = [item.pairs[number] for _, item in items]  # of each item: the response, then its distractors
    pairs, record = [], {}
    for (index, _), choices in zip(items, choices_of, strict=True):
        record[len(pairs)] = recorded_tokens(index)
        pairs += choices + without_prompt(choices, subject.tokenizer)
    scores = iter(score_window(subject.model, pairs, n_records=record, **settings.sampler(fixed=True)))
    found, has_sampler = [], differs_from_model(**settings.sampler(fixed=True))
    for (_, item), choices in zip(items, choices_of, strict=True):
        scores_of_choices = list(islice(scores, len(choices)))
        alone = list(islice(scores, len(without_prompt(choices, subject.tokenizer))))
        side = describe_side(choices, scores_of_choices, subject.tokenizer, has_sampler)
        if alone:
            side |= describe_mutual_information(scores_of_choices, alone)
        if settings.whole_text:
            side |= describe_texts(subject, choices, settings.whole_text, text_budget(settings))
        side |= describe_unusual(item, number, subject.model.block_size)
        found.append((side, scores_of_choices[0].records))
    return found


def have_same_tokens(subjects):
    """Return whether all models give a response the same tokens, so that these can be compared one by one."""
    tokenizers = [subject.tokenizer for subject in subjects]
    # Without anything that begins a text, its first token is not scored; a chat template may change a response.
    kinds = {(each.fingerprint, not each.start_ids(), each.chat and each.chat.style) for each in tokenizers}
    return len(kinds) == 1


def log_ratio(after, before, per):
    """Return the difference of two sides' logprobs, per response or per byte."""
    if per == 'response':
        return after['logprob'] - before['logprob']
    return after['logprob'] / max(1, after['bytes']) - before['logprob'] / max(1, before['bytes'])


def describe_side(choices, scores, tokenizer, has_sampler):
    """Return what one model says about a response, the first of the choices, in plain types.

    has_sampler: whether there is a sampler whose probabilities differ from the model's.
    """
    (prompt_ids, ids), score = choices[0], scores[0]
    logprob = math.fsum(score.model_logprobs.tolist())
    ranks = score.ranks.tolist()
    side = {
        **({} if tokenizer.chat is None else {'prompt_pieces': tokenizer.pieces(prompt_ids)}),
        'pieces': tokenizer.pieces(ids),
        'tokens': len(ids),
        'bytes': count_bytes(ids, prompt_ids, tokenizer),
        'logprob': logprob,
        'prob': math.exp(logprob),
        'prob_per_token': math.exp(logprob / len(ids)) if ids else None,
        'perplexity': math.exp(min(-logprob / len(ids), 709)) if ids else None,
        'greedy': all(rank == 1 for rank in ranks),
        'token_logprobs': score.model_logprobs.tolist(),
        'token_ranks': ranks,
        'token_top_logprobs': score.top_logprobs.tolist(),
    }
    if has_sampler:
        sampler_logprobs = score.sampler_logprobs.tolist()
        total = math.fsum(sampler_logprobs)
        side['sampler_logprob'] = none_if_impossible(total)
        side['sampler_prob'] = math.exp(total)
        side['token_sampler_logprobs'] = [none_if_impossible(logprob) for logprob in sampler_logprobs]
    if len(choices) > 1:
        side |= describe_choices(choices, scores, tokenizer)
    return side


def count_bytes(ids, prompt_ids, tokenizer):
    """Return the bytes of text of a response. <|endoftext|>, or what else ends a text or a turn, is not text."""
    ends = {tokenizer.eot, *tokenizer.roles.ends}
    sizes = tokenizer.byte_sizes(ids, prompt_ids).tolist()
    return sum(size for id, size in zip(ids, sizes) if id not in ends)


def describe_unusual(item, number, block_size):
    """Return what is unusual about a pair for the model of this number: where it was split, how much was cut off."""
    found = {}
    if item.unusual[number] is not None:
        found |= {'boundary': item.unusual[number].boundary, 'boundary_note': item.unusual[number].note}
    prompt_ids, response_ids = item.pairs[number][0]
    not_seen = min(len(prompt_ids), len(prompt_ids) + len(response_ids) - 1 - block_size)  # by the last token
    if 'prompt' in item.row and response_ids and not_seen > 0:
        found['prompt_tokens_cut'] = not_seen
    return found


def none_if_impossible(logprob):
    """Return a logprob as JSON can hold it: None for minus infinity."""
    return logprob if logprob > -math.inf else None


def without_prompt(choices, tokenizer):
    """Return the choices of a question as pairs with no prompt but what begins a text; none if that is impossible."""
    if len(choices) == 1 or not tokenizer.start_ids() or tokenizer.chat is not None:
        return []
    texts = [tokenizer.decode(ids, prompt_ids) for prompt_ids, ids in choices]
    return [tokenizer.encode_pair('', text) for text in texts]


def describe_mutual_information(scores, alone):
    """Return whether the prompt makes the first choice likelier by a larger factor than every other.

    alone: the scores of the choices without the prompt. It is lm-evaluation-harness's acc_mutual_info.
    """
    gains = [
        math.fsum(score.model_logprobs.tolist()) - math.fsum(other.model_logprobs.tolist())
        for score, other in zip(scores, alone, strict=True)
    ]
    return {'right_mutual_info': gains[0] > max(gains[1:])}


def describe_choices(choices, scores, tokenizer):
    """Return what one model says about a multiple-choice question; the first choice is the right one."""
    sums = [math.fsum(score.model_logprobs.tolist()) for score in scores]
    # The space before a choice does not count, as in lm-evaluation-harness.
    ends = set() if tokenizer.chat is None else tokenizer.roles.ends  # of a turn, which is not part of the choice
    choices = [(prompt_ids, [id for id in ids if id not in ends]) for prompt_ids, ids in choices]
    texts = [tokenizer.decode_bytes(ids, prompt_ids) for prompt_ids, ids in choices]
    sizes = [len(text.lstrip()) for text in texts]
    per_byte = [total / max(1, size) for total, size in zip(sums, sizes)]
    return {
        'choices': [
            {'text': text.decode('utf-8', 'replace'), 'bytes': size, 'logprob': total}
            for text, size, total in zip(texts, sizes, sums)
        ],
        # It must be likelier than every distractor: ties count as wrong.
        'right': sums[0] > max(sums[1:]),
        'right_per_byte': per_byte[0] > max(per_byte[1:]),
    }
