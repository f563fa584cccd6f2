"""How probabilities are written: what they are called, and numbers that a float cannot hold."""

import math

from lm.responses import Response
from lm.settings import SamplingSettings
from lm.wording import (
    describe_response,
    describe_sampler,
    differs_from_model,
    format_bounds,
    format_likelihood,
    format_perplexity,
    format_probability,
    format_three_digits,
)


def test_a_samplers_name_says_what_applies():
    settings = SamplingSettings(temperature=0.7, top_k=40, top_p=0.95)
    assert describe_sampler(settings, fixed=False) == 'temperature 0.7, top_k 40, top_p 0.95'
    assert describe_sampler(settings, fixed=True) == 'temperature 0.7'
    settings = SamplingSettings(top_k=None, min_p=0.05, repetition_penalty=1.2)
    assert describe_sampler(settings, fixed=False) == 'temperature 0.8, min_p 0.05, repetition_penalty 1.2'
    assert describe_sampler(settings, fixed=True) == 'temperature 0.8, repetition_penalty 1.2'
    settings = SamplingSettings(top_k=None, quantize='int8')
    assert describe_sampler(settings, fixed=False) == 'temperature 0.8, computed in int8'
    settings = SamplingSettings(top_k=None, top_p=1.0, min_p=0.0)  # these cut nothing off
    assert describe_sampler(settings, fixed=False) == 'temperature 0.8'
    assert not differs_from_model(top_k=None, top_p=1.0, min_p=0.0)
    assert all(differs_from_model(**one) for one in ({'top_k': 5}, {'top_p': 0.9}, {'min_p': 0.1}))


def test_a_response_is_described_under_sampler_and_model():
    response = Response([1, 2], [math.log(0.5), math.log(0.25)], [math.log(0.4), math.log(0.1)])
    lines = describe_response(response, SamplingSettings(temperature=0.5, top_k=None), fixed=False).splitlines()
    assert [line.split('  ')[0] for line in lines] == [
        'sampler (temperature 0.5)',
        'model (temperature 1, every token)',
    ]
    assert lines[0].endswith('logprob -2.0794, probability 0.125, perplexity per token 2.828 (2 tokens)')
    assert lines[1].endswith('logprob -3.2189, probability 0.04, perplexity per token 5 (2 tokens)')


def test_what_is_too_small_for_a_float_is_a_power_of_ten():
    tiny = -1000 * math.log(10) + math.log(2)
    assert format_probability(tiny) == '0.0 (too small for a float: 10^-999.7)'
    assert format_three_digits(tiny) == '2.00e-1000'
    assert format_three_digits(math.log(0.0123)) == '0.0123'
    assert format_probability(-math.inf) == '0'


def test_perplexity_is_that_of_the_mean():
    assert format_perplexity(10 * math.log(1 / 7), 10) == '7'
    assert format_perplexity(0.0, 0) == 'undefined'
    assert format_perplexity(-math.inf, 3) == 'inf'
    assert format_likelihood(0.0, 0) == 'logprob 0.0000, probability 1, perplexity per token undefined (0 tokens)'


def test_bounds_are_rounded_outward():
    for low, high in ((0.0123456, 0.0123467), (0.1, 0.9), (0.5, 0.5), (1e-9, 1.0001e-9), (0.99, 1.0)):
        written = format_bounds(math.log(low), math.log(high))
        lower, upper = (float(number) for number in written.split(' (')[0].split(' to '))
        assert lower <= low * (1 + 1e-12) and high * (1 - 1e-12) <= upper
        assert upper - lower <= 1.3 * (high - low) + 1e-8
    assert format_bounds(-math.inf, math.log(0.25)) == 'at most 0.25'
    assert format_bounds(-1000.0, -999.9).startswith('5.07e-435 to 5.61e-435')
