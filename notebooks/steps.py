"""What the forms in fine_tune_your_own.ipynb do: run the project's scripts, and show their output and pictures.

The notebook is in the project's folder by then, and everything is written there: tokens to data/notebook, the model and
the pictures to out-notebook.
"""

import html
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from IPython.display import Image, display
from rich.console import Console
from rich.table import Table
from rich.text import Text

import configurator
import train
from common.errors import UserError
from common.files import PROJECT, resolve_path
from common.text_files import text_kind
from lm.locate import PUBLISHED
from pictures.losses import draw_losses
from texts.hub_datasets import open_hub_table
from texts.readers import KINDS, read_files
from texts.tables import TABLES, shorten_value
from texts.token_files import read_meta
from training.log import read_curves

NAME = 'notebook'  # of the dataset
OUT = Path('out-notebook')
STORIES = 'data/childrens_stories/childrens_stories.txt'  # the default text
CONFIGS = {'tiny': 'config/finetune_own_text.py'}  # settings that suit a model
GPT2_CONFIG = 'config/finetune_stories.py'  # for all other models
MIN_TOKENS = 50  # in each part of the texts


class StepFailed(Exception):
    """A step failed; the notebook shows the script's error message and no traceback."""

    def _render_traceback_(self):  # IPython shows this
        return [str(self)]


# Running scripts ----------------------------------------------------------------------------------------------------


@contextmanager
def start_script(script, *settings, **streams):
    """Start a script of the project and wait for it; if the block ends early, say by an interrupt, stop the script.

    It writes UTF-8, even on Windows, each line at once, and does not wrap tables.
    """
    more = {'PYTHONUTF8': '1', 'PYTHONIOENCODING': 'utf-8', 'PYTHONUNBUFFERED': '1', 'COLUMNS': '110'}
    command = [sys.executable, str(PROJECT / script), *map(str, settings)]
    process = subprocess.Popen(command, env={**os.environ, **more}, encoding='utf-8', errors='replace', **streams)
    try:
        yield process
    except BaseException:
        process.terminate()  # train.py finishes its step and saves
        raise
    finally:
        process.wait()


def run_script(script, *settings):
    """Run a script of the project as in a terminal and show its output; stop the notebook if it fails."""
    with tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace') as stderr:  # errors and progress bars
        with start_script(script, *settings, stdout=subprocess.PIPE, stderr=stderr) as process:
            for line in process.stdout:
                print(line, end='')
        stderr.seek(0)
        error = find_error(process, stderr.read())
    if error:
        raise StepFailed(error)


def find_error(process, output):
    """Return why a script failed, from the last line of its output; '' if it did not fail."""
    if process.returncode == 0:
        return ''
    if process.returncode == -9:
        return 'the system stopped the script, probably for lack of memory: choose a smaller model'
    return (output.replace('\r', '\n').strip().splitlines() or ['the script failed without a message'])[-1]


# The texts ----------------------------------------------------------------------------------------------------------


def choose_dataset(name, configuration=''):
    """Show the columns of a dataset and return it: a file, a name on the hub, an upload, or by default STORIES."""
    name = name.strip().strip('"') or upload_file() or STORIES
    path, is_file = resolve_path(name), text_kind(Path(name)) in KINDS
    if path.exists() and not is_file:
        raise StepFailed(f'{name} has an unknown format; save it as one of: {", ".join(KINDS)}')
    try:
        rows = read_rows(path) if is_file else open_hub_table(name, configuration)[0]
        first = list(islice(rows, 3))
    except (UserError, OSError) as error:
        raise StepFailed(f'{name}: {error}') from None
    table = Table('column', *(f'in row {number}' for number in range(1, len(first) + 1)), title=Text(name))
    for column in first[0] if first else ():  # as Text, because rich takes [] for markup
        table.add_row(Text(column), *(Text(shorten_value(row.get(column), 60)) for row in first))
    Console(width=100, force_jupyter=False).print(table)  # like the scripts' tables
    return str(path) if is_file else name


