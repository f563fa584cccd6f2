"""What students hand in: a GPT of nanoGPT's shape, and many ways to write generate, right ones and wrong ones."""

import textwrap

# Written with PyTorch's own attention, and with nanoGPT's parameter names and its exact GELU.
NETWORK = """
import math
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(c.n_embd, 3 * c.n_embd), nn.Linear(c.n_embd, c.n_embd)
        self.n_head = c.n_head

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(b, t, c))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(c.n_embd, 4 * c.n_embd), nn.Linear(4 * c.n_embd, c.n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(c.n_embd), Attention(c), nn.LayerNorm(c.n_embd), MLP(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict({
            'wte': nn.Embedding(config.vocab_size, config.n_embd),
            'wpe': nn.Embedding(config.block_size, config.n_embd),
            'h': nn.ModuleList(Block(config) for _ in range(config.n_layer)), 'ln_f': nn.LayerNorm(config.n_embd)})
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, idx, targets=None):
        assert idx.size(1) <= self.config.block_size, 'too long'
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(idx.size(1)))
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        return self.lm_head(x[:, [-1]] if targets is None else x), None

"""

# The loop that most students write. {...} are what differs from one to another.
LOOP = """
@torch.no_grad()
def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, fixed_response=None):
    result = {start}
    for step in range(max_new_tokens):
        idx_cond = idx if idx.size(1) <= self.config.block_size else idx[:, -self.config.block_size:]
        logits = self({context})[0][:, -1, :]
        raw = logits
        logits = logits {apply} temperature
        uncut = logits.clone()
        if top_k is not None {unless}:
            v, _ = torch.topk(logits, min(top_k, logits.size(-1)))
            logits[logits < v[:, [-1]]] = -float('Inf')
        probs = F.softmax({drawn_from}, dim=-1)
        if fixed_response is not None:
            idx_next = torch.tensor([[fixed_response[step]]])
        else:
            idx_next = {draw}
        p = {prob}
        {update}
        idx = torch.cat((idx, {append}), dim=1)
    {end}
    return {returned}
"""
USUAL = {
    'start': '1.0',
    'context': 'idx_cond',
    'apply': '/',
    'unless': 'and fixed_response is None',
    'drawn_from': 'logits',
    'draw': 'torch.multinomial(probs, num_samples=1)',
    'prob': 'probs.double()[0, idx_next.item()].item()',
    'update': 'result *= p',
    'append': 'idx_next',
    'end': '',
    'returned': 'idx, result',
}


def loop(**changes):
    """Return a model.py with the usual loop, changed in some places."""
    assert changes.keys() <= USUAL.keys()
    body = LOOP
    for name, text in (USUAL | changes).items():
        body = body.replace('{' + name + '}', text)
    return NETWORK + textwrap.indent(body, '    ')


def written(body):
    """Return a model.py with a method generate of its own."""
    return NETWORK + textwrap.indent(textwrap.dedent(body), '    ')


