"""Whether a tokenizer from a file can be trusted: does it give back the text that it is given, the same way each time?

A file may be damaged, made for training (BPE dropout), or made for another purpose (lower case only). What makes
numbers meaningless is refused; what only changes the text is noted, since a model may have been trained that way.
"""

import hashlib
import json
import os
import threading
from contextlib import contextmanager

from common.errors import UserError
from common.json_files import read_json_object
from common.notes import note
from common.strings import shorten, show_value

MOST_GAPS = 2**16  # the most ids without a token that may be padding; more of them mean a damaged number
PROBES = (  # what normalisers, patterns and small alphabets change: case, accents, ligatures, white space, emoji
    "Once upon a time, Anna said: I don't KNOW 3.14!",
    ' two  spaces\n\n\ta tab ',
    'café cafe\u0301 ﬁne Å ½',
    '中文 日本語 Ωμέγα שלום',
    '🙂\u200d"…” <b>&amp;</b>\\',
)

_silence = threading.RLock()  # of two threads, the second would save the first one's silence as its stderr


@contextmanager
def report_panics(what):
    """Turn a panic of the `tokenizers` library, which is no Exception, into a UserError that says what failed."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != 'PanicException':  # which cannot be imported
            raise
        reason = shorten(str(error), 200)
        if 'retry-limit' in reason:
            reason = 'one of its regular expressions takes too long'
        raise UserError(f'{what}: the tokenizers library failed ({reason})') from None


@contextmanager
def silence_stderr():
    """Hold back the lines that Rust writes to stderr, past Python, about a panic; a note of ours is held back, too.

    For loading only: all threads write to the same stderr, and what one of them says must not get lost with each text
    that another encodes.
    """
    with _silence:
        try:
            saved = os.dup(2)
        except OSError:  # stderr is closed
            yield
            return
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 2)
            os.close(silent)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def check_vocabulary(vocab):
    """Return the number of ids, from 0 to the largest. Raises UserError if {token: id} cannot be a vocabulary."""
    if not vocab:
        raise UserError('its vocabulary is empty')
    tokens = {}
    for token, id in vocab.items():
        if id in tokens:
            raise UserError(f'two of its tokens have the id {id}: {show_value(tokens[id])} and {show_value(token)}')
        tokens[id] = token
    n_ids = max(tokens) + 1
    if n_ids > len(vocab) + MOST_GAPS:
        raise UserError(
            f'its token {show_value(tokens[n_ids - 1])} has the id {n_ids - 1:,}, but it has only {len(vocab):,} tokens'
        )
    return n_ids


def check_bpe(tokenizer, model):
    """Let a BPE of the `tokenizers` library encode a text the same way each time; say what is unusual about it.

    model: the description of the BPE, as in a tokenizer.json.
    """
    if dropout := model.get('dropout'):
        tokenizer.model.dropout = None
        note(
            f'this tokenizer has a BPE dropout of {dropout}, which is meant for training: it gives a text other tokens '
            'each time. It is off here; transformers leaves it on'
        )
    vocab, merges = model.get('vocab'), model.get('merges')
    if not vocab:
        raise UserError('its vocabulary is empty')
    if not isinstance(vocab, dict) or not isinstance(merges, list) or model.get('ignore_merges'):
        return  # not a BPE, or one that takes whole words from its vocabulary
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if model.get('byte_fallback'):
        added.update(f'<0x{byte:02X}>' for byte in range(256))
    made = {merge.replace(' ', '') if isinstance(merge, str) else ''.join(merge) for merge in merges}
    lost = [token for token in vocab if len(token) > 1 and token not in made and token not in added]
    if len(lost) > len(vocab) / 100:  # some may be special tokens that no file names
        note(
            f'{len(lost):,} of the {len(vocab):,} tokens of this tokenizer, such as {show_value(lost[-1])}, are the '
            'result of no merge, so no text has them; is its list of merges complete?'
        )


def follow_prefix_space(tokenizer, folder):
    """Put a space before each text or not, as tokenizer_config.json says, if it names GPT-2's class of tokenizer.

    transformers does so whatever tokenizer.json says.
    """
    config = read_json_object(folder / 'tokenizer_config.json', missing={})
    wanted, now = config.get('add_prefix_space'), getattr(tokenizer.pre_tokenizer, 'add_prefix_space', None)
    is_gpt2 = config.get('tokenizer_class') in ('GPT2Tokenizer', 'GPT2TokenizerFast')
    if is_gpt2 and isinstance(wanted, bool) and isinstance(now, bool) and wanted != now:
        tokenizer.pre_tokenizer.add_prefix_space = wanted
        puts, no = ('puts', 'does not') if wanted else ('puts no', 'does')
        note(f'{folder}: tokenizer_config.json {puts} space before each text, as here; its tokenizer.json {no}')


def cutting_fingerprint(fingerprint, tokenizer):
    """Return the fingerprint of a vocabulary, changed if texts are cut into its tokens in another way than GPT-2's.

    With a normaliser, another pattern or a space before each text, the same tokens are not the same ids.
    """
    described = json.loads(tokenizer.to_str())
    pre_tokenizer = dict(described['pre_tokenizer'] or {})
    pre_tokenizer.pop('trim_offsets', None)  # does not concern ids
    plain = {'type': 'ByteLevel', 'add_prefix_space': False, 'use_regex': True}
    if described['normalizer'] is None and pre_tokenizer == plain:
        return fingerprint
    how = json.dumps([fingerprint, described['normalizer'], pre_tokenizer], sort_keys=True)
    return hashlib.sha256(how.encode()).hexdigest()


def note_changed_texts(tokenizer, where):
    """Encode a few texts, and say so if they do not come back as they were, with an example.

    Raises UserError if a text gets other ids each time, or if the tokenizer fails.
    """
    for text in PROBES:
        with silence_stderr():
            ids, again = tokenizer.encode(text), tokenizer.encode(text)
        if again != ids:
            raise UserError(f'{where} is refused: its tokenizer gives the same text other tokens each time')
        if (spelled := tokenizer.decode(ids)) != text:
            note(
                f'{where}: its tokenizer changes texts; {show_text(text)} becomes {show_text(spelled)}. All '
                'probabilities are those of the changed text'
            )
            return


def show_text(text):
    """Return a text as a note shows it: in quotes, control characters as escapes, other letters as they are."""
    return json.dumps(text, ensure_ascii=False)
