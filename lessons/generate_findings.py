"""The calls of check_generate.py, and what it makes of what came back: what is wrong, and what to look at.

Calls of a group are judged together, since a mistake must explain all their numbers. With a fixed response everything
is certain. With a drawn one, the ids come from the student, and the number must be the probability of drawing those; a
token drawn 200 times shows whether it comes as often as it should.
"""

from typing import NamedTuple

import torch

from common.strings import shorten, show_invisible
from lessons.generate_mistakes import TOP_K_CUTS, agree, convert, explain, fits_shares, read_text, right_logprobs
from lm.wording import format_three_digits
from model import logits_to_logprobs

TIMES = 200  # tokens drawn to see whether they come as often as they should


class Call(NamedTuple):
    """One call of generate. A response is given, or of `max_new_tokens` ids that are drawn."""

    group: str
    prompt: str
    response: str | None
    max_new_tokens: int
    temperature: float
    top_k: int | None = None
    times: int = 1
    seed: int = 1

    def describe(self):
        """Return what is tried, in a line."""
        response = (
            f'{show_invisible(shorten(self.response, 28))!r}' if self.response else f'{self.max_new_tokens} drawn'
        )
        end = (f', top_k {self.top_k}' if self.top_k else '') + ', again' * (self.seed > 1)
        return f'{shorten(self.prompt, 20, from_end=True)!r} + {response}, temperature {self.temperature:g}{end}'


STORY = (
    'Once upon a time there was a little girl named Lily. She had a red ball. One day she went to the park with her '
    'mother, and there she saw a big brown dog. Lily threw the ball,'
)
REST = ' and the dog ran after it. They played all day long, and when the sun went down they were the best of friends.'
GROUPS = FIXED, LONG, CUT, PAST, DRAWN, OFTEN = 'fixed', 'long response', 'top-k', 'long text', 'drawn', 'drawn often'
CALLS = [
    Call(FIXED, 'Once upon a time', ' there was a little girl', 0, 1.0),
    Call(FIXED, 'Once upon a time', ' there was a little girl', 0, 0.5),
    Call(FIXED, 'The old king lived in', ' a red shoe.', 0, 2.0),
    Call(FIXED, 'The old king lived in', ' a red shoe.', 0, 2.0, seed=2),
    Call(FIXED, 'Lily was very', ' happy', 0, 0.8),
    Call(LONG, 'The dog', ' said that moon bread under seven who cakes the of run', 0, 0.3),
    Call(CUT, 'The old king lived in', ' a red shoe.', 0, 0.8, 3),
    Call(PAST, STORY, REST, 0, 1.0),
    Call(DRAWN, 'Once upon a time', None, 8, 1.0),
    Call(DRAWN, 'The cat sat', None, 8, 0.7, 5),
    Call(DRAWN, 'The old king lived in', None, 12, 1.5, 50),
    Call(OFTEN, 'The cat was very', None, 1, 0.7, 5, TIMES),
]
WRONG_FIXED_IDS = (
    'The ids that it returns do not end with the fixed response: append its tokens to idx, instead of those that were '
    'drawn.'
)
WRONG_IDS = 'It does not return the prompt and max_new_tokens more ids.'


class Outcome(NamedTuple):
    """One call, and what came back."""

    call: Call
    record: dict  # the result as generate_runner.py wrote it, or its error
    prompt: list
    response: list  # the ids that the numbers are about: the fixed ones, or those that were drawn

    @property
    def numbers(self):
        return self.record['value']


