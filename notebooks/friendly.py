"""Errors and notes in words for somebody who has never used a command line."""

import contextlib
import io
import re
import traceback

from common.errors import UserError, is_out_of_memory, on_one_line
from common.files import make_folder
from common.notes import forget_notes
from lm.hub_download import DownloadError
from notebooks.choices import MODELS, OUT, SOURCES, UPLOADS, similar_model
from notebooks.progress import Bars

NO_MEMORY = 'there is not enough memory for this here: choose a smaller model, or shorter and fewer samples'
ADVICE = (  # what a message of the project contains, and what is said instead
    ('training diverged', 'the numbers became infinite: this learning rate is far too large. Try a tenth of it'),
    ('out of memory', NO_MEMORY),
    ('not enough for', 'this is too little text to set a part aside: choose more or longer texts'),
    ('there is no text in', 'there is no text in it: choose another column, or other texts'),
    (
        'is not UTF-8 text',
        'the letters of this file are stored in an old way. Open it in the program that made it, and save it once '
        'more as UTF-8: in Notepad, choose UTF-8 beside Encoding under File, Save As; in Excel, “CSV UTF-8”; in Word, '
        '“Plain Text” and then UTF-8',
    ),
    ('Repo id must', 'a name on the hub has letters, digits and hyphens, and no spaces, as in owner/name'),
)


def explain(error):
    """Return one sentence about what went wrong, without settings of the command line.

    An error that nobody has foreseen is kept, with its traceback, in errors.log.
    """
    if isinstance(error, UserError):
        return sentence(plain(on_one_line(error)))
    if is_out_of_memory(error):
        return sentence(NO_MEMORY)
    with contextlib.suppress(OSError, UserError):  # a full disk must not hide what happened
        make_folder(OUT)
        with open(OUT / 'errors.log', 'a', encoding='utf-8') as file:
            file.write(''.join(traceback.format_exception(error)))
    what = ' '.join(str(error).split())[:200]
    return f'This should not happen ({type(error).__name__}: {what}). Details are in {OUT}/errors.log.'


def plain(message):
    """Return a message of the project without what only helps at a command line."""
    for words, advice in ADVICE:
        if words in message:
            return advice
    message = message.replace(f'{UPLOADS.as_posix()}/', '')
    parts = [part for part in message.split('; ') if not re.search(r'--\w|\bpython \w', part)]
    return '; '.join(parts) or re.sub(r'--\w+=?', '', message)


def sentence(text):
    """Return a text as a sentence; the name of a file at its beginning stays as it is."""
    text = text.strip()
    if text.partition(' ')[0].isalpha():
        text = text[:1].upper() + text[1:]
    return text if text.endswith(('.', '?', '!')) else f'{text}.'


def explain_missing_model(name, error):
    """Return a UserError about a model that could not be loaded: what may have been meant, and what can be done."""
    near, is_offered = similar_model(name), any(name == offer.name for offer in MODELS)
    meant = f'Did you mean {near}?' if near and near != name else ''
    spelling = '' if is_offered else f'{meant or "Check its spelling."} '
    if isinstance(error, DownloadError):
        return UserError(
            f'“{name}” is not on this computer yet, and it could not be downloaded. '
            f'{spelling}Check the internet connection and press the button again, or choose tiny-stories, which needs '
            'no download'
        )
    if re.search('no model of that name|nor a valid name|to load a model', str(error)):
        return UserError(f'there is no model called “{name}”. {meant or "On the hub, a name looks like owner/name"}')
    return error


def explain_missing_dataset(name, error):
    """Return a UserError about a dataset of the hub that could not be read; a reason is kept if it is of any use."""
    if 'NotFound' in type(error.__cause__).__name__:
        return UserError(f'there is no dataset called “{name}” on the hub, or it is not public: check its spelling')
    reason = str(error).partition('Hugging Face hub: ')[2].partition('; use --input')[0]
    if is_unreachable(error.__cause__):
        is_offered = any(source.dataset == name for source in SOURCES.values())
        what = 'the internet connection' if is_offered else 'its spelling and the internet connection'
        reason = f'check {what}, or choose texts that need no download'
    return UserError(f'“{name}” could not be read from the Hugging Face hub: {reason}')


def explain_failed_push(name, error):
    """Return a UserError about a model that could not be published."""
    if is_unreachable(error.__cause__):
        return UserError(f'“{name}” could not be published: the hub cannot be reached. Check the internet connection')
    if re.search(r'\b40[13]\b', str(error)):
        return UserError(
            f'“{name}” could not be published: the hub does not accept this token. It needs write permission'
        )
    return error


def is_unreachable(error):
    """Return whether an error of huggingface_hub, datasets or their HTTP client means that there is no connection."""
    kind = type(error).__name__
    return isinstance(error, ConnectionError | TimeoutError) or re.search('Connect|Timeout|Offline', kind) is not None


@contextlib.contextmanager
def quietly():
    """Keep from the page what the project's functions print; yield the two streams that receive it: out and err.

    How far their progress bars are is reported to the button that was pressed.
    """
    out, err = io.StringIO(), Bars()
    forget_notes()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def notes_in(err):
    """Return the notes among what was printed, as sentences."""
    lines = [line for line in err.getvalue().splitlines() if line.startswith('note: ')]
    return [sentence(plain(line.removeprefix('note: '))) for line in lines]


def last_line(output):
    """Return the last line of what a script printed, which is its error if it failed."""
    lines = output.replace('\r', '\n').strip().splitlines()
    return lines[-1].removeprefix('error: ') if lines else 'the training ended without a message'
