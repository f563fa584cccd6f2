"""GPT-2's byte-level BPE in Hugging Face's file formats: letters for bytes, merges, tokenizer.json."""

import itertools
import json
import re
from pathlib import Path

from common.files import atomic_write


def letters_of_bytes():
    """Return {byte: the letter that represents it in GPT-2's vocabulary files}.

    Printable Latin-1 characters represent themselves; the other 68 bytes are the letters from U+0100 on, in order.
    """
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def find_merge(token, ranks, rank):
    """Return the two parts that were merged into `token`, by running BPE on its bytes with all earlier merges."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, rank) for left, right in itertools.pairwise(parts)]
        place = min(range(len(pairs)), key=pairs.__getitem__)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def byte_level_bpe(vocab=None, merges=None):
    """Return a BPE of the `tokenizers` library that works on bytes, as in GPT-2."""
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    bpe = HuggingFaceTokenizer(models.BPE(vocab, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def can_be_cut(description):
    """Return whether the tokenizer of a tokenizer.json keeps its ids if a text is cut before a space or newline.

    Some do not: a pattern that keeps a full stop with its line break, a normaliser, a space that is put before each
    text, a special token that swallows the space after it. description: the contents of the file.
    """
    pre_tokenizer = description.get('pre_tokenizer') or {}
    return bool(
        description.get('normalizer') is None
        and pre_tokenizer.get('type') == 'ByteLevel'
        and pre_tokenizer.get('use_regex', True)
        and not pre_tokenizer.get('add_prefix_space')
        and not description['model'].get('dropout')
        and not any(token['rstrip'] or re.search(r'\s', token['content']) for token in description['added_tokens'])
    )


def write_tokenizer_files(tokenizer, folder, special=(), config=None):
    """Write tokenizer.json, and tokenizer_config.json with the class and special tokens that AutoTokenizer needs.

    config: the text of a tokenizer_config.json to write instead; None for one with these special tokens.
    """
    with atomic_write(Path(folder) / 'tokenizer.json') as path:
        path.write_text(tokenizer.to_str(), encoding='utf-8')
    plain = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False, **dict(special)}
    with atomic_write(Path(folder) / 'tokenizer_config.json') as path:
        path.write_text(json.dumps(plain, indent=2) + '\n' if config is None else config, encoding='utf-8')
