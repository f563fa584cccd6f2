"""The forms of the notebook's steps, apart from texts and training, and what all of them know of one another."""

import ipywidgets as widgets

from common.errors import UserError
from lm.locate import HUB
from notebooks import rendering, steps
from notebooks.choices import MODELS
from notebooks.form_parts import Form, MissingStep, field, in_a_row, show_if
from notebooks.runs import best_run, count_tokens, runs_of
from texts.token_files import read_meta

OTHER = '(other)'
OFF_TOPIC = 'The price of oil rose on Monday because'


class Chosen:
    """What has been chosen so far, which all forms share."""

    def __init__(self):
        self.model = None  # the Model to train
        self.texts = ''  # what the texts in use are called
        self.about = ''  # what the model card says about them
        self.is_ready = False  # whether texts are prepared, with the tokenizer of this model
        self.training = None  # a Training that is running
        self.is_busy = False  # whether a button is at work
        self.forms = {}  # those that are shown, by the name of their step
        # These are in two forms each, and have the same value in both.
        self.prompt = field(widgets.Text('Once upon a time'), 'Prompt: how the text begins')
        self.off_topic = field(widgets.Text(OFF_TOPIC), 'A prompt that has nothing to do with your texts')
        self.count = field(widgets.IntSlider(2, 1, 5), 'Samples')
        self.length = field(widgets.IntSlider(40, 10, 300, 10), 'Tokens in each')
        self.temperature = field(widgets.FloatSlider(0.8, min=0, max=2, step=0.1), 'Temperature')
        self.run = field(widgets.Dropdown(options=[]), 'Which of your runs? (They are made in step 5)')
        self.wish = [self.prompt, self.off_topic, self.count, self.length, self.temperature]

    def refresh(self):
        """Let every form show what has changed."""
        runs = [run for run in reversed(self.runs()) if run.has_weights]
        best = best_run(runs)
        options = [(f'{run.name}{" ★ best" if run is best else ""}', run.folder) for run in runs]
        if tuple(options) != self.run.options:
            self.run.options = options
            self.run.value = best.folder if best else None
        for form in self.forms.values():
            form.forget_missing_step()
            form.refresh()

    def set_busy(self, busy):
        """Note whether a button is at work: no other one can be pressed then."""
        self.is_busy = busy
        for form in self.forms.values():
            for button in form.buttons:
                button.disabled = busy

    def runs(self):
        """Return the runs so far of this model on these texts; one that was cut off counts as stopped."""
        made = runs_of(self.model.name) if self.is_ready else []
        at_work = self.training and self.training.run.folder
        for run in made:
            if not run.outcome and run.folder != at_work:
                run.outcome = 'stopped'
        return made

    def chosen_run(self):
        """Return the run that the person has chosen. Raises UserError if there is none yet."""
        self.require_texts()
        for run in self.runs():
            if run.folder == self.run.value and run.has_weights:
                return run
        raise MissingStep('there is no trained model yet: train one in step 5')

    def require_model(self):
        """Raise UserError unless a model is chosen, and nothing is training."""
        if self.model is None:
            raise MissingStep('choose a model first: press “Use this model” in step 2')
        self.require_rest()

    def require_texts(self):
        """Raise UserError unless texts are prepared for the model, and nothing is training."""
        self.require_model()
        if not self.is_ready:
            raise MissingStep('choose your texts first: press “Use these texts” in step 3')
        count_tokens()

    def require_rest(self):
        """Raise UserError while a model is training: there may be no memory for another one."""
        if self.training is not None:
            raise MissingStep('a model is training: wait until it is done, or press Stop in step 5')

    def wishes(self):
        """Return the Wishes of the two prompts. Raises UserError without the first; the second may be empty."""
        if not self.prompt.value.strip():
            raise UserError('type a prompt: the beginning of a text, such as Once upon a time')
        prompts = [prompt for prompt in (self.prompt.value, self.off_topic.value) if prompt.strip()]
        more = (self.count.value, self.length.value, self.temperature.value)
        return [steps.Wish(prompt.rstrip(), *more) for prompt in prompts]


