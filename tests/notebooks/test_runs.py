"""The runs of the notebook: what is said of them."""

from types import SimpleNamespace

import pytest
from helpers.notebooks import text_of

from notebooks import rendering, runs

# What is said ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('outcome', 'shown'), [('', '…'), ('done', 'infinite'), ('too large', 'infinite'), ('failed', 'failed')]
)
def test_a_run_without_a_perplexity_shows_how_it_ended(outcome, shown):
    assert rendering.run_cell(runs.Run('tiny', 5, 1e-4, 1.0, outcome=outcome), None) == shown


@pytest.mark.parametrize(
    ('change', 'p_value', 'words'),
    [
        ((-3.0, -4.0, -2.0), 0.001, 'better, and that is more than chance'),
        ((-3.0, -4.0, -2.0), 0.5, 'better, but this part is too small to tell'),
        ((3.0, 2.0, 4.0), 0.5, 'worse, but this part is too small to tell'),
        ((-3.0, -4.0, 2.0), 0.03, 'contains 0'),
        ((-3.0, -4.0, None), 0.5, 'too small to tell'),
        ((-3.0, None, None), 1.0, 'too small to tell'),
        ((None, None, None), 0.001, 'cannot be compared'),
    ],
)
def test_a_difference_is_more_than_chance_only_if_the_test_says_so_too(change, p_value, words):
    """Of two segments, the interval is as narrow as can be."""
    difference = dict(zip(('value', 'low', 'high'), change))
    measures = {'difference': {'perplexity': difference}}
    assert words in text_of(rendering.conclusion({'measures': measures, 'comparison': {'p_value': p_value}}))


@pytest.mark.parametrize(
    ('numbers', 'shown'),
    [
        ((5, 4, 6.5), '5 (4 to 6.5)'),
        ((5, 4, None), '5 (4 to infinite)'),
        ((5, None, None), '5'),
        ((None,) * 3, 'infinite'),
    ],
)
def test_a_number_without_an_interval_stands_alone(numbers, shown):
    """A single segment has none."""
    assert rendering.with_interval(dict(zip(('value', 'low', 'high'), numbers))) == shown


@pytest.mark.parametrize(
    ('logprobs', 'words'),
    [([0.0, 0.0], 'it is certain that'), ([-0.1], '1 in 1.1 that'), ([-46.05], '1 in 10^20 that')],
)
def test_the_chance_of_a_sample_is_said_in_words(logprobs, words):
    response = SimpleNamespace(ids=logprobs, sampler_logprobs=logprobs, model_logprobs=logprobs)
    assert f'Sampler: {words} these' in rendering.likelihood(response)
