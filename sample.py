"""Generate text and see how likely it was, or search for the most likely text.

    python sample.py                                                  the story model that comes with the project
    python sample.py --init_from=gpt2 --show_probs=True               GPT-2, with charts of the alternatives
    python sample.py --start='I live in' --fixed_response='a shoe'    how likely is this response?
    python sample.py --beam_width=5 --max_new_tokens=12               beam search
    python sample.py --most_probable=5 --max_new_tokens=6             the five most probable continuations, with a proof
    python sample.py --color=prob                                     each token coloured by how likely it was
    python sample.py --next=20                                        the likeliest next tokens, as bars
    python sample.py --interactive=True                               one prompt after the other

`python sample.py --help` lists every setting.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import math
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, fields, replace

import torch
from tqdm import tqdm

import configurator
from common.errors import UserError, on_one_line
from common.files import create_run_folder, make_folder
from common.notes import note
from common.streams import print_error
from lm.responses import generate_responses
from lm.settings import (
    SEARCHES,
    ModelSettings,
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
from lm.tuning import MANY_PRODUCTS, MANY_ROWS
from lm.wording import (
    describe_model_probability,
    describe_response,
    describe_sampler,
    describe_truncation,
    differs_from_model,
)
from pictures import page
from pictures.bars import make_charts, save_bar_charts, show_sheets
from pictures.coloured_text import TokenStream, check_color
from pictures.next_tokens import print_next_tokens
from pictures.search_results import print_search, print_text_probability


@dataclass
class Settings(SamplingSettings):
    """Generate text and see how likely it was, or search for the most likely text."""

    color: str | None = None  # colour each token by how likely it was: prob, rank or entropy
    next: int | None = None  # print this many of the likeliest next tokens, and generate nothing
    interactive: bool = False  # keep the model loaded and read prompts, a line each; :help lists the commands


def main(settings):
    """Load the model, then sample, score or search, and print the result."""
    settings = check_sampling_settings(settings)
    check_sample_settings(settings)
    report_unused_settings(settings)
    prompt = read_prompt(settings.start)
    model, tokenizer = load_chosen_model(settings, to_pack=not settings.compile)
    searches = chosen_search(settings) is not None or settings.whole_text is not None
    rows = MANY_ROWS if searches else settings.num_samples
    products = MANY_PRODUCTS if searches or settings.interactive else settings.max_new_tokens
    model = optimise_for_inference(model, settings, rows, products)
    if settings.interactive:
        answer_prompts(model, tokenizer, settings)
    else:
        answer(model, tokenizer, settings, prompt)


def answer(model, tokenizer, settings, prompt):
    """Sample, score or search after one prompt, and print the result."""
    name, eot, budget = chosen_search(settings), end_tokens(tokenizer, settings), parse_budget(settings.budget)
    if name is None and settings.next is None:
        print_responses(model, tokenizer, settings, prompt, eot, budget)
        return
    prompt_ids = tokenizer.encode_prompt(prompt)
    note_truncation(prompt_ids, model)
    if name is None:
        idx = torch.tensor([prompt_ids], device=model.device)
        print_next_tokens(model, tokenizer, settings, prompt, idx, settings.next)
        return
    print_search(name, model, tokenizer, settings, prompt_ids, eot, budget)


# Many prompts -------------------------------------------------------------------------------------------------------

HELP = """a line            a prompt, which the model goes on from; \\n in it is a line break
:temperature 0.5  change a setting for what follows; any but those of the model
:settings         what was changed of these
:quit             end; so does Ctrl-D. Ctrl-C stops a text that is being generated
::text            a prompt that begins with a colon"""
OF_THE_MODEL = (*(field.name for field in fields(ModelSettings)), 'quantize', 'tune', 'verbose', 'compile', 'chat')
OF_THE_COMMAND = (*OF_THE_MODEL, 'interactive', 'start')


def answer_prompts(model, tokenizer, settings):
    """Read prompts and commands, a line each, until the end of stdin; errors are printed, and it goes on."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (gives input() a history)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(f'{model_name(settings)} is ready: type a prompt, or :help')
    while True:
        try:
            line = input('> ' if is_terminal else '')
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            continue
        try:
            if line.startswith(':') and not line.startswith('::'):
                if line.strip() in (':quit', ':q', ':exit'):
                    return
                settings = obey_command(line.strip(), settings)
            elif line:
                prompt = line.removeprefix(':') if line.startswith('::') else line
                answer(model, tokenizer, settings, prompt.replace('\\n', '\n'))
        except KeyboardInterrupt:
            print('(stopped)')
        except (UserError, FloatingPointError) as error:
            print_error(f'error: {on_one_line(error)}')


