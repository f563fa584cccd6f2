"""Draw text from a model, and see how likely it was; or look for the likeliest text.

    python sample.py                                                  the shipped story model
    python sample.py --init_from=gpt2 --show_probs=True               GPT-2, with charts of what it nearly said
    python sample.py --start='I live in' --fixed_response=' a shoe'   how likely is this?
    python sample.py --beam_width=5 --max_new_tokens=12               beam search
    python sample.py --most_probable=5 --max_new_tokens=6             the five likeliest continuations there are

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
from lm.generate import generate_responses
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

DRAWN_BEAMS, DRAWN_STEPS = 40, 60  # more would not be readable in one picture


@dataclass
class Settings(SamplingSettings):
    """Draw text from a model, and see how likely it was; or look for the likeliest text."""

    html: bool = False  # write one page to explore in a browser, with all steps, instead of show_probs' charts
    beam_width: int | None = None  # search with so many beams instead of drawing; by the model's own probability
    length_penalty: float = 0.0  # beams that end early (stop_at_eot) are ranked by logprob / length ** length_penalty
    show_beams: bool = False  # with beam_width, draw the search as a tree, the first plot_steps steps
    most_probable: int | None = None  # find the k likeliest continuations of max_new_tokens (6, say), with a proof
    budget: str = '60s,1GB'  # what that may take: 10s, 500MB of waiting prefixes, 20000 prefixes opened; or None


def main(settings):
    """Load, draw (or score, or search), print, and draw charts."""
    settings = check_sampling_settings(settings)
    check_sample_settings(settings)
    report_unused_settings(settings)
    budget = read_budget(settings.budget)
    start = read_prompt(settings.start)
    model, tokenizer = load_chosen_model(settings)
    model = optimise_for_inference(model, settings)
    eot = tokenizer.eot if settings.stop_at_eot else None
    if settings.beam_width is not None:
        print_beams(model, tokenizer, settings, start, eot)
    elif settings.most_probable is not None:
        print_most_probable(model, tokenizer, settings, start, eot, budget)
    else:
        print_responses(model, tokenizer, settings, start, eot)


def check_sample_settings(settings):
    """Raise UserError for settings that ask for two things at once, or for nothing."""
    if settings.num_samples < 1:
        raise UserError(f'--num_samples={settings.num_samples}: it is at least 1')
    for name in ('beam_width', 'most_probable'):
        if getattr(settings, name) is None:
            continue
        if getattr(settings, name) < 1 or settings.max_new_tokens < 1:
            wrong = name if getattr(settings, name) < 1 else 'max_new_tokens'
            raise UserError(f'--{wrong}={getattr(settings, wrong)}: it is at least 1')
        others = ('fixed_response', 'show_probs', 'html', 'most_probable')
        for other in others:
            if other != name and getattr(settings, other) not in (None, False):
                raise UserError(f'--{name} and --{other} are two different things to do; give one of them')
    if not abs(settings.length_penalty) <= 10:
        raise UserError(f'--length_penalty={settings.length_penalty}: it is between -10 and 10')
    if settings.show_beams and settings.beam_width is None:
        raise UserError('--show_beams draws what --beam_width=5 (say) has searched; give that too')
    if settings.show_beams and settings.beam_width > DRAWN_BEAMS:
        raise UserError(f'--show_beams can draw at most {DRAWN_BEAMS} beams; --beam_width={settings.beam_width}')
    if settings.show_beams and not 1 <= settings.plot_steps <= DRAWN_STEPS:
        raise UserError(f'--plot_steps={settings.plot_steps}: --show_beams draws 1 to {DRAWN_STEPS} steps')


def report_unused_settings(settings):
    """Say on stderr which settings have no effect beside the others."""
    searching = settings.beam_width is not None or settings.most_probable is not None
    unused = {
        'num_samples': searching and settings.num_samples > 1,
        'length_penalty': settings.length_penalty and (settings.beam_width is None or not settings.stop_at_eot),
        'budget': settings.budget != Settings.budget and settings.most_probable is None,
    }
    for name, is_unused in unused.items():
        if is_unused:
            print(f'note: --{name} has no effect here', file=sys.stderr)


# Drawing or scoring -------------------------------------------------------------------------------------------------


def print_responses(model, tokenizer, settings, start, eot):
    """Draw the samples, or score the fixed response, and print how likely each was."""
    fixed = settings.fixed_response is not None
    if fixed:
        prompt_ids, response_ids = tokenizer.encode_pair(start, settings.fixed_response)
        num_samples, eot = 1, None  # a fixed response is the same each time, and said to its end
    else:
        prompt_ids, response_ids = tokenizer.encode_prompt(start), None
        num_samples = settings.num_samples
    recorded_steps = math.inf if settings.html else settings.plot_steps if settings.show_probs else 0

    growing = generate_responses(model, prompt_ids, settings, num_samples, response_ids, eot, recorded_steps)
    if num_samples == 1:
        print(tokenizer.decode(prompt_ids), end='', flush=True)
        stream = Stream(tokenizer)
        for responses in growing:
            stream.say(responses[0].ids)
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
        save_page(responses, prompt_ids, tokenizer, settings, start, fixed)
    else:
        save_all_charts(responses, prompt_ids, tokenizer, settings, start, fixed)


class Stream:
    """Prints tokens as they come, holding back the bytes of a character until it is whole."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
        self._said = 0

    def say(self, ids):
        """Print what the tokens that have come since the last call make whole."""
        new, self._said = ids[self._said :], len(ids)
        print(self._decoder.decode(self._tokenizer.decode_bytes(new)), end='', flush=True)

    def close(self):
        """End the text."""
        print(self._decoder.decode(b'', final=True))


