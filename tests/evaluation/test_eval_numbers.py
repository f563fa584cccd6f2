"""Every number of eval.py, against model.generate, model.steps and brute force."""

import json
import math
import re

import pytest
import torch
from helpers.evaluation import evaluate, rows_in, write_pairs
from helpers.scripts import PROJECT

from common.errors import UserError
from evaluation.results import arrow
from evaluation.sources import join_response
from lm import checkpoint
from lm.scoring import score
from lm.text_probability import prefix_probability


@pytest.mark.parametrize('boundary', ['joint', pytest.param('separate', marks=pytest.mark.slow)])
def test_every_row_is_what_generate_and_steps_say(here, boundary):
    """Pairs beyond the context included, at a temperature, with both models' values."""
    settings = {'init_from': 'one', 'eval_data': 'pairs.jsonl', 'temperature': 0.8, 'boundary': boundary}
    rows, summary = evaluate(**settings)
    model, tokenizer, _ = checkpoint.load_model('one', device='cpu')
    pairs = rows_in(here)
    assert [row['index'] for row in rows] == list(range(90))
    assert any(len(tokenizer.encode(pair['prompt'])) > 48 for pair in pairs)
    for pair, row in zip(pairs, rows, strict=True):
        assert (row['prompt'], row['response']) == (pair['prompt'], pair['response'])
        prompt, response = tokenizer.encode_pair(
            pair['prompt'], join_response(pair['prompt'], pair['response']), boundary
        )
        idx = torch.tensor([prompt])
        _, prob = model.generate(idx, fixed_response=response)
        _, sampler_prob = model.generate(idx, fixed_response=response, temperature=0.8)
        assert row['prob'] == pytest.approx(prob, rel=1e-4)
        assert row['sampler_prob'] == pytest.approx(sampler_prob, rel=1e-4)
        assert row['sampler_logprob'] == pytest.approx(math.log(sampler_prob), abs=1e-4)
        steps = list(model.steps(idx, fixed_response=response))
        assert row['token_logprobs'] == pytest.approx([step.model_logprob.item() for step in steps], abs=1e-5)
        greedy, _ = model.generate(idx, len(response), temperature=0)
        assert row['greedy'] == (greedy[0, len(prompt) :].tolist() == response)
        assert row['pieces'] == tokenizer.pieces(response)
        n = len(response)
        assert (row['tokens'], row['bytes']) == (n, len(tokenizer.decode_bytes(response)))
        assert row['logprob'] == pytest.approx(math.log(prob), abs=1e-4)
        assert row['prob_per_token'] == pytest.approx(prob ** (1 / n), rel=1e-4)
        assert row['perplexity'] == pytest.approx(prob ** (-1 / n), rel=1e-4)
    measures = summary['measures']['model']
    logprob, tokens = math.fsum(row['logprob'] for row in rows), sum(row['tokens'] for row in rows)
    assert measures['sum_of_probs']['value'] == pytest.approx(math.fsum(row['prob'] for row in rows))
    assert measures['sampler_sum_of_probs']['value'] == pytest.approx(math.fsum(row['sampler_prob'] for row in rows))
    assert measures['perplexity']['value'] == pytest.approx(math.exp(-logprob / tokens))
    for interval in measures.values():
        assert interval['low'] <= interval['value'] <= interval['high']


