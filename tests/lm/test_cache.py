"""Rows of different lengths in one cache: each is read as it is alone, by every kind of model and by transformers."""

import math

import pytest
import torch
from helpers.models import random_gpt
from transformers import GPT2LMHeadModel

from lm import fast, matrices
from lm.checkpoint import save_pretrained

LENGTHS = [3, 9, 1, 6, 9, 2]
KINDS = [
    'plain',
    pytest.param('packed', marks=pytest.mark.skipif(not matrices.can_pack(torch.ones(1)), reason='needs oneDNN')),
    pytest.param('int8', marks=pytest.mark.skipif(not matrices.can_quantize(torch.ones(1)), reason='needs an x86 CPU')),
]


@pytest.fixture(params=KINDS)
def model(request):
    """A model whose context is longer than what the tests read, plain or optimised for inference."""
    model = random_gpt(block_size=40, n_ids=59)
    return model if request.param == 'plain' else fast.pack(model, 'int8' if request.param == 'int8' else None)


def random_ids(model, *shape, seed=1):
    return torch.randint(model.n_ids, shape, generator=torch.Generator().manual_seed(seed))


def pad(rows, value=0):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


@torch.no_grad()
def logits_alone(model, ids):
    """Return the logits after each of these ids, (T, V), read at once, without a cache or other texts.

    The row stands there twice, since int8 rounds a single vector in another way than several.
    """
    return model.logits(model.hidden(ids.expand(2, -1)))[0]


@torch.no_grad()
def ragged_cache(model, rows, room=20):
    """Return a cache that holds these rows, and the logits after the last token of each, (B, V)."""
    lengths = torch.tensor([len(row) for row in rows])
    cache = model.new_cache(len(rows), room)
    x = model.hidden(pad(rows, value=7), cache)
    cache.rewind(lengths)
    return cache, model.logits(x[torch.arange(len(rows)), lengths - 1])


def assert_equal_logits(model, found, expected):
    """Compare logits; where eight bits are used, the last digit of a float32 may round an input up instead of down."""
    tolerance = 0.06 if isinstance(getattr(model.lm_head, 'matrix', None), matrices.Int8Matrix) else 1e-4
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), atol=tolerance, rtol=1e-4)


def rows_of(model, lengths=LENGTHS):
    return [random_ids(model, length, seed=number) for number, length in enumerate(lengths)]


def read_on(model, rows, cache, n, seed=50):
    """Decode n more tokens per row; check the logits after each against those of the row alone."""
    rows = list(rows)
    for step in range(n):
        ids = random_ids(model, len(rows), seed=seed + step)
        with torch.no_grad():
            logits = model.decode(ids, cache)
        for number, row in enumerate(rows):
            rows[number] = torch.cat([row, ids[number : number + 1]])
            assert_equal_logits(model, logits[number], logits_alone(model, rows[number])[-1])
    assert cache.lengths.tolist() == [len(row) for row in rows]
    return rows


# Against each row alone -----------------------------------------------------------------------------------------------


def test_prompts_of_different_lengths_are_read_as_each_is_alone(model):
    rows = rows_of(model)
    cache, logits = ragged_cache(model, rows)
    assert cache.lengths.tolist() == LENGTHS
    for row, of_row in zip(rows, logits):
        assert_equal_logits(model, of_row, logits_alone(model, row)[-1])
    read_on(model, rows, cache, 8)


@pytest.mark.parametrize('lengths', [LENGTHS, [4] * 6])
def test_several_tokens_are_read_at_once_after_what_each_row_holds(model, lengths):
    rows = rows_of(model, lengths)
    cache, _ = ragged_cache(model, rows)
    more = random_ids(model, len(rows), 5, seed=30)
    with torch.no_grad():
        logits = model.logits(model.hidden(more, cache))  # (B, 5, V)
    rows = [torch.cat([row, ids]) for row, ids in zip(rows, more)]
    for row, of_row in zip(rows, logits):
        assert_equal_logits(model, of_row, logits_alone(model, row)[-5:])
    read_on(model, rows, cache, 3)


def test_more_tokens_of_different_numbers_are_padded_and_rewound_again(model):
    rows = rows_of(model)
    cache, _ = ragged_cache(model, rows)
    more = [random_ids(model, size, seed=60 + size) for size in (4, 1, 5, 2, 3, 5)]
    with torch.no_grad():
        logits = model.logits(model.hidden(pad(more), cache))
    cache.rewind(torch.tensor([len(row) + len(ids) for row, ids in zip(rows, more)]))
    rows = [torch.cat([row, ids]) for row, ids in zip(rows, more)]
    for row, ids, of_row in zip(rows, more, logits):
        assert_equal_logits(model, of_row[: len(ids)], logits_alone(model, row)[-len(ids) :])
    read_on(model, rows, cache, 3)


def test_rows_of_one_length_need_no_mask_however_they_came_about(model):
    rows = rows_of(model, [4, 4, 4])
    cache, _ = ragged_cache(model, [torch.cat([rows[0], rows[1]]), *rows[1:]])  # the first one is longer
    cache.rewind(4)
    assert cache.lengths.tolist() == [4, 4, 4]
    read_on(model, rows, cache, 3)
    assert cache.mask is None and cache.places is None


