"""What nfold remembers of a running service between two commands, one folder per service name.

    <home>/run/<name>/state.json       RunState
    <home>/run/<name>/lock             held by the supervisor of a local cluster while it lives
    <home>/run/<name>/supervisor.log   what it and Ray's starters said

The kernel drops the lock when the supervisor ends, however it ends: a lock that can be taken means nothing runs.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from ..models.errors import StateError
from .config import NfoldConfig
from .processes import end_session


class LocalNode(BaseModel):
    """A Ray node of a local cluster.

    Attributes:
        name: `node-0` is the head.
        node_id: Ray's, in hex.
        cores: this machine's cores that its replicas are pinned to.
        shares_cores: another node has some of the same, so the two are no measurement of two nodes.
        node_type: as Ray's autoscaler knows it, where one runs.
        instance_id: of this node alone, also among those that are gone; where an autoscaler runs.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    node_id: str
    cores: tuple[int, ...]
    shares_cores: bool = False
    node_type: str = ""
    instance_id: str = ""


class LocalRun(BaseModel):
    """The local cluster under a service.

    Attributes:
        supervisor_pid: of the process that owns the Ray nodes.
        socket: where the supervisor listens.
        nodes: the head first.
    """

    model_config = ConfigDict(frozen=True)

    supervisor_pid: int
    socket: Path
    nodes: tuple[LocalNode, ...]


class RunState(BaseModel):
    """A service that was started and not yet taken down.

    Attributes:
        address: of the Ray cluster, as `ray.init` takes it.
        environment: variables that a process needs before it imports Ray to join the cluster.
        local: None when a running Ray cluster was joined.
    """

    model_config = ConfigDict(frozen=True)

    config: NfoldConfig
    address: str
    environment: dict[str, str]
    local: LocalRun | None = None


def run_directory(home: Path, name: str) -> Path:
    """The folder of the service `name`, private to this user."""
    directory = home / "run" / name
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def try_lock(directory: Path) -> IO[bytes] | None:
    """The folder's lock, held until the file is closed; None when a supervisor holds it."""
    file = (directory / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def write_state(directory: Path, state: RunState) -> None:
    fresh = directory / "state.tmp"
    fresh.touch(mode=0o600)  # it holds the cluster's token
    fresh.write_text(state.model_dump_json(indent=2) + "\n")
    fresh.replace(directory / "state.json")


def forget_state(directory: Path) -> None:
    (directory / "state.json").unlink(missing_ok=True)


def find_run(home: Path, name: str | None) -> RunState:
    """The running service `name`, or the only one when no name is given.

    Raises:
        StateError: none runs (traces of one that died are cleaned, and the message says so), or several do and no
            name was given.
    """
    names = [name] if name else [path.name for path in sorted((home / "run").glob("*")) if _is_recorded(path)]
    if not names:
        raise StateError("nothing is running; start with `nfold serve`")
    if len(names) > 1:
        names = [each for each in names if not clean_if_dead(home / "run" / each)] or names[:1]
    if len(names) > 1:
        raise StateError(f"several services are running ({', '.join(names)}); say which one with --name")
    directory = home / "run" / names[0]
    if not _is_recorded(directory):
        raise StateError(f"no service named {names[0]} is running; start with `nfold serve`")
    if clean_if_dead(directory):
        raise StateError(
            f"the local cluster {directory.name} is gone: its supervisor ended without `nfold down`. Its traces "
            f"are cleaned now; {directory / 'supervisor.log'} may tell why. Start again with `nfold serve`"
        )
    return read_state(directory)


def check_not_running(home: Path, name: str) -> None:
    """Cleans the traces of a local cluster that died.

    Raises:
        StateError: the service runs.
    """
    directory = run_directory(home, name)
    clean_if_dead(directory)
    if _is_recorded(directory):
        raise StateError(f"a service named {name} is running already; see `nfold status`")


def clean_if_dead(directory: Path) -> bool:
    """End and remove what a dead supervisor left: most of its processes died with it, but not Ray's agents.

    Returns:
        Whether there was anything to clean.
    """
    if not _is_recorded(directory) or (local := read_state(directory).local) is None:
        return False
    lock = try_lock(directory)
    if lock is None:
        return False
    with lock:
        end_session(local.supervisor_pid, grace_s=0.0)
        shutil.rmtree(local.socket.parent, ignore_errors=True)
        forget_state(directory)
    return True


def _is_recorded(directory: Path) -> bool:
    return (directory / "state.json").exists()


def read_state(directory: Path) -> RunState:
    """What is recorded in this folder.

    Raises:
        StateError: another version of nfold wrote it.
    """
    try:
        return RunState.model_validate_json((directory / "state.json").read_text())
    except ValidationError as error:
        raise StateError(
            f"{directory / 'state.json'} is not one that this version of nfold wrote "
            f"({error.error_count()} fields differ); take the service down with the version that started it, "
            "or remove the file"
        ) from None


def auth_token(home: Path) -> str:
    """The token of this user's local clusters, made on first use: without it, any user of this machine could run
    code through Ray's ports. One for all clusters, because Ray reads it once per process."""
    path = home / "ray_auth_token"
    if not path.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = home / f"ray_auth_token.{os.getpid()}"
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # whoever is first wins
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text()
