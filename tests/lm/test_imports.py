"""Importing a little must not import a lot: it would slow down every worker process and the start of each script."""

import subprocess
import sys

import pytest
from helpers.scripts import PROJECT


@pytest.mark.parametrize(
    ('module', 'unwanted'),
    [
        ('lm.tokenizer', ['torch', 'transformers', 'tokenizers', 'tiktoken']),  # prepare_bin.py's workers need no more
        pytest.param('sample', ['transformers', 'datasets', 'tokenizers', 'huggingface_hub'], marks=pytest.mark.slow),
    ],
)
def test_an_import_leaves_out_what_is_slow(module, unwanted):
    code = f'import sys, {module}; print([name for name in {unwanted} if name in sys.modules])'
    process = subprocess.run([sys.executable, '-c', code], cwd=PROJECT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout == '[]\n'
