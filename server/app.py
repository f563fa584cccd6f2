"""The server as an application: its routes, who may use them, and what is answered if something goes wrong."""

import contextlib
import functools

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from server import chats, completions, explore, tokens
from server.errors import error_response
from server.security import Guard

ROUTES = {
    ('GET', '/health'): tokens.health,
    ('GET', '/v1/models'): tokens.list_models,
    ('GET', '/v1/models/{name:path}'): tokens.show_model,
    ('POST', '/v1/completions'): completions.complete,
    ('POST', '/v1/chat/completions'): chats.chat,
    ('POST', '/tokenize'): tokens.tokenize,
    ('POST', '/detokenize'): tokens.detokenize,
    ('GET', '/tokenizer_info'): tokens.describe_tokenizer,
}


def make_app(engine, settings, token=None):
    """Return the application for an engine; the settings are those of serve.py.

    token: what everybody has to send, if the server can be reached from other machines.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        engine.close()

    routes = [
        Route(path, functools.partial(answer, engine=engine), methods=[method])
        for (method, path), answer in ROUTES.items()
    ]
    return Starlette(
        routes=[*routes, *explore.routes(engine)],
        middleware=[Middleware(Guard, settings.host, token, settings.allow_origin), Middleware(ErrorAnswers)],
        exception_handlers={HTTPException: answer_http_error},
        lifespan=lifespan,
    )


class ErrorAnswers:
    """ASGI middleware that answers any exception in OpenAI's shape, and never shows a traceback."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        has_begun = False

        async def send_noted(message):
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except Exception as error:
            response = error_response(error)
            if not has_begun:  # otherwise the connection is closed, and the client sees that the answer is cut
                await response(scope, receive, send)


async def answer_http_error(request, error):
    """Answer that there is no such page, or not for this method."""
    return error_response(error)
