"""What sample.py and eval.py share: their settings, the model they name, and responses with their probabilities."""

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import checkpoint as checkpoints
import fast
from common import UserError
from looks import Look, look_at
from model import Step


@dataclass
class SamplingSettings:
    """The settings of sample.py, all of which eval.py takes too."""

    init_from: str | None = None  # tiny-stories (None), tiny, gpt2 (any size), a name on the hub, a folder, resume
    out_dir: str | None = None  # where resume finds ckpt.pt (None: out); given alone, it means resume
    start: str = 'Once upon a time'  # the prompt, or FILE:path to read it from a file; '' is <|endoftext|>
    fixed_response: str | None = None  # a response to be scored instead of drawn; top_k and top_p do not cut it off
    num_samples: int = 1  # how many samples to draw, all in one batch
    max_new_tokens: int = 100  # tokens in each sample
    temperature: float = 0.8  # 1 is the model's own distribution, below 1 is bolder, 0 is greedy
    top_k: int | None = 200  # draw from the k likeliest tokens only; None for all
    top_p: float | None = None  # draw from the likeliest tokens that together have this probability; None for all
    stop_at_eot: bool = False  # end a sample where it says <|endoftext|>
    seed: int = 1337  # decides what is drawn
    show_probs: bool = False  # draw bar charts of what was likeliest at every step
    plot_steps: int = 20  # the first so many steps are drawn
    plot_dir: str = 'results'  # a new folder in here gets the charts
    device: str | None = None  # cpu, cuda, cuda:1, mps; None for the best there is
    dtype: str | None = None  # float32 (None), bfloat16 or float16
    quantize: str | None = None  # int8: eight-bit weights, for speed and memory; probabilities change a little
    compile: bool = False  # torch.compile the model: slower to start, then faster


