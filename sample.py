"""Generate text and see how likely it was, or search for the most likely text.

    python sample.py                                                  the story model that comes with the project
    python sample.py --init_from=gpt2 --show_probs=True               GPT-2, with charts of the alternatives
    python sample.py --start='I live in' --fixed_response=' a shoe'   how likely is this response?
    python sample.py --beam_width=5 --max_new_tokens=12               beam search
    python sample.py --most_probable=5 --max_new_tokens=6             the five most probable continuations, proved

`python sample.py --help` lists every setting.
"""

import codecs
import math
import re
import sys
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

import configurator
from common.errors import UserError
from common.files import create_run_folder
from lm import search
from lm.responses import generate_responses
from lm.settings import (
    SamplingSettings,
    check_sampling_settings,
    load_chosen_model,
    model_name,
    optimise_for_inference,
    read_prompt,
)
from lm.wording import (
    describe_model_probability,
    describe_response,
    describe_sampler,
    format_likelihood,
    format_probability,
    precision_note,
)
from pictures import page
from pictures.bars import make_charts, save_bar_charts, show_sheets
from pictures.beams import Branch, draw_beams

MAX_DRAWN_BEAMS, MAX_DRAWN_STEPS = 40, 60  # more would be unreadable in one picture


@dataclass
class Settings(SamplingSettings):
    """Generate text and see how likely it was, or search for the most likely text."""

    html: bool = False  # write one page with every step, to explore in a browser, instead of show_probs' charts
    beam_width: int | None = None  # search with this many beams instead of sampling; ranks by model probability
    length_penalty: float = 0.0  # with stop_at_eot, rank finished beams by logprob / length ** length_penalty
    show_beams: bool = False  # draw the first plot_steps steps of the beam search as a tree
    most_probable: int | None = None  # find the k most probable continuations of max_new_tokens (say 6), and prove it
    budget: str = '60s,1GB'  # limits for most_probable: seconds, memory (500MB), prefixes (20000), or None


def main(settings):
    """Load the model, then sample, score or search, and print the result."""
    settings = check_sampling_settings(settings)
    check_sample_settings(settings)
    report_unused_settings(settings)
    budget = parse_budget(settings.budget)
    prompt = read_prompt(settings.start)
    model, tokenizer = load_chosen_model(settings)
    model = optimise_for_inference(model, settings)
    eot = tokenizer.eot if settings.stop_at_eot else None
    if settings.beam_width is not None:
        print_beams(model, tokenizer, settings, prompt, eot)
    elif settings.most_probable is not None:
        print_most_probable(model, tokenizer, settings, prompt, eot, budget)
    else:
        print_responses(model, tokenizer, settings, prompt, eot)


# Settings -----------------------------------------------------------------------------------------------------------


def check_sample_settings(settings):
    """Raise UserError for invalid values, and for settings that cannot be combined."""
    if settings.num_samples < 1:
        raise UserError(f'--num_samples={settings.num_samples}: it must be at least 1')
    for name in ('beam_width', 'most_probable'):
        if getattr(settings, name) is None:
            continue
        for positive in (name, 'max_new_tokens'):
            if getattr(settings, positive) < 1:
                raise UserError(f'--{positive}={getattr(settings, positive)}: it must be at least 1')
        for other in ('fixed_response', 'show_probs', 'html', 'most_probable'):
            if other != name and getattr(settings, other) not in (None, False):
                raise UserError(f'--{name} and --{other} cannot be combined')
    if not abs(settings.length_penalty) <= 10:
        raise UserError(f'--length_penalty={settings.length_penalty}: it must be between -10 and 10')
    if settings.show_beams and settings.beam_width is None:
        raise UserError('--show_beams draws a beam search: add --beam_width=5, for example')
    if settings.show_beams and settings.beam_width > MAX_DRAWN_BEAMS:
        raise UserError(f'--beam_width={settings.beam_width}: --show_beams draws at most {MAX_DRAWN_BEAMS} beams')
    if settings.show_beams and not 1 <= settings.plot_steps <= MAX_DRAWN_STEPS:
        raise UserError(f'--plot_steps={settings.plot_steps}: --show_beams draws 1 to {MAX_DRAWN_STEPS} steps')


def report_unused_settings(settings):
    """Name on stderr the settings that have no effect in combination with the others."""
    searches = settings.beam_width is not None or settings.most_probable is not None
    unused = {
        'num_samples': searches and settings.num_samples > 1,
        'length_penalty': settings.length_penalty and (settings.beam_width is None or not settings.stop_at_eot),
        'budget': settings.budget != Settings.budget and settings.most_probable is None,
    }
    for name, is_unused in unused.items():
        if is_unused:
            print(f'note: --{name} has no effect here', file=sys.stderr)


