"""Whatever a client sends or does, the server answers with the right status, or not at all, and goes on."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from helpers.live_server import run_live_server
from helpers.models import random_gpt
from helpers.scripts import PROJECT
from helpers.tokenizers import PROSE

from lm.tokenizer import train_bpe
from server.engine import Limits

VALID = {
    '/v1/completions': {'prompt': 'The', 'max_tokens': 2, 'logprobs': 1, 'stop': ['x'], 'logit_bias': {'1': 2}, 'n': 1},
    '/v1/chat/completions': {'messages': [{'role': 'user', 'content': 'a'}], 'max_tokens': 2},
    '/tokenize': {'prompt': 'The', 'add_special_tokens': True},
    '/detokenize': {'tokens': [1, 2]},
    '/explore/read': {'ids': [1], 'text': 'a', 'start': False, 'since': 0, 'sampler': {'temperature': 1.0}},
    '/explore/logits': {'ids': [1, 2], 'at': 1},
    '/explore/go_on': {'ids': [1], 'count': 2, 'seed': 1},
    '/explore/beams': {'ids': [1], 'count': 2, 'width': 2},
    '/explore/prove': {'ids': [1], 'count': 2, 'k': 1},
    '/explore/respond': {'ids': [1], 'response': 'a'},
    '/explore/text_probability': {'prompt': [1], 'ids': [2]},
    '/explore/inside': {'ids': [1, 2], 'at': 1},
    '/explore/static_page': {'texts': [{'label': 'a', 'ids': [1]}], 'title': 't', 'sampler_name': 's'},
}
# What no field takes, and a few values that some do.
ODD = (
    None,
    True,
    -1,
    0,
    10**30,
    -(10**400),
    1e308,
    0.5,
    '',
    'x',
    '\ud800',
    '\x00',
    '😀' * 99,
    [],
    [[]],
    [None],
    [-1],
    {},
)
ODD += ({'a': {}}, [10**6], ['a', 1], [[1], ['a']], 'x' * 10_000, [1] * 5000)
TYPES = (
    'application/json',
    'application/json; charset=utf-8',
    'text/plain',
    'multipart/form-data',
    '',
    'application/xml',
)
N_MALFORMED = 500


@pytest.fixture(scope='module')
def model():
    return random_gpt(vocab_size=304, n_ids=300, block_size=64), train_bpe([PROSE], 300)


@pytest.fixture(scope='module')
def server(model):
    with run_live_server([model]) as server:
        yield server


def spoil(rng):
    """Return (path, content, type) of a request in which something is wrong, as far as chance has it."""
    path = rng.choice(list(VALID))
    fields = dict(VALID[path])
    for _ in range(rng.randint(1, 2)):
        match rng.randrange(3):
            case 0:
                fields[rng.choice(list(fields))] = rng.choice(ODD)
            case 1:
                fields.pop(rng.choice(list(fields)), None)
            case 2:
                fields[rng.choice(('top_k', 'best_of', 'echo', 'stream', 'model', '__proto__', ''))] = rng.choice(ODD)
        fields = fields or dict(VALID[path])
    content = json.dumps(fields).encode()
    match rng.randrange(8):
        case 0:
            content = content[: rng.randrange(len(content))]
        case 1:
            place = rng.randrange(len(content))
            content = content[:place] + rng.randbytes(rng.randint(1, 4)) + content[place + 1 :]
        case 2:
            content = rng.choice(
                (b'', b'null', b'[]', b'"a"', b'{"a": NaN}', b'[' * 50_000, b'{"a":' * 5000, b'\xff\xfe{}')
            )
    return path, content, rng.choice(TYPES) if rng.random() < 0.1 else TYPES[0]


@pytest.mark.slow
def test_five_hundred_malformed_requests_are_refused_in_one_shape(server, capfd):
    rng = random.Random(0)
    statuses = []
    for _ in range(N_MALFORMED):
        path, content, kind = spoil(rng)
        response = server.http.post(path, content=content, headers={'Content-Type': kind})
        statuses.append(response.status_code)
        assert response.status_code in (200, 400, 404, 413, 415), (path, content[:200], response.text[:200])
        if response.status_code != 200:
            error = response.json()['error']
            assert error.keys() == {'message', 'type', 'param', 'code'}
            assert error['type'] == 'invalid_request_error'
            assert error['message'] and '\n' not in error['message']
            assert len(error['message']) < 500
    assert statuses.count(400) > N_MALFORMED / 2
    assert statuses.count(200) > 0  # some odd values are valid
    assert server.http.get('/health').status_code == 200
    assert 'error' not in capfd.readouterr().err


NO_HTTP = [
    b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',  # a browser that expects TLS
    b'GET /\r\n\r\n',
    b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n',
    b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}',
    b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: localhost\r\nA: ' + b'x' * 200_000 + b'\r\n\r\n',
    b'GET /' + b'x' * 200_000 + b' HTTP/1.1\r\nHost: localhost\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n',
    b'GET /%ff%00/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n',
    b'\x00' * 1000 + b'\r\n\r\n',
]


@pytest.mark.parametrize('data', NO_HTTP)
def test_what_is_not_http_ends_its_connection_only(server, data, capfd):
    with socket.create_connection(('127.0.0.1', server.port), timeout=15) as connection:
        received = b''
        with contextlib.suppress(ConnectionError):  # what comes after the first error is not read
            connection.sendall(data)
            while part := connection.recv(2**16):
                received += part
    assert len(data) > 2**16 or received.split(b' ', 2)[1] in (b'400', b'404')
    assert server.http.get('/health').status_code == 200
    assert capfd.readouterr().err == ''


def wait_until(condition, seconds=15):
    """Fail if a condition is not met within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def post_raw(port, body, sent=None):
    """Return a connection on which a completion is asked for, of which only `sent` bytes of the body are sent."""
    content = json.dumps(body).encode()
    head = b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
    connection = socket.create_connection(('127.0.0.1', port), timeout=15)
    connection.sendall(head + f'Content-Length: {len(content)}\r\n\r\n'.encode() + content[:sent])
    return connection


