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
from itertools import accumulate, groupby, islice
from typing import NamedTuple

from tqdm import tqdm

import configurator
import page
import report
from checkpoint import weights_sha256
from common import UserError
from hardware import peak_memory_mib
from looks import charts, looks_at_response, page_side
from measures import Results
from model import GPT
from pairs import Pair, PairSource, TextSource, refuse, tell
from plots import new_folder, save_charts
from processes import Processes
from sampling import SamplingSettings, checked, load_model, name_of, quickened, read_start, respond, sampler_name
from scoring import WINDOW, score_window
from store import Store, folder_of
from tokenizer import Tokenizer

PAGE_TOKENS = 500  # of a response that page.html shows


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


class Subject(NamedTuple):
    """A model that is asked."""

    name: str
    model: GPT
    tokenizer: Tokenizer


def eval(settings=None):
    """Score everything, print it, keep it if asked to, and return (rows, summary).

    rows: the first `show` of them, dicts as in pairs.jsonl. summary: what is in summary.json; see `measures.Results`.
    """
    asked = settings or Settings()
    settings = check(asked)
    processes = Processes(settings.device)
    settings = replace(settings, device=processes.device)
    source = None if settings.text else pair_source(settings)  # what is wrong with it is told before a model is loaded
    subjects = [
        Subject(name_of(named), *load_model(named))
        for named in (replace(settings, init_from=name) for name in (settings.init_from, settings.compare_to))
        if named.init_from is not None
    ]
    if source is None:
        block_sizes = [subject.model.config.block_size for subject in subjects]
        source = TextSource(settings.text, [subject.tokenizer for subject in subjects], block_sizes, settings.stride)
        settings = replace(settings, stride=source.stride)
    header = {'command': command_of(asked), **describe_run(settings, source, subjects, processes)}
    subjects = [subject._replace(model=quickened(subject.model, settings)) for subject in subjects]
    with ExitStack() as stack:
        store = None
        if settings.save and processes.first:
            store = stack.enter_context(Store(folder_of(settings), header, settings.resume_eval))
        results, run = score_all(source, subjects, settings, processes, store)
        if not processes.first:
            return [], {}
        summary = {'complete': True, **header, **results.summary(settings.resamples, settings.seed), 'run': run}
        summary['data']['left_out'] = source.count + source.bad - results.count
        run['peak_memory_mib'].append([results.count, peak_memory_mib()])  # with what the intervals took
        if store is not None:  # before anything is printed, for whoever reads that may have read enough
            report.write_page(store.folder, results, summary)
            save_page(store.folder / 'page.html', source, subjects, settings, results, summary)
            store.finish(summary)
    report.print_all(results.shown, summary)
    if settings.num_samples > 0:
        print_samples(source, subjects[0], settings)
    if settings.show_probs and settings.plot_steps > 0:
        draw_charts(source, subjects[0], settings)
    if store is not None:
        print(f'{store.folder}/report.md tells it all, page.html token by token (open it in a browser); ', end='')
        print('pairs.jsonl and summary.json have every number')
    return results.shown, summary


def check(settings):
    """Return the settings with the model decided on; raise UserError for values that cannot be meant."""
    settings = checked(settings)
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
    return PairSource(given=[Pair(0, None, read_start(settings.start), settings.fixed_response, [])])


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
        'sampler': sampler_name(settings, fixed=True),
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
        'device': subjects[0].model.transformer.wte.weight.device.type,
        'processes': processes.count,
        'versions': report.versions(),
    }


# From pairs to rows -------------------------------------------------------------------------------------------------


def score_all(source, subjects, settings, processes, store):
    """Score window by window; return the Results and how the run went.

    A window is of fixed places in the source, so that an evaluation that is taken up again batches as it did before,
    and gives the same numbers to the last bit.
    """
    tokenizers = [subject.tokenizer for subject in subjects]
    same_tokens = len({tokenizer.fingerprint for tokenizer in tokenizers}) == 1
    results = Results(same_tokens, settings.temperature, settings.show, text=settings.text is not None)
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
            rows = rows_of(processes.share(window), source, subjects, settings, same_tokens)
        except UserError as error:
            rows = error  # the first process tells of it
        rows = processes.gather(rows)
        for row in rows:
            if 'left_out' in row:
                tell(row['left_out'])
        rows = [row for row in rows if 'left_out' not in row]
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
    return results, run


