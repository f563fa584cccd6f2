"""A text printed token by token as it is generated, each token coloured by how likely it was, if asked to."""

import codecs
import math
import os

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from common.errors import UserError
from common.notes import note
from common.strings import show_invisible

# From the scale viridis, yellow to dark blue: its steps differ in brightness, too, for the colour-blind.
BACKGROUNDS = ('#fde725', '#7ad151', '#22a884', '#2a788e', '#414487')
FEW_COLOURS = ('yellow', 'green', 'cyan', 'blue', 'black')  # for a terminal that has sixteen
FOREGROUNDS = ('#000000', '#000000', '#000000', '#ffffff', '#ffffff')
SCALES = {  # what each colour begins at
    'prob': ('0.5 and more', '0.2', '0.05', '0.01', 'less'),
    'rank': ('1st', '2nd to 5th', 'to 20th', 'to 100th', 'later'),
    'entropy': ('under 1 bit', '2', '4', '6', 'more'),
}


def check_color(color):
    """Raise UserError unless it names what tokens can be coloured by."""
    if color not in (None, *SCALES):
        raise UserError(f'--color={color} is not one of {", ".join(SCALES)}')


def color_level(record, color):
    """Return the index of a TokenRecord's colour, 0 for the most expected. The probability is the model's."""
    if color == 'prob':
        return sum(record.model_logprob < math.log(limit) for limit in (0.5, 0.2, 0.05, 0.01))
    if color == 'rank':
        return sum(record.rank > limit for limit in (1, 5, 20, 100))
    return sum(record.entropy / math.log(2) >= limit for limit in (1, 2, 4, 6))


def color_system():
    """Return rich's ColorSystem of stdout; None if it shows no colours, or should not (https://no-color.org)."""
    console = Console()
    if os.environ.get('NO_COLOR') or not console.is_terminal or console.color_system is None:
        return None
    return {'standard': ColorSystem.STANDARD, '256': ColorSystem.EIGHT_BIT}.get(
        console.color_system, ColorSystem.TRUECOLOR
    )


class TokenStream:
    """Prints tokens as they are generated, holding back the bytes of a character until it is complete."""

    def __init__(self, tokenizer, prompt_ids, color=None):
        """color: one of SCALES, to colour tokens by. Prints what the colours mean, or why there are none."""
        self._tokenizer, self._prompt_ids = tokenizer, prompt_ids
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
        self._n_printed = 0  # tokens
        self._color, self._system = color, color and color_system()
        if color and self._system is None:
            note(f'--color={color} has no effect: the output is no terminal with colours, or NO_COLOR is set')
        elif color:
            scale = '  '.join(self._paint(f' {name} ', level) for level, name in enumerate(SCALES[color]))
            name = {'prob': 'model probability', 'rank': 'rank under the model', 'entropy': 'entropy of the model'}
            print(f'{name[color]}: {scale}')

    def _paint(self, text, level):
        backgrounds = FEW_COLOURS if self._system == ColorSystem.STANDARD else BACKGROUNDS
        style = Style(color=FOREGROUNDS[level], bgcolor=backgrounds[level])
        # A line break is not coloured: terminals would fill the rest of the line.
        return '\n'.join(part and style.render(part, color_system=self._system) for part in text.split('\n'))

    def print_prompt(self):
        """Print the prompt, which has no colours."""
        print(show_invisible(self._tokenizer.decode(self._prompt_ids)), end='', flush=True)

    def print_new(self, response):
        """Print the tokens that were added to a Response since the last call."""
        for place in range(self._n_printed, len(response.ids)):
            before = [*self._prompt_ids, *response.ids[:place]]
            text = show_invisible(self._decoder.decode(self._tokenizer.decode_bytes([response.ids[place]], before)))
            if self._system is not None:
                text = self._paint(text, color_level(response.records[place], self._color))
            print(text, end='', flush=True)
        self._n_printed = len(response.ids)

    def close(self):
        """Print what was held back, and end the line."""
        print(self._decoder.decode(b'', final=True))
