"""Generating responses token by token, or scoring fixed ones, with the probability of each token."""

from dataclasses import dataclass, field

import torch

from lm.alternatives import TokenRecord, record_tokens
from lm.memory import bytes_of_samples, require_memory
from lm.roles import end_ids


@dataclass
class Response:
    """A drawn or fixed response: its ids, and the logprob of each under the sampler and under the model."""

    ids: list[int] = field(default_factory=list)
    sampler_logprobs: list[float] = field(default_factory=list)
    model_logprobs: list[float] = field(default_factory=list)
    records: list[TokenRecord] = field(default_factory=list)  # of the first recorded_steps tokens


def require_sample_memory(model, settings, num_samples, prompt_tokens=1):
    """Raise UserError if a batch of this many samples does not fit into memory."""

    def estimate(num_samples, max_new_tokens):
        return bytes_of_samples(model, num_samples, max_new_tokens, prompt_tokens)

    require_memory(model.device, estimate, num_samples=num_samples, max_new_tokens=settings.max_new_tokens)


def generate_responses(model, prompt_ids, settings, num_samples=1, response_ids=None, eot=None, recorded_steps=0):
    """Draw num_samples responses in one batch, or score the fixed response_ids.

    Yields the list of Responses as they grow: empty at first, then after every token.
    eot: the id, or ids, that end a response when drawn. recorded_steps: for how many steps to make a TokenRecord.
    """
    ends = end_ids(eot)
    if response_ids is None:
        require_sample_memory(model, settings, num_samples, len(prompt_ids))
    sampler = settings.sampler(fixed=response_ids is not None)
    idx = torch.tensor([prompt_ids] * num_samples, device=model.device)
    responses = [Response() for _ in range(num_samples)]
    yield responses
    steps = model.steps(idx, settings.max_new_tokens, fixed_response=response_ids, seed=settings.seed, **sampler)
    for number, step in enumerate(steps):
        records = None
        if number < recorded_steps:
            records = record_tokens(step.logits, step.ids, text=step.text, **sampler)
        for row, response in enumerate(responses):
            if response.ids and response.ids[-1] in ends:
                continue
            response.ids.append(step.ids[row].item())
            response.sampler_logprobs.append(step.sampler_logprob[row].item())
            response.model_logprobs.append(step.model_logprob[row].item())
            if records is not None:
                response.records.append(records[row])
        yield responses
        if all(response.ids[-1] in ends for response in responses):
            break
