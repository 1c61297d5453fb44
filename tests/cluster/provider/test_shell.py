"""What ssh and rsync are asked for, and how their failures are told. Stand-ins for both record and do as told."""

import os
from pathlib import Path

import pytest
from nfold.cluster.provider.shell import Ssh
from nfold.models.errors import HostError


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    for name in ("ssh", "rsync"):
        program = tmp_path / name
        # The last argument of ssh is the remote command: a local shell runs it.
        last = 'exec bash -c "${@: -1}"' if name == "ssh" else "exit 0"
        program.write_text(
            f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/log\n[ -e {tmp_path}/down ] && exit 255\n{last}\n'
        )
        program.chmod(0o755)
    (tmp_path / ".bashrc").write_text("export GREETING=hello\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Ssh("me", tmp_path / "key", 2222)


def test_commands_see_the_login_shell_and_their_environment(shell: Ssh, tmp_path: Path) -> None:
    said = shell.run("far", "echo $GREETING $NAME", 30, {"NAME": 'it\'s "quoted" $HOME'})
    assert said.strip() == 'hello it\'s "quoted" $HOME'
    asked = (tmp_path / "log").read_text()
    assert "me@far" in asked
    assert f"-i {tmp_path}/key -p 2222" in asked


def test_a_command_that_fails_tells_what_it_said(shell: Ssh) -> None:
    with pytest.raises(
        HostError, match=r"host far: `echo no such disk >&2; exit 3` failed with status 3.*no such disk"
    ):
        shell.run("far", "echo no such disk >&2; exit 3", 30)


def test_a_host_that_does_not_answer(shell: Ssh, tmp_path: Path) -> None:
    (tmp_path / "down").touch()
    with pytest.raises(HostError, match="host far does not answer over ssh"):
        shell.run("far", "true", 30)


def test_a_command_that_hangs_is_given_up(shell: Ssh) -> None:
    with pytest.raises(HostError, match=r"did not end within 0\.2 s"):
        shell.run("far", "sleep 60", 0.2)


def test_copies_go_to_the_same_place(shell: Ssh, tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "token").touch()
    shell.copy("far", ["~/checkout", f"{tmp_path}/etc/token"], 30)
    copies = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("rsync")]
    assert copies[0].endswith(f"{tmp_path}/checkout/ me@far:checkout")
    assert copies[1].endswith(f"{tmp_path}/etc/token me@far:{tmp_path}/etc/token")
