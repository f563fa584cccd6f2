"""Scripts that write: what was there before, what may be there after a fault, and how it is done again."""

import contextlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import torch
from helpers.training import assert_same_run
from PIL import Image

from faults.harness import assert_went_well, run
from lm.checkpoint import load_model, weights_sha256
from texts.token_files import open_mask, open_tokens

CPU = '--device=cpu'


def names_in(folder):
    """Return the paths of all files and folders below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


class Job:
    """A script with what was there before; subclasses say what must hold after a fault, and what the right end is."""

    script: str
    arguments: tuple
    before: tuple = ()  # commands that make what is there before

    def set_up(self, here):
        """Make what is there before, in a folder that has the files of `world`."""
        for script, *arguments in self.before:
            assert_went_well(run(script, *arguments, cwd=here))

    def check(self, here):
        """Check what a fault may have left: all old or all new, never something of either."""

    def do_again(self, here):
        """Repeat the command, or resume the run, as a user would after a fault."""
        assert_went_well(run(self.script, *self.arguments, cwd=here))

    def result(self, here):
        """Return what the job makes, in a form in which two results can be compared."""


class Replace(Job):
    """A script that replaces files which belong together, in a folder that also has a file of the user's."""

    folder: str

    def set_up(self, here):
        super().set_up(here)
        (here / self.folder / 'mine.txt').write_text('a file of the user')
        self.old = self.result(here)
        copy = shutil.copytree(here, here.parent / 'new')
        assert_went_well(run(self.script, *self.arguments, cwd=copy))
        self.new = self.result(copy)
        shutil.rmtree(copy)

    def check(self, here):
        assert self.result(here) in (self.old, self.new)
        assert (here / self.folder / 'mine.txt').read_text() == 'a file of the user'


class Prepare(Replace):
    """A text with another tokenizer replaces a dataset of pairs that has a test part, and with it their masks."""

    script = 'prepare_bin.py'
    arguments = ('--input=stories.txt', '--dataset=a', '--tokenizer=char')
    before = (('prepare_bin.py', '--pairs=pairs.json', '--dataset=a', '--tokenizer=tiny', '--test_fraction=0.2'),)

    folder = 'data/a'

    def result(self, here):
        with contextlib.chdir(here):
            for split in ('train', 'val'):
                tokens = open_tokens('a', split)[:]  # by the loader, which finishes what was interrupted
                open_mask('a', split, tokens)
        files = {path.name: path.read_bytes() for path in (here / 'data' / 'a').iterdir() if path.is_file()}
        files.pop('mine.txt', None)
        return {name: data for name, data in files.items() if not name.startswith('.')}


class Train(Job):
    """A new run replaces an earlier one."""

    script = 'train.py'
    arguments = ('config/small.py', '--max_iters=1', '--eval_interval=1', '--overwrite')

    def check(self, here):
        for name in ('last.pt', 'ckpt.pt'):
            if (here / 'out' / name).exists():
                torch.load(here / 'out' / name, weights_only=True)

    def do_again(self, here):
        arguments = self.arguments
        last = here / 'out' / 'last.pt'
        if last.exists() and torch.load(last, weights_only=True)['config']['max_iters'] == 1:
            arguments = (*arguments, '--init_from=resume')
        assert_went_well(run(self.script, *arguments, cwd=here))

    def result(self, here):
        return Run(here / 'out')


class Run:
    """A finished training run; equal to another if every logged loss and every weight is."""

    def __init__(self, out_dir):
        self.out_dir = Path(shutil.copytree(out_dir, Path(tempfile.mkdtemp(dir=out_dir.parent.parent)) / 'out'))

    def __eq__(self, other):
        assert_same_run(self.out_dir, other.out_dir)
        return names_in(self.out_dir) == names_in(other.out_dir)


class Evaluate(Job):
    """An evaluation is kept."""

    script = 'eval.py'
    arguments = ('--init_from=folder', CPU, '--eval_data=pairs.json', '--save=./kept', '--resamples=10', '--show=1')

    def check(self, here):
        kept = here / 'kept'
        summary = json.loads((kept / 'summary.json').read_text()) if (kept / 'summary.json').exists() else {}
        if summary.get('complete'):
            assert {'pairs.jsonl', 'report.md', 'page.html', 'summary.json'} <= set(names_in(kept))

    def do_again(self, here):
        first = run(self.script, *self.arguments, cwd=here)
        if first.code:
            assert '--resume_eval=True' in first.err, first
            first = run(self.script, *self.arguments, '--resume_eval=True', cwd=here)
        assert_went_well(first)

    def result(self, here):
        kept = here / 'kept'
        summary = json.loads((kept / 'summary.json').read_text())
        del summary['run'], summary['settings']['resume_eval']
        assert summary['complete']
        return summary, (kept / 'pairs.jsonl').read_bytes(), names_in(kept)


class ResumeEvaluation(Evaluate):
    """An evaluation that was interrupted is resumed."""

    arguments = (*Evaluate.arguments, '--resume_eval=True')

    def set_up(self, here):
        assert_went_well(run(self.script, *Evaluate.arguments, cwd=here))
        (here / 'kept' / 'pairs.jsonl').rename(here / 'kept' / 'pairs.jsonl.part')
        summary = json.loads((here / 'kept' / 'summary.json').read_text())
        (here / 'kept' / 'summary.json').write_text(json.dumps({**summary, 'complete': False}))

    def do_again(self, here):
        assert_went_well(run(self.script, *self.arguments, cwd=here))


class Export(Replace):
    """Another model replaces an exported one."""

    script = 'export.py'
    arguments = ('--init_from=folder', '--overwrite')
    before = (('export.py', '--out_dir=out-characters'),)

    folder = 'out-export'

    def result(self, here):
        model, tokenizer, _ = load_model(here / 'out-export', device='cpu')  # which finishes what was interrupted
        files = [name for name in names_in(here / 'out-export') if not name.startswith('.')]
        return weights_sha256(model), tokenizer.fingerprint, files


class Charts(Job):
    """Charts are drawn into a new folder."""

    script = 'sample.py'
    arguments = (
        '--init_from=folder',
        CPU,
        '--show_probs',
        '--plot_steps=1',
        '--max_new_tokens=1',
        '--num_samples=1',
        '--plot_dir=drawn',
    )

    def check(self, here):
        for path in here.glob('drawn/**/*.png'):
            Image.open(path).load()

    def result(self, here):
        folder = max((here / 'drawn').iterdir())  # the newest: its name ends in the time
        return {path.name: path.read_bytes() for path in folder.iterdir()}


class Page(Charts):
    """All steps are written to one page."""

    arguments = (*Charts.arguments[:2], '--html', '--max_new_tokens=2', '--plot_dir=drawn')

    def check(self, here):
        for path in here.glob('drawn/*/page.html'):
            assert path.read_text(encoding='utf-8').rstrip().endswith('</html>')


class Picture(Charts):
    """A picture replaces an older one."""

    script = 'visualize.py'
    arguments = ('attention', '--init_from=folder', CPU, '--start=Ann', '--save=drawn/a/one.png')
    before = (('visualize.py', 'attention', '--init_from=folder', CPU, '--start=Ben gave', '--save=drawn/a/one.png'),)


JOBS = {job.__name__: job for job in (Prepare, Train, Evaluate, ResumeEvaluation, Export, Charts, Page, Picture)}


def state_of(folder):
    """Return a folder's contents in a form that does not depend on the random part of names or on who held a lock."""
    return tuple(
        (re.sub(r'\.[a-z0-9_]{8}\.partial', '.partial', str(path.relative_to(folder))), path.read_bytes())
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != '.lock'
    )
