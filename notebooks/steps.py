"""What the forms of the notebook do: load a model, prepare texts, measure, write samples, save and publish.

The notebook is in the project's folder by then, and everything is written there: tokens to data/notebook, the rest to
out-notebook.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

import export
import prepare_bin
from common.errors import UserError
from common.files import expand_path
from common.text_files import text_kind
from eval import Settings as ScoringSettings
from evaluation.results import Results
from evaluation.running_text import TextSource
from evaluation.scored_rows import Subject, score_units
from evaluation.sources import group_windows
from lm import fast
from lm.checkpoint import load_model, require_tokenizer
from lm.locate import PUBLISHED
from lm.responses import Response, generate_responses
from lm.roles import choose_front
from lm.settings import SamplingSettings
from lm.tuning import MANY_ROWS
from lm.wording import describe_sampler
from notebooks.choices import OUT, read_columns
from notebooks.friendly import explain_failed_push, explain_missing_dataset, explain_missing_model, notes_in, quietly
from notebooks.progress import report
from notebooks.runs import DATASET, count_tokens, model_version, read_training_settings
from pictures import page
from texts.tables import TABLES

MODELS = OUT / 'models'  # those that were saved
RESAMPLES, SEED = 2000, 1337


def describe_machine():
    """Return a sentence about where the training will run."""
    if torch.cuda.is_available():
        return f'Ready, with a GPU: {torch.cuda.get_device_name()}.'
    return 'Ready, without a GPU: the models of this project learn in a minute; GPT-2 takes patience.'


# Models ---------------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A model that is in memory: its name, the model itself, its tokenizer, and how many weights it has."""

    name: str
    model: object
    tokenizer: object
    weights: int


_loaded = {}  # (name, when its weights were written) -> Model; the two that were used last


def open_model(name, run=None):
    """Return the Model of a name or, if there is one, of a Run that began from it.

    Raises UserError if it cannot be had, with what can be done.
    """
    checkpoint = None if run is None else run.folder / 'ckpt.pt'
    key = (name, model_version(name)) if run is None else (str(run.folder), checkpoint.stat().st_mtime_ns)
    if key not in _loaded:
        with quietly():
            try:
                source = ('resume', run.folder) if run is not None else (name, 'out')
                model, tokenizer, _ = load_model(*source, to_pack=True)
            except UserError as error:
                raise explain_missing_model(name, error) from error
            choose_front(require_tokenizer(tokenizer, name), None, name)
            weights = model.get_num_params(non_embedding=False)
            while len(_loaded) > 1:
                _loaded.pop(next(iter(_loaded)))
            _loaded[key] = Model(name, fast.pack(model, rows=MANY_ROWS), tokenizer, weights)
    return _loaded[key]


def forget_models():
    """Free the memory of all models, for training."""
    _loaded.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def saved_models():
    """Return the folders of the models that were saved, by name."""
    return {path.parent.name: path.parent for path in sorted(MODELS.glob('*/config.json'))}


# Texts ----------------------------------------------------------------------------------------------------------------


def prepare_texts(source, column, model, max_documents):
    """Split texts into training, validation and test parts, as tokens of a model; return notes about them.

    source, column: see notebooks.choices. Raises UserError if there are too few.
    """
    path = None if source.path is None else source.path()
    settings = prepare_bin.Settings(
        dataset=DATASET,
        tokenizer='gpt2' if model in PUBLISHED else model,
        text_column=column if path is None or text_kind(path) in TABLES else '',
        val_fraction=0.1,
        test_fraction=0.1,
        max_documents=max_documents,
        num_workers=1,
    )
    if path is None:
        settings.hf_dataset, settings.hf_config = source.dataset, source.config
    else:
        settings.input = str(path)
    with quietly() as (_, err), explained(source):
        prepare_bin.main(settings)
    count_tokens()
    return notes_in(err)


def look_at(source):
    """Return the columns of a Source that hold text, the names of the others, and notes; see `read_columns`."""
    with quietly() as (_, err), explained(source):
        columns, others = read_columns(source)
    return columns, others, notes_in(err)


@contextlib.contextmanager
def explained(source):
    """Raise what the hub reports about a dataset in words that help."""
    try:
        yield
    except UserError as error:
        if 'cannot be read from the Hugging Face hub' not in str(error):
            raise
        raise explain_missing_dataset(source.dataset, error) from error


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(model, run=None):
    """Return how well a model predicts the test part, and how well after a Run; see `Results.summary`.

    Its measures have the roles `compare_to`, `model` and `difference` or, without a Run, `model` alone. Both models see
    equally much text before each token, as much as in training.
    """
    opened = [open_model(model)] if run is None else [open_model(model, run), open_model(model)]
    subjects = [Subject(one.name, one.model, one.tokenizer) for one in opened]
    block_size = min(
        read_training_settings(opened[-1].weights).block_size, *(subject.model.block_size for subject in subjects)
    )
    with quietly():
        tokenizers = [subject.tokenizer for subject in subjects]
        source = TextSource(f'{DATASET}/test', tokenizers, [block_size] * len(subjects))
        results = Results(same_tokens=True, has_sampler=False, show=0, text=True)
        settings = ScoringSettings()
        for window in group_windows(source.units()):
            results.extend(score_units(window, source, subjects, settings, lambda index: 0))
        return results.summary(RESAMPLES, SEED)


# Samples --------------------------------------------------------------------------------------------------------------


