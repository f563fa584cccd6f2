"""Generate text and see how likely it was, or search for the most likely text.

    python sample.py                                                  the story model that comes with the project
    python sample.py --init_from=gpt2 --show_probs=True               GPT-2, with charts of the alternatives
    python sample.py --start='I live in' --fixed_response='a shoe'    how likely is this response?
    python sample.py --beam_width=5 --max_new_tokens=12               beam search
    python sample.py --most_probable=5 --max_new_tokens=6             the five most probable continuations, with a proof

`python sample.py --help` lists every setting.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import codecs
import math
import sys
from dataclasses import dataclass

from tqdm import tqdm

import configurator
from common.errors import UserError
from common.files import create_run_folder, make_folder
from common.notes import note
from common.strings import show_invisible
from lm.responses import generate_responses
from lm.settings import (
    SEARCHES,
    SamplingSettings,
    check_sampling_settings,
    check_search_settings,
    chosen_search,
    end_tokens,
    join_fixed_response,
    load_chosen_model,
    model_name,
    optimise_for_inference,
    parse_budget,
    read_prompt,
)
from lm.tuning import MANY_ROWS
from lm.wording import (
    describe_model_probability,
    describe_response,
    describe_sampler,
    describe_truncation,
    differs_from_model,
)
from pictures import page
from pictures.bars import make_charts, save_bar_charts, show_sheets
from pictures.search_results import print_search, print_text_probability


@dataclass
class Settings(SamplingSettings):
    """Generate text and see how likely it was, or search for the most likely text."""


def main(settings):
    """Load the model, then sample, score or search, and print the result."""
    settings = check_sampling_settings(settings)
    check_sample_settings(settings)
    report_unused_settings(settings)
    budget = parse_budget(settings.budget)
    prompt = read_prompt(settings.start)
    model, tokenizer = load_chosen_model(settings, to_pack=not settings.compile)
    searches = chosen_search(settings) is not None or settings.whole_text is not None
    model = optimise_for_inference(model, settings, rows=MANY_ROWS if searches else settings.num_samples)
    eot = end_tokens(tokenizer, settings)
    if (name := chosen_search(settings)) is None:
        print_responses(model, tokenizer, settings, prompt, eot, budget)
        return
    prompt_ids = tokenizer.encode_prompt(prompt)
    note_truncation(prompt_ids, model)
    print_search(name, model, tokenizer, settings, prompt_ids, eot, budget)


# Settings -----------------------------------------------------------------------------------------------------------


def check_sample_settings(settings):
    """Raise UserError for invalid values, and for settings that cannot be combined."""
    if settings.num_samples < 1:
        raise UserError(f'--num_samples={settings.num_samples}: it must be at least 1')
    if (search := chosen_search(settings)) is not None:
        for other in ('fixed_response', 'show_probs', 'html', *SEARCHES):
            if other != search and getattr(settings, other) not in (None, False):
                raise UserError(f'--{search} and --{other} cannot be combined')
    if settings.show_beams and settings.beam_width is None:
        raise UserError('--show_beams draws a beam search: add --beam_width=5, for example')
    check_search_settings(settings)


def report_unused_settings(settings):
    """Print a note on stderr for each setting that has no effect together with the others."""
    budgeted = (settings.most_probable, settings.next_words, settings.whole_text)
    searches = chosen_search(settings) is not None
    applies = [] if searches else settings.sampler(fixed=settings.fixed_response is not None)
    changed = [name for name, value in settings.sampler().items() if value != getattr(Settings, name)]
    unused = {
        **{name: name not in applies for name in changed},
        'num_samples': searches and settings.num_samples > 1,
        'length_penalty': settings.length_penalty and (settings.beam_width is None or not settings.stops),
        'budget': settings.budget != Settings.budget and not any(budgeted),
        'whole_text': settings.whole_text is not None and settings.fixed_response is None,
    }
    for name, is_unused in unused.items():
        if is_unused:
            print(f'note: --{name} has no effect here', file=sys.stderr)


# Sampling or scoring ------------------------------------------------------------------------------------------------


def print_responses(model, tokenizer, settings, prompt, eot, budget):
    """Generate the samples, or score the fixed response; print how likely each is; save charts or a page if asked."""
    fixed = settings.fixed_response is not None
    if fixed:
        pair = tokenizer.split_pair(prompt, join_fixed_response(prompt, settings))
        prompt_ids, response_ids = pair.prompt_ids, pair.response_ids
        if pair.note:
            note(pair.note)
        num_samples, eot = 1, None  # a fixed response is the same every time, and is scored to its end
    else:
        prompt_ids, response_ids = tokenizer.encode_prompt(prompt), None
        num_samples = settings.num_samples
    note_truncation(prompt_ids, model)
    recorded_steps = 0
    if settings.html:
        recorded_steps = math.inf
    elif settings.show_probs:
        recorded_steps = settings.plot_steps

    snapshots = generate_responses(model, prompt_ids, settings, num_samples, response_ids, eot, recorded_steps)
    if num_samples == 1:
        print(show_invisible(tokenizer.decode(prompt_ids)), end='', flush=True)
        stream = TokenStream(tokenizer, prompt_ids)
        for responses in snapshots:
            stream.print_new(responses[0].ids)
        stream.close()
        print_likelihood(responses[0], settings, fixed)
        if fixed and settings.whole_text:
            print_text_probability(model, tokenizer, settings, prompt_ids, response_ids, budget)
    else:
        *_, responses = tqdm(snapshots, total=settings.max_new_tokens + 1, unit='step', leave=False, disable=None)
        for number, response in enumerate(responses, 1):
            text = show_invisible(tokenizer.decode(prompt_ids + response.ids))
            print(f'sample {number} of {num_samples}\n{text}')
            print_likelihood(response, settings, fixed)

    if not any(response.records for response in responses):
        if recorded_steps:
            print('there are no steps to draw', file=sys.stderr)
    elif settings.html:
        save_response_page(responses, prompt_ids, tokenizer, settings, prompt, fixed, model.block_size)
    else:
        save_response_charts(responses, prompt_ids, tokenizer, settings, prompt, fixed)


def note_truncation(prompt_ids, model):
    """Say on stderr that a prompt is longer than the model's context."""
    if truncation := describe_truncation(prompt_ids, model.block_size):
        note(truncation)


