"""Text to token ids and back: GPT-2's BPE, any byte-level BPE, single characters, words and gaps of stories.

Each has `encode`, `decode`, `decode_bytes`, `pieces`, `encode_pair`, `vocab_size` and `eot` (the id of <|endoftext|>,
or None), and can be saved into a model folder. Its `contents` describe it completely in plain types, so that a
checkpoint can hold its tokenizer.
"""

import functools
import json
import os
from pathlib import Path

from common.errors import UserError, describe_os_error
from common.files import is_there
from common.json_files import read_json_object
from common.notes import note
from common.strings import replace_surrogates, show_value
from lm import byte_level
from lm.added_tokens import name_ids
from lm.bpe_files import find_front, parse_tokenizer_json, read_tokenizer_json, read_vocab_and_merges
from lm.byte_level import byte_level_bpe, find_merge, letters_of_bytes, write_tokenizer_files
from lm.plain_pickle import read_meta_pkl
from lm.roles import give_roles
from lm.story_tokenizer import StoryTokenizer
from lm.tokenizer_base import EOT, Tokenizer
from lm.tokenizer_check import check_vocabulary, cutting_fingerprint, note_changed_texts, report_panics

GPT2_SIZES = (50257, 50304)  # as released, and padded by nanoGPT
GPT2_FINGERPRINT = '5179c95f002c1e19e034e2ac61a2fb511b01641798da4793cf55a8b6edd9a4ac'


class GPT2Tokenizer(Tokenizer):
    """GPT-2's own byte-level BPE of 50,257 tokens, computed by tiktoken."""

    vocab_size, eot = 50257, 50256
    can_be_cut = True  # GPT-2's pattern begins a word at each space, and no token crosses a word
    fingerprint = GPT2_FINGERPRINT  # a constant, so that training on token files does not need the vocabulary

    @functools.cached_property
    def _encoding(self):
        import tiktoken  # here: other tokenizers do not need it, and it is slow to import

        try:
            return tiktoken.get_encoding('gpt2')
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
            cache = os.environ.get('TIKTOKEN_CACHE_DIR')
            if isinstance(error, OSError) and error.filename is not None:  # not of the network
                raise UserError(f"GPT-2's vocabulary cannot be read or kept: {describe_os_error(error)}") from error
            tried = f'in TIKTOKEN_CACHE_DIR={cache} and ' if cache else ''
            raise UserError(
                f"GPT-2's vocabulary was not found {tried}at openaipublic.blob.core.windows.net "
                f'({type(error).__name__}). Without a network, set TIKTOKEN_CACHE_DIR to a folder where tiktoken has '
                'saved it before, or use what is shipped: --init_from=tiny-stories, or --tokenizer=tiny-stories'
            ) from error

    def encode(self, text):
        """Return the token ids of a text; <|endoftext|> in it is the special token."""
        return self._limited(self._encoding.encode(text, allowed_special={EOT}, disallowed_special=()))

    def encode_array(self, text, dtype):
        """Return the token ids of a text as a NumPy array, without making a Python number for each."""
        return self._encoding.encode_to_numpy(text, allowed_special={EOT}, disallowed_special=()).astype(dtype)

    def encode_batch(self, texts):
        """Return the token ids of many texts, encoded in parallel."""
        batch = self._encoding.encode_batch(texts, allowed_special={EOT}, disallowed_special=())
        return [self._limited(ids) for ids in batch]

    def _bytes_of(self, id):
        return self._encoding.decode_single_token_bytes(id)

    @property
    def contents(self):
        """What a checkpoint stores of it: the name is enough, since OpenAI's vocabulary is public."""
        return self._complete({'kind': 'gpt2'})

    def save(self, folder):
        """Write a tokenizer.json that `transformers` can read."""
        self._as_bpe().save(folder)

    def id_of_text(self, text):
        """Return the id of the token that is written like this, None if there is none."""
        return 50256 if text == EOT else None

    def with_names_up_to(self, last):
        """Return a tokenizer in which every id up to `last` has a name."""
        return self._as_bpe().with_names_up_to(last)

    def _as_bpe(self):
        """Return the same tokenizer as a BPETokenizer; its merges follow from tiktoken's ranks."""
        ranks = {self._bytes_of(id): id for id in range(self.vocab_size - 1)}
        letters = letters_of_bytes()
        written = {token: ''.join(letters[byte] for byte in token) for token in ranks}
        vocab = {written[token]: id for token, id in ranks.items()}
        merges = []
        for token, rank in ranks.items():  # in the order of rank, in which they were learned
            if len(token) > 1:
                left, right = find_merge(token, ranks, rank)
                merges.append((written[left], written[right]))
        bpe = byte_level_bpe(vocab, merges)
        bpe.add_special_tokens([EOT])
        same = BPETokenizer(bpe)
        same.roles, same.config = self.roles, self.config
        return same


