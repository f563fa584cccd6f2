"""The forms of the notebook, whose buttons a test presses, and what a person reads of them."""

import html
import re

from notebooks import show


def text_of(shown):
    """Return what a person reads of HTML."""
    return ' '.join(html.unescape(re.sub('<[^>]+>', ' ', shown)).split())


class Book:
    """The notebook after all cells were run, in the current folder: a form for each step."""

    def __init__(self):
        self.chosen = show.Chosen()
        for step, make in show.FORMS.items():
            self.chosen.forms[step] = make(self.chosen)

    def __getattr__(self, step):
        return self.chosen.forms[step]

    def press(self, step, button):
        """Press a button; return the sentence that the form then shows."""
        form = self.chosen.forms[step]
        getattr(form, button).click()
        return text_of(form.line.value)

    def choose(self, model='tiny', texts='stories', documents=20):
        """Choose a model, and prepare texts for it."""
        self.model.choice.value = model
        assert 'is ready' in self.press('model', 'use')
        self.texts.choice.value = texts
        self.press('texts', 'look')
        self.texts.documents.value = documents
        return self.press('texts', 'use')

    def wait(self):
        """Wait until training has ended; return the sentence that the form then shows."""
        self.training.watcher.join()
        return text_of(self.training.line.value)

    def table(self):
        """Return the table of runs as text."""
        return text_of(self.training.table.value)
