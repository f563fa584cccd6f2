"""lm-evaluation-harness's tasks on any model that `init_from` can name.

    pip install lm_eval==0.4.13
    python -m evaluation.lm_eval_adapter --model nanogpt-probs --model_args init_from=tiny-stories --tasks hellaswag

The arguments are those of the `lm_eval` command: this file registers the model `nanogpt-probs` and calls it. The model
takes init_from, out_dir, dtype and quantize, as sample.py does, and add_bos_token; --device belongs to the harness.
lm-evaluation-harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness) has three kinds of requests;
`lm.scoring` answers two of them and `model.steps` the third.
"""

import sys

import torch
from tqdm import tqdm

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    print(f'error: this needs lm-evaluation-harness ({error}): pip install lm_eval==0.4.13', file=sys.stderr)
    sys.exit(2)
import lm
from common.errors import UserError, on_one_line
from lm.scoring import cut_text, score_pairs, segment_ends
from lm.settings import SAMPLER
from lm.tuning import MANY_ROWS


@register_model('nanogpt-probs')
class NanoGPTProbs(LM):
    """A model of this project, as lm-evaluation-harness expects one."""

    def __init__(
        self,
        init_from='tiny-stories',
        out_dir='out',
        device=None,
        dtype=None,
        quantize=None,
        add_bos_token=None,
        batch_size=None,
        **_,
    ):
        """add_bos_token: as `bos` in `lm.load`. batch_size and others that the harness passes to all are ignored."""
        super().__init__()
        if str(device).startswith('cuda') and not torch.cuda.is_available():
            device = None  # cuda is the harness's default even if there is none
        self.model, self.tokenizer = lm.load(init_from, out_dir, device, dtype, quantize, add_bos_token, rows=MANY_ROWS)
        if self.tokenizer.start is None:
            raise UserError(f'the tokenizer of {init_from} has no <|endoftext|>, with which the harness starts texts')

    def loglikelihood(self, requests, disable_tqdm=False):
        """Return (logprob, whether greedy decoding would produce it) of each continuation of a context."""
        encoded = (self.tokenizer.encode_pair(*request.args) for request in requests)
        scores = score_pairs(self.model, encoded)
        scores = tqdm(scores, total=len(requests), desc='loglikelihood', disable=disable_tqdm)
        return [(score.model_logprobs.sum().item(), bool((score.ranks == 1).all())) for score in scores]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """Return the logprob of each text after <|endoftext|>, every token scored once."""
        sums = []
        block_size = self.model.block_size
        for request in tqdm(requests, desc='loglikelihood_rolling', disable=disable_tqdm):
            ids = self.tokenizer.encode(request.args[0])
            pairs = cut_text(
                ids, segment_ends(len(ids), block_size, block_size), block_size, self.tokenizer.start_ids()
            )
            sums.append(sum(score.model_logprobs.sum().item() for score in score_pairs(self.model, pairs)))
        return sums

    def generate_until(self, requests, disable_tqdm=False):
        """Return what the model generates after each context, up to a stop text, <|endoftext|> or the length."""
        texts = []
        for request in tqdm(requests, desc='generate_until', disable=disable_tqdm):
            context, settings = request.args
            texts.append(self._generate(context, normalize_gen_kwargs(settings)))
        return texts

    def _generate(self, context, settings):
        """Continue a context: greedily, unless the task sets a temperature; a penalty that it sets applies, too."""
        length, stops = settings['max_gen_toks'], [stop for stop in settings['until'] if stop]
        # A context that leaves no room for the answer is cut on the left, down to one token at least.
        prompt = self.tokenizer.encode_prompt(context)[-max(1, self.model.block_size - length) :]
        idx = torch.tensor([prompt], device=self.model.device)
        ids, text = [], ''
        sampler = {'temperature': 0.0} | {name: settings[name] for name in SAMPLER if settings.get(name)}
        for step in self.model.steps(idx, length, seed=0, **sampler):
            if step.ids.item() in self.tokenizer.roles.ends:
                break
            ids.append(step.ids.item())
            text = self.tokenizer.decode(ids, prompt)
            if any(stop in text for stop in stops):
                return text[: min(text.find(stop) for stop in stops if stop in text)]
        return text


if __name__ == '__main__':
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except (UserError, FloatingPointError) as error:
        print('error:', on_one_line(error), file=sys.stderr)
        sys.exit(2)
