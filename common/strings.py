"""Make any text fit for one line, for a terminal, and for UTF-8."""

import re
import reprlib
import unicodedata

# Characters that would be invisible or would change the text around them: control characters except tab and newline,
# the soft hyphen, the byte order mark, lone surrogates, marks that set the direction of writing. The joiners U+200C and
# U+200D are not among them, since they shape letters and emoji.
INVISIBLE = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]'
)


def shorten(text, length, from_end=False):
    """Return a text on one line, cut to `length` characters if it is longer: its beginning, or its end."""
    text = re.sub(r'\s*\n\s*', ' ⏎ ', text)
    if len(text) <= length:
        return text
    if not from_end:
        return text[: length - 1] + '…'
    _, space, words = text[1 - length :].partition(' ')  # start at a whole word
    return '…' + (space + words if words else text[1 - length :])


def show_value(value):
    """Return a value from a file as a message shows it: on one line and short, however large or deep it is."""
    return shorten(reprlib.repr(value), 100)


def show_control_characters(text):
    """Return a text on one line with its control characters made visible, so that a terminal does not obey them."""
    text = text.replace('\n', '⏎')
    return ''.join(char if char.isprintable() else f'‹U+{ord(char):04X}›' for char in text)


def show_invisible(text):
    """Return a text with its invisible characters made visible, so that nothing in it can change what is around it.

    Newlines and tabs stay. An escape sequence becomes ‹U+001B›[2J, and a terminal does not obey it.
    """
    return INVISIBLE.sub(lambda char: f'‹U+{ord(char[0]):04X}›', text)


def replace_surrogates(text):
    """Replace lone surrogates, Python's stand-ins for bytes that are not UTF-8, with U+FFFD, as tiktoken does."""
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def separator_between(prompt, response, separator=' '):
    """Return what goes between a prompt and its response: the separator if they would run together, else ''.

    They would if the response begins with a word and the prompt ends in one, with or without a mark after it: "in",
    "end.", "Answer:", 'said "No."', but not "f(" or 'said "'.
    """
    last = prompt.rstrip('"”»)]}')[-1:]
    meet = last and response and (is_word(last) or last in '.,;:!?…%') and is_word(response[0])
    return separator if meet else ''


def is_word(char):
    """Return whether a character is part of a word: a letter, a digit, or a mark on one."""
    return char.isalnum() or char == '_' or unicodedata.category(char).startswith('M')
