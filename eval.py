"""Ask a model how likely it finds the responses in eval_data.json.

    python eval.py --init_from=resume                               after fine-tuning, compare with --init_from=gpt2
    python eval.py --start='I live in' --fixed_response=' a shoe'   a single pair
    python eval.py --num_samples=2                                  and what it would have said itself

It takes every setting that sample.py takes; `python eval.py --help` lists them.
"""

import json
import math
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

import configurator
from common import UserError, find
from plots import new_folder, save_charts
from sampling import (
    SamplingSettings,
    charts,
    checked,
    load_model,
    perplexity_text,
    precision,
    probability_text,
    read_start,
    respond,
    sampler_name,
)


@dataclass
class Settings(SamplingSettings):
    """Ask a model how likely it finds responses. A probability is the model's unless --temperature is not 1."""

    eval_data: str = 'eval_data.json'  # a JSON list of {"prompt": ..., "response": ...}
    start: str = ''  # with --fixed_response: the prompt of a single pair, scored instead of eval_data
    num_samples: int = 0  # for each prompt, also draw so many samples of max_new_tokens and show them
    max_new_tokens: int = 20  # tokens in each of those samples
    temperature: float = 1.0  # 1 is the model's own distribution; a fixed response is scored at it
    top_k: int | None = None  # for the samples alone; it does not cut off a fixed response


def eval(settings=None):
    """Score every response, print them and their totals, and return a list of dicts, one a pair.

    Each has `prompt`, `response`, `tokens`, `logprob` (the sampler's, natural, summed), `prob` and `model_logprob`.
    """
    settings = checked(settings or Settings())
    pairs = read_pairs(settings)
    model, tokenizer = load_model(settings)
    encoded = [tokenizer.encode_pair(pair['prompt'], pair['response']) for pair in pairs]
    prompts, responses = zip(*encoded, strict=True)
    model_logprobs = model.score(prompts, responses)
    logprobs = model_logprobs if settings.temperature == 1 else model.score(prompts, responses, settings.temperature)
    rows = []
    for pair, ids, sampler, of_model in zip(pairs, responses, logprobs, model_logprobs, strict=True):
        logprob = sampler.sum().item()
        rows.append(
            {
                'prompt': pair['prompt'],
                'response': pair['response'],
                'tokens': len(ids),
                'logprob': logprob,
                'prob': math.exp(logprob),
                'model_logprob': of_model.sum().item(),
                'pieces': tokenizer.pieces(ids),
            }
        )
    print_table(rows, settings)
    if settings.num_samples > 0:
        print_samples(model, tokenizer, encoded, settings)
    if settings.show_probs and settings.plot_steps > 0:
        draw_charts(model, tokenizer, encoded, settings)
    return rows


def read_pairs(settings):
    """Return the pairs to score, dicts with `prompt` and `response`. Raises UserError that names what is wrong."""
    if settings.fixed_response is not None:
        return [{'prompt': read_start(settings.start), 'response': settings.fixed_response}]
    if settings.start:
        print('note: without --fixed_response, --start has no effect here', file=sys.stderr)
    path = find(settings.eval_data)
    try:
        pairs = json.loads(path.read_text(encoding='utf-8-sig'))
    except OSError as error:
        raise UserError(f'--eval_data={path} cannot be read: {error.strerror}') from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f'--eval_data={path} is not JSON: {error}') from error
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f'{path} must be a JSON list of {{"prompt": ..., "response": ...}} and not be empty')
    for index, pair in enumerate(pairs):
        for key in ('prompt', 'response'):
            if not isinstance(pair, dict) or not isinstance(pair.get(key), str):
                raise UserError(f'{path}: pair {index} has no text "{key}"')
    return pairs


def print_table(rows, settings):
    """Print every response with its logprob and probability, and their totals."""
    at = '' if settings.temperature == 1 else f' at temperature {settings.temperature:g}'
    whose = 'model probability' if settings.temperature == 1 else f'sampler probability{at}'
    title = Text(f'{settings.init_from}: {whose} of each response{precision(settings)}', style='table.title')
    table = Table(title=title, title_justify='left')
    table.add_column('prompt, then the tokens of the response', ratio=1, overflow='fold')
    columns = ['tokens', 'logprob', 'probability']
    if settings.temperature != 1:
        columns.append('model logprob')
    for column in columns:
        table.add_column(column, justify='right', no_wrap=True)
    for row in rows:
        text = Text(row['prompt'].replace('\n', '⏎'))
        text.append(' │ ', style='dim')
        text.append('│'.join(row['pieces']), style='bold')
        values = [str(row['tokens']), f'{row["logprob"]:.4f}', f'{row["prob"]:.4g}']
        if settings.temperature != 1:
            values.append(f'{row["model_logprob"]:.4f}')
        table.add_row(text, *values)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # in a file or a pipe there is no window to fit
    console.print(table)
    logprob = math.fsum(row['logprob'] for row in rows)
    tokens = sum(row['tokens'] for row in rows)
    print(f'{len(rows)} responses, {tokens} tokens; {whose}{precision(settings)}')
    print(f'summed logprob            {logprob:.4f} (of all of them together: probability {probability_text(logprob)})')
    print(f'sum of the probabilities  {math.fsum(row["prob"] for row in rows):.6g}')
    print(f'perplexity per token      {perplexity_text(logprob, tokens)}')


def print_samples(model, tokenizer, encoded, settings):
    """Print what the model itself says to each prompt, beside the response that was scored."""
    eot = tokenizer.eot if settings.stop_at_eot else None
    for prompt_ids, response_ids in encoded:
        print(f'\n{tokenizer.decode(prompt_ids)}\n  fixed: {"".join(tokenizer.pieces(response_ids))}')
        *_, responses = respond(model, prompt_ids, settings, settings.num_samples, None, eot)
        for response in responses:
            logprob = f'logprob {math.fsum(response.logprobs):.4f} under the sampler: {sampler_name(settings, False)}'
            print(f'  drawn: {"".join(tokenizer.pieces(response.ids))}  ({logprob})')


def draw_charts(model, tokenizer, encoded, settings):
    """Draw the steps of each response into a folder of its own."""
    folder = new_folder(settings.plot_dir, f'eval-{settings.init_from}')
    for number, (prompt_ids, response_ids) in enumerate(tqdm(encoded, unit='pair', leave=False, disable=None), 1):
        *_, (response,) = respond(model, prompt_ids, settings, 1, response_ids)
        if response.logits:
            target = folder / f'pair_{number:02d}'
            target.mkdir()
            save_charts(charts(response, prompt_ids, tokenizer, settings, fixed=True), target)
    print(f'charts of the first {settings.plot_steps} steps of each response in {folder}')


if __name__ == '__main__':
    configurator.run(eval, Settings)
