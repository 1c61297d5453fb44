"""What nfold remembers between commands, and how it notices that what it remembers is gone."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from nfold.cluster.config import NfoldConfig
from nfold.cluster.run_state import (
    LocalNode,
    LocalRun,
    RunState,
    auth_token,
    find_run,
    forget_state,
    run_directory,
    try_lock,
    write_state,
)
from nfold.models.errors import StateError


def _local_run(socket: Path, pid: int) -> LocalRun:
    nodes = (LocalNode(name="node-0", node_id="ab", cores=(0,)), LocalNode(name="node-1", node_id="cd", cores=(1,)))
    return LocalRun(supervisor_pid=pid, socket=socket, nodes=nodes)


def _write(home: Path, name: str, local: LocalRun | None = None) -> RunState:
    state = RunState(config=NfoldConfig.default(), address="127.0.0.1:1", environment={"A": "b"}, local=local)
    write_state(run_directory(home, name), state)
    return state


def test_nothing_is_running(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="nothing is running; start with `nfold serve`"):
        find_run(tmp_path, None)


def test_no_service_of_this_name(tmp_path: Path) -> None:
    _write(tmp_path, "one")
    with pytest.raises(StateError, match="no service named two"):
        find_run(tmp_path, "two")


def test_the_only_service_is_found_and_several_need_a_name(tmp_path: Path) -> None:
    state = _write(tmp_path, "one")
    assert find_run(tmp_path, None) == state
    _write(tmp_path, "two")
    with pytest.raises(StateError, match=r"\(one, two\).*--name"):
        find_run(tmp_path, None)
    assert find_run(tmp_path, "two") == state
    forget_state(run_directory(tmp_path, "two"))
    assert find_run(tmp_path, None) == state


def test_a_living_supervisor_holds_the_lock(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, "one")
    state = _write(tmp_path, "one", _local_run(tmp_path / "ray" / "socket", os.getpid()))
    lock = try_lock(directory)
    assert lock is not None
    with lock:
        assert try_lock(directory) is None
        assert find_run(tmp_path, "one") == state
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_traces_of_a_dead_supervisor_are_cleaned(tmp_path: Path) -> None:
    """Its session's processes that outlived it are ended, its files removed."""
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid)"
    leader = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    orphan = psutil.Process(int(leader.communicate()[0]))
    (tmp_path / "ray").mkdir()
    _write(tmp_path, "one", _local_run(tmp_path / "ray" / "socket", leader.pid))
    assert orphan.is_running()
    with pytest.raises(StateError, match=r"local cluster one is gone.*supervisor\.log"):
        find_run(tmp_path, None)
    orphan.wait(10)
    assert not (tmp_path / "ray").exists()
    with pytest.raises(StateError, match="nothing is running"):
        find_run(tmp_path, None)


def test_a_dead_service_does_not_hide_a_running_one(tmp_path: Path) -> None:
    state = _write(tmp_path, "living")
    _write(tmp_path, "dead", _local_run(tmp_path / "ray" / "socket", _ended_pid()))
    assert find_run(tmp_path, None) == state


def _ended_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_state_of_another_version_is_not_guessed_at(tmp_path: Path) -> None:
    (run_directory(tmp_path, "one") / "state.json").write_text('{"address": 3}')
    with pytest.raises(StateError, match="not one that this version of nfold wrote"):
        find_run(tmp_path, None)


def test_the_token_is_made_once_and_private(tmp_path: Path) -> None:
    token = auth_token(tmp_path / "home")
    assert len(token) == 64
    assert stat.S_IMODE((tmp_path / "home" / "ray_auth_token").stat().st_mode) == 0o600
    assert auth_token(tmp_path / "home") == token
