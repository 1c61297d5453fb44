"""A user's shell: runs the `nfold` program with a home and ports of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

NFOLD = Path(sys.executable).parent / "nfold"
TIMEOUT_S = 200.0
COMPUTING = "[{name: sums, engine: {max_num_seqs: 8, kv_cache_bytes: 16777216}}]"


class Terminal:
    """
    Args:
        home: nfold's, an existing directory.
        cluster: the `cluster:` section of the config, as YAML on one line.
        models: the `models:` section.
    """

    def __init__(self, home: Path, cluster: str, models: str = COMPUTING) -> None:
        self.home = home
        self.config = home / "nfold.yaml"
        self.config.write_text(
            f"models: {models}\n"
            f"cluster: {cluster}\n"
            f"http: {{port: {free_port()}}}\n"
            f"metrics: {{port: {free_port()}}}\n"
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [NFOLD, *arguments],
            env={**os.environ, "NFOLD_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        """Standard output of a command that succeeds."""
        return finish(self.start(*arguments))

    def refuse(self, *arguments: str) -> str:
        """Standard error of a command that fails as it should: with one paragraph."""
        _, err = (process := self.start(*arguments)).communicate(timeout=TIMEOUT_S)
        assert process.returncode == 1, err
        assert "Traceback" not in err, err
        return err

    def status(self) -> dict[str, Any]:
        return json.loads(self.run("status", "--json"))

    def is_up(self) -> bool:
        """Whether a service was started and not taken down."""
        return (self.home / "run" / "nfold" / "state.json").exists()


def finish(process: "subprocess.Popen[str]") -> str:
    """Standard output of a command that succeeds."""
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return out


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
