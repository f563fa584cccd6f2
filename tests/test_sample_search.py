"""sample.py: beam search and the search for the most probable continuations, as it prints and draws them."""

import itertools
import math
import re

import pytest
import torch
from helpers.world import FOLDER, assert_refuses, assert_runs_into_error, call, call_well
from matplotlib.image import imread

from lm import checkpoint, matrices
from lm.next_words import next_words
from lm.search import Budget, all_above, beam_search, beam_steps, most_probable, search_steps
from lm.text_probability import QUANTITIES, quantity_steps
from pictures.search_results import make_search_tree


def test_beams_are_printed_best_first_and_drawn_as_a_tree(here, capsys):
    settings = ('--start=Ann gave', '--beam_width=4', '--max_new_tokens=6', '--show_beams=True', '--plot_steps=4')
    printed = call_well(capsys, 'sample.py', *FOLDER, *settings)
    assert 'model (temperature 1, every token)' in printed
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    prompt = tokenizer.encode_prompt('Ann gave')
    sequences, logprobs = beam_search(model, torch.tensor([prompt]), 6, 4)
    pieces = [''.join(tokenizer.pieces(row[len(prompt) :])) for row in sequences.tolist()]
    assert re.findall(r'^ +\d  (.*)$', printed, re.MULTILINE) == pieces
    found = re.findall(r'logprob (\S+), probability (\S+), perplexity per token \S+ \(6 tokens\)', printed)
    assert [float(logprob) for logprob, _ in found] == pytest.approx(logprobs.tolist(), abs=1e-3)
    assert [float(prob) for _, prob in found] == pytest.approx(logprobs.exp().tolist(), rel=1e-3)
    (picture,) = (here / 'results').glob('folder-beams-ann-gave-*/beams.png')
    assert 'the first 4 steps' in printed
    assert imread(picture).shape[1] > 500


def test_the_most_probable_continuations_are_printed_with_their_proof(here, capsys):
    settings = ('--start=The fox', '--most_probable=3', '--max_new_tokens=3', '--budget=None')
    printed = call_well(capsys, 'sample.py', *FOLDER, *settings)
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    prompt = tokenizer.encode_prompt('The fox')
    sequences, logprobs, bound = most_probable(model, torch.tensor([prompt]), 3, 3)
    pieces = [''.join(tokenizer.pieces(row[len(prompt) :])) for row in sequences.tolist()]
    assert re.findall(r'^ +\d  (.*)$', printed, re.MULTILINE) == pieces
    found = [float(logprob) for logprob in re.findall(r'logprob (\S+), probability', printed)]
    assert found == pytest.approx(logprobs.tolist(), abs=1e-3)
    assert re.search(r'exact: [\d,]+ prefixes opened', printed)
    assert float(re.search(r'nothing unseen can exceed p = (\S+) ', printed)[1]) == pytest.approx(
        math.exp(bound), rel=1e-3
    )


@pytest.mark.parametrize(
    ('budget', 'opened'),
    [('1', '1 prefix'), ('1,100s', '1 prefix'), ('0s', '0 prefixes'), ('0MB', '0 prefixes')],
)
def test_a_spent_budget_is_reported_with_the_bound_so_far(here, capsys, budget, opened):
    settings = ('--start=The fox', '--most_probable=2', '--max_new_tokens=30', f'--budget={budget}')
    printed = call_well(capsys, 'sample.py', *FOLDER, *settings)
    assert 'the most probable so far (not proved)' in printed
    assert f'not proved: {opened} opened' in printed
    assert f'the budget ({budget}) is spent' in printed
    found = [float(prob) for prob in re.findall(r', probability (\S+),', printed)]
    assert found[0] <= float(re.search(r'nothing unseen can exceed p = (\S+) ', printed)[1]) <= 1


