"""Settings from three places: a dataclass with defaults, then config files, then the command line; the last one wins.

A script declares its settings as a dataclass, a comment beside each field, and calls `run(main, Settings)`. People then
write what they know from nanoGPT: `python train.py config/finetune_stories.py --batch_size=4 --compile`.
"""

import ast
import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import types
import typing

from common.errors import UserError
from common.files import resolve_path


def run(main, settings_class):
    """Read the settings and call main(settings); what the person can put right ends in one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='replace')  # a Windows pipe has no ⏎; better a ? than no output at all
    try:
        try:
            main(read(settings_class, sys.argv[1:]))
        finally:
            sys.stdout.flush()  # here, where a broken pipe is caught, not at Python's end
    except UserError as error:
        rank = os.environ.get('RANK', '0')  # of several processes, all but the first have been told to be silent
        whose, stderr = ('error:', sys.stderr) if rank == '0' else (f'error in process {rank}:', sys.__stderr__)
        print(whose, ' '.join(str(error).split()), file=stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        sys.exit(130)  # what a shell reports for Ctrl-C
    except BrokenPipeError:  # whoever read our output, `head` perhaps, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end


def read(settings_class, arguments):
    """Make a settings_class from command-line arguments: config files, --key=value, --key value, --flag.

    Raises UserError for a key that there is not (with the nearest that there is), a value of the wrong type, and a
    config file that cannot be read.
    """
    kinds = typing.get_type_hints(settings_class)
    files, flags = _split(arguments, kinds)
    settings = settings_class()
    for file in files:
        settings = dataclasses.replace(settings, **_run_config(file, settings, kinds))
    return _parse(settings, flags)


def _split(arguments, kinds):
    """Return the config files and, normalised to (key, value) of text, the flags among the arguments."""
    files, flags = [], []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ('-h', '--help'):
            flags.append(('help', ''))
        elif not argument.startswith('--'):
            files.append(argument)
        else:
            key, equals, value = argument[2:].partition('=')
            key = key.replace('-', '_')
            _check_key(key, kinds, f'--{key}')
            if not equals:
                if rest and not rest[0].startswith('--') and not (kinds[key] is bool and not _is_bool(rest[0])):
                    value = rest.pop(0)
                elif kinds[key] is bool:
                    value = 'True'  # a bare --flag switches it on
                else:
                    raise UserError(f'--{key} needs a value: --{key}=...')
            flags.append((key, value))
    return files, flags


def _is_bool(text):
    return text.lower() in ('true', 'false', '1', '0')


def _check_key(key, kinds, written):
    if key not in kinds:
        near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.5)
        hint = f'did you mean {near[0]}?' if near else '--help lists those that there are'
        raise UserError(f'there is no setting {written}; {hint}')


def _run_config(file, settings, kinds):
    """Run a config file, the person's own Python, and return the settings that it makes.

    As in nanoGPT, the file finds the settings so far as variables and assigns to them. Modules, functions and classes
    that it imports and names that start with an underscore are not settings.
    """
    path = resolve_path(file)
    try:
        code = compile(path.read_text(encoding='utf-8-sig'), str(path), 'exec')
    except OSError as error:
        raise UserError(f'the config file {file} cannot be read: {error.strerror}') from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f'the config file {file} is not Python: {error}') from error
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
            raise UserError(f'{file}: {key} = {value!r} is of the wrong type; it takes {_name(kinds[key])}')
        chosen[key] = value
    return chosen


def _name(kind):
    return re.sub(r"<class '(.*)'>", r'\1', str(kind)).replace('NoneType', 'None')


def _parse(settings, flags):
    """Let tyro turn the flags' text into values of the settings' types, or print the help."""
    import tyro

    def parsed(arguments):
        return tyro.cli(
            type(settings),
            args=arguments,
            default=settings,
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff,),  # --flag=False rather than --no-flag
        )

    if ('help', '') in flags:
        parsed(['--help'])
    kinds = typing.get_type_hints(type(settings))
    values = {key: _bool_text(value) if kinds[key] is bool else value for key, value in flags}  # the later one counts
    arguments = [f'--{key}={value}' for key, value in values.items()]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro's own message is a page; ours is a line
            return parsed(arguments)
    except SystemExit as error:
        culprit = next((key for key, argument in zip(values, arguments, strict=True) if _fails(parsed, argument)), None)
        if culprit is None:
            raise
        raise UserError(
            f'--{culprit}={values[culprit]} is of the wrong type; it takes {_name(kinds[culprit])}'
        ) from error


def _fails(parsed, argument):
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed([argument])
    except SystemExit:
        return True
    return False


def _bool_text(text):
    """'true', 'True' and '1' mean True; tyro knows only the second."""
    return str(bool(ast.literal_eval(text.capitalize()))) if _is_bool(text) else text
