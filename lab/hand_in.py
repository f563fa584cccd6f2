"""The archive to hand in: the project as it is, the report as PDF on top of it, and how to run what it says."""

import io
import re
import subprocess
import tarfile
from pathlib import Path

from common.files import PROJECT, atomic_write

TOP = 'nanoGPT-probs'  # the folder in the archive
NOT_OURS = r'\.(?!ci/)|out[^/]*/|venv/|sad/|wandb/|data/(?!childrens_stories/|story_questions\.json)|.*__pycache__'
HOW_TO_RUN = """# How to run this

The report is REPORT.pdf; its source and its figures are in {page}.

    python3 -m venv .venv && .venv/bin/pip install -r requirements-dev.txt && source .venv/bin/activate

| question | command |
| --- | --- |
| 1.1 | python sample.py --show_probs=True --plot_steps=10{model} |
| 1.2 | python sample.py --start="I live in" --max_new_tokens=5 --temperature=0.0001{model} |
| 1.3 | python sample.py --start="I live in" --fixed_response=" a house"{model} |
| 2.1 | python eval.py{pair} |
| 3.1 | python visualize.py trace --start="The king had a"{model} |
| 3.2 | python sample.py --start="The giant" --most_probable=3 --max_new_tokens=6{model} |
| tests | python -m pytest |

`model.py` has the network and `generate`; CONTRIBUTING.md says what is in every other file. {again}
"""


def list_files():
    """Return the paths of the project's files, relative to its folder, without those that git ignores."""
    listing = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z']
    try:
        out = subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        paths = [Path(path) for path in out.split('\0') if path]
    except (OSError, subprocess.CalledProcessError):  # a copy without git
        here = [path.relative_to(PROJECT) for path in PROJECT.rglob('*') if path.is_file()]
        paths = [path for path in here if not re.match(NOT_OURS, path.as_posix())]
    return sorted(path for path in paths if (PROJECT / path).is_file())


def write_archive(path, page, pdf, how_to_run):
    """Write a .tar with the project's files, those beside a report page, its PDF, and the text of HOW_TO_RUN.md.

    Names and numbers of users are left out, so that it may be marked anonymously.
    """
    beside = [file.relative_to(PROJECT) for file in page.resolve().parent.rglob('*') if file.is_file()]
    results = PROJECT / 'results'
    extra = beside if page.resolve().parent != results else []  # the project's own report is among its files
    files = {file for file in (*list_files(), *extra) if file.suffix != '.tar' and not file.name.startswith('.lock')}
    with atomic_write(path) as temporary, tarfile.open(temporary, 'w') as archive:
        archive.add(pdf, f'{TOP}/REPORT.pdf', filter=without_owner)
        told = tarfile.TarInfo(f'{TOP}/HOW_TO_RUN.md')
        told.size = len(how_to_run.encode())
        archive.addfile(told, io.BytesIO(how_to_run.encode()))
        for file in sorted(files):
            archive.add(PROJECT / file, f'{TOP}/{file.as_posix()}', filter=without_owner)


def without_owner(member):
    """Return a member of an archive without who owns it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ''
    return member
