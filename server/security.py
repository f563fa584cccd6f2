"""Who may ask: this machine only, or whoever has the token; never a foreign page in somebody's browser.

A page of another site can make a browser send requests to this one. So the Host must be a name of this server (a name
that somebody else's DNS points to this machine is none: DNS rebinding), and the Origin, if the browser sends one, must
be this server or an allowed one.
"""

import hmac
import ipaddress
import secrets
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response

from common.strings import shorten
from server.errors import ApiError, error_response

COOKIE = 'nanogpt-probs-token'
LOCAL_NAMES = ('localhost', '127.0.0.1', '::1')
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; frame-ancestors 'none'",  # the page has one of its own
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}


def make_token():
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(24)


def is_loopback(host):
    """Return whether only programs on this machine reach this host."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_every_address(host):
    """Return whether a host, 0.0.0.0 or ::, stands for all addresses of this machine."""
    return is_address(host) and ipaddress.ip_address(host).is_unspecified


class Guard:
    """ASGI middleware that refuses who may not ask, and puts security headers on every response."""

    def __init__(self, app, host='127.0.0.1', token=None, allowed_origin=None):
        """host: that the server listens on. token: required of everybody; None on a loopback host. allowed_origin: of a
        page elsewhere that may ask, such as https://example.org.
        """
        self.app, self.token, self.allowed_origin = app, token, allowed_origin
        self.names = {*LOCAL_NAMES} if token is None else {*LOCAL_NAMES, host.lower(), *names_of_this_machine()}

    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message):
            if message['type'] == 'http.response.start':
                sent = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    sent.setdefault(name, value)
                self._allow_origin(headers, sent)
            await send(message)

        try:
            self._check_host(headers)
            self._check_origin(headers, scope['method'])
            is_preflight = scope['method'] == 'OPTIONS' and 'access-control-request-method' in headers
            response = Response(status_code=204) if is_preflight else self._check_token(scope, headers)
        except ApiError as error:
            response = error_response(error)
        await (self.app if response is None else response)(scope, receive, send_guarded)

    def _check_host(self, headers):
        """Raise ApiError unless the Host is a name of this machine, or, where a token is asked for, a number."""
        name = host_name(headers.get('host', ''))
        if name not in self.names and (self.token is None or not is_address(name)):
            raise ApiError(f'the Host {shorten(name, 60)!r} is not a name of this server', 403, code='wrong_host')

    def _check_origin(self, headers, method):
        """Raise ApiError if a page of another site sent this request."""
        origin = headers.get('origin')
        own = f'http://{headers.get("host", "")}'
        if origin not in (None, own, self.allowed_origin):
            shown = shorten(origin, 60)
            raise ApiError(f'pages of {shown} may not ask; --allow_origin={shown} would let them', 403, code='origin')
        is_link = method == 'GET' and headers.get('sec-fetch-mode') == 'navigate'
        if origin is None and headers.get('sec-fetch-site') in ('cross-site', 'same-site') and not is_link:
            raise ApiError('pages of other sites may not ask', 403, code='wrong_origin')

    def _check_token(self, scope, headers):
        """Return None if the request has the token, or what to answer if its address has it, as the first one does.

        That one sets a cookie and leads to the address without the token. Raises ApiError without the right token.
        """
        if self.token is None:
            return None
        query = parse_qsl(scope['query_string'].decode('latin-1'), keep_blank_values=True)
        in_address = next((value for name, value in query if name == 'token'), None)
        if scope['method'] == 'GET' and in_address is not None and self._is_token(in_address):
            rest = urlencode([(name, value) for name, value in query if name != 'token'])
            response = RedirectResponse(scope['path'] + (f'?{rest}' if rest else ''), 303)
            response.set_cookie(COOKIE, self.token, httponly=True, samesite='strict')
            return response
        scheme, _, credential = headers.get('authorization', '').partition(' ')
        given = (in_address, read_cookie(headers), credential.strip() if scheme.lower() == 'bearer' else None)
        if not any(one is not None and self._is_token(one) for one in given):
            raise ApiError(
                'the token is missing or wrong: open the address that serve.py printed, or send it as the API key',
                401,
                code='invalid_api_key',
            )
        return None

    def _is_token(self, text):
        return hmac.compare_digest(text.encode(), self.token.encode())

    def _allow_origin(self, headers, sent):
        """Let the pages of the allowed origin read the response."""
        if self.allowed_origin is None:
            return
        sent.add_vary_header('Origin')
        if headers.get('origin') == self.allowed_origin:
            sent['Access-Control-Allow-Origin'] = self.allowed_origin
            sent['Access-Control-Allow-Headers'] = 'Authorization, Content-Type'
            sent['Access-Control-Allow-Methods'] = 'GET, POST'
            sent['Cross-Origin-Resource-Policy'] = 'cross-origin'


def host_name(host):
    """Return the name in a Host header, without its port: 'localhost', '192.168.1.5', '::1'."""
    try:
        return urlsplit(f'//{host}').hostname or ''
    except ValueError:
        return ''


def is_address(name):
    """Return whether a name is an IP address, which no DNS can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def names_of_this_machine():
    """Return the names under which others on the network may know this machine."""
    name = socket.gethostname().lower()
    return {name, name.partition('.')[0], f'{name.partition(".")[0]}.local'}


def read_cookie(headers):
    """Return the token in a request's cookies; None if there is none."""
    try:
        cookie = SimpleCookie(headers.get('cookie', '')).get(COOKIE)
    except CookieError:
        return None
    return None if cookie is None else cookie.value
