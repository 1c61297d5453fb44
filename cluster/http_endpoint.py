"""The observer's HTTP endpoint: `/metrics` for Prometheus, `/status.json` for `nfold status`."""

import json
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from ..models.errors import StateError
from .metrics import ServiceCollector
from .observer import ServiceReport
from .status_page import status_json

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """A line per scrape helps nobody."""


class HttpEndpoint:
    """Listens from construction to `close`, in threads of its own.

    Args:
        report: called per request, from any thread.
        port: 0 takes a free one; see `url`.
        simulated: models whose engines are simulated.

    Raises:
        StateError: the address is taken.
    """

    def __init__(
        self, report: Callable[[], ServiceReport], host: str, port: int, simulated: Collection[str] = ()
    ) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(ServiceCollector(report, simulated))
        app = _route(make_wsgi_app(registry), lambda: status_json(report(), simulated))
        try:
            self._server: WSGIServer = make_server(host, port, app, ThreadingWSGIServer, _QuietHandler)
        except OSError as error:
            raise StateError(f"metrics cannot listen on {host}:{port}: {error.strerror}") from error
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, name="nfold-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _route(
    metrics: Callable[["WSGIEnvironment", "StartResponse"], Iterable[bytes]], status: Callable[[], object]
) -> Callable[["WSGIEnvironment", "StartResponse"], Iterable[bytes]]:
    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/status.json":
            return _answer(start_response, HTTPStatus.OK, status())
        return _answer(start_response, HTTPStatus.NOT_FOUND, {"error": "see /metrics and /status.json"})

    return app


def _answer(start_response: "StartResponse", status: HTTPStatus, body: object) -> Iterable[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]
