"""The report as a document to hand in, and the same report about another model.

    python -m lab.report --pdf                       results/REPORT.pdf, from results/REPORT.md
    python -m lab.report --tar                       results/hand-in.tar: the PDF, the project, how to run it
    python -m lab.report --init_from=gpt2            the report again, about GPT-2: results/report-gpt2/REPORT.md
    python -m lab.report --init_from=gpt2 --pdf      of that report, if it is there, the PDF; otherwise it is made first

For another model, GPT-2 or another one of its architecture, everything is done again: the model is fine-tuned on
stories, both are scored on the pairs and on texts, figures are drawn, and every command on the page is run. The
stories are those in --corpora; if there are none, they are built from the Hugging Face hub. If a run is interrupted,
the same command resumes the fine-tuning where it stopped; with other settings, weights or texts it is refused.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import configurator
from common.errors import UserError
from common.files import PROJECT
from common.notes import note
from lab.experiment_runs import RESULTS


@dataclass
class Settings:
    """Print the report as PDF, pack it to hand in, or make it again about another model."""

    init_from: str = ''  # make the report about this model: gpt2, distilgpt2, a folder; '' for the project's own
    pdf: bool = False  # print it as PDF
    tar: bool = False  # the archive to hand in, with the PDF in it
    again: bool = False  # make this report again from the start; the old page is kept as REPORT-old.md
    corpora: str = 'data/corpora'  # folder with the texts of `python -m lab.corpora`, to fine-tune on and to measure
    iterations: int = 60  # of fine-tuning, 4,096 tokens each; the shorter runs beside it take as long again
    measured: int = 50_000  # bytes of each text that no model has seen, to measure on


def main(settings):
    """Make the report, if it is about another model; print it; pack it."""
    if settings.iterations < 4:
        raise UserError(f'--iterations={settings.iterations}: it must be at least 4')
    if settings.measured < 1:
        raise UserError(f'--measured={settings.measured}: it must be at least 1')
    if Path.cwd() != PROJECT:
        raise UserError(f"the report is made of the project's results/: run this in the folder {PROJECT}")
    page, unused = RESULTS / 'REPORT.md', ' without --init_from'
    if settings.init_from:
        folder = RESULTS / f'report-{folder_name_of(settings.init_from)}'
        page = folder / 'REPORT.md'
        if settings.again or not page.is_file():
            from lab.report_about import make_report_about  # only now: torch takes seconds to import

            make_report_about(settings, folder)
            print(f'{page}: read it, and rewrite what is marked ✎')
            unused = ''
        elif not (settings.pdf or settings.tar):
            raise UserError(f'{page} is there; --pdf prints it, and --again=True makes it again')
        else:
            unused = f': {page} is there, and --again=True makes it again'
    elif not (settings.pdf or settings.tar):
        raise UserError('say what to make: --pdf, --tar, or --init_from=gpt2 for the report about another model')
    for name in ('again', 'corpora', 'iterations', 'measured'):
        if unused and getattr(settings, name) != getattr(Settings, name):
            note(f'--{name} has no effect{unused}')
    if settings.pdf or settings.tar:
        print_and_pack(page, settings)


def folder_name_of(model):
    """Return the name of a model as part of the name of a folder."""
    return re.sub(r'\W+', '-', model).strip('-').lower()


def print_and_pack(page, settings):
    """Print a report as PDF and, if asked for, write the archive."""
    from lab.hand_in import HOW_TO_RUN, write_archive
    from lab.report_document import write_pdf

    pdf = page.with_suffix('.pdf')
    write_pdf(page, pdf)
    print(f'{pdf}: {pdf.stat().st_size / 1e6:.1f} MB')
    if not settings.tar:
        return
    name, path = settings.init_from and shlex.quote(settings.init_from), page.parent / 'hand-in.tar'
    how_to_run = HOW_TO_RUN.format(
        page=page.parent.as_posix(),
        model=f' --init_from={name}' if name else '',
        pair=f' --init_from={name}' if name else ' --init_from=tiny-stories --compare_to=tiny',
        again=f'`python -m lab.report --init_from={name} --again=True` makes the report again.' if name else '',
    )
    write_archive(path, page, pdf, how_to_run)
    print(f'{path}: {path.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    configurator.run(main, Settings)