def rows_of(units, source, subjects, settings, same_tokens):
    """Return a row for each (index, unit): its values under the first model, those under the second as `before`.

    Of what cannot be encoded and may be skipped the row says why it is `left_out`.
    """
    tokenizers = [subject.tokenizer for subject in subjects]
    encoded, rows = [], []
    for index, unit in units:
        try:
            encoded.append((index, source.encode(unit, tokenizers, settings.boundary, settings.separator)))
        except UserError as error:
            if not settings.skip_bad:
                refuse(error)
            rows.append({'left_out': str(error)})
    sides = []
    for number, (_, model, tokenizer) in enumerate(subjects):
        pairs = [item.pairs[number] for _, item in encoded]
        scores = iter(score_window(model, [pair for choices in pairs for pair in choices], settings.temperature))
        sides.append(
            [side_of(choices, list(islice(scores, len(choices))), tokenizer, settings.temperature) for choices in pairs]
        )
    for (index, item), after, *before in zip(encoded, *sides, strict=True):
        row = {'index': index, **item.row, **after}
        if before:
            row['before'] = before[0]
            row['log_ratio'] = log_ratio(after, before[0], per='response' if same_tokens else 'byte')
        rows.append(row)
    return rows


def log_ratio(after, before, per):
    """Return the difference of two sides' logprobs; per byte where their tokens differ."""
    if per == 'response':
        return after['logprob'] - before['logprob']
    return after['logprob'] / max(1, after['bytes']) - before['logprob'] / max(1, before['bytes'])


def side_of(choices, scores, tokenizer, temperature):
    """Return what one model says about a response (the first of the choices), in plain types."""
    sums = [math.fsum(score.logprobs.tolist()) for score in scores]
    (_, ids), score, logprob = choices[0], scores[0], sums[0]
    ranks = score.ranks.tolist()
    side = {
        'pieces': tokenizer.pieces(ids),
        'tokens': len(ids),
        'bytes': len(tokenizer.decode_bytes([id for id in ids if id != tokenizer.eot])),  # <|endoftext|> is no text
        'logprob': logprob,
        'prob': math.exp(logprob),
        'prob_per_token': math.exp(logprob / len(ids)) if ids else None,
        'perplexity': math.exp(min(-logprob / len(ids), 709)) if ids else None,
        'greedy': all(rank == 1 for rank in ranks),
        'token_logprobs': score.logprobs.tolist(),
        'token_ranks': ranks,
        'token_top_logprobs': score.top_logprobs.tolist(),
    }
    if temperature != 1:
        sampler = math.fsum(score.sampler_logprobs.tolist())
        side['sampler_logprob'] = sampler if sampler > -math.inf else None  # JSON has no infinity
        side['sampler_prob'] = math.exp(sampler)
        side['token_sampler_logprobs'] = [
            logprob if logprob > -math.inf else None for logprob in score.sampler_logprobs.tolist()
        ]
    if len(choices) > 1:
        # The space before a choice says nothing about its length: lm-evaluation-harness does not count it either.
        sizes = [len(tokenizer.decode_bytes(ids).lstrip()) for _, ids in choices]
        per_byte = [total / max(1, size) for total, size in zip(sums, sizes)]
        side['choices'] = [
            {'text': tokenizer.decode(ids), 'bytes': size, 'logprob': total}
            for (_, ids), size, total in zip(choices, sizes, sums)
        ]
        # Right only if it is likelier than every other: who finds all alike has not found the right one.
        side['right'] = sums[0] > max(sums[1:])
        side['right_per_byte'] = per_byte[0] > max(per_byte[1:])
    return side


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


