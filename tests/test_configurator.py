"""Settings come from defaults, config files and the command line, and the last one wins."""

import dataclasses
import sys
from dataclasses import dataclass

import pytest
from helpers.nanogpt_configs import CHARACTERS, EVALUATION, FINE_TUNING

import configurator
import train
from common.errors import UserError


@dataclass
class Settings:
    """A small script."""

    name: str = 'somebody'  # who it is for
    size: int = 3  # how many
    learning_rate: float = 0.5  # how fast
    note: str | None = None  # what to say
    top_k: int | None = 10  # how many at the most
    share: float | None = None  # how much of it
    quick: bool = False  # whether to hurry
    careful: bool = True  # whether to look twice


def read(*arguments):
    return configurator.read(Settings, arguments)


def assert_changed(settings, **changed):
    """Only these settings differ from the defaults, and every value is of its setting's own type."""
    wanted = dataclasses.replace(Settings(), **changed)
    assert settings == wanted
    for name, value in dataclasses.asdict(wanted).items():
        assert type(getattr(settings, name)) is type(value), name


@pytest.fixture
def config(tmp_path):
    """A function that writes a config file and returns its path."""

    def write(text, name='settings.py', encoding='utf-8'):
        path = tmp_path / name
        path.write_text(text, encoding=encoding)
        return str(path)

    return write


# The command line ---------------------------------------------------------------------------------------------------


def test_without_arguments_the_defaults_stand():
    assert_changed(read())


@pytest.mark.parametrize(
    ('arguments', 'changed'),
    [
        (['--size=5'], {'size': 5}),
        (['--size', '5'], {'size': 5}),
        (['--size=-5'], {'size': -5}),
        (['--size', '-5'], {'size': -5}),
        (['--learning-rate=0.1'], {'learning_rate': 0.1}),
        (['--learning-rate', '1e-3'], {'learning_rate': 1e-3}),
        (['--learning_rate', '-0.5'], {'learning_rate': -0.5}),
        (['--learning_rate=1'], {'learning_rate': 1.0}),
        (['--share=2'], {'share': 2.0}),
        (['--top_k=5'], {'top_k': 5}),
        (['--top_k=None'], {'top_k': None}),
        (['--share=None'], {'share': None}),
        (['--note=None'], {'note': None}),
        (['--name=None'], {'name': 'None'}),
        (['--note=7'], {'note': '7'}),
        (['--name=a=b==c'], {'name': 'a=b==c'}),
        (['--name', 'a=b'], {'name': 'a=b'}),
        (['--name=-x'], {'name': '-x'}),
        (['--name', '-x'], {'name': '-x'}),
        (['--name=--size=5'], {'name': '--size=5'}),
        (['--note=--'], {'note': '--'}),
        (['--name='], {'name': ''}),
        (['--name', ''], {'name': ''}),
        (['--note='], {'note': ''}),
        (['--note= a shoe'], {'note': ' a shoe'}),
        (['--name=100% "{sure}"\n@home \\n'], {'name': '100% "{sure}"\n@home \\n'}),
        (['--name=Schneewittchen & 白雪姫'], {'name': 'Schneewittchen & 白雪姫'}),
    ],
)
def test_flags_set_what_they_name(arguments, changed):
    assert_changed(read(*arguments), **changed)


@pytest.mark.parametrize('written', ['--quick', '--quick=true', '--quick=True', '--quick=TRUE', '--quick=1'])
def test_a_switch_can_be_turned_on(written):
    assert_changed(read(written), quick=True)


@pytest.mark.parametrize('written', ['--careful=false', '--careful=False', '--careful=0'])
def test_a_switch_can_be_turned_off(written):
    assert_changed(read(written), careful=False)
    assert_changed(read(*written.split('=')), careful=False)


def test_a_bare_switch_leaves_what_follows_alone(config):
    assert_changed(read('--quick', '--size=5'), quick=True, size=5)
    assert_changed(read('--quick', config('size = 5')), quick=True, size=5)
    assert_changed(read('--quick', 'True', config('size = 5')), quick=True, size=5)


def test_of_two_flags_with_one_name_the_later_counts():
    assert_changed(read('--size=4', '--name=a', '--size', '5'), size=5, name='a')
    assert_changed(read('--learning-rate=1', '--learning_rate=2'), learning_rate=2.0)
    assert_changed(read('--quick', '--quick=False'))


# Config files -------------------------------------------------------------------------------------------------------