@dataclass
class Response:
    """A drawn or fixed response: its ids, and the logprob of each under the sampler and under the model."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    model_logprobs: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)  # at the first steps, as many as were asked for

    def add(self, step: Step, row: int):
        """Take over one row of a step."""
        self.ids.append(step.ids[row].item())
        self.logprobs.append(step.logprob[row].item())
        self.model_logprobs.append(step.model_logprob[row].item())


def load_model(settings):
    """Return (model, tokenizer) of the settings. Raises UserError for what is missing."""
    model, tokenizer, _ = checkpoints.load(settings.init_from, settings.out_dir, settings.device, settings.dtype)
    if tokenizer is None:
        raise UserError(
            f'{settings.init_from} has no tokenizer; put the tokenizer.json that it was trained with beside it'
        )
    return model, tokenizer


def quickened(model, settings):
    """Return the model as quick as the settings allow; from now on it computes, and cannot be saved."""
    if settings.compile:
        model.hidden = torch.compile(model.hidden, dynamic=True)
        return model
    return fast.pack(model, settings.quantize)


def checked(settings):
    """Return the settings with the model decided on; raise UserError for values that cannot be meant."""
    if not 0 <= settings.temperature < math.inf:
        raise UserError(f'--temperature={settings.temperature}: it is 0 (greedy) or a positive number')
    if settings.top_k is not None and settings.top_k < 1:
        raise UserError(f'--top_k={settings.top_k}: it is at least 1, or None for all tokens')
    if settings.top_p is not None and not 0 < settings.top_p <= 1:
        raise UserError(f'--top_p={settings.top_p}: it is a probability above 0, or None for all tokens')
    if settings.quantize and (settings.compile or settings.dtype not in (None, 'float32')):
        other = 'compile' if settings.compile else 'dtype'
        raise UserError(f'--quantize={settings.quantize} is a way of computing of its own; leave out --{other}')
    for name in ('num_samples', 'max_new_tokens', 'plot_steps'):
        if getattr(settings, name) < 0:
            raise UserError(f'--{name}={getattr(settings, name)}: it cannot be negative')
    return with_model(settings)


def with_model(settings):
    """Return the settings with the model decided on.

    As in nanoGPT, --out_dir=FOLDER is enough to ask for the model that was trained there.
    """
    init_from = settings.init_from or ('tiny-stories' if settings.out_dir is None else 'resume')
    return replace(settings, init_from=init_from, out_dir=settings.out_dir or 'out')


def name_of(settings):
    """Return what a person calls the model that the settings mean: a run by its folder."""
    return settings.out_dir if settings.init_from == 'resume' else settings.init_from


def read_start(start):
    """Return the prompt that --start means: itself, or what the file after FILE: holds."""
    if not start.startswith('FILE:'):
        return start
    path = Path(start.removeprefix('FILE:'))
    try:
        return path.read_text(encoding='utf-8')
    except OSError as error:
        raise UserError(f'--start={start}: {path} cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'--start={start}: {path} is not UTF-8 text (byte {error.start})') from error


def respond(model, prompt_ids, settings, num_samples=1, response_ids=None, eot=None, looks=0):
    """Draw num_samples responses in one batch, or score the fixed response_ids.

    Yields the list of Response as it grows: empty at first, then after every token. eot: an id that ends a response
    where it is drawn. looks: at so many steps it is noted what else could have been said.
    """
    cut = {} if response_ids is not None else {'top_k': settings.top_k, 'top_p': settings.top_p}
    idx = torch.tensor([prompt_ids] * num_samples, device=model.transformer.wte.weight.device)
    responses = [Response() for _ in range(num_samples)]
    yield responses
    n, temperature, seed = settings.max_new_tokens, settings.temperature, settings.seed
    for number, step in enumerate(model.steps(idx, n, temperature, fixed_response=response_ids, seed=seed, **cut)):
        for row, response in enumerate(responses):
            if eot is None or not response.ids or response.ids[-1] != eot:
                response.add(step, row)
                if number < looks:
                    response.looks.append(look_at(step.logits[row], response.ids[-1], temperature, **cut))
        yield responses
        if eot is not None and all(response.ids[-1] == eot for response in responses):
            break


def sampler_name(settings, fixed):
    """Say what makes the sampler's probabilities differ from the model's."""
    cuts = [] if fixed else [(name, getattr(settings, name)) for name in ('top_k', 'top_p')]
    cuts = ''.join(f', {name} {value}' for name, value in cuts if value is not None)
    return f'temperature {settings.temperature:g}{cuts}{precision(settings.dtype, settings.quantize)}'


def precision(dtype, quantize=None):
    """Name the precision that numbers were computed in, unless it is float32."""
    name = quantize or dtype
    return '' if name in (None, 'float32') else f', computed in {name}'


def describe(response, settings, fixed):
    """Return two lines: how likely the response was under the sampler and under the model."""
    names = f'sampler ({sampler_name(settings, fixed)})', model_name(settings)
    width = max(map(len, names))
    logprobs = response.logprobs, response.model_logprobs
    return '\n'.join(
        f'{name:{width}}  {likelihood_text(math.fsum(of), len(response.ids))}' for name, of in zip(names, logprobs)
    )


def model_name(settings):
    """Say what the model's own probabilities are."""
    return f'model (temperature 1, every token{precision(settings.dtype, settings.quantize)})'


def likelihood_text(logprob, n):
    """Write how likely a response of n tokens is, in the three ways that people know."""
    return (
        f'logprob {logprob:.4f}, probability {probability_text(logprob)}, '
        f'perplexity per token {perplexity_text(logprob, n)} ({n} tokens)'
    )


def probability_text(logprob):
    """Write exp(logprob), and as a power of ten beside it where it is too small for a float."""
    prob = math.exp(logprob)
    if prob < sys.float_info.min and logprob > -math.inf:  # the smallest floats have lost their digits
        return f'0.0 (too small for a float: 10^{logprob / math.log(10):.1f})'
    return f'{prob:.6g}'


def perplexity_text(logprob, n):
    """Write exp(-logprob / n), the number of equally likely tokens that would be as hard to guess."""
    if n == 0:
        return 'undefined'
    mean = -logprob / n
    return f'{math.exp(mean):.4g}' if mean < 700 else 'inf'