class BPETokenizer(Tokenizer):
    """A byte-level BPE in Hugging Face's tokenizer.json format, such as `train_bpe` returns."""

    kind = 'bpe'  # in `contents`

    def __init__(self, tokenizer):
        tokenizer.no_truncation()  # settings for other programs' batches must neither cut texts nor pad them
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vocab_size = check_vocabulary(tokenizer.get_vocab())
        self.eot = tokenizer.token_to_id(EOT)
        added = tokenizer.get_added_tokens_decoder()
        self._special = {id: token.content for id, token in added.items()}
        self._no_text = {id for id, token in added.items() if token.special}
        self._bytes_of_letters = {letter: byte for byte, letter in letters_of_bytes().items()}

    @classmethod
    def from_file(cls, path):
        """Read a tokenizer.json, with what other files of its folder add to it.

        Raises UserError if the file is damaged or not a byte-level BPE.
        """
        tokenizer = cls(read_tokenizer_json(Path(path)))
        tokenizer.front = find_front(tokenizer._tokenizer, path)
        return tokenizer

    @classmethod
    def from_json(cls, text):
        """Return the tokenizer that the text of a tokenizer.json describes."""
        return cls(parse_tokenizer_json(text))

    @classmethod
    def from_vocab_and_merges(cls, vocab_path, merges_path):
        """Read GPT-2's older format, the pair of files vocab.json and merges.txt."""
        return cls(read_vocab_and_merges(Path(vocab_path), Path(merges_path)))

    def encode(self, text):
        """Return the token ids of a text; <|endoftext|> in it is the special token."""
        with report_panics('this text cannot be encoded'):
            ids = self._tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids
        return self._limited(ids)

    def encode_batch(self, texts):
        """Return the token ids of many texts, encoded in parallel."""
        texts = [replace_surrogates(text) for text in texts]
        with report_panics('these texts cannot be encoded'):
            batch = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [self._limited(encoding.ids) for encoding in batch]

    def _bytes_of(self, id):
        if id in self._special:
            return self._special[id].encode()
        token = self._tokenizer.id_to_token(id)
        if token is None:
            raise UserError(f'unknown token ids [{id}]; the vocabulary of this tokenizer leaves them out')
        try:
            return bytes(self._bytes_of_letters[letter] for letter in token)
        except KeyError:  # it is not made of letters for bytes, and so in no text; as in tokenizers, it is itself
            return token.encode()

    def _has(self, id):
        return self._tokenizer.id_to_token(id) is not None

    def id_of_text(self, text):
        """Return the id of the token that is written like this, None if there is none."""
        return self._tokenizer.token_to_id(text) if isinstance(text, str) else None

    def is_added(self, id):
        """Return whether a token was added after the tokenizer was trained."""
        return id in self._special

    def is_special(self, id):
        """Return whether a token stands for something that is no text, such as the end of a text."""
        return id in self._no_text or super().is_special(id)

    def with_names_up_to(self, last):
        """Return a tokenizer in which every id up to `last` has a name."""
        name_ids(self._tokenizer, last)
        named = type(self)(self._tokenizer)
        named.front = self.front
        return named

    @property
    def contents(self):
        """What a checkpoint stores of it: the text of its tokenizer.json."""
        return self._complete({'kind': self.kind, 'json': self._tokenizer.to_str()})

    @functools.cached_property
    def fingerprint(self):
        """SHA-256 of all tokens in order, and of how texts are cut into them if that is unlike GPT-2's way."""
        return cutting_fingerprint(super().fingerprint, self._tokenizer)

    @functools.cached_property
    def can_be_cut(self):
        """Whether the ids stay the same if a text is cut before any space or newline that follows something else."""
        return byte_level.can_be_cut(json.loads(self._tokenizer.to_str()))

    def save(self, folder):
        """Write tokenizer.json, and the tokenizer_config.json that `transformers` needs."""
        bos, ends, pad = self.roles
        ids = {'bos_token': bos, 'eos_token': ends[0] if ends else None, 'pad_token': pad}
        special = {name: self._tokenizer.id_to_token(id) for name, id in ids.items() if id is not None}
        if self._tokenizer.token_to_id(EOT) is not None:
            special['unk_token'] = EOT
        write_tokenizer_files(self._tokenizer, folder, special, self.config)