def parse_budget(text):
    """Return the search.Budget that --budget describes. Raises UserError if it is not one."""
    units = {'': ('prefixes', 1), 's': ('seconds', 1), 'MB': ('mebibytes', 1), 'GB': ('mebibytes', 1024)}
    limits = {}
    for part in [] if text.lower() == 'none' else text.split(','):
        match = re.fullmatch(r'(\d+(?:\.\d+)?)(|s|MB|GB)', part.strip())
        if not match:
            allowed = 'seconds (60s), memory (500MB, 2GB), prefixes (20000), several with commas, or None'
            raise UserError(f'--budget={text}: {part.strip()!r} is not a limit; give {allowed}')
        name, factor = units[match[2]]
        if name in limits:
            raise UserError(f'--budget={text} limits {name} twice')
        limits[name] = float(match[1]) * factor
    return search.Budget(**limits)


# Sampling or scoring ------------------------------------------------------------------------------------------------


def print_responses(model, tokenizer, settings, prompt, eot):
    """Generate the samples, or score the fixed response; print how likely each is, and draw it if asked to."""
    fixed = settings.fixed_response is not None
    if fixed:
        prompt_ids, response_ids = tokenizer.encode_pair(prompt, settings.fixed_response)
        num_samples, eot = 1, None  # a fixed response is the same every time, and is scored to its end
    else:
        prompt_ids, response_ids = tokenizer.encode_prompt(prompt), None
        num_samples = settings.num_samples
    recorded_steps = math.inf if settings.html else settings.plot_steps if settings.show_probs else 0

    growing = generate_responses(model, prompt_ids, settings, num_samples, response_ids, eot, recorded_steps)
    if num_samples == 1:
        print(tokenizer.decode(prompt_ids), end='', flush=True)
        stream = TokenStream(tokenizer)
        for responses in growing:
            stream.print_new(responses[0].ids)
        stream.close()
        print_likelihood(responses[0], settings, fixed)
    else:
        *_, responses = tqdm(growing, total=settings.max_new_tokens + 1, unit='step', leave=False, disable=None)
        for number, response in enumerate(responses, 1):
            print(f'sample {number} of {num_samples}\n{tokenizer.decode(prompt_ids + response.ids)}')
            print_likelihood(response, settings, fixed)

    if not any(response.records for response in responses):
        if recorded_steps:
            print('there are no steps to draw', file=sys.stderr)
    elif settings.html:
        save_response_page(responses, prompt_ids, tokenizer, settings, prompt, fixed)
    else:
        save_response_charts(responses, prompt_ids, tokenizer, settings, prompt, fixed)


class TokenStream:
    """Prints tokens as they are generated, holding back the bytes of a character until it is complete."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
        self._n_printed = 0  # tokens

    def print_new(self, ids):
        """Print the tokens that were added to ids since the last call."""
        new, self._n_printed = ids[self._n_printed :], len(ids)
        print(self._decoder.decode(self._tokenizer.decode_bytes(new)), end='', flush=True)

    def close(self):
        """Print what was held back, and end the line."""
        print(self._decoder.decode(b'', final=True))


def print_likelihood(response, settings, fixed):
    """Print how likely a response is, below a line that separates it from the text."""
    print(f'---------------\n{describe_response(response, settings, fixed)}\n')


def save_response_charts(responses, prompt_ids, tokenizer, settings, prompt, fixed):
    """Draw the first steps of every response, in a new folder."""
    folder = create_run_folder(settings.plot_dir, f'{model_name(settings)}-{prompt}')
    for number, response in enumerate(responses, 1):
        target = folder if len(responses) == 1 else folder / f'sample_{number:02d}'
        target.mkdir(exist_ok=True)
        charts = make_charts(response.records, prompt_ids, tokenizer, describe_sampler(settings, fixed))
        *steps, sheet = save_bar_charts(charts, target, keep_open=True)
        all_drawn = len(steps) == len(response.ids)
        more = '' if all_drawn else f' (the first {len(steps)} of {len(response.ids)} steps; --plot_steps draws more)'
        print(f'a chart of each step in {target}, all of them in {sheet}{more}')
    show_sheets()


def save_response_page(responses, prompt_ids, tokenizer, settings, prompt, fixed):
    """Write all steps of all responses to one page, in a new folder."""
    sampler = describe_sampler_if_different(settings, fixed)
    texts = [
        page.PageText(
            label='the fixed response' if fixed else f'sample {number}',
            prompt=tokenizer.decode(prompt_ids),
            sides=[page.make_side(response.records, tokenizer)],
        )
        for number, response in enumerate(responses, 1)
    ]
    about = [f'Model probabilities are the softmax of the raw logits: {describe_model_probability(settings)}.']
    if sampler:
        about.append(f'Sampler probabilities are those that the tokens were drawn with: {sampler}.')
    name = model_name(settings)
    path = create_run_folder(settings.plot_dir, f'{name}-{prompt}') / 'page.html'
    page.write_page(page.Page(f'What {name} nearly said', about, [name], sampler, texts), path)
    print(f'all steps on one page: {path} (open it in a browser)')


def describe_sampler_if_different(settings, fixed):
    """Return the description of the sampler, None if its probabilities are the model's."""
    cuts = not fixed and (settings.top_k is not None or settings.top_p is not None)
    return describe_sampler(settings, fixed) if cuts or settings.temperature != 1 else None