def test_multiple_choice_is_won_by_the_likeliest(here):
    rows, summary = evaluate(init_from='one', eval_data='pairs.jsonl')
    model, tokenizer, _ = checkpoint.load_model('one', device='cpu')
    right = right_per_byte = right_mutual_info = 0
    questions = [(row, pair) for row, pair in zip(rows, rows_in(here), strict=True) if 'distractors' in pair]
    assert all(('choices' in row) == (row['index'] % 5 == 0) for row in rows)
    for row, pair in questions:
        texts = [join_response(pair['prompt'], text) for text in (pair['response'], *pair['distractors'])]
        encoded = [tokenizer.encode_pair(pair['prompt'], text) for text in texts]
        sums = [score.sum().item() for score in score(model, *zip(*encoded))]
        assert [choice['logprob'] for choice in row['choices']] == pytest.approx(sums, abs=1e-4)
        assert row['right'] == (max(sums) == sums[0] and sums.count(sums[0]) == 1)
        right += row['right']
        per_byte = [total / len(text.encode()) for total, text in zip(sums, texts)]
        right_per_byte += max(per_byte) == per_byte[0]
        alone = score(model, [[tokenizer.eot]] * len(texts), [tokenizer.encode(text) for text in texts])
        gains = [total - score.sum().item() for total, score in zip(sums, alone, strict=True)]
        if (margin := abs(gains[0] - max(gains[1:]))) > 1e-4:  # else rounding decides
            assert row['right_mutual_info'] == (max(gains) == gains[0]), margin
        right_mutual_info += row['right_mutual_info']
    choice = summary['multiple_choice']
    assert choice['questions'] == len(questions) == 18
    assert choice['model']['acc']['value'] == pytest.approx(right / 18)
    assert choice['model']['acc_norm']['value'] == pytest.approx(right_per_byte / 18)
    assert choice['model']['acc_mutual_info']['value'] == pytest.approx(right_mutual_info / 18)


def test_the_good_text_of_a_minimal_pair_is_a_question(here, capsys):
    items = [
        {'sentence_good': 'The fox eats.', 'sentence_bad': 'The fox eat.'},
        {'good': 'Two hens sit.', 'bad': 'Two hens sits.'},
    ]
    (here / 'minimal.jsonl').write_text('\n'.join(map(json.dumps, items)))
    rows, summary = evaluate(init_from='one', eval_data='minimal.jsonl', whole_text='start')
    model, tokenizer, _ = checkpoint.load_model('one', device='cpu')
    expected = []
    for item in items:
        good, bad = score(model, [[tokenizer.eot]] * 2, [tokenizer.encode(text) for text in item.values()])
        expected.append(good.sum().item() > bad.sum().item())
    assert [row['right'] for row in rows] == expected
    for row, item in zip(rows, items, strict=True):
        good, bad = (
            prefix_probability(model, tokenizer, [tokenizer.eot], text, tokenizer.encode(text))
            for text in item.values()
        )
        assert row['right_text'] == (good.log_lower > bad.log_upper)
    measures = summary['multiple_choice']['model']
    assert measures['acc']['value'] == sum(expected) / 2
    assert measures['acc_text']['value'] == sum(row['right_text'] for row in rows) / 2
    assert 'acc_mutual_info' not in measures  # there is no prompt to gain from
    assert 'a good and a bad text' in capsys.readouterr().err


def test_ties_count_as_wrong(here):
    (here / 'tie.json').write_text('[{"prompt": "The", "response": " fox", "distractors": [" fox"]}]')
    (row,), _ = evaluate(init_from='one', eval_data='tie.json')
    assert row['right'] is False


def test_edge_cases_have_a_value(here):
    edges = [['The king', ''], ['', 'the fox'], ['', ''], ['a  ', 'b'], ['x', 'fox ' * 60], ['', '<|endoftext|>']]
    (here / 'edges.json').write_text(json.dumps(edges))
    rows, summary = evaluate(init_from='one', eval_data='edges.json')
    assert [row['tokens'] > 0 for row in rows] == [False, True, False, True, True, True]
    assert (rows[0]['prob'], rows[0]['logprob'], rows[0]['perplexity'], rows[0]['greedy']) == (1, 0, None, True)
    assert rows[3]['pieces'][0].startswith('·')  # the white space moved to the response
    assert rows[4]['tokens'] > 48
    assert (rows[5]['tokens'], rows[5]['bytes']) == (1, 0)  # <|endoftext|> is not text
    assert summary['rows'] == 6


def test_greedy_at_temperature_zero_is_one_or_nothing(here, without_pictures):
    rows, _ = evaluate(init_from='one', eval_data='pairs.jsonl', temperature=0, save='./zero')
    assert {row['sampler_prob'] for row in rows} == {0.0}
    assert {row['sampler_logprob'] for row in rows_in(here / 'zero')} == {None}  # JSON has no infinity


