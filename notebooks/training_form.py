"""Step 5 of the notebook: train, watch, stop, go on, and compare learning rates and epochs in a table."""

import contextlib
import signal
import threading
import time

import ipywidgets as widgets

from common.errors import UserError
from notebooks import rendering, steps
from notebooks.choices import OUT
from notebooks.form_parts import Form, field, in_a_row, show_if
from notebooks.friendly import explain
from notebooks.progress import PAUSE
from notebooks.runs import Training, count_steps, decimal, new_run, suggested_rate
from pictures.losses import draw_losses

RATES = [round(digit * 10.0**power, 9) for power in range(-6, 0) for digit in (1, 3)]
MANY_EPOCHS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
EPOCHS = (0.3, 1.0, 3.0)  # columns of the table before any run
PICTURE = OUT / 'curve.png'


@contextlib.contextmanager
def noted_interrupts():
    """Yield a list that grows with each interrupt (on Colab: Runtime, Interrupt execution) while the block runs.

    KeyboardInterrupt could be raised anywhere in it, also where the end of a run is being recorded.
    """
    noted = []
    if threading.current_thread() is not threading.main_thread():  # in which alone interrupts arrive
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


class TrainingForm(Form):
    """Training runs in a process of its own, and a thread watches it, so that the buttons work meanwhile.

    On Colab, nothing that a thread shows reaches the page (googlecolab/colabtools, issue 3373): there the button itself
    watches, and Colab’s own button stops it.
    """

    def __init__(self, chosen):
        super().__init__(chosen)
        self.watcher = None
        options = [(decimal(rate), rate) for rate in RATES]
        self.rate = field(widgets.Dropdown(options=options, value=3e-4), 'Learning rate')
        options = [(f'{number:g}', number) for number in MANY_EPOCHS]
        self.epochs = field(
            widgets.Dropdown(options=options, value=1.0), 'Epochs (0.1 is a tenth of the training part)'
        )
        self.steps = widgets.HTML()
        self.start = self.button('Start', self.start_training, 'Starting …')
        self.stop = self.button('Stop', self.stop_training, 'Stopping after this step …', style='')
        self.go_on = self.button('Go on', self.continue_training, 'Going on …', style='')
        self.picture = widgets.Image(format='png', layout=widgets.Layout(width='100%', max_width='560px'))
        self.table = widgets.HTML()
        show_if(False, self.picture)
        self.epochs.observe(self.show_steps, 'value')
        buttons = in_a_row(self.start, self.stop, self.go_on)
        self.arrange(self.rate, self.epochs, self.steps, buttons, self.line, self.picture, self.table)
        self.refresh()

    def refresh(self):
        """Suggest a learning rate for the model, if another one was chosen; fill in the table."""
        model = self.chosen.model
        suggested = suggested_rate(model.weights if model else 0)
        if model is not None and model.name != getattr(self, '_suggested_for', None):
            self._suggested_for, self.rate.value = model.name, suggested
        self.show_steps()
        made = self.chosen.runs()
        before = next((run.before for run in reversed(made) if run.before is not None), None)
        rates = [round(suggested * factor, 9) for factor in (0.1, 1, 10)]
        self.table.value = rendering.runs(made, rates, EPOCHS, before)

    def show_steps(self, change=None):
        """Say how many steps the chosen number of epochs are."""
        is_known = self.chosen.is_ready and self.chosen.training is None
        steps = count_steps(self.chosen.model.weights, self.epochs.value) if is_known else 0
        self.steps.value = rendering.hint(f'That is {steps:,} step{"" if steps == 1 else "s"}.' if steps else '')

    def start_training(self):
        """Train from the beginning with this learning rate, for so many epochs."""
        self.chosen.require_texts()
        model = self.chosen.model
        self.watch(new_run(model.name, model.weights, self.rate.value, self.epochs.value))

    def continue_training(self):
        """Go on with the last run that was stopped."""
        self.chosen.require_texts()
        stopped = [run for run in self.chosen.runs() if run.can_go_on]
        if not stopped:
            raise UserError('there is no run to go on with: Go on continues one that was stopped')
        self.rate.value, self.epochs.value = stopped[-1].learning_rate, stopped[-1].epochs
        self.watch(stopped[-1], go_on=True)

    def stop_training(self):
        """End the run after the current step."""
        if self.chosen.training is None:
            raise UserError('nothing is training')
        self.chosen.training.stop()
        return 'Stopping after this step …'

    def watch(self, run, go_on=False):
        """Start a run, and a thread that watches it."""
        steps.forget_models()
        with noted_interrupts() as interrupts:
            training = self.chosen.training = Training(run, go_on)
            if steps.on_colab():
                self.follow(training, interrupts)
                return
        self.watcher = threading.Thread(target=self.follow, args=[training, interrupts], daemon=True)
        self.watcher.start()

    def follow(self, training, interrupts):
        """Show how far a run is until it ends, then what became of it."""
        try:
            self.show_progress(training, interrupts)
            error = training.finish()
            self.chosen.training = None
            self.chosen.refresh()
            self.shown.say(*self.ending(training.run, error))
        except Exception as error:  # in a thread nobody would see it
            training.stop()  # nobody watches it any longer
            self.chosen.training = None
            self.shown.say(explain(error), 'bad')

    def show_progress(self, training, interrupts):
        """Show how far a run is until it ends; stop it after an interrupt."""
        shown = None
        while training.is_running():
            if interrupts and not training.stopped:
                training.stop()
            if (curves := training.curves()) != shown:
                shown = curves
                self.draw(curves)
            self.shown.say(f'{"Stopping. " if training.stopped else ""}{training.describe()}', 'busy')
            time.sleep(PAUSE)
        self.draw(training.curves())

    @property
    def shown(self):
        """The form that the page shows: another one than this if the cell was run once more since training began."""
        return self.chosen.forms.get('training', self)

    def draw(self, curves):
        """Draw the losses so far."""
        if any(curves.values()):
            draw_losses(PICTURE, curves, size=(4.5, 3.2))  # inches: so small that a phone need not shrink the words
            self.shown.picture.value = PICTURE.read_bytes()
            show_if(True, self.shown.picture)

    def ending(self, run, error):
        """Return a sentence about how a run has ended, and its kind."""
        if error:
            return explain(UserError(error)), 'bad'
        if run.outcome == 'stopped':
            kept = 'The best model so far can be used in step 6. ' if run.has_weights else ''
            return f'Stopped. {kept}{"Go on continues this run." if run.can_go_on else ""}', 'good'
        if not run.has_weights:
            return (
                'On the validation part, the model never became better than before, so nothing is kept of this run. '
                'Try a smaller learning rate or, if the curve was falling, more epochs.'
            ), ''
        before, best = rendering.short(run.before), rendering.short(run.best)
        return (
            f'Done: on the validation part, perplexity went from {before} to {best}. The model from the best moment is '
            'kept. Change one setting and start again, or go on with step 6.'
        ), 'good'
