"""What can be chosen in the notebook: ten models, texts from six sources, and the columns of these texts."""

import difflib
import json
import re
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import PROJECT, atomic_write, resolve_path
from common.notes import note
from common.text_files import read_text, text_kind
from texts.hub_datasets import open_hub_table
from texts.readers import KINDS, input_paths, read_files
from texts.tables import TABLES, are_texts, is_missing

OUT = Path('out-notebook')  # everything that the notebook writes, apart from the token files in data/
UPLOADS = OUT / 'texts'
PAGES = ('README.md', 'CONTRIBUTING.md', 'docs/*.md', 'lessons/README.md', 'results/REPORT.md', 'results/*/README.md')
LEAST_CHARACTERS = 100  # of a paragraph that explains something
ROWS = 100  # to look at to find the columns of texts


CLONE = 'nanogpt-probs'  # the folder into which the first cell fetches the project
HOW_TO_SAVE = {  # files that pupils have and that are not read: what can be done
    '.docx .doc .odt .rtf .pages': 'it is a document. Open it, choose File, then Save As (or Download, or Export), and '
    'plain text (.txt), if you are asked with the encoding UTF-8. Then choose that file',
    '.xlsx .xls .ods .numbers': 'it is a spreadsheet. Open it, choose File, then Save As (or Download, or Export), and '
    'CSV UTF-8. Then choose that file',
    '.pdf .epub .html .htm': 'open it, select all of its text, and copy that into a text editor. Save it there, '
    'with the ending .txt, and choose that file',
    '.jpg .jpeg .png .gif .heic .mp3 .mp4 .mov .wav': 'there is no text in it. Choose a text (.txt) or a table (.csv)',
    '.zip .rar .7z': 'it is packed. Open it, take out the file with the texts, and choose that',
}


class Offer(NamedTuple):
    """A model to choose: its name, how many million weights it has, how many megabytes are downloaded, what it is."""

    name: str
    millions: float
    megabytes: int
    about: str

    @property
    def label(self):
        size = f'{self.millions:g} million weights'
        return f'{self.name} · {size}, {f"{self.megabytes:,} MB to download" if self.megabytes else "no download"}'


MODELS = (
    Offer('tiny-stories', 5.6, 0, 'comes with this project and writes simple stories; learns in seconds'),
    Offer('tiny', 5.6, 0, 'comes with this project and has read only novels and old children’s books'),
    Offer('EleutherAI/pythia-70m', 70, 166, 'the smallest of a family that was made to be studied'),
    Offer('distilgpt2', 82, 353, 'a smaller GPT-2 that was trained to answer like GPT-2'),
    Offer('gpt2', 124, 548, 'the smallest GPT-2, which has read eight million web pages'),
    Offer('EleutherAI/gpt-neo-125m', 125, 526, 'of GPT-2’s size, trained on a collection of books, papers and pages'),
    Offer('HuggingFaceTB/SmolLM2-135M', 135, 269, 'newer: small, but trained on very much text'),
    Offer('EleutherAI/pythia-160m', 162, 375, 'of the same family as pythia-70m'),
    Offer('gpt2-medium', 355, 1520, 'the next larger GPT-2; better on a GPU'),
    Offer('HuggingFaceTB/SmolLM2-360M', 362, 724, 'the next larger SmolLM2; better on a GPU'),
)


class Source(NamedTuple):
    """Texts to choose: where they come from, and what the model card says about them."""

    label: str
    about: str  # a sentence: what they are, and their licence; '' if only the person knows
    path: Callable[[], Path] | None = None  # makes or finds the file; None for a dataset on the hub
    dataset: str = ''  # its name on the hub
    config: str = ''  # its configuration, if it has several


def explanations():
    """Write the paragraphs with which this project explains itself to a table; return its path.

    Code, tables and comments of the pages are left out.
    """
    path, rows = UPLOADS / 'explanations.jsonl', []
    for page in chain.from_iterable(sorted(PROJECT.glob(pattern)) for pattern in PAGES):
        heading = ''
        prose = re.sub(r'```.*?```|<!--.*?-->', '', read_text(page), flags=re.DOTALL)
        for block in map(str.strip, re.split(r'\n{2,}', prose)):
            if block.startswith('#'):
                heading = block.lstrip('# ')
            elif len(block) >= LEAST_CHARACTERS and not block.startswith(('|', '![')):
                row = {'page': page.relative_to(PROJECT).as_posix(), 'heading': heading, 'explanation': block}
                rows.append(json.dumps(row, ensure_ascii=False) + '\n')
    with atomic_write(path) as temporary:
        temporary.write_text(''.join(rows), encoding='utf-8')
    return path