ONE_PASS = '''
@torch.no_grad()
def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, show_probs=False, fixed_response=None):
    """Scores what is fixed in one pass, and returns a logprob in a tensor."""
    n = idx.size(1)
    if fixed_response is not None:
        fixed = torch.as_tensor(fixed_response)[None]
        idx = torch.cat((idx, fixed), dim=1)
        logits = self(idx, targets=idx)[0][:, n - 1:-1] / temperature
        return idx, logits.log_softmax(-1).gather(2, fixed[..., None]).sum()
    total = torch.zeros(1)
    for _ in range(max_new_tokens):
        logits = self(idx)[0][:, -1] / temperature
        if top_k is not None:
            logits[logits < logits.topk(top_k).values[:, [-1]]] = -float('inf')
        logprobs = logits.log_softmax(-1)
        new = torch.distributions.Categorical(logits=logits).sample()[:, None]
        total += logprobs.gather(1, new)[0]
        idx = torch.cat((idx, new), dim=1)
    return idx, total[0]
'''
FUNCTION = '''

@torch.no_grad()
def generate(model, start_ids, n, temp, k, forced_ids=None):
    """A function; a tensor (1, n) of what is fixed; the probability first, one for each token."""
    probs = []
    for step in range(n):
        logits = model(start_ids[:, -model.config.block_size:])[0][:, -1] / temp
        if k and forced_ids is None:
            logits = torch.where(logits < torch.topk(logits, k)[0][..., -1, None], -torch.inf, logits)
        p = logits.softmax(-1)
        new = torch.multinomial(p, 1) if forced_ids is None else forced_ids[:, step:step + 1]
        probs.append(p[0, new[0, 0]])
        start_ids = torch.cat([start_ids, new], 1)
    return probs, start_ids
'''
RIGHT = {
    'the usual loop': loop(),
    'a sum of logprobs': loop(start='0.0', update='result += math.log(p)', end='result = math.exp(result)'),
    'a tensor (1,)': loop(start='torch.ones(1, dtype=torch.float64)', update='result = result * p'),
    'rounded': loop(returned="idx, float(f'{result:.4g}')"),
    'the logprob to base 10': loop(start='0.0', update='result += math.log10(p)'),
    'top-k applies to what is fixed': loop(unless=''),
    'the response alone': loop(returned='idx[:, -max_new_tokens:], result'),
    'one pass, a logprob': written(ONE_PASS),
    'a function': NETWORK + FUNCTION,
    'a number for each token, of numpy': loop(
        start='__import__("numpy").ones(0)', update='result = __import__("numpy").append(result, p)'
    ),
    'surprisal in bits': loop(start='0.0', update='result -= math.log2(p)'),
    'the ten likeliest, too': loop(
        start='1.0; top = []',
        update='result *= p; top.append(probs.topk(10))',
        returned='torch.cat([each.indices for each in top]), idx, torch.cat([each.values for each in top]), result',
    ),
    "the model's probability first": loop(
        start='1.0; own = 1.0',
        update='result *= p; own *= raw.softmax(-1)[0, idx_next.item()].item()',
        returned='idx, own, result',
    ),
    'a dict': loop(returned="{'ids': idx[0].tolist(), 'prob': result}"),
    'a method beside generate': loop().replace('def generate(', 'def generate_and_score(')
    + '    def generate(self, idx, max_new_tokens):\n        return idx\n',
    'top-p before top-k': loop().replace('top_k=None, fixed', 'top_p=1.0, seed=None, top_k=None, fixed'),
    'compiled': loop().replace('def generate', 'def unused(self): pass\n    @torch.compile\n    def generate'),
    'arguments of its own': loop() + 'import argparse\nargparse.ArgumentParser().parse_args()\n',
}
RAW = 'raw.double().softmax(-1)[0, idx_next.item()].item()'
WRONG = {  # what the sentence about it says
    'the raw softmax': (loop(prob=RAW), 'softmax of the raw logits'),
    'before top-k': (loop(prob=RAW.replace('raw', 'uncut')), 'before top-k cuts'),
    'the prompt is included': (
        loop(
            start='self(idx, targets=idx)[0].div(temperature).double().softmax(-1)[0, torch.arange(idx.size(1) - 1), '
            'idx[0, 1:]].prod().item()'
        ),
        'The prompt is counted',
    ),
    'a sum': (loop(start='0.0', update='result += p'), 'are added'),
    'the mean': (loop(start='0.0', update='result += p / max_new_tokens'), 'the mean of'),
    'per token': (loop(end='result = result ** (1 / max_new_tokens)'), 'geometric mean'),
    'the last token': (loop(update='result = p'), 'the last token alone'),
    'the first token left out': (loop(update='result *= p if step else 1'), 'The first token is left out'),
    'the prompt alone': (loop(context='idx[:, :max(1, idx.size(1) - step)]'), 'after the prompt alone'),
    'reads its own words': (
        loop(append='idx_next if fixed_response is None else probs.argmax(-1, keepdim=True)'),
        'append its tokens to idx',
    ),
    'reads what it drew': (
        loop(append='idx_next if fixed_response is None else torch.multinomial(probs, 1)'),
        'append its tokens to idx',
    ),
    'reads its own words, returns the fixed': (
        loop(
            append='probs.argmax(-1, keepdim=True) if fixed_response is not None else idx_next',
            end='if fixed_response is not None: idx[0, -max_new_tokens:] = torch.tensor(fixed_response)',
        ),
        'reads its own likeliest tokens',
    ),
    'reads what it drew, returns the fixed': (
        loop(
            append='torch.multinomial(probs, 1) if fixed_response is not None else idx_next',
            end='if fixed_response is not None: idx[0, -max_new_tokens:] = torch.tensor(fixed_response)',
        ),
        'changes from call to call',
    ),
    'the likeliest instead of the chosen': (loop(prob='probs.double().max().item()'), 'the likeliest token at each'),
    'a single drawn token fails': (
        loop(end='if fixed_response is None: assert max_new_tokens > 1'),
        "generate fails at 'The dog' + 1 drawn",
    ),
    'argmax': (loop(draw='probs.argmax(-1, keepdim=True)'), 'always takes the likeliest'),
    'temperature multiplies': (loop(apply='*'), 'multiplied by the temperature'),
    'draws without temperature': (
        loop(drawn_from='raw', prob='logits.double().softmax(-1)[0, idx_next.item()].item()'),
        'not drawn as often',
    ),
    'underflow': (
        loop(start='torch.tensor(1.0)', prob='probs[0, idx_next.item()]', update='result = result * p'),
        'underflowed',
    ),
    'ids only': (loop(returned='idx'), 'must return the ids and their probability'),
    'no fixed response': (
        loop()
        .replace(', fixed_response=None', '')
        .replace('fixed_response is not None', 'False')
        .replace('fixed_response is None', 'True'),
        'no argument for a fixed response',
    ),
    'another name for top-p, but no fixed response': (
        loop()
        .replace(', fixed_response=None', ', top_p=None')
        .replace('fixed_response is not None', 'False')
        .replace('fixed_response is None', 'True'),
        'no argument for a fixed response',
    ),
    'perplexity': (loop(end='result = result ** (-1 / max_new_tokens)'), 'the perplexity'),
    'temperature twice': (loop(apply='/ temperature /'), 'applied twice'),
    'the last token only is read': (loop(context='idx[:, -1:]'), 'sees only the last token'),
    'strings': (loop(start="'1.0'", update='result = str(float(result) * p)'), 'as a number or a tensor'),
    'nan': (loop(end="result = float('nan')"), 'not a number (nan)'),
    'small ones become 0': (loop(end='result = result if result > 1e-25 else 0.0'), 'has become 0'),
    'it changes its argument': (loop(update='result *= p; idx[0, 0] = 5'), 'changes the tensor idx'),
    'one id more': (loop(end='idx = torch.cat((idx, idx[:, -1:]), 1)'), '6 new ids where 5 are asked for'),
    'it sets a seed': (loop(start='1.0; torch.manual_seed(7)'), 'draws the same token in every call'),
    'training mode': (
        loop(start='1.0; self.train()').replace(
            'x = self.transformer.ln_f(x)',
            'x = F.dropout(self.transformer.ln_f(x), self.config.dropout, self.training)',
        ),
        'puts the model into training mode',
    ),
    'a crash': (loop(prob='probs[0, idx_next.item() + 10**6]'), 'IndexError'),
    'something else': (loop(update='result *= p * 0.9'), 'none of those'),
}

