"""uvicorn's HTTP protocol, but what a first token need not wait for is left out.

A response's head leaves together with the first piece of its body. uvicorn writes the two apart: as segments of
their own they wake HAProxy and the client twice, and where cores are few those run before the first token is
written.

Requests for tokens go straight to the gateway's application, past Serve's own, which knows its replicas' load from
what passes it: the router knows it better. When a gateway drains they are waited for all the same, as Serve ends
uvicorn's server only once that has answered what it has. For the others Serve is told not to watch for clients that
go away, with three tasks per request: the API does that itself.
"""

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Collection
from typing import Any, ClassVar, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

NOT_WATCHED_BY_SERVE = (b"x-request-disconnect-disabled", b"?1")  # Serve's header for it, a structured boolean
REQUEST_ID = b"x-request-id"


class HeadHoldingTransport(asyncio.Transport):
    """A transport that holds a response's head back until the next write, at most to the end of the loop's turn."""

    def __init__(self, transport: asyncio.Transport, protocol: HttpToolsProtocol) -> None:
        super().__init__()
        self._transport = transport
        self._protocol = protocol
        self._begun: RequestResponseCycle | None = None
        self._head = b""

    def write(self, data: Any) -> None:
        cycle = cast("RequestResponseCycle | None", self._protocol.cycle)  # None before the first request
        if cycle is not None and cycle.response_started and cycle is not self._begun:
            self._begun = cycle
            self._flush()
            self._head = bytes(data)
            self._protocol.loop.call_soon(self._flush)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._head = b""
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._transport.get_protocol()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + len(self._head)


class Shortcut:
    """An ASGI application: POSTs to `paths` go to `near`, with a request id as from Serve; all else to `far`."""

    def __init__(self, near: ASGIApp, paths: Collection[str], far: ASGIApp) -> None:
        self._near = near
        self._paths = paths
        self._far = far
        self._name, self._numbers = uuid.uuid4().hex.encode(), itertools.count()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            return self._far(scope, receive, send)
        given = (value for name, value in scope["headers"] if name == REQUEST_ID)
        request_id = next(given, None) or b"%s-%d" % (self._name, next(self._numbers))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REQUEST_ID, request_id)]
            await send(message)

        return self._near(scope, receive, send_with_id)


class GatewayProtocol(HttpToolsProtocol):
    """One connection of a gateway's HTTP server.

    Attributes:
        near: the gateway's application, and the paths whose POSTs go straight to it.
    """

    near: ClassVar[tuple[ASGIApp, Collection[str]] | None] = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(HeadHoldingTransport(transport, self))
        if self.near is not None:
            self.app = Shortcut(*self.near, far=self.app)

    def on_headers_complete(self) -> None:
        self.headers.append(NOT_WATCHED_BY_SERVE)
        super().on_headers_complete()


def use_for_servers(app: ASGIApp, paths: Collection[str]) -> None:
    """Make this the protocol of the uvicorn servers that this process starts from now on. `app` answers POSTs to
    `paths` itself."""
    GatewayProtocol.near = app, paths
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{GatewayProtocol.__name__}"