class CharTokenizer(Tokenizer):
    """One token for each character of a text, as in nanoGPT's character-level datasets."""

    can_be_cut = True

    def __init__(self, chars):
        """chars: the characters in the order of their ids."""
        self._chars = list(chars)
        if not all(isinstance(char, str) and len(char) == 1 for char in self._chars):
            raise UserError('it is not a list of single characters')
        self._ids = {char: id for id, char in enumerate(self._chars)}
        if len(self._ids) < len(self._chars):
            raise UserError('two of its characters are the same')
        self.vocab_size = len(self._chars)

    @classmethod
    def from_meta_pkl(cls, path):
        """Read the meta.pkl of a nanoGPT character dataset without executing anything in it."""
        meta = read_meta_pkl(path)
        try:
            return cls([meta['itos'][id] for id in range(len(meta['itos']))])
        except (KeyError, TypeError, IndexError, UserError) as error:
            raise UserError(f"cannot read {path} as nanoGPT's meta.pkl: {' '.join(str(error).split())}") from error

    def encode(self, text):
        """Return one id for each character. Raises UserError, naming them, if there are unknown characters."""
        unknown = sorted(set(text) - set(self._ids))
        if unknown:
            named = ', '.join(f'{char!r} (U+{ord(char):04X})' for char in unknown[:5])
            raise UserError(f'this tokenizer has {self.vocab_size} characters; unknown ones: {named}')
        return self._limited([self._ids[char] for char in text])

    def id_of_text(self, text):
        """Return the id of the token that is written like this, None if there is none."""
        return self._ids.get(text) if isinstance(text, str) else None

    def encode_batch(self, texts):
        """Return the token ids of many texts."""
        return [self.encode(text) for text in texts]

    def _bytes_of(self, id):
        return self._chars[id].encode('utf-8', errors='surrogatepass')

    @property
    def contents(self):
        """What a checkpoint stores of it: its characters."""
        return self._complete({'kind': 'char', 'chars': self._chars})

    def save(self, folder):
        """Write a tokenizer.json whose words are characters, which `transformers` can read."""
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        words = HuggingFaceTokenizer(models.WordLevel(self._ids))
        words.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
        words.decoder = decoders.Fuse()
        write_tokenizer_files(words, folder)


def train_bpe(texts, vocab_size):
    """Train a byte-level BPE (Sennrich et al. 2016) of vocab_size tokens, including <|endoftext|> as id 0."""
    from tokenizers import pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise UserError(f'vocab_size={vocab_size}: a byte-level BPE needs more than {len(alphabet)} tokens')
    bpe = byte_level_bpe()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return BPETokenizer(bpe)


