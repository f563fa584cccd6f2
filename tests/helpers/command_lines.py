"""Command lines of a page, run in a copy of the project on a machine without a network and without a GPU."""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from common.interrupts import INTERRUPTED
from helpers.scripts import run_copy


def environment(cache):
    """Return the environment variables of a machine without a network and without a GPU."""
    return {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'HF_HUB_OFFLINE': '1',
        'HF_HUB_CACHE': str(cache),
        'HF_HOME': str(cache),
        'CUDA_VISIBLE_DEVICES': '',
        'OMP_NUM_THREADS': '1',
        'MPLBACKEND': 'Agg',
        'PET_STANDALONE': '1',  # torchrun may use any free port
    }


def is_plain(text):
    """Return whether a command line is Python with arguments, in which a shell would do nothing but remove quotes."""
    unquoted = re.sub(r'"[^"]*"|\'[^\']*\'', '', text)
    return re.match('python3? ', text) and not re.search(r'[|&;<>*?~(){}\\#]', unquoted) and not re.search('[$`]', text)


def run_line(text, folder, cache, fresh):
    """Run a command line in a folder, by a shell if `fresh` or if it needs one, else forked; return the process."""
    if is_plain(text) and not fresh:
        _, *words = shlex.split(text)
        return run_copy(*words, cwd=folder, env=environment(cache))
    return subprocess.run(
        text, shell=True, cwd=folder, env=environment(cache), capture_output=True, text=True, timeout=300
    )


def open_page(address):
    """Open a page as a browser does, which keeps the cookie that stands for the token in the address."""
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(address, timeout=60)


def run_server(text, folder, cache, port):
    """Run serve.py on any free port, open the address that it prints, and press Ctrl-C; return the finished process.

    port: the one to be shown in the address instead.
    """
    options = {'cwd': folder, 'env': environment(cache), 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with subprocess.Popen(f'exec {text} --port=0', shell=True, text=True, **options) as process:
        try:
            printed = process.stdout.readline()
            if address := re.match(r'http://[\w.-]+(:\d+/\S*)', printed):
                with open_page(f'http://127.0.0.1{address[1]}') as page:
                    assert '</html>' in page.read().decode()
        finally:
            process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    printed = re.sub(r':\d+/', f':{port}/', printed)
    code = 0 if (process.returncode, errors) == (INTERRUPTED, '\ninterrupted\n') else process.returncode
    return subprocess.CompletedProcess(text, code, printed + rest, errors)
