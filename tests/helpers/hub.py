"""A local server that answers like the Hugging Face hub, to download models from and push them to."""

import base64
import hashlib
import http.server
import json
import re
import threading
from contextlib import contextmanager

COMMIT = 'a' * 40
TOKEN = 'hf_thisIsASecretThatNobodyShouldSee'


@contextmanager
def hub_server(root, cache, user='someone'):
    """Serve the models and datasets in root/<user>/<name>/; yield the server and the environment that points to it.

    Pushed files appear in the same folders. server.requests: (method, path, token) of every request; server.created:
    the request that created each model; server.commits: the last commit of each.
    """

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, status, body=b'', **headers):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            headers = {'Content-Type': 'application/json', 'Content-Length': len(body), **headers}
            for name, value in headers.items():
                self.send_header(name.replace('_', '-'), str(value))
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(body)

        def note(self):
            token = self.headers.get('Authorization', '').removeprefix('Bearer ')
            self.server.requests.append((self.command, self.path, token))
            return token

        def do_GET(self):
            self.note()
            path = self.path.split('?')[0]
            model = re.match(r'/(?:api/models/|api/datasets/|datasets/)?([^/]+/[^/]+)', path)
            folder = root / model[1] if model else root / 'nothing'
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            wanted = folder / path.rsplit('/', 1)[-1]
            if not folder.is_dir():
                self.answer(404, X_Error_Code='RepoNotFound')
            elif '/tree/' in path:
                kinds = [
                    {'type': 'file', 'path': file.name, 'size': file.stat().st_size, 'oid': 'b' * 40} for file in files
                ]
                self.answer(200, kinds)
            elif path.startswith(('/api/models/', '/api/datasets/')):
                about = {'id': model[1], 'sha': self.server.commits.get(model[1], COMMIT)}
                about['private'] = self.server.created.get(model[1], {}).get('visibility') == 'private'
                self.answer(200, about | {'siblings': [{'rfilename': file.name} for file in files]})
            elif '/resolve/' in path and wanted.exists():
                body, commit = wanted.read_bytes(), self.server.commits.get(model[1], COMMIT)
                self.answer(200, body, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(body).hexdigest()}"')
            else:
                self.answer(404, X_Error_Code='EntryNotFound')

        do_HEAD = do_GET

        def do_POST(self):
            token = self.note()
            body = self.rfile.read(int(self.headers['Content-Length']))
            if token != TOKEN:
                self.answer(401, {'error': 'Invalid username or password.'})
            elif self.path == '/api/repos/create':
                asked = json.loads(body)
                name = f'{asked.get("organization") or user}/{asked["name"]}'
                known = (root / name).exists()
                (root / name).mkdir(parents=True, exist_ok=True)
                if not known:
                    self.server.created[name] = asked
                self.answer(409 if known else 200, {'url': f'{self.server.endpoint}/{name}'})
            elif self.path == '/api/validate-yaml':  # of a model card
                self.answer(200, {'errors': [], 'warnings': []})
            elif '/preupload/' in self.path:
                files = [
                    {'path': file['path'], 'uploadMode': mode_of(file['path']), 'shouldIgnore': False, 'oid': None}
                    for file in json.loads(body)['files']
                ]
                self.answer(200, {'files': files})
            elif self.path.endswith('/info/lfs/objects/batch'):
                objects = [
                    {**wanted, 'actions': {'upload': {'href': f'{self.server.endpoint}/lfs/{wanted["oid"]}'}}}
                    for wanted in json.loads(body)['objects']
                ]
                self.answer(200, {'transfer': 'basic', 'objects': objects})
            elif '/commit/' in self.path:
                name = re.match(r'/api/models/([^/]+/[^/]+)', self.path)[1]
                for line in map(json.loads, body.splitlines()):
                    if line['key'] == 'file':
                        content = base64.b64decode(line['value']['content'])
                    elif line['key'] == 'lfsFile':
                        content = self.server.large[line['value']['oid']]
                    elif line['key'] == 'deletedFile':
                        (root / name / line['value']['path']).unlink()
                        continue
                    else:
                        continue
                    (root / name / line['value']['path']).write_bytes(content)
                commit = f'{int(self.server.commits.get(name, "0"), 16) + 1:040x}'
                self.server.commits[name] = commit
                url = f'{self.server.endpoint}/{name}/commit/{commit}'
                self.answer(200, {'commitUrl': url, 'commitOid': commit})
            else:
                self.answer(404)

        def do_PUT(self):
            self.note()
            body = self.rfile.read(int(self.headers['Content-Length']))
            self.server.large[hashlib.sha256(body).hexdigest()] = body
            self.answer(200)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.endpoint = f'http://127.0.0.1:{server.server_port}'
    server.requests, server.created, server.large, server.commits = [], {}, {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, {'HF_ENDPOINT': server.endpoint, 'HF_HOME': str(cache), 'HF_HUB_DISABLE_XET': '1'}
    finally:
        server.shutdown()
        server.server_close()


def mode_of(path):
    """Return how the hub takes a file: a large one separately, a small one inside the commit."""
    return 'lfs' if path.endswith('.safetensors') else 'regular'