PER_TOKEN = 'result = result ** (1 / max_new_tokens)'
BEFORE_CUT = RAW.replace('raw', 'uncut')
TWO = {  # two mistakes at once: what the sentences say
    'off by one, and before top-k': (
        loop(
            prob='self(torch.cat((idx, idx_next), 1)[:, -self.config.block_size:])[0][:, -1]'
            '.div(temperature).double().softmax(-1)[0, idx_next.item()].item()',
        ),
        ('Off by one', 'before top-k cuts'),
    ),
    'raw, and off by one': (
        loop(
            prob='self(torch.cat((idx, idx_next), 1)[:, -self.config.block_size:])[0][:, -1]'
            '.double().softmax(-1)[0, idx_next.item()].item()',
        ),
        ('softmax of the raw logits', 'Off by one'),
    ),
    'raw, and a sum': (loop(prob=RAW, start='0.0', update='result += p'), ('softmax of the raw logits', 'are added')),
    'raw, and per token': (loop(prob=RAW, end=PER_TOKEN), ('softmax of the raw logits', 'geometric mean')),
    'raw, and the last alone': (
        loop(prob=RAW, update='result = p'),
        ('softmax of the raw logits', 'the last token alone'),
    ),
    'raw, and argmax': (
        loop(prob=RAW, draw='probs.argmax(-1, keepdim=True)'),
        ('softmax of the raw logits', 'always takes the likeliest'),
    ),
    'before top-k, and a mean': (
        loop(prob=BEFORE_CUT, start='0.0', update='result += p / max_new_tokens'),
        ('before top-k cuts', 'the mean of'),
    ),
    'the likeliest, and per token': (
        loop(prob='probs.double().max().item()', end=PER_TOKEN),
        ('the likeliest token at each', 'geometric mean'),
    ),
}
