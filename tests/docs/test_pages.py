"""The commands on the project's pages work offline, as typed, and print what the page shows; links lead somewhere.

Every command of a page is run, or is listed in SET_UP or NOT_RUN with the reason. Each runs in a copy of the project:
the README's first command of each script in a new interpreter, others forked from one that has imported everything.
Commands that use what others made (prepare_bin, then train, then sample) run after those, in one copy and one test.
By default the README's commands are run; those of other pages are slow.
"""

import json
import os
import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.chat_templates import save_chat_model
from helpers.command_lines import run_line, run_server
from helpers.markdown import (
    Command,
    anchors,
    assert_same_output,
    commands,
    links,
    options,
    python_blocks,
    python_sessions,
)
from helpers.models import needs_gpt2_vocabulary, random_gpt
from helpers.networks import random_network
from helpers.piece_tokenizers import save_llama_tokenizer
from helpers.scripts import PROJECT, files_of_project

import eval as eval_script
import export
import prepare_bin
import sample
import serve
import train
import visualize
from lab import bench, corpora, experiment, report, serve_load, situational_awareness
from lessons import check_generate
from lm import matrices
from lm.checkpoint import save_pretrained
from lm.tokenizer import GPT2Tokenizer

DOCS = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob('docs/*.md'))
PAGES = ['README.md', 'CONTRIBUTING.md', *DOCS, 'results/REPORT.md']

# Setting up an environment needs a network: .ci/run does it with the README's own lines.
SET_UP = {
    r'python3 -m venv \.venv': 'a virtual environment',
    r'source \.venv/bin/activate': 'activates it',
    r'pip install (-r \S+|[\w-]+(==[\d.]+)?)( -r \S+)*( --extra-index-url \S+)?': 'packages',
    r'git clone https://\S+( \S+)?': 'the project',
    r'cd \S+': 'a folder',
    r'(sudo )?apt-get install [\w -]+': 'programs',
}
NOT_RUN = {
    r'python3? -m pytest\b.*': 'runs this',
    r'pytest\b.*': 'runs this',
    r'\.ci/run': 'runs this',
    r'ruff (check|format)\b.*': '.ci/run does, on the files as they are committed',
    r'git \w+.*': 'for work on the project',
    r'\.peers/bin/pip install .*': 'compiles llama.cpp for ten to fifteen minutes',
    r'python -m lab\.bench --job=precision': 'takes minutes on some CPUs; tests/lab/test_bench.py scores fewer pairs',
    r'python -m lab\.report .*': 'tests/lab/test_report.py prints it, packs it, and makes it about another model',
    r'python -m lab\.experiment .*': 'takes hours; tests/lab/test_experiment.py runs it on texts of a few pages',
    r'python -m lessons\..*': 'tests/lessons runs every lesson',
    r'jupyter lab .*': 'tests/notebooks/test_in_jupyter.py does, with a browser',
    r'python -m lab\.serve_load .*': 'takes over a minute; tests/lab/test_serve_load.py runs it shortly',
    r'curl http://.*': 'asks such a server; tests/server does',
    r'python export\.py .*--push_to=.*': 'needs the hub; tests/test_export.py pushes to a server that answers like it',
    r'python -m evaluation\.lm_eval_adapter .*': "needs the tasks' texts from the hub; its test asks it without them",
    r'python -m lab\.corpora --check=.*': 'needs the texts; tests/lab/test_corpora.py makes some',
    r'python -m lab\.corpora --build=.*': 'needs the hub; tests/lab/test_corpora.py asks a server that answers like it',
    r'python -m lab\.situational_awareness .*': 'needs a dataset that must not be copied; its test imitates it',
}

# What is added to a command without an expected output, to make it short.
TRAIN = '--max_iters=2 --eval_interval=1 --eval_iters=1 --batch_size=1 --gradient_accumulation_steps=2'
SHORT = {
    'train.py': f'{TRAIN} --epochs=None --warmup_iters=1',
    'eval.py': '--resamples=20',
    'sample.py': '--plot_steps=2',
    'lab.bench': '--job=decode --rounds=1 --only=float32',
    'serve.py': '--open=False',
}
SMALL = '--n_layer=2 --n_head=2 --n_embd=16 --block_size=64'  # for a model from scratch

