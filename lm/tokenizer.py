"""Text to token ids and back, with three kinds of tokenizer: GPT-2's BPE, any byte-level BPE, single characters.

Each has `encode`, `decode`, `decode_bytes`, `pieces`, `encode_pair`, `vocab_size` and `eot` (the id of <|endoftext|>,
or None), and can be saved into a model folder. Its `contents` describe it completely in plain types, so that a
checkpoint can hold its tokenizer.
"""

import functools
import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import resolve_path
from common.strings import replace_surrogates
from lm.boundary import split_pair
from lm.byte_level import byte_level_bpe, find_merge, letters_of_bytes, write_tokenizer_files

EOT = '<|endoftext|>'
GPT2_FINGERPRINT = '5179c95f002c1e19e034e2ac61a2fb511b01641798da4793cf55a8b6edd9a4ac'
VISIBLE = {' ': '·', '\n': '⏎', '\t': '⇥', '\r': '␍'}


class Tokenizer:
    """What all three kinds have in common."""

    eot = None

    def decode(self, ids):
        """Return the text of token ids; bytes that are not UTF-8 (such as half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode('utf-8', errors='replace')

    def decode_bytes(self, ids):
        """Return the UTF-8 bytes of token ids. Raises UserError for unknown ids."""
        return b''.join(self._bytes_of(id) for id in self._check(ids))

    def pieces(self, ids):
        """Return each token made visible: · for a space, ⏎ for a newline, ‹e2 80› for part of a character."""
        return [_visible(self._bytes_of(id)) for id in self._check(ids)]

    @property
    def fingerprint(self):
        """SHA-256 of all tokens in order: the same for tokenizers that give the same ids, in whatever file format."""
        tokens = [self._bytes_of(id).hex() if self._has(id) else '' for id in range(self.vocab_size)]
        return hashlib.sha256('\n'.join(tokens).encode()).hexdigest()

    def _has(self, id):
        return True

    def encode_array(self, text, dtype):
        """Return the token ids of a text as a NumPy array, as fast as possible."""
        return np.array(self.encode(text), dtype)

    def encode_pair(self, prompt, response, boundary='joint'):
        """Return (prompt ids, response ids). Only this method decides where a response begins.

        boundary: 'joint' is lm-evaluation-harness's rule wherever it loses nothing. White space at the end of the
        prompt moves to the response, both are encoded as one text, and as many tokens as the prompt alone has are cut
        off its beginning: the rest is the response. If the rest does not spell the response, because a token of the
        whole text crosses the boundary ("gi" and "rl" are one token in "girl"), the prompt keeps its own tokens and
        the response is encoded by itself. 'separate' encodes each by itself always.
        Prompt ids and response ids spell the text. `split_pair` also tells whether a token was cut in two.
        An empty prompt becomes <|endoftext|>; an empty response has no ids.
        """
        return self.split_pair(prompt, response, boundary)[:2]

    def split_pair(self, prompt, response, boundary='joint'):
        """Return an EncodedPair: the ids of `encode_pair`, and a note if their boundary or spelling is unusual."""
        return split_pair(self, prompt, response, boundary)

    def encode_prompt(self, prompt):
        """Return the ids of a prompt to continue; an empty one becomes <|endoftext|>."""
        return self.start_ids(self.encode(prompt))

    def start_ids(self, ids):
        """Return the ids of a prompt, or those that stand for an empty one."""
        if ids:
            return ids
        if self.eot is None:
            raise UserError(
                f'the prompt is empty or only white space, and this tokenizer has no {EOT} to begin with instead'
            )
        return [self.eot]

    def _check(self, ids):
        unknown = sorted({int(id) for id in ids if not 0 <= id < self.vocab_size})
        if unknown:
            raise UserError(f'unknown token ids {unknown[:5]}; this tokenizer has {self.vocab_size}')
        return [int(id) for id in ids]


class GPT2Tokenizer(Tokenizer):
    """GPT-2's own byte-level BPE of 50,257 tokens, computed by tiktoken."""

    vocab_size, eot = 50257, 50256
    fingerprint = GPT2_FINGERPRINT  # a constant, so that training on token files does not need the vocabulary

    @functools.cached_property
    def _encoding(self):
        import tiktoken  # here: other tokenizers do not need it, and it is slow to import

        try:
            return tiktoken.get_encoding('gpt2')
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
            cache = os.environ.get('TIKTOKEN_CACHE_DIR')
            tried = f'in TIKTOKEN_CACHE_DIR={cache} and ' if cache else ''
            raise UserError(
                f"GPT-2's vocabulary was not found {tried}at openaipublic.blob.core.windows.net "
                f'({type(error).__name__}). Without a network, set TIKTOKEN_CACHE_DIR to a folder where tiktoken has '
                'saved it before, or use what is shipped: --init_from=tiny-stories, or --tokenizer=tiny-stories'
            ) from error

    def encode(self, text):
        """Return the token ids of a text; <|endoftext|> in it is the special token."""
        return self._encoding.encode(text, allowed_special={EOT}, disallowed_special=())

    def encode_array(self, text, dtype):
        """Return the token ids of a text as a NumPy array, without making a Python number for each."""
        return self._encoding.encode_to_numpy(text, allowed_special={EOT}, disallowed_special=()).astype(dtype)

    def encode_batch(self, texts):
        """Return the token ids of many texts, encoded in parallel."""
        return self._encoding.encode_batch(texts, allowed_special={EOT}, disallowed_special=())

    def _bytes_of(self, id):
        return self._encoding.decode_single_token_bytes(id)

    @property
    def contents(self):
        """What a checkpoint stores of it: the name is enough, since OpenAI's vocabulary is public."""
        return {'kind': 'gpt2'}

    def save(self, folder):
        """Write a tokenizer.json that `transformers` can read; its merges follow from tiktoken's ranks."""
        ranks = {self._bytes_of(id): id for id in range(self.eot)}
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
        BPETokenizer(bpe).save(folder)


