"""OpenVINO GenAI and llama.cpp, measured by bench.py: what runs in their own Python environment.

    python3 -m venv .peers && .peers/bin/pip install -r requirements-peers.txt

makes that environment; llama.cpp is compiled for this machine, which takes about 15 minutes on two cores. bench.py
starts this file with its Python and the name of a contender. The first line of stdin is a JSON object with what to do
(`Task` in bench_contenders.py). When everything is loaded, 'ready' is written to stdout. Each further line of stdin
does the job once and writes the seconds it took; an empty one ends the program, which writes its peak memory in MiB.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

BATCH = 16  # texts scored at once
GPT2 = {  # llama.cpp's names -> those in model.safetensors
    'token_embd.weight': 'wte.weight',
    'position_embd.weight': 'wpe.weight',
    'output_norm': 'ln_f',
    'blk.{}.attn_norm': 'h.{}.ln_1',
    'blk.{}.attn_qkv': 'h.{}.attn.c_attn',
    'blk.{}.attn_output': 'h.{}.attn.c_proj',
    'blk.{}.ffn_norm': 'h.{}.ln_2',
    'blk.{}.ffn_up': 'h.{}.mlp.c_fc',
    'blk.{}.ffn_down': 'h.{}.mlp.c_proj',
}


def add_logprobs(logits, ids):
    """Return the summed logprobs of ids, (n,) integers, under logits, (n, V)."""
    import numpy

    logits = logits - logits.max(-1, keepdims=True)
    chosen = logits[numpy.arange(len(ids)), ids]
    return float((chosen - numpy.log(numpy.exp(logits).sum(-1))).sum())


# OpenVINO -----------------------------------------------------------------------------------------------------------


def export_openvino(task, weights):
    """Return a folder with the model as optimum-intel exports it, its weights in 'fp32' or 'int8'."""
    folder = Path(task['scratch']) / f'openvino-{weights}'
    if not folder.exists():
        program = Path(sys.executable).with_name('optimum-cli')
        options = ['--task=text-generation-with-past', f'--weight-format={weights}']
        command = [program, 'export', 'openvino', f'--model={task["folder"]}', *options, folder]
        environment = {**os.environ, 'HF_HUB_OFFLINE': '1'}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return folder


def openvino_settings(weights):
    """Return the properties of a compiled model: float32 throughout for fp32, OpenVINO's own choice for int8."""
    return {'INFERENCE_PRECISION_HINT': 'f32', 'KV_CACHE_PRECISION': 'f32'} if weights == 'fp32' else {}


def generate_openvino(task, weights):
    """Generate the texts with OpenVINO GenAI."""
    import numpy
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(export_openvino(task, weights), 'CPU', **openvino_settings(weights))
    idx = numpy.array([task['prompt_ids']], dtype=numpy.int64)
    prompt = openvino_genai.TokenizedInputs(openvino.Tensor(idx), openvino.Tensor(numpy.ones_like(idx)))
    settings = openvino_genai.GenerationConfig(
        do_sample=True, temperature=0.8, top_k=200, num_return_sequences=task['rows'], ignore_eos=True
    )
    settings.max_new_tokens = settings.min_new_tokens = task['new_tokens']

    def run():
        texts = pipeline.generate(prompt, settings).tokens
        assert [len(text) for text in texts] == [task['new_tokens']] * task['rows']

    return run