SOURCES = {
    'stories': Source(
        'Stories: 52 children’s stories of this project (no download)',
        'The 52 children’s stories of nanoGPT-probs (MIT licence).',
        lambda: PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt',
    ),
    'explanations': Source(
        'Explanations: how this project explains itself (no download)',
        'The paragraphs of the pages of nanoGPT-probs (MIT licence).',
        explanations,
    ),
    'recipes': Source(
        'Recipes: home cooking (hub: Hieu-Pham/kaggle_food_recipes, CC BY-SA 3.0)',
        'Recipes: Hieu-Pham/kaggle_food_recipes on the Hugging Face hub (CC BY-SA 3.0).',
        dataset='Hieu-Pham/kaggle_food_recipes',
    ),
    'reviews': Source(
        'Reviews: 3.6 million of products (hub: fancyzhx/amazon_polarity, Apache-2.0)',
        'Product reviews: fancyzhx/amazon_polarity on the Hugging Face hub (Apache-2.0).',
        dataset='fancyzhx/amazon_polarity',
    ),
}


def named_dataset(name, config=''):
    """Return the Source of a dataset on the hub that was typed. Raises UserError if there is no name."""
    name = name.strip().removeprefix('https://huggingface.co/datasets/').strip('/')
    if not name:
        raise UserError('type the name of the dataset, such as roneneldan/TinyStories')
    return Source(name, f'{name} on the Hugging Face hub.', dataset=name, config=config.strip())


def own_file(name):
    """Return the Source of a file of one's own. Raises UserError if it is missing, empty or of an unknown kind."""
    name = name.strip().strip('"')
    if not name:
        raise UserError('choose a file first: upload one, or choose one that is here')
    path = find_file(name)
    if path.is_dir():
        raise UserError(f'{name} is a folder: name one file in it')
    for endings, advice in HOW_TO_SAVE.items():
        if path.suffix.lower() in endings.split():
            raise UserError(f'“{path.name}” cannot be read: {advice}')
    if not path.exists() and re.search(r'[,*?[]', name):  # several names, or a pattern
        raise UserError(f'“{name}” is not one file: name only one')
    (path,) = input_paths(str(path))
    if not path.stat().st_size:
        raise UserError(f'{path.name} is empty: choose a file with some pages of text')
    return Source(path.name, '', lambda: path)


def find_file(name):
    """Return the path of a file that was typed; without a folder, it may lie in any of `places`."""
    path = resolve_path(name)
    if path.exists() or path.name != name:
        return path
    found = [place / name for place in places() if (place / name).exists()]
    if len(found) > 1:
        raise UserError(f'there are several files called {name}: choose one of them in the list')
    return found[0] if found else path


def write_upload(upload):
    """Write a file that was uploaded, in the form of ipywidgets 7 or 8, to a file of its name; return its path.

    upload: the value of a FileUpload with one file.
    """
    if isinstance(upload, dict):  # ipywidgets 7, which Colab has: by name
        ((name, file),) = upload.items()
    else:
        (file,) = upload
        name = file['name']
    path = UPLOADS / Path(name.replace('\\', '/')).name
    with atomic_write(path) as temporary:
        temporary.write_bytes(bytes(file['content']))
    return path


def places():
    """Return the folders of files that were uploaded, or put beside the notebook: on Colab, beside the project."""
    return (UPLOADS, Path('notebooks'), Path('..')) if Path.cwd().name == CLONE else (UPLOADS, Path('notebooks'))


def files_here():
    """Return the names of the files in these folders that can be read."""
    return [str(path) for place in places() for path in sorted(place.glob('*')) if text_kind(path) in KINDS]


class Column(NamedTuple):
    """A column of texts: its name, its first texts, and how long they are on average, in characters."""

    name: str
    examples: list[str]
    length: float


def read_columns(source):
    """Return the Columns of a Source that hold text, the one with the longest first, and the names of the others.

    Raises UserError if the texts cannot be had, or if there are none.
    """
    rows = list(islice(open_rows(source), ROWS))
    if len(rows) == 1:
        note(
            'this is only one document, so its three parts are cut from it. If there are several in the file, put two '
            'empty lines between them (in a table: a row for each)'
        )
    names = dict.fromkeys(chain.from_iterable(rows))
    columns, others = [], []
    for name in names:
        values = [row[name] for row in rows if not is_missing(row.get(name)) and row[name] != '']
        if are_texts(values):
            columns.append(Column(name, values[:3], sum(map(len, values)) / len(values)))
        else:
            others.append(name)
    if not columns:
        raise UserError(f'{source.label} has no text to learn from: choose something else')
    return sorted(columns, key=lambda column: -column.length), others


def open_rows(source) -> Iterable[dict]:
    """Return an iterator over the rows of a Source; a text file has one column, and one document in each row."""
    if source.path is None:
        return open_hub_table(source.dataset, source.config)[0]
    path = source.path()
    if text_kind(path) in TABLES:
        return TABLES[text_kind(path)](path, '')
    return ({'text': document} for document in read_files([path], '\n\n\n') if document.strip())


def similar_model(name):
    """Return the name in MODELS that a mistyped one resembles, '' if there is none."""
    short = {offer.name.rpartition('/')[2].lower(): offer.name for offer in MODELS}
    near = difflib.get_close_matches(name.rpartition('/')[2].lower(), short, n=1, cutoff=0.7)
    return short[near[0]] if near else ''