def test_a_file_comes_before_the_flags_wherever_it_stands(config):
    file = config("size = 5\nname = 'file'\n")
    assert_changed(read(file), size=5, name='file')
    assert_changed(read(file, '--size=6'), size=6, name='file')
    assert_changed(read('--size=6', file), size=6, name='file')
    assert_changed(read('--size', '6', file), size=6, name='file')


def test_of_two_files_the_later_counts_and_sees_what_the_first_one_set(config):
    first = config("size = 5\nname = 'first'\n", 'first.py')
    second = config("name = 'second'\ntop_k = size * 2\n", 'second.py')
    assert_changed(read(first, second, '--quick'), size=5, name='second', top_k=10, quick=True)
    assert_changed(read(second, first), size=5, name='first', top_k=6)


def test_a_file_is_python_and_only_its_settings_count(config):
    file = config(
        'import os.path\n'
        'import time\n'
        'from pathlib import Path\n'
        '_base = 4\n'
        'def double(number):\n'
        '    return 2 * number\n'
        'size = double(_base)  # computed\n'
        'top_k = size + 1  # from a setting above\n'
        'learning_rate = learning_rate / 5  # from the default\n'
        "name = 'at-' + str(int(time.time()) * 0)\n"
        'note = Path(__file__).name\n'
        'quick = True\n'
    )
    assert_changed(read(file), size=8, top_k=9, learning_rate=0.1, name='at-0', note='settings.py', quick=True)


def test_a_file_may_write_a_float_as_an_integer_and_none_where_it_may_stand(config):
    file = config('learning_rate = 1\nshare = 2\ntop_k = None\n')
    assert_changed(read(file), learning_rate=1.0, share=2.0, top_k=None)


def test_a_file_saved_with_a_byte_order_mark_is_read(config):
    assert_changed(read(config('size = 5\n', encoding='utf-8-sig')), size=5)


def test_a_file_that_powershell_wrote_is_read(config):
    assert_changed(read(config('size = 5\r\nquick = True\r\n', encoding='utf-16')), size=5, quick=True)


def test_a_file_in_the_home_folder_is_read(config, tmp_path, monkeypatch):
    config('size = 5\n', 'mine.py')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert_changed(read('~/mine.py'), size=5)


def test_configs_are_chosen_only_if_none_is_named(config):
    def choose(flags):
        chosen.append(flags)
        return [default]

    default, other, chosen = config('size = 5', 'default.py'), config('size = 6', 'other.py'), []
    assert_changed(configurator.read(Settings, ['--name=a', '--quick'], choose), size=5, name='a', quick=True)
    assert_changed(configurator.read(Settings, [other], choose), size=6)
    assert chosen == [{'name': 'a', 'quick': 'True'}]


def test_a_relative_path_means_where_one_stands_or_else_the_project(config, tmp_path, monkeypatch):
    config('size = 5\n', 'mine.py')
    monkeypatch.chdir(tmp_path)
    assert_changed(read('mine.py'), size=5)
    assert configurator.read(train.Settings, ['config/train_tiny.py']).dataset == 'prose'


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--sise=5'], ['--sise', 'did you mean size?']),
        (['--learningrate', '5'], ['did you mean learning_rate?']),
        (['--zzz'], ['--zzz', '--help']),
        (['--=5'], ['--help']),
        (['--size'], ['--size', 'needs a value']),
        (['--size', '--quick'], ['--size', 'needs a value']),
        (['--size=5.5'], ['--size=5.5', 'int']),
        (['--size=five'], ['--size=five', 'int']),
        (['--size=True'], ['--size=True', 'int']),
        (['--size=None'], ['--size=None', 'int']),
        (['--size='], ['--size=', 'int']),
        (['--learning_rate=fast'], ['--learning_rate=fast', 'float']),
        (['--top_k=some'], ['--top_k=some', 'int | None']),
        (['--quick=maybe'], ['--quick=maybe', 'bool']),
        (['--quick='], ['--quick=', 'bool']),
        (['--name=a', '--size=x', '--quick'], ['--size=x']),
        (['nowhere.py'], ['nowhere.py', 'No such file']),
        (['.'], ["'.'", '.py']),
        (['size=5'], ["'size=5'", 'did you mean --size=5?']),
        (['-size=5'], ["'-size=5'", 'did you mean --size=5?']),
        (['Once upon a time'], ['Once upon a time', '--key=value']),
    ],
)
def test_a_wrong_flag_is_refused_and_named(arguments, words):
    with pytest.raises(UserError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert '\n' not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('sise = 5', ['sise', 'did you mean size?']),
        ('zzz = 5', ['zzz', '--help']),
        ('size = 5.0', ['size = 5.0', 'int']),
        ('size = True', ['size = True', 'int']),
        ("size = '5'", ["size = '5'", 'int']),
        ('size = None', ['size = None', 'int']),
        ('learning_rate = True', ['learning_rate = True', 'float']),
        ("learning_rate = '0.1'", ["learning_rate = '0.1'", 'float']),
        ('quick = 1', ['quick = 1', 'bool']),
        ('name = None', ['name = None', 'str']),
        ('note = 5', ['note = 5', 'str | None']),
        ('top_k = 5.0', ['top_k = 5.0', 'int | None']),
        ('size = max', ['size', 'int']),
        ('size = = 5', ['not Python', 'line 1']),
        ('name = "\0"', ['not text', 'NUL']),
        ('size = 5 / 0', ['ZeroDivisionError']),
        ('import no_such_module', ['ModuleNotFoundError', 'no_such_module']),
    ],
)
def test_a_wrong_file_is_refused_and_named(config, text, words):
    with pytest.raises(UserError) as caught:
        read(config(text))
    message = str(caught.value)
    assert '\n' not in message
    for word in ['settings.py', *words]:
        assert word in message


