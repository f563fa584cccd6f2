"""Errors in the shape of OpenAI's, and which error of ours is which of theirs."""

import json
import traceback
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response

from common.errors import UserError, is_out_of_memory, on_one_line
from common.streams import print_error
from server.engine import BusyError

RETRY_AFTER = 2  # seconds


class ApiError(Exception):
    """What is wrong with a request: a status of HTTP, and a message for the person who wrote it."""

    def __init__(self, message, status=400, param=None, code=None):
        """param: the field that is wrong. code: a word for programs."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class Json(Response):
    """A value as JSON, in ASCII: a text may have lone surrogates, which have no UTF-8."""

    media_type = 'application/json'

    def render(self, content):
        return to_json(content).encode('ascii')


def to_json(value):
    """Return a value as JSON on one line, in ASCII."""
    return json.dumps(value, separators=(',', ':'), allow_nan=False)


def describe_error(error):
    """Return (status, error in OpenAI's shape) of an exception; print a line on stderr if it is the server's fault."""
    param = code = None
    if isinstance(error, ApiError):
        status, message, param, code = error.status, str(error), error.param, error.code
    elif isinstance(error, HTTPException):  # of Starlette: there is no such page
        status, message = error.status_code, error.detail
    elif isinstance(error, UserError):
        status, message = 400, on_one_line(error)
    elif isinstance(error, BusyError):
        status, message, code = 429, 'too many requests are waiting; try again in a few seconds', 'server_busy'
    elif isinstance(error, FloatingPointError):
        status, message, code = 500, on_one_line(error), 'not_finite'
    elif is_out_of_memory(error):
        status, message, code = 500, 'out of memory: ask for fewer or shorter texts', 'out_of_memory'
    else:
        status, message, code = 500, f'an error of the server: {type(error).__name__}', 'server_error'
        last = traceback.extract_tb(error.__traceback__)[-1:]
        where = ''.join(f' ({Path(frame.filename).name}:{frame.lineno})' for frame in last)
        print_error(f'error: {type(error).__name__}: {on_one_line(error)}{where}')
    kind = 'server_error' if status >= 500 else 'rate_limit_error' if status == 429 else 'invalid_request_error'
    return status, {'error': {'message': message, 'type': kind, 'param': param, 'code': code}}


def error_response(error):
    """Return the response for an exception."""
    status, body = describe_error(error)
    headers = {'Retry-After': str(RETRY_AFTER)} if status == 429 else None
    return Json(body, status, getattr(error, 'headers', None) or headers)
