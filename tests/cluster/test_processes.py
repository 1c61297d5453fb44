"""What a session tells the kernel of itself."""

from pathlib import Path

from nfold.cluster.processes import YIELDING, let_other_sessions_first


def test_a_session_yields_where_the_kernel_schedules_sessions(tmp_path: Path) -> None:
    autogroup = tmp_path / "autogroup"
    autogroup.write_text("/autogroup-7 nice 0\n")
    let_other_sessions_first(autogroup)
    assert autogroup.read_text() == str(YIELDING)


def test_a_kernel_without_autogroups_is_no_error(tmp_path: Path) -> None:
    let_other_sessions_first(tmp_path / "no such folder" / "autogroup")
