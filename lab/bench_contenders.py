"""What bench.py compares: this project and the programs people would use instead, each doing the same jobs.

Each contender is a function here. It takes the Task, gets ready (loads, converts, warms up) and returns a function that
does the job once; only that is timed. Each runs in its own process, so that its threads do not disturb the others and
its memory can be measured. A program that is not installed raises ImportError and is left out.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common.files import PROJECT
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
    layers: int = 0  # numbers in the matrices of the model's layers; all are read for each token
    head: int = 0  # numbers in its output layer

    @property
    def prompt_ids(self):
        """The ids of the prompt."""
        return checkpoint.load_model(self.folder)[1].encode_prompt(self.prompt)


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
    texts = sorted(([*prompt, *response], len(prompt)) for prompt, response, *_ in task.pairs)
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


# Starting, and preparing data: commands as a person types them -------------------------------------------------------


def run_python(*arguments, folder='.'):
    """Return a function that runs Python with these arguments in a folder; it raises RuntimeError if that fails."""

    def run():
        # Otherwise transformers looks on the hub for a newer model.
        environment = {**os.environ, 'HF_HUB_OFFLINE': '1'}
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])

    return run


def start_ours(task):
    """Run sample.py to generate one token."""
    return run_python(str(PROJECT / 'sample.py'), f'--init_from={task.folder}', '--max_new_tokens=1', '--device=cpu')


def start_transformers(task):
    """Generate one token with a script that uses transformers."""
    import transformers  # noqa: F401 (raises ImportError if it is not installed)

    return run_python(
        '-c',
        'import sys\n'
        'from transformers import AutoModelForCausalLM, AutoTokenizer\n'
        'model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n'
        'tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n'
        'prompt = tokenizer(sys.argv[2], return_tensors="pt")\n'
        'ids = model.generate(**prompt, max_new_tokens=1, do_sample=True, pad_token_id=50256)\n'
        'print(tokenizer.decode(ids[0]))',
        task.folder,
        task.prompt,
    )


def import_torch(task):
    """Import torch, which both need."""
    return run_python('-c', 'import torch')


def prepare_ours(task):
    """Turn the text into tokens with prepare_bin.py."""
    return run_python(str(PROJECT / 'prepare_bin.py'), f'--input={task.text}', '--dataset=bench', folder=task.scratch)


def prepare_tiktoken(task):
    """Write the same tokens with a loop over the documents in a single process, as nanoGPT's prepare.py does."""
    return run_python(
        '-c',
        'import sys, numpy, tiktoken\n'
        'tokenizer = tiktoken.get_encoding("gpt2")\n'
        'with open(sys.argv[1], encoding="utf-8") as file:\n'
        '    documents = file.read().split("\\n\\n\\n")\n'
        'ids = []\n'
        'for document in documents:\n'
        '    ids += [*tokenizer.encode_ordinary(document), tokenizer.eot_token]\n'
        'split = int(0.9 * len(ids))\n'
        'numpy.array(ids[:split], dtype=numpy.uint16).tofile(sys.argv[2] + "/train.bin")\n'
        'numpy.array(ids[split:], dtype=numpy.uint16).tofile(sys.argv[2] + "/val.bin")',
        task.text,
        task.scratch,
    )


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
CONTENDERS = {
    'decode': GENERATORS,
    'sample': GENERATORS,
    'score': SCORERS,
    'prompts': {name: SCORERS[name] for name in ('float32', 'int8', 'transformers bfloat16', 'CTranslate2 int8')},
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
        pipe.send(peak_memory_mib())
    except ImportError as error:
        pipe.send(ImportError(error.name))
    except Exception as error:
        pipe.send(RuntimeError(f'{type(error).__name__}: {error}'))
