"""Answers that take time: a stream of events, and none for a client that is gone."""

import asyncio
import contextlib

from starlette.responses import StreamingResponse

from server.errors import ApiError, describe_error, to_json


class EventStream(StreamingResponse):
    """Server-sent events, as OpenAI's: `data: ` and JSON for each thing of an async generator, `[DONE]` at the end.

    An error after the first event is sent as an event, too. The generator is closed when the client is gone.
    """

    media_type = 'text/event-stream'

    def __init__(self, things):
        super().__init__(write_events(things), headers={'X-Accel-Buffering': 'no'})

    async def stream_response(self, send):
        async with contextlib.aclosing(self.body_iterator):
            await super().stream_response(send)


async def write_events(things):
    """Yield the text of each event."""
    try:
        async with contextlib.aclosing(things):
            async for thing in things:
                yield f'data: {to_json(thing)}\n\n'
    except Exception as error:
        yield f'data: {to_json(describe_error(error)[1])}\n\n'
        return
    yield 'data: [DONE]\n\n'


async def begin(request, things):
    """Return an async generator of the same things, the first of which is there: errors before it have a status.

    Raises ApiError if the client goes away meanwhile.
    """
    first = await unless_gone(request, anext(things, None))

    async def all_things():
        async with contextlib.aclosing(things):
            if first is not None:
                yield first
            async for thing in things:
                yield thing

    return all_things()


async def until_finished(steps, count):
    """Yield the lists of Drawn of an async generator until `count` texts have ended: no turn is awaited after that."""
    async with contextlib.aclosing(steps):
        async for drawn in steps:
            yield drawn
            count -= sum(one.finish_reason is not None for one in drawn)
            if count == 0:
                break


async def unless_gone(request, work):
    """Return what an awaitable returns, or cancel it and raise ApiError if the client goes away before that."""
    work = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(wait_until_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ApiError('the connection was closed', 499)
    finally:
        for task in (work, gone):
            task.cancel()


async def wait_until_gone(request):
    """Return when the client of a request, whose body has been read, has closed the connection."""
    while (await request.receive())['type'] != 'http.disconnect':
        pass