def test_what_was_computed_in_int8_is_exact_up_to_its_rounding(here, capsys):
    settings = ('--start=The fox', '--most_probable=2', '--max_new_tokens=2')
    if not matrices.can_quantize(torch.ones(1)):
        pytest.skip('int8 needs an x86 CPU')
    assert 'exact (up to rounding, computed in int8): ' in call_well(
        capsys, 'sample.py', *FOLDER, *settings, '--quantize=int8'
    )
    assert 'exact (up to rounding, computed in bfloat16): ' in call_well(
        capsys, 'sample.py', *FOLDER, *settings, '--dtype=bfloat16'
    )


def test_settings_without_effect_are_reported(here, capsys):
    for settings, name in (
        (('--most_probable=2', '--max_new_tokens=2', '--num_samples=3'), 'num_samples'),
        (('--beam_width=2', '--max_new_tokens=2', '--length_penalty=1.0'), 'length_penalty'),
        (('--max_new_tokens=2', '--budget=5s'), 'budget'),
        (('--fixed_response= ran', '--num_samples=3'), 'num_samples'),
        (('--next=2', '--num_samples=3'), 'num_samples'),
    ):
        call('sample.py', *FOLDER, *settings)
        assert capsys.readouterr().err == f'note: --{name} has no effect here\n'


def test_the_tree_has_the_branches_that_the_search_followed(here):
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    idx = torch.tensor([tokenizer.encode_prompt('The fox')])
    steps = list(beam_steps(model, idx, 6, 4, eos=5))
    _, finished = steps[-1]
    levels = make_search_tree(steps, finished, tokenizer)
    assert len(levels) == len(steps)
    ends = {}  # (level, place) -> probability of the text up to there, by following the tree
    for number, level in enumerate(levels):
        for place, branch in enumerate(level):
            before = 1.0 if number == 0 else ends[number - 1, branch.parent]
            ends[number, place] = before * branch.prob
            assert ends[number, place] == pytest.approx(math.exp(branch.total), rel=1e-6)
        assert sum(branch.best for branch in level) <= 1
        assert all(branch.kept for branch in level if branch.best)
    assert max(ends.values()) >= math.exp(finished[0].logprob) * (1 - 1e-6)
    found = {round(branch.total, 9) for level in levels for branch in level if branch.kept}
    assert {round(beam.logprob, 9) for beam in finished} <= found


