"""How probabilities are written, and the names that say which probability a number is."""

import math
import sys


def format_three_digits(logprob):
    """Write the probability of a logprob in three digits, even if it is too small for a float."""
    if logprob > -690:  # the smallest float is near e^-708
        return f'{math.exp(logprob):.3g}'
    exponent = math.floor(logprob / math.log(10))
    return f'{10 ** (logprob / math.log(10) - exponent):.2f}e{exponent}'


def format_bounds(log_lower, log_upper):
    """Write the bounds of a probability, rounded outward, with two digits more than they agree in."""
    if log_lower == -math.inf:
        return f'at most {format_probability(log_upper)}'
    gap = math.expm1(log_upper - log_lower)
    digits = 3 if gap >= 1 else min(9, 2 - math.floor(math.log10(max(gap, 1e-9))))
    low, high = round_outward(log_lower, digits, math.floor), round_outward(log_upper, digits, math.ceil)
    return f'{low} to {high} (logprob {log_lower:.4f} to {log_upper:.4f})'


def round_outward(logprob, digits, rounding):
    """Write the probability of a logprob in this many digits; rounding: math.floor or math.ceil of the last one."""
    exponent = math.floor(logprob / math.log(10))
    digit = 10 ** (digits - 1)
    number = rounding(10 ** (logprob / math.log(10) - exponent) * digit) / digit  # 1 to 10
    return f'{number * 10**exponent:.{digits}g}' if exponent > -300 else f'{number:.{digits}g}e{exponent}'


def describe_truncation(prompt_ids, block_size):
    """Return a sentence if a prompt is longer than the model's context, else None."""
    if len(prompt_ids) <= block_size:
        return None
    return (
        f'the prompt has {len(prompt_ids)} tokens, more than the context of {block_size}: the model sees only the last '
        f'{block_size}'
    )


def describe_sampler(settings, fixed):
    """Name the settings that make the sampler's probabilities differ from the model's."""
    sampler = settings.sampler(fixed)
    temperature, penalty = sampler.pop('temperature'), sampler.pop('repetition_penalty')
    others = ''.join(f', {name} {value}' for name, value in sampler.items() if cuts_off(name, value))
    others += '' if penalty == 1 else f', repetition_penalty {penalty:g}'
    return f'temperature {temperature:g}{others}{precision_note(settings.dtype, settings.quantize)}'


def differs_from_model(temperature=1.0, repetition_penalty=1.0, **cuts):
    """Return whether a sampler of these settings has other probabilities than the model."""
    return (temperature, repetition_penalty) != (1, 1) or any(cuts_off(name, value) for name, value in cuts.items())


def cuts_off(name, value):
    """Return whether top_k, top_p or min_p of this value may cut off tokens."""
    return value is not None and (name, value) not in (('top_p', 1), ('min_p', 0))


def precision_note(dtype, quantize=None):
    """Name the precision of the computation, unless it is float32."""
    name = quantize or dtype
    return '' if name in (None, 'float32') else f', computed in {name}'


def describe_response(response, settings, fixed):
    """Return two lines: how likely the response was under the sampler and under the model."""
    names = f'sampler ({describe_sampler(settings, fixed)})', describe_model_probability(settings)
    width = max(map(len, names))
    logprobs = response.sampler_logprobs, response.model_logprobs
    return '\n'.join(
        f'{name:{width}}  {format_likelihood(math.fsum(of), len(response.ids))}' for name, of in zip(names, logprobs)
    )


def describe_model_probability(settings):
    """Name the model's own probabilities."""
    return f'model (temperature 1, every token{precision_note(settings.dtype, settings.quantize)})'


def format_likelihood(logprob, n):
    """Write how likely a response of n tokens is: logprob, probability, perplexity."""
    return (
        f'logprob {logprob:.4f}, probability {format_probability(logprob)}, '
        f'perplexity per token {format_perplexity(logprob, n)} ({n} tokens)'
    )


def format_probability(logprob):
    """Write exp(logprob); if it is too small for a float, add it as a power of ten."""
    prob = math.exp(logprob)
    if prob < sys.float_info.min and logprob > -math.inf:  # below this, floats lose digits
        return f'0.0 (too small for a float: 10^{logprob / math.log(10):.1f})'
    return f'{prob:.6g}'


def format_perplexity(logprob, n):
    """Write exp(-logprob / n): how many equally likely tokens would be as hard to guess."""
    if n == 0:
        return 'undefined'
    mean = -logprob / n
    return f'{math.exp(mean):.4g}' if mean < 700 else 'inf'
