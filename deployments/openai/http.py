"""The OpenAI API over HTTP, as an ASGI application."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ...models.errors import BodyTooLargeError, EngineError, NfoldError, RequestError
from .api import OpenAIApi, Started
from .errors import body_of, headers_of, status_of
from .formats import JsonObject
from .sse import EventStream, watching_client

Endpoint = Callable[[Request], Awaitable[Response]]

CLIENT_GONE_STATUS = 499  # nobody reads it; it keeps logs honest


def build_http_app(api: OpenAIApi, is_ready: Callable[[], bool], max_body_bytes: int) -> "HttpApp":
    """All routes.

    Args:
        is_ready: whether any replica can take a request, for `/health`.
        max_body_bytes: a longer body is refused with 413.
    """
    completions = _Completions(api, max_body_bytes)

    def list_models(_: Request) -> Response:
        return _json(api.model_list())

    def get_model(request: Request) -> Response:
        return _json(api.model_object(request.path_params["name"]))

    def health(_: Request) -> Response:
        ready = is_ready()
        return _json({"status": "ok" if ready else "no replica is ready"}, 200 if ready else 503)

    posts: dict[str, Endpoint] = {
        "/v1/chat/completions": completions.chat,
        "/v1/completions": completions.complete,
    }
    return HttpApp(
        posts,
        routes=[
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()),
            Route("/v1/models", _in_loop(list_models)),
            Route("/v1/models/{name:path}", _in_loop(get_model)),
            Route("/health", _in_loop(health)),
        ],
        exception_handlers={NfoldError: _tell_error, HTTPException: _tell_http_error, Exception: _tell_bug},
    )


class HttpApp(Starlette):
    """Starlette, but `posts` (endpoints by path) go without its layers, which cost each chunk of a stream."""

    def __init__(self, posts: Mapping[str, Endpoint], **settings: Any) -> None:
        super().__init__(**settings)
        self.posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path"):
            endpoint = self.posts.get(scope["path"])
        if endpoint is None:
            await super().__call__(scope, receive, send)
        else:
            await _post(endpoint, Request(scope, receive), scope, receive, send)


async def _post(endpoint: Endpoint, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
    """Errors are told as Starlette would by the handlers below, unless the response has begun."""
    response: Response | None = None
    try:
        response = await endpoint(request)
        await response(scope, receive, send)
    except Exception as error:
        if response is not None and not (isinstance(response, EventStream) and not response.begun):
            raise
        if isinstance(error, NfoldError):
            await _tell_error(request, error)(scope, receive, send)
        else:
            await _tell_bug(request, error)(scope, receive, send)
            raise


class _Completions:
    """The two routes that make tokens."""

    def __init__(self, api: OpenAIApi, max_body_bytes: int) -> None:
        self._api = api
        self._max_body_bytes = max_body_bytes

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, self._api.start_chat)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, self._api.start_completion)

    async def _answer(self, request: Request, start: Callable[[bytes], Awaitable[Started]]) -> Response:
        try:
            started = await start(await read_body(request, self._max_body_bytes))
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE_STATUS)
        if started.request.stream:
            return EventStream(started)
        try:
            async with watching_client(request.receive, started.generation.cancel):
                response = await started.response()
            if started.generation.cancelled:
                return Response(status_code=CLIENT_GONE_STATUS)
            return _json(response)
        finally:
            started.generation.cancel()


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """The body, of which no more than `max_body_bytes` is ever kept.

    Raises:
        BodyTooLargeError: by its Content-Length, or when more comes than that.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit():
        raise RequestError(f"Content-Length: got {announced!r}; expected a number of bytes")
    parts: list[bytes] = []
    num_bytes = int(announced)
    if num_bytes <= max_body_bytes:
        num_bytes = 0
        async for part in request.stream():
            num_bytes += len(part)
            if num_bytes > max_body_bytes:
                break
            parts.append(part)
    if num_bytes > max_body_bytes:
        raise BodyTooLargeError(f"the body is over the limit of {max_body_bytes} bytes")
    return b"".join(parts)


def _in_loop(endpoint: Callable[[Request], Response]) -> Endpoint:
    """Starlette would give a plain function a thread."""

    async def run(request: Request) -> Response:
        return endpoint(request)

    return run


def _json(content: JsonObject, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def _tell_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, NfoldError)
    return _json(body_of(error), status_of(error), headers_of(error))


def _tell_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = RequestError(f"{request.method} {request.url.path}: {error.detail}")
    return _json(body_of(told), error.status_code, dict(error.headers or {}))


def _tell_bug(_: Request, error: Exception) -> Response:
    return _json(body_of(EngineError(f"an error in nfold: {type(error).__name__}")), 500)
