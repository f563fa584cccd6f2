"""Downloading from the Hugging Face hub, against a server on this machine that answers as the hub does."""

import hashlib
import http.server
import json
import shutil
import threading

import pytest
from conftest import assert_friendly_error, random_gpt, run_script

from tokenizer import train_bpe

COMMIT = 'a' * 40


@pytest.fixture
def hub(tmp_path):
    """Serve the model someone/fake; yields its folder and the environment that points there, and stops on request."""
    folder = tmp_path / 'served'
    tokenizer = train_bpe(['Once upon a time there was a cat.'] * 9, 270)
    random_gpt(vocab_size=tokenizer.vocab_size).save_pretrained(folder, tokenizer)
    (folder / 'README.md').write_text('not wanted')

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, status, body=b'', **headers):
            self.send_response(status)
            for name, value in {'Content-Length': len(body), **headers}.items():
                self.send_header(name.replace('_', '-'), str(value))
            self.end_headers()
            if self.command == 'GET':
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split('?')[0]
            files = sorted(folder.iterdir())
            wanted = folder / path.rsplit('/', 1)[-1]
            if '/tree/' in path:
                rows = [
                    {'type': 'file', 'path': file.name, 'size': file.stat().st_size, 'oid': 'b' * 40} for file in files
                ]
                self.answer(200, json.dumps(rows).encode(), Content_Type='application/json')
            elif path.startswith('/api/models/someone/fake'):
                about = {
                    'id': 'someone/fake',
                    'sha': COMMIT,
                    'siblings': [{'rfilename': file.name} for file in files],
                }
                self.answer(200, json.dumps(about).encode(), Content_Type='application/json')
            elif '/resolve/' in path and wanted.exists():
                body = wanted.read_bytes()
                self.answer(200, body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(body).hexdigest()}"')
            else:
                self.answer(404, X_Error_Code='RepoNotFound')

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f'http://127.0.0.1:{server.server_port}'
    yield folder, {'HF_ENDPOINT': endpoint, 'HF_HOME': str(tmp_path / 'cache')}, server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_a_model_is_fetched_once_and_then_needs_no_network(hub, tmp_path, file):
    import torch
    from safetensors.torch import load_file

    folder, env, server = hub
    if file == 'pytorch_model.bin':
        torch.save(load_file(folder / 'model.safetensors'), folder / file)
        (folder / 'model.safetensors').unlink()
    command = ('sample.py', '--init_from=someone/fake', '--start=a cat', '--max_new_tokens=5', '--device=cpu')
    first = run_script(*command, cwd=tmp_path, env=env)
    assert first.returncode == 0, first.stderr
    assert not list((tmp_path / 'cache').rglob('README.md'))
    server.shutdown()
    server.server_close()
    second = run_script(*command, cwd=tmp_path, env=env)
    assert (second.returncode, second.stdout) == (0, first.stdout)


def test_a_name_that_the_hub_does_not_know(hub, tmp_path):
    process = run_script('sample.py', '--init_from=someone/else', cwd=tmp_path, env=hub[1])
    assert_friendly_error(process, "'someone/else'", 'no model of that name on the hub')


def test_a_cache_that_another_program_filled_in_part_is_completed(hub, tmp_path):
    """transformers' AutoModel fetches no tokenizer; the one that the model has must not be guessed."""
    folder, env, _ = hub
    snapshot = tmp_path / 'cache' / 'hub' / 'models--someone--fake' / 'snapshots' / COMMIT
    snapshot.mkdir(parents=True)
    for file in ('config.json', 'model.safetensors'):
        shutil.copy(folder / file, snapshot / file)
    (snapshot.parent.parent / 'refs').mkdir()
    (snapshot.parent.parent / 'refs' / 'main').write_text(COMMIT)
    process = run_script('sample.py', '--init_from=someone/fake', '--start=a cat', cwd=tmp_path, env=env)
    assert process.returncode == 0, process.stderr
    assert (snapshot / 'tokenizer.json').exists()
