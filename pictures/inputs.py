"""What a picture is of: a model and, for most pictures, a text that it reads."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from common.errors import UserError
from common.strings import shorten
from lm.settings import ModelSettings, choose_model, load_chosen_model, model_name, read_prompt
from lm.tokenizer import Tokenizer
from lm.wording import precision_note
from model import LanguageModel
from pictures.canvas import check_save_path


@dataclass
class PictureSettings(ModelSettings):
    """What every picture needs: a model, and a place to save the picture."""

    save: str | None = None  # the PNG to write; None for a new folder in plot_dir
    plot_dir: str = 'results'  # where the new folder with the picture goes


@dataclass
class TextSettings(PictureSettings):
    """What pictures of a text need as well."""

    start: str = 'Once upon a time there was an old king who had a'  # the text, or FILE:path; '' is <|endoftext|>


class Subject(NamedTuple):
    """A model and a text that it reads."""

    model: LanguageModel
    tokenizer: Tokenizer
    name: str  # of the model, with its precision unless that is float32
    idx: torch.Tensor  # (1, T)
    pieces: list[str]  # of the T tokens
    text: str


def load_subject(settings):
    """Return the Subject of some TextSettings; raise UserError if the text does not fit into the model."""
    text = read_prompt(settings.start)
    model, tokenizer, name = load_named_model(settings)
    ids, limit = tokenizer.encode_prompt(text), model.block_size
    if len(ids) > limit:
        raise UserError(f'the text has {len(ids):,} tokens, and {name} reads at most {limit:,}: shorten --start')
    idx = torch.tensor([ids], device=model.device)
    return Subject(model, tokenizer, name, idx, pieces_of_ids(tokenizer, ids), tokenizer.decode(ids))


def load_named_model(settings):
    """Return (model, tokenizer, name) of some PictureSettings; raise UserError first if --save is invalid."""
    check_save_path(settings.save)
    settings = choose_model(settings)
    model, tokenizer = load_chosen_model(settings)
    name = model_name(settings)
    return model, tokenizer, shorten(name, 40, from_end=True) + precision_note(settings.dtype)


def pieces_of_ids(tokenizer, ids):
    """Return the pieces of ids; an id that the tokenizer does not know is shown as ‹id›."""
    try:
        return tokenizer.pieces(ids)
    except UserError:
        return [f'‹{ids[0]}›'] if len(ids) == 1 else [piece for id in ids for piece in pieces_of_ids(tokenizer, [id])]


def check_index(flag, number, count, name):
    """Raise UserError if a model has no layer or head of that number."""
    if number is not None and not 0 <= number < count:
        available = f'{flag}s 0 to {count - 1}' if count > 1 else f'only {flag} 0'
        raise UserError(f'--{flag}={number}: {name} has {available}')


def to_numpy(tensor):
    """Return a tensor as a float32 array for drawing."""
    return tensor.detach().float().cpu().numpy()
