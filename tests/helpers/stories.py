"""The shipped stories in passages, a story tokenizer trained on them, and texts that resemble stories."""

import functools

from hypothesis import strategies as st

from helpers.scripts import PROJECT
from lessons.story_tokenizer import PASSAGE
from lm.story_tokenizer import StoryTokenizer
from lm.tokenizer import EOT

STORIES = (PROJECT / 'data/childrens_stories/childrens_stories.txt').read_text(encoding='utf-8')
stories_like = st.lists(st.sampled_from(['the', 'Elin', 'THE', 'tHE', 'fox', 'ß', 'é', '🦊', '7', *' .,\n"\'!', EOT]))
any_story_text = st.text(st.characters(exclude_categories=['Cs'])) | stories_like.map(''.join)


@functools.cache
def passages():
    return PASSAGE.findall(STORIES)


@functools.cache
def story_tokenizer(vocab_size=1536):
    return StoryTokenizer.train(EOT.join(passages()[:194]), vocab_size)


def make_tales(who, count):
    """Return a text of `count` short documents."""
    names = ['Ann', 'Ben', 'Cleo', 'Dan', 'Eve', 'Fox']
    return '\n\n\n'.join(
        f'Once upon a time {names[number % 6]} met {who} number {number}.\n"Good day, {names[number % 5]}," said {who}.'
        f' They went to the {"river" if number % 2 else "garden"} and found {number} apples there.'
        for number in range(count)
    )