# Names on the hub for which the cache holds a small model with GPT-2's vocabulary.
LLAMA, CHAT = 'HuggingFaceTB/SmolLM2-135M', 'HuggingFaceTB/SmolLM2-135M-Instruct'
SIZES = ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')
GPT2 = [*SIZES, *(f'openai-community/{size}' for size in SIZES), 'distilgpt2', 'distilbert/distilgpt2']

# The reader's own files.
NAMES = [first + rest for first in 'BDLNT' for rest in ('an', 'en', 'im', 'ob')]
STORIES = [
    f'{name} and the Bear\n\nOnce upon a time {name} met a bear of {years} years in the old garden.\n\n'
    f'“Where have you been, {name}?” said the bear. “I have been to the river with {friend}, and we saw a boat!”'
    for years in range(2, 12)
    for name, friend in zip(NAMES, NAMES[::-1], strict=True)
]
PAIRS = [
    {'prompt': 'Once upon a time', 'response': 'there was a king', 'distractors': ['there was the of']},
    {'prompt': 'The fox said:', 'response': '“Come in!”'},
]


# The commands, and which of them belong together --------------------------------------------------------------------


class Chain(NamedTuple):
    """Commands of a page, each of which uses what those before it made."""

    page: str
    commands: list[Command]

    def __str__(self):
        return f'{self.page}: {" ; ".join(command.text for command in self.commands)}'


def read(page):
    """Return the text of a page of the project."""
    return (PROJECT / page).read_text(encoding='utf-8')


def why_not(command):
    """Return why a command is not run here; None if it is."""
    reasons = SET_UP | NOT_RUN
    return next((reasons[pattern] for pattern in reasons if re.fullmatch(pattern, command.text)), None)


def is_run(command):
    """Return whether a command is run here. Only Python is: other programs need a look first."""
    return re.match('(python3?|torchrun) ', command.text) and why_not(command) is None


def words_of(command):
    """Return the words of a command, as a shell splits it."""
    try:
        return shlex.split(command.text)
    except ValueError:  # an unclosed quote, which the shell will report
        return command.text.split()


def script_of(command):
    """Return the script that a command runs, `sample.py` or `lab.bench`; None if it runs none."""
    words = words_of(command)
    if '-m' in words[:-1]:
        return words[words.index('-m') + 1]
    return next((word for word in words if word.endswith('.py') and '=' not in word), None)


def settings_of(command):
    """Return the settings of a command as {name: text}, those of its config file included."""
    found = {}
    words = words_of(command)
    for word in words:
        if word.startswith('config/') and (PROJECT / word).exists():
            found |= dict(re.findall(r"^(\w+) = '?(.*?)'?$", read(word), re.MULTILINE))
    for word, after in zip(words, [*words[1:], '--']):
        if word.startswith('--'):
            key, equals, value = word[2:].partition('=')
            found[key] = value if equals or after.startswith('--') else after
    return found


def makes(command):
    """Return the folder that a command makes for later ones, None if it makes none."""
    settings, script = settings_of(command), script_of(command)
    if script == 'prepare_bin.py':
        return f'data/{settings.get("dataset")}'
    if script == 'train.py' and settings.get('eval_only') != 'True':
        return settings.get('out_dir', 'out')
    return f'results/{settings["save"]}' if script == 'eval.py' and 'save' in settings else None


def needs(command):
    """Return every value of a command that may be a folder made by another."""
    settings = settings_of(command)
    goes_on = 'resume' in settings.values() or 'resume_eval' in settings
    places = {settings.get('out_dir', 'out')} if 'resume' in settings.values() else set()
    for key, value in settings.items():
        places.add({'dataset': f'data/{value}', 'text': f'data/{value}', 'save': f'results/{value}'}.get(key, value))
    return places if goes_on else places - {makes(command)}