# Searching ----------------------------------------------------------------------------------------------------------


def print_beams(model, tokenizer, settings, prompt, eot):
    """Run a beam search, print its result, and draw it if asked to."""
    prompt_ids = tokenizer.encode_prompt(prompt)
    idx = torch.tensor([prompt_ids], device=model.device)
    n, width = settings.max_new_tokens, settings.beam_width
    steps = search.beam_steps(model, idx, n, width, settings.length_penalty, eot)
    steps = list(tqdm(steps, total=n, unit='step', leave=False, disable=None))
    _, finished = steps[-1]
    print(f'{tokenizer.decode(prompt_ids)}\nthe best of {width} beams; {describe_model_probability(settings)}')
    for number, beam in enumerate(finished, 1):
        print_continuation(number, beam.ids, beam.logprob, tokenizer)
    if settings.show_beams:
        path = create_run_folder(settings.plot_dir, f'{model_name(settings)}-beams-{prompt}') / 'beams.png'
        levels = make_search_tree(steps[: settings.plot_steps], finished, tokenizer)
        title = f'{tokenizer.decode(prompt_ids)} ▁  {width} beams, {model_name(settings)}, '
        draw_beams(path, levels, title + describe_model_probability(settings))
        more = f' (the first {settings.plot_steps} steps; --plot_steps draws more)' if len(steps) > len(levels) else ''
        print(f'the search as a tree: {path}{more}')


def make_search_tree(steps, finished, tokenizer):
    """Return what `draw_beams` takes: for each step, a list of Branches."""
    levels, previous = [], [search.Beam((), 0.0, 0)]
    for length, (beams, ended) in enumerate(steps, 1):
        branches = [
            Branch(
                piece=tokenizer.pieces(beam.ids[-1:])[0],
                parent=beam.parent,
                prob=math.exp(beam.logprob - previous[beam.parent].logprob),
                total=beam.logprob,
                best=finished[0].ids[:length] == beam.ids,
                kept=any(other.ids[:length] == beam.ids for other in finished),
            )
            for beam in [*beams, *(beam for beam in ended if len(beam.ids) == length)]
        ]
        levels.append(branches)
        previous = beams
    return levels


def print_most_probable(model, tokenizer, settings, prompt, eot, budget):
    """Search for the most probable continuations; print them, and the bound for all others."""
    prompt_ids = tokenizer.encode_prompt(prompt)
    idx = torch.tensor([prompt_ids], device=model.device)
    started, found, why = time.perf_counter(), None, ''
    with tqdm(unit=' prefixes', leave=False, disable=None) as progress:
        try:
            for found in search.search_steps(model, idx, settings.max_new_tokens, settings.most_probable, eot):
                progress.set_postfix_str(f'bound {math.exp(found.bound):.3g}, {found.waiting:,} waiting')
                progress.update(found.opened - progress.n)
                if not found.exact and budget.is_spent(found, time.perf_counter() - started):
                    why = f'the budget ({settings.budget}) is spent; fewer --max_new_tokens need less'
                    break
        except KeyboardInterrupt:
            if found is None:
                raise
            why = 'interrupted'
    seconds = time.perf_counter() - started
    n_found = len(found.logprobs)
    title = f'the {n_found} most probable continuations' if found.exact else 'the most probable so far (not proved)'
    print(f'{tokenizer.decode(prompt_ids)}\n{title}; {describe_model_probability(settings)}')
    for number, (sequence, logprob) in enumerate(zip(found.sequences.tolist(), found.logprobs.tolist()), 1):
        ids = sequence[len(prompt_ids) :]
        ids = ids[: ids.index(eot) + 1] if eot in ids else ids
        print_continuation(number, ids, logprob, tokenizer)
    print_proof(found, seconds, why, precision_note(settings.dtype, settings.quantize))


def print_proof(found, seconds, why, precision):
    """Print what an exact search proved: that all other continuations are below a bound.

    found: a search.Found. why: the reason why the search stopped before the proof. precision: '' for float32.
    """
    rounding = f' (up to rounding{precision})' if precision else ''
    opened = f'{found.opened:,} {"prefix" if found.opened == 1 else "prefixes"} opened in {seconds:.1f} s'
    if found.bound == -math.inf:
        bound = 'there are no others'
    else:
        bound = f'nothing unseen can exceed p = {format_probability(found.bound)} (logprob {found.bound:.4f})'
    if found.exact:
        print(f'exact{rounding}: {opened}; {bound}')
    else:
        print(f'not proved: {opened}, {found.waiting:,} waiting; {why}\n{bound}{rounding}')


def print_continuation(number, ids, logprob, tokenizer):
    """Print one continuation that a search found, and how likely it is."""
    print(f'{number:3}  {"".join(tokenizer.pieces(ids))}\n     {format_likelihood(logprob, len(ids))}')


if __name__ == '__main__':
    configurator.run(main, Settings)
