"""sample.py: where a fixed response begins, prompt files as editors write them, and prompts that are too long."""

import re

import pytest
from helpers.world import call, number_after, samples_in

from common.notes import forget_notes
from lm.checkpoint import load_model

SHOE = ('--init_from=tiny-stories', '--device=cpu', '--fixed_response=a shoe')
PUT = 'note: a space was put between prompt and response, which would run together; --separator= leaves it out\n'


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sample(capsys):
    """Run sample.py; return its text, the model's logprob, and what it printed on stderr."""

    def run(*arguments):
        forget_notes()
        capsys.readouterr()
        call('sample.py', *arguments)
        printed = capsys.readouterr()
        (text, _, model), *_ = samples_in(printed.out)
        return text, number_after('logprob', model), printed.err

    return run


def test_i_live_in_a_shoe_has_its_spaces(sample):
    text, logprob, said = sample(*SHOE, '--start=I live in')
    assert (text, said) == ('I live in a shoe', PUT)
    spaced = sample('--init_from=tiny-stories', '--device=cpu', '--start=I live in', '--fixed_response= a shoe')
    assert spaced == (text, logprob, '')
    text, unspaced, said = sample(*SHOE, '--start=I live in', '--separator=')
    assert (text, said) == ('I live ina shoe', '')
    assert unspaced < logprob - 5


@pytest.mark.parametrize(
    'content',
    [b'I live in\n', b'\xef\xbb\xbfI live in\n', b'I live in\r\n', 'I live in\n'.encode('utf-16')],
    ids=['Linux', 'Notepad', 'Windows', 'PowerShell'],
)
def test_a_prompt_file_ends_where_its_text_ends(sample, tmp_path, content):
    (tmp_path / 'prompt.txt').write_bytes(content)
    text, logprob, said = sample(*SHOE, '--start=FILE:prompt.txt')
    assert (text, logprob) == sample(*SHOE, '--start=I live in')[:2]
    assert said == f'note: the line break at the end of prompt.txt is not part of the prompt\n{PUT}'


def test_a_prompt_file_in_the_home_folder(sample, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'prompt.txt').write_text('I live in\n\n')
    assert sample(*SHOE, '--start=FILE:~/prompt.txt')[0] == 'I live in\na shoe'  # only the last line break is dropped


def test_a_prompt_that_ends_inside_a_word_loses_nothing(sample):
    arguments = ('--init_from=tiny-stories', '--device=cpu', '--separator=')
    text, _, said = sample(*arguments, '--start=The little gi', '--fixed_response=rl ran home')
    assert text == 'The little girl ran home'
    assert said.startswith('note: prompt and response meet inside a token; they were encoded separately, as …')


SEARCHES = [(), ('--beam_width=2',), ('--most_probable=1',), ('--fixed_response= a',), ('--html=True',)]


@pytest.mark.parametrize('arguments', SEARCHES, ids=lambda arguments: ' '.join(arguments) or 'samples')
def test_a_prompt_that_does_not_fit_is_reported_once(sample, capsys, tmp_path, arguments):
    tokenizer = load_model('tiny-stories', device='cpu')[1]
    prompt = 'the fox ' * 323
    n = len(tokenizer.encode(prompt.strip() if '--fixed' in ''.join(arguments) else prompt))
    forget_notes()
    call(
        'sample.py',
        '--init_from=tiny-stories',
        '--device=cpu',
        '--max_new_tokens=1',
        f'--start={prompt}',
        *arguments,
    )
    said = f'the prompt has {n} tokens, more than the context of 256: the model sees only the last 256'
    assert re.findall(r'note: the prompt.*', capsys.readouterr().err) == [f'note: {said}']
    for page in tmp_path.rglob('page.html'):
        assert said[1:] in page.read_text(encoding='utf-8')
