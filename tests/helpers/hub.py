"""A local server that answers like the Hugging Face hub, to download models from and push them to."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from contextlib import contextmanager

COMMIT = 'a' * 40
TOKEN = 'hf_thisIsASecretThatNobodyShouldSee'


@contextmanager
def hub_server(root, cache, user='someone'):
    """Serve the models and datasets in root/<user>/<name>/; yield the server and the environment that points to it.

    Pushed files appear in the same folders. server.requests: (method, path, token) of every request; server.created:
    the request that created each model; server.commits: the last commit of each; server.ranges: from where on the rest
    of files was asked for. A test may set server.revisions: (model, revision) -> (commit, folder); server.gated and
    server.private: models that need TOKEN; server.cuts: file -> after how many bytes the connection is cut, for each
    answer with it.
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

        def revision_of(self, path, name):
            """Return the commit and the folder that a path asks for; (None, None) if there is no such revision."""
            newest = self.server.commits.get(name, COMMIT), root / name
            asked = re.search(r'/(?:revision|resolve|tree)/(refs/pr/\d+|[^/]+)', path)
            if not asked or asked[1] in ('main', newest[0]):
                return newest
            of_model = [found for (of, _), found in self.server.revisions.items() if of == name]
            by_commit = {commit: (commit, folder) for commit, folder in of_model}
            return self.server.revisions.get((name, asked[1])) or by_commit.get(asked[1], (None, None))

        def do_GET(self):
            may_read = self.note() == TOKEN
            path = urllib.parse.unquote(self.path.split('?')[0])
            model = re.match(r'/(?:api/models/|api/datasets/|datasets/)?([^/]+/[^/]+)', path)
            name = model[1] if model else 'nothing'
            commit, folder = self.revision_of(path, name)
            if not (root / name).is_dir() or (name in self.server.private and not may_read):
                self.answer(401, X_Error_Code='RepoNotFound')  # the hub does not tell which of the two
                return
            if folder is None:
                self.answer(404, X_Error_Code='RevisionNotFound')
                return
            files = sorted(folder.iterdir())
            wanted = folder / path.rsplit('/', 1)[-1]
            if '/resolve/' in path and name in self.server.gated and not may_read:
                self.answer(401, X_Error_Code='GatedRepo')
            elif '/tree/' in path:
                kinds = [
                    {'type': 'file', 'path': file.name, 'size': file.stat().st_size, 'oid': 'b' * 40} for file in files
                ]
                self.answer(200, kinds)
            elif path.startswith(('/api/models/', '/api/datasets/')):
                about = {'id': name, 'sha': commit}
                about['private'] = self.server.created.get(name, {}).get('visibility') == 'private'
                self.answer(200, about | {'siblings': [{'rfilename': file.name} for file in files]})
            elif '/resolve/' in path and wanted.exists():
                self.send_file(wanted, commit)
            else:
                self.answer(404, X_Error_Code='EntryNotFound')

        def send_file(self, path, commit):
            """Send a file, or the rest of it; cut the connection if the test asks for that."""
            body = path.read_bytes()
            headers = {'X_Repo_Commit': commit, 'ETag': f'"{hashlib.sha256(body).hexdigest()}"'}
            first, _, last = self.headers.get('Range', 'bytes=0-').removeprefix('bytes=').partition('-')
            start, end = int(first), min(int(last or len(body)) + 1, len(body))
            is_part = (start, end) != (0, len(body))
            if is_part:
                self.server.ranges.append(start)
                headers['Content_Range'] = f'bytes {start}-{end - 1}/{len(body)}'
            body = body[start:end]
            cuts = self.server.cuts.get(path.name) if self.command == 'GET' else None
            if cuts:
                self.send_response(206 if is_part else 200)
                for name, value in {'Content-Length': len(body), **headers}.items():
                    self.send_header(name.replace('_', '-'), str(value))
                self.end_headers()
                self.wfile.write(body[: cuts.pop(0)])
                self.close_connection = True
            else:
                self.answer(206 if is_part else 200, body, **headers)

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
    server.ranges = []
    server.revisions, server.gated, server.private, server.cuts = {}, set(), set(), {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, {'HF_ENDPOINT': server.endpoint, 'HF_HOME': str(cache), 'HF_HUB_DISABLE_XET': '1'}
    finally:
        server.shutdown()
        server.server_close()


def mode_of(path):
    """Return how the hub takes a file: a large one separately, a small one inside the commit."""
    return 'lfs' if path.endswith('.safetensors') else 'regular'
