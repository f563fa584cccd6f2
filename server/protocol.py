"""HTTP, as uvicorn speaks it, on a bounded number of connections, each of which has to send its request soon."""

import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512  # at a time
REQUEST_SECONDS = 10  # within which the head of a request must have come
REFUSAL = b'HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'


class BoundedProtocol(H11Protocol):
    """One connection."""

    deadline = None  # a timer that runs while a request is awaited

    def connection_made(self, transport):
        super().connection_made(transport)
        # Otherwise the end of an answer waits for the other side to acknowledge its beginning, up to 40 ms.
        transport.get_extra_info('socket').setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(REFUSAL)
            transport.close()
        self._watch()

    def data_received(self, data):
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def connection_lost(self, error):
        super().connection_lost(error)
        if self.deadline is not None:
            self.deadline.cancel()

    def _watch(self):
        """Start the timer if a request is awaited, stop it if one has come."""
        if self.cycle is None or self.cycle.response_complete:
            self.deadline = self.deadline or self.loop.call_later(REQUEST_SECONDS, self.transport.close)
        elif self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
