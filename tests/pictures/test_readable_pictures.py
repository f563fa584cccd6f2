"""No text of a picture is cut off or covered by another."""

import pytest
from helpers.pictures import SIXTY, assert_readable, figures_of

from lm import checkpoint

COMMANDS = {
    'temperature': ['temperature'],
    'greedy': ['temperature', '--temperatures=0', '--top_k=1'],
    'eight temperatures': ['temperature', '--temperatures=0,0.2,0.5,0.9,1,1.5,3,1e30', '--top_k=3', '--top_p=0.5'],
    'flat': ['temperature', '--temperatures=1e30', '--top_k=7', '--top_p=0.8'],
    'grid': ['attention'],
    'layer': ['attention', '--layer=1'],
    'one head of every layer': ['attention', '--head=2'],
    'head': ['attention', '--layer=1', '--head=2'],
    'layers': ['layers'],
    'trace': ['trace', '--layer=2'],
}
# Those with these numbers of tokens run by default; the others are slow.
BY_DEFAULT = {
    ('temperature', 60),
    ('greedy', 1),
    ('grid', 10),
    ('head', 10),
    ('layers', 5),
    ('trace', 10),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arguments', 'T'),
    [
        pytest.param(arguments, T, id=f'{name}, {T}', marks=[] if (name, T) in BY_DEFAULT else pytest.mark.slow)
        for name, arguments in COMMANDS.items()
        for T in ((1, 60) if arguments[0] == 'temperature' else (1, 5, 10, 30, 60))
    ],
)
def test_no_text_is_cut_off_and_no_title_covered(arguments, T, here, monkeypatch, capsys):
    _, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    start = tokenizer.decode(tokenizer.encode(SIXTY)[:T])
    assert len(tokenizer.encode(start)) == T
    for figure in figures_of(monkeypatch, *arguments, f'--start={start}').values():
        assert_readable(figure, monkeypatch, strictly=arguments[0] in ('temperature', 'layers', 'trace'))


@pytest.mark.parametrize(
    'arguments',
    [[], pytest.param(['--grey=20'], marks=pytest.mark.slow), ['--grey=0', '--words=king,queen,dog']],
    ids=str,
)
def test_no_word_of_the_embeddings_is_cut_off(arguments, here, monkeypatch, capsys):
    for figure in figures_of(monkeypatch, 'embeddings', *arguments).values():
        assert_readable(figure, monkeypatch, strictly=not arguments)
