"""Reading the files of a BPE: tokenizer.json, or the older vocab.json with merges.txt."""

import json

from common.errors import UserError, reraise_if_of_system
from common.files import check_regular
from common.json_files import parse_json, read_json_object
from common.notes import note
from common.strings import show_control_characters
from common.text_files import read_text
from lm.added_tokens import add_tokens_of_folder
from lm.byte_level import byte_level_bpe
from lm.tokenizer_base import EOT
from lm.tokenizer_check import check_bpe, follow_prefix_space, report_panics, silence_stderr


class OtherTokenizer(UserError):
    """A tokenizer.json that describes no byte-level BPE."""


def read_tokenizer_json(path):
    """Return the tokenizer, of the `tokenizers` library, of a tokenizer.json and what other files of its folder add."""
    text = read_text(path)
    try:
        tokenizer = parse_tokenizer_json(text)
    except UserError as error:
        raise type(error)(f'cannot read {path} as a tokenizer.json: {error}') from error
    add_tokens_of_folder(tokenizer, path.parent)
    follow_prefix_space(tokenizer, path.parent)
    return tokenizer


def parse_tokenizer_json(text, byte_level=True):
    """Return the tokenizer, of the `tokenizers` library, that the text of a tokenizer.json describes.

    byte_level: refuse all but a byte-level BPE. Without it, it may also be a BPE over pieces, or a Unigram model.
    """
    from tokenizers import Tokenizer

    try:
        described = parse_json(text)
        kinds = json.dumps([described.get('pre_tokenizer'), described.get('decoder')])
    except AttributeError as error:
        raise UserError('it is not a JSON object') from error
    except ValueError as error:
        raise UserError(str(error)) from error
    if byte_level and 'ByteLevel' not in kinds:
        raise OtherTokenizer('it is not a byte-level BPE; name the folder of the model that it belongs to')
    try:
        with silence_stderr(), report_panics('it cannot be used'):
            tokenizer = Tokenizer.from_str(text)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(show_control_characters(str(error))) from error
    if not byte_level and (kind := type(tokenizer.model).__name__) not in ('BPE', 'Unigram'):
        raise UserError(f'it is a {kind}, not a BPE or Unigram model over pieces')
    check_bpe(tokenizer, described['model'])
    return tokenizer


def read_vocab_and_merges(vocab_path, merges_path):
    """Return the tokenizer, of the `tokenizers` library, of two files and what others of their folder add."""
    from tokenizers.models import BPE

    read_json_object(vocab_path)  # which says what is wrong
    check_regular(merges_path)
    try:
        with silence_stderr(), report_panics('they cannot be used'):
            vocab, merges = BPE.read_file(str(vocab_path), str(merges_path))
            bpe = byte_level_bpe(vocab, merges)
    except Exception as error:  # tokenizers raises bare Exception
        reraise_if_of_system(error, vocab_path)
        reason = show_control_characters(str(error))
        raise UserError(f'cannot read {vocab_path} and {merges_path} as a BPE: {reason}') from error
    if EOT in vocab:
        bpe.add_special_tokens([EOT])
    add_tokens_of_folder(bpe, vocab_path.parent)
    check_bpe(bpe, {'vocab': vocab, 'merges': merges})
    return bpe


def find_front(tokenizer, where):
    """Return the ids that a tokenizer of the `tokenizers` library puts before each text: none, or that of <s>, say."""
    with silence_stderr(), report_panics(f'{where}: its tokenizer cannot be used'):
        plain, whole = (tokenizer.encode('x', add_special_tokens=special).ids for special in (False, True))
    place = next((at for at in range(len(whole) + 1) if whole[at : at + len(plain)] == plain), None)
    if place is None:
        raise UserError(f'{where}: its tokenizer cuts a text otherwise when it puts its special tokens around it')
    if behind := whole[place + len(plain) :]:
        names = ', '.join(map(tokenizer.id_to_token, behind))
        note(f'{where}: its tokenizer puts {names} after each text, too; that is left out, since texts go on here')
    return tuple(whole[:place])