LONG = {'prompt': 'The', 'max_tokens': 4000, 'ignore_eos': True}


def test_a_client_that_goes_away_stops_costing(server, capfd):
    for body, sent in ((LONG, 10), (LONG, None), (LONG | {'stream': True}, None), (LONG | {'n': 3}, None)):
        connection = post_raw(server.port, body, sent)
        if sent is None:
            wait_until(lambda: server.engine._jobs)
        if body.get('stream'):
            assert b'200 OK' in connection.recv(1000)
        connection.close()
        wait_until(lambda: not server.engine._jobs)
    assert capfd.readouterr().err == ''


def test_a_full_queue_answers_429_and_when_to_come_again(model):
    with run_live_server([model], limits=Limits(jobs=3, waiting_tokens=100)) as server:
        streams = [post_raw(server.port, LONG | {'stream': True}) for _ in range(3)]
        wait_until(lambda: len(server.engine._jobs) == 3)
        response = server.http.post('/v1/completions', json=LONG)
        assert response.status_code == 429
        assert int(response.headers['retry-after']) > 0
        assert response.json()['error']['type'] == 'rate_limit_error'
        status, error = server.refuse(prompt=[[1] * 60] * 2, max_tokens=0, echo=True, logprobs=1)
        assert status == 400
        assert '118' in error['message']
        assert server.complete(prompt=[1] * 20, max_tokens=0, echo=True, logprobs=1)  # scoring has a queue of its own
        for stream in streams:
            stream.close()
        wait_until(lambda: not server.engine._jobs)
        assert server.complete(prompt='The', max_tokens=1)


@pytest.mark.slow
def test_a_flood_is_answered_or_refused_and_its_memory_given_back(model, capfd):
    async def flood(server):
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            bodies = (
                {'prompt': 'The boat', 'max_tokens': 10},
                {'prompt': [7] * 60, 'max_tokens': 0, 'echo': True, 'logprobs': 1},
            )
            jobs = [client.post('/v1/completions', json=bodies[n % 2]) for n in range(240)]
            return [response.status_code for response in await asyncio.gather(*jobs)]

    def settle():
        wait_until(lambda: not server.engine._jobs and not server.engine._scorings)
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')

    with run_live_server([model], limits=Limits(jobs=64, prefix_bytes=2**20)) as server:
        asyncio.run(flood(server))  # what is loaded and allocated once
        before = settle()
        for _ in range(2):
            statuses = asyncio.run(flood(server))
            assert set(statuses) <= {200, 429}
            assert statuses.count(200) >= 128
        assert settle() - before < 50 * 2**20
        assert server.http.get('/health').status_code == 200
    assert capfd.readouterr().err == ''


def test_slow_senders_are_not_waited_for_and_hold_nobody_up(server, monkeypatch):
    monkeypatch.setattr('server.protocol.REQUEST_SECONDS', 0.3)
    monkeypatch.setattr('server.fields.BODY_SECONDS', 0.3)
    silent = socket.create_connection(('127.0.0.1', server.port), timeout=15)
    half = post_raw(server.port, LONG, sent=20)
    assert server.http.get('/health').status_code == 200
    assert silent.recv(100) == b''
    assert b' 408 ' in half.recv(1000)


def test_an_error_in_one_text_ends_its_request_only(server, monkeypatch):
    import server.engine as engine_module

    compute = engine_module.compute_rows
    begun, go_on = threading.Event(), threading.Event()

    def fail_at_13(taken, prefixes):
        begun.set()
        go_on.wait(10)
        if any(13 in row.inputs for _, row in taken):
            raise FloatingPointError('the model computes numbers that are not finite')
        compute(taken, prefixes)

    def score(ids):
        statuses[tuple(ids)] = server.post(
            '/v1/completions', {'prompt': ids, 'max_tokens': 0, 'echo': True, 'logprobs': 1}
        )[0]

    monkeypatch.setattr(engine_module, 'compute_rows', fail_at_13)
    statuses = {}
    texts = [[1, 2], [3, 4, 5], [3, 13, 5], [6, 7]]
    threads = [threading.Thread(target=score, args=(ids,)) for ids in texts]
    threads[0].start()
    begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(server.engine._scorings) == len(texts))
    go_on.set()
    for thread in threads:
        thread.join()
    assert statuses == {(1, 2): 200, (3, 4, 5): 200, (3, 13, 5): 500, (6, 7): 200}


@pytest.mark.slow
@pytest.mark.parametrize('busy', [False, True])
def test_ctrl_c_ends_the_server_at_once_without_a_traceback(busy):
    command = [sys.executable, PROJECT / 'serve.py', '--init_from=tiny', '--open=False', '--port=0']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    url = process.stdout.readline().split()[0]
    if busy:
        stream = post_raw(httpx2.URL(url).port, LONG | {'stream': True, 'max_tokens': 16_000})
        assert b'200 OK' in stream.recv(1000)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5
    assert process.returncode == 130
    assert 'Traceback' not in out + err
    assert err.strip() == 'interrupted'
