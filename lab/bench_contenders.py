"""What bench.py compares: this project and the programs people would use instead, each doing the same jobs.

Each contender is a function here. It takes the Task, gets ready (loads, converts, warms up) and returns a function that
does the job once; only that is timed. Each runs in its own process, so that its threads do not disturb the others and
its memory can be measured. A program that is not installed raises ImportError and is left out.
"""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from common.errors import UserError
from common.files import PROJECT
from lab import bench_peers
from lab.bench_commands import import_torch, prepare_ours, prepare_tiktoken, start_ours, start_transformers
from lm import checkpoint, fast
from lm.hardware import autocast, peak_memory_mib, training_dtypes
from lm.scoring import score_pairs
from lm.tuning import MANY_ROWS
from training.lean_loss import LeanLoss
from training.precision import measure_dtypes

TRAIN_STEPS = 2  # in one timed run
TRAIN_BATCH = (4, 256)  # texts, tokens in each


@dataclass
class Task:
    """The work to do, the same for every contender."""

    folder: str  # a model folder
    scratch: str  # a folder for temporary files
    rows: int = 1  # texts generated at once
    new_tokens: int = 100  # tokens in each
    pairs: tuple = ()  # (prompt ids, response ids, prompt text, response text) to score
    text: str = ''  # a text file to turn into tokens
    prompt: str = 'Once upon a time'
    prompt_ids: tuple = ()
    layers: int = 0  # numbers in the matrices of the model's layers; all are read for each token
    head: int = 0  # numbers in its output layer


def load_ours(task, dtype=None, quantize=None, rows=1):
    """Return this project's model, packed for this number of rows, as in sample.py and eval.py."""
    model, _, _ = checkpoint.load_model(task.folder, device='cpu', dtype=dtype, to_pack=True)
    return fast.pack(model, quantize, rows)


def load_transformers(task, dtype):
    """Return the model in transformers, ready for inference."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(task.folder, dtype=dtype).eval()


def load_ctranslate2(task, compute_type):
    """Return CTranslate2's (generator, tokens by id), after converting the model."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    folder = Path(task.scratch) / f'ctranslate2-{compute_type}'
    if not folder.exists():
        TransformersConverter(task.folder).convert(str(folder), quantization=compute_type)
    threads = torch.get_num_threads()
    generator = ctranslate2.Generator(str(folder), compute_type=compute_type, inter_threads=1, intra_threads=threads)
    return generator, json.loads((folder / 'vocabulary.json').read_text(encoding='utf-8'))


# Generating ---------------------------------------------------------------------------------------------------------


def generate_ours(task, dtype=None, quantize=None):
    """Generate task.rows texts with this project, in one batch."""
    model, idx = load_ours(task, dtype, quantize, task.rows), torch.tensor([task.prompt_ids] * task.rows)
    return lambda: model.generate(idx, task.new_tokens, temperature=0.8, top_k=200, seed=1)


def generate_without_cache(task):
    """Generate one text at a time, reading all of it again for each token, as nanoGPT does.

    Only one of task.rows is generated. The others would take as long, so `run_contender` multiplies its time.
    """
    model, idx = checkpoint.load_model(task.folder, device='cpu')[0], torch.tensor([task.prompt_ids])

    @torch.no_grad()
    def run():
        text = idx
        for _ in range(task.new_tokens):
            logits = model(text)[0][:, -1] / 0.8
            least = logits.topk(200).values[:, -1:]
            probs = logits.masked_fill(logits < least, -torch.inf).softmax(-1)
            text = torch.cat([text, torch.multinomial(probs, 1)], dim=1)

    return run


def generate_transformers(task, dtype=torch.float32):
    """Generate the texts with transformers."""
    model, idx = load_transformers(task, dtype), torch.tensor([task.prompt_ids])
    settings = {'do_sample': True, 'temperature': 0.8, 'top_k': 200, 'num_return_sequences': task.rows}
    length = {'min_new_tokens': task.new_tokens, 'max_new_tokens': task.new_tokens}
    mask = torch.ones_like(idx)
    return lambda: model.generate(idx, attention_mask=mask, pad_token_id=0, **settings, **length)


def generate_ctranslate2(task, compute_type):
    """Generate the texts with CTranslate2."""
    generator, tokens = load_ctranslate2(task, compute_type)
    prompt = [[tokens[id] for id in task.prompt_ids]] * task.rows
    settings = {'sampling_temperature': 0.8, 'sampling_topk': 200, 'include_prompt_in_result': False, 'end_token': []}
    return lambda: generator.generate_batch(prompt, min_length=task.new_tokens, max_length=task.new_tokens, **settings)


