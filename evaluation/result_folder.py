"""The folder of an evaluation: what identifies it, and its rows as they are made, so that it can be resumed."""

import json
import os
import platform
import shlex
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields
from importlib.metadata import version

from common.errors import UserError
from common.files import atomic_write, check_regular, expand_path, is_there
from common.folders import lock_folder, remove_leftovers
from common.json_files import parse_json_lines, read_json_object
from common.notes import note
from evaluation.sources import window_start
from lm.checkpoint import weights_sha256
from lm.wording import describe_sampler

# The settings that change the numbers in pairs.jsonl; hashes stand for the data and the models.
SETTINGS_OF_THE_NUMBERS = (
    *('start', 'fixed_response', 'text', 'stride', 'boundary', 'separator', 'temperature', 'repetition_penalty'),
    *('dtype', 'quantize', 'prompt_key', 'response_key', 'bos', 'system', 'chat', 'score_end', 'whole_text'),
)

FILES = ('summary.json', 'pairs.jsonl', 'pairs.jsonl.part', 'report.md', 'page.html')  # any of them: not a new folder


# What identifies an evaluation --------------------------------------------------------------------------------------


def format_command(settings):
    """Return the command that gives these settings, without --resume_eval."""
    given = [(field, getattr(settings, field.name)) for field in fields(settings) if field.name != 'resume_eval']
    flags = [f'--{field.name}={value}' for field, value in given if value != field.default]
    return shlex.join(['python', 'eval.py', *flags])


def describe_run(settings, source, subjects, processes):
    """Return everything that the numbers depend on: the settings, the data, the models, the versions."""
    return {
        'settings': asdict(settings),
        'data': {
            'kind': 'text' if settings.text else 'pairs',
            'name': source.name,
            'sha256': source.sha256,
            'count': source.count,
        },
        'sampler': describe_sampler(settings, fixed=True),
        **{role: describe_subject(subject) for role, subject in zip(('model', 'compare_to'), subjects)},
        'device': subjects[0].model.device.type,
        'processes': processes.count,
        'versions': package_versions(),
    }


def describe_subject(subject):
    """Return what identifies a model and its tokenizer, and the model's size."""
    return {
        'init_from': subject.name,
        'weights_sha256': weights_sha256(subject.model),
        'tokenizer_sha256': subject.tokenizer.fingerprint,
        'parameters': subject.model.get_num_params(non_embedding=False),
        'block_size': subject.model.block_size,
        **describe_beginning(subject.tokenizer),
    }


def describe_beginning(tokenizer):
    """Return what a tokenizer puts before texts: before each, before an empty one, or a chat template."""
    if tokenizer.chat is not None:
        return {'chat': {'example': tokenizer.chat.example, 'sha256': tokenizer.chat.fingerprint}}
    return {
        name: tokenizer.show(ids) or None
        for name, ids in (('front', tokenizer.front), ('start', tokenizer.start_ids()))
    }


def package_versions():
    """Return the versions that the numbers may depend on."""
    packages = ('torch', 'transformers', 'numpy', 'tokenizers', 'tiktoken')
    return {'python': platform.python_version(), **{package: version(package) for package in packages}}


def run_identity(header):
    """Return what two parts of pairs.jsonl must have in common to belong to one evaluation."""
    of_model = ('init_from', 'weights_sha256', 'tokenizer_sha256', 'front', 'chat')
    added_later = {'chat': False, 'score_end': False, 'repetition_penalty': 1.0}
    settings = added_later | header['settings']
    return {
        **{name: settings.get(name) for name in SETTINGS_OF_THE_NUMBERS},
        'data': header['data']['sha256'],
        **{role: [header.get(role, {}).get(name) for name in of_model] for role in ('model', 'compare_to')},
        'device': header['device'],
        'number of processes': header['processes'],
        'torch': header['versions']['torch'],
    }


# The folder ---------------------------------------------------------------------------------------------------------


def result_path(settings):
    """Return the folder that --save means: a name is a folder in plot_dir, a path is itself."""
    path = expand_path(settings.save)
    is_name = settings.save == path.name and settings.save != '..'
    return expand_path(settings.plot_dir) / path if is_name else path


