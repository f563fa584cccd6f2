"""The fields of a request: a JSON object of bounded size, each of whose fields is checked, none of which is ignored."""

import asyncio
import difflib
import math
import sys

from starlette.requests import ClientDisconnect

from common.json_files import describe_type, parse_json
from common.strings import shorten
from server.errors import ApiError

MAX_BYTES = 2**21  # of a body
BODY_SECONDS = 30  # within which a body must have come
MISSING = object()


async def read_fields(request, max_bytes=MAX_BYTES):
    """Return the Fields of a request's body. Raises ApiError if it is no JSON object, too large or too slow."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
        raise ApiError('the body must be JSON: send it with "Content-Type: application/json"', 415)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await read_body(request, max_bytes)
    except TimeoutError as error:
        raise ApiError(f'the body did not come within {BODY_SECONDS} seconds', 408) from error
    try:
        value = parse_json(body.decode('utf-8'))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ApiError(f'the body cannot be read: {shorten(str(error), 200)}') from error
    if not isinstance(value, dict):
        raise ApiError(f'the body must be a JSON object, not {describe_type(value)}')
    return Fields(value)


async def read_body(request, max_bytes):
    """Return the bytes of a request's body. Raises ApiError if there are more than max_bytes."""
    body = bytearray()
    too_large = ApiError(f'the body has more than {max_bytes:,} bytes', 413, code='body_too_large')
    size = request.headers.get('content-length', '')
    if size.isdecimal() and int(size[:20]) > max_bytes:
        raise too_large
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise ApiError('the connection was closed', 499) from error
    return bytes(body)


class Fields:
    """The fields of a JSON object. Each is taken by its name and checked; `finish` refuses those that nobody took.

    A field that is null counts as missing, as OpenAI's client sends it.
    """

    def __init__(self, values, inside=''):
        """inside: the name of the object and a dot, if it is itself a field."""
        self._values, self._taken, self._inside = values, set(), inside

    def take(self, name, default=MISSING):
        """Return the value of a field, whatever it is. Raises ApiError if it is missing and has no default."""
        self._taken.add(name)
        value = self._values.get(name)
        if value is not None:
            return value
        if default is MISSING:
            raise self.error(name, 'it is required')
        return default

    def number(self, name, default, low=-math.inf, high=math.inf):
        """Return a number from low to high."""
        value = self.take(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(name, f'it must be a number, not {describe_type(value)}')
        if not low <= value <= high or not abs(value) <= sys.float_info.max:
            raise self.error(name, f'{shorten(repr(value), 30)} is not between {low} and {high}')
        return value

    def integer(self, name, default, low, high):
        """Return a whole number from low to high."""
        value = self.number(name, default, low, high)
        if value is not default and value != int(value):
            raise self.error(name, f'{value} is not a whole number')
        return value if value is default else int(value)

    def flag(self, name, default=False):
        """Return true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f'it must be true or false, not {describe_type(value)}')
        return value

    def text(self, name, default=MISSING):
        """Return a text."""
        value = self.take(name, default)
        if value is not default and not isinstance(value, str):
            raise self.error(name, f'it must be a text, not {describe_type(value)}')
        return value

    def only(self, name, value):
        """Accept a field that is not supported if it has the one value that changes nothing."""
        if self.take(name, value) != value:
            raise self.error(name, f'it is not supported, unless it is {value}')

    def inner(self, name):
        """Return the Fields of an object in this one; None if it is missing."""
        value = self.take(name, None)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, f'it must be an object, not {describe_type(value)}')
        return None if value is None else Fields(value, f'{self._inside}{name}.')

    def finish(self):
        """Raise ApiError if there are fields that nobody has asked for."""
        unknown = [name for name in self._values if name not in self._taken]
        if not unknown:
            return
        similar = difflib.get_close_matches(unknown[0][:60], self._taken, n=1)
        hint = f'; did you mean {similar[0]!r}?' if similar else ''
        raise self.error(unknown[0], f'this server does not know it, or does not support it{hint}')

    def error(self, name, message):
        """Return the ApiError of a field."""
        name = shorten(f'{self._inside}{name}', 60)
        return ApiError(f'{name!r}: {message}', param=name)
