"""visualize.py as a person meets it: every picture run, looked at by a program, and every mistake answered."""

import contextlib
import itertools
import math
import re
import sys

import numpy as np
import pytest
import torch
from helpers.models import random_gpt
from helpers.scripts import assert_friendly_error, run_script
from matplotlib.image import imread
from matplotlib.text import Text

import configurator
import visualize
from common.errors import UserError
from lm import checkpoint, internals
from lm.alternatives import entropy
from lm.tokenizer import CharTokenizer
from lm.wording import format_three_digits
from model import logits_to_logprobs
from pictures.attention import draw_attention, draw_matrix
from pictures.embeddings import WORDS, draw_embeddings, read_words
from pictures.layers import POSITIONS, draw_layers
from pictures.temperature import Panel, cut_lines, draw_temperature, openness

TEN = 'The old king had a daughter who was so'
SIXTY = (
    'Once upon a time there was an old king who had a daughter. She was as beautiful as the day, and all princes of '
    'the land wished to marry her. But the king said: "She shall have none but him who brings me the golden bird from '
    'the garden of the sun, and the water of life."'
)
PICTURES = ['temperature', 'attention', 'embeddings', 'layers', 'trace']
CHARS = 'abcdefghijklmnopqrstuvwxyz .$_\n'


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """A folder where somebody has trained a model as nanoGPT does: no biases, exact GELU, characters, padded ids."""
    folder = tmp_path_factory.mktemp('odd')
    model = random_gpt(64, 24, n_layer=2, n_head=2, bias=False, gelu='none', n_ids=len(CHARS))
    (folder / 'out').mkdir()
    checkpoint.save_checkpoint(folder / 'out' / 'ckpt.pt', model, CharTokenizer(CHARS), config={})
    one = random_gpt(len(CHARS), 8, n_layer=1, n_head=1, n_embd=4)
    (folder / 'one').mkdir()
    checkpoint.save_checkpoint(folder / 'one' / 'ckpt.pt', one, CharTokenizer(CHARS), config={})
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments):
    """Do in this process what visualize.py does with these arguments."""
    argv = ['visualize.py', *arguments]
    main, settings_class = visualize.chosen(argv)
    return main(configurator.read(settings_class, argv[1:]))


