"""The processes of a local cluster: all are in the session of its supervisor, which is the session's leader."""

import os
from pathlib import Path

import psutil

# As `nice` counts: a tenth of a session's usual weight.
YIELDING = 10


def let_other_sessions_first(autogroup: Path = Path("/proc/self/autogroup")) -> None:
    """From now on whoever is in another session gets a core before this session does.

    Kernels with autogroups share cores among sessions first, so `nice` says nothing between them; and a session
    with little load on a core may wait 300 ms there behind one whose engine never sleeps. Does nothing where there
    are no autogroups.
    """
    try:
        autogroup.write_text(str(YIELDING))
    except OSError:
        return


def session_processes(leader: int) -> list[psutil.Process]:
    """Living processes of this session but the leader.

    While one lives, the kernel gives the leader's id to no other process: they are its even after it died.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != leader and os.getsid(process.pid) == leader and is_alive(process):
                found.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs: it has not ended, and is not just waiting for its parent to take note."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_session(leader: int, grace_s: float = 5.0) -> list[psutil.Process]:
    """Wait for the session's processes but the leader to end by themselves, then kill what is left.

    Returns:
        Those that had to be killed.
    """
    psutil.wait_procs(session_processes(leader), timeout=grace_s)
    killed: list[psutil.Process] = []
    while stubborn := session_processes(leader):  # again, as one may start another while it is killed
        for process in stubborn:
            process.kill()
        psutil.wait_procs(stubborn, timeout=grace_s)
        killed += stubborn
    return killed