def chains_of(page):
    """Return the commands of a page that are run, each in a chain after the commands that made what it needs."""
    chains, made = [], {}  # made: folder -> the last chain that made it
    for command in commands(read(page)):
        if not is_run(command):
            continue
        before = []
        for place in sorted(needs(command) & made.keys()):
            if made[place] not in before:
                before.append(made[place])
        chain = [*(command for other in before for command in other), command]
        chains = [other for other in chains if other not in before] + [chain]
        made = {place: chain if other in before else other for place, other in made.items()}
        if makes(command):
            made[makes(command)] = chain
    return chains


def all_chains():
    """Return the Chains of all pages, longest first. A chain on several pages appears once for each output shown."""
    found = [Chain(page, chain) for page in PAGES for chain in chains_of(page)]
    found.sort(key=lambda chain: (-len(chain.commands), all(command.output is None for command in chain.commands)))
    unlike, typed = {}, set()
    for chain in found:
        texts = tuple(command.text for command in chain.commands)
        if texts not in typed or any(command.output is not None for command in chain.commands):
            unlike.setdefault(tuple(chain.commands), chain)
        typed.add(texts)
    return list(unlike.values())


def kind_of(command):
    """Return what a command has in common with others that show the same: its script and the names of its settings."""
    names = frozenset(settings_of(command)) - {'plot_steps', 'max_new_tokens'}
    return None if 'help' in names else script_of(command), names


def fast_commands():
    """Return the texts of the commands that run by default: the first of each kind in the README.

    Training, which takes longest, is also in tests/training, and the server and the pictures in their own folders.
    """
    first = {}
    for command in commands(read('README.md')):
        if is_run(command) and script_of(command) not in ('train.py', 'serve.py', 'visualize.py'):
            first.setdefault(kind_of(command), command.text)
    return set(first.values())


def as_parameters(chains):
    """Return chains as parameters of a test, marked slow unless they are the README's and all run by default."""
    fast_ones = fast_commands()

    def is_fast(chain):
        return chain.page == 'README.md' and fast_ones.issuperset(command.text for command in chain.commands)

    return [pytest.param(chain, id=str(chain), marks=[] if is_fast(chain) else [pytest.mark.slow]) for chain in chains]


# Running them -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def hub_cache(tmp_path_factory):
    """A cache of the Hugging Face hub that holds a small GPT-2 and a small Llama with random weights."""
    cache = tmp_path_factory.mktemp('hub')
    save_pretrained(random_gpt(vocab_size=50257, block_size=1024), cache / 'gpt2', GPT2Tokenizer())
    n_ids = save_llama_tokenizer(cache / 'llama')
    random_network('llama', vocab_size=n_ids, max_position_embeddings=256).save_pretrained(cache / 'llama')
    save_chat_model(cache / 'chat', 'chatml')
    for name in [*GPT2, LLAMA, CHAT]:
        folder = cache / f'models--{name.replace("/", "--")}'
        (folder / 'refs').mkdir(parents=True)
        (folder / 'refs' / 'main').write_text('a' * 40)
        (folder / 'snapshots').mkdir()
        model = {LLAMA: 'llama', CHAT: 'chat'}.get(name, 'gpt2')
        (folder / 'snapshots' / ('a' * 40)).symlink_to(cache / model, target_is_directory=True)
    return cache


def needs_hub(command):
    """Return whether a command needs GPT-2's vocabulary, or a model that is on the hub."""
    settings, script = settings_of(command), script_of(command)
    if script == 'prepare_bin.py':
        return not settings.keys() & {'tokenizer', 'train_bpe', 'help'}
    return script == 'lab.bench' or any(value in (*GPT2, LLAMA, CHAT) for value in settings.values())


def bring_files(command, folder):
    """Write the reader's own files: those without a folder that a command reads and that do not exist yet."""
    for key, value in settings_of(command).items():
        names = (
            re.split(',|FILE:', value)
            if key in ('input', 'pairs', 'text', 'items', 'eval_data', 'eval_file', 'start')
            else []
        )
        for path in [folder / name for name in names if re.fullmatch(r'[\w-]+\.(txt|csv|jsonl?)', name)]:
            stories = STORIES if key == 'input' else STORIES[:20]  # to train on, or to score
            contents = {
                '.txt': '\n\n\n'.join(stories),
                '.csv': 'text\nThe dog ran home.\nThe cat sat down.\n',
                '.json': json.dumps(PAIRS),
                '.jsonl': '\n'.join(map(json.dumps, PAIRS)),
            }
            if not path.exists():
                path.write_text(contents[path.suffix], encoding='utf-8')