class TokenStream:
    """Prints tokens as they are generated, holding back the bytes of a character until it is complete."""

    def __init__(self, tokenizer, prompt_ids):
        self._tokenizer, self._prompt_ids = tokenizer, prompt_ids
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
        self._n_printed = 0  # tokens

    def print_new(self, ids):
        """Print the tokens that were added to ids since the last call."""
        before, new = [*self._prompt_ids, *ids[: self._n_printed]], ids[self._n_printed :]
        self._n_printed = len(ids)
        print(show_invisible(self._decoder.decode(self._tokenizer.decode_bytes(new, before))), end='', flush=True)

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
        make_folder(target)
        charts = make_charts(response.records, prompt_ids, tokenizer, describe_sampler(settings, fixed))
        *steps, sheet = save_bar_charts(charts, target, keep_open=True)
        all_drawn = len(steps) == len(response.ids)
        more = '' if all_drawn else f' (the first {len(steps)} of {len(response.ids)} steps; --plot_steps draws more)'
        print(f'a chart of each step in {target}, all of them in {sheet}{more}')
    show_sheets()


def save_response_page(responses, prompt_ids, tokenizer, settings, prompt, fixed, block_size):
    """Write all steps of all responses to one page, in a new folder."""
    has_sampler = differs_from_model(**settings.sampler(fixed))
    sampler = describe_sampler(settings, fixed) if has_sampler else None
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
        about.append(f'Sampler probabilities are those that the tokens were sampled with: {sampler}.')
    if truncation := describe_truncation(prompt_ids, block_size):
        about.append(f'{truncation[0].upper()}{truncation[1:]}.')
    name = model_name(settings)
    path = create_run_folder(settings.plot_dir, f'{name}-{prompt}') / 'page.html'
    page.write_page(page.Page(f'What {name} nearly said', about, [name], sampler, texts), path)
    print(f'all steps on one page: {path} (open it in a browser)')


if __name__ == '__main__':
    configurator.run(main, Settings)
