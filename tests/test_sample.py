"""sample.py: text and its two probabilities, charts, a page, fixed responses."""

import io
import json
import math
import re
import sys

import pytest
import torch
from helpers.world import (
    FOLDER,
    PAIRS,
    RESUME,
    assert_refuses,
    call,
    call_well,
    contents,
    logprob_by_transformers,
    number_after,
    run_well,
    samples_in,
)

from lm import checkpoint


@pytest.fixture(scope='session')
def single(world, tmp_path_factory):
    """What sample.py prints for one sample, run from an empty folder."""
    cwd = tmp_path_factory.mktemp('elsewhere')
    return run_well('sample.py', *RESUME, f'--out_dir={world.folder / "out"}', '--max_new_tokens=20', cwd=cwd)


def test_sample_prints_the_text_and_both_of_its_probabilities(single):
    ((text, sampler, model),) = samples_in(single)
    assert text.startswith('Once upon a time')
    assert len(text) > len('Once upon a time')
    assert sampler.startswith('sampler (temperature 0.8, top_k 200)')
    assert model.startswith('model (temperature 1, every token)')
    for line in (sampler, model):
        logprob = number_after('logprob', line)
        assert number_after('probability', line) == pytest.approx(math.exp(logprob), rel=1e-3)
        assert number_after('perplexity per token', line) == pytest.approx(math.exp(-logprob / 20), rel=1e-3)
        assert '(20 tokens)' in line


def test_the_first_of_three_samples_is_the_single_one(single, here, capsys):
    samples = samples_in(call_well(capsys, 'sample.py', *RESUME, '--max_new_tokens=20', '--num_samples=3'))
    (text, *lines), *_ = samples
    ((same_text, *same_lines),) = samples_in(single)
    assert text == f'sample 1 of 3\n{same_text}'
    for line, same in zip(lines, same_lines, strict=True):  # another batch size may round sums differently
        assert number_after('logprob', line) == pytest.approx(number_after('logprob', same), abs=1e-3)
    assert len({text for text, _, _ in samples}) == 3
    assert all(text.partition('\n')[2].startswith('Once upon a time') for text, _, _ in samples)


@pytest.mark.slow
def test_charts_change_no_text_and_each_run_has_a_folder_of_its_own(single, here, capsys):
    draw = ('sample.py', *RESUME, '--show_probs=True')
    out = call_well(capsys, *draw, '--max_new_tokens=20', '--plot_steps=3')
    assert samples_in(out) == samples_in(single)
    assert '(the first 3 of 20 steps; --plot_steps draws more)' in out
    (first,) = (here / 'results').iterdir()
    assert {path.name for path in first.iterdir()} == {'step_01.png', 'step_02.png', 'step_03.png', 'sheet.png'}
    before = contents(first)

    out = call_well(capsys, *draw, '--max_new_tokens=2', '--num_samples=2')
    assert '--plot_steps draws more' not in out
    (second,) = set((here / 'results').iterdir()) - {first}
    for name in ('sample_01', 'sample_02'):
        assert {path.name for path in (second / name).iterdir()} == {'step_01.png', 'step_02.png', 'sheet.png'}
    assert contents(first) == before
    assert all(data.startswith(b'\x89PNG') for data in contents(here / 'results').values())


def test_a_fixed_response_has_the_logprob_that_transformers_computes(here, capsys):
    pair = PAIRS[0]
    setting = f'--fixed_response={pair["response"]}'
    out = call_well(capsys, 'sample.py', *FOLDER, f'--start={pair["prompt"]}', setting, '--top_k=1')
    ((text, sampler, model),) = samples_in(out)
    assert text == pair['prompt'] + pair['response']
    assert number_after('logprob', model) == pytest.approx(logprob_by_transformers(here / 'folder', **pair), abs=1e-4)
    at_temperature = logprob_by_transformers(here / 'folder', **pair, temperature=0.8)
    assert sampler.startswith('sampler (temperature 0.8)')
    assert number_after('logprob', sampler) == pytest.approx(at_temperature, abs=1e-4)
    assert abs(number_after('logprob', model) - number_after('logprob', sampler)) > 0.1


