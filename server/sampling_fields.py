"""The fields that completions and chats have in common: which model, and how its text is drawn."""

import secrets

from common.json_files import describe_type
from common.strings import shorten
from server.errors import ApiError
from server.generation import Sampling

MAX_TEXTS = 16  # for each prompt
MAX_TOKENS = 16_384  # in each text
MAX_STOPS = 16
MAX_ALTERNATIVES = 100


def read_model(fields, engine):
    """Return the index of the model that a request names; the main one if it names none."""
    name = fields.text('model', None)
    names = [each.name for each in engine.models]
    if name is None:
        return 0
    if name not in names:
        known = ' and '.join(map(repr, names))
        raise ApiError(f'there is no model {shorten(name, 60)!r} here, only {known}', 404, 'model', 'model_not_found')
    return names.index(name)


def read_sampling(fields, model, max_tokens):
    """Return the Sampling that a request asks for. max_tokens: if it does not say how many."""
    n = fields.integer('n', 1, 1, MAX_TEXTS)
    top_k = fields.integer('top_k', None, -1, model.n_ids)  # as in vLLM, 0 and -1 mean all
    top_p = fields.number('top_p', None, 0, 1)
    if top_p == 0:
        raise fields.error('top_p', 'it must be above 0 and at most 1')
    for name, neutral in (('presence_penalty', 0), ('frequency_penalty', 0), ('best_of', n)):
        fields.only(name, neutral)
    fields.text('user', None)  # who asks: it changes nothing
    return Sampling(
        max_tokens=fields.integer('max_tokens', max_tokens, 0, MAX_TOKENS),
        seed=fields.integer('seed', secrets.randbelow(2**31), -(2**63), 2**64),
        n=n,
        temperature=fields.number('temperature', 1.0, 0),
        top_k=top_k if top_k and top_k > 0 else None,
        top_p=top_p,
        min_p=fields.number('min_p', None, 0, 1),
        repetition_penalty=fields.number('repetition_penalty', 1.0, 0.01, 100),
        logit_bias=read_logit_bias(fields, model),
        stop=read_stops(fields),
        ignore_eos=fields.flag('ignore_eos'),
    )


def read_stops(fields):
    """Return the stop sequences: one text, or a list of them."""
    stops = fields.take('stop', [])
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise fields.error('stop', 'it must be a text, or a list of texts, none of them empty')
    if len(stops) > MAX_STOPS:
        raise fields.error('stop', f'at most {MAX_STOPS} of them')
    return tuple(stops)


def read_logit_bias(fields, model):
    """Return {id: what is added to its logit}."""
    bias = fields.take('logit_bias', {})
    if not isinstance(bias, dict):
        raise fields.error('logit_bias', f'it must be an object, not {describe_type(bias)}')
    found = {}
    for key, value in bias.items():
        if not (key.isdecimal() and key.isascii() and len(key) < 10 and int(key) < model.n_ids):
            raise fields.error('logit_bias', f'{shorten(key, 30)!r} is not a token id below {model.n_ids}')
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
            raise fields.error('logit_bias', f'that of {key} must be a number from -100 to 100')
        found[int(key)] = float(value)
    return found


def read_streaming(fields):
    """Return (whether to stream, whether the last event tells the usage)."""
    streams = fields.flag('stream')
    options = fields.inner('stream_options')
    if options is None:
        return streams, False
    if not streams:
        raise fields.error('stream_options', 'it needs "stream": true')
    options.only('include_obfuscation', False)
    usage = options.flag('include_usage')
    options.finish()
    return True, usage
