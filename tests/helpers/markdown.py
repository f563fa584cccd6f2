"""What is on a Markdown page: commands, the outputs it shows for them, and links."""

import difflib
import itertools
import math
import re
import textwrap
from typing import NamedTuple

# A code span is a command if it begins with one of these and has more words.
PROGRAMS = re.compile(r'(python3?|torchrun|pip|source|git|apt-get|ruff|pytest|jupyter|\.ci/run|\.venv/bin/\w+)( |$)')
SPAN = re.compile(r'(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)', re.DOTALL)  # within a paragraph
WORD = r"""(?:[^\s'"]|'[^']*'|"(?:\\.|[^"\\])*")+"""

# Numbers, and those that differ from run to run: durations, speed, memory, the time of day.
NUMBER = re.compile(r'-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?')
UNIT = r'(?:µs|ms|s|min|h|(?:milli)?seconds?|minutes?|hours?|[KMG]i?B|\w+/s|s/\w+|(?:\w+ )?(?:a|per) second)\b'
MEASURED = re.compile(rf'\d+:\d+(?::\d+)?|\d{{8}}-\d{{6}}|mfu \d+%|{NUMBER.pattern} ?{UNIT}')
TOLERANCE = 1e-3  # of printed numbers: the last digits of long sums differ from machine to machine


class Command(NamedTuple):
    """A command, and its output on the page, None if the page shows none."""

    text: str
    output: str | None = None


# What is on a page ----------------------------------------------------------------------------------------------------


def parts(page):
    """Return (language, text) of the parts of a page in order; the language is None for prose and tables."""
    fence = r'^([ \t]*)(```+|~~~+)[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*\2[ \t]*(?:\n|\Z)'
    found, end = [], 0
    for block in re.finditer(fence, page, re.MULTILINE | re.DOTALL):
        found += [(None, page[end : block.start()]), (block[3], textwrap.dedent(block[4]))]
        end = block.end()
    return [(language, text) for language, text in [*found, (None, page[end:])] if text.strip()]


def commands(page):
    """Return the Commands of a page in order: from blocks of bash, from sessions with $, and from code spans."""
    found = []
    for language, text in parts(page):
        if language is None:
            found += [Command(text) for text in commands_in_prose(text)]
        elif language in ('bash', 'sh', 'shell'):
            lines = (without_comment(line.removeprefix('$ ')) for line in joined(text).splitlines())
            found += [Command(text) for line in lines for text in one_by_one(line)]
        elif language in ('text', 'console'):
            found += sessions(text)
    return found


def python_blocks(page):
    """Return the blocks of Python."""
    return [text for language, text in parts(page) if language == 'python']


def python_sessions(page):
    """Return (script, output) of each block of Python that is followed at once by what it prints."""
    found = parts(page)
    return [
        (text, output)
        for (language, text), (after, output) in itertools.pairwise(found)
        if (language, after) == ('python', 'text') and not output.startswith('$ ')
    ]


def options(page):
    """Return the settings in code spans that begin with one: x and y of `--x=1 --y`."""
    spans = [span[2] for language, text in parts(page) if language is None for span in SPAN.finditer(text)]
    return [name for span in spans if span.startswith('--') for name in re.findall(r'(?:^|\s)--(\w+)', span)]


def sessions(text):
    """Return the Commands of a block of text: each line after a $, with the lines below it as its output."""
    _, *rest = re.split(r'^\$ ', joined(text), flags=re.MULTILINE)
    pairs = [(without_comment(part.partition('\n')[0]), part.partition('\n')[2]) for part in rest]
    return [Command(command, output if output.strip() else None) for command, output in pairs]


def joined(text):
    """Return a text in which lines that end in a backslash are joined with the next."""
    return re.sub(r'[ \t]*\\\n[ \t]*', ' ', text)


def without_comment(line):
    """Return a line of shell without its comment: a # at the beginning of a word, outside quotes."""
    return re.match(rf'(?:\s*(?!#){WORD})*', line)[0].strip()


def one_by_one(line):
    """Return the commands of a line that && joins, without the folder of the virtual environment."""
    found, words = [], []
    for word in [*re.findall(WORD, line), '&&']:
        if word != '&&':
            words.append(word)
        elif words:
            found.append(re.sub(r'^\.venv/bin/', '', ' '.join(words)))
            words = []
    return found


