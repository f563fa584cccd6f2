"""eval.py on awkward pairs, against lm-evaluation-harness's own HFLM, for three kinds of tokenizer.

Pairs whose prompt ends inside a token are left out: there the harness loses text, and eval.py does not.
"""

import itertools
import json
import random

import pytest
from helpers.networks import random_network
from helpers.piece_tokenizers import bpe_with_bytes, save_tokenizer, unigram
from helpers.tokenizers import CODE, PROSE
from helpers.world import call
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

BLOCK_SIZE = 1024
LONG = (PROSE + CODE) * 2
OTHERS = 'Das Boot lag im Nebel. Où est le bateau ? 日本の海には霧がある。 船は二つ。 3.14 or 1,000,000 🙂🙂.'
PROMPTS = [
    *('', ' ', '\n\n', '\t', 'The fog', 'The fog ', '  The  fog  ', 'The fog\n', 'So:\n\n    ', '"Fog', 'don'),
    *(
        'a' * 40,
        'There were 1,000,',
        '3.14159 2024-02-29',
        '日本の海には',
        '霧が ',
        '🙂👩\u200d👩\u200d👧',
        'cafe\u0301 n',
    ),
    *('ﬁ ß \u00a0', 'def f(x, *, n=10):\n', 'print(f(3)', '\x00\x1b[0m', 'שלום ', '<s', LONG[:400], LONG[:900] + '\n'),
]
RESPONSES = [
    *(' had a boat', 'had', '\n\nIt came. ', '   x  y', ' 12345 67', '6', ' テキスト。', '船は二つ', '🏳️\u200d🌈 flag'),
    *('\u0301e', ' n\u0303o', '    if x >= n:\n\t\treturn 0x1F', '(3)!=4)', '\t', ' …', "'t", LONG[:300]),
]

pytestmark = pytest.mark.slow


def save_byte_level(folder):
    """Write a byte-level BPE in the manner of Qwen and Llama 3: words are cut by a pattern of their own, no BOS."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), 'isolated')
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ['<|endoftext|>', '<|im_end|>']
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PROSE, CODE, OTHERS], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / 'tokenizer.json'))
    roles = {'bos_token': '<|endoftext|>', 'eos_token': '<|endoftext|>'}
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', **roles}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))


SAVE = {
    'byte-level': save_byte_level,
    'byte fallback': lambda folder: save_tokenizer(bpe_with_bytes(prepend=True), folder, 'LlamaTokenizer'),
    'unigram': lambda folder: save_tokenizer(unigram(), folder, 'PreTrainedTokenizerFast'),
}


def is_defined(theirs, prompt, response, front):
    """Return whether the harness scores the response that is meant: no token crosses the boundary."""
    if not prompt:
        return bool(theirs.encode(response, add_special_tokens=False))
    context, whole = theirs.encode(prompt.rstrip()), theirs.encode(prompt + response)
    return whole[: len(context)] == context and len(whole) > len(context) and (bool(context) or front)


def long_pair(theirs):
    """Return a pair far longer than the context, whose response has one token: the harness shows later ones less."""
    prompt = (LONG * 3).rstrip()
    n = len(theirs.encode(prompt))
    pairs = [(prompt, char) for char in PROSE if len(theirs.encode(prompt + char)) == n + 1]
    return next(pair for pair in pairs if is_defined(theirs, *pair, True))


def loglikelihoods(folder, pairs, **settings):
    """Return HFLM's logprob of each response."""
    # Without its cache, which takes pairs of the same ids for the same, wherever their responses begin.
    settings |= {'dtype': 'float32', 'device': 'cpu', 'max_length': BLOCK_SIZE, 'logits_cache': False}
    harness = HFLM(pretrained=str(folder), **settings)
    requests = [Instance('loglikelihood', {}, pair, index) for index, pair in enumerate(pairs)]
    return harness.loglikelihood(requests, disable_tqdm=True)


def rows_of_eval(folder, pairs, *settings):
    """Return the rows of eval.py."""
    with open('pairs.json', 'w') as file:
        json.dump(pairs, file)
    arguments = ('--eval_data=pairs.json', '--separator=', '--show=0', '--resamples=10')
    call('eval.py', f'--init_from={folder.name}', *arguments, f'--save={len(pairs)}', *settings)
    with open(f'results/{len(pairs)}/pairs.jsonl') as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize('kind', SAVE)
def test_two_hundred_awkward_pairs_have_the_harness_logprobs(tmp_path, monkeypatch, without_pictures, kind):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'model'
    SAVE[kind](folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    roles = {'bos_token_id': theirs.bos_token_id, 'eos_token_id': theirs.eos_token_id}
    sizes = {'vocab_size': len(theirs), 'max_position_embeddings': BLOCK_SIZE, 'num_hidden_layers': 2}
    random_network('llama', **sizes, **roles).save_pretrained(folder)
    has_front = len(theirs.encode('')) > 0
    pairs = [pair for pair in itertools.product(PROMPTS, RESPONSES) if is_defined(theirs, *pair, has_front)]
    pairs = [*random.Random(0).sample(pairs, 200), long_pair(theirs)]
    expected = loglikelihoods(folder, pairs)
    rows = rows_of_eval(folder, pairs)
    assert [row['logprob'] for row in rows] == pytest.approx([logprob for logprob, _ in expected], rel=1e-4)
    assert [row['greedy'] for row in rows] == [greedy for _, greedy in expected]
    few = [pair for pair in pairs if pair[0].strip()][::10]
    expected = loglikelihoods(folder, few, add_bos_token=not has_front)
    rows = rows_of_eval(folder, few, f'--bos={not has_front}')
    assert [row['logprob'] for row in rows] == pytest.approx([logprob for logprob, _ in expected], rel=1e-4)
