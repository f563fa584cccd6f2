"""The shipped multiple-choice questions: only who reads the story can answer them, and they never change."""

import json
import re
from collections import Counter
from itertools import groupby

import pytest
from helpers.datasets import corpus
from helpers.scripts import PROJECT

from common.files import file_sha256

FILE = PROJECT / 'data/story_questions.json'
QUESTIONS = json.loads(FILE.read_text(encoding='utf-8'))


def choices_of(question):
    return [question['response'], *question['distractors']]


def runs_of_words(text, length=8):
    """Return all runs of this many words in a text, without case and punctuation."""
    words = re.findall(r"[a-z0-9']+", text.casefold())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def test_the_questions_have_not_changed():
    assert file_sha256(FILE) == 'a2a2c4b9ce5e204978bc3c9a4b43edfa1dcba805cd7a8ae23f95752f4a8624f3', (
        'models were compared by these questions: do not change them, write others into a new file'
    )


def test_every_question_has_four_choices_and_its_own_story():
    assert len(QUESTIONS) == 80
    for key in ('id', 'prompt'):
        assert len({question[key] for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        assert set(question) == {'id', 'prompt', 'response', 'distractors'}
        assert len(set(choices_of(question))) == 4
        assert question['prompt'] == question['prompt'].strip() and question['prompt'][-1] not in '.!?'
        for choice in choices_of(question):
            assert re.fullmatch(r' \S.*[.!?]"?', choice)


def test_the_choices_alone_tell_nothing_about_the_answer():
    """Four questions share their choices, and each is right once: without the story, a model gets exactly 25 %."""
    by_kind = {
        kind: list(questions) for kind, questions in groupby(QUESTIONS, lambda each: each['id'].rpartition('-')[0])
    }
    assert len(by_kind) == 20
    for questions in by_kind.values():
        assert {tuple(sorted(choices_of(question))) for question in questions} == {
            tuple(sorted(question['response'] for question in questions))
        }


@pytest.mark.parametrize('longest', [True, False])
def test_who_always_takes_the_longest_or_the_shortest_choice_is_right_at_chance(longest):
    pick = max if longest else min
    right = 0.0
    for question in QUESTIONS:
        sizes = [len(choice) for choice in choices_of(question)]
        right += (sizes[0] == pick(sizes)) / sizes.count(pick(sizes))
    assert right == pytest.approx(len(QUESTIONS) / 4)


def test_repeating_words_of_the_story_is_no_better_than_chance():
    right = 0.0
    for question in QUESTIONS:
        story = Counter(re.findall(r'\w+', question['prompt'].casefold()))
        echoes = [sum(story[word] for word in re.findall(r'\w+', text.casefold())) for text in choices_of(question)]
        right += (echoes[0] == max(echoes)) / echoes.count(max(echoes))
    assert right / len(QUESTIONS) <= 0.3


def test_no_question_is_taken_from_the_shipped_texts():
    asked = [question['prompt'] + choice for question in QUESTIONS for choice in choices_of(question)]
    pairs = json.loads((PROJECT / 'eval_data.json').read_text(encoding='utf-8'))
    texts = [corpus(), *(pair['prompt'] + pair['response'] for pair in pairs)]
    assert not set().union(*map(runs_of_words, asked)) & set().union(*map(runs_of_words, texts))
