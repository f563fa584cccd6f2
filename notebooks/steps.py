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
from itertools import islice
from pathlib import Path

import torch
from IPython.display import Image, display
from rich.console import Console
from rich.table import Table

import configurator
import plots
import train
from batches import read_meta
from common import PROJECT, UserError, find
from documents import KINDS, TABLES, from_files, hub_table, shortened

NAME = 'notebook'  # of the dataset
OUT = Path('out-notebook')
STORIES = 'data/childrens_stories/childrens_stories.txt'  # what is learned from if nothing else is named
CONFIGS = {'tiny': 'config/finetune_own_text.py'}  # settings that suit a model; the others are GPT-2's sizes
GPT2_CONFIG = 'config/finetune_stories.py'


class Stopped(Exception):
    """A step that could not be done; the notebook shows what a script said of it, and no traceback."""

    def _render_traceback_(self):  # what IPython shows of it
        return [str(self)]


def run(script, *settings):
    """Run a script of the project as from a terminal, showing what it prints; stop the notebook if it fails."""
    command = [sys.executable, str(PROJECT / script), *settings]
    wide = {**os.environ, 'COLUMNS': '110'}  # so that tables are not folded
    with tempfile.TemporaryFile('w+', encoding='utf-8') as stderr:  # but for errors it is how far a script has come
        out = {'stdout': subprocess.PIPE, 'stderr': stderr, 'encoding': 'utf-8'}
        with subprocess.Popen(command, env=wide, **out) as process:
            for line in process.stdout:
                print(line, end='')
        stderr.seek(0)
        complaint = stderr.read()
    if process.returncode:
        raise Stopped(last_line(complaint))


def last_line(text):
    """Return the last line that a script has written, where its error stands."""
    return (text.replace('\r', '\n').strip().splitlines() or ['it said nothing'])[-1]


# The data -----------------------------------------------------------------------------------------------------------


def choose_dataset(name, configuration=''):
    """Return what is learned from, showing what its columns hold: a file, a name on the hub, an upload, or STORIES."""
    name = name.strip() or uploaded() or STORIES
    path = find(name)
    try:
        if path.suffix.lower() in KINDS:
            rows = rows_of(path)
        else:
            rows, _ = hub_table(name, configuration)
        first = list(islice(rows, 3))
    except (UserError, OSError) as error:
        raise Stopped(f'{name}: {error}') from None
    table = Table('column', *(f'in row {number}' for number in range(1, len(first) + 1)), title=name)
    for column in first[0] if first else ():
        table.add_row(column, *(shortened(row.get(column), 60) for row in first))
    Console(width=100, force_jupyter=False).print(table)  # text, as what scripts print
    return str(path) if path.suffix.lower() in KINDS else name


def uploaded():
    """Ask for a file on Colab, and return its name; '' elsewhere, or if none is chosen."""
    try:
        from google.colab import files
    except ImportError:
        return ''
    return next(iter(files.upload()), '')


def rows_of(path):
    """Return the rows of a file as dicts; a text file has one column, and a document in each row."""
    if path.suffix.lower() in TABLES:
        return TABLES[path.suffix.lower()](path, '')
    return ({'text': document} for document in from_files([path], '\n\n\n'))


def prepare(dataset, column, model, most, configuration=''):
    """Share out the documents to training, validation and test, and make tokens of them."""
    is_file = Path(dataset).suffix.lower() in KINDS
    settings = [f'--input={dataset}'] if is_file else [f'--hf_dataset={dataset}', f'--hf_config={configuration}']
    if Path(dataset).suffix.lower() != '.txt':
        settings.append(f'--text_column={column}')
    tokenizer = 'tiny' if model == 'tiny' else 'gpt2'
    shares = ['--val_fraction=0.1', '--test_fraction=0.1']
    run(
        'prepare_bin.py', *settings, f'--dataset={NAME}', f'--tokenizer={tokenizer}', f'--max_documents={most}', *shares
    )


# Training -----------------------------------------------------------------------------------------------------------


def perplexity(model):
    """Show how well a model predicts the test part."""
    stride = settings_for(model).block_size // 2  # as in `compare`, or tokens would see another length of text here
    run('eval.py', f'--init_from={model}', f'--text={NAME}/test', f'--stride={stride}', '--show=0')


def compare(model):
    """Show how well the test part is predicted before and after."""
    run('eval.py', f'--out_dir={OUT}', f'--compare_to={model}', f'--text={NAME}/test', '--show=0')