class ModelForm(Form):
    """Step 2: choose a model."""

    def __init__(self, chosen):
        super().__init__(chosen)
        self.choice = field(widgets.Dropdown(), 'Model')
        self.about = widgets.HTML()
        self.name = field(widgets.Text(placeholder='owner/name on the hub, or a folder'), 'Its name')
        self.use = self.button('Use this model', self.use_model, 'Getting the model …')
        self.choice.observe(self.changed, 'value')
        self.name.observe(self.changed, 'value')
        self.refresh()
        if chosen.model is not None:
            self.say(self.describe_model(), 'good')
        self.arrange(self.choice, self.about, self.name, self.use, self.line)

    def refresh(self):
        """Offer models that have been saved, too."""
        offers = [(offer.label, offer.name) for offer in MODELS]
        saved = [(f'{name} · saved in step 7', str(folder)) for name, folder in steps.saved_models().items()]
        value = self.choice.value or MODELS[0].name
        options = (*offers, *saved, ('another one, by its name …', OTHER))
        if options != self.choice.options:
            self.choice.options = options
            self.choice.value = value
        self.show_about()

    def changed(self, change=None):
        """Describe what was chosen now, and not what became of an earlier choice."""
        self.show_about()
        self.say('')

    def show_about(self):
        """Describe the model, or ask for its name."""
        show_if(self.choice.value == OTHER, self.name)
        self.about.value = rendering.hint(next((o.about for o in MODELS if o.name == self.choice.value), ''))

    def use_model(self):
        """Load the model."""
        self.chosen.require_rest()
        name = self.typed_name() if self.choice.value == OTHER else self.choice.value
        if not name:
            raise UserError('type the name of a model, such as HuggingFaceTB/SmolLM2-135M')
        opened, before = steps.open_model(name), self.chosen.model  # which stays if this one cannot be had
        if before is None or before.name != name:
            self.chosen.is_ready = False
        self.chosen.model = opened
        self.chosen.refresh()
        return self.describe_model()

    def typed_name(self):
        """Return the name that was typed: a folder, whose path may begin with /, or a name or address on the hub."""
        typed = self.name.value.strip().rstrip('/')
        return typed.removeprefix(HUB).lstrip('/') if typed.startswith(HUB) else typed

    def describe_model(self):
        """Return what is known of the model, and what comes next."""
        name, model, tokenizer, weights = self.chosen.model
        return (
            f'{name} is ready: {weights / 1e6:,.1f} million weights, {tokenizer.vocab_size:,} different tokens, and it '
            f'looks back on at most {model.block_size:,} tokens. '
            f'Go on with step {4 if self.chosen.is_ready else 3}.'
        )


class BeforeForm(Form):
    """Step 4: what the model writes and predicts before training."""

    def __init__(self, chosen):
        super().__init__(chosen)
        self.write = self.button('Write', self.write_samples, 'Writing …')
        self.measure = self.button('Measure perplexity', self.measure_perplexity, 'Measuring …')
        self.measured, self.written = widgets.HTML(), widgets.HTML()
        self.arrange(*chosen.wish, in_a_row(self.write, self.measure), self.line, self.measured, self.written)

    def write_samples(self):
        """Let the model continue both prompts."""
        self.chosen.require_model()
        opened = steps.open_model(self.chosen.model.name)
        written = []
        for wish in self.chosen.wishes():

            def show(samples, wish=wish):
                self.written.value = rendering.samples([*written, (wish.prompt, {'before': samples})])

            written.append((wish.prompt, {'before': steps.write_samples(opened, wish, show)}))
        return ''

    def measure_perplexity(self):
        """Measure how well the model predicts the test part."""
        self.chosen.require_texts()
        self.measured.value = rendering.measurement(steps.measure(self.chosen.model.name), read_meta_of_test())
        return ''


