"""Beam search and the search for the most probable continuations, printed and drawn: for sample.py and eval.py."""

import math
import time

import torch
from tqdm import tqdm

from common.files import create_run_folder
from common.strings import show_invisible
from lm import search
from lm.memory import bytes_of_beams, format_bytes, free_memory, require_memory
from lm.next_words import GAP as WORD_GAP
from lm.next_words import next_words_steps
from lm.scoring import score
from lm.settings import model_name
from lm.text_probability import GAP as TEXT_GAP
from lm.text_probability import QUANTITIES, quantity_steps, usual_tokens
from lm.wording import (
    describe_model_probability,
    format_bounds,
    format_likelihood,
    format_probability,
    precision_note,
)
from pictures.beams import Branch, draw_beams


def print_search(name, model, tokenizer, settings, prompt_ids, eot, budget):
    """Run one of the SEARCHES after a prompt, and print what it finds."""
    match name:
        case 'beam_width':
            print_beams(model, tokenizer, settings, prompt_ids, eot)
        case 'most_probable':
            print_most_probable(model, tokenizer, settings, prompt_ids, eot, budget)
        case 'above':
            print_above(model, tokenizer, settings, prompt_ids, eot)
        case 'next_words':
            print_next_words(model, tokenizer, settings, prompt_ids, budget)


def print_beams(model, tokenizer, settings, prompt_ids, eot):
    """Run a beam search, print its result, and draw it if asked to."""
    idx = torch.tensor([prompt_ids], device=model.device)
    n, width = settings.max_new_tokens, settings.beam_width
    require_beam_memory(model, settings, len(prompt_ids))
    steps, count = [], 0  # those to draw, and how many there are
    found = search.beam_steps(model, idx, n, width, settings.length_penalty, eot)
    for count, step in enumerate(tqdm(found, total=n, unit='step', leave=False, disable=None), 1):
        if settings.show_beams and count <= settings.plot_steps:
            steps.append(step)
    _, finished = step
    prompt = show_invisible(tokenizer.decode(prompt_ids))
    print(f'{prompt}\nthe best of {width} beams; {describe_model_probability(settings)}')
    for number, beam in enumerate(finished, 1):
        print_continuation(number, beam.ids, beam.logprob, tokenizer)
    if settings.show_beams:
        path = create_run_folder(settings.plot_dir, f'{model_name(settings)}-beams-{prompt}') / 'beams.png'
        levels = make_search_tree(steps, finished, tokenizer)
        title = f'{prompt} ▁  {width} beams, {model_name(settings)}, '
        draw_beams(path, levels, title + describe_model_probability(settings))
        more = f' (the first {settings.plot_steps} steps; --plot_steps draws more)' if count > len(steps) else ''
        print(f'the search as a tree: {path}{more}')


def require_beam_memory(model, settings, prompt_tokens=1):
    """Raise UserError if the beam search of the settings cannot fit into memory."""

    def estimate(beam_width, max_new_tokens):
        return bytes_of_beams(model, beam_width, max_new_tokens, prompt_tokens)

    values = {'beam_width': settings.beam_width, 'max_new_tokens': settings.max_new_tokens}
    require_memory(model.device, estimate, **values)


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


def print_most_probable(model, tokenizer, settings, prompt_ids, eot, budget):
    """Search for the most probable continuations; print them, and the bound for all others."""
    idx = torch.tensor([prompt_ids], device=model.device)
    steps = search.search_steps(model, idx, settings.max_new_tokens, settings.most_probable, eot)
    found, seconds, why = run_search(
        steps, lambda found: found.exact, lambda found: f'bound {math.exp(found.bound):.3g}', budget, settings
    )
    if why.startswith('the budget'):
        why += '; a smaller --max_new_tokens needs less'
    n_found = len(found.logprobs)
    title = f'the {n_found} most probable continuations' if found.exact else 'the most probable so far (not proved)'
    print(f'{show_invisible(tokenizer.decode(prompt_ids))}\n{title}; {describe_model_probability(settings)}')
    for number, (sequence, logprob) in enumerate(zip(found.sequences.tolist(), found.logprobs.tolist()), 1):
        ids = sequence[len(prompt_ids) :]
        end = next((place for place, id in enumerate(ids) if id in (eot or ())), len(ids))
        ids = ids[: end + 1]
        print_continuation(number, ids, logprob, tokenizer)
    print_proof(found, seconds, why, precision_note(settings.dtype, settings.quantize))