@dataclass
class Wish:
    """What to write: how many samples after a prompt, how long, and how daring."""

    prompt: str
    count: int
    length: int  # in tokens
    temperature: float

    @property
    def settings(self):
        return SamplingSettings(temperature=self.temperature, max_new_tokens=self.length, seed=SEED)


class Sample(NamedTuple):
    """A text that a model wrote after a prompt."""

    text: str
    response: Response
    prompt_ids: list[int]


def write_samples(opened, wish, show: Callable = lambda samples: None, record=False):
    """Return Samples of a model, calling show(samples) now and then; record: with what could have come instead.

    The same wish gets the same random numbers from every model.
    """
    model, tokenizer = opened.model, opened.tokenizer
    prompt_ids = tokenizer.encode_prompt(wish.prompt)
    snapshots = generate_responses(
        model, prompt_ids, wish.settings, wish.count, eot=tokenizer.roles.ends, recorded_steps=wish.length * record
    )
    samples = []
    for number, responses in enumerate(snapshots):
        samples = [
            Sample(_text_of(response.ids, tokenizer, prompt_ids), response, prompt_ids) for response in responses
        ]
        report((number + 1) / wish.length)
        if number % 10 == 0:
            show(samples)
    show(samples)
    return samples


def _text_of(ids, tokenizer, prompt_ids):
    """Return the text of a sample, with a mark instead of the token that ends it."""
    ended = bool(ids) and ids[-1] in tokenizer.roles.ends
    return tokenizer.decode(ids[:-1] if ended else ids, prompt_ids) + (' ∎' if ended else '')


def compare_tokens(model, run, wish):
    """Return a page with a text that the model wrote after a Run, and how likely each token was before and after.

    On the page, each token shows what else could have come.
    """
    after, before = open_model(model, run), open_model(model)
    wish = Wish(wish.prompt, 1, wish.length, wish.temperature)
    (sample,) = write_samples(after, wish, record=True)
    *_, (fixed,) = generate_responses(
        before.model, sample.prompt_ids, wish.settings, 1, sample.response.ids, recorded_steps=wish.length
    )
    sides = [
        page.make_side(sample.response.records, after.tokenizer),
        page.make_side(fixed.records, before.tokenizer),
    ]
    names = ['after fine-tuning', 'before']
    about = [
        'The text was sampled from the model after fine-tuning; the second line shows how likely the same tokens '
        f'were before. The sampler’s settings for the text: {describe_sampler(wish.settings, False)}.'
    ]
    text = page.PageText('sample 1', after.tokenizer.decode(sample.prompt_ids), sides)
    return page.render_page(page.Page('What could have come instead', about, names, None, [text]))


# Saving ---------------------------------------------------------------------------------------------------------------


def save_model(run, name, about='', replace=False):
    """Write the model of a Run to a folder that transformers and this notebook can open; return its path."""
    folder = _folder_for(name)
    if folder.resolve() == expand_path(run.model).resolve():
        raise UserError(
            f'“{folder.name}” is the model that this run began from, and is needed to compare: choose another name'
        )
    if (folder / 'config.json').exists() and not replace:
        raise UserError(
            f'there is a model called “{name}” already: choose another name, or tick “replace a model of this name”'
        )
    with quietly():
        export.main(export.Settings('resume', str(run.folder), str(folder), overwrite=True, about=about))
    return folder


def publish_model(run, name, token, about='', private=True):
    """Push the model of a Run to the Hugging Face hub; return its address. The token is neither kept nor printed."""
    token = token.strip() or find_token()
    if not token:
        raise UserError(
            'publishing needs a token with write permission: make one at https://huggingface.co/settings/tokens and '
            'paste it into the field'
        )
    settings = export.Settings(
        'resume',
        str(run.folder),
        str(OUT / 'published' / run.folder.name),
        overwrite=True,
        about=about,
        push_to=name.strip(),
        private=private,
    )
    before = os.environ.get('HF_TOKEN')
    os.environ['HF_TOKEN'] = token
    try:
        with quietly() as (out, _):
            export.main(settings)
    except UserError as error:
        raise UserError(str(explain_failed_push(name.strip(), error)).replace(token, '(token)')) from None
    finally:
        del os.environ['HF_TOKEN']
        if before is not None:
            os.environ['HF_TOKEN'] = before
    return re.search(r'pushed to (\S+)/commit/', out.getvalue())[1]


def find_token():
    """Return the token in the environment or, on Colab, among the secrets; '' if there is none."""
    if token := os.environ.get('HF_TOKEN'):
        return token
    try:
        from google.colab import userdata  # the key symbol on the left of the page

        return userdata.get('HF_TOKEN')
    except Exception:  # not on Colab, no such secret, or no access to it
        return ''


def download_model(folder):
    """On Colab, send a saved model to the person's computer as a zip file."""
    from google.colab import files

    files.download(shutil.make_archive(str(folder), 'zip', folder))


def on_colab():
    """Return whether this notebook runs on Colab."""
    try:
        import google.colab  # noqa: F401
    except ImportError:
        return False
    return True


def _folder_for(name):
    """Return the folder for a model to save. Raises UserError if the name cannot be that of a folder."""
    name = name.strip()
    if not re.fullmatch(r'\w[\w.-]*', name):
        raise UserError('give the model a name of letters, digits and hyphens, such as my-stories')
    return MODELS / name