def score_openvino(task, weights):
    """Score the pairs with optimum-intel's causal language model: sorted batches, as with transformers."""
    import numpy
    import torch
    from optimum.intel import OVModelForCausalLM

    folder = export_openvino(task, weights)
    model = OVModelForCausalLM.from_pretrained(folder, ov_config=openvino_settings(weights), use_cache=True)
    texts = sorted((pair for pair in task['pairs']), key=lambda pair: sum(map(len, pair)))

    def run():
        sums = []
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            longest = max(sum(map(len, pair)) for pair in part)
            idx, mask = torch.zeros(2, len(part), longest, dtype=torch.int64)
            for row, (prompt, response) in enumerate(part):
                idx[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
                mask[row, : len(prompt) + len(response)] = 1
            logits = model(idx, attention_mask=mask).logits.numpy()
            for row, (prompt, response) in enumerate(part):
                places = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
                sums.append(add_logprobs(logits[row, places], numpy.array(response)))
        return sums

    return run


# llama.cpp ----------------------------------------------------------------------------------------------------------


def write_gguf(task, kind):
    """Return a GGUF file with a GPT-2 model, its matrices in 'F32' or 'Q8_0'."""
    import gguf
    from safetensors.numpy import load_file

    path = Path(task['scratch']) / f'{kind}.gguf'
    if path.exists():
        return path
    folder = Path(task['folder'])
    config = json.loads((folder / 'config.json').read_text('utf-8'))
    if config['model_type'] != 'gpt2':
        raise ValueError(f'its file is written for GPT-2 only, and this is a {config["model_type"]}')
    weights = {name.removeprefix('transformer.'): x for name, x in load_file(folder / 'model.safetensors').items()}
    writer = gguf.GGUFWriter(path, 'gpt2')
    writer.add_block_count(config['n_layer'])
    writer.add_context_length(config['n_positions'])
    writer.add_embedding_length(config['n_embd'])
    writer.add_feed_forward_length(4 * config['n_embd'])
    writer.add_head_count(config['n_head'])
    writer.add_layer_norm_eps(config['layer_norm_epsilon'])
    add_gguf_vocabulary(writer, json.loads((folder / 'tokenizer.json').read_text('utf-8')), config['vocab_size'])
    quantized = gguf.GGMLQuantizationType[kind]
    for name, values in gguf_tensors(weights, config['n_layer']):
        if kind != 'F32' and values.ndim == 2 and name != 'position_embd.weight':
            writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(weights, n_layer):
    """Yield (llama.cpp's name, values) of each tensor of a GPT-2, matrices as (outputs, inputs)."""
    for theirs, ours in GPT2.items():
        for layer in range(n_layer) if '{}' in theirs else [0]:
            target, source = theirs.format(layer), ours.format(layer)
            if source in weights:
                yield target, weights[source]
                continue
            for kind in ('weight', 'bias'):
                values = weights[f'{source}.{kind}']
                yield f'{target}.{kind}', values.T.copy() if values.ndim == 2 else values


def add_gguf_vocabulary(writer, tokenizer, n_ids):
    """Write the BPE of a tokenizer.json, which llama.cpp asks for although it is given ids here."""
    import gguf

    tokens = {id: token for token, id in tokenizer['model']['vocab'].items()}
    added = {token['id']: token['content'] for token in tokenizer['added_tokens']}
    tokens = [(tokens | added).get(id, f'[unused {id}]') for id in range(n_ids)]
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in tokenizer['model']['merges']]
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if id in added else gguf.TokenType.NORMAL for id in range(n_ids)])
    writer.add_token_merges(merges)


class LlamaCpp:
    """A model of llama.cpp that processes several texts at once."""

    def __init__(self, path, n_texts, n_tokens):
        """n_texts: how many at once. n_tokens: of all of them together, and the most in one call."""
        import llama_cpp

        self.library = llama_cpp
        llama_cpp.llama_backend_init()
        silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(silent, None)
        self._silent = silent  # C keeps a pointer to it
        model_settings = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_settings)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = n_tokens
        settings.n_seq_max, settings.kv_unified = n_texts, True
        settings.n_threads = settings.n_threads_batch = len(os.sched_getaffinity(0))
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.model or not self.context:
            raise RuntimeError(f'llama.cpp could not load {path}')
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.n_ids = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(n_tokens, 0, 1)

    def clear(self):
        """Forget all texts."""
        self.library.llama_memory_clear(self.memory, True)

    def copy(self, source, target):
        """Let one text begin like another."""
        self.library.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def decode(self, tokens):
        """Process tokens, [(id, position, number of the text, whether logits are wanted)]."""
        self.batch.n_tokens = len(tokens)
        for place, (id, position, text, wanted) in enumerate(tokens):
            self.batch.token[place], self.batch.pos[place], self.batch.logits[place] = id, position, wanted
            self.batch.n_seq_id[place] = 1
            self.batch.seq_id[place][0] = text
        if self.library.llama_decode(self.context, self.batch):
            raise RuntimeError('llama_decode failed')

    def logits(self, places):
        """Return the logits after the tokens at these places of the last call, (len(places), V)."""
        import numpy

        rows = [self.library.llama_get_logits_ith(self.context, place) for place in places]
        return numpy.stack([numpy.ctypeslib.as_array(row, (self.n_ids,)) for row in rows])

    def make_sampler(self, seed):
        """Return a sampler with temperature 0.8 and the 200 likeliest tokens."""
        library = self.library
        sampler = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        library.llama_sampler_chain_add(sampler, library.llama_sampler_init_top_k(200))
        library.llama_sampler_chain_add(sampler, library.llama_sampler_init_temp(0.8))
        library.llama_sampler_chain_add(sampler, library.llama_sampler_init_dist(seed))
        return sampler


