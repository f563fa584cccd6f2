"""Ask a model how likely it finds responses: any number of pairs, one model or two side by side, with error bars.

    python eval.py --init_from=tiny-stories --compare_to=tiny       did fine-tuning work, and is the difference real?
    python eval.py --eval_data=mine.jsonl --save=mine               keep every number in results/mine/, with a report
    python eval.py --text=book.txt                                  perplexity and bits per byte of running text
    python eval.py --start='I live in' --fixed_response='a shoe'    a single pair

It takes every setting that sample.py takes; `python eval.py --help` lists them. Pairs are read, scored and written a
window at a time, so a file may hold any number of them; `torchrun --nproc_per_node=2 eval.py ...` shares out the work.
"""

import math
import shlex
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby, islice

from tqdm import tqdm

import configurator
from common.errors import UserError
from common.files import create_run_folder
from common.processes import Processes
from evaluation.markdown import write_report
from evaluation.measures import Results
from evaluation.result_folder import ResultFolder, package_versions, result_path
from evaluation.result_page import complete_records, recorded_tokens, save_page
from evaluation.rows import Subject, have_same_tokens, score_units
from evaluation.sources import Pair, PairSource, TextSource, report_skipped_pair
from evaluation.tables import print_results
from lm.checkpoint import weights_sha256
from lm.generate import generate_responses
from lm.hardware import peak_memory_mib
from lm.scoring import WINDOW
from lm.settings import (
    SamplingSettings,
    check_sampling_settings,
    load_chosen_model,
    model_name,
    optimise_for_inference,
    read_prompt,
)
from lm.wording import describe_sampler
from pictures.bars import make_charts, save_bar_charts


@dataclass
class Settings(SamplingSettings):
    """Ask a model how likely it finds responses. A probability is the model's unless it is called the sampler's.

    Other ways to measure, apart from pairs: running text (--text), in which every token is scored once, behind as much
    text as fits, for perplexity and bits per byte. Multiple choice, for pairs that have "distractors", a list of wrong
    responses: in how many is the right one the likeliest, by total logprob (acc) and by logprob per byte (acc_norm)?
    And calibration: do tokens that the model found likely come as often as it said? The calibration error is 0 if so.
    """

    eval_data: str = 'eval_data.json'  # JSON list or JSON lines of {"prompt", "response"} or [prompt, response]
    skip_bad: bool = False  # leave out pairs that are wrong, and say so, instead of refusing the file
    boundary: str = 'joint'  # joint: prompt and response are encoded as one text; separate: each by itself
    separator: str = ' '  # put where prompt and response would run together: no white space, then a letter or digit
    compare_to: str | None = None  # the model before, anything that init_from takes: scored too, with the difference
    text: str | None = None  # score a text file, or a dataset in data/ (mine: its val part; mine/test), not pairs
    stride: int | None = None  # tokens of text scored at a time; fewer see more before them (None: half a context)
    save: str | None = None  # name of a folder in plot_dir, or a path: for pairs.jsonl, report.md, page.html ...
    resume_eval: bool = False  # go on with an evaluation that was interrupted, from what --save kept of it
    show: int = 200  # rows that are printed; --save keeps them all
    resamples: int = 2000  # bootstrap resamples behind each 95 % interval
    start: str = ''  # with --fixed_response: the prompt of a single pair, scored instead of eval_data
    num_samples: int = 0  # for each prompt that is printed, also draw so many samples of max_new_tokens
    max_new_tokens: int = 20  # tokens in each of those samples
    temperature: float = 1.0  # where it is not 1, the sampler's values at it are given beside the model's
    top_k: int | None = None  # for the samples alone, like top_p; neither cuts off a fixed response


