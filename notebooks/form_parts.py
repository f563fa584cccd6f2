"""The parts that the notebook's forms are made of: ipywidgets 8 or, on Colab, 7."""

import asyncio

import ipywidgets as widgets

from common.errors import UserError
from notebooks import rendering
from notebooks.friendly import explain
from notebooks.progress import Progress

DOUBLE_CLICK = 0.3  # seconds in which clicks that came while a button was at work arrive


def field(widget, label):
    """Return a widget with its label above it, so that it fits on a phone."""
    widget.description = label
    widget.style.description_width = 'initial'
    widget.layout.width = '100%'
    widget.add_class('ft-field')
    return widget


def show_if(condition, *parts):
    """Show widgets, or hide them."""
    for part in parts:
        part.layout.display = None if condition else 'none'


class MissingStep(UserError):
    """What a button needs has not been done yet."""


class Form:
    """One step of the notebook. A subclass makes its widgets, and calls `arrange` with them."""

    def __init__(self, chosen):
        self.chosen, self.buttons = chosen, []
        self.line = widgets.HTML()  # what happens
        self.misses_step = False  # whether the line says so

    def arrange(self, *parts):
        """Put the parts below one another; `box` is what the notebook shows."""
        self.box = widgets.VBox([widgets.HTML(rendering.STYLE), *parts], layout=widgets.Layout(width='100%'))
        self.box.add_class('ft-form')

    def refresh(self):
        """Show what other forms have changed."""

    def say(self, text, kind=''):
        """Show a sentence. kind: 'busy', 'good', 'bad' or ''."""
        self.line.value, self.misses_step = rendering.line(text, kind), False

    def forget_missing_step(self):
        """Do not ask any longer for a step that may have been done by now."""
        if self.misses_step:
            self.say('')

    def button(self, text, action, busy='Working …', style='primary'):
        """Return a button that calls action(); see `act`."""
        button = widgets.Button(description=text, button_style=style)
        button.layout = widgets.Layout(width='auto', min_width='8em', align_self='flex-start')
        button.on_click(lambda _: self.act(action, busy))
        self.buttons.append(button)
        return button

    def act(self, action, busy='Working …'):
        """Call action() and show the sentence it returns, or why it failed; None leaves what is shown.

        busy: what is said meanwhile, with how far it is. One thing is done at a time: no button can be pressed
        meanwhile, and the second click of a double click does nothing.
        """
        if self.chosen.is_busy:
            return
        self.chosen.set_busy(True)
        try:
            with Progress(lambda text: self.say(text, 'busy'), busy):
                said = action()
            if said is not None:
                self.say(said, 'good')
        except KeyboardInterrupt:
            self.say('Stopped.')
        except (Exception, SystemExit) as error:  # whatever it is, a person gets a sentence
            self.say(explain(error), 'bad')
            self.misses_step = isinstance(error, MissingStep)
        finally:
            self.rest()

    def rest(self):
        """Let buttons be pressed again, in a notebook after the clicks have arrived that came meanwhile."""
        try:
            asyncio.get_running_loop().call_later(DOUBLE_CLICK, self.chosen.set_busy, False)
        except RuntimeError:  # not in a notebook
            self.chosen.set_busy(False)


def in_a_row(*buttons):
    """Return buttons beside one another, or below where there is no room."""
    return widgets.HBox(buttons, layout=widgets.Layout(flex_flow='row wrap', width='100%'))
