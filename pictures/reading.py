"""TODO."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from common.errors import UserError
from common.files import create_run_folder
from common.strings import shorten
from lm.settings import choose_model, load_chosen_model, model_name, read_prompt
from lm.tokenizer import Tokenizer
from lm.wording import precision_note
from model import GPT
from pictures.style import save_figure


@dataclass
class ModelSettings:
    """What all pictures need: a model, and a place for the picture."""

    init_from: str | None = None  # tiny-stories (None), tiny, gpt2 (any size), a name on the hub, a folder, resume
    out_dir: str | None = None  # where resume finds ckpt.pt (None: out); given alone, it means resume
    device: str | None = None  # cpu, cuda, cuda:1, mps; None for the best there is
    dtype: str | None = None  # float32 (None), bfloat16 or float16
    save: str | None = None  # the PNG to write; None for a new folder in plot_dir
    plot_dir: str = 'results'  # a new folder in here gets the picture


@dataclass
class PromptSettings(ModelSettings):
    """What the pictures of one text need besides."""

    start: str = 'Once upon a time there was an old king who had a'  # the text, or FILE:path; '' is <|endoftext|>


class Scene(NamedTuple):
    """A model that has been given a text to read."""

    model: GPT
    tokenizer: Tokenizer
    name: str  # of the model, with its precision unless that is float32
    idx: torch.Tensor  # (1, T)
    pieces: list[str]  # of the T tokens
    text: str


# What the five have in common -----------------------------------------------------------------------------------------


def load_for_picture(settings):
    """Return (model, tokenizer, name) of the settings; raise UserError for a place that can take no picture."""
    if settings.save is not None:
        if Path(settings.save).suffix.lower() != '.png':  # nor does .png, a name without an ending, get through
            raise UserError(f'--save={settings.save}: pictures are PNG files: give a name that ends in .png')
        if Path(settings.save).is_dir():
            raise UserError(f'--save={settings.save} is a folder; name a file in it')
    settings = choose_model(settings)
    model, tokenizer = load_chosen_model(settings)
    name = model_name(settings)
    return model, tokenizer, shorten(name, 40, from_end=True) + precision_note(settings.dtype)


def read_text(settings):
    """Return the Scene of the settings; raise UserError for a text that does not fit into the model."""
    text = read_prompt(settings.start)
    model, tokenizer, name = load_for_picture(settings)
    ids, room = tokenizer.encode_prompt(text), model.config.block_size
    if len(ids) > room:
        raise UserError(f'the text has {len(ids):,} tokens, and {name} reads at most {room:,}: shorten --start')
    idx = torch.tensor([ids], device=model.device)
    return Scene(model, tokenizer, name, idx, visible_pieces(tokenizer, ids), tokenizer.decode(ids))


def visible_pieces(tokenizer, ids):
    """Return the pieces of ids; one that the tokenizer's vocabulary leaves out is ‹its number›."""
    try:
        return tokenizer.pieces(ids)
    except UserError:
        return [f'‹{ids[0]}›'] if len(ids) == 1 else [piece for id in ids for piece in visible_pieces(tokenizer, [id])]


def check_index(flag, number, count, name):
    """Raise UserError for a layer or a head that a model does not have."""
    if number is not None and not 0 <= number < count:
        there_is = f'{flag}s 0 to {count - 1}' if count > 1 else f'only {flag} 0'
        raise UserError(f'--{flag}={number}: {name} has {there_is}')


def to_numpy(tensor):
    """Return a tensor as a float32 array for drawing."""
    return tensor.detach().float().cpu().numpy()


def save_pictures(figures, settings, picture, about):
    """Save figures, {name: figure}, where the settings say, and print their paths."""
    if settings.save is None:
        folder = create_run_folder(settings.plot_dir, f'{picture}-{about}')
        paths = {name: folder / f'{name}.png' for name in figures}
    else:
        first = Path(settings.save)
        paths = {name: first if name == picture else first.with_stem(f'{first.stem}-{name}') for name in figures}
    for name, figure in figures.items():
        save_figure(figure, paths[name])
        print(f'{name}: {paths[name]}')