def obey_command(command, settings):
    """Obey a line such as ':temperature 0.5'; return the settings after it. Raises UserError if it is not valid.

    A setting may also be written as on the command line: ':top-k=5', or ':show_probs' for True.
    """
    name, *value = re.split(r'\s*[\s=]\s*', command.removeprefix(':').strip(), maxsplit=1)
    name = name.replace('-', '_')
    if name == 'help':
        print(HELP)
        return settings
    if name == 'settings':
        others = [field for field in fields(settings) if field.name not in OF_THE_COMMAND]
        changed = [field.name for field in others if getattr(settings, field.name) != field.default]
        print('\n'.join(f'{each} {getattr(settings, each)}' for each in changed) or 'nothing was changed')
        return settings
    if name in OF_THE_COMMAND:
        raise UserError(f':{name} cannot be changed now: it belongs to the command that starts this program')
    changed = configurator.read(Settings, ['='.join((f'--{name}', *value))])
    settings = check_sampling_settings(replace(settings, **{name: getattr(changed, name)}))
    check_sample_settings(settings)
    return settings


# Settings -----------------------------------------------------------------------------------------------------------


def check_sample_settings(settings):
    """Raise UserError for invalid values, and for settings that cannot be combined."""
    if settings.num_samples < 1:
        raise UserError(f'--num_samples={settings.num_samples}: it must be at least 1')
    if (search := chosen_search(settings)) is not None:
        for other in ('fixed_response', 'show_probs', 'html', 'color', 'next', *SEARCHES):
            if other != search and getattr(settings, other) not in (None, False):
                raise UserError(f'--{search} and --{other} cannot be combined')
    check_color(settings.color)
    if settings.next is not None:
        if settings.next < 1:
            raise UserError(f'--next={settings.next}: it must be at least 1')
        for other in ('fixed_response', 'show_probs', 'html', 'color'):
            if getattr(settings, other) not in (None, False):
                raise UserError(f'--next and --{other} cannot be combined')
    if settings.show_beams and settings.beam_width is None:
        raise UserError('--show_beams draws a beam search: add --beam_width=5, for example')
    check_search_settings(settings)
    parse_budget(settings.budget)


def report_unused_settings(settings):
    """Print a note on stderr for each setting that has no effect together with the others."""
    budgeted = (settings.most_probable, settings.next_words, settings.whole_text)
    searches, fixed = chosen_search(settings) is not None, settings.fixed_response is not None
    applies = [] if searches else settings.sampler(fixed)
    changed = [name for name, value in settings.sampler().items() if value != getattr(Settings, name)]
    unused = {
        **{name: name not in applies for name in changed},
        'num_samples': (searches or fixed or settings.next is not None) and settings.num_samples > 1,
        'length_penalty': settings.length_penalty and (settings.beam_width is None or not settings.stops),
        'budget': settings.budget != Settings.budget and not any(budgeted),
        'whole_text': settings.whole_text is not None and not fixed,
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
    if settings.html or settings.color:
        recorded_steps = math.inf
    elif settings.show_probs:
        recorded_steps = settings.plot_steps

    snapshots = generate_responses(model, prompt_ids, settings, num_samples, response_ids, eot, recorded_steps)
    if num_samples == 1:
        stream = TokenStream(tokenizer, prompt_ids, settings.color)
        stream.print_prompt()
        try:
            for responses in snapshots:
                stream.print_new(responses[0])
        finally:
            stream.close()
        print_likelihood(responses[0], settings, fixed)
        if fixed and settings.whole_text:
            print_text_probability(model, tokenizer, settings, prompt_ids, response_ids, budget)
    else:
        *_, responses = tqdm(snapshots, total=settings.max_new_tokens + 1, unit='step', leave=False, disable=None)
        for number, response in enumerate(responses, 1):
            print(f'sample {number} of {num_samples}')
            stream = TokenStream(tokenizer, prompt_ids, settings.color)
            stream.print_prompt()
            stream.print_new(response)
            stream.close()
            print_likelihood(response, settings, fixed)

    if not any(response.records for response in responses):
        if recorded_steps:
            print('there are no steps to draw', file=sys.stderr)
    elif settings.html:
        save_response_page(responses, prompt_ids, tokenizer, settings, prompt, fixed, model.block_size)
    elif settings.show_probs:
        save_response_charts(responses, prompt_ids, tokenizer, settings, prompt, fixed)


def note_truncation(prompt_ids, model):
    """Say on stderr that a prompt is longer than the model's context."""
    if truncation := describe_truncation(prompt_ids, model.block_size):
        note(truncation)


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
