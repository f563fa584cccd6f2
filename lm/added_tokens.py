"""Tokens that were added to a tokenizer after its training, such as <|startoftext|>, in the files that name them.

    added_tokens.json         {text: id}
    tokenizer_config.json     added_tokens_decoder: {id: description}; bos_token, pad_token, ...: text or description
    special_tokens_map.json   bos_token, pad_token, additional_special_tokens, ...

A tokenizer.json has most of them itself; vocab.json with merges.txt has none.
"""

from common.errors import UserError
from common.json_files import read_json_object
from common.notes import note
from common.strings import show_value
from lm.roles import read_token_names
from lm.tokenizer_check import MOST_GAPS

TOKEN_NAMES = [f'{name}_token' for name in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')]
OPTIONS = ('lstrip', 'rstrip', 'single_word', 'normalized')


def add_tokens_of_folder(bpe, folder):
    """Add to `bpe`, of the `tokenizers` library, the tokens that the folder's files name and it does not have."""
    wanted = read_added_tokens(folder)
    known = dict(bpe.get_added_tokens_decoder())
    known = {token.content for token in known.values()}
    for text in sorted(wanted, key=lambda text: (wanted[text][0] is None, wanted[text][0] or 0)):
        id, options = wanted[text]
        if text not in known:
            _add_token(bpe, text, id, options, folder)


def read_added_tokens(folder):
    """Return {text: (id or None, options)} of the tokens that the files of a folder add."""
    wanted = {}
    for text, id in read_json_object(folder / 'added_tokens.json', missing={}).items():
        wanted[text] = (_as_id(id, folder), {})
    decoder = read_json_object(folder / 'tokenizer_config.json', missing={}).get('added_tokens_decoder')
    for id, token in (decoder if isinstance(decoder, dict) else {}).items():
        text, options = _describe(token)
        if text:
            wanted[text] = (_as_id(id, folder), options)
    names = read_token_names(folder)
    special = [names.get(name) for name in TOKEN_NAMES]
    for key in ('additional_special_tokens', 'extra_special_tokens'):
        more = names.get(key) or []
        special += more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    for token in special:
        text, options = _describe(token)
        if text:
            id, earlier = wanted.get(text, (None, {}))
            wanted[text] = id, {**earlier, **options, 'special': True}
    return wanted


def _describe(token):
    """Return the text and the options of a token that a file gives as text or as an object; (None, {}) for neither."""
    if isinstance(token, str):
        return token, {}
    if isinstance(token, dict) and isinstance(token.get('content'), str):
        options = {name: token[name] for name in (*OPTIONS, 'special') if isinstance(token.get(name), bool)}
        return token['content'], options
    return None, {}


def _as_id(id, folder):
    try:
        number = int(id)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < 2**32:
        raise UserError(f'{folder}: its added tokens have the id {show_value(id)}, which is not the number of a token')
    return number


def _add_token(bpe, text, id, options, folder):
    """Add one token under its id. If other ids come before it, they get names of their own."""
    from tokenizers import AddedToken

    options = dict(options)
    token = AddedToken(text, special=options.pop('special', False), **options)
    present = bpe.token_to_id(text)
    if present is None and id is not None:
        if taken := bpe.id_to_token(id):
            note(f'{folder}: {text} was added as token {id}, which is {taken!r}; it is left out')
            return
        name_ids(bpe, id - 1)
    (bpe.add_special_tokens if token.special else bpe.add_tokens)([token])
    got = bpe.token_to_id(text)
    if id is not None and got != id:
        raise UserError(f'{folder}: {text} should be token {id}, but the vocabulary makes it {got}')


def name_ids(bpe, last):
    """Give all ids up to `last` that have no token a name: <|50257|>."""
    from tokenizers import AddedToken

    first = max(bpe.get_vocab().values()) + 1
    if last - first >= MOST_GAPS:
        raise UserError(f'its vocabulary ends at id {first - 1:,}, but a token is said to have the id {last + 1:,}')
    bpe.add_tokens([AddedToken(f'<|{id}|>', special=True, normalized=False) for id in range(first, last + 1)])
