"""Measure how likely given responses are under one model, or under two side by side, with confidence intervals.

    python eval.py --init_from=tiny-stories --compare_to=tiny       did fine-tuning work, and is the difference real?
    python eval.py --eval_data=mine.jsonl --save=mine               keep every number in results/mine/, with a report
    python eval.py --text=book.txt                                  perplexity and bits per byte of running text
    python eval.py --start='I live in' --fixed_response='a shoe'    a single pair

It accepts the settings of sample.py; `python eval.py --help` says which have no effect. Samples, searches and charts
are made for each pair that is printed. Pairs are read, scored and written 512 at a time, so a file may have any number
of them; `torchrun --nproc_per_node=2 eval.py ...` shares the work.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import math
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, replace
from itertools import islice

from tqdm import tqdm

import configurator
from common.errors import UserError
from common.files import create_run_folder, make_folder
from common.notes import note
from common.processes import Processes
from common.strings import show_invisible
from evaluation.markdown import write_report
from evaluation.pair_files import KeyChoice, Pair
from evaluation.result_folder import ResultFolder, describe_run, format_command, result_path
from evaluation.result_page import complete_records, recorded_tokens, save_page
from evaluation.results import Results
from evaluation.running_text import TextSource
from evaluation.scored_rows import Subject, have_same_tokens, score_units
from evaluation.sentences import unusual_sentences
from evaluation.sources import PairSource, group_windows, report_skipped_pair
from evaluation.terminal import print_results
from evaluation.word_table import measure_words
from lm.hardware import peak_memory_mib
from lm.responses import generate_responses, require_sample_memory
from lm.settings import (
    SEARCHES,
    ModelSettings,
    SamplingSettings,
    check_sampling_settings,
    check_search_settings,
    chosen_search,
    end_tokens,
    load_chosen_model,
    model_name,
    optimise_for_inference,
    parse_budget,
    read_prompt,
    settings_of_models,
)
from lm.tuning import MANY_ROWS
from lm.wording import describe_sampler, differs_from_model, format_likelihood
from pictures.bars import make_charts, save_bar_charts
from pictures.search_results import print_search, require_beam_memory


@dataclass
class Settings(SamplingSettings):
    """Measure how likely responses are under a model. Probabilities are the model's unless called the sampler's.

    Besides pairs: running text (--text), for perplexity and bits per byte; every token is scored once, after at least
    block_size - stride tokens of context, if the text has them. Multiple choice, for pairs with "distractors", a list
    of wrong responses: how often is the right response the likeliest, by total logprob (acc) and by logprob per byte
    (acc_norm)? And calibration: where the model gives its likeliest token 30%, is that token right 30% of the time? If
    so at every level, the error is 0.
    """

    eval_data: str = 'eval_data.json'  # pairs, {"prompt", "response"} or [prompt, response]: JSON, CSV, Parquet
    prompt_key: str | None = None  # the key of the prompts, if it is none of prompt, instruction, question, input ...
    response_key: str | None = None  # the key of the responses, if it is none of response, completion, output, answer
    skip_bad: bool = False  # leave out invalid pairs, with a note, instead of refusing the file
    boundary: str = 'joint'  # joint: encode prompt and response as one text; separate: encode each alone
    compare_to: str | None = None  # a second model to compare with, as in init_from: the one before fine-tuning
    text: str | None = None  # score running text instead of pairs: a file, or a dataset in data/ (mine or mine/test)
    words: bool = False  # with text or items: how surprising each word is, in bits, into words.csv
    items: str | None = None  # with words: a table of texts, or of one word in each row; its columns are copied
    items_column: str = ''  # with items: the column of the texts or words, if it is not called text, sentence or word
    punctuation: str = 'attached'  # with words: attached to words, or apart
    stride: int | None = None  # tokens of text scored at a time; fewer means more context (None: half a context)
    save: str | None = None  # keep pairs.jsonl, report.md, page.html ... in this folder: a name in plot_dir, or a path
    resume_eval: bool = False  # resume an interrupted evaluation from what --save kept
    show: int = 200  # rows to print; --save keeps them all
    resamples: int = 2000  # bootstrap resamples for each 95% interval
    start: str = ''  # with --fixed_response: the prompt of a single pair, scored instead of eval_data
    num_samples: int = 0  # samples to draw for each prompt that is printed
    max_new_tokens: int = 20  # tokens in each of these samples
    temperature: float = 1.0  # if it is not 1, show the sampler's values beside the model's (repetition_penalty too)
    top_k: int | None = None  # for these samples only, like top_p and min_p; they cut nothing off from scored responses
    beam_width: int | None = None  # search after each prompt that is printed, with this many beams
    most_probable: int | None = None  # find the k most probable continuations of each prompt that is printed
    budget: str = SamplingSettings.budget  # limits of a search, for each pair (whole_text: 2s unless this is given)
    html: bool = False  # write page.html, with every token, in a new folder; --save does so in its own
    color: str | None = None  # of sample.py, without effect here
    next: int | None = None  # of sample.py, without effect here
    interactive: bool = False  # of sample.py, without effect here


USED_BY_WORDS = {
    *(field.name for field in fields(ModelSettings)),
    *('quantize', 'tune', 'verbose', 'compile', 'compare_to', 'text', 'stride', 'words', 'items', 'items_column'),
    *('punctuation', 'save', 'show', 'plot_dir'),
}


def eval(settings=None):
    """Score everything, print it, keep it if --save is given, and return (rows, summary).

    rows: the first `show` rows, as in pairs.jsonl. summary: as in summary.json; see `Results.summary`.
    """
    settings = settings or Settings()
    command = format_command(settings)
    settings = check_eval_settings(settings)
    budget = parse_budget(settings.budget)
    processes = Processes(settings.device)
    settings = replace(settings, device=processes.device)
    if settings.words:
        if processes.count > 1:
            raise UserError('--words runs in one process: leave out torchrun')
        return measure_words(settings, optimise_subjects(load_subjects(settings), settings)), {}
    source = None if settings.text else open_pairs(settings)  # finds invalid pairs before a model is loaded
    subjects = load_subjects(settings)
    if source is None:
        block_sizes = [subject.model.block_size for subject in subjects]
        source = TextSource(settings.text, [subject.tokenizer for subject in subjects], block_sizes, settings.stride)
        settings = replace(settings, stride=source.stride)
    header = {'command': command, **describe_run(settings, source, subjects, processes)}
    subjects = optimise_subjects(subjects, settings)
    require_memory_to_continue(subjects[0].model, settings)

    with ExitStack() as stack:
        folder = None  # only the first process has one, and only with --save
        if settings.save and processes.first:
            folder = stack.enter_context(ResultFolder(result_path(settings), header, settings.resume_eval))
        results, records, run = score_all(source, subjects, settings, processes, folder)
        if settings.save or settings.html:
            shown = [row['index'] for row in results.on_page]
            complete_records(records, shown, source, subjects, settings, processes)
        if not processes.first:
            return [], {}
        summary = {'complete': True, **header, **results.summary(settings.resamples, settings.seed), 'run': run}
        summary['data']['left_out'] = source.count + source.bad - results.count
        run['matrices'] = [subject.model.tuning and subject.model.tuning.name for subject in subjects]
        run['peak_memory_mib'].append([results.count, peak_memory_mib()])  # now that the intervals are computed
        if folder is not None:  # before anything is printed: `| head` may end this program
            write_report(folder.path, results, summary)
            save_page(folder.path / 'page.html', records, source, subjects, settings, results, summary)
            folder.finish(summary)

    for sentence in unusual_sentences(summary):
        note(sentence[0].lower() + sentence[1:].rstrip('.'))
    print_results(results.printed, summary)
    print_continuations(source, subjects[0], settings, budget, results.printed)
    if settings.html and folder is None:
        path = create_run_folder(settings.plot_dir, f'eval-{model_name(settings)}') / 'page.html'
        save_page(path, records, source, subjects, settings, results, summary)
        print(f'every token on one page: {path} (open it in a browser)')
    if settings.show_probs and settings.plot_steps > 0:
        draw_charts(source, subjects[0], settings)
    if folder is not None:
        print(
            f'saved in {folder.path}: report.md, page.html (every token, for a browser), pairs.jsonl and summary.json '
            '(every number)'
        )
    return results.printed, summary


def check_eval_settings(settings):
    """Return the settings with the model filled in; raise UserError for invalid values."""
    settings = check_sampling_settings(settings)
    for name, least in (('show', 0), ('resamples', 1)):
        if getattr(settings, name) < least:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be at least {least}')
    if settings.boundary not in ('joint', 'separate'):
        raise UserError(f'--boundary={settings.boundary} is neither joint nor separate')
    if settings.resume_eval and not settings.save:
        raise UserError('--resume_eval needs --save=NAME, the folder of the interrupted evaluation')
    for name in ('text', 'items'):
        for other in ('fixed_response', 'whole_text'):
            if getattr(settings, name) and getattr(settings, other) is not None:
                raise UserError(f'--{name} and --{other} cannot be combined')
        if getattr(settings, name) and settings.chat:
            raise UserError(f'--{name} and --chat cannot be combined: a chat template is for prompts and responses')
    if settings.words and not settings.text and not settings.items:
        raise UserError('--words needs --text=FILE or --items=items.csv')
    if settings.items and not settings.words:
        raise UserError('--items needs --words=True')
    check_search_settings(settings)
    note_unused_settings(settings)
    return settings


def note_unused_settings(settings):
    """Name on stderr the settings that have no effect in combination with the others."""
    text, single = bool(settings.text), settings.fixed_response is not None
    generates = settings.num_samples or chosen_search(settings) is not None
    unused = {
        'start': not single,
        **dict.fromkeys(('eval_data', 'prompt_key', 'response_key'), text or single),
        **dict.fromkeys(('boundary', 'separator', 'skip_bad', *SEARCHES), text),
        'stride': not text,
        'items_column': not settings.items,
        'punctuation': not settings.words,
        'show_beams': text or settings.beam_width is None,
        'length_penalty': settings.beam_width is None or not settings.stops,
        'budget': not any((settings.most_probable, settings.next_words, settings.whole_text)),
        **dict.fromkeys(('max_new_tokens', 'stop_at_eot'), not generates),
        **dict.fromkeys(('top_k', 'top_p', 'min_p'), not settings.num_samples),
        **dict.fromkeys(('color', 'next', 'interactive'), True),
    }
    if settings.words:
        unused = {field.name: field.name not in USED_BY_WORDS for field in fields(settings)}
    for name, is_unused in unused.items():
        if is_unused and getattr(settings, name) != getattr(Settings, name):
            without = ' without --fixed_response' if name == 'start' and not settings.words else ''
            note(f'--{name} has no effect here{without}')


def open_pairs(settings):
    """Return the pairs of --eval_data, or the single pair of --start and --fixed_response."""
    if settings.fixed_response is None:
        keys = KeyChoice(settings.prompt_key, settings.response_key)
        source = PairSource(settings.eval_data, skip_bad=settings.skip_bad, keys=keys, chat=settings.chat)
    else:
        pair = Pair(0, None, read_prompt(settings.start), settings.fixed_response, [])
        source = PairSource(given=[pair], chat=settings.chat)
    source.note_joined(settings.separator)
    return source


def load_subjects(settings):
    """Return the models to evaluate: the one of init_from and, if there is one, that of compare_to."""
    return [
        Subject(model_name(of_model), *load_chosen_model(of_model, to_pack=not settings.compile))
        for of_model in settings_of_models(settings)
    ]


def optimise_subjects(subjects, settings):
    """Return the same models, optimised for inference."""
    return [subject._replace(model=optimise_for_inference(subject.model, settings, MANY_ROWS)) for subject in subjects]


# Scoring ------------------------------------------------------------------------------------------------------------


def score_all(source, subjects, settings, processes, folder):
    """Score window by window; return the Results, {index: TokenRecords for each model}, and how the run went.

    Rows that `folder` kept from before are not scored again.
    """
    of_text, of_whole_texts = bool(settings.text), bool(settings.whole_text)
    has_sampler = differs_from_model(**settings.sampler(fixed=True))
    results = Results(have_same_tokens(subjects), has_sampler, settings.show, of_text, of_whole_texts)
    records, to_record = {}, recorded_tokens(settings)
    if folder is not None:
        try:
            results.extend(folder.kept_rows())
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f'{folder.path} cannot be resumed: a row that it keeps is damaged ({type(error).__name__}: {error}); '
                'choose another --save, or delete that folder'
            ) from error
    start_index = processes.broadcast(0 if folder is None else folder.next_index)
    run = {'kept_from_before': results.count, 'peak_memory_mib': []}
    started = time.perf_counter()
    disable = None if processes.first else True  # None: show it in a terminal only
    progress = tqdm(total=source.count, initial=start_index, unit=f' {results.unit}s', leave=False, disable=disable)
    for window in group_windows(source.units(start_index)):
        try:
            share = score_units(processes.share(window), source, subjects, settings, to_record)
        except (UserError, FloatingPointError) as error:
            share = UserError(str(error))  # gather raises it, here and in the first process
        rows = processes.gather(share)
        for row in rows:
            if 'left_out' in row:
                report_skipped_pair(row['left_out'])
        rows = [row for row in rows if 'left_out' not in row]
        records |= {row['index']: row.pop('records') for row in rows if 'records' in row}
        results.extend(rows)
        if folder is not None:
            folder.add(rows)
        progress.update(len(window))
        note_memory(run['peak_memory_mib'], results.count)
    progress.close()
    if not results.count and processes.first:
        raise UserError(f'{source.name or "the pair"}: nothing is left to score')
    seconds = time.perf_counter() - started
    run['seconds'] = round(seconds, 2)
    run['rows_per_second'] = round((results.count - run['kept_from_before']) / seconds, 1)
    return results, records, run


def note_memory(peaks, count):
    """Append [rows so far, peak memory in MiB] when the number of rows gains a digit."""
    if count and (not peaks or len(str(count)) > len(str(peaks[-1][0]))):
        peaks.append([count, peak_memory_mib()])


# Samples, searches and charts ---------------------------------------------------------------------------------------


def encode_printed_pairs(source, subject, settings):
    """Yield (prompt ids, response ids) of the rows that are printed."""
    for _, unit in islice(source.units(), settings.show):
        with suppress(UserError):  # a pair that cannot be encoded has already been reported
            item = source.encode(unit, [subject.tokenizer], settings.boundary, settings.separator)
            yield item.pairs[0][0]  # of the only model, the response; distractors come after it


def print_continuations(source, subject, settings, budget, rows):
    """Print what the model itself would say after each prompt, beside the response that was scored, if asked to."""
    searches = [] if settings.text else [name for name in SEARCHES if getattr(settings, name) is not None]
    if not settings.num_samples and not searches:
        return
    for name in ('most_probable', 'next_words'):
        if name in searches and len(rows) > 1:
            note(f'--{name} may take {settings.budget} for each of {len(rows):,} prompts; --show=N takes fewer')
    _, model, tokenizer = subject
    eot = end_tokens(tokenizer, settings)
    for (prompt_ids, response_ids), row in zip(encode_printed_pairs(source, subject, settings), rows):
        likelihood = f'  ({format_likelihood(row["logprob"], row["tokens"])})' if searches else ''
        prompt, response = show_invisible(tokenizer.decode(prompt_ids)), tokenizer.show(response_ids)
        print(f'\n{prompt}\n  fixed: {response}{likelihood}')
        if settings.num_samples:
            print_samples(model, tokenizer, settings, prompt_ids, eot)
        for name in searches:
            print_search(name, model, tokenizer, settings, prompt_ids, eot, budget)


def require_memory_to_continue(model, settings):
    """Raise UserError, before anything is scored, if samples and beams cannot fit into memory."""
    if settings.num_samples:
        require_sample_memory(model, settings, settings.num_samples)
    if settings.beam_width is not None and not settings.text:
        require_beam_memory(model, settings)


def print_samples(model, tokenizer, settings, prompt_ids, eot):
    """Print what the model generates after a prompt."""
    snapshots = generate_responses(model, prompt_ids, settings, settings.num_samples, None, eot)
    *_, responses = tqdm(snapshots, total=settings.max_new_tokens + 1, unit='step', leave=False, delay=3, disable=None)
    for response in responses:
        total = math.fsum(response.sampler_logprobs)
        logprob = f'logprob {total:.4f} under the sampler: {describe_sampler(settings, False)}'
        print(f'  sample: {tokenizer.show(response.ids)}  ({logprob})')


def draw_charts(source, subject, settings):
    """Draw bar charts of the first steps of each response, in a new folder with a folder per response."""
    folder = create_run_folder(settings.plot_dir, f'eval-{model_name(settings)}')
    pairs = tqdm(encode_printed_pairs(source, subject, settings), unit=' pairs', leave=False, disable=None)
    sampler = describe_sampler(settings, fixed=True)
    for number, (prompt_ids, response_ids) in enumerate(pairs, 1):
        *_, (response,) = generate_responses(
            subject.model, prompt_ids, settings, 1, response_ids, recorded_steps=settings.plot_steps
        )
        if response.records:
            target = folder / f'pair_{number:02d}'
            make_folder(target)
            save_bar_charts(make_charts(response.records, prompt_ids, subject.tokenizer, sampler), target)
    print(f'charts of the first {settings.plot_steps} steps of each response: {folder}')


if __name__ == '__main__':
    configurator.run(eval, Settings)
