"""The calls of check_generate.py, and what came back from each.

With a fixed response everything is certain. With a drawn one, the ids come from the student, and the number must be the
probability of drawing those; a token drawn 200 times shows whether it comes as often as it should. The calls differ in
temperature, top-k and length, so that a mistake which cannot be seen in one is seen in another.
"""

from typing import NamedTuple

from common.strings import shorten, show_invisible

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
        end = f', top_k {self.top_k}' if self.top_k else ''
        end += ', again' * (self.seed > 1) + ', often' * (self.times > 1)
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
    Call(OFTEN, 'The dog', None, 1, 0.5, 5, TIMES),
]
WRONG_FIXED_IDS = (
    'The ids that it returns do not end with the fixed response: append its tokens to idx, instead of those that were '
    'drawn.'
)
WRONG_PROMPT = 'The ids that it returns do not begin with the prompt as it was: only append to idx.'


class Outcome(NamedTuple):
    """One call, and what came back."""

    call: Call
    record: dict  # the result as generate_runner.py wrote it, or its error
    prompt: list
    n: int  # tokens that were asked for
    fixed: list | None  # the ids of the fixed response
    part: int = 0  # which of the things that came back beside the ids is judged

    @property
    def response(self):
        """The ids that the numbers are about: the fixed ones, or those that were drawn."""
        return self.fixed or self.record.get('ids', [])[-self.n :]

    @property
    def numbers(self):
        """What stands for the probability: one number, or one for each token."""
        return self.record['parts'][self.part][0]

    @property
    def kind(self):
        """What kind of thing that is, in words."""
        return self.record['parts'][self.part][1]

    def find_wrong_ids(self):
        """Return a sentence if the returned ids are not prompt and response, or the response alone; else None."""
        ids, T = self.record['ids'], len(self.prompt)
        new = ids[T:] if ids[:T] == self.prompt else ids if len(ids) == self.n else None
        if new is None:
            return WRONG_PROMPT
        if len(new) != self.n:
            return f'It returns {len(new)} new ids where {self.n} are asked for.'
        return WRONG_FIXED_IDS if self.fixed not in (None, new) else None
