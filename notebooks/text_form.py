"""Step 3 of the notebook: choose texts, then the column that holds them."""

import asyncio

import ipywidgets as widgets

from notebooks import rendering, steps
from notebooks.choices import SOURCES, files_here, named_dataset, own_file, write_upload
from notebooks.form_parts import DOUBLE_CLICK, Form, field, show_if
from notebooks.rendering import NO_NAME
from texts.splits import SPLITS
from texts.token_files import read_meta

DOCUMENTS = {20: '20', 50: '50', 200: '200', 1000: '1,000', 5000: '5,000', 20000: '20,000'}
FILE, HUB = '(file)', '(hub)'
LIMIT = (
    'Up to 8 MB can be uploaded here. A larger file: on a computer, drag it into the list of files on the left of the '
    'page, then type its name below.'
)
TEXTS_READY = 'Your texts are ready, in three parts. Go on with step 4.'


class TextForm(Form):
    """Texts of this project, of the hub or of one's own; the model is trained on one of their columns."""

    def __init__(self, chosen):
        super().__init__(chosen)
        self.source, self.found, self.noted = None, [], []
        options = [(source.label, name) for name, source in SOURCES.items()]
        options += [('A file of my own …', FILE), ('Another dataset on the hub …', HUB)]
        self.choice = field(widgets.Dropdown(options=options), 'Texts')
        self.upload = widgets.FileUpload(description='Upload a file', multiple=False)
        self.upload.layout = widgets.Layout(width='auto', align_self='flex-start')
        self.path = field(widgets.Combobox(placeholder='my_texts.csv'), 'File (choose one that is here, or upload one)')
        self.limit = widgets.HTML(rendering.hint(LIMIT))
        self.dataset = field(widgets.Text(placeholder='roneneldan/TinyStories'), 'Its name on the hub')
        self.config = field(widgets.Text(), 'Its configuration, if it has several')
        self.look = self.button('Look at these texts', self.look_at_columns, 'Reading the first texts …')
        self.column = field(widgets.RadioButtons(options=[]), 'Column to learn from')
        self.examples = widgets.HTML()
        options = [(text, number) for number, text in DOCUMENTS.items()]
        self.documents = field(widgets.Dropdown(options=options, value=1000), 'Documents (rows) at most')
        self.use = self.button('Use these texts', self.use_texts, 'Turning the texts into tokens …')
        self.parts = widgets.HTML()
        self.columns = widgets.VBox([self.column, self.examples, self.documents, self.use])
        self.choice.observe(self.changed, 'value')
        self.column.observe(self.show_examples, 'value')
        self.upload.observe(self.uploaded, 'value')
        for typed in (self.path, self.dataset, self.config):
            typed.observe(self.forget_columns, 'value')
        self.changed()
        if chosen.is_ready:
            self.show_parts([])
            self.say(TEXTS_READY, 'good')
        asked = (self.upload, self.limit, self.path, self.dataset, self.config)
        self.arrange(self.choice, *asked, self.look, self.columns, self.line, self.parts)

    def changed(self, change=None):
        """Ask for what this kind of texts needs; forget the columns of others."""
        show_if(self.choice.value == FILE, self.upload, self.limit, self.path)
        show_if(self.choice.value == HUB, self.dataset, self.config)
        self.path.options = files_here()
        self.forget_columns()

    def forget_columns(self, change=None):
        """Hide what belongs to texts that were chosen before."""
        show_if(False, self.columns)
        self.say('')

    def refresh(self):
        """Say that the texts are needed once more if another model was chosen."""
        if self.parts.value and not self.chosen.is_ready:
            self.parts.value = ''
            self.say('Another model cuts texts into other tokens: press “Use these texts” once more.')

    def uploaded(self, change=None):
        """Put a file that has arrived where it can be chosen, and look at it, once no button is at work any longer."""
        if self.upload.value and self.chosen.is_busy:  # it is not a double click: it must not be lost
            asyncio.get_running_loop().call_later(DOUBLE_CLICK, self.uploaded)
        elif self.upload.value:
            self.act(self.keep_upload, 'Reading the first texts …')

    def keep_upload(self):
        """Write the file that was uploaded, and look at its columns."""
        self.path.value = str(write_upload(self.upload.value))
        return self.look_at_columns()

    def look_at_columns(self):
        """Show the columns of the texts, each with an example."""
        show_if(False, self.columns)
        self.path.options = files_here()  # one may have been put there by now
        if self.choice.value == FILE:
            self.source = own_file(self.path.value)
        elif self.choice.value == HUB:
            self.source = named_dataset(self.dataset.value, self.config.value)
        else:
            self.source = SOURCES[self.choice.value]
        self.found, others, self.noted = steps.look_at(self.source)
        self.column.options = [(rendering.column_label(column), column.name) for column in self.found]
        self.column.value = self.found[0].name
        self.show_examples()
        show_if(len(self.found) > 1 or others, self.column)
        show_if(True, self.columns)
        found = [
            f'{len(self.found)} columns hold text: choose one.' if len(self.found) > 1 else 'Here are the first texts.'
        ]
        if self.choice.value == FILE:
            found.insert(0, f'{self.source.label} can be read.')
        if others:
            found.append(f'No text is in: {", ".join(name or NO_NAME for name in others)}.')
        return ' '.join([*found, *self.noted, 'Then press “Use these texts”.'])

    def show_examples(self, change=None):
        """Show how the first texts of the column begin."""
        shown = [column for column in self.found if column.name == self.column.value]
        self.examples.value = rendering.examples(shown[0]) if shown else ''

    def use_texts(self):
        """Cut the texts into three parts, and turn them into tokens."""
        self.chosen.require_model()
        self.chosen.is_ready, self.parts.value = False, ''
        notes = steps.prepare_texts(self.source, self.column.value, self.chosen.model.name, self.documents.value)
        self.chosen.is_ready = True
        of_several = f', column “{self.column.value or NO_NAME}”' if len(self.found) > 1 else ''
        self.chosen.texts, self.chosen.about = f'{self.source.label}{of_several}', self.source.about
        self.chosen.refresh()
        self.show_parts([note for note in notes if note not in self.noted and 'the text is in the column' not in note])
        return TEXTS_READY

    def show_parts(self, notes):
        """Show which texts are in use, also while others are looked at, their three parts, and notes about them."""
        meta = read_meta(steps.DATASET)
        parts = rendering.parts(self.chosen.texts, {part: meta[part] for part in SPLITS})
        self.parts.value = parts + rendering.hints(notes)
