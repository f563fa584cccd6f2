"""Draw text from a model, and see how likely it was.

    python sample.py                                                  the shipped story model
    python sample.py --init_from=gpt2 --show_probs=True               GPT-2, with charts of what it nearly said
    python sample.py --start='I live in' --fixed_response=' a shoe'   how likely is this?

`python sample.py --help` lists every setting.
"""

import codecs
import sys
from dataclasses import dataclass

from tqdm import tqdm

import configurator
from common import UserError
from plots import new_folder, save_charts, show_sheets
from sampling import SamplingSettings, charts, checked, describe, load_model, quickened, read_start, respond


@dataclass
class Settings(SamplingSettings):
    """Draw text from a model, and see how likely it was."""


def main(settings):
    """Load, draw (or score), print, and draw charts."""
    settings = checked(settings)
    if settings.num_samples < 1:
        raise UserError(f'--num_samples={settings.num_samples}: it is at least 1')
    start = read_start(settings.start)
    model, tokenizer = load_model(settings)
    model = quickened(model, settings)
    fixed = settings.fixed_response is not None
    if fixed:
        prompt_ids, response_ids = tokenizer.encode_pair(start, settings.fixed_response)
        num_samples = 1  # a fixed response is the same each time
    else:
        prompt_ids, response_ids = tokenizer.encode_prompt(start), None
        num_samples = settings.num_samples
    eot = tokenizer.eot if settings.stop_at_eot and not fixed else None

    growing = respond(model, prompt_ids, settings, num_samples, response_ids, eot)
    if num_samples == 1:
        print(tokenizer.decode(prompt_ids), end='', flush=True)
        stream = Stream(tokenizer)
        for responses in growing:
            stream.say(responses[0].ids)
        stream.close()
        report(responses[0], settings, fixed)
    else:
        *_, responses = tqdm(growing, total=settings.max_new_tokens + 1, unit='step', leave=False, disable=None)
        for number, response in enumerate(responses, 1):
            print(f'sample {number} of {num_samples}\n{tokenizer.decode(prompt_ids + response.ids)}')
            report(response, settings, fixed)

    if settings.show_probs:
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


def report(response, settings, fixed):
    """Print how likely a response was, set off from the text."""
    print(f'---------------\n{describe(response, settings, fixed)}\n')


def save_all_charts(responses, prompt_ids, tokenizer, settings, start, fixed):
    """Draw the first steps of every response into a folder of this run."""
    if not any(response.logits for response in responses):
        print('there are no steps to draw', file=sys.stderr)
        return
    folder = new_folder(settings.plot_dir, f'{settings.init_from}-{start}')
    for number, response in enumerate(responses, 1):
        target = folder if len(responses) == 1 else folder / f'sample_{number:02d}'
        target.mkdir(exist_ok=True)
        *steps, sheet = save_charts(charts(response, prompt_ids, tokenizer, settings, fixed), target, keep_open=True)
        left = len(response.ids) - len(steps)
        more = f' (the first {len(steps)} of {len(response.ids)} steps; --plot_steps draws more)' if left else ''
        print(f'charts of each step in {target}, all of them on {sheet}{more}')
    show_sheets()


if __name__ == '__main__':
    configurator.run(main, Settings)