def test_a_file_that_is_not_utf_8_is_refused(config):
    with pytest.raises(UserError, match='not UTF-8'):
        read(config("name = 'Schneewittchen, schön'", encoding='latin-1'))


# How a script ends --------------------------------------------------------------------------------------------------


def run(monkeypatch, main, *arguments):
    """Return the exit code of a script."""
    monkeypatch.setattr(sys, 'argv', ['script.py', *arguments])
    try:
        configurator.run(main, Settings)
    except SystemExit as stop:
        return stop.code
    return 0


def test_a_script_gets_its_settings(monkeypatch):
    seen = []
    assert run(monkeypatch, seen.append, '--size=5') == 0
    assert_changed(seen[0], size=5)


def test_help_is_the_comment_beside_each_setting(monkeypatch, capsys):
    assert run(monkeypatch, pytest.fail, '--size=5', '--help') == 0
    out = capsys.readouterr().out
    assert 'A small script.' in out
    for words in ('--learning_rate', 'how fast', 'whether to look twice'):
        assert words in out


def test_help_shows_what_a_config_file_makes_of_the_defaults(monkeypatch, capsys, config):
    assert run(monkeypatch, pytest.fail, config('size = 4321'), '-h') == 0
    assert '4321' in capsys.readouterr().out


def test_a_mistake_ends_with_code_2_and_one_line(monkeypatch, capsys):
    assert run(monkeypatch, pytest.fail, '--sise=5') == 2
    assert capsys.readouterr().err == 'error: there is no setting --sise; did you mean size?\n'


def test_a_mistake_takes_one_line_whatever_it_quotes(monkeypatch, capsys, config):
    assert run(monkeypatch, pytest.fail, config("raise ValueError('several\\nlines')")) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_ctrl_c_ends_with_code_130_and_no_traceback(monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    assert run(monkeypatch, interrupted) == 130
    assert 'interrupted' in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(settings):
        raise KeyError('a bug')

    with pytest.raises(KeyError):
        run(monkeypatch, broken)


# nanoGPT's own ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'some'),
    [
        (CHARACTERS, {'dataset': 'shakespeare_char', 'dropout': 0.2, 'beta2': 0.99, 'always_save_checkpoint': False}),
        (FINE_TUNING, {'init_from': 'gpt2-xl', 'gradient_accumulation_steps': 32, 'decay_lr': False}),
        (EVALUATION, {'init_from': 'gpt2', 'eval_only': True, 'eval_iters': 500}),
    ],
    ids=['characters', 'fine-tuning', 'evaluation'],
)
def test_train_takes_config_files_as_nanogpt_writes_them(config, text, some):
    settings = configurator.read(train.Settings, [config(text), '--device=cpu', '--compile=False', '--max_iters=7'])
    assert dataclasses.asdict(settings).items() >= {**some, 'device': 'cpu', 'max_iters': 7}.items()
    for field in dataclasses.fields(train.Settings):
        if field.name not in text:
            assert field.name in ('device', 'max_iters') or getattr(settings, field.name) == field.default
