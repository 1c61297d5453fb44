"""Commands on hosts over ssh, each with a time limit. OpenSSH and rsync do the work."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ...models.errors import HostError

CONNECT_TIMEOUT_S = 5
# ssh gives up a connection that is silent for so many times ten seconds.
ALIVE_COUNT = 3
# ssh ends with this when it is its own failure, not the command's.
SSH_FAILED = 255


class Shell(Protocol):
    def run(self, host: str, command: str, timeout_s: float, environment: Mapping[str, str] | None = None) -> str:
        """Standard output of a command in the user's login shell.

        Raises:
            HostError: the host does not answer, the command fails, or takes longer.
        """
        ...

    def copy(self, host: str, paths: Sequence[str], timeout_s: float) -> None:
        """Bring these paths of this machine to the same places there. Raises HostError."""
        ...


class Ssh:
    """The `Shell` over ssh. Host keys are not checked, as `ray up` does not either."""

    def __init__(self, user: str, key: Path, port: int) -> None:
        self._user = user
        self._options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"]
        self._options += ["-o", "ServerAliveInterval=10", "-o", f"ServerAliveCountMax={ALIVE_COUNT}"]
        self._options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        self._options += ["-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-i", str(key), "-p", str(port)]

    def run(self, host: str, command: str, timeout_s: float, environment: Mapping[str, str] | None = None) -> str:
        exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in (environment or {}).items())
        # Interactive, as most systems' ~/.bashrc ends at once otherwise, and that is where `ray` gets on the PATH.
        login = f"bash --login -i -c {shlex.quote(f'source ~/.bashrc; {exports}{command}')}"
        return _finish(host, command, ["ssh", *self._options, f"{self._user}@{host}", login], timeout_s)

    def copy(self, host: str, paths: Sequence[str], timeout_s: float) -> None:
        for path in paths:
            local = Path(path).expanduser()
            there = path.rstrip("/").removeprefix("~/")  # a relative place counts from the user's home
            if parent := Path(there).parent.as_posix():
                self.run(host, f"cd && mkdir -p {shlex.quote(parent)}", timeout_s)
            source = f"{local}/" if local.is_dir() else str(local)
            command = ["rsync", "-az", "-e", shlex.join(["ssh", *self._options]), source]
            _finish(host, f"rsync {path}", [*command, f"{self._user}@{host}:{there}"], timeout_s)


def _finish(host: str, what: str, command: Sequence[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"host {host}: `{what}` did not end within {timeout_s:g} s") from None
    except OSError as error:
        raise HostError(f"this machine cannot run {command[0]}: {error.strerror}") from None
    if done.returncode == 0:
        return done.stdout
    said = " / ".join(line for line in done.stderr.strip().splitlines() if "job control" not in line)[-400:]
    if done.returncode == SSH_FAILED:
        raise HostError(f"host {host} does not answer over ssh: {said}")
    said = said or " / ".join(done.stdout.strip().splitlines()[-3:])
    raise HostError(f"host {host}: `{what}` failed with status {done.returncode}: {said}")
