"""The server as an application: its routes, who may use them, and what is answered if something goes wrong."""

import contextlib

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from server import explore
from server.errors import error_response
from server.security import Guard


def make_app(engine, settings, token=None):
    """Return the application for an engine; the settings are those of serve.py.

    token: what everybody has to send, if the server can be reached from other machines.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        engine.close()

    return Starlette(
        routes=[Route('/health', health), *explore.routes(engine)],
        middleware=[Middleware(Guard, settings.host, token, settings.allow_origin)],
        exception_handlers={HTTPException: answer_error, Exception: answer_error},
        lifespan=lifespan,
    )


async def health(request):
    """Answer that the server is there."""
    return JSONResponse({'status': 'ok'})


async def answer_error(request, error):
    """Answer with an error in OpenAI's shape."""
    return error_response(request, error)
