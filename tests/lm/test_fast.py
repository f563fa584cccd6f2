"""Every fast path against the plain one: packed matrices, eight bits."""

import math
import random

import pytest
import torch
from helpers.models import random_gpt
from helpers.scripts import run_script

from common.errors import UserError
from common.files import PROJECT
from lm import checkpoint, fast, matrices
from lm.scoring import score, score_pairs
from lm.settings import SamplingSettings, check_sampling_settings
from model import logits_to_logprobs

TEXT = (PROJECT / 'data/childrens_stories/childrens_stories.txt').read_text(encoding='utf-8')
SHAPES = [
    {},
    {'bias': False, 'gelu': 'none'},
    {'n_embd': 30, 'n_head': 5, 'vocab_size': 67, 'n_ids': 61},
    {'n_layer': 1, 'n_head': 1, 'n_embd': 7},
]

needs_packing = pytest.mark.skipif(
    not matrices.can_pack(torch.ones(1)), reason='this torch has no oneDNN; matrices stay as they are'
)
needs_int8 = pytest.mark.skipif(not matrices.can_quantize(torch.ones(1)), reason='int8 needs an x86 CPU')


def pair_of(shape):
    """Return two models with the same weights, the second one packed."""
    return random_gpt(**shape), fast.pack(random_gpt(**shape))


@needs_packing
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('rows', 'tokens'), [(1, 1), (1, 3), (3, 1), (2, 5), (5, 16)])
def test_packed_logits_are_the_plain_ones(shape, rows, tokens):
    plain, packed = pair_of(shape)
    assert isinstance(packed.transformer.h[0], fast.PackedBlock)
    idx = torch.randint(plain.n_ids, (rows, tokens))
    with torch.no_grad():
        expected, got = (model.logits(model.hidden(idx)).log_softmax(-1) for model in (plain, packed))
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-4)
    assert (got[..., plain.n_ids :] == -math.inf).all()


@needs_packing
@torch.no_grad()
def test_packed_decoding_goes_on_from_a_cache_as_the_plain_one_does():
    plain, packed = pair_of({})
    idx = torch.randint(plain.n_ids, (2, 9))
    for model in (plain, packed):
        cache = model.new_cache(2, 16)
        model.hidden(idx[:, :4], cache)
        model.hidden(idx[:, 4:7], cache)  # several tokens after a cached prefix
        model.last = model.decode(idx[:, 7], cache)
        cache.rewind(4)  # forget what came later, and read it again
        model.again = model.logits(model.hidden(idx[:, 4:8], cache))[:, -1]
    assert torch.allclose(packed.last, plain.last, atol=1e-4)
    assert torch.allclose(packed.again, plain.last, atol=1e-4)


