"""Any causal language model that transformers can load, behind the interface of a `LanguageModel`.

    model = load_hub_model(folder)         # Llama, Qwen, Gemma, Pythia, OPT, ...

The network is transformers' own. Here the output layer is taken apart from the rest, so that only positions that
predict something go through it, and it gets a cache that can be copied and cut back. Whether all that is right for an
architecture is not assumed but tried, with each model that is loaded: see `check_network`.
"""

import contextlib
import functools
import json
import math
from pathlib import Path

import torch

from common.errors import UserError, describe_os_error, is_out_of_memory
from common.files import is_there
from common.json_files import parse_json
from common.notes import note
from common.strings import shorten
from common.text_files import read_text
from lm.hub_cache import HubCache
from lm.weight_files import first_line, read_weight_shapes
from model import LanguageModel

# Names in config.json for the longest text that a model was made for.
LENGTHS = ('max_position_embeddings', 'n_positions', 'max_seq_len', 'max_sequence_length', 'seq_length', 'n_ctx')
UNSTATED_LENGTH = 2048  # of models whose positions have no limit and whose config.json names none, such as BLOOM
LOADING = {  # what from_pretrained is asked for; weights of another shape are listed, and refused here
    'dtype': torch.float32,
    'ignore_mismatched_sizes': True,
    'output_loading_info': True,
}
TOLERANCE = 1e-3  # of logits, in units of their standard deviation; a wrong computation is off by far more


class HubModel(LanguageModel):
    """A causal language model of transformers; the methods that it inherits are described in `LanguageModel`."""

    def __init__(self, network):
        """network: an AutoModelForCausalLM."""
        super().__init__()
        self.network = network
        self.config = network.config.get_text_config(decoder=True)
        self.n_ids = self.config.vocab_size
        lengths = [getattr(self.config, name, None) for name in LENGTHS]
        self.block_size = next((n for n in lengths if isinstance(n, int) and n > 0), UNSTATED_LENGTH)
        self.whole = False  # whether `hidden` returns logits, since the output layer cannot be taken apart
        self.generation_config = None  # the text of its generation_config.json, kept for other programs

    @property
    def device(self):
        return self.network.device

    def new_cache(self, batch_size, length):
        return HubCache(batch_size, length)

    def hidden(self, idx, cache=None):
        length = idx.size(1) + (0 if cache is None else cache.end)
        if length > self.block_size:
            raise ValueError(f'{length} tokens do not fit into block_size={self.block_size}')
        if cache is not None and cache.ragged:
            return self._hidden_of_ragged_rows(idx, cache)
        network = self.network if self.whole else self.network.base_model
        if cache is None:
            output = network(idx, use_cache=False)
        else:
            output = network(idx, past_key_values=cache.past, use_cache=True)
            cache.advance(idx.size(1))
        return output.logits if self.whole else output.last_hidden_state

    def _hidden_of_ragged_rows(self, idx, cache):
        """Read on in rows that hold different numbers of tokens: those that hold equally many at a time."""
        parts, places = [], []
        for rows, length in cache.equal_rows():
            part = cache.take(rows)
            part.rewind(length)
            parts.append(self.hidden(idx[rows.to(idx.device)], part))
            places.append(rows)
            cache.put(rows, part)
        cache.advance(idx.size(1))
        return torch.cat(parts)[torch.cat(places).argsort().to(idx.device)]  # (B, T, C)

    def logits(self, x):
        logits = x if self.whole else self._output_layer(x)
        if self.n_ids < logits.size(-1):
            logits[..., self.n_ids :] = -math.inf
        return logits

    def _output_layer(self, x):
        """Return (..., V) logits, scaled and capped as some architectures do it after their last matrix."""
        logits = self.network.get_output_embeddings()(x)
        if scale := getattr(self.config, 'logit_scale', None):  # Cohere
            logits = logits * scale
        if scale := getattr(self.config, 'logits_scaling', None):  # Granite
            logits = logits / scale
        if cap := getattr(self.config, 'final_logit_softcapping', None):  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    # Only for training ------------------------------------------------------------------------------------------------

    @property
    def gradient_checkpointing(self):
        """Whether each layer is computed again in the backward pass: slower, less memory."""
        return self.network.is_activation_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, wanted):
        if not wanted:
            return
        if not self.network.supports_gradient_checkpointing:
            raise UserError(f'a model of type {self.config.model_type!r} has no gradient checkpointing; leave it out')
        self.network.activation_checkpointing_enable(activation_checkpointing_kwargs={'use_reentrant': False})

    def get_num_params(self, non_embedding=True):
        """Count the parameters; without position embeddings nothing is left out, since most models have none."""
        return sum(parameter.numel() for parameter in self.parameters())

    def crop_block_size(self, block_size):
        """Read at most this many tokens at a time; unlike a GPT, the model itself stays as it is."""
        self.block_size = block_size

    def estimate_mfu(self, fwdbwd_per_iter, dt, peak_flops):
        """Model FLOPs utilisation of fwdbwd_per_iter sequences in dt seconds; see GPT.estimate_mfu."""
        used = self.get_num_params()
        embedding, head = self.network.get_input_embeddings().weight, self.network.get_output_embeddings().weight
        if embedding is not head:
            used -= embedding.numel()  # it is looked up, not multiplied
        if chosen := getattr(self.config, 'num_experts_per_tok', None):
            experts = [parameter for parameter in self.parameters() if parameter.dim() == 3]  # one matrix for each
            used -= sum(matrices.numel() * (1 - chosen / len(matrices)) for matrices in experts)
        L, C, T = self.config.num_hidden_layers, self.config.hidden_size, self.block_size
        return (6 * used + 12 * L * C * T) * T * fwdbwd_per_iter / dt / peak_flops

    @property
    def contents(self):
        """What a checkpoint stores of it besides its weights: the texts of config.json and generation_config.json."""
        config = self.network.config.to_json_string(use_diff=False)
        return {'hub_config': config, 'generation_config': self.generation_config}


