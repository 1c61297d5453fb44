"""Server-sent events, and noticing that a client has gone."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...models.errors import NfoldError
from .api import Started
from .errors import body_of
from .formats import JsonObject

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def watching_client(receive: Receive, on_gone: Callable[[], None]) -> AsyncGenerator[None]:
    """Call `on_gone` if the client goes away inside the block."""

    async def wait_until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        on_gone()

    watcher = asyncio.create_task(wait_until_gone())
    try:
        yield
    finally:
        watcher.cancel()


class EventStream(Response):
    """Streams one started request. The response begins with its first token: what fails before has a status.

    An error after that is told as an event, and the stream ends without `[DONE]`.

    Attributes:
        begun: the status is sent.
    """

    def __init__(self, started: Started) -> None:
        super().__init__()
        self._started = started
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._started.generation
        try:
            async with watching_client(receive, generation.cancel):
                async for chunks in self._started.chunks():
                    is_first, self.begun = not self.begun, True
                    if is_first:
                        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                    await _send_body(send, b"".join(map(_event, chunks)), more=True)
                    if is_first:
                        await generation.let_leave()
            if not generation.cancelled:
                await _send_body(send, DONE)
        except NfoldError as error:
            if not self.begun:
                raise
            await _send_body(send, _event(body_of(error)))
        finally:
            generation.cancel()


async def _send_body(send: Send, body: bytes, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _event(chunk: JsonObject) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
