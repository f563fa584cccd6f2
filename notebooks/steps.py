"""What the forms of fine_tune_your_own.ipynb do: they call the project's scripts, and show what those say and draw.

Everything is written into the project's folder, in which the notebook is by then: data/notebook gets the tokens, and
out-notebook the model and the pictures.
"""

import html
import json
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
from pictures.losses import draw_losses
from texts.hub_datasets import open_hub_table
from texts.readers import KINDS, read_files
from texts.tables import TABLES, shorten_value
from texts.token_files import read_meta

NAME = 'notebook'  # of the dataset
OUT = Path('out-notebook')
STORIES = 'data/childrens_stories/childrens_stories.txt'  # what is learned from if nothing else is named
CONFIGS = {'tiny': 'config/finetune_own_text.py'}  # settings that suit a model; the others are GPT-2's sizes
GPT2_CONFIG = 'config/finetune_stories.py'
FEWEST = 50  # tokens that each part of the texts must have


class Stopped(Exception):
    """A step that could not be done; the notebook shows what a script said of it, and no traceback."""

    def _render_traceback_(self):  # what IPython shows of it
        return [str(self)]


# Running scripts ----------------------------------------------------------------------------------------------------


@contextmanager
def running(script, *settings, **streams):
    """Start a script of the project, and wait for it; what ends the block early, an interrupt above all, ends it too.

    It writes UTF-8 on Windows as well, each line as soon as it is there, and tables that are not folded.
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


def run(script, *settings):
    """Run a script of the project as from a terminal, showing what it prints; stop the notebook if it fails."""
    with tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace') as stderr:  # errors, and how far it has come
        with running(script, *settings, stdout=subprocess.PIPE, stderr=stderr) as process:
            for line in process.stdout:
                print(line, end='')
        stderr.seek(0)
        complaint = complaint_of(process, stderr.read())
    if complaint:
        raise Stopped(complaint)


def complaint_of(process, written):
    """Return why a script failed, from the last line of what it has written; '' if it did not."""
    if process.returncode == 0:
        return ''
    if process.returncode == -9:
        return 'the system has ended it, most likely because memory was short: choose a smaller model'
    return (written.replace('\r', '\n').strip().splitlines() or ['it failed, and said nothing'])[-1]


# The texts ----------------------------------------------------------------------------------------------------------


def choose_dataset(name, configuration=''):
    """Return what is learned from, showing what its columns hold: a file, a name on the hub, an upload, or STORIES."""
    name = name.strip().strip('"') or uploaded() or STORIES
    path, is_file = resolve_path(name), Path(name).suffix.lower() in KINDS
    if path.exists() and not is_file:
        raise Stopped(f'{name} is of a kind that is not read; save it as one of: {", ".join(KINDS)}')
    try:
        rows = rows_of(path) if is_file else open_hub_table(name, configuration)[0]
        first = list(islice(rows, 3))
    except (UserError, OSError) as error:
        raise Stopped(f'{name}: {error}') from None
    table = Table('column', *(f'in row {number}' for number in range(1, len(first) + 1)), title=Text(name))
    for column in first[0] if first else ():  # Text, or what stands in [] would be taken for a style
        table.add_row(Text(column), *(Text(shorten_value(row.get(column), 60)) for row in first))
    Console(width=100, force_jupyter=False).print(table)  # as scripts print theirs
    return str(path) if is_file else name


def uploaded():
    """Ask for a file on Colab, and return where it lies; '' elsewhere, or if none is chosen."""
    try:
        from google.colab import files
    except ImportError:
        return ''
    for name, data in files.upload().items():  # which has it under another name, too, if there was one of this name
        path = Path('data') / 'uploaded' / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)
    return ''


def rows_of(path):
    """Return the rows of a file as dicts; a text file has one column, and a document in each row."""
    if path.suffix.lower() in TABLES:
        return TABLES[path.suffix.lower()](path, '')
    return ({'text': document} for document in read_files([path], '\n\n\n'))


def prepare(dataset, column, model, most, configuration=''):
    """Share out the documents to training, validation and test, and make tokens of them."""
    kind = Path(dataset).suffix.lower()
    source = [f'--input={dataset}'] if kind in KINDS else [f'--hf_dataset={dataset}', f'--hf_config={configuration}']
    if kind != '.txt':
        source.append(f'--text_column={column.strip()}')
    tokenizer = 'tiny' if model == 'tiny' else 'gpt2'
    shares = ['--val_fraction=0.1', '--test_fraction=0.1']
    run('prepare_bin.py', *source, f'--dataset={NAME}', f'--tokenizer={tokenizer}', f'--max_documents={most}', *shares)
    sizes()


def sizes():
    """Return how many tokens each part of the texts has; stop if there are none, or too few."""
    meta = read_meta(NAME)
    if not meta:
        raise Stopped('There are no texts yet: run the forms above, from 2 to 4.')
    tokens = {part: meta.get(part, {}).get('tokens', 0) for part in ('train', 'val', 'test')}
    if min(tokens.values()) < FEWEST:
        raise Stopped(
            f'That is too little text: each part needs {FEWEST} tokens. Choose more documents, or longer ones.'
        )
    return tokens


# Training -----------------------------------------------------------------------------------------------------------


def settings_for(model):
    """Return train.py's settings for a model as its config file has them, its context no longer than the texts are."""
    settings = configurator.read(train.Settings, [str(PROJECT / CONFIGS.get(model, GPT2_CONFIG))])
    settings.block_size = min(settings.block_size, min(sizes().values()) - 1)
    return settings


