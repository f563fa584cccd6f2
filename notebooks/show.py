"""What a cell of the notebook does: show the form of one step."""

from IPython.display import display

from notebooks.forms import AfterForm, BeforeForm, Chosen, KeepForm, ModelForm
from notebooks.text_form import TextForm
from notebooks.training_form import TrainingForm

FORMS = {
    'model': ModelForm,
    'texts': TextForm,
    'before': BeforeForm,
    'training': TrainingForm,
    'after': AfterForm,
    'keep': KeepForm,
}
chosen = Chosen()


def show(step):
    """Show the form of a step; a cell that is run again begins with an empty form, but forgets no choice."""
    chosen.forms[step] = FORMS[step](chosen)
    display(chosen.forms[step].box)