def tokenizer_from_contents(contents):
    """Return the tokenizer that `contents` describe, from a checkpoint or a dataset's meta.json."""
    match contents:
        case {'kind': 'gpt2'}:
            tokenizer = GPT2Tokenizer()
        case {'kind': 'bpe', 'json': str(text)}:
            tokenizer = BPETokenizer.from_json(text)
        case {'kind': 'pieces', 'json': str(text)}:
            from lm.piece_tokenizer import PieceTokenizer  # here, since it is made of what is in this file

            tokenizer = PieceTokenizer.from_json(text)
        case {'kind': 'char', 'chars': list(chars)}:
            tokenizer = CharTokenizer(chars)
        case {'kind': 'story', 'merges': list(merges), 'words': list(words), 'gaps': list(gaps)}:
            tokenizer = StoryTokenizer.from_contents(merges, words, gaps)
        case _:
            raise UserError('its description of a tokenizer is of an unknown kind')
    tokenizer.restore(contents)
    return tokenizer


def tokenizer_from_folder(folder):
    """Return the tokenizer in a folder, in any of the known formats, or None if there is none."""
    folder = Path(folder)
    tokenizer = _find_tokenizer(folder)
    return tokenizer and note_changes(give_roles(tokenizer, folder), folder)


def note_changes(tokenizer, where):
    """Return a tokenizer that was read from a file; say so if it changes texts, refuse it if it is not reliable."""
    if isinstance(tokenizer, BPETokenizer):  # the others cannot
        note_changed_texts(tokenizer, where)
    return tokenizer


def _find_tokenizer(folder):
    if is_there(folder / 'tokenizer.json'):
        return read_tokenizer_file(folder / 'tokenizer.json')
    if is_there(folder / 'vocab.json') and is_there(folder / 'merges.txt'):
        return BPETokenizer.from_vocab_and_merges(folder / 'vocab.json', folder / 'merges.txt')
    if is_there(folder / 'characters.json'):  # an older format of this project
        return _from_json_file(folder / 'characters.json')
    if is_there(folder / 'meta.json'):
        return _from_json_file(folder / 'meta.json', 'tokenizer')
    if is_there(folder / 'meta.pkl'):
        return _from_meta_pkl(folder / 'meta.pkl')
    return None


def _from_meta_pkl(path):
    """Return the tokenizer of nanoGPT's meta.pkl: characters, or GPT-2's if it only gives their number."""
    meta = read_meta_pkl(path)
    if 'itos' in meta:
        return CharTokenizer.from_meta_pkl(path)
    if (size := meta.get('vocab_size')) in GPT2_SIZES:
        note(f"{path} lists no characters; its vocab_size of {size} is that of GPT-2's BPE, which is used")
        return GPT2Tokenizer()
    raise UserError(
        f"{path} has no 'itos', the list of its characters, and its vocab_size is {show_value(size)}, not that of "
        "GPT-2's BPE (50257); without it, its tokens cannot be read as text"
    )


def read_tokenizer_file(path):
    """Return the tokenizer of a file: a tokenizer.json, of characters or a byte-level BPE, or contents of any kind."""
    contents = read_json_object(path)
    try:
        model = {'type': contents['kind']} if 'kind' in contents else contents['model']
        if model['type'] == 'WordLevel' and sorted(model['vocab'].values()) == list(range(len(model['vocab']))):
            return CharTokenizer(sorted(model['vocab'], key=model['vocab'].get))
    except UserError as error:
        raise UserError(f'{path} is neither a byte-level BPE nor a list of characters: {error}') from error
    except (KeyError, TypeError, AttributeError):
        pass  # reported below
    return _from_json_file(path) if 'kind' in contents else BPETokenizer.from_file(path)


def _from_json_file(path, *keys):
    contents = read_json_object(path)
    try:
        for key in keys:
            contents = contents[key]
        return tokenizer_from_contents(contents)
    except (ValueError, KeyError, TypeError) as error:  # a UserError is a ValueError
        raise UserError(f'cannot read {path} as the description of a tokenizer: {error}') from error
