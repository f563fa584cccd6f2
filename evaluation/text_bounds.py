"""The probability of each response's text, over all ways to cut it into tokens, beside that of its usual tokens."""

import time

from lm.scoring import score
from lm.text_probability import GAP, QUANTITIES, quantity_steps, usual_tokens


def describe_texts(subject, choices, quantity, budget):
    """Return `text`, what one model says about the text of a response, and `right_text` if it has distractors.

    choices: (prompt ids, response ids) of the response, then of each distractor. The right one is proved to be the
    likeliest if its lower bound is above the upper bounds of all others.
    """
    text, *others = (bound_text(subject, choice, quantity, budget) for choice in choices)
    right = {'right_text': text['log_lower'] > max(other['log_upper'] for other in others)} if others else {}
    return {'text': text, **right}


def bound_text(subject, pair, quantity, budget):
    """Return what one model says about the text of a response, in plain types. pair: its prompt ids and response ids.

    quantity: one of lm.text_probability.QUANTITIES. budget: a lm.search.Budget for the search.
    Logprobs are natural. `tokens_logprob` is that of the usual tokens of the same bytes after the same start.
    """
    started = time.perf_counter()
    for bounds in quantity_steps(subject.model, subject.tokenizer, quantity, *pair):
        if bounds.gap <= GAP or budget.is_spent(bounds, time.perf_counter() - started):
            break
    before, ids = usual_tokens(subject.tokenizer, quantity, *pair)
    return {
        'log_lower': bounds.log_lower,
        'log_upper': bounds.log_upper,
        'closed': bounds.gap <= GAP,
        'prefixes': bounds.opened,
        'tokens_logprob': score(subject.model, [before], [ids])[0].sum().item(),
    }


def text_sentences(summary):
    """Return which probability of the text was computed, and how often its bounds met."""
    found, quantity = summary['whole_text'], QUANTITIES[summary['settings']['whole_text']]
    closed = [
        f'{values["closed"]:,} of {summary["rows"]:,}' + (f' ({summary[role]["init_from"]})' if len(found) > 1 else '')
        for role, values in found.items()
    ]
    return [
        f'Text probabilities are sums over all ways to cut a text into tokens: {quantity}. Their bounds are at most '
        f'{GAP:.1%} apart for {" and ".join(closed)}.'
    ]
