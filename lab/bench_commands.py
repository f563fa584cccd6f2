"""What bench.py times as commands that a person types: starting, and preparing data."""

import os
import subprocess
import sys

from common.files import PROJECT


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
