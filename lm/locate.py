"""Where a model is: a path, a folder that comes with the project, or a download from the Hugging Face hub."""

import errno
import re
from fnmatch import fnmatch
from pathlib import Path

from common.errors import UserError, describe_os_error
from common.files import PROJECT, check_regular, expand_path, is_there
from common.notes import note
from lm.weight_files import find_weight_files

PUBLISHED = ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl', 'distilgpt2')
CHECKPOINT_SUFFIXES = ('.pt', '.pth', '.ckpt')
# What a model folder has besides weights: its shape, its tokenizer, and which tokens begin and end a text.
SMALL_FILES = [
    *('config.json', 'generation_config.json', 'tokenizer.json', 'vocab.json', 'merges.txt', 'added_tokens.json'),
    *('tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja'),
    *('adapter_config.json', 'adapter_model.safetensors'),
]


class DownloadError(UserError):
    """A model that is not on this machine and could not be downloaded."""


def locate_model(name):
    """Return the path that a name stands for: a folder, a checkpoint file, a folder in models/, or a download.

    A checkpoint need not be called ckpt.pt: a .pt file is returned as it is, and so is the only one in a folder.
    A folder in the current one that has the name of a published model, but is none, is not meant.
    """
    name = str(name).removeprefix('https://huggingface.co/')
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
    if name.startswith(('.', '/', '~')) or name.count('/') > 1:
        raise UserError(f'there is no folder {name!r} to load a model from{_hint_at_name(name)}')
    return _download(name)


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


def _download(name):
    """Return the model's folder in the Hugging Face cache, after downloading what is missing."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    small = SMALL_FILES
    safetensors = ['model.safetensors', 'model-*-of-*.safetensors', 'model.safetensors.index.json']
    for weights in (safetensors, ['pytorch_model.bin']):
        try:
            cached = Path(snapshot_download(name, allow_patterns=small + weights, local_files_only=True))
            if _is_complete(cached):
                return cached  # without a request: published models hardly change, and there may be no network
        except LocalEntryNotFoundError:
            pass
        except HFValidationError as error:
            raise UserError(
                f'{name!r} is neither a folder nor a valid name of a model on the hub{_hint_at_name(name)}'
            ) from error
    try:
        there = [file.rfilename for file in HfApi().model_info(name).siblings]
        has_safetensors = any(fnmatch(file, pattern) for file in there for pattern in safetensors)
        weights = safetensors if has_safetensors else ['pytorch_model.bin']
        return Path(snapshot_download(name, allow_patterns=small + weights))
    except GatedRepoError as error:
        raise UserError(
            f'access to {name!r} is restricted: accept its terms on the hub, then log in with: hf auth login'
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f'there is no folder {name!r} and no model of that name on the hub{_hint_at_name(name)}'
        ) from error
    except Exception as error:  # network errors come in many classes, from huggingface_hub and its HTTP client
        if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
            reason = f'{describe_os_error(error)}; HF_HOME names another folder for downloads'
            raise UserError(f'{name!r} could not be downloaded: {reason}') from error
        raise DownloadError(
            f'there is no folder {name!r}, and the model of that name could not be downloaded from the Hugging Face '
            f'hub ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else "no reason given"}). Without '
            'a network, use --init_from=tiny-stories, which is shipped with this project, a model that was downloaded '
            f'before, or a folder{_hint_at_name(name)}'
        ) from error


def _hint_at_name(name):
    """Return the well-known model that a name resembles, as the end of a sentence; '' if there is none."""
    known = [*PUBLISHED, *(path.name for path in (PROJECT / 'models').iterdir())]
    letters = {re.sub(r'\W|_', '', other): other for other in known}
    plain = re.sub(r'\W|_|small$', '', name.rpartition('/')[2].lower())
    meant = letters.get(plain)
    return f'; did you mean --init_from={meant}?' if meant and meant != name else ''


def _is_complete(folder):
    """Return whether a folder has all that a model needs; another program may have downloaded only a part."""
    if (folder / 'adapter_config.json').exists() and (folder / 'adapter_model.safetensors').exists():
        return True  # what it adapts has a name of its own
    weights = find_weight_files(folder)
    needed = [folder / file for file in ['config.json', *weights]]
    tokenizers = (['tokenizer.json'], ['vocab.json', 'merges.txt'])  # either form
    has_tokenizer = any(all((folder / file).exists() for file in files) for files in tokenizers)
    return bool(weights) and has_tokenizer and all(file.exists() for file in needed)