@pytest.fixture
def laconic(here):
    """A folder with a model that ends its text directly after the prompt in prompt.txt."""
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    with torch.no_grad():
        prompt = torch.tensor([tokenizer.encode((here / 'prompt.txt').read_text())])
        model.transformer.wte.weight[tokenizer.eot] = model.hidden(prompt)[0, -1]
    checkpoint.save_pretrained(model, here / 'laconic', tokenizer)
    return here / 'laconic'


def test_a_prompt_from_a_file_greedily_until_end_of_text(laconic, here, capsys):
    arguments = (f'--init_from={laconic}', '--start=FILE:prompt.txt', '--temperature=0', '--device=cpu')
    ((text, sampler, model),) = samples_in(call_well(capsys, 'sample.py', *arguments, '--stop_at_eot'))
    assert text == 'Cleo gave one\nto the fox<|endoftext|>'
    assert '(1 tokens)' in sampler
    assert 'probability 1,' in sampler
    assert 0.5 < number_after('probability', model) <= 1

    ((longer, sampler, _),) = samples_in(call_well(capsys, 'sample.py', *arguments, '--max_new_tokens=5'))
    assert longer.startswith(text)
    assert '(5 tokens)' in sampler


def test_text_is_shown_token_by_token(here, monkeypatch):
    class Screen(io.StringIO):
        def __init__(self):
            super().__init__()
            self.seen = []

        def flush(self):
            self.seen.append(self.getvalue())

    screen = Screen()
    monkeypatch.setattr(sys, 'stdout', screen)
    call('sample.py', *RESUME, '--fixed_response= Ann had 3 apples', '--start=Once')
    assert 'Once' in screen.seen
    assert 'Once Ann' in screen.seen
    assert 'Once Ann had 3' in screen.seen


def test_the_smallest_temperatures_are_greedy(here, capsys):
    texts = set()
    for temperature in ('0', '1e-300', '1e-40', '1e-9'):
        ((text, sampler, _),) = samples_in(
            call_well(capsys, 'sample.py', *FOLDER, f'--temperature={temperature}', '--max_new_tokens=5')
        )
        assert 'probability 1,' in sampler
        texts.add(text)
    assert len(texts) == 1


def test_out_dir_alone_means_the_model_that_was_trained_there(here, capsys):
    named = call_well(capsys, 'sample.py', *RESUME, '--out_dir=out', '--max_new_tokens=5')
    alone = call_well(capsys, 'sample.py', '--out_dir=out', '--device=cpu', '--max_new_tokens=5')
    assert alone == named
    assert_refuses('sample.py', '--out_dir=nowhere', words=['no checkpoint nowhere'], cwd=here)


def test_a_reduced_precision_is_named_beside_every_number(here, capsys):
    out = call_well(capsys, 'sample.py', *RESUME, '--dtype=bfloat16', '--max_new_tokens=5')
    numbers = [line for line in out.splitlines() if 'logprob' in line]
    assert len(numbers) == 2
    assert all('computed in bfloat16' in line for line in numbers)
    out = call_well(capsys, 'eval.py', *RESUME, '--eval_data=pairs.json', '--dtype=bfloat16')
    assert out.count('computed in bfloat16') == 2  # above the table and above the totals


def embedded(path):
    """Return the data embedded in a page."""
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_a_page_has_all_steps_of_all_samples(here, capsys):
    settings = ('--start=Ann gave', '--num_samples=2', '--max_new_tokens=25', '--show_probs=True', '--html=True')
    printed = call_well(capsys, 'sample.py', *FOLDER, *settings)
    (path,) = (here / 'results').glob('folder-ann-gave-*/page.html')
    assert str(path.relative_to(here)) in printed
    assert list(path.parent.iterdir()) == [path]  # instead of forty PNGs
    sides = [text['sides'][0] for text in embedded(path)['texts']]
    assert [len(side['pieces']) for side in sides] == [25, 25]
    found = {
        name: [float(logprob) for logprob in re.findall(rf'^{name} .*logprob (\S+),', printed, re.MULTILINE)]
        for name in ('model', 'sampler')
    }
    assert [side['logprob'] for side in sides] == pytest.approx(found['model'], abs=1e-4)
    assert [side['sampler_logprob'] for side in sides] == pytest.approx(found['sampler'], abs=1e-4)
