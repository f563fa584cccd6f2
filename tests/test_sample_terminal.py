"""sample.py in a terminal: coloured tokens, the likeliest next tokens, one prompt after the other."""

import io
import math
import re

import pytest
import torch
from rich.color import ColorSystem

import sample
from common.errors import UserError
from lm import load
from pictures import coloured_text

LEVELS = {'prob': [0.6, 0.5, 0.3, 0.06, 0.02, 0.001], 'rank': [1, 2, 5, 20, 100, 101]}


def run(capsys, **settings):
    """Return what sample.py prints with `tiny`."""
    sample.main(sample.Settings(init_from='tiny', **settings))
    return capsys.readouterr().out


def talk(capsys, monkeypatch, lines, **settings):
    """Return what sample.py prints on stdout and stderr, for these lines on stdin."""
    monkeypatch.setattr('sys.stdin', io.StringIO(lines))
    sample.main(sample.Settings(init_from='tiny', interactive=True, **settings))
    return capsys.readouterr()


def without_colours(text):
    return re.sub(r'\x1b\[[\d;]*m', '', text)


@pytest.mark.parametrize('color', coloured_text.SCALES)
def test_colours_change_nothing_but_colours(color, capsys, monkeypatch):
    plain = run(capsys, max_new_tokens=12)
    monkeypatch.setattr(coloured_text, 'color_system', lambda: ColorSystem.TRUECOLOR)
    coloured = run(capsys, max_new_tokens=12, color=color)
    legend, rest = without_colours(coloured).split('\n', 1)
    assert rest == plain
    assert all(name in legend for name in coloured_text.SCALES[color])
    assert coloured.count('\x1b[0m') >= 12


def test_where_there_are_no_colours_it_is_said(capsys):
    assert run(capsys, max_new_tokens=3, color='rank') == run(capsys, max_new_tokens=3)
    sample.main(sample.Settings(init_from='tiny', max_new_tokens=3, color='prob'))
    assert '\x1b' not in capsys.readouterr().out


@pytest.mark.parametrize('color', LEVELS)
def test_less_likely_tokens_have_later_colours(color):
    class Record:
        model_logprob = rank = entropy = 0

    levels = []
    for value in LEVELS[color]:
        record = Record()
        record.model_logprob, record.rank = (math.log(value), 0) if color == 'prob' else (0, value)
        levels.append(coloured_text.color_level(record, color))
    assert levels == ([0, 0, 1, 2, 3, 4] if color == 'prob' else [0, 1, 1, 2, 3, 4])


@torch.no_grad()
def test_the_next_tokens_are_those_of_the_softmax(capsys):
    printed = run(capsys, next=7, temperature=0.5, top_k=3)
    model, tokenizer = load('tiny')
    logits = model(torch.tensor([tokenizer.encode_prompt('Once upon a time')]))[0][0, -1]
    probs, ids = logits.softmax(-1).sort(descending=True)
    rows = [re.split(r'\s*│\s*', line)[1:-1] for line in printed.splitlines() if line.startswith('│')]
    assert [row[0] for row in rows] == tokenizer.pieces(ids[:7].tolist())
    drawn = (logits[ids[:3]] / 0.5).softmax(-1)
    for place, (_, prob, _, bits, together, sampler) in enumerate(rows):
        assert float(prob) == pytest.approx(probs[place].item(), rel=1e-3)
        assert float(bits) == pytest.approx(-math.log2(probs[place].item()), abs=0.006)
        assert float(together) == pytest.approx(probs[: place + 1].sum().item(), abs=6e-5)
        assert sampler == '—' if place > 2 else float(sampler) == pytest.approx(drawn[place].item(), rel=1e-3)


def test_prompts_come_one_after_the_other_with_settings_that_change(capsys, monkeypatch):
    alone = [run(capsys, start='The old king', max_new_tokens=4, temperature=t) for t in (0.8, 0.0)]
    lines = 'The old king\n:temperature 0\nThe old king\n:settings\n:quit\nnot read\n'
    said = talk(capsys, monkeypatch, lines, max_new_tokens=4)
    assert said.out.startswith(''.join(alone))
    assert said.out.endswith('\nmax_new_tokens 4\ntemperature 0.0\n')  # what can be changed, and was
    assert 'not read' not in said.out


def test_settings_may_be_written_as_on_the_command_line(capsys, monkeypatch):
    lines = ':top-k 5\n:max-new-tokens=3\n:seed = 7\n:repetition_penalty\t1.5\n:show_probs\n:html yes\n:settings\n'
    said = talk(capsys, monkeypatch, lines)
    changed = dict(line.split(' ') for line in said.out.splitlines())
    expected = {'top_k': '5', 'max_new_tokens': '3', 'seed': '7', 'repetition_penalty': '1.5'}
    assert changed == expected | {'show_probs': 'True', 'html': 'True'}
    assert not said.err


def test_a_mistake_is_one_line_and_the_dialogue_goes_on(capsys, monkeypatch):
    wrong = (':tempreature 1', ':temperature x', ':temperature', ':top_k 0', ':next 0')
    of_the_command = (':dtype bfloat16', ':init-from=gpt2', ':init_from = gpt2')
    lines = '\n'.join([*wrong, *of_the_command, '::a colon'])
    said = talk(capsys, monkeypatch, lines, max_new_tokens=2)
    errors = [line for line in said.err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 8
    assert sum('belongs to the command' in error for error in errors) == len(of_the_command)
    assert 'did you mean temperature' in errors[0]
    assert said.out.startswith(':a colon')


def test_ctrl_c_stops_the_text_and_not_the_dialogue(capsys, monkeypatch):
    answer, calls = sample.answer, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        answer(*arguments)

    monkeypatch.setattr(sample, 'answer', interrupted)
    assert '(stopped)\nB' in talk(capsys, monkeypatch, 'A\nB\n', max_new_tokens=2).out


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'color': 'blue'}, '--color=blue is not one of prob, rank, entropy'),
        ({'next': 0}, '--next=0: it must be at least 1'),
        ({'next': 3, 'html': True}, '--next and --html cannot be combined'),
        ({'next': 3, 'beam_width': 2}, '--beam_width and --next cannot be combined'),
    ],
)
def test_settings_that_are_invalid_are_named(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        sample.main(sample.Settings(init_from='tiny', **settings))
