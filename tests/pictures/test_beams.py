"""A beam search as a tree."""

from matplotlib.colors import to_rgb
from matplotlib.image import imread

from pictures.beams import Branch, draw_beams
from pictures.style import BLUE, CHOSEN, GREY


def test_a_tree_has_every_beam_with_its_probability(tmp_path, last_figure):
    levels = [
        [Branch('·a', 0, 0.5, -0.69, True, True), Branch('$x$', 0, 0.25, -1.39, False, False)],
        [Branch('·fox', 0, 0.125, -2.77, True, True), Branch('⏎', 0, 0.0004, -8.5, False, True)],
    ]
    draw_beams(tmp_path / 'beams.png', levels, 'Once ▁ $')
    assert imread(tmp_path / 'beams.png').shape[1] > 300
    axes = last_figure().axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert {'·a', '$x$', '·fox', '⏎', '0.500', '0.250', '0.125', '4e-04', '-0.69', '-8.50'} <= set(texts)
    colours = [to_rgb(patch.get_edgecolor()) for patch in axes.patches]
    expected = [CHOSEN, GREY, CHOSEN, BLUE]
    assert colours == [to_rgb(colour) for colour in expected]
    ends = [(patch.get_path().vertices[0].tolist(), patch.get_path().vertices[-1].tolist()) for patch in axes.patches]
    assert ends == [([0, 0], [1, 0]), ([0, 0], [1, 1]), ([1, 0], [2, 0]), ([1, 0], [2, 1])]