def print_likelihood(response, settings, fixed):
    """Print how likely a response was, set off from the text."""
    print(f'---------------\n{describe_response(response, settings, fixed)}\n')


def save_all_charts(responses, prompt_ids, tokenizer, settings, start, fixed):
    """Draw the first steps of every response into a folder of this run."""
    folder = create_run_folder(settings.plot_dir, f'{model_name(settings)}-{start}')
    for number, response in enumerate(responses, 1):
        target = folder if len(responses) == 1 else folder / f'sample_{number:02d}'
        target.mkdir(exist_ok=True)
        charts = make_charts(response.records, prompt_ids, tokenizer, describe_sampler(settings, fixed))
        *steps, sheet = save_bar_charts(charts, target, keep_open=True)
        left = len(response.ids) - len(steps)
        more = f' (the first {len(steps)} of {len(response.ids)} steps; --plot_steps draws more)' if left else ''
        print(f'charts of each step in {target}, all of them on {sheet}{more}')
    show_sheets()


def save_page(responses, prompt_ids, tokenizer, settings, start, fixed):
    """Write all responses with all their steps as one page."""
    of_sampler = sampler_if_different(settings, fixed)
    texts = [
        page.PageText(
            label='the fixed response' if fixed else f'sample {number}',
            prompt=tokenizer.decode(prompt_ids),
            sides=[page.make_side(response.records, tokenizer)],
        )
        for number, response in enumerate(responses, 1)
    ]
    about = [
        f'Model probabilities are softmax of the raw logits: {describe_model_probability(settings)}.',
        *([f'Sampler probabilities are those that it was drawn with: {of_sampler}.'] if of_sampler else []),
    ]
    name = model_name(settings)
    whole = page.Page(f'What {name} nearly said', about, [name], of_sampler, texts)
    path = create_run_folder(settings.plot_dir, f'{name}-{start}') / 'page.html'
    page.write_page(whole, path)
    print(f'all steps on one page: {path} (open it in a browser)')


def sampler_if_different(settings, fixed):
    """Return what the sampler is called, None if its probabilities are the model's own."""
    cut = not fixed and (settings.top_k is not None or settings.top_p is not None)
    return describe_sampler(settings, fixed) if cut or settings.temperature != 1 else None


# Looking ahead ------------------------------------------------------------------------------------------------------


