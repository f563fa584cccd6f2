"""Settings from a dataclass with defaults, then config files, then the command line; the last one wins.

A script declares its settings as a dataclass, with a comment beside each field, and calls `run(main, Settings)`. The
command line is nanoGPT's: `python train.py config/finetune_stories.py --batch_size=4 --compile`.
"""

import contextlib
import dataclasses
import io
import os
import re
import sys
import types
import typing
import warnings

from common.errors import UserError, describe_os_error, is_out_of_memory, on_one_line
from common.files import resolve_path
from common.hints import find_configs, hint_at_setting, hint_at_word
from common.interrupts import INTERRUPTED, raise_interrupts
from common.notebook import in_notebook
from common.notes import forget_notes, note
from common.streams import discard_stdout, flush_stdout, prepare_streams, print_error
from common.text_files import read_text
from pictures.style import drop_unknown_backend

BOOLS = {**dict.fromkeys(('true', '1', 'yes', 'on'), 'True'), **dict.fromkeys(('false', '0', 'no', 'off'), 'False')}


def run(main, settings_class, choose_configs=None):
    """Read the settings and call main(settings). A UserError ends the script: one line on stderr, exit code 2.

    choose_configs: see `read`. In a notebook, where %run runs scripts, the script just ends, without an exit code.
    """
    if in_notebook():
        warnings.filterwarnings('ignore', 'IProgress not found')  # progress is shown as text if ipywidgets are missing
        if not hasattr(sys.modules['__main__'], '__spec__'):
            sys.modules['__main__'].__spec__ = None  # the second %run deletes it, and multiprocessing needs it
    try:
        run_or_exit(main, settings_class, choose_configs)
    except SystemExit:
        if not in_notebook():
            raise


