"""What a gateway's connection writes, and in how many pieces."""

import asyncio
from collections.abc import Sequence

import pytest
from nfold.deployments.http_protocol import GatewayProtocol, Shortcut, use_for_servers
from ray.serve._private.http_util import parse_disconnect_disabled_header
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

REQUEST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
PAUSE: Message = {"type": "pause"}


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


class RecordingTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def answering(messages: Sequence[Message], scopes: list[Scope] | None = None) -> ASGIApp:
    """An application that answers each request so; a pause lets the loop turn. `scopes` takes what it was called
    with."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scopes is not None:
            scopes.append(scope)
        for message in messages:
            if message is PAUSE:
                for _ in range(3):
                    await asyncio.sleep(0)
            else:
                await send(dict(message))

    return app


def writes_of(
    messages: Sequence[Message], requests: Sequence[bytes] = (REQUEST,), scopes: list[Scope] | None = None
) -> list[bytes]:
    """What a connection writes when its application answers so."""
    app = answering(messages, scopes)

    async def go() -> list[bytes]:
        config = Config(lambda: app, factory=True, log_config=None)
        config.load()
        protocol = GatewayProtocol(config, ServerState(), {})
        transport = RecordingTransport()
        protocol.connection_made(transport)
        for request in requests:
            protocol.data_received(request)
            for _ in range(50):
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        return transport.writes

    return asyncio.run(go())


def test_the_head_leaves_with_the_first_piece() -> None:
    first, second, last = writes_of([START, piece(b"one"), PAUSE, piece(b"two"), piece(b"", more=False)])
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.endswith(b"\r\n\r\n3\r\none\r\n")
    assert (second, last) == (b"3\r\ntwo\r\n", b"0\r\n\r\n")


def test_a_head_waits_for_no_body() -> None:
    head, body = writes_of([START, PAUSE, piece(b"late", more=False)])
    assert head.endswith(b"\r\n\r\n")
    assert body == b"4\r\nlate\r\n0\r\n\r\n"


def test_each_response_of_a_connection_has_its_head() -> None:
    writes = writes_of([START, piece(b"one"), PAUSE, piece(b"", more=False)], [REQUEST, REQUEST])
    heads = [write.startswith(b"HTTP/1.1 200 OK\r\n") and write.endswith(b"3\r\none\r\n") for write in writes]
    assert heads == [True, False, True, False]


def test_requests_that_come_together_are_answered_in_order() -> None:
    messages = [START, piece(b"one"), PAUSE, piece(b"", more=False)]
    assert b"".join(writes_of(messages, [REQUEST + REQUEST])) == b"".join(writes_of(messages, [REQUEST, REQUEST]))


def test_what_is_no_request_is_answered_and_closed() -> None:
    (answer,) = writes_of([], [b"nonsense\r\n\r\n"])
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_serve_does_not_watch_for_clients_that_go() -> None:
    scopes: list[Scope] = []
    writes_of([START, piece(b"", more=False)], scopes=scopes)
    headers = dict(scopes[0]["headers"])
    assert headers[b"host"] == b"h"
    assert parse_disconnect_disabled_header(headers)


def test_servers_take_this_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvicorn.config.HTTP_PROTOCOLS", protocols := {})
    monkeypatch.setattr("nfold.deployments.http_protocol.HTTP_PROTOCOLS", protocols)
    monkeypatch.setattr(GatewayProtocol, "near", None)
    use_for_servers(app := Starlette(), ["/x"])
    assert GatewayProtocol.near == (app, ["/x"])
    config = Config("nowhere:app", factory=True, log_config=None)
    config.app = lambda: None
    config.load()
    assert config.http_protocol_class is GatewayProtocol


@pytest.mark.parametrize(
    ("method", "path", "is_near"), [("POST", "/x", True), ("GET", "/x", False), ("POST", "/y", False)]
)
def test_only_posts_to_its_paths_take_the_shortcut(method: str, path: str, is_near: bool) -> None:
    near: list[Scope] = []
    far: list[Scope] = []
    shortcut = Shortcut(answering([], near), ["/x"], answering([], far))
    asyncio.run(_call(shortcut, {"type": "http", "method": method, "path": path, "headers": []}))
    assert (len(near), len(far)) == ((1, 0) if is_near else (0, 1))


def test_what_takes_the_shortcut_has_a_request_id() -> None:
    shortcut = Shortcut(answering([START, piece(b"", more=False)]), ["/x"], answering([]))
    scope: Scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
    given = {**scope, "headers": [(b"x-request-id", b"mine")]}
    assert dict(asyncio.run(_call(shortcut, given))[0]["headers"])[b"x-request-id"] == b"mine"
    ids = {dict(asyncio.run(_call(shortcut, scope))[0]["headers"])[b"x-request-id"] for _ in range(2)}
    assert len(ids) == 2


async def _call(app: Shortcut, scope: Scope) -> list[Message]:
    """What it sends."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent
