"""What check_generate.py makes of what came back: what is wrong, and what to look at.

One explanation is looked for that gives all numbers at once. If there is none, say because fixed responses and drawn
ones go different ways in the code, one is looked for in each group of calls. What may follow from another mistake, as
wrong shares of drawn tokens, is not reported beside it.
"""

import math

import torch

from common.strings import shorten
from lessons.generate_calls import CALLS, CUT, DRAWN, GROUPS, OFTEN, PAST
from lessons.generate_mistakes import (
    FORMS,
    RIGHT,
    TOP_K_CUTS,
    UNDERFLOWED,
    agree,
    convert,
    explain,
    find_mistakes,
    look_up,
    measure_fit,
    read_text,
)
from lm.wording import format_three_digits
from model import logits_to_logprobs

CHANGES_IDX = 'It changes the tensor idx that it is given, so the caller loses the prompt: torch.cat makes a new one.'
TRAINS = (
    'generate puts the model into training mode, and dropout makes every number a different one: call model.eval() '
    'before generate, and no self.train() in it.'
)
STAYS_TRAINING = 'after generate the model is in training mode, as a training loop may want; else put it back'
CUTS_NOTE = (
    'with top_k, a fixed token that is not among the k likeliest has probability 0 in theirs; ours does not cut off '
    'what is fixed. Both can be defended; ask which they chose, and why.'
)
CHANGES = (
    'The number of the same fixed response changes from call to call, so something is still drawn: append the fixed '
    'token to idx, not the drawn one, and look up the fixed one.'
)
NOT_A_NUMBER = (
    'The number is not a number (nan), or infinite: look for log(0), 0 / 0 or inf - inf, and print the probability of '
    'each token.'
)
ARGMAX = 'It always takes the likeliest token: draw one from the probabilities, with torch.multinomial, not argmax.'
SEEDED = (
    'It draws the same token in every call, though others should come, too: if generate sets a seed, set it before '
    'generate is called instead.'
)
NOT_AS_OFTEN = 'Tokens are not drawn as often as their probabilities say'
DRAWS = {  # why that may be: from temperature and top-k to those that would give what was drawn
    None: lambda temperature, top_k: (temperature, top_k),
    'the temperature is not applied to what it draws from': lambda temperature, top_k: (1.0, top_k),
    'top-k is not applied to what it draws from': lambda temperature, top_k: (temperature, None),
    'neither temperature nor top-k is applied to what it draws from': lambda temperature, top_k: (1.0, None),
    'the logits are multiplied by the temperature, not divided': lambda temperature, top_k: (1 / temperature, top_k),
    'the temperature is applied twice': lambda temperature, top_k: (temperature**2, top_k),
}
LARGEST_FIT = 32.0  # of measure_fit, if all is right


class Findings:
    """What the check found: rows of a table, what is wrong, and what is only worth knowing."""

    def __init__(self, model, tokenizer):
        """model, tokenizer: ours; the model has the weights that theirs was given."""
        self.model, self.tokenizer = model, tokenizer
        self.rows, self.wrong, self.notes = [], [], []  # rows: (Call, theirs, ours, mark)

    def judge(self, outcomes):
        """Judge all Outcomes: first errors and ids, then the numbers, then how tokens are drawn."""
        if any(each.record.get('changed') for each in outcomes):
            self.add_wrong(CHANGES_IDX)
        failed_or_compared = [each for each in outcomes if each.call.group != OFTEN or 'error' in each.record]
        whole = self.keep_whole(failed_or_compared)
        whole = choose_part([(self.read(each), each) for each in whole])
        if whole:
            self.judge_whole(whole)
        self.judge_choice([each for each in outcomes if each.call.group == DRAWN and each.response])
        for outcome in outcomes:
            if outcome.call.group == OFTEN and 'error' not in outcome.record and TRAINS not in self.wrong:
                self.judge_shares(outcome)
        self.rows.sort(key=lambda row: CALLS.index(row[0]))

    def read(self, outcome):
        """Return the Text of an Outcome."""
        call = outcome.call
        return read_text(
            self.model, outcome.prompt, outcome.response, call.temperature, call.top_k, outcome.fixed is not None
        )

    def add_wrong(self, sentence):
        """Add what is wrong, once."""
        self.wrong += [sentence] * (sentence not in self.wrong)

    def add_note(self, sentence):
        """Add what is worth knowing, once."""
        self.notes += [sentence] * (sentence not in self.notes)

    def keep_whole(self, outcomes):
        """Return the Outcomes that can be compared; report the others, which failed or returned something else."""
        whole, failed, refused = [], [], []
        for outcome in outcomes:
            optional, call = outcome.call.group in (CUT, PAST), outcome.call
            if 'error' in outcome.record:
                what = outcome.record['error']
                (refused if optional else failed).append(outcome)
            elif fault := outcome.find_wrong_ids():
                what = f'other ids: {self.tokenizer.show(outcome.record["ids"][-12:])}'
                if not any(known == CHANGES_IDX or 'new ids where' in known for known in self.wrong):
                    self.add_wrong(fault)
            else:
                whole.append(outcome)
                continue
            self.rows.append((call, shorten(what, 40), '', '–' if optional else '✗'))
        if failed:  # then there is no need to speak of what is a matter of taste
            others = f', and in {len(failed) - 1} other calls' if len(failed) > 1 else ''
            self.add_wrong(f'generate fails at {failed[0].call.describe()}{others}: {failed[0].record["error"]}')
        for outcome in [] if failed else refused:
            why = outcome.record['error']
            self.add_note(
                f'a fixed response with top_k fails: {why}'
                if outcome.call.group == CUT
                else f"a text longer than the model's context, {self.model.block_size} tokens here, fails: {why}. "
                "nanoGPT's generate goes on with the last block_size tokens; ask whether theirs should."
            )
        return whole

    def judge_whole(self, whole):
        """Judge the numbers of pairs (Text, Outcome): all together, or else group by group."""
        explained = explain_pairs(whole)
        training = any(outcome.record['training'] for _, outcome in whole)
        if explained[0]:
            self.judge_numbers(whole, *explained)
            self.notes += [STAYS_TRAINING] * training
        elif training:  # nothing else can be seen then
            self.show_numbers(whole, None)
            self.add_wrong(TRAINS)
        else:
            for group in GROUPS:
                if pairs := [pair for pair in whole if pair[1].call.group == group]:
                    self.judge_numbers(pairs, *explain_pairs(pairs))

    def judge_numbers(self, pairs, form, design, lost):
        """Show the numbers of pairs (Text, Outcome), and report how `explain` understands them."""
        self.show_numbers(pairs, form, design)
        numbers = [number for _, outcome in pairs for number in outcome.numbers]
        counts = [len(each.numbers) for _, each in pairs if len(each.numbers) not in (1, len(each.response))]
        if counts:
            self.add_wrong(f'It returns {counts[0]} numbers beside the ids: one is needed, or one for each token.')
        elif form:
            for sentence in find_mistakes(design) + [UNDERFLOWED] * lost:
                self.add_wrong(sentence)
            if not find_mistakes(design) and not lost:
                self.add_note(f'it returns {form}, as {pairs[0][1].kind}')
            if design[1].sentence == TOP_K_CUTS:
                self.add_note(CUTS_NOTE)
        elif not all(math.isfinite(number) for number in numbers):
            self.add_wrong(NOT_A_NUMBER)
        elif varies([outcome for _, outcome in pairs]):
            self.add_wrong(CHANGES)
        elif not self.wrong:  # what is unknown may follow from what is known
            self.add_wrong(self.compare_tokens(pairs))

    def show_numbers(self, pairs, form, design=RIGHT):
        """Add a row with theirs and ours for each of the pairs."""
        for text, outcome in pairs:
            right = look_up(text).sum().item()
            theirs = convert(outcome.numbers, form or 'the probability')
            shown = format_value(theirs) if form else ', '.join(f'{number:.4g}' for number in outcome.numbers[:3])
            taste = outcome.call.group == CUT and design and design[1].sentence == TOP_K_CUTS
            mark = '✓' if form and agree(theirs, right) else '–' if taste else '✗'
            self.rows.append((outcome.call, shown, format_value(right), mark))

    def compare_tokens(self, pairs):
        """Return a sentence with our numbers token by token, for a number that nothing explains."""
        for text, outcome in pairs:
            logprobs = look_up(text)
            if not agree(convert(outcome.numbers, 'the probability'), logprobs.sum().item()):
                break
        tokens = zip(self.tokenizer.pieces(outcome.response), logprobs.exp().tolist())
        steps = ' × '.join(f'{piece} {prob:.3g}' for piece, prob in tokens)
        numbers = ', '.join(f'{number:.6g}' for number in outcome.numbers[:8])
        return (
            f'The number is none of those that common mistakes give. For {outcome.call.describe()} it is {numbers}; '
            f'ours is {format_value(logprobs.sum().item())} = {steps}. Compare them step by step.'
        )

    def judge_choice(self, outcomes):
        """Report it if every token that was drawn was the likeliest one."""
        texts = [self.read(each) for each in outcomes]
        if texts and all(torch.equal(text.greedy.argmax(1), text.ids[text.start :]) for text in texts):
            self.add_wrong(ARGMAX)

    def judge_shares(self, outcome):
        """Compare how often each token was drawn with its probability; what would give these shares if they differ."""
        call, last = outcome.call, torch.tensor(outcome.record['last'])
        logits = self.model.prefill(torch.tensor([outcome.prompt]), len(outcome.prompt) + 1)[0][0]  # (V,)
        fits = {why: measure_fit(logits, last, *draw(call.temperature, call.top_k)) for why, draw in DRAWS.items()}
        probability = logits_to_logprobs(logits, call.temperature, call.top_k).exp()
        top = probability.argmax()
        share, right = (last == top).double().mean().item(), fits[None] <= LARGEST_FIT
        name = f'{self.tokenizer.pieces([top.item()])[0]} in {len(last)} draws: '
        self.rows.append((call, f'{name}{share:.0%}', f'{probability[top].item():.0%}', '✓' if right else '✗'))
        why = min(fits, key=fits.get)
        if not right and last.unique().numel() == 1 and ARGMAX not in self.wrong:
            self.add_wrong(SEEDED)
        elif not right and not self.wrong:  # otherwise it follows from what is wrong
            self.add_wrong(f'{NOT_AS_OFTEN}{f": {why}" if why and fits[why] <= LARGEST_FIT else ""}.')


