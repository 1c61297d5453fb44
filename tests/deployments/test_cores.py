"""The cores label, and leases that the kernel drops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nfold.deployments.cores import format_cores, kept_on, lease_cores, node_cores, parse_cores
from nfold.models.errors import DeviceError


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0", (0,)), ("0-3.6", (0, 1, 2, 3, 6)), ("0-3,6", (0, 1, 2, 3, 6)), ("4.2-3", (2, 3, 4)), ("1-1", (1,))],
)
def test_parse_cores(text: str, cores: tuple[int, ...]) -> None:
    assert parse_cores(text) == cores
    assert parse_cores(format_cores(cores)) == cores


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1..2"])
def test_a_bad_label_is_named(text: str) -> None:
    with pytest.raises(DeviceError, match="nfold-cores="):
        parse_cores(text)


def test_format_cores_is_a_ray_label_value() -> None:
    assert format_cores([6, 0, 1, 2, 3]) == "0-3.6"


def test_node_cores_without_a_label_are_those_of_the_process() -> None:
    assert set(node_cores(None)) == os.sched_getaffinity(0)
    assert node_cores("2.5") == (2, 5)


def test_leases_do_not_overlap_and_run_out(tmp_path: Path) -> None:
    first = lease_cores((0, 1, 2, 3, 4), 2, tmp_path)
    second = lease_cores((0, 1, 2, 3, 4), 2, tmp_path)
    assert (first.cores, second.cores) == ((0, 1), (2, 3))
    with pytest.raises(DeviceError, match=r"needs 2 cores.*\(0-4\) 1 are free"):
        lease_cores((0, 1, 2, 3, 4), 2, tmp_path)
    first.release()
    assert lease_cores((0, 1, 2, 3, 4), 3, tmp_path).cores == (0, 1, 4)


def test_a_killed_process_gives_its_cores_back(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from nfold.deployments.cores import lease_cores\n"
        f"lease = lease_cores((0,), 1, Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeviceError):
            lease_cores((0,), 1, tmp_path)
        holder.kill()
    assert lease_cores((0,), 1, tmp_path).cores == (0,)


def test_pin_process_moves_every_thread() -> None:
    core = min(os.sched_getaffinity(0))
    code = (
        "import os, threading; from nfold.deployments.cores import pin_process\n"
        "done = threading.Event(); thread = threading.Thread(target=done.wait); thread.start()\n"
        f"pin_process(({core},))\n"
        "print({tuple(os.sched_getaffinity(int(t))) for t in os.listdir('/proc/self/task')}); done.set()"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == f"{{({core},)}}"


def test_a_process_is_kept_on_cores_only_meanwhile() -> None:
    usual = os.sched_getaffinity(0)
    with kept_on([min(usual)]):
        assert os.sched_getaffinity(0) == {min(usual)}
    assert os.sched_getaffinity(0) == usual
    with kept_on([]):
        assert os.sched_getaffinity(0) == usual