class ResultFolder:
    """Keeps rows in pairs.jsonl.part as they are made; finally it becomes pairs.jsonl, with summary.json beside it."""

    def __init__(self, path, header, resume):
        """header: what the numbers depend on; a folder holds one evaluation, so another header is refused.

        resume: continue from `next_index`, after the rows that were kept. Raises UserError if the folder does not
        allow that.
        """
        self.path = path
        self._part, self._finished = path / 'pairs.jsonl.part', path / 'pairs.jsonl'
        self._command = header['command']
        with ExitStack() as stack:
            stack.enter_context(lock_folder(path, 'choose another --save'))
            remove_leftovers(path, '*')
            self._check_header(header, resume)
            try:
                write_json(self.path / 'summary.json', {'complete': False, **header})
                if resume and not self._part.exists() and self._finished.exists():
                    self._finished.rename(self._part)
                self.next_index = self._cut_to_whole_windows() if self._part.exists() else 0
                # Without a buffer: what could not be written is not tried again when the file is closed.
                self._file = stack.enter_context(open(self._part, 'ab', buffering=0))
            except OSError as error:
                raise UserError(f'cannot write {self._part}: {error.strerror}') from error
            self._stack = stack.pop_all()

    def _check_header(self, header, resume):
        """Raise UserError if the folder holds another evaluation, or one that must be resumed first."""
        before = self._identity_before()
        differing = [key for key, value in run_identity(header).items() if before is not None and before[key] != value]
        if resume and before is None:
            raise UserError(f'--resume_eval: {self.path} holds no evaluation to resume')
        if resume and differing:
            raise UserError(
                f'--resume_eval: {self.path} was started with another {", ".join(differing)}, so the new rows would '
                'not match the old ones. Choose another --save'
            )
        if not resume and self._part.exists():
            raise UserError(
                f'{self.path} holds an interrupted evaluation: resume it (--resume_eval=True), choose another '
                f'--save, or delete {self._part}'
            )
        if differing:
            raise UserError(
                f'{self.path} holds the results of an evaluation with another {", ".join(differing)}: choose another '
                '--save, or delete that folder'
            )

    def _identity_before(self):
        """Return the identity of the evaluation that the folder holds, None if it holds none."""
        present = [name for name in FILES if is_there(self.path / name)]
        if not present:
            return None
        try:
            return run_identity(read_json_object(self.path / 'summary.json'))
        except (UserError, KeyError, TypeError, AttributeError) as error:
            reason = f' ({error})' if isinstance(error, UserError) else ''
            raise UserError(
                f'{self.path} holds {", ".join(present)} but no readable summary.json of an evaluation{reason}: choose '
                'another --save, so that nothing is overwritten'
            ) from error

    def _cut_to_whole_windows(self):
        """Cut off the last window, which may be incomplete, and what follows a damaged line; return where to go on."""
        check_regular(self._part)
        window, size = 0, 0
        with open(self._part, 'r+b') as file:
            place, last = 0, -1
            for number, (line, row) in enumerate(parse_json_lines(file), 1):
                index = row.get('index') if row else None
                if type(index) is not int or index <= last:
                    if line.endswith(b'\n'):  # else it is half a line, as an interrupted run leaves it
                        note(f'{self._part}: line {number} is damaged; what it and later lines held is scored again')
                    break
                if window_start(index) != window:
                    window, size = window_start(index), place
                place, last = place + len(line), index
            file.truncate(size)
        return window

    def kept_rows(self):
        """Yield the rows that were kept from before."""
        with open(self._part, 'rb') as file:
            for _, row in parse_json_lines(file):
                yield row

    def add(self, rows):
        """Keep the rows of a window, all of them or none."""
        lines = ''.join(f'{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n' for row in rows)
        data, size = lines.encode(), self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:  # a full disk, most likely
            with suppress(OSError):
                self._file.truncate(size)
            raise UserError(f'cannot write {self._part}: {error.strerror}') from error

    def finish(self, summary):
        """Give the rows their final name; last, write the summary, which says that the evaluation is complete."""
        self._file.close()
        try:
            self._part.replace(self._finished)
        except OSError as error:
            raise UserError(f'cannot write {self._finished}: {error.strerror}') from error
        write_json(self.path / 'summary.json', summary)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._stack.close()
        if kind is not None:
            note(f'rows scored so far are kept; resume with: {self._command} --resume_eval=True')


def write_json(path, value):
    """Write JSON atomically."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(f'{text}\n', encoding='utf-8')