@pytest.mark.network
def test_published_probabilities_of_gpt2():
    """Measured by others with the real weights: some encoded apart, some with a response that brings its space."""
    published = [
        ('Once upon a time ', 'there was a king', 0.8, 'separate', 4.31e-11),
        ('Long, long ago ', 'two boys lived in a village', 0.8, 'separate', 3.78e-16),
        ('she was so pretty that they thought ', 'she must be some fairy princess', 0.8, 'separate', 8.84e-16),
        ('I live in', ' New Zealand', 1.0, 'joint', 9.9892e-04),
        ('Cricket is', ' a game', 1.0, 'joint', 1.7348e-02),
    ]
    try:
        checkpoint.load_model('gpt2', device='cpu')
    except UserError as error:
        pytest.skip(f'needs the weights of gpt2: {error}')
    for prompt, response, temperature, boundary, expected in published:
        settings = {'start': prompt, 'fixed_response': response, 'temperature': temperature, 'boundary': boundary}
        (row,), _ = evaluate(init_from='gpt2', **settings)
        assert row.get('sampler_prob', row['prob']) == pytest.approx(expected, rel=5e-3)


# Two models ---------------------------------------------------------------------------------------------------------


def test_two_models_side_by_side(here, capsys):
    rows, summary = evaluate(init_from='two', compare_to='one', eval_data='pairs.jsonl')
    alone, _ = evaluate(init_from='one', eval_data='pairs.jsonl')
    for row, before in zip(rows, alone, strict=True):
        assert row['before']['logprob'] == before['logprob']
        assert row['before']['token_ranks'] == before['token_ranks']
        assert row['log_ratio'] == row['logprob'] - before['logprob']
    ratios = [row['log_ratio'] for row in rows]
    comparison = summary['comparison']
    arrows = [arrow(ratio) for ratio in ratios]
    assert [comparison[key] for key in ('rose', 'fell', 'same')] == [arrows.count(sign) for sign in '↑↓=']
    assert comparison['mean_log_ratio']['value'] == pytest.approx(sum(ratios) / 90)
    before, after = (summary['measures'][role]['bits_per_byte']['value'] for role in ('compare_to', 'model'))
    assert summary['measures']['difference']['bits_per_byte']['value'] == pytest.approx(after - before)
    out = capsys.readouterr().out
    printed = re.findall(r'(-?[\d.]+) │ +(-?[\d.]+) │ +\S+ │ +\S+ │ ([+-][\d.]+) ([↑↓=]) │$', out, flags=re.MULTILINE)
    assert len(printed) == 90
    for (before, after, ratio, sign), row in zip(printed, rows, strict=True):
        assert (float(before), float(after)) == pytest.approx((row['before']['logprob'], row['logprob']), abs=1e-4)
        assert float(ratio) == pytest.approx(row['log_ratio'], abs=1e-4)
        assert sign == arrow(float(ratio))


def test_a_model_against_itself_differs_in_nothing(here):
    _, summary = evaluate(init_from='one', compare_to='one', eval_data='pairs.jsonl')
    comparison = summary['comparison']
    assert (comparison['same'], comparison['p_value']) == (90, 1)
    assert comparison['mean_log_ratio'] == {'value': 0, 'low': 0, 'high': 0}


@pytest.mark.slow
def test_models_of_different_tokens_are_compared_by_byte(here, capsys):
    rows, summary = evaluate(init_from='other', compare_to='one', eval_data='pairs.jsonl', save='./mixed')
    for row in rows:
        per_byte = row['logprob'] / row['bytes'] - row['before']['logprob'] / row['before']['bytes']
        assert row['log_ratio'] == pytest.approx(per_byte)
        assert row['bytes'] == row['before']['bytes']
    assert summary['comparison']['per'] == 'byte'
    assert 'logprob_per_token' not in summary['measures']['difference']
    page = (here / 'mixed' / 'report.md').read_text()
    assert 'Tokens are not coloured' in page
    assert not (here / 'mixed' / 'tokens.png').exists()
    assert (here / 'mixed' / 'before_after.png').exists()


