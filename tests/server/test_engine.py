"""The engine: many requests at once get the numbers that each gets alone, in turn, and nothing is left behind."""

import asyncio

import pytest
import torch

from model import logits_to_logprobs
from server.engine import Engine, NamedModel


@pytest.fixture
def engine(model):
    engine = Engine([NamedModel('random', model, None, None)])
    yield engine
    engine.close()


def test_scores_are_those_of_the_models_own_forward_pass(engine, model):
    texts = [torch.randint(61, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (2, 9, 16, 17, 30)]

    async def score_all():
        return await asyncio.gather(*(engine.score(0, ids, 1, count=3) for ids in texts))

    for ids, records in zip(texts, asyncio.run(score_all()), strict=True):
        for end, record in enumerate(records, 1):
            window = torch.tensor([ids[max(0, end - 16) : end]])
            logprobs = logits_to_logprobs(model(window)[0][0, -1])
            assert record.model_logprob == pytest.approx(logprobs[ids[end]].item(), abs=1e-4)
            assert [other.id for other in record.alternatives] == logprobs.topk(3).indices.tolist()
