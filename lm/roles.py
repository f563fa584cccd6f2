"""The tokens with a role: which one begins a text, which ones end it, and which one fills up a batch.

A model names them by id in generation_config.json or config.json (`eos_token_id`, one id or several), a tokenizer by
text in special_tokens_map.json or tokenizer_config.json (`eos_token`). Ids of the model count first, as in
transformers' `generate`.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.json_files import read_json_object
from common.notes import note

NAMES = ('bos', 'eos', 'pad')


class Roles(NamedTuple):
    """Token ids by role."""

    bos: int | None = None  # stands before an empty prompt
    ends: tuple[int, ...] = ()  # each of them ends a text; the first is written between texts
    pad: int | None = None  # kept for other programs; padding here needs no id


def end_ids(eos: int | Collection[int] | None) -> frozenset[int]:
    """Return the ids that end a text, of one id, several or None."""
    return frozenset(() if eos is None else (eos,) if isinstance(eos, int) else eos)


def read_token_names(folder):
    """Return {'eos_token': its text or its description} and the like, as the files of a tokenizer name them."""
    config = read_json_object(folder / 'tokenizer_config.json', missing={})
    return config | read_json_object(folder / 'special_tokens_map.json', missing={})


def give_roles(tokenizer, folder):
    """Return the tokenizer of a model folder with the roles of its tokens, as the folder's files describe them.

    An id that the model has and the tokenizer lacks gets a name, <|50258|> for example, so that it can be generated.
    """
    folder = Path(folder)
    config = read_json_object(folder / 'config.json', missing={})
    generation = read_json_object(folder / 'generation_config.json', missing={})
    names = read_token_names(folder)
    n_ids = config.get('vocab_size') if isinstance(config.get('vocab_size'), int) else tokenizer.vocab_size
    found = {}
    for name in NAMES:
        ids = next((c[key] for c in (generation, config) if c.get(key := f'{name}_token_id') is not None), None)
        if ids is None:
            text = names.get(f'{name}_token')
            ids = tokenizer.id_of_text(text.get('content') if isinstance(text, dict) else text)
        ids = [id for id in (ids if isinstance(ids, list) else [ids]) if isinstance(id, int)]
        if unknown := [id for id in ids if not 0 <= id < n_ids]:
            note(f'{folder}: its {name}_token_id {unknown[0]} is ignored, since its model has only {n_ids} ids')
        found[name] = tuple(id for id in ids if 0 <= id < n_ids)
    unnamed = [id for ids in found.values() for id in ids if id >= tokenizer.vocab_size]
    if unnamed:
        tokenizer = tokenizer.with_names_up_to(max(unnamed))
        named = ', '.join(f'<|{id}|>' for id in sorted(set(unnamed)))
        note(f'{folder}: its model begins or ends texts with ids that its tokenizer lacks, called {named} here')
    bos, ends, pad = (found[name] for name in NAMES)
    default = tokenizer.roles
    tokenizer.roles = Roles(bos[0] if bos else default.bos, ends or default.ends, pad[0] if pad else default.pad)
    return tokenizer


def choose_front(tokenizer, bos, name):
    """Let a tokenizer put a BOS before each text or not, and say what stands there.

    bos: True, False, or None for what the tokenizer does by itself; as add_bos_token in lm-evaluation-harness. Without
    one, an empty prompt still begins with the id that begins a text. name: of the model.
    Raises UserError if there is no BOS to put before texts.
    """
    by_itself = tokenizer.front
    if bos:
        require_bos(tokenizer, name)
    if bos is False:
        tokenizer.front = ()
    elif bos and tokenizer.roles.bos not in by_itself:
        tokenizer.front = (tokenizer.roles.bos, *by_itself)
    if tokenizer.front and tokenizer.front == by_itself:
        note(f'{name}: its tokenizer puts {tokenizer.show(by_itself)} before each text, and so it is here')
    elif tokenizer.front:
        note(f'{name}: {tokenizer.show(tokenizer.front)} is put before each text')
    elif by_itself:
        note(f'{name}: {tokenizer.show(by_itself)} is left out, which its tokenizer puts before each text')


def require_bos(tokenizer, name):
    """Raise UserError if the tokenizer of the model `name` has no token that begins a text."""
    if tokenizer.roles.bos is None:
        raise UserError(
            f'--bos=True: the tokenizer of {name} has no token that begins a text (its files name no bos_token); '
            'leave --bos out'
        )
