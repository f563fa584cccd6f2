"""Who may ask the server: nobody's web page, and on a network only whoever has the token."""

import ipaddress
import socket
from urllib.parse import urlsplit

import pytest
from helpers.live_server import run_live_server
from helpers.models import random_gpt
from helpers.tokenizers import PROSE

import serve
from common.errors import UserError
from lm.tokenizer import train_bpe

TOKEN = 'secret-token'


@pytest.fixture(scope='module')
def model():
    return random_gpt(vocab_size=304, n_ids=300), train_bpe([PROSE], 300)


@pytest.fixture(scope='module')
def server(model):
    with run_live_server([model]) as server:
        yield server


@pytest.fixture(scope='module')
def open_server(model):
    with run_live_server([model], token=TOKEN, host='127.0.0.1', allow_origin='https://class.example') as server:
        yield server


@pytest.mark.parametrize(
    ('headers', 'status'),
    [
        ({}, 200),
        ({'Host': 'localhost:1'}, 200),
        ({'Host': '[::1]:8000'}, 200),
        ({'Host': 'evil.example'}, 403),
        ({'Host': '127.0.0.1.evil.example'}, 403),
        ({'Host': '192.168.1.7'}, 403),
        ({'Host': '['}, 403),
        ({'Host': ''}, 403),
        ({'Origin': 'http://evil.example'}, 403),
        ({'Origin': 'null'}, 403),
        ({'Origin': 'https://localhost', 'Host': 'localhost'}, 403),
        ({'Origin': 'http://localhost:8', 'Host': 'localhost:8'}, 200),
        ({'Sec-Fetch-Site': 'cross-site', 'Sec-Fetch-Mode': 'no-cors'}, 403),
        ({'Sec-Fetch-Site': 'cross-site', 'Sec-Fetch-Mode': 'navigate'}, 200),
        ({'Sec-Fetch-Site': 'same-origin', 'Sec-Fetch-Mode': 'cors'}, 200),
    ],
)
def test_only_this_machine_and_its_own_page_may_ask(server, headers, status):
    response = server.http.get('/health', headers=headers)
    assert response.status_code == status
    assert 'access-control-allow-origin' not in response.headers


def test_every_answer_forbids_what_a_text_could_make_a_browser_do(server):
    for path, status in (('/', 200), ('/nowhere', 404), ('/v1/completions', 405)):
        response = server.http.get(path)
        assert response.status_code == status
        policy = response.headers['content-security-policy']
        assert policy.startswith("default-src 'none'")
        assert 'unsafe' not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers['x-content-type-options'] == 'nosniff'
        assert 'server' not in response.headers
        if status != 200:
            assert response.json()['error']['type'] == 'invalid_request_error'


def test_a_form_of_a_foreign_page_cannot_pass_for_a_request(server):
    response = server.http.post('/v1/completions', content=b'{"prompt": "a"}', headers={'Content-Type': 'text/plain'})
    assert response.status_code == 415


def test_on_a_network_the_token_is_needed(open_server):
    for headers in ({}, {'Authorization': 'Bearer wrong'}, {'Authorization': 'Basic x'}, {'Cookie': '=;=\x01'}):
        assert open_server.http.get('/v1/models', headers=headers).status_code == 401
    assert open_server.http.get('/v1/models?token=é').status_code == 401
    assert open_server.openai.models.list().data[0].id == 'model0'
    response = open_server.http.get(f'/?token={TOKEN}&x=1')
    assert response.status_code == 303
    assert response.headers['location'] == '/?x=1'
    cookie = response.headers['set-cookie']
    assert 'HttpOnly' in cookie
    assert 'SameSite=strict' in cookie
    open_server.http.cookies.clear()
    cookie = cookie.partition(';')[0]
    assert open_server.http.get('/', headers={'Cookie': cookie}).status_code == 200
    assert open_server.http.get('/', headers={'Cookie': cookie, 'Origin': 'http://evil.example'}).status_code == 403
    assert open_server.http.get('/', headers={'Cookie': cookie, 'Host': '192.168.1.7:8000'}).status_code == 200
    assert open_server.http.get('/', headers={'Cookie': cookie, 'Host': 'evil.example'}).status_code == 403


def test_an_allowed_page_may_ask_and_read(open_server):
    origin = {'Origin': 'https://class.example'}
    asked = {'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'authorization'}
    response = open_server.http.options('/v1/completions', headers=origin | asked)
    assert response.status_code == 204
    assert response.headers['access-control-allow-origin'] == 'https://class.example'
    assert 'Authorization' in response.headers['access-control-allow-headers']
    response = open_server.http.get('/v1/models', headers=origin | {'Authorization': f'Bearer {TOKEN}'})
    assert response.status_code == 200
    assert response.headers['access-control-allow-origin'] == 'https://class.example'
    assert open_server.http.get('/v1/models', headers=origin).status_code == 401


@pytest.mark.parametrize('number', ['10.0.0.7', None])
@pytest.mark.parametrize('host', ['::', '0.0.0.0'])
def test_a_host_that_is_every_address_is_printed_as_a_name_and_a_number(host, number, monkeypatch):
    monkeypatch.setattr(serve, 'number_on_network', lambda: number)
    listener = serve.listen(serve.Settings(host=host, port=0))
    with listener, socket.create_connection(('127.0.0.1', listener.getsockname()[1]), timeout=5):
        addresses = serve.addresses_of(listener, host, TOKEN)
    port, names = urlsplit(addresses[0]).port, [socket.gethostname(), *([number] if number else [])]
    assert addresses == [f'http://{name}:{port}/?token={TOKEN}' for name in names]


def test_the_number_on_the_network_is_not_this_machine_for_itself_only():
    number = serve.number_on_network()
    assert number is None or not ipaddress.ip_address(number).is_loopback  # None without a network


def test_an_empty_host_is_refused():
    with pytest.raises(UserError, match='--host is empty'):
        serve.check_settings(serve.Settings(host=''))
