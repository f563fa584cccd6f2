"""The folder that an evaluation is kept in: rows as they are made, so that one that was interrupted can go on."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from common.errors import UserError
from common.files import atomic_write
from lm.scoring import WINDOW


def package_versions():
    """Return the versions that numbers may depend on."""
    packages = ('torch', 'numpy', 'tokenizers', 'tiktoken')
    return {'python': platform.python_version(), **{package: version(package) for package in packages}}


# The settings that rows depend on, apart from what the hashes of data and models stand for.
SETTINGS_OF_THE_NUMBERS = (
    *('start', 'fixed_response', 'text', 'stride', 'boundary', 'separator', 'temperature'),
    *('dtype', 'quantize'),
)

# What an evaluation's folder is known by.
FILES = ('summary.json', 'pairs.jsonl', 'pairs.jsonl.part', 'report.md', 'page.html')


def result_path(settings):
    """Return the folder that --save means: a name is one in plot_dir, a path is itself."""
    is_name = Path(settings.save).name == settings.save != '..'
    return Path(settings.plot_dir) / settings.save if is_name else Path(settings.save)


class ResultFolder:
    """Rows go into pairs.jsonl.part as they are made; at the end it becomes pairs.jsonl, beside summary.json.

    header: all that the numbers depend on; a folder holds one evaluation, so another header is refused. resume: go on
    from `next_index`, after the rows that were `kept`. Raises UserError for a folder with which that cannot be done.
    """

    def __init__(self, folder, header, resume):
        self.folder = folder
        self._part, self._finished = self.folder / 'pairs.jsonl.part', self.folder / 'pairs.jsonl'
        self._command = header['command']
        before = self._header_before()
        differing = [key for key, value in run_identity(header).items() if before is not None and before[key] != value]
        if resume:
            if before is None:
                raise UserError(f'--resume_eval: {self.folder} holds no evaluation to go on with')
            if differing:
                raise UserError(
                    f'--resume_eval: {self.folder} was begun with another {", ".join(differing)}; numbers of two kinds '
                    'do not belong in one file. Choose another --save'
                )
            if not self._part.exists() and self._finished.exists():
                self._finished.rename(self._part)
        elif self._part.exists():
            raise UserError(
                f'{self.folder} holds an evaluation that was interrupted: go on with it (--resume_eval=True), choose '
                f'another --save, or delete {self._part}'
            )
        elif differing:
            raise UserError(
                f'{self.folder} holds the results of an evaluation with another {", ".join(differing)}; choose another '
                '--save, or delete that folder'
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'--save: cannot make the folder {self.folder}: {error.strerror}') from error
        self.next_index = self._cut_to_whole_windows() if self._part.exists() else 0
        write_json(self.folder / 'summary.json', {'complete': False, **header})
        self._file = open(self._part, 'a', encoding='utf-8')  # noqa: SIM115 (closed in __exit__)

    def _header_before(self):
        """Return the identity of the evaluation that the folder holds, None if it holds none."""
        there = [name for name in FILES if (self.folder / name).exists()]
        if not there:
            return None
        try:
            return run_identity(json.loads((self.folder / 'summary.json').read_text(encoding='utf-8')))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{self.folder} holds {", ".join(there)} and no readable summary.json of an evaluation; choose another '
                '--save, so that nothing is overwritten'
            ) from error

    def _cut_to_whole_windows(self):
        """Cut off the window that was being written, and half a line; return the index to go on from."""
        window, start = 0, 0
        with open(self._part, 'r+b') as file:
            place = 0
            for line in file:
                try:
                    index = json.loads(line)['index']
                except ValueError:
                    break
                if index // WINDOW != window:
                    window, start = index // WINDOW, place
                place += len(line)
            file.truncate(start)
        return window * WINDOW

    def kept(self):
        """Yield the rows that are kept from before."""
        with open(self._part, encoding='utf-8') as file:
            yield from map(json.loads, file)

    def add(self, rows):
        """Keep the rows of a window."""
        try:
            self._file.writelines(f'{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n' for row in rows)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:  # a full disk, most likely
            raise UserError(f'cannot write {self._part}: {error.strerror}') from error

    def finish(self, summary):
        """Write the summary; the rows get their final name last."""
        write_json(self.folder / 'summary.json', summary)
        self._file.close()
        self._part.replace(self._finished)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._file.close()
        if kind is not None:
            print(f'what was scored is kept; go on with: {self._command} --resume_eval=True', file=sys.stderr)


def run_identity(header):
    """Return what must be the same for two parts of pairs.jsonl to be of one evaluation."""
    of_model = ('init_from', 'weights_sha256', 'tokenizer_sha256')
    return {
        **{name: header['settings'][name] for name in SETTINGS_OF_THE_NUMBERS},
        'data': header['data']['sha256'],
        **{role: [header.get(role, {}).get(name) for name in of_model] for role in ('model', 'compare_to')},
        'device': header['device'],
        'number of processes': header['processes'],
        'torch': header['versions']['torch'],
    }


def write_json(path, value):
    """Write JSON whole or not at all."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(f'{text}\n', encoding='utf-8')