def save_page(path, source, subjects, settings, results, summary):
    """Write the rows that the report shows as one page, with what each model nearly said at every token."""
    rows = report.rows_of_page(results, summary)
    left = {row['index']: row for row in rows}
    tokenizers = [subject.tokenizer for subject in subjects]
    has_sampler = settings.temperature != 1
    texts, units = [], source.units()
    for index, unit in tqdm(units, unit=f' {results.unit}s looked at', leave=False, disable=None):
        if index not in left:
            continue
        row = left.pop(index)
        pairs = [choices[0] for choices in source.encode(unit, tokenizers, settings.boundary, settings.separator).pairs]
        sizes = shown_sizes([response for _, response in pairs], tokenizers)
        sides = []
        for subject, (prompt, response), size, side in zip(subjects, pairs, sizes, (row, row.get('before'))):
            looks = looks_at_response(subject.model, prompt, response[:size], settings.temperature)
            for place, look in enumerate(looks):
                # What pairs.jsonl has: it was computed in other batches, which round otherwise.
                look.logprobs[look.chosen], look.rank = side['token_logprobs'][place], side['token_ranks'][place]
                if has_sampler:
                    of_sampler = side['token_sampler_logprobs'][place]
                    look.sampler_logprobs[look.chosen] = -math.inf if of_sampler is None else of_sampler
            sides.append(page_side(looks, subject.tokenizer, has_sampler))
        label = str(row.get('id', f'{results.unit} {index}'))
        if any(size < len(response) for size, (_, response) in zip(sizes, pairs)):
            label += f' (its first {sizes[0]} tokens of {row["tokens"]:,})'
        texts.append(page.Text(label, tokenizers[0].decode(pairs[0][0]), sides))
        if not left:
            break
    which = f'Shown: {report.which_text(rows, summary)}.'
    page.write(
        page.Page(
            title=report.page_title(summary),
            about=[*report.answer(summary), report.how_measured(summary), which, summary['command']],
            models=[subject.name for subject in subjects],
            sampler=summary['sampler'] if has_sampler else None,
            texts=texts,
        ),
        path,
    )


def shown_sizes(responses, tokenizers):
    """Return how many tokens of a response, as each tokenizer cuts it, a page shows: at most PAGE_TOKENS.

    Where one of them has more, all are cut off where the text of its first PAGE_TOKENS ends.
    """
    ends = [
        list(accumulate(len(tokenizer.decode_bytes([id])) for id in response))  # in bytes, of each token
        for response, tokenizer in zip(responses, tokenizers)
    ]
    limit = min((end[PAGE_TOKENS - 1] for end in ends if len(end) > PAGE_TOKENS), default=math.inf)
    return [sum(place <= limit for place in end) for end in ends]


def print_samples(source, subject, settings):
    """Print what the model itself says to each prompt, beside the response that was scored."""
    _, model, tokenizer = subject
    eot = tokenizer.eot if settings.stop_at_eot else None
    for prompt_ids, response_ids in shown_items(source, subject, settings):
        print(f'\n{tokenizer.decode(prompt_ids)}\n  fixed: {"".join(tokenizer.pieces(response_ids))}')
        *_, responses = respond(model, prompt_ids, settings, settings.num_samples, None, eot)
        for response in responses:
            logprob = f'logprob {math.fsum(response.logprobs):.4f} under the sampler: {sampler_name(settings, False)}'
            print(f'  drawn: {"".join(tokenizer.pieces(response.ids))}  ({logprob})')


def draw_charts(source, subject, settings):
    """Draw the steps of each response into a folder of its own."""
    folder = new_folder(settings.plot_dir, f'eval-{name_of(settings)}')
    items = tqdm(shown_items(source, subject, settings), unit=' pairs', leave=False, disable=None)
    for number, (prompt_ids, response_ids) in enumerate(items, 1):
        *_, (response,) = respond(subject.model, prompt_ids, settings, 1, response_ids, looks=settings.plot_steps)
        if response.looks:
            target = folder / f'pair_{number:02d}'
            target.mkdir()
            name = sampler_name(settings, fixed=True)
            save_charts(charts(response.looks, response_ids, prompt_ids, subject.tokenizer, name), target)
    print(f'charts of the first {settings.plot_steps} steps of each response in {folder}')


if __name__ == '__main__':
    configurator.run(eval, Settings)
