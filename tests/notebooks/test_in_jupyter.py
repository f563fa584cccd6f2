"""The notebook in Jupyter, in a browser: all cells are run, then a person chooses, types and presses buttons."""

import os
import socket
import subprocess
import sys
import time

import pytest

NOTEBOOK = 'notebooks/fine_tune_your_own.ipynb'


@pytest.fixture
def jupyter(project, someone, tmp_path):
    """The address of JupyterLab in a copy of the project."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        port = found.getsockname()[1]
    folders = {f'JUPYTER_{kind}_DIR': str(tmp_path / kind.lower()) for kind in ('CONFIG', 'DATA', 'RUNTIME')}
    options = [f'--port={port}', '--ip=127.0.0.1', '--no-browser', '--allow-root', '--IdentityProvider.token=']
    command = [sys.executable, '-m', 'jupyterlab', *options, f'--ServerApp.root_dir={project}']
    with open(tmp_path / 'jupyter.log', 'w') as log:
        server = subprocess.Popen(command, cwd=project, env={**os.environ, **folders}, stdout=log, stderr=log)
    for _ in range(300):
        with socket.socket() as found:
            if found.connect_ex(('127.0.0.1', port)) == 0:
                break
        time.sleep(0.1)
    yield f'http://127.0.0.1:{port}'
    server.terminate()  # it ends its kernels, too
    server.wait(20)


@pytest.mark.slow
def test_a_person_fine_tunes_a_model_without_code(jupyter, chromium, project):
    view = chromium.new_page(viewport={'width': 1280, 'height': 2000})
    view.set_default_timeout(30_000)
    view.goto(f'{jupyter}/lab/tree/{NOTEBOOK}')
    view.get_by_role('heading', name='Fine-tune your own language model').wait_for()
    view.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
    view.get_by_role('menuitem', name='Run', exact=True).click()
    view.get_by_role('menuitem', name='Run All Cells', exact=True).click()

    def form(button):
        return view.locator('.ft-form', has=view.get_by_role('button', name=button, exact=True))

    def press(button, expected):
        form(button).get_by_role('button', name=button, exact=True).click()
        form(button).get_by_text(expected).first.wait_for()

    press('Start', 'Choose a model first')
    press('Use this model', 'tiny-stories is ready')
    texts = form('Look at these texts')
    texts.get_by_label('Texts').select_option('A file of my own …')
    story = 'The small {} bear met a large {} fox beside the river. They shared a cake, and then both went home.'
    rows = ''.join(f'"{story.format(number, number)}",{number}\n' for number in range(60))
    with view.expect_file_chooser() as chooser:
        texts.get_by_role('button', name='Upload a file').click()
    chooser.value.set_files({'name': 'bears.csv', 'mimeType': 'text/csv', 'buffer': f'tale,number\n{rows}'.encode()})
    texts.get_by_text('bears.csv can be read').wait_for()
    assert texts.get_by_text('No text is in: number').is_visible()
    assert texts.get_by_role('radio').count() == 1
    press('Use these texts', 'Your texts are ready')
    training = form('Start')
    training.get_by_label('Epochs').select_option('0.5')
    press('Start', 'Loading the model')
    view.get_by_role('menuitem', name='Kernel', exact=True).click()
    view.get_by_role('menuitem', name='Interrupt Kernel').click()  # training is a process of its own
    training.get_by_text('Done: on the validation part').wait_for()
    assert training.get_by_text('★').count() and training.locator('img').is_visible()
    press('Write before and after', 'Sampler: 1 in')
    assert form('Save').get_by_label('token').get_attribute('type') == 'password'
    form('Save').get_by_role('button', name='Save', exact=True).dblclick()
    form('Save').get_by_text('Saved in out-notebook').wait_for()
    view.wait_for_timeout(1000)
    assert form('Save').get_by_text('Saved in out-notebook').is_visible()  # the second click did nothing
    assert (project / 'out-notebook' / 'models' / 'my-stories' / 'config.json').exists()
    view.close()