def load_hub_model(folder):
    """Return the HubModel in a Hugging Face folder, in float32 on the CPU, in eval mode.

    Only safetensors are read, and no code that comes with the model is executed.
    Raises UserError if transformers cannot load it, if weights are missing, or if it is no causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with _explain_errors(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_config(config, folder)
        _check_size(config, read_weight_shapes(folder), folder)
        load = functools.partial(AutoModelForCausalLM.from_pretrained, folder, use_safetensors=True)
        model = _make_model(load(trust_remote_code=False, **LOADING), folder)
    path = Path(folder) / 'generation_config.json'
    model.generation_config = read_text(path) if is_there(path) else None
    check_network(model, folder)
    return model


def restore_hub_model(contents, state, where):
    """Return the HubModel of a checkpoint, in eval mode, from what `HubModel.contents` was and {name: tensor}.

    Raises UserError, naming `where` they are from, if they are damaged or do not fit each other.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.auto_factory import _get_model_class

    try:
        described, generation_config = parse_json(contents['hub_config']), contents.get('generation_config')
        if not isinstance(described, dict) or not isinstance(generation_config, str | None):
            raise ValueError('it is not a JSON object')
    except (ValueError, TypeError) as error:
        raise UserError(f'{where} is damaged: what it says about its model cannot be read: {error}') from error
    state = {name.removeprefix('network.'): tensor for name, tensor in state.items()}
    with _explain_errors(where):
        config = AutoConfig.for_model(**described)
        _check_config(config, where)
        _check_size(config, {name: tensor.shape for name, tensor in state.items()}, where)
        network_class = _get_model_class(config, AutoModelForCausalLM._model_mapping)
        model = _make_model(network_class.from_pretrained(None, config=config, state_dict=state, **LOADING), where)
    model.generation_config = generation_config
    check_network(model, where)
    return model


def folder_state(model, dtype):
    """Return {name: tensor} of a HubModel's weights as its model folder holds them, tied weights once."""
    from transformers.core_model_loading import revert_weight_conversion

    own = {name for name, _ in [*model.network.named_parameters(), *model.network.named_buffers()]}
    state = {name: tensor for name, tensor in model.network.state_dict().items() if name in own}
    state = revert_weight_conversion(model.network, state)  # to the names on the hub
    return {name: tensor.to('cpu', dtype).contiguous() for name, tensor in state.items()}


def folder_config(model, dtype):
    """Return the contents of a HubModel's config.json."""
    config = json.loads(model.network.config.to_json_string())
    config.pop('auto_map', None)  # names Python code that is not in the folder
    kind = type(model.network).__name__
    return {**config, 'architectures': [kind], 'dtype': str(dtype).removeprefix('torch.')}


@contextlib.contextmanager
def _explain_errors(where):
    """Turn whatever transformers raises while it loads a model into a UserError."""
    try:
        with quiet_transformers():
            yield
    except UserError:
        raise
    except Exception as error:  # each architecture has errors of its own
        if 'trust_remote_code' in str(error):
            raise UserError(
                f'{where} needs Python code that comes with the model, which is never executed; choose a model of an '
                'architecture that transformers has itself'
            ) from error
        if is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f'cannot read {where}: {describe_os_error(error)}') from error
        raise UserError(f'{where}: transformers cannot load this model: {shorten(first_line(error), 300)}') from error