def generate_llama_cpp(task, kind):
    """Generate the texts with llama.cpp, all in one batch."""
    prompt, rows = task['prompt_ids'], task['rows']
    model = LlamaCpp(write_gguf(task, kind), rows, max(512, rows * (len(prompt) + task['new_tokens'])))
    samplers = [model.make_sampler(row) for row in range(rows)]
    sample = model.library.llama_sampler_sample

    def run():
        model.clear()
        model.decode([(id, place, 0, place == len(prompt) - 1) for place, id in enumerate(prompt)])
        for row in range(1, rows):
            model.copy(0, row)
        places = [len(prompt) - 1] * rows
        for position in range(len(prompt), len(prompt) + task['new_tokens']):
            ids = [sample(sampler, model.context, place) for sampler, place in zip(samplers, places, strict=True)]
            model.decode([(id, position, row, True) for row, id in enumerate(ids)])
            places = range(rows)

    return run


def score_llama_cpp(task, kind):
    """Score the pairs with llama.cpp: sorted batches of texts."""
    import numpy

    texts = sorted((pair for pair in task['pairs']), key=lambda pair: sum(map(len, pair)))
    model = LlamaCpp(write_gguf(task, kind), BATCH, 2048)

    def run():
        sums = []
        for start in range(0, len(texts), BATCH):
            model.clear()
            tokens, places = [], []
            for row, (prompt, response) in enumerate(texts[start : start + BATCH]):
                first = len(tokens) + len(prompt) - 1
                places.append(range(first, first + len(response)))
                ids = (prompt + response)[:-1]
                tokens += [(id, place, row, place >= len(prompt) - 1) for place, id in enumerate(ids)]
            model.decode(tokens)
            for (_, response), row in zip(texts[start : start + BATCH], places, strict=True):
                sums.append(add_logprobs(model.logits(row), numpy.array(response)))
        return sums

    return run


def score_prompts_llama_cpp(task, kind):
    """Score many responses to each prompt with llama.cpp: a prompt is processed once, its responses in one batch."""
    import numpy

    pairs = itertools.groupby(sorted(task['pairs']), lambda pair: pair[0])
    groups = [(prompt, [response for _, response in group]) for prompt, group in pairs]
    model = LlamaCpp(write_gguf(task, kind), max(len(responses) for _, responses in groups), 4096)

    def run():
        sums = []
        for prompt, responses in groups:
            model.clear()
            model.decode([(id, place, 0, place == len(prompt) - 1) for place, id in enumerate(prompt)])
            first = model.logits([len(prompt) - 1])
            for row in range(1, len(responses)):
                model.copy(0, row)
            tokens, places = [], []
            for row, response in enumerate(responses):
                places.append(range(len(tokens), len(tokens) + len(response) - 1))
                tokens += [(id, len(prompt) + place, row, True) for place, id in enumerate(response[:-1])]
            model.decode(tokens)
            for response, row in zip(responses, places, strict=True):
                logits = numpy.concatenate([first, model.logits(row)]) if row else first
                sums.append(add_logprobs(logits, numpy.array(response)))
        return sums

    return run


# Who does which job -------------------------------------------------------------------------------------------------

GENERATE = {
    'OpenVINO float32': (generate_openvino, 'fp32'),
    'OpenVINO int8': (generate_openvino, 'int8'),
    'llama.cpp float32': (generate_llama_cpp, 'F32'),
    'llama.cpp q8_0': (generate_llama_cpp, 'Q8_0'),
}
SCORE = {
    'OpenVINO float32': (score_openvino, 'fp32'),
    'OpenVINO int8': (score_openvino, 'int8'),
    'llama.cpp float32': (score_llama_cpp, 'F32'),
    'llama.cpp q8_0': (score_llama_cpp, 'Q8_0'),
}
PEERS = {
    'decode': GENERATE,
    'sample': GENERATE,
    'score': SCORE,
    'prompts': {
        'OpenVINO int8': (score_openvino, 'int8'),
        'llama.cpp q8_0': (score_prompts_llama_cpp, 'Q8_0'),
    },
}


def main(job, name):
    """Get ready, then do the job for each line of stdin."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever the libraries print goes to stderr
    function, precision = PEERS[job][name]
    run = function(json.loads(sys.stdin.readline()), precision)
    print('ready', file=answers, flush=True)
    while sys.stdin.readline().strip():
        started = time.perf_counter()
        run()
        print(time.perf_counter() - started, file=answers, flush=True)
    import resource  # here, since Windows has none, and bench.py imports this file

    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=answers, flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