class AfterForm(Form):
    """Step 6: what has changed."""

    def __init__(self, chosen):
        super().__init__(chosen)
        self.measure = self.button('Measure before and after', self.measure_perplexity, 'Measuring both …')
        self.write = self.button('Write before and after', self.write_samples, 'Writing …')
        self.inside = self.button('Look inside a text', self.look_inside, 'Writing, and looking at each token …')
        self.measured, self.written, self.page = widgets.HTML(), widgets.HTML(), widgets.HTML()
        buttons = in_a_row(self.measure, self.write, self.inside)
        results = (self.measured, self.written, self.page)
        self.arrange(chosen.run, *chosen.wish, buttons, self.line, *results)

    def measure_perplexity(self):
        """Measure how well both models predict the test part."""
        run = self.chosen.chosen_run()
        self.measured.value = rendering.measurement(steps.measure(run.model, run), read_meta_of_test())
        return ''

    def write_samples(self):
        """Let both models continue both prompts, with the same random numbers."""
        run, written = self.chosen.chosen_run(), []
        models = {'before': steps.open_model(run.model), 'after': steps.open_model(run.model, run)}
        for wish in self.chosen.wishes():
            sides = {}
            written.append((wish.prompt, sides))
            for heading, opened in models.items():

                def show(samples, sides=sides, heading=heading):
                    sides[heading] = samples
                    self.written.value = rendering.samples(written)

                steps.write_samples(opened, wish, show)
        return ''

    def look_inside(self):
        """Show what could have come instead of each token."""
        run = self.chosen.chosen_run()
        self.page.value = rendering.frame(steps.compare_tokens(run.model, run, self.chosen.wishes()[0]))
        return ''


class KeepForm(Form):
    """Step 7: save the model, and publish it if you like."""

    def __init__(self, chosen):
        super().__init__(chosen)
        self.folder, self.filled_in = None, ''  # where the model was saved; what the program wrote about the texts
        self.name = field(widgets.Text('my-stories'), 'Name of the model')
        self.about = field(widgets.Textarea(), 'Which texts did it learn from, and what do their authors allow?')
        self.replace = widgets.Checkbox(False, description='replace a model of this name', indent=False)
        self.save = self.button('Save', self.save_model, 'Saving …')
        self.download = self.button('Download it as a zip file', self.download_model, 'Packing …', style='')
        self.repository = field(widgets.Text(placeholder='my-stories'), 'To publish it: its name on the hub')
        self.token = field(widgets.Password(placeholder='hf_…'), 'A token with write permission, from the hub')
        self.private = widgets.Checkbox(True, description='private: only you can see it', indent=False)
        self.publish = self.button('Publish', self.publish_model, 'Publishing …', style='')
        show_if(steps.on_colab(), self.download)
        keep = (self.name, self.about, self.replace, in_a_row(self.save, self.download))
        publish = (self.repository, self.token, self.private, self.publish)
        self.arrange(chosen.run, *keep, *publish, self.line)
        self.refresh()

    def refresh(self):
        """Begin the description with what is known of the texts, unless the person has written one."""
        if self.about.value.strip() in ('', self.filled_in):
            self.about.value = self.filled_in = self.chosen.about

    def save_model(self):
        """Save the model of the run."""
        run = self.chosen.chosen_run()
        self.folder = steps.save_model(run, self.name.value, self.about.value, self.replace.value)
        self.chosen.refresh()
        return (
            f'Saved in {self.folder}. To go on another day, choose it in step 2. In transformers: '
            f'AutoModelForCausalLM.from_pretrained("{self.folder}").'
        )

    def download_model(self):
        """Send the saved model to the person's computer."""
        if self.folder is None:
            raise UserError('save the model first')
        steps.download_model(self.folder)
        return 'Your browser asks where to put the zip file, or puts it among your downloads.'

    def publish_model(self):
        """Push the model of the run to the hub; the token leaves the page at once."""
        token, self.token.value = self.token.value, ''
        run = self.chosen.chosen_run()
        address = steps.publish_model(run, self.repository.value, token, self.about.value, self.private.value)
        return f'Published: {address}'


def read_meta_of_test():
    """Return how much the test part holds: documents, bytes, tokens."""
    return read_meta(steps.DATASET)['test']
