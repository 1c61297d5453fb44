"""The HAProxy that Serve would start, without Ray: Serve's own code writes its configuration and starts it anew,
and what it sends requests to are gateways that do as a test says."""

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

from nfold.deployments.config import HttpConfig
from nfold.deployments.haproxy_config import ERROR_PAGE, error_page, mended
from nfold.deployments.ray_environment import ray_environment
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from ray_cluster import LOOPBACK, free_port

PATIENCE_S = 20.0
ENVIRONMENT = ray_environment(HttpConfig())


class FakeGateway(ThreadingHTTPServer):
    """Has each POST wait until it is released, then answers with its name, or with status 500 if that is asked. A
    POST to a path that ends with `stream` is answered in two pieces, of which only the second waits.

    Attributes:
        asked: gets the body of each POST when it comes.
        keeps_connections: false has it close one that a second POST comes by, without a word, as if it had died.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str, port: int = 0) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.name = name
        self.asked: SimpleQueue[bytes] = SimpleQueue()
        self.released = Event()
        self.keeps_connections = True
        self._connections: set[socket.socket] = set()
        self._thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self._connections.add(request)
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections break when it is killed."""

    def kill(self) -> None:
        """What the system does to a process's sockets when it ends."""
        self.shutdown()
        self.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.released.set()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeGateway  # type: ignore[assignment]
    num_posts = 0

    def do_GET(self) -> None:
        self._answer(b"success")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        whole = self.server.name.encode()
        self.num_posts += 1
        if self.num_posts > 1 and not self.server.keeps_connections:
            self.close_connection = True
            return
        if not self.path.endswith("stream"):
            self.server.asked.put(body)
            self.server.released.wait()
            self._answer(whole, 500 if body == b"error" else 200)
            return
        self._begin(2 * len(whole))
        self.wfile.write(whole)
        self.server.asked.put(body)
        self.server.released.wait()
        self.wfile.write(whole)

    def _answer(self, body: bytes, status: int = 200) -> None:
        self._begin(len(body), status)
        self.wfile.write(body)

    def _begin(self, num_bytes: int, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(num_bytes))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class MendedHAProxy(HAProxyApi):
    def __init__(self, config: HAProxyConfig, directory: Path, wait_s: int) -> None:
        super().__init__(config, config_file_path=str(directory / "haproxy.cfg"))
        self._directory = directory
        self._wait_s = wait_s
        (directory / ERROR_PAGE).write_bytes(error_page())

    def _generate_config_file_internal(self) -> None:
        super()._generate_config_file_internal()
        path = Path(self.config_file_path)
        path.write_text(mended(path.read_text(), self._directory, self._wait_s))


class HAProxyRig:
    """
    Attributes:
        url: where clients ask.
    """

    def __init__(self, directory: Path, wait_s: int) -> None:
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        config = HAProxyConfig(
            socket_path=str(directory / "admin.sock"),
            server_state_base=str(directory),
            server_state_file=str(directory / "server-state"),
            stats_port=free_port(),
            metrics_port=free_port(),
            http_options=HTTPOptions(host=LOOPBACK, port=port),
            metrics_enabled=False,
            has_received_routes=True,
            is_head=True,
            bufsize=int(ENVIRONMENT["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]),
            observe_error_limit=int(ENVIRONMENT["RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT"]),
        )
        self._runner = asyncio.Runner()
        self._haproxy = MendedHAProxy(config, directory, wait_s)
        self._gateways: list[FakeGateway] = []

    def start(self, gateways: Collection[FakeGateway]) -> None:
        self._know(gateways)
        self._runner.run(self._haproxy.start())

    def know(self, gateways: Collection[FakeGateway]) -> None:
        """As when Serve tells it of others."""
        self._know(gateways)
        self._runner.run(self._haproxy.reload())

    def stop(self) -> None:
        for gateway in self._gateways:
            gateway.kill()
        self._runner.run(self._haproxy.stop())
        self._runner.close()

    def _know(self, gateways: Collection[FakeGateway]) -> None:
        self._gateways += [each for each in gateways if each not in self._gateways]
        servers = [ServerConfig(each.name, LOOPBACK, each.server_port) for each in gateways]
        fallback = ServerConfig("serves-own-proxy", LOOPBACK, 1)
        backend = BackendConfig("http-nfold", "/", app_name="nfold", servers=servers, fallback_server=fallback)
        self._haproxy.set_backend_configs({"http-nfold": backend})


@contextmanager
def haproxy(*gateways: FakeGateway, wait_s: int = 60) -> Iterator[HAProxyRig]:
    with tempfile.TemporaryDirectory(prefix="nf-", dir="/tmp") as directory:
        rig = HAProxyRig(Path(directory), wait_s)
        rig.start(gateways)
        try:
            yield rig
        finally:
            rig.stop()
