"""Reading nanoGPT's meta.pkl without executing anything in it."""

import io
import pickle

from common.errors import UserError, reraise_if_of_system
from common.files import open_regular


def read_meta_pkl(path):
    """Return the dict in a meta.pkl: plain data only. Raises UserError for anything else."""
    try:
        with open_regular(path) as file:
            meta = _PlainUnpickler(io.BytesIO(file.read())).load()
        if not isinstance(meta, dict):
            raise ValueError(f'it contains a {type(meta).__name__}')
        return meta
    except UserError:
        raise
    except _NeedsCode as error:
        reason = ' '.join(str(error).split())
        raise UserError(
            f"cannot read {path} as nanoGPT's meta.pkl: {reason}, but only plain data is allowed; code in a file is "
            "never executed. Write it again with 'vocab_size', 'stoi' and 'itos' only; if the dataset has GPT-2's "
            "tokens, as tiktoken's are, delete it"
        ) from error
    except Exception as error:  # a damaged pickle can raise almost anything
        reraise_if_of_system(error, path)
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {path} as nanoGPT's meta.pkl: {reason}") from error


class _NeedsCode(pickle.UnpicklingError):
    """A pickle that holds more than plain data."""


class _PlainUnpickler(pickle._Unpickler):
    """Reads dicts, lists, strings and numbers, which need no class, and refuses everything else.

    It extends the slower unpickler, written in Python: the one in C allocates any amount of memory that a damaged file
    asks for.
    """

    def find_class(self, module, name):
        what = 'a method, perhaps of a tokenizer' if (module, name) == ('builtins', 'getattr') else f'{module}.{name}'
        raise _NeedsCode(f'it would load {what}')
