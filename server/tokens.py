"""Routes about tokens and models: `/v1/models`, `/tokenize`, `/detokenize`, `/tokenizer_info`, `/health`.

Requests and answers are those of vLLM; /tokenize and /detokenize also speak llama.cpp's form, with `content`.
"""

import time

from server.errors import ApiError, Json
from server.fields import read_fields
from server.sampling_fields import read_model
from server.token_texts import TokenTexts

STARTED = int(time.time())


async def health(request, engine):
    """Answer that the server is there."""
    return Json({'status': 'ok'})


async def list_models(request, engine):
    """Answer with the models that are served."""
    return Json({'object': 'list', 'data': [describe_model(served) for served in engine.models]})


async def show_model(request, engine):
    """Answer with one of the models."""
    name = request.path_params['name']
    for served in engine.models:
        if served.name == name:
            return Json(describe_model(served))
    raise ApiError(f'there is no model {name[:60]!r} here', 404, 'model', 'model_not_found')


def describe_model(served):
    """Return what OpenAI says of a model, and the length of its context."""
    about = {'id': served.name, 'object': 'model', 'created': STARTED, 'owned_by': 'nanogpt-probs'}
    return about | {'max_model_len': served.model.block_size}


async def tokenize(request, engine):
    """Answer with the token ids of a text, or of the messages of a chat."""
    fields = await read_fields(request)
    served = engine.models[read_model(fields, engine)]
    content = fields.text('content', None)
    if content is not None:
        return Json(tokenize_like_llama(fields, served, content))
    text, with_front = fields.text('prompt'), fields.flag('add_special_tokens', True)
    with_texts = fields.flag('return_token_strs')
    fields.finish()
    ids = encode_with_front(served.tokenizer, text, with_front)
    texts = write_tokens(served.tokenizer, ids) if with_texts else None
    return Json({'count': len(ids), 'max_model_len': served.model.block_size, 'tokens': ids, 'token_strs': texts})


def tokenize_like_llama(fields, served, content):
    """Return what llama.cpp's server answers."""
    with_front, with_pieces = fields.flag('add_special'), fields.flag('with_pieces')
    fields.only('parse_special', True)
    fields.finish()
    ids = encode_with_front(served.tokenizer, content, with_front)
    if not with_pieces:
        return {'tokens': ids}
    texts = write_tokens(served.tokenizer, ids)
    return {'tokens': [{'id': id, 'piece': text} for id, text in zip(ids, texts, strict=True)]}


def encode_with_front(tokenizer, text, with_front):
    """Return the ids of a text, with those that the tokenizer puts before each text or without."""
    ids = tokenizer.encode(text)
    return tokenizer.start_ids(ids) if with_front and tokenizer.front else ids


def write_tokens(tokenizer, ids):
    """Return the text of each token."""
    texts = TokenTexts(tokenizer)
    return [texts.add(id)[0] for id in ids]


async def detokenize(request, engine):
    """Answer with the text of token ids."""
    fields = await read_fields(request)
    served = engine.models[read_model(fields, engine)]
    ids = fields.take('tokens')
    fields.finish()
    if not isinstance(ids, list) or not all(type(id) is int for id in ids):
        raise fields.error('tokens', 'it must be a list of token ids')
    text = served.tokenizer.decode(ids)  # raises UserError for unknown ids
    return Json({'prompt': text, 'content': text})


async def describe_tokenizer(request, engine):
    """Answer with what other programs ask about the main model's tokenizer."""
    served = engine.models[0]
    bos, ends, pad = served.tokenizer.roles
    special = {'bos_token': bos, 'eos_token': ends[0] if ends else None, 'pad_token': pad}
    chat = served.chat_tokenizer and served.chat_tokenizer.chat
    return Json(
        {name: None if id is None else served.tokenizer.decode_bytes([id]).decode() for name, id in special.items()}
        | {
            'tokenizer_class': type(served.tokenizer).__name__,
            'vocab_size': served.tokenizer.vocab_size,
            'model_max_length': served.model.block_size,
            'add_bos_token': bool(served.tokenizer.front),
            'chat_template': chat and chat.template,
            'fingerprint': served.tokenizer.fingerprint,
        }
    )