def eval(settings=None):
    """Score everything, print it, keep it if asked to, and return (rows, summary).

    rows: the first `show` of them, dicts as in pairs.jsonl. summary: what is in summary.json; see `measures.Results`.
    """
    asked = settings or Settings()
    settings = check_eval_settings(asked)
    processes = Processes(settings.device)
    settings = replace(settings, device=processes.device)
    source = None if settings.text else pair_source(settings)  # what is wrong with it is told before a model is loaded
    subjects = [
        Subject(model_name(named), *load_chosen_model(named))
        for named in (replace(settings, init_from=name) for name in (settings.init_from, settings.compare_to))
        if named.init_from is not None
    ]
    if source is None:
        block_sizes = [subject.model.config.block_size for subject in subjects]
        source = TextSource(settings.text, [subject.tokenizer for subject in subjects], block_sizes, settings.stride)
        settings = replace(settings, stride=source.stride)
    header = {'command': command_of(asked), **describe_run(settings, source, subjects, processes)}
    subjects = [subject._replace(model=optimise_for_inference(subject.model, settings)) for subject in subjects]
    with ExitStack() as stack:
        store = None
        if settings.save and processes.first:
            store = stack.enter_context(ResultFolder(result_path(settings), header, settings.resume_eval))
        results, records, run = score_all(source, subjects, settings, processes, store)
        if settings.save:
            indices = [row['index'] for row in results.on_page]
            complete_records(records, indices, source, subjects, settings, processes)
        if not processes.first:
            return [], {}
        summary = {'complete': True, **header, **results.summary(settings.resamples, settings.seed), 'run': run}
        summary['data']['left_out'] = source.count + source.bad - results.count
        run['peak_memory_mib'].append([results.count, peak_memory_mib()])  # with what the intervals took
        if store is not None:  # before anything is printed, for whoever reads that may have read enough
            write_report(store.folder, results, summary)
            save_page(store.folder / 'page.html', records, source, subjects, settings, results, summary)
            store.finish(summary)
    print_results(results.shown, summary)
    if settings.num_samples > 0:
        print_samples(source, subjects[0], settings)
    if settings.show_probs and settings.plot_steps > 0:
        draw_charts(source, subjects[0], settings)
    if store is not None:
        print(f'{store.folder}/report.md tells it all, page.html token by token (open it in a browser); ', end='')
        print('pairs.jsonl and summary.json have every number')
    return results.shown, summary


def check_eval_settings(settings):
    """Return the settings with the model decided on; raise UserError for values that cannot be meant."""
    settings = check_sampling_settings(settings)
    for name in ('show', 'resamples'):
        if getattr(settings, name) < (1 if name == 'resamples' else 0):
            raise UserError(f'--{name}={getattr(settings, name)}: that is too few')
    if settings.boundary not in ('joint', 'separate'):
        raise UserError(f'--boundary={settings.boundary} is neither joint nor separate')
    if settings.resume_eval and not settings.save:
        raise UserError('--resume_eval goes on with what --save=NAME has kept; name it')
    if settings.text and settings.fixed_response is not None:
        raise UserError('--text and --fixed_response are two different things to score; give one of them')
    if settings.start and settings.fixed_response is None:
        print('note: without --fixed_response, --start has no effect here', file=sys.stderr)
    return settings


def pair_source(settings):
    """Return the pairs of --eval_data, or the one of --start and --fixed_response."""
    if settings.fixed_response is None:
        return PairSource(settings.eval_data, skip_bad=settings.skip_bad)
    return PairSource(given=[Pair(0, None, read_prompt(settings.start), settings.fixed_response, [])])


def command_of(settings):
    """Return the command that asks for these settings."""
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}
    changed = [
        f'--{field.name}={given[field.name]}' for field in fields(settings) if given[field.name] != field.default
    ]
    return shlex.join(['python', 'eval.py', *(flag for flag in changed if not flag.startswith('--resume_eval'))])


def describe_run(settings, source, subjects, processes):
    """Return all that the numbers depend on: the settings, the data, the models, the program."""
    return {
        'settings': asdict(settings),
        'data': {
            'kind': 'text' if settings.text else 'pairs',
            'name': source.name,
            'sha256': source.sha256,
            'count': source.count,
        },
        'sampler': describe_sampler(settings, fixed=True),
        **{
            role: {
                'init_from': subject.name,
                'weights_sha256': weights_sha256(subject.model),
                'tokenizer_sha256': subject.tokenizer.fingerprint,
                'parameters': subject.model.get_num_params(non_embedding=False),
                'block_size': subject.model.config.block_size,
            }
            for role, subject in zip(('model', 'compare_to'), subjects)
        },
        'device': subjects[0].model.device.type,
        'processes': processes.count,
        'versions': package_versions(),
    }