def test_the_cache_grows_beyond_its_room(model):
    rows = rows_of(model)
    cache, _ = ragged_cache(model, rows, room=1)
    assert cache.kv.size(4) == max(LENGTHS)
    before = cache.nbytes
    read_on(model, rows, cache, 12)
    assert cache.kv.size(4) >= max(LENGTHS) + 12
    assert cache.nbytes == cache.kv.numel() * cache.kv.element_size() > before


def test_a_full_context_is_used_to_the_last_token_and_not_beyond(model):
    rows = rows_of(model, [model.block_size - 2, 5])
    cache, _ = ragged_cache(model, rows)
    read_on(model, rows, cache, 2)
    with pytest.raises(ValueError, match='41 tokens do not fit into block_size=40'):
        model.decode(random_ids(model, 2), cache)


@torch.no_grad()
def test_transformers_gives_the_same_with_padding_on_the_left(tmp_path):
    ours = random_gpt(block_size=40)
    save_pretrained(ours, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    rows, n = rows_of(ours), 6
    cache, logits = ragged_cache(ours, rows)
    more = random_ids(ours, len(rows), n, seed=9)
    found = [logits, *(ours.decode(ids, cache) for ids in more.T)]
    longest = max(LENGTHS)
    mask = torch.stack([torch.arange(longest + n) >= longest - len(row) for row in rows]).long()
    idx = torch.stack([torch.cat([torch.zeros(longest - len(row)).long(), row, ids]) for row, ids in zip(rows, more)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(idx, attention_mask=mask, position_ids=positions).logits[:, longest - 1 :]
    torch.testing.assert_close(torch.stack(found, 1), expected, atol=1e-4, rtol=1e-4)


# Rows taken, copied and forgotten -------------------------------------------------------------------------------------


def test_rows_are_taken_in_any_order_and_more_than_once(model):
    rows = rows_of(model)
    cache, _ = ragged_cache(model, rows)
    chosen = [4, 0, 0, 2]
    taken = cache.take(torch.tensor(chosen))
    assert taken.lengths.tolist() == [LENGTHS[row] for row in chosen]
    read_on(model, [rows[row] for row in chosen], taken, 4)
    read_on(model, rows, cache, 4, seed=90)  # the cache that they were taken from is as it was


def test_one_row_expands_to_many_that_part(model):
    row = random_ids(model, 5)
    cache, _ = ragged_cache(model, [row])
    many = cache.expand(4)
    assert many.lengths.tolist() == [5] * 4
    read_on(model, [row] * 4, many, 4)
    assert cache.lengths.tolist() == [5]


@pytest.mark.parametrize('lengths', [4, [2, 4, 1, 3, 4, 2], [3, 9, 1, 6, 9, 2], 100])
def test_what_is_forgotten_leaves_nothing_behind(model, lengths):
    """An int for every row, or one number a row; a row that is shorter already stays as it is."""
    rows = rows_of(model)
    cache, _ = ragged_cache(model, rows)
    cache.rewind(lengths if isinstance(lengths, int) else torch.tensor(lengths))
    lengths = [lengths] * len(rows) if isinstance(lengths, int) else lengths
    rows = [row[:length] for row, length in zip(rows, lengths)]
    assert cache.lengths.tolist() == [len(row) for row in rows]
    read_on(model, rows, cache, 4)


# Memory that holds something else -------------------------------------------------------------------------------------


def test_what_lies_beyond_a_rows_end_changes_nothing(model):
    """Not by a bit: the same rows after padding with another token, and with large numbers in all unused memory."""
    rows, more = rows_of(model), random_ids(model, len(LENGTHS), 3, seed=70)
    found = []
    for garbage in (0.0, 1e4, -1e4):
        cache, _ = ragged_cache(model, rows)
        for row, length in enumerate(LENGTHS):
            cache.kv[:, :, row, :, length:] = garbage
        with torch.no_grad():
            found.append([model.decode(ids, cache) for ids in more.T])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_nan_in_unused_memory_goes_nowhere(model):
    rows = rows_of(model, [5, 5, 5])
    cache, _ = ragged_cache(model, rows)
    cache.kv[:, :, :, :, 5:] = math.nan
    rows = read_on(model, rows, cache, 4)
    cache.rewind(3)
    cache.kv[:, :, :, :, 3:] = math.nan
    read_on(model, [row[:3] for row in rows], cache, 25)  # across the growth


def test_a_text_with_nan_spoils_no_other_row(model):
    rows = rows_of(model)
    cache, _ = ragged_cache(model, rows)
    cache.kv[:, :, 1] = math.nan
    ids = random_ids(model, len(rows))
    with torch.no_grad():
        logits = model.decode(ids, cache)
    for number in (0, 2, 3, 4, 5):
        assert_equal_logits(
            model, logits[number], logits_alone(model, torch.cat([rows[number], ids[number : number + 1]]))[-1]
        )


def test_reading_with_a_cache_works_while_gradients_are_recorded():
    model = random_gpt().requires_grad_()
    cache = model.new_cache(1, 8)
    first = model.hidden(torch.tensor([[1, 2, 3]]), cache)
    assert first.requires_grad
    got = torch.cat([first, model.hidden(torch.tensor([[4]]), cache)], dim=1)
    assert torch.allclose(got, model.hidden(torch.tensor([[1, 2, 3, 4]])), atol=1e-5)
