"""Calls visualize.py in this process, and looks at the pictures that it makes."""

import itertools

import pytest
from matplotlib.image import imread
from matplotlib.text import Text

import configurator
import visualize
from common.errors import UserError

TEN = 'The old king had a daughter who was so'
SIXTY = (
    'Once upon a time there was an old king who had a daughter. She was as beautiful as the day, and all princes of '
    'the land wished to marry her. But the king said: "She shall have none but him who brings me the golden bird from '
    'the garden of the sun, and the water of life."'
)


def slow(*values):
    """Return values as parameters of slow tests."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def call(*arguments):
    """Do in this process what visualize.py does with these arguments."""
    argv = ['visualize.py', *arguments]
    main, settings_class = visualize.choose_picture(argv)
    return main(configurator.read(settings_class, argv[1:]))


def refused(*arguments):
    """Return the one-line error message for these arguments."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def figures_of(monkeypatch, picture, *arguments):
    """Return the figures, {name: figure}, that visualize.py would save."""
    kept = {}
    with monkeypatch.context() as patched:
        patched.setattr(f'pictures.{picture}.save_pictures', lambda figures, *_: kept.update(figures))
        call(picture, *arguments)
    return kept


def assert_picture(path, at_least=300):
    """A file is a PNG that is not empty, and neither tiny nor enormous; return its (height, width)."""
    assert path.read_bytes().startswith(b'\x89PNG\r\n')
    image = imread(path)
    height, width = image.shape[:2]
    assert at_least <= height <= 8000 and at_least <= width <= 8000
    assert image[..., :3].std() > 0.01
    return height, width


def texts_of(figure):
    """Return the texts of a figure and its axes, without titles and tick labels."""
    return [text.get_text() for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]]


def drawn_texts(figure, monkeypatch):
    """Draw a figure; return [(Text, its extent in pixels)] of all texts that were drawn: not ticks out of range."""
    drawn, draw = [], Text.draw

    def note_and_draw(self, renderer, *rest, **more):
        if self.get_visible() and self.get_text():
            drawn.append(self)
        return draw(self, renderer, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Text, 'draw', note_and_draw)
        figure.canvas.draw()
    return [(text, Text.get_window_extent(text)) for text in dict.fromkeys(drawn)]


def assert_readable(figure, monkeypatch, strictly=False):
    """No text of a figure is cut off, and titles, notes and axis labels (strictly: all texts) overlap no other text."""
    drawn = drawn_texts(figure, monkeypatch)
    width, height = figure.bbox.size
    for text, box in drawn:
        is_inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert is_inside, f'{text.get_text()!r} is cut off: {box} of {width} x {height}'
    headings = set(figure.texts)
    for axes in figure.axes:
        headings |= {axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label}
    checked = [one for one in drawn if strictly or one[0] in headings]
    for (text, box), (other, other_box) in itertools.product(checked, drawn):
        assert text is other or not box.overlaps(other_box), f'{text.get_text()!r} overlaps {other.get_text()!r}'