@needs_packing
@pytest.mark.parametrize('rows', [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize('settings', [{}, {'temperature': 0.8, 'top_k': 20}, {'temperature': 0}])
def test_a_seed_gives_the_same_text_packed_or_plain(rows, settings):
    """The same but where a random number falls on the line between two tokens, to within the rounding of float32."""
    plain, _, _ = checkpoint.load_model('tiny-stories', device='cpu')
    packed, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    fast.pack(packed)
    idx = torch.tensor([tokenizer.encode_prompt('Once upon a time')] * rows)
    (text, prob), (expected, expected_prob) = (model.generate(idx, 40, seed=3, **settings) for model in (packed, plain))
    same = (text == expected).all(1)  # (rows,)
    logprob, expected_logprob = (torch.as_tensor(of).reshape(rows).log() for of in (prob, expected_prob))
    assert torch.allclose(logprob[same], expected_logprob[same], atol=1e-3)
    assert same.sum() >= rows - 1
    for row in (~same).nonzero().flatten().tolist():
        place = (text[row] != expected[row]).nonzero()[0].item()  # where they part
        logits = plain(expected[row : row + 1, :place])[0][0, -1]
        cumulative = logits_to_logprobs(logits, **settings).double().exp().cumsum(0)
        numbers = random.Random(f'3 {row}')  # as model.steps draws them
        number = [numbers.random() for _ in range(place - idx.shape[1] + 1)][-1]
        line = cumulative[min(text[row, place], expected[row, place])].item()
        assert number == pytest.approx(line, abs=1e-6)


@needs_packing
def test_packed_scores_are_the_plain_ones():
    plain, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    packed, _, _ = checkpoint.load_model('tiny-stories', device='cpu')
    fast.pack(packed)
    pairs = some_pairs(tokenizer, 60)
    for ours, expected in zip(score_pairs(packed, pairs), score_pairs(plain, pairs), strict=True):
        assert torch.allclose(ours.model_logprobs, expected.model_logprobs, atol=1e-4)
        assert torch.allclose(ours.top_logprobs, expected.top_logprobs, atol=1e-4)
        assert torch.equal(ours.ranks, expected.ranks)


@needs_packing
@pytest.mark.slow
def test_bfloat16_packed_is_as_near_to_float32_as_plain_bfloat16_is():
    exact, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    plain, _, _ = checkpoint.load_model('tiny-stories', device='cpu', dtype='bfloat16')
    packed, _, _ = checkpoint.load_model('tiny-stories', device='cpu', dtype='bfloat16')
    fast.pack(packed)
    pairs = some_pairs(tokenizer, 40)
    exact, plain, packed = (
        torch.cat([score.model_logprobs for score in score_pairs(m, pairs)]) for m in (exact, plain, packed)
    )
    assert (packed - exact).abs().mean() <= 1.2 * (plain - exact).abs().mean() < 0.05


@torch.no_grad()
def test_where_there_is_no_onednn_matrices_are_not_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    plain, packed = pair_of({})
    assert packed.tuning.name in ('plain', 'transposed')
    idx = torch.randint(plain.n_ids, (2, 5))
    assert torch.allclose(packed.hidden(idx), plain.hidden(idx), atol=1e-4)


def some_pairs(tokenizer, count, size=30):
    """Cut pairs from the stories: half of each is the prompt, lengths vary."""
    ids = tokenizer.encode(TEXT)
    texts = [ids[start * 50 : start * 50 + 4 + start % size] for start in range(count)]
    return [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]


# Eight bits -----------------------------------------------------------------------------------------------------


@needs_int8
@pytest.mark.parametrize('bias', [True, False])
@torch.no_grad()
def test_an_int8_product_is_that_of_the_rounded_numbers(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(50, 33, bias=bias)
    linear.weight[3] = 0  # an output that nothing reaches
    x = torch.randn(6, 50)
    x[2] *= 1000  # the other rows keep their own scale
    x[4] = 1.5  # a row without any spread
    weight, steps = linear.weight.double(), 127 if matrices.Int8Matrix.seven_bits else 255
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    low, high = x.double().amin(1, keepdim=True), x.double().amax(1, keepdim=True)
    step = (high - low).clamp(min=1e-30) / steps
    rounded = low + step * ((x.double() - low) / step).round()
    expected = rounded @ (scale * (weight / scale).round()).T
    expected = expected if linear.bias is None else expected + linear.bias
    got = matrices.Int8Matrix(linear)(x)
    # A number that lies in the middle of two steps may be rounded either way.
    either_way = (step * scale.T * 127).amax(1, keepdim=True)
    assert ((got - expected).abs() <= 1e-4 + 1e-5 * expected.abs() + either_way).all()
    assert ((got - expected).abs() <= 1e-4 + 1e-5 * expected.abs()).double().mean() > 0.9


@needs_int8
@torch.no_grad()
def test_int8_rows_do_not_depend_on_the_batch_around_them():
    model = fast.pack(random_gpt(), 'int8')
    idx = torch.randint(model.n_ids, (4, 7))
    together = model.hidden(idx)
    for row in range(4):
        assert torch.allclose(model.hidden(idx[row : row + 1])[0], together[row], atol=1e-5)


@needs_int8
def test_int8_changes_the_logprobs_of_real_text_little():
    exact, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    rounded, _, _ = checkpoint.load_model('tiny-stories', device='cpu')
    fast.pack(rounded, 'int8')
    pairs = some_pairs(tokenizer, 100)
    exact, rounded = (
        torch.cat([score.model_logprobs for score in score_pairs(model, pairs)]) for model in (exact, rounded)
    )
    difference = (rounded - exact).abs()
    assert difference.mean() < (0.08 if matrices.Int8Matrix.seven_bits else 0.04)  # one bit less: steps twice as wide
    assert difference.max() < 0.5
    assert (rounded - exact).mean().abs() < 0.01  # and is no better or worse on average


@needs_int8
def test_int8_steps_and_scores_are_equally_near_to_float32():
    exact, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    model, _, _ = checkpoint.load_model('tiny-stories', device='cpu')
    fast.pack(model, 'int8')
    ids = tokenizer.encode(TEXT)[:120]
    prompt, response = ids[:20], ids[20:]
    exact = score(exact, [prompt], [response])[0]
    steps = [step.sampler_logprob.item() for step in model.steps(torch.tensor([prompt]), fixed_response=response)]
    scored = score(model, [prompt], [response])[0]
    for rounded in (torch.tensor(steps, dtype=torch.float64), scored):  # rounded in other places
        assert (rounded - exact).abs().mean() < (0.08 if matrices.Int8Matrix.seven_bits else 0.04)


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(UserError, match='int8, or None'):
        fast.pack(random_gpt(), 'int4')
    with pytest.raises(UserError, match='float32'):
        fast.pack(random_gpt().to(torch.bfloat16), 'int8')


@needs_int8
def test_int8_is_named_beside_the_numbers_of_a_sample(tmp_path):
    done = run_script('sample.py', '--quantize=int8', '--max_new_tokens=3', cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count('computed in int8') == 2
    assert done.stderr == ''


@needs_int8
@pytest.mark.slow
def test_int8_is_named_beside_every_number_of_an_evaluation(tmp_path):
    done = run_script('eval.py', '--quantize=int8', '--show=1', '--save=q', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'computed in int8' in done.stdout
    assert 'computed in int8' in (tmp_path / 'results/q/report.md').read_text()
    done = run_script('eval.py', '--show=1', '--save=q', '--resume_eval=True', cwd=tmp_path)
    assert done.returncode == 2  # the same evaluation in float32 is another one


@pytest.mark.parametrize('others', [{'dtype': 'bfloat16'}, {'compile': True}])
def test_int8_cannot_be_combined(others):
    with pytest.raises(UserError, match=f'--quantize=int8 cannot be combined with --{next(iter(others))}'):
        check_sampling_settings(SamplingSettings(quantize='int8', **others))


@pytest.mark.slow
@pytest.mark.parametrize(
    'setting', ['--quantize=int4', '--quantize=int8 --dtype=bfloat16', '--quantize=int8 --compile']
)
def test_a_wrong_quantize_is_told_in_a_line(tmp_path, setting):
    for script in ('sample.py', 'eval.py'):
        done = run_script(script, *setting.split(), cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith('error: --quantize=')
        assert done.stderr.count('\n') == 1
