"""lm-evaluation-harness's client of such servers, against its own model of the same folder and our adapter."""

import itertools
import random

import pytest
from helpers.live_server import run_live_server
from helpers.scripts import PROJECT
from helpers.tokenizers import CODE, PROSE
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI
from transformers import AutoTokenizer

import serve
from evaluation.lm_eval_adapter import NanoGPTProbs

FOLDER = PROJECT / 'models' / 'tiny-stories'
LONG = (PROSE + CODE) * 2
PROMPTS = [
    *('', 'The fog', 'The fog ', '  The  fog  ', 'So:\n\n    ', '"Fog', 'don', 'a' * 40, '3.14159 2024-02-29'),
    *(
        '日本の海には',
        '霧が ',
        '🙂👩\u200d👩\u200d👧',
        'cafe\u0301 n',
        '\x00\x1b[0m',
        'שלום ',
        '<|endoftext|>',
        LONG[:400],
    ),
    *('</script>', 'x\ufeff\u202e'),
]
RESPONSES = [
    *(
        ' had a boat',
        'had',
        '\n\nIt came. ',
        '   x  y',
        ' 12345 67',
        ' テキスト。',
        '船は二つ',
        '🏳️\u200d🌈 flag',
        '\t',
        ' …',
        "'t",
    ),
    *('\u0301e', '    if x >= n:\n\t\treturn 0x1F', '<|endoftext|>', ' ' + LONG[:300]),
]


def instances(kind, arguments):
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@pytest.mark.slow
def test_three_hundred_awkward_pairs_and_rolling_texts_have_the_harness_numbers():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    pairs = list(itertools.product(PROMPTS, RESPONSES))
    pairs = random.Random(0).sample(pairs, len(pairs))
    stories = (PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt').read_text()
    pairs += [(stories[start : start + 90], stories[start + 90 : start + 120]) for start in range(0, 40_000, 200)]
    # Only where the harness scores the response that is meant.
    pairs = [pair for pair in pairs if is_defined(tokenizer, *pair)][:300]
    assert len(pairs) == 300
    texts = [(stories[:size],) for size in (1, 100, 1500)] + [(LONG,), ('🙂' * 90,)]
    settings = serve.check_settings(serve.Settings(init_from='tiny-stories', device='cpu'))
    theirs = HFLM(str(FOLDER), tokenizer=tokenizer, dtype='float32', device='cpu', max_length=256, logits_cache=False)
    ours = NanoGPTProbs('tiny-stories', device='cpu')
    with run_live_server([serve.load_served_model(settings)]) as server:
        client = LocalCompletionsAPI(
            model='tiny-stories',
            base_url=f'{server.url}/v1/completions',
            tokenizer_backend='remote',
            max_length=258,  # of which it leaves one to a token that it does not use
            num_concurrent=3,
            batch_size=4,
            max_retries=1,
        )
        found = client.loglikelihood(instances('loglikelihood', pairs), disable_tqdm=True)
        rolled = client.loglikelihood_rolling(instances('loglikelihood_rolling', texts), disable_tqdm=True)
        wishes = [('The king said', {'until': ['.'], 'max_gen_toks': 30})]
        written = client.generate_until(instances('generate_until', wishes), disable_tqdm=True)
    for other in (theirs, ours):
        close = {'abs': 1e-4, 'rel': 1e-6}  # the second for two pairs of 540 nats, in float32
        expected = other.loglikelihood(instances('loglikelihood', pairs), disable_tqdm=True)
        logprobs = pytest.approx([logprob for logprob, _ in expected], **close)
        assert [logprob for logprob, _ in found] == logprobs
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        expected = other.loglikelihood_rolling(instances('loglikelihood_rolling', texts), disable_tqdm=True)
        assert rolled == pytest.approx(expected, **close)
        expected = other.generate_until(instances('generate_until', wishes), disable_tqdm=True)
        assert written == expected


def is_defined(tokenizer, prompt, response):
    """Return whether no token crosses the boundary between prompt and response."""
    if not prompt:
        return response != '<|endoftext|>'
    context, whole = tokenizer.encode(prompt.rstrip()), tokenizer.encode(prompt + response)
    return bool(context) and whole[: len(context)] == context and len(whole) > len(context)