def _check_config(config, where):
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(f'{where} contains a model of type {config.model_type!r}, which is no causal language model')


def _make_model(loaded, where):
    """Return the HubModel of what from_pretrained returned: a network, and a report on its weights."""
    network, info = loaded
    if info['missing_keys'] or info['mismatched_keys']:
        wrong = sorted([*info['missing_keys'], *(name for name, *_ in info['mismatched_keys'])])
        raise UserError(f'{where}: weights are missing or of another shape than config.json says, such as {wrong[0]}')
    if network._is_stateful:
        raise UserError(
            f'{where} contains a model of type {network.config.model_type!r}; its memory is a state that cannot be cut '
            'back to an earlier token, which is not supported'
        )
    return HubModel(network.eval())


def _check_size(config, shapes, where):
    """Raise UserError if a config describes a far larger model than weights of these shapes, before memory is taken."""
    from transformers import AutoModelForCausalLM

    if config.get_text_config(decoder=True).num_hidden_layers > len(shapes):
        raise UserError(f'{where}: its config.json means more layers than there are weights')
    with torch.device('meta'):
        network = AutoModelForCausalLM.from_config(config)
    network.tie_weights()
    described = sum(parameter.numel() for parameter in network.parameters())  # tied ones are counted once
    stored = sum(map(math.prod, shapes.values()))
    if described > 2 * stored:  # if fewer are missing, they are named later
        raise UserError(
            f'{where}: weights are missing: its config.json means {described:,} of them, and only {stored:,} are stored'
        )


@contextlib.contextmanager
def quiet_transformers():
    """Keep progress bars and advice of transformers off the terminal; what matters is checked and said here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@torch.no_grad()
def check_network(model, folder):
    """Compare the model with transformers' own forward pass on a short random text; raise UserError if it is wrong.

    If the output layer does more than is known here, the model goes through its whole forward pass from now on. A cache
    that gives other logits is refused.
    """
    kind, T = model.config.model_type, min(24, model.block_size)
    generator = torch.Generator().manual_seed(0)
    idx = torch.randint(model.n_ids, (2, T), generator=generator).to(model.device)
    expected = model.network(idx, use_cache=False).logits.float()
    if not torch.isfinite(expected).all():
        raise UserError(f'{folder}: its logits are not finite; its weights are damaged')
    other = idx.clone()
    other[:, -1] = (idx[:, -1] + 1) % model.n_ids
    # The same numbers are computed in the same order, so hardly anything is rounded otherwise.
    if find_difference(lambda: model.network(other, use_cache=False).logits[:, :-1], expected[:, :-1], 1e-5):
        raise UserError(f'{folder}: a model of type {kind!r} does not read only from left to right, as it must here')
    if find_difference(lambda: model.logits(model.hidden(idx)), expected):
        model.whole = True
        note(f'{folder}: its output layer is computed by transformers, for all tokens of a text: right, but slower')
    if difference := find_difference(lambda: _logits_in_pieces(model, idx), expected):
        raise UserError(
            f'{folder}: a model of type {kind!r} cannot read a text piece by piece as it must here: {difference}'
        )


def _logits_in_pieces(model, idx):
    """Return the logits of a text that is read with a cache, cut back and continued."""
    T = idx.size(1)
    cache = model.new_cache(len(idx), 1)
    x = [model.hidden(idx[:, : T // 2], cache)]
    model.hidden(idx[:, : T - T // 2], cache)  # something else, to be forgotten
    cache.rewind(T // 2)
    cache = cache.take(torch.arange(len(idx)))
    x += [model.hidden(idx[:, at : at + 1], cache) for at in range(T // 2, T)]
    return model.logits(torch.cat(x, dim=1))


def find_difference(compute, expected, tolerance=TOLERANCE):
    """Return how logits differ from the expected ones, or why they cannot be computed in this way; None if equal."""
    try:
        logits = compute().float()
    except Exception as error:  # an architecture may fail in any way
        if is_out_of_memory(error):
            raise
        return f'{type(error).__name__}: {first_line(error)}'
    if logits.shape != expected.shape:
        return f'its logits are {tuple(logits.shape)}, not {tuple(expected.shape)}'
    largest = (logits - expected).abs().max()
    return None if largest <= tolerance * expected.std() else f'its logits differ by up to {largest.item():.2g}'