def print_beams(model, tokenizer, settings, start, eot):
    """Search with beams, print the best of them, and draw the search if that was asked for."""
    prompt_ids = tokenizer.encode_prompt(start)
    idx = torch.tensor([prompt_ids], device=model.device)
    n, width = settings.max_new_tokens, settings.beam_width
    steps = search.beam_steps(model, idx, n, width, settings.length_penalty, eot)
    steps = list(tqdm(steps, total=n, unit='step', leave=False, disable=None))
    _, finished = steps[-1]
    print(f'{tokenizer.decode(prompt_ids)}\nthe best of {width} beams; {describe_model_probability(settings)}')
    for number, beam in enumerate(finished, 1):
        print_continuation(number, beam.ids, beam.logprob, tokenizer)
    if settings.show_beams:
        folder = create_run_folder(settings.plot_dir, f'{model_name(settings)}-beams-{start}')
        levels = branches(steps[: settings.plot_steps], finished, tokenizer)
        title = f'{tokenizer.decode(prompt_ids)} ▁  {width} beams, {model_name(settings)}, '
        title += describe_model_probability(settings)
        draw_beams(folder / 'beams.png', levels, title)
        more = f' (the first {settings.plot_steps} steps; --plot_steps draws more)' if len(steps) > len(levels) else ''
        print(f'the search as a tree: {folder / "beams.png"}{more}')


def branches(steps, finished, tokenizer):
    """Return what `draw_beams` draws: a list of Branch for each step."""
    levels, before = [], [search.Beam((), 0.0, 0)]
    for size, (beams, ended) in enumerate(steps, 1):
        level = [*beams, *(beam for beam in ended if len(beam.ids) == size)]
        levels.append(
            [
                Branch(
                    piece=tokenizer.pieces(beam.ids[-1:])[0],
                    parent=beam.parent,
                    prob=math.exp(beam.logprob - before[beam.parent].logprob),
                    total=beam.logprob,
                    best=finished[0].ids[:size] == beam.ids,
                    kept=any(other.ids[:size] == beam.ids for other in finished),
                )
                for beam in level
            ]
        )
        before = beams
    return levels


def print_most_probable(model, tokenizer, settings, start, eot, budget):
    """Search for the likeliest continuations, print them, and what is proved of all others."""
    prompt_ids = tokenizer.encode_prompt(start)
    idx = torch.tensor([prompt_ids], device=model.device)
    k, n = settings.most_probable, settings.max_new_tokens
    started, found, why = time.perf_counter(), None, ''
    with tqdm(unit=' prefixes', leave=False, disable=None) as progress:
        try:
            for found in search.search_steps(model, idx, n, k, eot):
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
    many = f'the {len(found.logprobs)} most probable continuations'
    if not found.exact:
        many = 'the likeliest so far (not proved)'
    print(f'{tokenizer.decode(prompt_ids)}\n{many}; {describe_model_probability(settings)}')
    for number, (sequence, logprob) in enumerate(zip(found.sequences.tolist(), found.logprobs.tolist()), 1):
        ids = sequence[len(prompt_ids) :]
        ids = ids[: ids.index(eot) + 1] if eot in ids else ids
        print_continuation(number, ids, logprob, tokenizer)
    opened = f'{found.opened:,} {"prefix" if found.opened == 1 else "prefixes"} opened in {seconds:.1f} s'
    computed = precision_note(settings.dtype, settings.quantize)  # in what, unless it is float32
    rounding = f' (up to rounding{computed})' if computed else ''
    if found.bound == -math.inf:
        nothing = 'there are no others'
    else:
        nothing = f'nothing unseen can exceed p = {format_probability(found.bound)} (logprob {found.bound:.4f})'
    if found.exact:
        print(f'exact{rounding}: {opened}; {nothing}')
    else:
        print(f'not proved: {opened}, {found.waiting:,} wait; {why}\n{nothing}{rounding}')


def print_continuation(number, ids, logprob, tokenizer):
    """Print a continuation that was found and how likely it is."""
    print(f'{number:3}  {"".join(tokenizer.pieces(ids))}\n     {format_likelihood(logprob, len(ids))}')


def read_budget(text):
    """Return the Budget that --budget means."""
    limits = {}
    for part in [] if text.lower() == 'none' else text.split(','):
        found = re.fullmatch(r'(\d+(?:\.\d+)?)(|s|MB|GB)', part.strip())
        if not found:
            allowed = 'seconds (60s), memory (500MB, 2GB), prefixes (20000), several with commas, or None'
            raise UserError(f'--budget={text}: {part.strip()!r} is not among {allowed}')
        name = {'': 'prefixes', 's': 'seconds', 'MB': 'mebibytes', 'GB': 'mebibytes'}[found[2]]
        if name in limits:
            raise UserError(f'--budget={text} says twice how many {name}')
        limits[name] = float(found[1]) * (1024 if found[2] == 'GB' else 1)
    return search.Budget(**limits)


if __name__ == '__main__':
    configurator.run(main, Settings)