def perplexity(model):
    """Show how well a model predicts the test part."""
    stride = max(1, settings_for(model).block_size // 2)  # as in `compare`, or tokens would see another length of text
    run('eval.py', f'--init_from={model}', f'--text={NAME}/test', f'--stride={stride}', '--show=0')


def compare(model):
    """Show how well the test part is predicted before and after."""
    run('eval.py', f'--out_dir={OUT}', f'--compare_to={model}', f'--text={NAME}/test', '--show=0')


def show_learning_rates(model, learning_rate, steps=20):
    """Train for some steps with a hundredth of the learning rate, with it, and with a hundred times it; draw it all."""
    curves, folder = {}, OUT / 'rates'
    short = [f'--max_iters={steps}', f'--eval_interval={steps}', '--eval_iters=1', '--decay_lr=False']
    for rate, what in (
        (learning_rate / 100, 'too small'),
        (learning_rate, 'yours'),
        (learning_rate * 100, 'too large'),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            complaint = train_py(model, rate, folder, *short)
            if complaint and 'not finite' not in complaint:  # which is what too large a rate may come to
                raise Stopped(complaint)
            curves[f'{rate:g} ({what})'] = read_curve(folder)['of each step']
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    draw_losses(OUT / 'rates.png', curves)
    display(Image(OUT / 'rates.png'))


def fine_tune(model, learning_rate, epochs):
    """Fine-tune a model, drawing its losses as they come; the weights that are best on the validation part are kept.

    Stopping the cell ends the training after its step.
    """
    settings = settings_for(model)
    tokens_per_step = settings.batch_size * settings.gradient_accumulation_steps * settings.block_size
    steps = math.ceil(epochs * sizes()['train'] / tokens_per_step)  # nearly so many
    (OUT / 'ckpt.pt').unlink(missing_ok=True)  # or an earlier model might be taken for this one
    picture = None

    def look(curves):
        nonlocal picture
        draw_losses(OUT / 'curve.png', curves)
        if picture is None:
            picture = display(Image(OUT / 'curve.png'), display_id=True)
        else:
            picture.update(Image(OUT / 'curve.png'))

    often = [f'--epochs={epochs}', f'--eval_interval={max(1, steps // 10)}', '--eval_iters=20']
    try:
        if complaint := train_py(model, learning_rate, OUT, *often, look=look):
            raise Stopped(complaint)
    except KeyboardInterrupt:
        print('Stopped.')
    if not (OUT / 'ckpt.pt').exists():
        raise Stopped(
            'At no moment was it better on the validation part than before, so nothing is kept: train longer, or with '
            'a smaller learning rate.'
        )
    print(f'What was best on the validation part is kept in {OUT}.')


def train_py(model, learning_rate, out_dir, *settings, look=lambda curves: None):
    """Run train.py, calling look(curves) whenever there is more to be seen; return what it complained of, or ''."""
    config = [CONFIGS.get(model, GPT2_CONFIG), f'--init_from={model}', f'--dataset={NAME}', f'--out_dir={out_dir}']
    config.append('--overwrite=True')
    rates = [f'--learning_rate={learning_rate}', f'--min_lr={learning_rate / 10}', '--warmup_iters=0']
    block_size = f'--block_size={settings_for(model).block_size}'
    out_dir.mkdir(parents=True, exist_ok=True)
    log, seen = out_dir / 'train.log', None
    with open(log, 'w', encoding='utf-8') as file:
        streams = {'stdout': file, 'stderr': subprocess.STDOUT}
        with running('train.py', *config, *rates, block_size, *settings, **streams) as process:
            while process.poll() is None:
                time.sleep(0.5)
                if (curves := read_curve(out_dir)) != seen:
                    look(curves)
                    seen = curves
    look(read_curve(out_dir))
    return complaint_of(process, log.read_text(encoding='utf-8', errors='replace'))


def read_curve(out_dir):
    """Return the losses of a training run so far: name -> [(iteration, loss)]."""
    path = out_dir / 'metrics.jsonl'
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith('}')]  # the last may be half written
    names = {'of each step': 'loss', 'training part': 'train_loss', 'validation part': 'val_loss'}
    return {name: [(row['iter'], row[key]) for row in rows if key in row] for name, key in names.items()}


# What came of it ----------------------------------------------------------------------------------------------------


def write(model, start, temperature, length):
    """Let the model before and the one after go on from a beginning; show the page of what the latter nearly said."""
    settings = [f'--start={start}', f'--temperature={temperature}', f'--max_new_tokens={length}']
    print(f'{model}, before:')
    run('sample.py', f'--init_from={model}', *settings)
    print('\nafter:')
    folder = OUT / 'page'
    shutil.rmtree(folder, ignore_errors=True)
    run('sample.py', f'--out_dir={OUT}', *settings, '--show_probs=True', '--html=True', f'--plot_dir={folder}')
    for page in folder.glob('*/page.html'):
        document = html.escape(page.read_text(encoding='utf-8'))
        frame = f'<iframe srcdoc="{document}" width="100%" height="700" style="border: 0"></iframe>'
        display({'text/html': frame}, raw=True)


def save(about='', push_to='', private=True):
    """Write the model as a folder for other programs, and publish it if a name is given; on Colab, download it too.

    about: what the model card is to say of the texts that it learned from.
    """
    push_to = push_to.strip()
    if push_to and not os.environ.get('HF_TOKEN'):
        try:
            from google.colab import userdata  # the key symbol at the left of the page

            os.environ['HF_TOKEN'] = userdata.get('HF_TOKEN')
        except Exception:  # no Colab, no such secret, or the notebook may not see it; export.py says what is missing
            pass
    folder = OUT / 'my-gpt2'
    publish = [f'--push_to={push_to}', f'--private={private}'] if push_to else []
    run('export.py', f'--out_dir={OUT}', f'--folder={folder}', '--overwrite=True', f'--about={about}', *publish)
    try:
        from google.colab import files
    except ImportError:
        return
    files.download(shutil.make_archive(str(folder), 'zip', folder))


def machine():
    """Say where the training will run."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU: choose tiny, or much patience'
    print(f'{PROJECT} with Python {sys.version.split()[0]}, torch {torch.__version__}, {name}')