def choose_part(pairs):
    """Return pairs (Text, Outcome) in which the part is chosen that is right most often, of all that came back.

    generate may return more than ids and probability, such as what else was likely, or the model's own probability.
    """

    def count_right(part, form):
        return sum(
            agree(convert(outcome.record['parts'][part][0], form), look_up(text).sum().item())
            for text, outcome in pairs
            if part < len(outcome.record['parts'])
        )

    parts = range(min((len(outcome.record['parts']) for _, outcome in pairs), default=0))
    best = max(parts, key=lambda part: max(count_right(part, form) for form in FORMS), default=0)
    return [(text, outcome._replace(part=best)) for text, outcome in pairs]


def explain_pairs(pairs):
    """Return what `explain` finds out about pairs (Text, Outcome)."""
    return explain([(text, outcome.numbers) for text, outcome in pairs])


def varies(outcomes):
    """Return whether calls that differ in nothing but the seed gave different numbers."""
    found = {}
    for outcome in outcomes:
        if outcome.fixed:
            found.setdefault(outcome.call._replace(seed=0), []).append(outcome.numbers)
    return any(numbers != same[0] for same in found.values() for numbers in same)


def format_value(logprob):
    """Write the probability of a logprob in three digits."""
    return format_three_digits(logprob) if abs(logprob) < 1e300 else '0' if logprob < 0 else 'not a number'
