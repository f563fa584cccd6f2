"""The server of serve.py in a thread of the test's own process."""

import contextlib
import threading

import httpx2
import openai
import uvicorn

import serve
from server.app import make_app
from server.engine import Engine, NamedModel


class LiveServer:
    """A server that runs, and clients for it."""

    def __init__(self, models, limits=None, token=None, **settings):
        """models: NamedModels, or (model, tokenizer) pairs, which are called model0, model1."""
        models = [
            each if isinstance(each, NamedModel) else NamedModel(f'model{n}', *each, None)
            for n, each in enumerate(models)
        ]
        self.settings = serve.Settings(port=0, **settings)
        self.engine = Engine(models, limits)
        self.listener = serve.listen(self.settings)
        self.port = self.listener.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}'
        app = make_app(self.engine, self.settings, token)
        self.server = uvicorn.Server(serve.configure(app))
        self.openai = openai.OpenAI(base_url=f'{self.url}/v1', api_key=token or 'none', max_retries=0)
        self.http = httpx2.Client(base_url=self.url, timeout=60)

    def post(self, path, body=None, **options):
        """Return (status, the JSON of the answer) of a request."""
        response = self.http.post(path, json=body, **options)
        return response.status_code, response.json()

    def complete(self, **fields):
        """Return the answer of /v1/completions, which is not an error."""
        status, answer = self.post('/v1/completions', fields)
        assert status == 200, answer
        return answer

    def refuse(self, path='/v1/completions', **fields):
        """Return (status, the error) of a request that fails."""
        status, answer = self.post(path, fields)
        assert status >= 400, answer
        return status, answer['error']

    @contextlib.contextmanager
    def running(self):
        """Run the server in a thread; end both."""
        thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)
        thread.start()
        try:
            while not self.server.started:
                assert thread.is_alive()
            yield self
        finally:
            self.http.close()
            self.openai.close()
            self.server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


@contextlib.contextmanager
def run_live_server(models, limits=None, token=None, **settings):
    """Yield a LiveServer that runs."""
    with LiveServer(models, limits, token, **settings).running() as server:
        yield server