def shortened(command, cache):
    """Return the command with settings that make it short, unless the page shows its output."""
    script, settings = script_of(command), settings_of(command)
    if command.output is not None or 'help' in settings:
        return command.text
    more = [SHORT.get(script, '')]
    if script == 'train.py':
        begun = settings_of(Command(command.text.replace('--init_from=resume', '')))
        more += [SMALL] * (begun.get('init_from', 'scratch') == 'scratch')
        more += ['--max_iters=3'] * (settings.get('init_from') == 'resume')
    if script == 'prepare_bin.py' and 'train_bpe' in settings:
        more.append('--train_bpe=400')  # STORIES yield no more
    if script == 'lab.bench':
        more.append(f'--init_from={cache / settings.get("init_from", "gpt2")}')  # the small models of those names
    return ' '.join([command.text, *more]).strip()


@cache
def first_commands():
    """Return the texts of the README's first commands of each script."""
    first = {}
    for command in commands(read('README.md')):
        first.setdefault(script_of(command), command.text)
    return set(first.values())


def check(truth, text, process):
    """Fail with everything that a command printed, unless `truth` holds."""
    if not truth:
        pytest.fail(f'$ {text}\n{process.stdout}\n{process.stderr}\nexit code {process.returncode}', pytrace=False)


def run_command(command, folder, cache):
    """Run a command of a page, and check that it succeeds and prints what the page shows."""
    bring_files(command, folder)
    text = shortened(command, cache)
    if script_of(command) == 'serve.py' and 'help' not in settings_of(command):
        process = run_server(text, folder, cache, settings_of(command).get('port', 8000))
    else:
        process = run_line(text, folder, cache, fresh=command.text in first_commands())
    if 'hf_dataset' in settings_of(command):  # without a network: use a file, for what comes next
        check(process.returncode == 2 and re.fullmatch('error: .*--hf_dataset.*\n', process.stderr), text, process)
        run_command(Command(re.sub(r'--hf_dataset=\S+', '--input=instead.txt', command.text)), folder, cache)
        return
    is_mistake = command.output is not None and 'error: ' in command.output
    check(process.returncode == (2 if is_mistake else 0), text, process)
    check('Traceback' not in process.stderr and 'Warning' not in process.stderr, text, process)
    if command.output is not None:
        assert_same_output(command.output, process.stdout + (process.stderr if is_mistake else ''))


def cache_for(request, is_needed):
    """Return the hub's cache for a test: with models if they are needed (a second to make), otherwise empty."""
    if not is_needed:
        return request.getfixturevalue('tmp_path') / 'hub'
    if needs_gpt2_vocabulary.args[0]:
        pytest.skip(needs_gpt2_vocabulary.kwargs['reason'])
    return request.getfixturevalue('hub_cache')


@pytest.mark.parametrize('chain', as_parameters(all_chains()))
def test_commands_do_what_the_page_says(chain, project, request):
    if 'int8' in str(chain) and not matrices.can_quantize(torch.ones(1)):
        pytest.skip('int8 needs an x86 CPU')
    cache = cache_for(request, any(map(needs_hub, chain.commands)))
    for command in chain.commands:
        run_command(command, project, cache)


SCRIPTS = [
    pytest.param(page, script, id=page, marks=[] if page == 'README.md' else pytest.mark.slow)
    for page in PAGES
    for script in python_blocks(read(page))
]


@pytest.mark.parametrize(('page', 'script'), SCRIPTS)
def test_python_on_the_page_runs(page, script, project, request):
    (project / 'from_the_page.py').write_text(script, encoding='utf-8')
    cache = cache_for(request, any(f"'{name}'" in script for name in GPT2))
    process = run_line('python from_the_page.py', project, cache, fresh=True)
    check(process.returncode == 0 and 'Warning' not in process.stderr, f'python\n{script}', process)
    if (shown := dict(python_sessions(read(page))).get(script)) is not None:
        assert_same_output(shown, process.stdout)