def upload_file():
    """Ask for a file on Colab and return its path; '' elsewhere, or if no file is chosen."""
    try:
        from google.colab import files
    except ImportError:
        return ''
    for name, data in files.upload().items():  # Colab renames a file if the name is taken, so it is written again
        path = Path('data') / 'uploaded' / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)
    return ''


def read_rows(path):
    """Return the rows of a file as dicts; a text file has one column, and one document in each row."""
    if text_kind(path) in TABLES:
        return TABLES[text_kind(path)](path, '')
    return ({'text': document} for document in read_files([path], '\n\n\n'))


def prepare_texts(dataset, column, model, max_documents, configuration=''):
    """Split the documents into training, validation and test parts, and convert them to tokens."""
    kind = text_kind(Path(dataset))
    source = [f'--input={dataset}'] if kind in KINDS else [f'--hf_dataset={dataset}', f'--hf_config={configuration}']
    if kind != '.txt':
        source.append(f'--text_column={column.strip()}')
    tokenizer = 'gpt2' if model in PUBLISHED else model
    sizes = ['--val_fraction=0.1', '--test_fraction=0.1', f'--max_documents={max_documents}']
    run_script('prepare_bin.py', *source, f'--dataset={NAME}', f'--tokenizer={tokenizer}', *sizes)
    count_tokens()


def count_tokens():
    """Return how many tokens each part of the texts has; stop the notebook if there are none, or too few."""
    meta = read_meta(NAME)
    if not meta:
        raise StepFailed('There are no texts yet: run forms 2 to 4 above.')
    tokens = {part: meta.get(part, {}).get('tokens', 0) for part in ('train', 'val', 'test')}
    if min(tokens.values()) < MIN_TOKENS:
        raise StepFailed(f'Too little text: each part needs {MIN_TOKENS} tokens. Choose more or longer documents.')
    return tokens


# Training -----------------------------------------------------------------------------------------------------------


def read_settings(model):
    """Return train.py's settings from a model's config file, with a context no longer than the texts."""
    settings = configurator.read(train.Settings, [str(PROJECT / CONFIGS.get(model, GPT2_CONFIG))])
    settings.block_size = min(settings.block_size, min(count_tokens().values()) - 1)
    return settings