def commands_in_prose(text):
    """Return the commands among the code spans of prose and tables; a span with ... is not a command.

    Parts are combined as a reader would: `python a.py x` (or `y`) gives two commands, and so does a table with
    `python a.py ...` above a column of `x` and `y`.
    """
    found = []
    for paragraph in re.split(r'\n\s*\n', text):
        for span in SPAN.finditer(paragraph):
            others = re.match(r'\s*\(or ((?:[\s,]|or|`[^`]+`)+)\)', paragraph[span.end() :])
            others = [other[2] for other in SPAN.finditer(others[1])] if others else []
            command = typed(span[2])
            found += [command, *(with_other(command, other) for other in others)]
        if head := re.match(r'\s*\|\s*`([^`]+) \.\.\.`\s*\|.*\n\s*\|[\s:|-]+\n', paragraph):
            cells = [line.split('|')[1] for line in paragraph[head.end() :].splitlines() if '|' in line]
            found += [f'{head[1]} {span[2]}' for cell in cells for span in SPAN.finditer(cell)]
    return [text for command in found if is_command(command) for text in one_by_one(command)]


def typed(span):
    """Return what to type for a code span, which may be broken into lines or be in a table."""
    return ' '.join(span.replace('\\|', '|').split())


def is_command(text):
    """Return whether a code span is a command that can be typed as it is."""
    return bool(PROGRAMS.match(text)) and ' ' in text.strip() and '...' not in text and '…' not in text


def with_other(command, other):
    """Return a command with another script or, if `other` is not a script, another last word."""
    if other.endswith('.py'):
        return re.sub(r'\S+\.py\b', other, command, count=1)
    return command if is_command(other) else f'{command.rpartition(" ")[0]} {other}'


# Links ----------------------------------------------------------------------------------------------------------------


def links(page):
    """Return the targets of a page's links and images, except those on other sites."""
    text = SPAN.sub('', '\n'.join(text for language, text in parts(page) if language is None))
    found = re.findall(r'\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)', text)
    found += re.findall(r'^\s*\[[^\]]+\]:\s*(\S+)', text, re.MULTILINE)
    found += re.findall(r'<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)="([^"]+)"', text)
    return [target for target in found if not re.match(r'[a-z]+:', target)]


def anchors(page):
    """Return the names in a page that #name can link to; headings are named as GitHub does it."""
    text = '\n'.join(text for language, text in parts(page) if language is None)
    found = set(re.findall(r'<a\b[^>]*?\b(?:id|name)="([^"]+)"', text))
    for heading in re.findall(r'^#{1,6}[ \t]+(.+?)[ \t#]*$', text, re.MULTILINE):
        heading = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', heading)
        name = re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        number = next(number for number in range(1000) if (f'{name}-{number}' if number else name) not in found)
        found.add(f'{name}-{number}' if number else name)
    return found


# Outputs --------------------------------------------------------------------------------------------------------------


def assert_same_output(expected, actual):
    """Fail with both texts unless a command printed what the page shows.

    White space at the ends of lines is ignored, numbers must agree within TOLERANCE, MEASURED values may differ, and a
    line ... matches any number of lines.
    """
    wanted, got = lines_of(expected), lines_of(actual)
    if is_same(wanted, got):
        return
    # Show only lines that differ in more than measured values.
    got = [next((like for like in wanted if is_same_line(like, line)), line) for line in got]
    difference = '\n'.join(line for line in difflib.ndiff(wanted, got) if not line.startswith('?'))
    raise AssertionError(f'the page shows\n\n{expected}\n\nand the command printed\n\n{actual}\n\n{difference}')


def lines_of(text):
    """Return the lines of a text without white space at their ends, and without empty lines around them."""
    return [line.rstrip() for line in text.strip('\n').rstrip().splitlines()]


def is_same(wanted, got):
    """Return whether lines match those of a page, in which ... matches any number of lines."""
    if not wanted:
        return not got
    if wanted[0] == '...':
        return any(is_same(wanted[1:], got[start:]) for start in range(len(got) + 1))
    return bool(got) and is_same_line(wanted[0], got[0]) and is_same(wanted[1:], got[1:])


def is_same_line(wanted, got):
    """Return whether two lines have the same words, and numbers that agree."""
    pair = (wanted, got)
    if any(MEASURED.search(line) for line in pair):  # their number of digits moves what follows
        pair = [' '.join(MEASURED.sub('‹measured›', line).split()) for line in pair]
    words = [NUMBER.split(line) for line in pair]
    numbers = zip(*([float(text.replace(',', '')) for text in NUMBER.findall(line)] for line in pair))
    return words[0] == words[1] and all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in numbers)