class Findings:
    """What the check found: rows of a table, what is wrong, and what is only worth knowing."""

    def __init__(self, model, tokenizer):
        """model, tokenizer: ours; the model has the weights that theirs was given."""
        self.model, self.tokenizer = model, tokenizer
        self.rows, self.wrong, self.notes = [], [], []
        self.failed, self.refused = [], []  # Outcomes: the second kind is a matter of taste

    def judge(self, outcomes):
        """Judge all Outcomes: first errors and ids, then the numbers of each group."""
        groups = {group: [each for each in outcomes if each.call.group == group] for group in GROUPS}
        for group in (FIXED, LONG, CUT, PAST, DRAWN):
            if whole := self.keep_whole(group, groups[group]):
                self.judge_numbers(group, whole)
        self.report_failures()
        self.judge_choice(groups[DRAWN])
        for outcome in groups[OFTEN]:
            if 'error' not in outcome.record:
                self.judge_shares(outcome)

    def add_wrong(self, sentence):
        """Add what is wrong, once."""
        self.wrong += [sentence] * (sentence not in self.wrong)

    def add_note(self, sentence):
        """Add what is worth knowing, once."""
        self.notes += [sentence] * (sentence not in self.notes)

    def keep_whole(self, group, outcomes):
        """Return the Outcomes that can be compared; report the others, which failed or returned something else."""
        whole, optional = [], group in (CUT, PAST)
        for outcome in outcomes:
            if 'error' in outcome.record:
                what = outcome.record['error']
                (self.refused if optional else self.failed).append(outcome)
            elif not ends_with(outcome):
                what = f'other ids: {self.tokenizer.show(outcome.record["ids"][-12:])}'
                self.add_wrong(WRONG_FIXED_IDS if outcome.call.response else WRONG_IDS)
            elif len(outcome.numbers) not in (1, len(outcome.response)):
                what = f'{len(outcome.numbers)} numbers'
                self.add_wrong(f'It returns {what} for {len(outcome.response)} tokens; one is needed, or one for each.')
            else:
                whole.append(outcome)
                continue
            self.rows.append((outcome.call.describe(), shorten(what, 40), '', '–' if optional else '✗'))
        return whole

    def report_failures(self):
        """Report the first of the calls that failed; note it if only those with top-k or a long text did."""
        if self.failed:
            first, more = self.failed[0], len(self.failed) - 1
            others = f', and in {more} other calls' if more else ''
            self.add_wrong(f'generate fails at {first.call.describe()}{others}: {first.record["error"]}')
        for outcome in [] if self.failed else self.refused:
            why = outcome.record['error']
            self.add_note(
                f'a fixed response with top_k fails: {why}'
                if outcome.call.group == CUT
                else f"a text longer than the model's context, {self.model.block_size} tokens here, fails: {why}. "
                "nanoGPT's generate goes on with the last block_size tokens; ask whether theirs should."
            )

    def judge_numbers(self, group, outcomes):
        """Compare the numbers of a group with ours, and explain them if they differ."""
        texts = [
            read_text(
                self.model, each.prompt, each.response, each.call.temperature, each.call.top_k, bool(each.call.response)
            )
            for each in outcomes
        ]
        form, mistake = explain([(text, each.numbers) for text, each in zip(texts, outcomes)])
        for text, outcome in zip(texts, outcomes):
            right = right_logprobs(text).sum().item()
            theirs = convert(outcome.numbers, form or 'the probability')
            shown = format_value(theirs) if form else ', '.join(f'{number:.4g}' for number in outcome.numbers[:3])
            mark = '✓' if form and agree(theirs, right) else '–' if mistake == TOP_K_CUTS else '✗'
            self.rows.append((outcome.call.describe(), shown, format_value(right), mark))
        if form and mistake is None:
            self.add_note(f'it returns {form}, as {outcomes[0].record["kind"]}')
        elif mistake == TOP_K_CUTS:
            self.add_note(
                'with top_k, a fixed token that is not among the k likeliest has probability 0 in theirs; ours does '
                'not cut off what is fixed. Both can be defended; ask which they chose, and why.'
            )
        elif self.varies(outcomes):
            self.add_wrong(
                'The number of the same fixed response changes from call to call, so something is still drawn: append '
                'the fixed token to idx, not the drawn one, and look up the fixed one.'
            )
        elif mistake:
            self.add_wrong(mistake)
        elif not self.wrong:  # what is unknown may follow from what is known
            self.add_wrong(self.compare_tokens(texts, outcomes))

    def varies(self, outcomes):
        """Return whether calls that differ in nothing but the seed gave different numbers."""
        found = {}
        for outcome in outcomes:
            found.setdefault(outcome.call._replace(seed=0), []).append(outcome.numbers)
        return any(numbers != of_others for same in found.values() for numbers in same for of_others in same)

    def compare_tokens(self, texts, outcomes):
        """Return a sentence with our numbers token by token, for a number that nothing explains."""
        for text, outcome in zip(texts, outcomes):
            logprobs = right_logprobs(text)
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
        outcomes = [each for each in outcomes if each.response]
        texts = [read_text(self.model, each.prompt, each.response, 1.0, None, False) for each in outcomes]
        if texts and all(torch.equal(text.greedy.argmax(1), text.ids[text.start :]) for text in texts):
            self.add_wrong(
                'It always takes the likeliest token: draw one from the probabilities, with torch.multinomial, instead '
                'of argmax.'
            )

    def judge_shares(self, outcome):
        """Compare how often each token was drawn with its probability; five that come to mind if they differ."""
        call, last = outcome.call, torch.tensor(outcome.record['last'])
        logits = self.model.prefill(torch.tensor([outcome.prompt]), len(outcome.prompt) + 1)[0][0]  # (V,)
        designs = {
            None: (call.temperature, call.top_k),
            'the temperature is not applied to what it draws from': (1.0, call.top_k),
            'top-k is not applied to what it draws from': (call.temperature, None),
            'neither temperature nor top-k is applied to what it draws from': (1.0, None),
            'the logits are multiplied by the temperature, not divided': (1 / call.temperature, call.top_k),
        }
        fits = [design for design, settings in designs.items() if fits_shares(logits, last, *settings)]
        mark = '✓' if None in fits else '✗'
        probability = logits_to_logprobs(logits, call.temperature, call.top_k).exp()
        top = probability.argmax()
        share = (last == top).double().mean().item()
        name = f'{self.tokenizer.pieces([top.item()])[0]} in {len(last)} draws: '
        self.rows.append((f'{call.describe()}, often', f'{name}{share:.0%}', f'{probability[top].item():.0%}', mark))
        if None not in fits and last.unique().numel() > 1:  # otherwise judge_choice has reported it
            guess = f': {fits[0]}' if fits else ''
            self.add_wrong(f'Tokens are not drawn as often as their probabilities say{guess}.')


def ends_with(outcome):
    """Return whether the returned ids are prompt and response, or the response alone."""
    ids = outcome.record['ids']
    if outcome.call.response:
        return ids in (outcome.response, outcome.prompt + outcome.response)
    return len(outcome.response) == outcome.call.max_new_tokens and ids[: -len(outcome.response)] in (
        [],
        outcome.prompt,
    )


def format_value(logprob):
    """Write the probability of a logprob in three digits."""
    return format_three_digits(logprob) if abs(logprob) < 1e300 else '0' if logprob < 0 else 'not a number'
