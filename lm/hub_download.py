"""Models on the Hugging Face hub: which of their files are needed, and why they cannot be had.

folder = download_model('HuggingFaceTB/SmolLM2-135M')
folder = download_model('EleutherAI/pythia-70m@step1000')      # a branch, a tag or a commit
"""

import errno
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from common.errors import UserError, describe_os_error
from common.json_files import read_json_object
from common.strings import show_value
from lm.weight_files import find_weight_files

# What a model has besides weights and tokenizer: its shape, and which tokens begin and end a text.
SMALL_FILES = (
    *('config.json', 'generation_config.json', 'added_tokens.json', 'tokenizer_config.json'),
    *('special_tokens_map.json', 'chat_template.jinja', 'adapter_config.json', 'adapter_model.safetensors'),
)
# The forms of a tokenizer, the first of which is used.
TOKENIZERS = (
    *(('tokenizer.json',), ('vocab.json', 'merges.txt')),
    *(('tokenizer.model',), ('spiece.model',), ('sentencepiece.bpe.model',)),
)
INDEX, SHARDS, OLD_WEIGHTS = 'model.safetensors.index.json', 'model-*-of-*.safetensors', 'pytorch_model.bin'
WEIGHTS = ('.safetensors', '.bin', '.gguf', '.onnx', '.h5', '.msgpack', '.ot', '.pt', '.pth', '.tflite', '.npz')


class DownloadError(UserError):
    """A model that is not on this machine and could not be downloaded."""


def split_revision(name):
    """Return the name of a model on the hub, owner/name, and its revision, None for the newest."""
    repository, at, revision = name.partition('@')
    return repository, revision if at else None


def download_model(name, hint=''):
    """Return a model's folder in the Hugging Face cache, after downloading what is missing.

    name: owner/name, or owner/name@revision for a branch, a tag or a commit. hint: what else may have been meant, the
    end of a sentence. Raises UserError if the model cannot be had or used, and DownloadError if the hub cannot be
    reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, revision = split_revision(name)
    address = f'https://huggingface.co/{repository}'
    try:
        cached = find_in_cache(repository, revision)
        missing = [] if cached is None else find_missing(cached)
        if cached is not None and not missing:
            return cached  # without a request: published models hardly change, and there may be no network
        there = [file.rfilename for file in HfApi().model_info(repository, revision=revision).siblings]
        wanted = choose_files(there)
        if not any(PurePosixPath(file).suffix in WEIGHTS for file in wanted):
            raise UserError(f'{name!r} cannot be used: {describe_weights(there)}. See {address}')
        if OLD_WEIGHTS in wanted:
            config = snapshot_download(repository, revision=revision, allow_patterns=['config.json'])
            require_gpt2(Path(config), name, address)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f'{name!r} is neither a folder nor a valid name of a model on the hub{hint}') from error
    except GatedRepoError as error:
        raise UserError(
            f'access to {name!r} is restricted: accept its terms at {address}, then log in with: hf auth login (or set '
            'HF_TOKEN to an access token of yours)'
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f'the model {repository!r} has no revision {revision!r}; its branches and tags are listed at '
            f'{address}/tree/main'
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f'there is no folder {name!r} and no model of that name on the hub (if it is private, log in with: hf auth '
            f'login, or set HF_TOKEN){hint}'
        ) from error
    except Exception as error:  # network errors come in many classes, from huggingface_hub and its HTTP client
        if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
            reason = f'{describe_os_error(error)}; HF_HOME names another folder for downloads'
            raise UserError(f'{name!r} could not be downloaded: {reason}') from error
        partly = f'; only a part of it has been downloaded before, without {", ".join(missing)}' if missing else ''
        raise DownloadError(
            f'there is no folder {name!r}, and the model of that name could not be downloaded from the Hugging Face '
            f'hub ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else "no reason given"}){partly}. '
            'Without a network, use --init_from=tiny-stories, which is shipped with this project, a model that was '
            f'downloaded before, or a folder{hint}'
        ) from error


def find_in_cache(repository, revision):
    """Return the folder in the Hugging Face cache that holds a model, or a part of it; None if there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repository)
    for file in ('config.json', 'adapter_config.json'):
        path = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):  # else it is None, or a mark that the model has no such file
            return Path(path).parent
    return None


def find_missing(folder):
    """Return the names of files that a model in a folder lacks; another program may have downloaded only a part."""
    if (folder / 'adapter_config.json').exists() and (folder / 'adapter_model.safetensors').exists():
        return []  # what it adapts has a name of its own
    weights = find_weight_files(folder)
    if weights == [OLD_WEIGHTS] and not _is_gpt2(folder):  # which is not read; there may be safetensors on the hub
        weights = []
    missing = [file for file in ('config.json', *(weights or ['model.safetensors'])) if not (folder / file).exists()]
    if not any(all((folder / file).exists() for file in files) for files in TOKENIZERS):
        missing.append(TOKENIZERS[0][0])
    return missing


def choose_files(there):
    """Return which of a model's files are needed: weights in one form, the tokenizer in one form, the small files."""
    if 'model.safetensors' in there:
        weights = ['model.safetensors']
    elif INDEX in there:
        weights = [INDEX, *(file for file in there if fnmatch(file, SHARDS))]
    else:
        weights = [OLD_WEIGHTS] if OLD_WEIGHTS in there else []
    tokenizer = next((files for files in TOKENIZERS if set(files) <= set(there)), ())
    return [*(file for file in SMALL_FILES if file in there), *tokenizer, *weights]


def describe_weights(there):
    """Return which weights a model has, none of which are read here, as a sentence."""
    kinds = Counter(PurePosixPath(file).suffix for file in there)
    kinds = [kind for kind, _ in kinds.most_common() if kind in WEIGHTS]
    if not kinds:
        return 'it has no weights'
    return (
        f'its weights are {" and ".join(kinds)} files under names that are not read here, which are model.safetensors '
        'or its shards; use the model that they were converted from'
    )


def require_gpt2(folder, name, address):
    """Raise UserError unless the model that is only in pytorch_model.bin is a GPT-2, of which that is read."""
    if not _is_gpt2(folder):
        kind = show_value(read_json_object(folder / 'config.json', missing={}).get('model_type'))
        raise UserError(
            f'{name!r} has only {OLD_WEIGHTS}, but only safetensors are read of a model of type {kind}; there may be a '
            f'revision with them, listed at {address}/discussions: name it as {name.partition("@")[0]}@refs/pr/NUMBER'
        )


def _is_gpt2(folder):
    return read_json_object(folder / 'config.json', missing={}).get('model_type') == 'gpt2'