def test_ctrl_c_ends_a_search_with_what_it_has_found(here, monkeypatch, capsys):
    def interrupted(*arguments):
        yield from itertools.islice(search_steps(*arguments), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr('lm.search.search_steps', interrupted)
    call('sample.py', *FOLDER, '--start=The fox', '--most_probable=2', '--max_new_tokens=30', '--budget=None')
    printed = capsys.readouterr().out
    assert 'not proved: 1 prefix opened' in printed
    assert 'waiting; interrupted' in printed
    assert 'nothing unseen can exceed' in printed


def test_with_stop_at_eot_continuations_of_all_lengths_compete(here, capsys):
    settings = ('--start=The fox', '--most_probable=200', '--max_new_tokens=3', '--stop_at_eot=True')
    printed = call_well(capsys, 'sample.py', *FOLDER, *settings)
    assert set(re.findall(r'\((\d) tokens\)', printed)) > {'3'}


INVALID_SEARCHES = [
    (('--beam_width=0',), ['--beam_width=0']),
    (('--most_probable=0',), ['--most_probable=0']),
    (('--beam_width=2', '--max_new_tokens=0'), ['--max_new_tokens=0']),
    (('--beam_width=2', '--most_probable=2'), ['--beam_width', '--most_probable']),
    (('--beam_width=2', '--fixed_response=x'), ['--beam_width', '--fixed_response']),
    (('--most_probable=2', '--show_probs=True'), ['--most_probable', '--show_probs']),
    (('--show_beams=True',), ['--beam_width']),
    (('--show_beams=True', '--beam_width=41'), ['--beam_width=41', '40']),
    (('--show_beams=True', '--beam_width=2', '--plot_steps=0'), ['--plot_steps=0']),
    (('--beam_width=2', '--length_penalty=1000.0'), ['--length_penalty=1000']),
    (('--beam_width=2', '--length_penalty=nan'), ['--length_penalty=nan']),
    (('--most_probable=2', '--budget=5s,6s'), ['--budget=5s,6s', 'twice']),
    (('--most_probable=2', '--budget=soon'), ["'soon'", '60s']),
    (('--top_p=0',), ['--top_p=0']),
    (('--top_p=1.5',), ['--top_p=1.5']),
]


@pytest.mark.parametrize(('settings', 'words'), INVALID_SEARCHES)
def test_invalid_searches_are_refused(here, settings, words):
    assert_refuses('sample.py', *FOLDER, *settings, words=words, cwd=here)


@pytest.mark.slow
@pytest.mark.parametrize(('settings', 'words'), INVALID_SEARCHES)
def test_an_invalid_search_ends_with_one_line_on_stderr(here, settings, words):
    assert_runs_into_error('sample.py', *FOLDER, *settings, words=words, cwd=here)


# Words, thresholds, and the text itself -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_likeliest_next_words_are_printed_with_their_bounds(here, capsys):
    printed = call_well(capsys, 'sample.py', *FOLDER, '--start=The fox', '--next_words=3', '--budget=3000')
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    ends = tokenizer.roles.ends
    found = next_words(model, tokenizer, tokenizer.encode_prompt('The fox'), 3, ends, budget=Budget(prefixes=3000))
    assert re.findall(r'^ +\d  (\S+) +probability', printed, re.MULTILINE) == [word.word for word in found.words]
    for text, word in zip(re.findall(r'probability (\S+) to', printed), found.words, strict=True):
        assert float(text) == pytest.approx(math.exp(word.log_lower), rel=0.01)
        assert float(text) <= math.exp(word.log_lower) * (1 + 3e-6)  # rounded outward, in five digits; here, in float32
    assert re.search(r'(not )?proved: [\d,]+ prefixes opened in .*no other word can exceed p = ', printed)


def test_all_continuations_above_a_threshold_are_printed(here, capsys):
    printed = call_well(capsys, 'sample.py', *FOLDER, '--start=The fox', '--above=0.001', '--max_new_tokens=2')
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    found = all_above(model, torch.tensor([tokenizer.encode_prompt('The fox')]), 2, 0.001)
    pieces = [''.join(tokenizer.pieces(ids)) for ids, _ in found]
    assert re.findall(r'^ +\d+  (.*)$', printed, re.MULTILINE) == pieces
    assert f'all {len(found)} continuation' in printed
    assert_refuses('sample.py', *FOLDER, '--above=1.5', words=['--above=1.5'], cwd=here)
    assert_refuses('sample.py', *FOLDER, '--above=0.1', '--next_words=2', words=['cannot be combined'], cwd=here)


@pytest.mark.parametrize('quantity', ['True', 'true', 'start', 'ratio'])
def test_the_probability_of_the_text_is_printed_below_that_of_its_tokens(here, capsys, quantity):
    fixed = ('--start=The fox ', '--fixed_response=ate Ann', f'--whole_text={quantity}')
    printed = call_well(capsys, 'sample.py', *FOLDER, *fixed)
    model, tokenizer, _ = checkpoint.load_model('folder', device='cpu')
    pair = tokenizer.encode_pair('The fox ', 'ate Ann')
    kind = 'response' if quantity.lower() == 'true' else quantity
    for bounds in quantity_steps(model, tokenizer, kind, *pair):
        if bounds.gap <= 1e-3:
            break
    low, high = map(float, re.search(r'probability (\S+) to (\S+) \(logprob', printed).groups())
    assert low == pytest.approx(math.exp(bounds.log_lower), rel=1e-3)  # the model's matrices are not packed here
    assert high == pytest.approx(math.exp(bounds.log_upper), rel=1e-3)
    assert high / low - 1 < 2e-3
    assert QUANTITIES[kind] in printed
    assert_refuses(
        'sample.py', *FOLDER, '--fixed_response=a', '--whole_text=maybe', words=['neither True nor'], cwd=here
    )
