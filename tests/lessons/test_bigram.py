"""lessons/bigram.py: counts and losses against plain loops, and the claims of the lesson at its default settings."""

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.lessons import numbers_on_page
from helpers.scripts import run_lesson
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.image import imread
from scipy.stats import dirichlet, entropy

from common.errors import UserError
from lessons import bigram
from lessons.bigram import (
    Bigram,
    OneHead,
    Settings,
    Transformer,
    count_pairs,
    counts_to_probs,
    evaluate_text,
    main,
    mean_loss,
    pair_loss,
    sample_ids,
    train_model,
)

V = 7
texts = st.lists(st.integers(0, V - 1), min_size=2, max_size=200).map(torch.tensor)
smoothings = st.floats(1e-3, 10)


def a_text(length, vocab_size=V, seed=0):
    """Return random ids whose pairs have very different frequencies."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(length, generator=generator) ** 3 * vocab_size).long()


# Counting -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(texts)
def test_pairs_are_counted(ids):
    counts, expected = count_pairs(ids, V), Counter(pairwise(ids.tolist()))
    assert {(a, b): counts[a, b].item() for a in range(V) for b in range(V) if counts[a, b]} == expected


@settings(max_examples=50)
@given(texts, smoothings)
def test_probabilities_are_the_mean_of_the_posterior(ids, smoothing):
    counts = count_pairs(ids, V)
    for row, share in zip(counts, counts_to_probs(counts, smoothing)):
        assert share.tolist() == pytest.approx(dirichlet((row + smoothing).numpy()).mean().tolist())


@settings(max_examples=50)
@given(texts)
def test_the_lowest_loss_of_pairs_is_the_conditional_entropy(ids):
    """H(next | last) = H(last, next) - H(last), both by scipy."""
    counts = count_pairs(ids, V)
    expected = entropy(counts.flatten().numpy()) - entropy(counts.sum(1).numpy())
    assert pair_loss(counts, counts_to_probs(counts, 1e-12).log()).item() == pytest.approx(expected, abs=1e-6)


@given(texts, st.integers(0, 1000))
def test_no_other_table_has_a_lower_loss(ids, seed):
    counts = count_pairs(ids, V)
    other = torch.randn(V, V, generator=torch.Generator().manual_seed(seed)).double().log_softmax(1)
    least = counts_to_probs(counts, 1e-12).log()
    for share in (1, 0.1, 0.001):  # also close by
        near = torch.logaddexp(least + math.log1p(-share) if share < 1 else least - math.inf, other + math.log(share))
        assert pair_loss(counts, near) >= pair_loss(counts, least) - 1e-9


# Learning -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(texts, smoothings)
def test_the_gradient_of_a_row_is_its_share_times_probabilities_less_counted_shares(ids, smoothing):
    counts = count_pairs(ids, V) + smoothing
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    pair_loss(counts, table.log_softmax(1)).backward()
    common = counts.sum(1, keepdim=True) / counts.sum()
    assert torch.allclose(table.grad, common * (table.softmax(1) - counts_to_probs(counts, 0)).detach(), atol=1e-12)


@pytest.mark.parametrize('steps', [59, 1000])
def test_learned_pairs_become_the_counted_ones(steps):
    counts = count_pairs(a_text(3000), V) + 0.1
    model = Bigram(torch.zeros(V, V))
    seen = list(train_model(model, lambda model, step: pair_loss(counts, model.table.log_softmax(1)), steps, 0.2))
    assert seen[0] == 0 and seen[-1] == steps and seen == sorted(set(seen)) and 20 <= len(seen) <= 31
    if steps == 1000:
        assert torch.allclose(model.table.softmax(1).double(), counts_to_probs(counts, 0), atol=1e-3)


# Models -------------------------------------------------------------------------------------------------------------


def the_models(block_size=8):
    torch.manual_seed(0)
    table = Bigram(torch.randn(V, V))
    return [table, OneHead(V, block_size, 12), Transformer(V, block_size, 12)]


@pytest.mark.parametrize('model', the_models(), ids=['pairs', 'one head', 'transformer'])
def test_no_model_sees_the_future(model):
    ids = a_text(8)[None]
    logits = model(ids)
    assert logits.shape == (1, 8, V)
    for place in range(8):
        other = ids.clone()
        other[:, place:] = (other[:, place:] + 1) % V
        changed = (model(other) - logits).abs().amax(-1)[0]
        assert (changed[:place] < 1e-6).all()
        assert changed[place] > 1e-4


def test_pairs_see_one_character_and_attention_all_before():
    pairs, *with_attention = the_models()
    ids = a_text(8)[None]
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % V
    assert torch.equal(pairs(other)[0, -1], pairs(ids)[0, -1])
    for model in with_attention:
        assert not torch.allclose(model(other)[0, -1], model(ids)[0, -1], atol=1e-5)


def test_the_one_head_is_scaled_dot_product_attention():
    head = the_models()[1]
    ids = torch.stack([a_text(5), a_text(5, seed=1)])
    x = head.what(ids) + head.where(torch.arange(5))
    attended = torch.nn.functional.scaled_dot_product_attention(
        head.query(x), head.key(x), head.value(x), is_causal=True
    )
    assert torch.allclose(head(ids), head.read_out(x + attended), atol=1e-5)


def test_the_transformer_is_the_projects():
    model = the_models()[2]
    ids = a_text(8)[None]
    (step,) = model.steps(ids, 1, seed=0)
    assert torch.allclose(model(ids)[:, -1], step.logits, atol=1e-5)
    wide = Transformer(500, 64, 64)
    for name, deviation in (('wte', 0.02), ('h.0.attn.c_attn', 0.02), ('h.1.mlp.c_proj', 0.01)):
        weight = wide.transformer.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(deviation * math.sqrt(768 / 64), rel=0.05)


# Losses and samples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('model', the_models(), ids=['pairs', 'one head', 'transformer'])
@pytest.mark.parametrize('length', [2, 8, 9, 10, 17, 2100])
def test_a_whole_text_is_evaluated_each_character_once(model, length):
    ids, losses = a_text(length, seed=length), []
    for start in range(0, length - 1, 8):
        block = ids[start : start + 9]
        logprobs = model(block[None, :-1])[0].log_softmax(-1)
        losses += [-logprobs[place, id].item() for place, id in enumerate(block[1:])]
    assert len(losses) == length - 1
    assert evaluate_text(model, ids, 8) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@given(texts, st.integers(2, 64))
@settings(deadline=None)
def test_for_pairs_counts_and_blocks_give_the_same_loss(ids, block_size):
    table = the_models()[0]
    expected = pair_loss(count_pairs(ids, V), table.table.log_softmax(1)).item()
    assert evaluate_text(table, ids, block_size) == pytest.approx(expected, abs=1e-5)


def test_targets_of_minus_1_do_not_count():
    model, ids = the_models()[1], a_text(9)
    targets = ids[None, 1:].clone()
    targets[:, 4:] = -1
    assert mean_loss(model, ids[None, :-1], targets).item() == pytest.approx(evaluate_text(model, ids[:5], 8), abs=1e-6)


def test_samples_follow_the_models_probabilities():
    counts = count_pairs(a_text(500), V)
    table = counts_to_probs(counts, 0.5)
    model = Bigram(table.log().float())
    ids = sample_ids(model, 0, 2500, 8, seed=1)
    written = count_pairs(torch.tensor([0, *ids]), V)
    usual = written.sum(1) > 200
    assert usual.sum() >= 3
    assert (counts_to_probs(written, 0.5) - table)[usual].abs().max() < 0.1
    assert ids[:100] == sample_ids(model, 0, 100, 8, seed=1) != sample_ids(model, 0, 100, 8, seed=2)


def test_no_more_than_a_block_is_read():
    lengths = []

    def model(idx):
        lengths.append(idx.size(1))
        return torch.zeros(1, idx.size(1), V)

    assert len(sample_ids(model, 0, 6, 4, seed=0)) == 6
    assert lengths == [1, 2, 3, 4, 4, 4]


# The lesson -----------------------------------------------------------------------------------------------------------


def shown(text):
    """Return {name: (numbers, loss on its own text, held out, bits, sample)} from the output of the lesson."""
    losses = r'(\d\.\d+) nats per character on its own text, (\d\.\d+) held out \((\d\.\d+) bits\)'
    found = re.findall(rf'\n(.+): ([\d,]+) parameters\n{losses}\n((?:    .*\n)+)', text)
    return {name: (int(n.replace(',', '')), *map(float, numbers), sample) for name, n, *numbers, sample in found}


@pytest.mark.slow
def test_the_claims_of_the_lesson_at_its_default_settings(tmp_path, capsys, monkeypatch):
    drawn = []
    draw = bigram.draw_pictures
    monkeypatch.setattr(bigram, 'draw_pictures', lambda *numbers: (drawn.append(numbers), draw(*numbers)))
    before = pyplot.get_fignums()
    main(Settings(plot_dir=str(tmp_path)))
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    models = shown(output)
    counted, learned, head, small, large, stopped = models.values()
    assert list(models)[:4] == ['Pairs counted', 'Pairs learned', 'One head', 'Small transformer']

    # Learned pairs equal counted ones, on both texts, even in their sample.
    least = float(re.search(r'H\(next \| last\) = (\d\.\d+)', output)[1])
    assert abs(learned[1] - counted[1]) < 0.01 and abs(learned[2] - counted[2]) < 0.01
    assert least < counted[1] < least + 0.01
    assert learned[4] == counted[4]
    # The page has these numbers, rounded; training takes a slightly different path on other machines.
    on_page = numbers_on_page(r'left to train: (\S+) nats.+gets to (\S+); a small transformer, [^,]+, to (\S+)\.\n')
    assert [model[2] for model in (counted, head, small)] == pytest.approx(on_page, abs=0.03)
    assert counted[2] == pytest.approx(on_page[0], abs=0.006)  # nothing is trained
    on_page = numbers_on_page(r'on that text falls to (\S+), while its held-out loss, (\S+) at best, rises to (\S+)\. ')
    assert [large[1], stopped[2], large[2]] == pytest.approx(on_page, abs=0.1)
    # Each step is better than the one before on held-out text.
    assert head[2] < min(counted[2], learned[2]) - 0.1
    assert small[2] < head[2] - 0.1
    for _, _, nats, bits, _ in models.values():
        assert bits == pytest.approx(nats / math.log(2), abs=1e-3)
    # The large model's held-out loss is lowest well before the end; the lesson says where.
    ((_, curves, parting, stop, table, pieces),) = drawn
    own, held_out = (dict(curve) for curve in parting.values())
    assert held_out[stop] == min(held_out.values()) and 0 < stop <= 0.7 * max(held_out)
    assert f'at step {stop}, where to stop' in output and f'step {max(held_out)}' in output
    assert held_out[max(held_out)] > held_out[stop] + 0.2
    assert own[max(own)] < own[stop] - 0.5
    assert (large[2], stopped[2]) == pytest.approx((held_out[max(held_out)], held_out[stop]), abs=1e-4)
    assert (large[1], stopped[1]) == pytest.approx((own[max(own)], own[stop]), abs=1e-4)
    # The pictures show the printed numbers.
    for name, curve in curves.items():
        assert curve[-1][1] == pytest.approx(models[name][2], abs=1e-4)
    assert table.shape == (30, 30) and len(pieces) == 30
    assert table[pieces.index('v'), pieces.index('e')] > 0.5 > 0.01 > table[pieces.index('e'), pieces.index('k')]
    for name in ('bigram.png', 'bigram-overfitting.png'):
        image = imread(tmp_path / name)
        assert image.shape[1] >= 800 and image[:, :, :3].std() > 0.02
    assert set(pyplot.get_fignums()) <= set(before)


QUICK = {'steps': 40, 'n_embd': 8, 'block_size': 8, 'small_text': 300}


@pytest.mark.slow
@pytest.mark.parametrize(
    'text',
    [
        pytest.param('Die Füchsin sagte: "5 $x_1$ für 3 🦊?"\n\t中文，標點。\u2028' * 40, id='any characters'),
        pytest.param('a' * 1100, id='one character'),
        pytest.param('ab\n' * 500, id='three'),
    ],
)
def test_the_lesson_reads_any_text(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('any.txt').write_text(text, encoding='utf-8')
    main(Settings(input='any.txt', **QUICK))
    models = shown(capsys.readouterr().out)
    assert len(models) == 6 and all(math.isfinite(number) for model in models.values() for number in model[:4])
    assert sorted(path.name for path in Path('results/lessons').iterdir()) == ['bigram-overfitting.png', 'bigram.png']


@pytest.mark.slow
def test_the_lesson_is_the_same_each_time(tmp_path, capsys):
    outputs = []
    for name in ('one', 'two'):
        main(Settings(max_characters=3000, plot_dir=str(tmp_path / name), **QUICK))
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and '2,700 characters to learn from' in outputs[0] and '300 held out' in outputs[0]
    assert (tmp_path / 'one/bigram.png').read_bytes() == (tmp_path / 'two/bigram.png').read_bytes()


@pytest.mark.slow
def test_the_lesson_runs_from_another_folder(tmp_path):
    process = run_lesson(
        'bigram', *(f'--{name}={value}' for name, value in QUICK.items()), '--max_characters=2000', cwd=tmp_path
    )
    assert process.returncode == 0 and process.stderr == '', process.stderr
    assert len(shown(process.stdout)) == 6
    assert (tmp_path / 'results/lessons/bigram.png').exists()


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        ({'input': 'nowhere.txt'}, 'nowhere.txt'),
        ({'input': 'latin.txt'}, 'latin.txt is not UTF-8'),
        ({'input': 'short.txt'}, '5 characters; it needs 1,000'),
        ({'input': ''}, '0 characters'),
        ({'max_characters': 900}, '900 characters'),
        ({'block_size': 1}, '--block_size=1'),
        ({'block_size': 60_000, 'small_text': 60_002}, '--block_size=60000'),
        ({'n_embd': 0}, '--n_embd=0'),
        ({'n_embd': 30}, '--n_embd=30.*multiple of 4'),
        ({'steps': 39}, '--steps=39.*40'),
        ({'small_text': 65}, '--small_text=65.*66'),
        ({'smoothing': 0.0}, '--smoothing=0'),
        ({'seed': -1}, '--seed=-1'),
        ({'device': 'nowhere'}, '--device=nowhere'),
        pytest.param({'plot_dir': 'short.txt', 'max_characters': 2000, **QUICK}, 'short.txt', marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_invalid_settings_are_reported(wrong, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('latin.txt').write_bytes('é'.encode('latin-1') * 2000)
    Path('short.txt').write_text('short')
    with pytest.raises(UserError, match=words):
        main(Settings(**wrong))