# Running text -------------------------------------------------------------------------------------------------------


def test_running_text_token_by_token(here):
    text = (PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt').read_text()[:1200]
    (here / 'text.txt').write_text(text)
    _, summary = evaluate(init_from='one', compare_to='other', text='text.txt', stride=1)
    for role, name in (('model', 'one'), ('compare_to', 'other')):
        model, tokenizer, _ = checkpoint.load_model(name, device='cpu')
        ids = [tokenizer.eot, *tokenizer.encode(text)]
        logprob = 0
        for place in range(1, len(ids)):
            logits, _ = model(torch.tensor([ids[max(0, place - 48) : place]]))
            logprob += torch.log_softmax(logits[0, -1].double(), -1)[ids[place]].item()
        bits = -logprob / len(text.encode()) / math.log(2)
        found = summary['measures'][role]
        # A segment may hold several of the other's tokens, the later of which see a little less context.
        assert found['bits_per_byte']['value'] == pytest.approx(bits, rel=1e-6 if role == 'model' else 2e-2)
        assert found['perplexity']['value'] == pytest.approx(math.exp(-logprob / (len(ids) - 1)), rel=0.1)
    assert 'greedy_rate' not in summary['measures']['model']


def test_models_that_differ_in_their_context_are_shown_the_same_text(here, without_pictures, capsys):
    model, tokenizer, _ = checkpoint.load_model('one', device='cpu')
    model.crop_block_size(20)
    checkpoint.save_pretrained(model, here / 'short', tokenizer)
    (here / 'text.txt').write_text('The old king laughed, and the fox ran into the wood. ' * 6)
    rows, _ = evaluate(init_from='short', compare_to='one', text='text.txt', save='kept')
    for row in rows:
        assert row['logprob'] == pytest.approx(row['before']['logprob'], rel=1e-5)
    words, _ = evaluate(init_from='one', compare_to='short', text='text.txt', words=True)
    for word in words:
        assert word['surprisal_sum_bits'] == pytest.approx(word['surprisal_sum_bits_before'], rel=1e-5)
    printed = capsys.readouterr().err
    assert 'contexts of 20 and 48 tokens; to compare them, both are shown at most 20' in printed
    assert 'contexts of 48 and 20 tokens' in printed
    page = (here / 'results' / 'kept' / 'report.md').read_text()
    assert 'fits into 20 tokens, the shorter of the two contexts' in page


@pytest.mark.slow
def test_the_text_of_each_response_has_bounds_beside_its_tokens(here):
    settings = {'init_from': 'one', 'compare_to': 'other', 'eval_data': 'pairs.jsonl', 'show': 4, 'save': 'kept'}
    write_pairs('pairs.jsonl', 4)
    rows, summary = evaluate(**settings, whole_text='start', budget='200')
    for name, side_of in (('one', lambda row: row), ('other', lambda row: row['before'])):
        model, tokenizer, _ = checkpoint.load_model(name, device='cpu')
        for row in rows:
            text = side_of(row)['text']
            whole = row['prompt'] + join_response(row['prompt'], row['response'])
            usual = score(model, [[tokenizer.eot]], [tokenizer.encode(whole)])[0].sum().item()
            assert text['tokens_logprob'] == pytest.approx(usual, abs=1e-3)
            assert usual - 1e-3 <= text['log_lower'] <= text['log_upper'] <= 0
    lower, upper = (summary['measures']['model'][f'text_logprob_{name}']['value'] for name in ('lower', 'upper'))
    assert lower == pytest.approx(sum(row['text']['log_lower'] for row in rows) / 4)
    assert lower <= upper
    report = (here / 'results/kept/report.md').read_text()
    assert 'the text of prompt and response, after the start token' in report
    assert (here / 'results/kept/tokens_and_text.png').stat().st_size > 5000
    with pytest.raises(UserError, match='--text and --whole_text'):
        evaluate(init_from='one', text='pairs.jsonl', whole_text='True')
