"""Where a model is: a path, a folder that comes with the project, or a download from the Hugging Face hub."""

import re

from common.errors import UserError
from common.files import PROJECT, check_regular, expand_path, is_there
from common.notes import note
from lm.hub_download import download_model, split_revision

PUBLISHED = ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl', 'distilgpt2')
HUB = 'https://huggingface.co/'
CHECKPOINT_SUFFIXES = ('.pt', '.pth', '.ckpt')


def locate_model(name):
    """Return the path that a name stands for: a folder, a checkpoint file, a folder in models/, or a download.

    A name on the hub may be followed by a revision: owner/name@v1.0. A checkpoint need not be called ckpt.pt: a .pt
    file is returned as it is, and so is the only one in a folder. A folder in the current one that has the name of a
    published model, but is none, is not meant.
    """
    name = str(name)
    if name.startswith(HUB):
        name = re.sub(r'/tree/', '@', name.removeprefix(HUB), count=1)  # as its page for a revision is called
    if not name:
        raise UserError("the name of the model is empty: there is no folder ''")
    path = expand_path(name)
    named_here = is_there(path)  # refuses names that are too long, and folders that may not be searched
    if path.is_dir() and not _is_mistaken(name, path):
        return path if _has_model(path) else _only_checkpoint(path) or path
    shipped = PROJECT / 'models' / name.removeprefix('models/')
    if shipped.is_dir():
        return shipped
    if path.is_file():
        if path.suffix in CHECKPOINT_SUFFIXES and path.name != 'pytorch_model.bin':
            return path
        raise UserError(f'{name} is a file; give the folder that contains it, or a checkpoint that ends in .pt')
    if named_here and not path.is_dir():
        check_regular(path)  # which says what it is instead
    if not may_be_on_hub(name):
        raise UserError(f'there is no folder {name!r} to load a model from{_hint_at_name(name)}')
    return download_model(name, _hint_at_name(name))


def may_be_on_hub(name):
    """Return whether a name has the form of a model on the hub: name or owner/name, perhaps with @revision."""
    return not name.startswith(('.', '/', '~')) and split_revision(name)[0].count('/') <= 1


def _has_model(folder):
    """Return whether a folder has one of the files by which its model is found."""
    return any(is_there(folder / file) for file in ('config.json', 'ckpt.pt', 'adapter_config.json'))


def _is_mistaken(name, path):
    """Return whether the folder is no model, and a model that is known elsewhere has the same name; say so."""
    known = name in PUBLISHED or (PROJECT / 'models' / name).is_dir()
    if not known or _has_model(path) or any(path.glob('*.pt')):
        return False
    where = 'the hub' if name in PUBLISHED else 'this project'
    note(f'the folder {name} here has no model in it (no config.json, no ckpt.pt), so the {name} of {where} is used')
    return True


def _only_checkpoint(folder):
    """Return the only .pt file in a folder, None if there is none. Raises UserError for several."""
    files = sorted(folder.glob('*.pt'))
    if len(files) > 1:
        names = ', '.join(file.name for file in files[:5])
        raise UserError(f'{folder} has no ckpt.pt but {names}; name one of them: --init_from={files[-1]}')
    if files:
        note(f'{folder} has no ckpt.pt; its {files[0].name} is used')
    return files[0] if files else None


def _hint_at_name(name):
    """Return the well-known model that a name resembles, as the end of a sentence; '' if there is none."""
    known = [*PUBLISHED, *(path.name for path in (PROJECT / 'models').iterdir())]
    letters = {re.sub(r'\W|_', '', other): other for other in known}
    plain = re.sub(r'\W|_|small$', '', name.rpartition('/')[2].lower())
    meant = letters.get(plain)
    return f'; did you mean --init_from={meant}?' if meant and meant != name else ''