def show_learning_rates(model, learning_rate, steps=20):
    """Train for some steps with a hundredth of the learning rate, with it, and with a hundred times it; draw it all."""
    curves, folder = {}, OUT / 'rates'
    for rate, what in (
        (learning_rate / 100, 'too small'),
        (learning_rate, 'yours'),
        (learning_rate * 100, 'too large'),
    ):
        settings = [f'--max_iters={steps}', f'--eval_interval={steps}', '--eval_iters=1', '--decay_lr=False']
        train_py(model, rate, folder, *settings)
        curves[f'{rate:.0e} ({what})'] = read_curve(folder).get('of each step', [])
    shutil.rmtree(folder)
    plots.draw_losses(OUT / 'rates.png', curves)
    display(Image(OUT / 'rates.png'))


def fine_tune(model, learning_rate, epochs):
    """Fine-tune a model, drawing its losses as they come; the weights that are best on the validation part are kept."""
    settings = settings_for(model)
    tokens_per_step = settings.batch_size * settings.gradient_accumulation_steps * settings.block_size
    steps = max(1, math.ceil(epochs * read_meta(NAME)['train']['tokens'] / tokens_per_step))
    often = [f'--epochs={epochs}', f'--eval_interval={max(1, steps // 10)}', '--eval_iters=20']
    picture = None

    def look(curves):
        nonlocal picture
        plots.draw_losses(OUT / 'loss.png', curves)
        if picture is None:
            picture = display(Image(OUT / 'loss.png'), display_id=True)
        else:
            picture.update(Image(OUT / 'loss.png'))

    complaint = train_py(model, learning_rate, OUT, *often, look=look)
    if complaint:
        raise Stopped(complaint)
    print(f'The best weights are in {OUT}.')


def settings_for(model):
    """Return train.py's settings for a model, as its config file has them."""
    return configurator.read(train.Settings, [str(PROJECT / CONFIGS.get(model, GPT2_CONFIG))])


def train_py(model, learning_rate, out_dir, *settings, look=None):
    """Run train.py, calling look(curves) whenever there is more to be seen; return what it complained of, or ''.

    Stopping the cell stops it after its step, with all that it has learned.
    """
    config = CONFIGS.get(model, GPT2_CONFIG)
    command = [config, f'--init_from={model}', f'--dataset={NAME}', f'--out_dir={out_dir}', '--overwrite=True']
    command += [f'--learning_rate={learning_rate}', f'--min_lr={learning_rate / 10}', '--warmup_iters=0', *settings]
    out_dir.mkdir(parents=True, exist_ok=True)
    log = out_dir / 'train.log'
    with open(log, 'w', encoding='utf-8') as file:
        command = [sys.executable, str(PROJECT / 'train.py'), *command]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        seen = None
        try:
            while process.poll() is None:
                time.sleep(0.5)
                curves = read_curve(out_dir)
                if look is not None and curves != seen:
                    look(curves)
                    seen = curves
        except KeyboardInterrupt:
            process.wait()  # it has been told, too
    if look is not None:
        look(read_curve(out_dir))
    return last_line(log.read_text(encoding='utf-8')) if process.returncode else ''


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
    looks = ['--show_probs=True', '--html=True', f'--plot_dir={folder}']
    run('sample.py', f'--out_dir={OUT}', *settings, *looks)
    for page in folder.glob('*/page.html'):
        document = html.escape(page.read_text(encoding='utf-8'))
        frame = f'<iframe srcdoc="{document}" width="100%" height="700" style="border: 0"></iframe>'
        display({'text/html': frame}, raw=True)


def save(about='', push_to='', private=True):
    """Write the model as a folder for other programs, and publish it if a name is given; on Colab, download it too.

    about: what the model card is to say of the texts that it learned from.
    """
    if push_to and not os.environ.get('HF_TOKEN'):
        try:
            from google.colab import userdata  # the key symbol at the left of the page

            os.environ['HF_TOKEN'] = userdata.get('HF_TOKEN')
        except Exception:  # no Colab, no such secret, or the notebook may not see it; export.py says what is missing
            pass
    publish = [f'--push_to={push_to}', f'--private={private}'] if push_to else []
    run('export.py', f'--out_dir={OUT}', f'--folder={OUT / "model"}', '--overwrite=True', f'--about={about}', *publish)
    try:
        from google.colab import files
    except ImportError:
        return
    files.download(shutil.make_archive(str(OUT / 'model'), 'zip', OUT / 'model'))


def machine():
    """Say where the training will run."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU: choose tiny, or much patience'
    print(f'{PROJECT} with Python {sys.version.split()[0]}, torch {torch.__version__}, {name}')