@pytest.mark.parametrize('page', PAGES)
def test_every_command_is_run_or_there_is_a_reason(page):
    run = {command for chain in chains_of(page) for command in chain}
    unknown = [command.text for command in commands(read(page)) if not why_not(command) and command not in run]
    assert not unknown, f'{page}: neither run nor in NOT_RUN'


@pytest.mark.parametrize('page', PAGES)
def test_what_is_installed_is_what_is_tested(page):
    files = {path.name: path.read_text(encoding='utf-8') for path in PROJECT.glob('requirements*.txt')}
    pinned = {re.sub(r'\[.*\]| *#.*', '', line) for text in files.values() for line in text.splitlines()}
    installed = [command.text for command in commands(read(page)) if command.text.startswith('pip install ')]
    named = [word for text in installed for word in re.findall(r'-r (\S+)|(\S+==\S+)', text)]
    wrong = [file or pin for file, pin in named if file not in {*files, ''} or pin not in {*pinned, ''}]
    assert not wrong, f'{page}: no file of requirements, or not a version in them'


@pytest.mark.parametrize('page', PAGES)
def test_every_evaluation_is_kept_in_a_folder_of_its_own(page):
    """A second evaluation in the same folder would be refused."""
    kept = {
        command.text: makes(command)
        for command in commands(read(page))
        if script_of(command) == 'eval.py' and makes(command) and 'resume_eval' not in settings_of(command)
    }
    folders = list(kept.values())
    twice = [text for text, folder in kept.items() if folders.count(folder) > 1]
    assert not twice, f'{page}: two evaluations in one folder'


@pytest.mark.parametrize('page', PAGES)
def test_every_setting_that_the_page_names_exists(page):
    programs = (sample, eval_script, train, prepare_bin, bench, export, situational_awareness, corpora)
    programs += (experiment, report, serve, serve_load, check_generate)
    scripts = [program.Settings for program in programs]
    scripts += [visualize.load_picture(name)[1] for name in visualize.PICTURES]
    known = {field for settings_class in scripts for field in settings_class.__dataclass_fields__}
    known |= {'key', 'nproc_per_node', 'model', 'model_args', 'tasks'}  # an example, and settings of other programs
    unknown = [name for name in options(read(page)) if name not in known]
    assert not unknown, f'{page}: settings that no script has'


# Links --------------------------------------------------------------------------------------------------------------


def pages_with_links():
    """Return the pages whose links are checked: those of the project, its models and its results."""
    places = r'(README|CONTRIBUTING)\.md|(docs|results)/.*\.md|(models/[^/]+|lessons)/README\.md'
    return sorted(str(path) for path in files_of_project() if re.fullmatch(places, path.as_posix()))


@pytest.mark.parametrize('page', pages_with_links())
def test_links_lead_somewhere(page):
    there = {path.as_posix() for path in files_of_project()}
    there |= {folder.as_posix() for path in files_of_project() for folder in path.parents}
    nowhere = []
    for link in links(read(page)):
        target, _, name = link.partition('#')
        path = os.path.normpath(Path(page).parent / target) if target else page
        if path not in there or (name and path.endswith('.md') and name not in anchors(read(path))):
            nowhere.append(link)
    assert not nowhere, f'{page}: no such file of the project, or no such heading'


def test_the_readme_is_short():
    text = re.sub(r'<!--.*?-->', '', read('README.md'), flags=re.DOTALL)
    assert len(text.split()) <= 1300


# Chains -------------------------------------------------------------------------------------------------------------


def test_a_command_follows_those_whose_results_it_uses(monkeypatch):
    page = """```bash
python prepare_bin.py --input=a.txt --dataset=a
python sample.py
python train.py --dataset=a --out_dir=out-a
python eval.py --out_dir=out-a --compare_to=tiny --save=kept
python train.py --dataset=b --out_dir=out-a
python sample.py --init_from=out-a
```"""
    monkeypatch.setattr('test_pages.read', lambda _: page)
    typed = [command.text for command in commands(page)]
    chains = [[typed.index(command.text) for command in chain] for chain in chains_of('page')]
    assert sorted(chains) == [[0, 2, 3], [1], [4, 5]]