class BPETokenizer(Tokenizer):
    """A byte-level BPE in Hugging Face's tokenizer.json format, such as `train_bpe` returns."""

    def __init__(self, tokenizer):
        tokenizer.no_truncation()  # settings for other programs' batches must neither cut texts nor pad them
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.eot = tokenizer.token_to_id(EOT)
        self._special = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
        self._bytes_of_letters = {letter: byte for byte, letter in letters_of_bytes().items()}

    @classmethod
    def from_file(cls, path):
        """Read a tokenizer.json. Raises UserError if the file is damaged or not a byte-level BPE."""
        try:
            return cls.from_json(Path(path).read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError, UserError) as error:
            raise UserError(f'cannot read {path} as a tokenizer.json: {error}') from error

    @classmethod
    def from_json(cls, text):
        """Return the tokenizer that the text of a tokenizer.json describes."""
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        try:
            kind = json.loads(text)
            kinds = json.dumps([kind.get('pre_tokenizer'), kind.get('decoder')])
        except (ValueError, AttributeError) as error:
            raise UserError('it is not a JSON object') from error
        if 'ByteLevel' not in kinds:
            raise UserError('it is not a byte-level BPE, the only kind that is supported')
        try:
            return cls(HuggingFaceTokenizer.from_str(text))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(str(error)) from error

    @classmethod
    def from_vocab_and_merges(cls, vocab_path, merges_path):
        """Read GPT-2's older format, the pair of files vocab.json and merges.txt."""
        from tokenizers.models import BPE

        try:
            vocab, merges = BPE.read_file(str(vocab_path), str(merges_path))
            bpe = byte_level_bpe(vocab, merges)
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f'cannot read {vocab_path} and {merges_path} as a BPE: {error}') from error
        if EOT in vocab:
            bpe.add_special_tokens([EOT])
        return cls(bpe)

    def encode(self, text):
        """Return the token ids of a text; <|endoftext|> in it is the special token."""
        return self._tokenizer.encode(replace_surrogates(text), add_special_tokens=False).ids

    def encode_batch(self, texts):
        """Return the token ids of many texts, encoded in parallel."""
        texts = [replace_surrogates(text) for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _bytes_of(self, id):
        if id in self._special:
            return self._special[id].encode()
        token = self._tokenizer.id_to_token(id)
        if token is None:
            raise UserError(f'unknown token ids [{id}]; the vocabulary of this tokenizer leaves them out')
        return bytes(self._bytes_of_letters[letter] for letter in token)

    def _has(self, id):
        return self._tokenizer.id_to_token(id) is not None

    @property
    def contents(self):
        """What a checkpoint stores of it: the text of its tokenizer.json."""
        return {'kind': 'bpe', 'json': self._tokenizer.to_str()}

    def save(self, folder):
        """Write tokenizer.json, and the tokenizer_config.json that `transformers` needs."""
        special = {} if self.eot is None else {'bos_token': EOT, 'eos_token': EOT, 'unk_token': EOT}
        write_tokenizer_files(self._tokenizer, folder, special)


class CharTokenizer(Tokenizer):
    """One token for each character of a text, as in nanoGPT's character-level datasets."""

    def __init__(self, chars):
        """chars: the characters in the order of their ids."""
        self._chars = list(chars)
        if not all(isinstance(char, str) and len(char) == 1 for char in self._chars):
            raise UserError('it is not a list of single characters')
        self._ids = {char: id for id, char in enumerate(self._chars)}
        self.vocab_size = len(self._chars)

    @classmethod
    def from_meta_pkl(cls, path):
        """Read the meta.pkl of a nanoGPT character dataset without executing anything in it."""
        try:
            with open(path, 'rb') as file:
                itos = _PlainUnpickler(io.BytesIO(file.read())).load()['itos']
            return cls([itos[id] for id in range(len(itos))])
        except Exception as error:  # a damaged pickle can raise almost anything
            raise UserError(f"cannot read {path} as nanoGPT's meta.pkl: {' '.join(str(error).split())}") from error

    def encode(self, text):
        """Return one id for each character. Raises UserError, naming them, if there are unknown characters."""
        unknown = sorted(set(text) - set(self._ids))
        if unknown:
            named = ', '.join(f'{char!r} (U+{ord(char):04X})' for char in unknown[:5])
            raise UserError(f'this tokenizer has {self.vocab_size} characters; unknown ones: {named}')
        return [self._ids[char] for char in text]

    def encode_batch(self, texts):
        """Return the token ids of many texts."""
        return [self.encode(text) for text in texts]

    def _bytes_of(self, id):
        return self._chars[id].encode('utf-8', errors='surrogatepass')

    @property
    def contents(self):
        """What a checkpoint stores of it: its characters."""
        return {'kind': 'char', 'chars': self._chars}

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
            return GPT2Tokenizer()
        case {'kind': 'bpe', 'json': str(text)}:
            return BPETokenizer.from_json(text)
        case {'kind': 'char', 'chars': list(chars)}:
            return CharTokenizer(chars)
    raise UserError('its description of a tokenizer is of an unknown kind')


def tokenizer_from_folder(folder):
    """Return the tokenizer in a folder, in any of the known formats, or None if there is none."""
    folder = Path(folder)
    if (folder / 'tokenizer.json').exists():
        return _from_tokenizer_json(folder / 'tokenizer.json')
    if (folder / 'vocab.json').exists() and (folder / 'merges.txt').exists():
        return BPETokenizer.from_vocab_and_merges(folder / 'vocab.json', folder / 'merges.txt')
    if (folder / 'characters.json').exists():  # an older format of this project
        return _from_json_file(folder / 'characters.json')
    if (folder / 'meta.json').exists():
        return _from_json_file(folder / 'meta.json', 'tokenizer')
    if (folder / 'meta.pkl').exists():
        return CharTokenizer.from_meta_pkl(folder / 'meta.pkl')
    return None


def _from_tokenizer_json(path):
    """Return the tokenizer of a tokenizer.json: characters, as CharTokenizer saves them, or a byte-level BPE."""
    try:
        model = json.loads(path.read_text(encoding='utf-8'))['model']
        if model['type'] == 'WordLevel' and sorted(model['vocab'].values()) == list(range(len(model['vocab']))):
            return CharTokenizer(sorted(model['vocab'], key=model['vocab'].get))
    except UserError as error:
        raise UserError(f'{path} is neither a byte-level BPE nor a list of characters: {error}') from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # reported below
    return BPETokenizer.from_file(path)


def _from_json_file(path, *keys):
    try:
        contents = json.loads(path.read_text(encoding='utf-8'))
        for key in keys:
            contents = contents[key]
        return tokenizer_from_contents(contents)
    except (OSError, ValueError, KeyError, TypeError) as error:  # a UserError is a ValueError
        raise UserError(f'cannot read {path} as the description of a tokenizer: {error}') from error


def tokenizer_from_name(name):
    """Return the tokenizer of a name: gpt2, a shipped model, a model folder, or a tokenizer.json."""
    if name == 'gpt2':
        return GPT2Tokenizer()
    shipped = resolve_path(Path('models') / name)
    path = shipped if shipped.is_dir() else resolve_path(name)
    if not path.exists():
        raise UserError(f'there is no tokenizer {name!r}; name gpt2, tiny, tiny-stories, a folder or a tokenizer.json')
    found = tokenizer_from_folder(path) if path.is_dir() else _from_tokenizer_json(path)
    if found is None:
        raise UserError(
            f'the folder {path} has no tokenizer: no tokenizer.json, vocab.json with merges.txt or meta.pkl'
        )
    return found


class _PlainUnpickler(pickle._Unpickler):
    """Reads dicts, lists, strings and numbers, which need no class, and refuses everything else.

    It extends the slower unpickler, written in Python: the one in C allocates any amount of memory that a damaged file
    asks for.
    """

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f'it would load {module}.{name}, but only plain data is allowed')


def _visible(token):
    """Return the bytes of one token in visible characters."""
    try:
        text = token.decode('utf-8')
    except UnicodeDecodeError:
        return f'‹{token.hex(" ")}›'
    return ''.join(VISIBLE.get(char) or (char if char.isprintable() else f'‹U+{ord(char):04X}›') for char in text)