# From pairs to rows -------------------------------------------------------------------------------------------------


def score_all(source, subjects, settings, processes, store):
    """Score window by window; return the Results, {index: TokenRecords for each model}, and how the run went.

    Windows begin at fixed places in the source. So a resumed evaluation makes the same batches as before, and its
    numbers are the same to the last bit.
    """
    results = Results(have_same_tokens(subjects), settings.temperature, settings.show, text=settings.text is not None)
    records, recorded = {}, recorded_tokens(settings)
    if store is not None:
        results.extend(store.kept())
    first = processes.broadcast(store.next_index if store is not None else 0)
    run = {'kept_from_before': results.count, 'peak_memory_mib': []}
    start = time.perf_counter()
    quiet = None if processes.first else True  # None: where there is no terminal
    progress = tqdm(total=source.count, initial=first, unit=f' {results.unit}s', leave=False, disable=quiet)
    for _, window in groupby(source.units(first), key=lambda unit: unit[0] // WINDOW):
        window = list(window)
        try:
            rows = score_units(processes.share(window), source, subjects, settings, recorded)
        except UserError as error:
            rows = error  # the first process tells of it
        rows = processes.gather(rows)
        for row in rows:
            if 'left_out' in row:
                report_skipped_pair(row['left_out'])
        rows = [row for row in rows if 'left_out' not in row]
        records |= {row['index']: row.pop('records') for row in rows if 'records' in row}
        results.extend(rows)
        if store is not None:
            store.add(rows)
        progress.update(len(window))
        note_memory(run['peak_memory_mib'], results.count)
    progress.close()
    if not results.count and processes.first:
        raise UserError(f'{source.name or "the pair"}: nothing is left to be scored')
    seconds = time.perf_counter() - start
    run['seconds'] = round(seconds, 2)
    run['rows_per_second'] = round((results.count - run['kept_from_before']) / seconds, 1)
    return results, records, run


def note_memory(peaks, count):
    """Note [rows done, peak memory] when their number passes a power of ten."""
    if count and (not peaks or len(str(count)) > len(str(peaks[-1][0]))):
        peaks.append([count, peak_memory_mib()])


# What else it may show ----------------------------------------------------------------------------------------------


def shown_items(source, subject, settings):
    """Yield the Items of the rows that are printed, for the first model."""
    for _, unit in islice(source.units(), settings.show):
        with suppress(UserError):  # a pair that cannot be encoded has been told of
            yield source.encode(unit, [subject.tokenizer], settings.boundary, settings.separator).pairs[0][0]


def print_samples(source, subject, settings):
    """Print what the model itself says to each prompt, beside the response that was scored."""
    _, model, tokenizer = subject
    eot = tokenizer.eot if settings.stop_at_eot else None
    for prompt_ids, response_ids in shown_items(source, subject, settings):
        print(f'\n{tokenizer.decode(prompt_ids)}\n  fixed: {"".join(tokenizer.pieces(response_ids))}')
        *_, responses = generate_responses(model, prompt_ids, settings, settings.num_samples, None, eot)
        for response in responses:
            total = math.fsum(response.sampler_logprobs)
            logprob = f'logprob {total:.4f} under the sampler: {describe_sampler(settings, False)}'
            print(f'  drawn: {"".join(tokenizer.pieces(response.ids))}  ({logprob})')


def draw_charts(source, subject, settings):
    """Draw the steps of each response into a folder of its own."""
    folder = create_run_folder(settings.plot_dir, f'eval-{model_name(settings)}')
    items = tqdm(shown_items(source, subject, settings), unit=' pairs', leave=False, disable=None)
    for number, (prompt_ids, response_ids) in enumerate(items, 1):
        *_, (response,) = generate_responses(
            subject.model, prompt_ids, settings, 1, response_ids, recorded_steps=settings.plot_steps
        )
        if response.records:
            target = folder / f'pair_{number:02d}'
            target.mkdir()
            name = describe_sampler(settings, fixed=True)
            save_bar_charts(make_charts(response.records, prompt_ids, subject.tokenizer, name), target)
    print(f'charts of the first {settings.plot_steps} steps of each response in {folder}')


if __name__ == '__main__':
    configurator.run(eval, Settings)
