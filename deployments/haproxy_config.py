"""The configuration that Serve writes for HAProxy, mended for what gateways need of it.

Serve has settings for some of it, which `ray_environment.py` uses. What it has none for:

- Statistics and metrics listen on loopback only, and the admin socket is its owner's: Serve opens them to all.
- Serve need not watch for clients that go away: nfold's own handlers do, and to watch twice costs each request two
  tasks.
- A request of which nothing has been answered outlives its gateway: it is sent to another one, and where there is
  none, it waits for one (`await_gateway.lua`). What cannot be answered then is told in the API's form, with 503 and
  Retry-After, where Serve says 500. A stream that has begun ends with its gateway: nothing else knows how it goes
  on.
- Each client has connections of its own to gateways. Serve lets all clients share those that are idle, and when a
  gateway dies, all of these do: a request can meet so many that HAProxy gives up, and closes without an answer.

A new gateway has a port of its own, so Serve starts HAProxy anew with another configuration, and the old process
goes on with the requests that it has. One that finds no gateway up goes back to where it came in: the last resort
among a backend's servers is HAProxy itself, by a Unix socket on which the newest process listens. Serve's last
resort is its proxy in Python, where a request may wait without end, and each chunk of a stream passes two more
processes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..models.errors import NoGatewayError
from .openai.errors import body_of, headers_of, status_of

ERROR_PAGE = "no_gateway.http"
# To start a gateway takes some seconds, on a machine that is full some tens.
WAIT_S = 60
# How many dead gateways a request may try; also, how many a request can take along that kills them.
RETRIES = 5

_LUA = Path(__file__).with_name("await_gateway.lua")
_LOCAL_SECTIONS = ("frontend prometheus", "listen stats")
_API_SECTION = "frontend http_frontend"
_REPEATABLE = "METH_GET or { path /v1/completions /v1/chat/completions }"
_DEADLINE = "x-nfold-waits-until"
# A machine that is gone says nothing: without these, requests that it had would wait for it without end.
_VANISHED = ("option srvtcpka", "srvtcpka-idle 10s", "srvtcpka-intvl 5s", "srvtcpka-cnt 3")
_CAME_BACK = "{ so_id 2 }"  # by the listener for requests that HAProxy sends to itself

Section = tuple[str, Sequence[str]]  # its first line, and the others without indentation


def mended(config: str, directory: Path, wait_s: int = WAIT_S) -> str:
    """
    Args:
        config: as Serve writes it.
        directory: has the `error_page`, and takes HAProxy's socket.
        wait_s: how long a request waits for a gateway.
    """
    sections = [each for section in _sections(config) for each in _mended(*section, directory, wait_s)]
    return "".join("\n    ".join([name, *lines]) + "\n" for name, lines in sections)


def error_page() -> bytes:
    """The whole HTTP response that HAProxy gives in place of a gateway's."""
    error = NoGatewayError(f"the gateway that had the request has died, or none has been there for {WAIT_S} s")
    body = json.dumps(body_of(error))
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers_of(error)}
    head = [f"HTTP/1.1 {status_of(error)} Service Unavailable", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*head, "", body]).encode()


def _sections(config: str) -> Iterator[Section]:
    for part in re.split(r"^(?=\S)", config, flags=re.MULTILINE):
        if part:
            name, *lines = part.splitlines()
            yield name, [line.strip() for line in lines]


def _mended(name: str, lines: Sequence[str], directory: Path, wait_s: int) -> Iterator[Section]:
    itself = f"unix@{directory / 'again.sock'}"
    if name == "global":
        lines = [line.replace(" mode 666 ", " mode 600 ") for line in lines]
        lines.append(f"lua-load-per-thread {_LUA} {wait_s}")
    elif name == "defaults":
        lines = [re.sub(r"^(errorfile \d+) .*", rf"\1 {directory / ERROR_PAGE}", line) for line in lines]
    elif name in _LOCAL_SECTIONS:
        lines = [re.sub(r"^bind \*?:", "bind 127.0.0.1:", line) for line in lines]
    elif name == _API_SECTION:
        lines = [f"bind {itself} mode 600 id 2", *_api_rules(wait_s), *lines]
    elif any(line.startswith("option httpchk ") for line in lines):
        backend = name.removeprefix("backend ")
        gateways = f"{backend}-gateways"
        servers = [line.split()[1] for line in lines if line.startswith("server ") and not _is_backup(line)]
        yield f"backend {gateways}", [f"server {each} 0.0.0.0 track {backend}/{each}" for each in servers]
        others = [line for line in lines if not _is_backup(line) and not line.startswith("http-reuse ")]
        lines = [*_backend_rules(gateways), *others, f"server itself {itself} backup no-check pool-max-conn 0"]
    yield name, lines


def _api_rules(wait_s: int) -> list[str]:
    """When to stop waiting is said once, when a request first comes back; not by clients."""
    known = f"{{ req.hdr({_DEADLINE}) -m found }}"
    return [
        "http-request set-header x-request-disconnect-disabled ?1",
        f"http-request del-header {_DEADLINE} if !{_CAME_BACK}",
        f"http-request set-header {_DEADLINE} %[date({wait_s})] if {_CAME_BACK} !{known}",
    ]


def _backend_rules(gateways: str) -> list[str]:
    """A request that has come back is repeated no more, so that one that kills gateways comes to an end."""
    none_up = f"!{{ nbsrv({gateways}) ge 1 }}"
    return [
        "option http-buffer-request",
        *_VANISHED,
        "http-reuse never",
        "retry-on conn-failure empty-response",
        f"retries {RETRIES}",
        f"http-request disable-l7-retry unless {_REPEATABLE}",
        f"http-request disable-l7-retry if {_CAME_BACK}",
        f"http-request lua.await_gateway {gateways} if {none_up} !{{ path /health }}",
        f"http-request return status 503 default-errorfiles if {none_up} !{{ var(txn.gives_way) -m bool }}",
    ]


def _is_backup(line: str) -> bool:
    return line.startswith("server ") and line.split()[-1] == "backup"