def refused(*arguments):
    """Return the one line that answers a mistake."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def assert_picture(path, at_least=300):
    """A file is a PNG with something on it, neither tiny nor enormous; return its (height, width)."""
    assert path.read_bytes().startswith(b'\x89PNG\r\n')
    image = imread(path)
    height, width = image.shape[:2]
    assert at_least <= height <= 8000 and at_least <= width <= 8000
    assert image[..., :3].std() > 0.01
    return height, width


# As it is called ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('picture', PICTURES)
def test_every_picture_is_drawn_without_any_settings(picture, tmp_path):
    process = run_script('visualize.py', picture, cwd=tmp_path, env={'DISPLAY': '', 'MPLBACKEND': 'TkAgg'})
    assert process.returncode == 0, process.stderr
    assert process.stderr == ''
    assert 'tiny-stories' in process.stdout
    paths = re.findall(r'^\w+: (results/\S+\.png)$', process.stdout, re.MULTILINE)
    assert len(paths) == (2 if picture == 'attention' else 1)
    for path in paths:
        assert_picture(tmp_path / path)
    assert sorted(tmp_path.rglob('*.png')) == sorted(tmp_path / path for path in paths)


def test_help_lists_the_five(here, capsys):
    call('--help')
    out = capsys.readouterr().out
    for picture in PICTURES:
        (line,) = [line for line in out.splitlines() if line.startswith(f'  {picture} ')]
        assert len(line) > 40


def test_help_of_one_picture_lists_its_settings(tmp_path):
    process = run_script('visualize.py', 'attention', '--help', cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert 'visualize.py attention' in process.stdout
    for setting in ('--layer', '--head', '--start', '--save', '--init_from'):
        assert setting in process.stdout
    assert '--temperatures' not in process.stdout


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], ['name a picture', *PICTURES]),
        (['attention', '--layer=4'], ['--layer=4', 'layers 0 to 3']),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_on_stderr(arguments, words, tmp_path):
    assert_friendly_error(run_script('visualize.py', *arguments, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['zzzzzz'], ['zzzzzz', *PICTURES]),
        (['atention'], ["'atention'", 'did you mean attention']),
        (['--start=The king'], ['name a picture', *PICTURES]),
        (['attention', '--layer=-1'], ['--layer=-1', '0 to 3']),
        (['attention', '--head=4'], ['--head=4', 'heads 0 to 3']),
        (['attention', '--haed=4'], ['--haed', 'did you mean head']),
        (['trace', '--layer=99'], ['--layer=99', '0 to 3']),
        (['layers', '--start=' + 'king ' * 2000], ['2,00', 'at most 256']),
        (['layers', '--start=FILE:missing.txt'], ['missing.txt']),
        (['layers', '--save=picture.jpg'], ['picture.jpg', '.png']),
        (['layers', '--save=.png'], ['--save=.png', 'name that ends in .png']),
        (['temperature', '--temperatures=0.5,hot'], ["'hot'"]),
        (['temperature', '--temperatures='], ["''"]),
        (['temperature', '--temperatures=1,-2'], ['-2']),
        (['temperature', '--temperatures=1,nan'], ['nan']),
        (['temperature', '--temperatures=1,2,3,4,5,6,7,8,9'], ['at most 8']),
        (['temperature', '--temperatures=1,2e30'], ['2e30', '1e+30']),
        (['temperature', '--top_k=0'], ['--top_k=0']),
        (['temperature', '--top_p=1.5'], ['--top_p=1.5']),
        (['embeddings', '--words=king,unicorn,dog,zyzzyva'], ['unicorn (', 'zyzzyva (', '·']),
        (['embeddings', '--words=king,king, king'], ['three']),
        (['embeddings', '--words='], ['three']),
        (['embeddings', '--method=lda'], ['lda', 'pca, tsne or umap']),
        (['embeddings', '--neighbours=0'], ['--neighbours=0']),
        (['embeddings', '--grey=21'], ['--grey=21', '0 to 20']),
        (['embeddings', '--grey=-1'], ['--grey=-1', '0 to 20']),
        (['embeddings', '--method=tsne', '--seed=-1'], ['--seed=-1', '4294967295']),
        (['embeddings', '--method=umap', '--seed=4294967296'], ['--seed=4294967296', '4294967295']),
        (['embeddings', '--init_from=no-such-folder/at/all'], ['no-such-folder']),
    ],
    ids=lambda value: ' '.join(value)[:40],
)
def test_a_mistake_is_answered_before_anything_is_written(arguments, words, here):
    message = refused(*arguments)
    for word in words:
        assert word in message, message
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(('method', 'module'), [('tsne', 'sklearn.manifold'), ('umap', 'umap')])
def test_a_package_that_is_not_there_is_asked_for(method, module, here, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    assert 'pip install' in refused('embeddings', f'--method={method}')
    assert list(here.iterdir()) == []


def test_tsne_is_drawn_where_scikit_learn_is_installed(here, capsys):
    pytest.importorskip('sklearn')
    call('embeddings', '--method=tsne', '--words=king,queen,dog,cat', '--save=words.png')
    assert_picture(here / 'words.png')


# Any model, any text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('picture', PICTURES)
def test_a_model_of_characters_as_nanogpt_leaves_it(picture, odd, here, capsys):
    about = ['--words=a,b,c, ,$'] if picture == 'embeddings' else ['--start=a $b_c$\nthe king']
    with contextlib.chdir(odd):
        call(picture, '--out_dir=out', *about, f'--save={here / "picture.png"}')
    assert_picture(here / 'picture.png')
    assert 'out' in capsys.readouterr().out


@pytest.mark.parametrize('picture', [name for name in PICTURES if name != 'embeddings'])
@pytest.mark.parametrize('start', ['a', 'abcdefgh'], ids=['one token', 'as many as fit'])
def test_a_model_of_one_layer_and_one_head(picture, start, odd, here, capsys):
    with contextlib.chdir(odd):
        call(picture, '--out_dir=one', f'--start={start}', f'--save={here / "picture.png"}')
        assert 'at most 8' in refused(picture, '--out_dir=one', '--start=abcdefghi')
    assert_picture(here / 'picture.png', at_least=250)


@pytest.mark.parametrize('picture', [name for name in PICTURES if name != 'embeddings'])
@pytest.mark.parametrize('start', ['', 'naïve 日本 🦊 $x_1$', SIXTY], ids=['empty', 'unicode', 'sixty tokens'])
def test_any_text(picture, start, here, capsys):
    call(picture, f'--start={start}', '--save=picture.png')
    assert_picture(here / 'picture.png')
    if not start:
        assert '<|endoftext|>' in capsys.readouterr().out


def test_a_text_without_tokens_needs_an_end_of_text(odd, here):
    with contextlib.chdir(odd):
        assert 'prompt is empty' in refused('layers', '--out_dir=out', '--start=')


def test_a_word_is_the_token_of_running_text_if_there_is_one():
    _, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    king, queen, endoftext = read_words('king, queen ,<|endoftext|>', tokenizer)
    assert tokenizer.pieces([king, queen, endoftext]) == ['·king', '·queen', '<|endoftext|>']
    assert read_words(WORDS, tokenizer)
    characters = CharTokenizer('abc')  # without a space
    assert read_words('c,a,b', characters) == [2, 0, 1]
    with pytest.raises(UserError, match='does not know'):
        read_words('c,a,b,z', characters)
    with pytest.raises(UserError, match='three'):
        read_words(WORDS, characters)


# What is printed ------------------------------------------------------------------------------------------------------


def test_the_printed_temperatures_are_those_of_the_model(here, capsys):
    call('temperature', f'--start={TEN}', '--temperatures=0,1', '--save=t.png')
    model, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    with torch.no_grad():
        logprobs = logits_to_logprobs(model(torch.tensor([tokenizer.encode(TEN)]))[0][0, -1])
    nats = entropy(logprobs).item()
    greedy, plain = [line for line in capsys.readouterr().out.splitlines() if re.match(r'│\s+[01] │', line)]
    assert f'{nats:.3f}' in plain and f'{math.exp(nats):,.1f}' in plain
    assert f'{logprobs.max().exp().item():.3f}' in plain
    assert '0.000' in greedy and '1 (100.0%)' in greedy


@pytest.mark.parametrize('cuts', [('None', 'None'), ('100000', '1.0'), ('1', '0.0001'), ('3', 'None')])
def test_any_cuts_or_none(cuts, here, capsys):
    call('temperature', f'--start={TEN}', f'--top_k={cuts[0]}', f'--top_p={cuts[1]}', '--save=t.png')
    assert_picture(here / 't.png')
    assert capsys.readouterr().out.count('—') == 4 * cuts.count('None')


def test_trace_prints_model_py_line_by_line(here, capsys):
    call('trace', f'--start={TEN}', '--layer=3', '--save=trace.png')
    out = capsys.readouterr().out
    for code in ('self.transformer.wte(idx)', 'qkv.view(B, T, 3, n_head', 'x + self.mlp(self.ln_2(x))'):
        assert code in out
    assert out.count('c_attn(x)') == 2  # in one block, its line and its value
    assert 'transformer.h[3]\n' in out and 'transformer.h[2], in short: --layer=2 unfolds it' in out
    assert '(B, nh, T, T) = (1, 4,' in out


@pytest.mark.parametrize(
    ('layer', 'others'),
    [
        (0, 'h[1] to h[3] after it do'),
        (1, 'h[0] before it, and h[2] and h[3] after it do'),
        (3, 'before it do'),
    ],
)
def test_trace_draws_the_block_that_it_unfolds(layer, others, here, monkeypatch, capsys):
    ((_, figure),) = figures_of(monkeypatch, 'trace', f'--start={TEN}', f'--layer={layer}').items()
    said = texts(figure)
    assert f'Block {layer}: transformer.h[{layer}]' in said
    assert [text for text in said if others in text]


def test_layers_say_the_same_numbers_in_the_table_and_in_the_picture(here, monkeypatch, capsys):
    ((_, figure),) = figures_of(monkeypatch, 'layers', f'--start={TEN}').items()
    out = capsys.readouterr().out
    model, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    lens = internals.logit_lens(model, torch.tensor([tokenizer.encode(TEN)]))
    probs, ranks = ([text.get_text() for text in axes.texts] for axes in figure.axes[-2:])
    for layer in range(model.config.n_layer + 1):
        mean = math.exp(lens.next_logprobs[layer, 0].double().mean())
        assert float(probs[layer]) == pytest.approx(mean, rel=0.006)
        assert float(ranks[layer].replace(',', '')) == np.median(lens.next_ranks[layer, 0])
        assert f' {probs[layer]} │' in out and f' {ranks[layer]} │' in out


def test_a_probability_too_small_for_a_float_is_written_and_drawn():
    assert format_three_digits(math.log(0.00125)) == '0.00125'
    assert re.fullmatch(r'\d\.\d\de-435', format_three_digits(-1000.0))
    ranks, logprobs = np.full((2, 3), 1.5), np.array([[-2000.0, -1000, 0], [-1, -2, -3]])
    figure = draw_layers('a title', list('abcd'), [list('abcd')] * 2, np.ones((2, 4)), ranks, logprobs)
    probs, of_ranks = figure.axes[-2:]
    np.testing.assert_allclose(probs.lines[0].get_ydata(), np.array([-1000, -2]) / math.log(10))
    assert [text.get_text() for text in of_ranks.texts] == ['1.5', '1.5']


def test_a_picture_is_named_in_any_case(here, capsys):
    call('LAYERS', f'--start={TEN}', '--save=layers.PNG')
    assert_picture(here / 'layers.PNG')


def test_attention_of_one_head_says_where_each_token_looks(here, capsys):
    call('attention', f'--start={TEN}', '--layer=2', '--head=1', '--save=head.png')
    out = capsys.readouterr().out
    model, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    ids = tokenizer.encode(TEN)
    weights = list(internals.layer_attentions(model, torch.tensor([ids])))[2][0, 1]
    for place, piece in enumerate(tokenizer.pieces(ids)):
        best = weights[place].argmax().item()
        assert f'{piece}' in out and f'{tokenizer.pieces([ids[best]])[0]} {weights[place, best].item():.2f}' in out
    assert {path.name for path in here.glob('*.png')} == {'head.png', 'head-rollout.png'}


# What is drawn --------------------------------------------------------------------------------------------------------


def figures_of(monkeypatch, *arguments):
    """Return the figures, {name: figure}, that visualize.py would save."""
    kept = {}
    with monkeypatch.context() as patched:
        patched.setattr(visualize, 'keep', lambda figures, *_: kept.update(figures))
        call(*arguments)
    return kept


def drawn_texts(figure, monkeypatch):
    """Draw a figure; return [(Text, its extent in pixels)] of all that was really drawn: ticks out of range are not."""
    drawn, plain = [], Text.draw

    def noting(self, renderer, *rest, **more):
        if self.get_visible() and self.get_text():
            drawn.append(self)
        return plain(self, renderer, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Text, 'draw', noting)
        figure.canvas.draw()
    return [(text, Text.get_window_extent(text)) for text in dict.fromkeys(drawn)]


def assert_readable(figure, monkeypatch, strictly=False):
    """All texts of a figure lie on it, and titles, notes and names of axes (strictly: all) lie on no other text."""
    drawn = drawn_texts(figure, monkeypatch)
    width, height = figure.bbox.size
    for text, box in drawn:
        inside_it = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside_it, f'{text.get_text()!r} is cut off: {box} of {width} x {height}'
    heads = set(figure.texts)
    for axes in figure.axes:
        heads |= {axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label}
    for (text, box), (other, other_box) in itertools.product(
        [one for one in drawn if strictly or one[0] in heads], drawn
    ):
        assert text is other or not box.overlaps(other_box), f'{text.get_text()!r} lies on {other.get_text()!r}'


WAYS = {
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


@pytest.mark.parametrize(
    ('arguments', 'T'),
    [
        pytest.param(arguments, T, id=f'{name}, {T}')
        for name, arguments in WAYS.items()
        for T in ((1, 60) if arguments[0] == 'temperature' else (1, 5, 10, 30, 60))
    ],
)
def test_no_text_is_cut_off_and_no_title_covered(arguments, T, here, monkeypatch, capsys):
    _, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    start = tokenizer.decode(tokenizer.encode(SIXTY)[:T])
    assert len(tokenizer.encode(start)) == T
    for figure in figures_of(monkeypatch, *arguments, f'--start={start}').values():
        assert_readable(figure, monkeypatch, strictly=arguments[0] in ('temperature', 'layers', 'trace'))


@pytest.mark.parametrize('arguments', [[], ['--grey=20'], ['--grey=0', '--words=king,queen,dog']], ids=str)
def test_no_word_of_the_plane_is_cut_off(arguments, here, monkeypatch, capsys):
    for figure in figures_of(monkeypatch, 'embeddings', *arguments).values():
        assert_readable(figure, monkeypatch, strictly=not arguments)


@pytest.mark.parametrize(
    ('left', 'top_k', 'top_p', 'lines'),
    [
        (3, None, 3, {3: ['top-p']}),
        (3, 4, 5, {3: ['both'], 4: ['top-k alone'], 5: ['top-p alone']}),
        (4, 4, 19, {4: ['both', 'top-k alone']}),
        (1, 1, 1, {1: ['both', 'top-k alone', 'top-p alone']}),
        (9, None, None, {}),
    ],
)
def test_one_solid_line_stands_where_the_cuts_together_end(left, top_k, top_p, lines):
    probs = np.full(20, 0.05)
    panel = Panel(1.0, probs, math.log(20), top_k, top_p, left, [])
    assert cut_lines(panel, 12) == lines
    figure = draw_temperature('a title', list('abcdefghijkl'), [panel], top_k, top_p, ([0, 1], [1, 20]))
    axes = figure.axes[0]
    solid = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == '-']
    assert solid == ([left - 0.5] if lines else [])
    assert sorted(line.get_ydata()[0] for line in axes.lines) == [tokens - 0.5 for tokens in sorted(lines)]
    if lines:
        pale = [bar.get_facecolor()[3] < 1 for bar in axes.patches[:12]]
        assert pale == [place >= left for place in range(12)]


@pytest.mark.parametrize('temperatures', [[0.0], [0.3, 1.5], [0.0, 1e30], [1e-30, 40.0]])
def test_every_temperature_lies_on_the_curve(temperatures):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3
    points, choices = openness(logits, temperatures)
    assert set(temperatures) <= set(points) and points == sorted(points)
    assert all(map(math.isfinite, [*points, *choices]))
    for one in temperatures:
        assert choices[points.index(one)] == pytest.approx(math.exp(internals.temper_distribution(logits, one).entropy))


def texts(figure):
    return [text.get_text() for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]]


@pytest.mark.parametrize('T', [1, 10, 60, 250])
def test_matrices_have_pieces_on_both_sides_and_grow(T):
    pieces = [f'·w{place}' for place in range(T)]
    matrix = np.tril(np.random.default_rng(0).random((T, T)))
    figure = draw_matrix('a title', matrix, pieces, 'weight')
    axes = figure.axes[0]
    for ticks, labels in ((axes.get_xticks(), axes.get_xticklabels()), (axes.get_yticks(), axes.get_yticklabels())):
        assert [label.get_text() for label in labels] == [pieces[int(tick)] for tick in ticks]
    if T <= 60:
        assert len(axes.get_xticks()) == T
    numbers = [text.get_text() for text in axes.texts]
    if 1 < T <= 30:
        worth = matrix[matrix >= 0.005]
        assert sorted(numbers) == sorted(f'{value:.2f}'.removeprefix('0') for value in worth)
    assert max(figure.get_size_inches()) < 65


def test_the_grid_has_a_row_for_each_layer_and_a_column_for_each_head():
    weights = np.tril(np.random.default_rng(0).random((3, 2, 5, 5)))
    figure = draw_attention('a title', weights, range(3), range(2), list('abcde'))
    drawn = [axes for axes in figure.axes if axes.images]
    for axes, matrix in zip(drawn, weights.reshape(6, 5, 5), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array().filled(0), matrix)
    assert {'layer 0', 'layer 1', 'layer 2'} <= set(texts(figure))
    assert [axes.get_title() for axes in drawn[:2]] == ['head 0', 'head 1']


def test_the_lens_frames_what_really_came():
    tops = [['x', 'b', 'c'], ['b', 'x', 'c']]
    figure = draw_layers(
        'a title',
        ['·a', '·b', '·c'],
        tops,
        np.full((2, 3), 0.4),
        np.array([[5, 7], [1, 2]]),
        np.log(np.full((2, 2), 0.1)),
    )
    axes = figure.axes[0]
    framed = [bool(np.allclose(patch.get_edgecolor()[:3], (0.91, 0.455, 0.231), atol=0.01)) for patch in axes.patches]
    assert framed == [False, False, False, True, False, False]  # layer by layer
    said = [text.get_text() for text in axes.texts]
    assert said[-3:] == ['·b', '·c', '?']
    assert {'5', '7', '1', '2'} <= set(said)


def test_of_a_very_long_text_the_lens_draws_the_end_and_counts_all():
    T = POSITIONS + 9
    pieces = [f'·w{place}' for place in range(T)]
    ranks = np.full((2, T - 1), 3)
    ranks[1, :9] = 5  # in the part that is not drawn
    figure = draw_layers('a title', pieces, [pieces] * 2, np.full((2, T), 0.4), ranks, np.full((2, T - 1), -2.3))
    *blocks, _, _, of_ranks = figure.axes
    drawn = [label.get_text() for axes in blocks for label in axes.get_xticklabels()]
    assert drawn == pieces[9:]
    assert of_ranks.lines[0].get_ydata() == pytest.approx([math.log10(3)] * 2)


def test_no_two_words_lie_on_each_other(monkeypatch):
    points = np.random.default_rng(0).normal(size=(230, 2))
    points[30:] = 4 + points[30:] / 20  # the grey ones in a crowd
    labels, others = ([f'{name}{number}' for number in range(count)] for name, count in (('·word', 30), ('·grey', 200)))
    axis_labels = ('first', 'second')
    figure = draw_embeddings('a title', points[:30], labels, points[30:], others, axis_labels)
    drawn = [(text, box) for text, box in drawn_texts(figure, monkeypatch) if text.get_text()[0] == '·']
    said = [text.get_text() for text, _ in drawn]
    assert set(labels) <= set(said) and 30 < len(said) < 230  # a grey one without room is left out
    for (text, box), (other, other_box) in itertools.combinations(drawn, 2):
        assert not box.overlaps(other_box), (text.get_text(), other.get_text())
