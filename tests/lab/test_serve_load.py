"""The load on serve.py is measured with real clients, and answers are compared with those given alone."""

import json

import pytest
from helpers.scripts import run_script

from lab.serve_load import KINDS, compare_answers


def test_other_texts_and_logprobs_are_found():
    alone = [(0.1, 'a b', [None, -1.0]), (0.2, 'c', [-2.0])]
    answers = [(0, (0.5, 'a b', [None, -1.5])), (1, (0.3, 'd', [-9.0])), (1, (0.4, 'c', [-2.0]))]
    found = compare_answers(answers, alone)
    assert found['logprob_difference'] == 0.5
    assert found['other_texts'] == 1
    assert (found['answers'], found['median'], found['longest']) == (3, 0.4, 0.5)


@pytest.mark.slow
def test_a_short_load(tmp_path):
    process = run_script(
        'lab.serve_load', '--init_from=tiny', '--clients=4', '--seconds=6', f'--save={tmp_path}', cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / 'serve_load.json').read_text())
    assert result['failures'] == 0
    assert result['requests'].keys() == KINDS.keys()
    for row in result['requests'].values():
        assert row['logprob_difference'] < 1e-4
        assert row['other_texts'] == 0
