"""What the trace prints and draws."""

import pytest
from helpers.pictures import TEN, call, figures_of, texts_of


def test_trace_prints_model_py_line_by_line(here, capsys):
    call('trace', f'--start={TEN}', '--layer=3', '--save=trace.png')
    out = capsys.readouterr().out
    for code in ('self.transformer.wte(idx)', 'qkv.view(B, T, 3, n_head', 'x + self.mlp(self.ln_2(x))'):
        assert code in out
    assert out.count('c_attn(x)') == 2  # in one block only: its line and its value
    assert out.count('return x + self.mlp') == 2 and out.count('the stream, the MLP added') == 4
    assert 'transformer.h[3]\n' in out and 'transformer.h[2], in short: --layer=2 shows it in full' in out
    assert '(B, nh, T, T) = (1, 4,' in out


@pytest.mark.parametrize(
    ('layer', 'others'),
    [
        (0, 'h[1] to h[3] after it do'),
        (1, 'h[0] before it, and h[2] and h[3] after it do'),
        (3, 'before it do'),
    ],
)
def test_trace_draws_the_block_that_it_shows_in_full(layer, others, here, monkeypatch, capsys):
    ((_, figure),) = figures_of(monkeypatch, 'trace', f'--start={TEN}', f'--layer={layer}').items()
    said = texts_of(figure)
    assert f'Block {layer}: transformer.h[{layer}]' in said
    assert [text for text in said if others in text]
