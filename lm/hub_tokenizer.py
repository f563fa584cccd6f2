"""Loading tokenizers of models of transformers: byte-level BPE, and pieces in the manner of SentencePiece.

A folder's files may say one thing and the class that transformers has for them do another, so the tokenizer is taken
from transformers as it stands there. What it does then is described by a tokenizer.json, which needs no transformers.
"""

import json
import tempfile
from pathlib import Path

from common.errors import UserError
from lm.bpe_files import find_front
from lm.hub_model import quiet_transformers
from lm.piece_tokenizer import PieceTokenizer
from lm.roles import give_roles
from lm.tokenizer import BPETokenizer, note_changes
from lm.tokenizer_check import check_bpe, report_panics, silence_stderr
from lm.weight_files import first_line

FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'spiece.model', 'sentencepiece.bpe.model')


def load_hub_tokenizer(folder):
    """Return the tokenizer of a model folder as transformers uses it; None if the folder has none.

    Raises UserError, by name, for a kind that cannot give back what it is given.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).exists() for name in FILES):
        return None
    try:
        with quiet_transformers(), silence_stderr(), report_panics(f'{folder}: its tokenizer cannot be used'):
            theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # each class has errors of its own
        raise UserError(f'{folder}: transformers cannot load its tokenizer: {first_line(error)}') from error
    backend = getattr(theirs, 'backend_tokenizer', None)
    if backend is None:
        raise UserError(f'{folder}: its tokenizer, a {type(theirs).__name__}, has no tokenizer.json and cannot be used')
    described = json.loads(backend.to_str())
    kind = described['model']['type']
    if kind not in ('BPE', 'Unigram'):
        raise UserError(
            f'{folder}: its tokenizer is a {kind}, which drops the white space of a text and cannot give it back'
        )
    check_bpe(backend, described['model'])
    is_byte_level = 'ByteLevel' in json.dumps([described['pre_tokenizer'], described['decoder']])
    tokenizer = give_roles((BPETokenizer if is_byte_level else PieceTokenizer)(backend), folder)
    tokenizer.front, tokenizer.config = find_front(backend, folder), describe_for_transformers(theirs)
    return note_changes(tokenizer, folder)


def describe_for_transformers(theirs):
    """Return the text of the tokenizer_config.json that transformers needs beside this tokenizer's tokenizer.json.

    It has its class, the names of its special tokens and its chat templates.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        theirs.save_pretrained(folder, save_jinja_files=False)
        config = json.loads((Path(folder) / 'tokenizer_config.json').read_text(encoding='utf-8'))
    for name in ('is_local', 'local_files_only', 'auto_map'):  # of the place that it was read from, and code there
        config.pop(name, None)
    if config.get('tokenizer_class') == 'TokenizersBackend':  # which older versions of transformers call otherwise
        config['tokenizer_class'] = 'PreTrainedTokenizerFast'
    return json.dumps(config, indent=2, ensure_ascii=False) + '\n'