def show_perplexity(model):
    """Show how well a model predicts the test part."""
    stride = max(1, read_settings(model).block_size // 2)  # as in `compare_models`, so that contexts are equally long
    run_script('eval.py', f'--init_from={model}', f'--text={NAME}/test', f'--stride={stride}', '--show=0')


def compare_models(model):
    """Show how well the model predicts the test part before and after fine-tuning."""
    run_script('eval.py', f'--out_dir={OUT}', f'--compare_to={model}', f'--text={NAME}/test', '--show=0')


def show_learning_rates(model, learning_rate, steps=20):
    """Train for some steps with a hundredth of the learning rate, with it, and with a hundred times it; draw losses."""
    curves, folder = {}, OUT / 'rates'
    short = [f'--max_iters={steps}', f'--eval_interval={steps}', '--eval_iters=1', '--decay_lr=False']
    rates = {'too small': learning_rate / 100, 'yours': learning_rate, 'too large': learning_rate * 100}
    for name, rate in rates.items():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            error = run_training(model, rate, folder, *short)
            if error and 'not finite' not in error:  # a rate that is too large may make the loss infinite
                raise StepFailed(error)
            curves[f'{rate:g} ({name})'] = read_curves(folder)['of each step']
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    draw_losses(OUT / 'rates.png', curves)
    display(Image(OUT / 'rates.png'))


def fine_tune(model, learning_rate, epochs):
    """Fine-tune a model, drawing its losses as they come; keep the weights that are best on the validation part.

    Stopping the cell ends the training after the current step.
    """
    settings = read_settings(model)
    tokens_per_step = settings.batch_size * settings.gradient_accumulation_steps * settings.block_size
    steps = math.ceil(epochs * count_tokens()['train'] / tokens_per_step)  # approximately
    (OUT / 'ckpt.pt').unlink(missing_ok=True)  # an earlier model must not be mistaken for this one
    picture = None

    def show_curves(curves):
        nonlocal picture
        draw_losses(OUT / 'curve.png', curves)
        if picture is None:
            picture = display(Image(OUT / 'curve.png'), display_id=True)
        else:
            picture.update(Image(OUT / 'curve.png'))

    evaluation = [f'--eval_interval={max(1, steps // 10)}', '--eval_iters=20']
    try:
        if error := run_training(model, learning_rate, OUT, f'--epochs={epochs}', *evaluation, on_change=show_curves):
            raise StepFailed(error)
    except KeyboardInterrupt:
        print('Stopped.')
    if not (OUT / 'ckpt.pt').exists():
        raise StepFailed(
            'The model never got better on the validation part, so nothing is kept: train longer, or with a smaller '
            'learning rate.'
        )
    print(f'The model that was best on the validation part is in {OUT}.')


def run_training(model, learning_rate, out_dir, *settings, on_change=lambda curves: None):
    """Run train.py, calling on_change(curves) whenever the curves change; return its error message, or ''."""
    config = [CONFIGS.get(model, GPT2_CONFIG), f'--init_from={model}', f'--dataset={NAME}', f'--out_dir={out_dir}']
    config.append('--overwrite=True')
    rates = [f'--learning_rate={learning_rate}', f'--min_lr={learning_rate / 10}', '--warmup_iters=0']
    block_size = f'--block_size={read_settings(model).block_size}'
    out_dir.mkdir(parents=True, exist_ok=True)
    log, last = out_dir / 'train.log', None
    with open(log, 'w', encoding='utf-8') as file:
        streams = {'stdout': file, 'stderr': subprocess.STDOUT}
        with start_script('train.py', *config, *rates, block_size, *settings, **streams) as process:
            while process.poll() is None:
                time.sleep(0.5)
                if (curves := read_curves(out_dir)) != last:
                    on_change(curves)
                    last = curves
    on_change(read_curves(out_dir))
    return find_error(process, log.read_text(encoding='utf-8', errors='replace'))


# The result ---------------------------------------------------------------------------------------------------------


def write_texts(model, start, temperature, length):
    """Let the model continue a text before and after fine-tuning; show a page of what it could have written instead."""
    settings = [f'--start={start}', f'--temperature={temperature}', f'--max_new_tokens={length}']
    print(f'{model}, before:')
    run_script('sample.py', f'--init_from={model}', *settings)
    print('\nafter:')
    folder = OUT / 'page'
    shutil.rmtree(folder, ignore_errors=True)
    run_script('sample.py', f'--out_dir={OUT}', *settings, '--show_probs=True', '--html=True', f'--plot_dir={folder}')
    for page in folder.glob('*/page.html'):
        document = html.escape(page.read_text(encoding='utf-8'))
        frame = f'<iframe srcdoc="{document}" width="100%" height="700" style="border: 0"></iframe>'
        display({'text/html': frame}, raw=True)


def save_model(about='', push_to='', private=True):
    """Write the model to a folder for other programs; publish it if there is a name; on Colab, download it too.

    about: what the model card says about the texts that the model learned from.
    """
    push_to = push_to.strip()
    if push_to and not os.environ.get('HF_TOKEN'):
        try:
            from google.colab import userdata  # the key symbol on the left of the page

            os.environ['HF_TOKEN'] = userdata.get('HF_TOKEN')
        except Exception:  # not on Colab, no such secret, or no access to it; export.py reports what is missing
            pass
    folder = OUT / 'my-gpt2'
    publish = [f'--push_to={push_to}', f'--private={private}'] if push_to else []
    run_script('export.py', f'--out_dir={OUT}', f'--folder={folder}', '--overwrite=True', f'--about={about}', *publish)
    try:
        from google.colab import files
    except ImportError:
        return
    files.download(shutil.make_archive(str(folder), 'zip', folder))


def show_machine():
    """Print where the training will run."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU: choose tiny, or be patient'
    print(f'{PROJECT} with Python {sys.version.split()[0]}, torch {torch.__version__}, {name}')