def run_search(steps, is_done, describe, budget, settings):
    """Run a search until it is done, its budget is spent, memory runs out or Ctrl-C is pressed.

    steps: yields what is found so far, with `opened`, `waiting` and `mebibytes`. is_done, describe: functions of that.
    Returns the last of it, the seconds it took, and why it stopped; '' if it was done.
    """
    started, found, why = time.perf_counter(), None, ''
    free = free_memory(torch.device('cpu'))  # a search keeps its prefixes there
    with tqdm(unit=' prefixes', leave=False, disable=None) as progress:
        try:
            for found in steps:
                progress.set_postfix_str(f'{describe(found)}, {found.waiting:,} waiting')
                progress.update(found.opened - progress.n)
                if is_done(found):
                    break
                if budget.is_spent(found, time.perf_counter() - started):
                    why = f'the budget ({settings.budget}) is spent'
                    break
                if free is not None and found.mebibytes * 2**20 > 0.8 * free:
                    why = f'its prefixes and answers take {format_bytes(0.8 * free)}, most of the memory that was free'
                    break
        except KeyboardInterrupt:
            if found is None:
                raise
            why = 'interrupted'
    return found, time.perf_counter() - started, why


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
    print(f'{number:3}  {tokenizer.show(ids)}\n     {format_likelihood(logprob, len(ids))}')


# Over all ways to cut a text into tokens -----------------------------------------------------------------------------


def print_next_words(model, tokenizer, settings, prompt_ids, budget):
    """Search for the likeliest next words; print them with their bounds."""
    steps = next_words_steps(model, tokenizer, prompt_ids, settings.next_words, tokenizer.roles.ends)

    def is_done(found):
        return found.proved and found.gap <= WORD_GAP

    found, seconds, why = run_search(steps, is_done, lambda found: f'gap {found.gap:.1%}', budget, settings)
    print(f'{show_invisible(tokenizer.decode(prompt_ids))}')
    print(f'the likeliest next words, over all ways to spell them; {describe_model_probability(settings)}')
    for number, (word, lower, upper) in enumerate(found.words, 1):
        print(f'{number:3}  {show_invisible(word):20}  probability {format_bounds(lower, upper)}')
    precision = precision_note(settings.dtype, settings.quantize)
    rounding = f' (up to rounding{precision})' if precision else ''
    others = f'no other word can exceed p = {format_probability(found.others)}{rounding}'
    opened = f'{found.opened:,} prefixes opened in {seconds:.1f} s'
    print(f'proved: {opened}; {others}' if found.proved else f'not proved: {opened}; {why}; {others}')


def print_above(model, tokenizer, settings, prompt_ids, eot):
    """Print every continuation that is likelier than --above."""
    idx = torch.tensor([prompt_ids], device=model.device)
    steps = search.above_steps(model, idx, settings.max_new_tokens, settings.above, eot)
    *_, found = tqdm(steps, total=settings.max_new_tokens, unit=' tokens', leave=False, disable=None)
    count = f'{len(found):,} continuation{"" if len(found) == 1 else "s"}'
    length = f'of {settings.max_new_tokens} tokens{", or ended before" if eot else ""}'
    print(f'{show_invisible(tokenizer.decode(prompt_ids))}')
    print(f'all {count} {length} with p > {settings.above:g}; {describe_model_probability(settings)}')
    for number, (ids, logprob) in enumerate(found, 1):
        print_continuation(number, ids, logprob, tokenizer)
    total = sum(math.exp(logprob) for _, logprob in found)
    print(f'together p = {total:.6g}; there are no others (up to rounding)')


def print_text_probability(model, tokenizer, settings, prompt_ids, response_ids, budget):
    """Print bounds on the probability of a response's text, beside that of its tokens."""
    quantity = settings.whole_text
    steps = quantity_steps(model, tokenizer, quantity, prompt_ids, response_ids)
    found, seconds, why = run_search(
        steps, lambda found: found.gap <= TEXT_GAP, lambda found: f'gap {found.gap:.1%}', budget, settings
    )
    print(f'text, over all ways to cut it into tokens: {QUANTITIES[quantity]}')
    print(f'  probability {format_bounds(found.log_lower, found.log_upper)}; {describe_model_probability(settings)}')
    before, ids = usual_tokens(tokenizer, quantity, prompt_ids, response_ids)
    of_tokens = score(model, [before], [ids])[0].sum().item()
    print(f'  {math.exp(found.log_lower - of_tokens):.4g} times as likely as its usual {len(ids)} tokens, or more')
    precision = precision_note(settings.dtype, settings.quantize)
    rounding = f'; the bounds hold up to rounding{precision}' if precision else ''
    print(f'  {found.opened:,} prefixes opened in {seconds:.1f} s{f"; {why}" if why else ""}{rounding}')