def run_or_exit(main, settings_class, choose_configs=None):
    """Read the settings and call main(settings); after an error, print it and exit."""
    prepare_streams()
    forget_notes()
    drop_unknown_backend()
    try:
        raise_interrupts()
        try:
            main(read(settings_class, sys.argv[1:], choose_configs))
        except SystemExit:  # after --help, for example
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where errors are caught, not when Python exits
    except (UserError, FloatingPointError) as error:  # the second: a model's logits are not finite
        fail(on_one_line(error))
    except KeyboardInterrupt:
        flush_stdout()
        print_error('\ninterrupted')
        sys.exit(INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(f'out of memory: {on_one_line(error) or "this needs more than there is"}')
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        discard_stdout()
    except OSError as error:
        if error.errno is None:
            raise  # not from the operating system, so nothing that the user can correct
        fail(on_one_line(describe_os_error(error)))


def fail(message):
    """Print an error on stderr, after what stdout still holds, and exit."""
    flush_stdout()
    rank = os.environ.get('RANK', '0')  # common.processes has silenced sys.stderr in all but the first process
    if rank == '0':
        print_error(f'error: {message}')
    else:
        print(f'error in process {rank}: {message}', file=sys.__stderr__)
    sys.exit(2)


def read(settings_class, arguments, choose_configs=None):
    """Return a settings_class made from command-line arguments: config files, --key=value, --key value, --flag.

    choose_configs: a function that is called if no config file is named; it takes the flags, key -> text, and returns
    the config files to use.
    Raises UserError for an unknown key (suggesting the nearest known one), for a value of the wrong type, and for a
    config file that cannot be read.
    """
    kinds = typing.get_type_hints(settings_class)
    files, flags = _split(arguments, kinds)
    if choose_configs is not None and not files and ('help', '') not in flags:
        files = choose_configs(dict(flags))
    settings = settings_class()
    for file in files:
        settings = dataclasses.replace(settings, **_run_config(file, settings, kinds))
    settings = _parse(settings, flags)
    for key, value in dataclasses.asdict(settings).items():
        if isinstance(value, int) and abs(value) > sys.maxsize:
            raise UserError(f'--{key}={value}: it must be at most {sys.maxsize}')
    return settings


def _split(arguments, kinds):
    """Return the config files and the flags among the arguments, each flag as (key, value), both text."""
    files, flags = [], []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ('-h', '--help'):
            flags.append(('help', ''))
        elif not argument.startswith('--'):
            if not argument.endswith('.py'):
                hint = hint_at_word(argument, flags[-1] if flags else None, kinds)
                raise UserError(f'{argument!r} is neither a setting nor a config file, which ends in .py; {hint}')
            files.append(argument)
        else:
            key, equals, value = argument[2:].partition('=')
            key = key.replace('-', '_')
            _check_key(key, kinds, f'--{key}')
            if not equals:
                if rest and not rest[0].startswith('--') and not (_is_flag(kinds[key]) and not _is_bool(rest[0])):
                    value = rest.pop(0)
                elif _is_flag(kinds[key]):
                    value = 'True'  # a bare --flag turns it on
                else:
                    raise UserError(f'--{key} needs a value: --{key}=...')
            if re.fullmatch('[“„][^“”„]*[”“]', value):
                note(f'the quotation marks of --{key}={value} are part of the text; a shell knows only " and \'')
            flags.append((key, value))
    return files, flags


def _is_bool(text):
    return text.lower() in BOOLS


def _is_flag(kind):
    return bool in (kind, *typing.get_args(kind))


def _check_key(key, kinds, shown):
    """Raise UserError for an unknown key. shown: how the message names it."""
    if key not in kinds:
        raise UserError(f'there is no setting {shown}; {hint_at_setting(key, kinds)}')


def _run_config(file, settings, kinds):
    """Run a config file, which is the user's own Python, and return the settings it makes: name -> value.

    As in nanoGPT, the file sees the current settings as variables and assigns to them. Modules, functions and classes
    that it imports, and names that start with an underscore, are not settings.
    """
    path = resolve_path(file)
    if not path.exists() and (similar := find_configs(file, kinds, cutoff=0.0)):
        raise UserError(f'cannot read the config file {file}: No such file; did you mean {" or ".join(similar)}?')
    try:
        source = read_text(path)
    except UserError as error:
        raise UserError(str(error).replace('cannot read', 'cannot read the config file', 1)) from error
    try:
        code = compile(source, str(path), 'exec')
    except (SyntaxError, ValueError) as error:
        raise UserError(f'the config file {file} is not Python code: {error}') from error
    names = {'__file__': str(path), '__name__': '__config__', **dataclasses.asdict(settings)}
    try:
        exec(code, names)
    except Exception as error:
        raise UserError(f'the config file {file} failed: {type(error).__name__}: {error}') from error
    chosen = {}
    for key, value in names.items():
        if key.startswith('_') or (key not in kinds and (isinstance(value, types.ModuleType) or callable(value))):
            continue
        _check_key(key, kinds, f'{key} (in {file})')
        allowed = typing.get_args(kinds[key]) or (kinds[key],)
        if float in allowed and type(value) is int:
            value = float(value)
        if type(value) not in allowed:
            raise UserError(f'{file}: {key} = {value!r} has the wrong type; it must be {_name(kinds[key])}')
        chosen[key] = value
    return chosen


def _name(kind):
    """Return a type as it is written, with an example: 'int (a whole number, such as 10)', 'float | None (...)'."""
    examples = {int: 'a whole number, such as 10', float: 'a number, such as 0.5', bool: 'True or False'}
    example = next((text for type, text in examples.items() if type in (kind, *typing.get_args(kind))), '')
    written = re.sub(r"<class '(.*)'>", r'\1', str(kind)).replace('NoneType', 'None')
    return f'{written} ({example})' if example else written


def _parse(settings, flags):
    """Let tyro convert the flags' text to the settings' types, or print the help and exit."""
    import tyro

    def parsed(arguments):
        return tyro.cli(
            type(settings),
            args=arguments,
            default=settings,
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff,),  # --flag=False, not --no-flag
        )

    if ('help', '') in flags:
        parsed(['--help'])
    kinds = typing.get_type_hints(type(settings))
    values = {key: _standard_text(value, kinds[key]) for key, value in flags}  # the last one wins
    arguments = [f'--{key}={value}' for key, value in values.items()]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro's own message takes a page, ours a line
            return parsed(arguments)
    except SystemExit as error:
        culprit = next((key for key, argument in zip(values, arguments, strict=True) if _fails(parsed, argument)), None)
        if culprit is None:
            raise
        raise UserError(
            f'--{culprit}={values[culprit]} has the wrong type; it must be {_name(kinds[culprit])}'
        ) from error


def _fails(parsed, argument):
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed([argument])
    except SystemExit:
        return True
    return False


def _standard_text(text, kind):
    """Return the text of a value as tyro reads it: 'true', 'yes' and '1' become 'True', a number's 'none' 'None'."""
    if _is_flag(kind) and _is_bool(text):
        return BOOLS[text.lower()]
    is_optional_number = types.NoneType in typing.get_args(kind) and str not in typing.get_args(kind)
    return 'None' if is_optional_number and text.lower() in ('none', 'null') else text