# Scoring ------------------------------------------------------------------------------------------------------------


def score_ours(task, dtype=None, quantize=None):
    """Score the pairs with this project."""
    model, pairs = load_ours(task, dtype, quantize, MANY_ROWS), [pair[:2] for pair in task.pairs]
    return lambda: list(score_pairs(model, pairs))


def score_transformers(task, dtype=torch.float32):
    """Score the pairs with transformers in the plain way: sorted batches of 16, the responses' logprobs summed."""
    model = load_transformers(task, dtype)
    texts = [([*prompt, *response], len(prompt)) for prompt, response, *_ in task.pairs]
    texts.sort(key=lambda text: len(text[0]))

    @torch.inference_mode()
    def run():
        for start in range(0, len(texts), 16):
            part = texts[start : start + 16]
            longest = max(len(ids) for ids, _ in part)
            idx = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in part])
            mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in part])
            logprobs = model(idx, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
            logprobs = logprobs.gather(-1, idx[:, 1:, None])[..., 0]
            for row, (ids, prompt) in zip(logprobs, part, strict=True):
                row[prompt - 1 : len(ids) - 1].sum().item()

    return run


def score_ctranslate2(task, compute_type):
    """Score prompts and responses with CTranslate2, which returns the logprob of every token."""
    generator, tokens = load_ctranslate2(task, compute_type)
    texts = [[tokens[id] for id in (*prompt, *response)] for prompt, response, *_ in task.pairs]
    return lambda: generator.score_batch(texts, max_batch_size=1024, batch_type='tokens')


def score_lm_eval(task):
    """Score the tokenized pairs with lm-evaluation-harness."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=task.folder, device='cpu', dtype='float32', batch_size=16)
    requests = [((prompt, response), prompt_ids, ids) for prompt_ids, ids, prompt, response in task.pairs]
    return lambda: model._loglikelihood_tokens(requests, disable_tqdm=True)


def score_minicons(task):
    """Score the texts of the pairs with minicons, in sorted batches of 16."""
    from minicons.scorer import IncrementalLMScorer

    model = IncrementalLMScorer(task.folder, 'cpu')
    texts = sorted(task.pairs, key=lambda pair: len(pair[0]) + len(pair[1]))

    def run():
        for start in range(0, len(texts), 16):
            prompts, responses = zip(*(pair[2:] for pair in texts[start : start + 16]), strict=True)
            model.conditional_score(list(prompts), list(responses), separator='')

    return run


# Training -----------------------------------------------------------------------------------------------------------


def train_ours(task):
    """Train as train.py does on this CPU: its precision, a loss that never holds all logits, fused AdamW."""
    model = checkpoint.load_model(task.folder, device='cpu')[0].train()
    device = torch.device('cpu')
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), 'cpu')
    lean = LeanLoss(model)
    x, y = torch.randint(model.n_ids, (2, *TRAIN_BATCH))
    seconds = measure_dtypes(lean, device, training_dtypes(device), (x[:1], y[:1]))
    dtype = min(seconds, key=seconds.get)

    def step():
        with autocast(device, dtype):
            loss = lean(x, y)
        loss.backward()
        finish_step(model, optimizer)

    return repeat_step(step)


def train_plain(task):
    """Train in the plain way: eager float32, all logits, AdamW without fusing."""
    model = checkpoint.load_model(task.folder, device='cpu')[0].train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=False, foreach=False)
    x, y = torch.randint(model.n_ids, (2, *TRAIN_BATCH))

    def step():
        model(x, y)[1].backward()
        finish_step(model, optimizer)

    return repeat_step(step)


def train_transformers(task, dtype=torch.float32):
    """Train transformers' model in the plain way, with bfloat16 under autocast."""
    model = load_transformers(task, torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randint(50257, TRAIN_BATCH)

    def step():
        with autocast(torch.device('cpu'), dtype):
            loss = model(x, labels=x).loss
        loss.backward()
        finish_step(model, optimizer)

    return repeat_step(step)


def repeat_step(step):
    """Return a function that takes TRAIN_STEPS steps. The first step, which allocates memory, is taken here."""
    step()

    def run():
        for _ in range(TRAIN_STEPS):
            step()

    return run


def finish_step(model, optimizer):
    """Clip the gradients, update the weights and clear the gradients: the same for all."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# Programs in an environment of their own ----------------------------------------------------------------------------

PEERS = PROJECT / '.peers'  # made as bench_peers.py says


class Peer:
    """A program that bench_peers.py drives; called, it does its job once."""

    def __init__(self, task, job, name):
        """Start it, and wait until it is ready. Raises UserError without .peers, RuntimeError if it fails."""
        python = next((path for path in (PEERS / 'bin/python', PEERS / 'Scripts/python.exe') if path.exists()), None)
        if python is None:
            raise UserError('its environment .peers is not there; the head of lab/bench_peers.py says how to make it')
        self._log = Path(task.scratch) / f'{job}-{name}.log'.replace(' ', '-')
        with open(self._log, 'w', encoding='utf-8') as log:
            self._process = subprocess.Popen(
                [python, bench_peers.__file__, job, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        pairs = [(list(prompt), list(response)) for prompt, response, *_ in task.pairs]
        self._ask(json.dumps({**asdict(task), 'pairs': pairs}))

    def _ask(self, line):
        """Write a line to its stdin and return the line that it answers."""
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        if not answer:
            lines = self._log.read_text('utf-8', errors='replace').strip().splitlines()
            raise RuntimeError(lines[-1] if lines else 'it ended without a word')
        return answer

    def __call__(self):
        self._ask('go')

    def end(self):
        """End it; return its peak memory in MiB."""
        return float(self._ask(''))


# Who does which job: this project's contenders first -----------------------------------------------------------------

WITHOUT_CACHE = 'no cache, one by one'
GENERATORS = {
    'float32': (generate_ours, {}),
    'bfloat16': (generate_ours, {'dtype': 'bfloat16'}),
    'int8': (generate_ours, {'quantize': 'int8'}),
    'transformers float32': (generate_transformers, {}),
    'CTranslate2 float32': (generate_ctranslate2, {'compute_type': 'float32'}),
    'CTranslate2 int8': (generate_ctranslate2, {'compute_type': 'int8'}),
    WITHOUT_CACHE: (generate_without_cache, {}),
}
SCORERS = {
    'float32': (score_ours, {}),
    'bfloat16': (score_ours, {'dtype': 'bfloat16'}),
    'int8': (score_ours, {'quantize': 'int8'}),
    'transformers float32': (score_transformers, {}),
    'transformers bfloat16': (score_transformers, {'dtype': torch.bfloat16}),
    'lm-eval float32': (score_lm_eval, {}),
    'minicons float32': (score_minicons, {}),
    'CTranslate2 float32': (score_ctranslate2, {'compute_type': 'float32'}),
    'CTranslate2 int8': (score_ctranslate2, {'compute_type': 'int8'}),
}
SCORERS_OF_PROMPTS = ('float32', 'int8', 'transformers bfloat16', 'CTranslate2 int8')


def peers(job):
    """Return the contenders that bench_peers.py drives in this job."""
    return {name: (Peer, {'job': job, 'name': name}) for name in bench_peers.PEERS[job]}


CONTENDERS = {
    'decode': GENERATORS | peers('decode'),
    'busy': {name: GENERATORS[name] for name in GENERATORS if name != WITHOUT_CACHE} | peers('decode'),
    'sample': GENERATORS | peers('sample'),
    'score': SCORERS | peers('score'),
    'prompts': {name: SCORERS[name] for name in SCORERS_OF_PROMPTS} | peers('prompts'),
    'train': {
        'train.py': (train_ours, {}),
        'plain float32': (train_plain, {}),
        'transformers float32': (train_transformers, {}),
        'transformers bfloat16': (train_transformers, {'dtype': torch.bfloat16}),
    },
    'start': {
        'sample.py': (start_ours, {}),
        'transformers': (start_transformers, {}),
        'import torch': (import_torch, {}),
    },
    'prepare': {
        'prepare_bin.py': (prepare_ours, {}),
        'a tiktoken loop': (prepare_tiktoken, {}),
    },
}


def run_contender(job, name, task, pipe):
    """Be one contender, in its own process: send 'ready', then do the job on each message and send the seconds it took.

    Ends on None and sends the peak memory of the process, in MiB.
    """
    function, arguments = CONTENDERS[job][name]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            run = function(task, **arguments)
            pipe.send('ready')
            while pipe.recv() is not None:
                started = time.perf_counter()
                run()
                pipe.send((time.perf_counter() - started) * (task.rows if name == WITHOUT_CACHE else 1))
        pipe.send(run.end() if isinstance(run, Peer) else peak_memory_mib())
    except ImportError as error:
        pipe.send(ImportError(error.name))
    except UserError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(RuntimeError(f'{type(error).__name__}: {error}'))
