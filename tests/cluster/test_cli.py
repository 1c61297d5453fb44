"""The command line without a cluster: an error is one paragraph and exit code 1, wrong usage exit code 2."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from nfold.cluster import cli
from nfold.cluster.config import NfoldConfig
from nfold.cluster.demo import demo_config
from nfold.cluster.run_state import RunState, run_directory, write_state
from nfold.deployments.config import HttpConfig


@dataclass(frozen=True)
class Outcome:
    code: object
    out: str
    err: str


Nfold = Callable[..., Outcome]


@pytest.fixture
def nfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Nfold:
    """Runs the program in this process, with a home of its own."""
    monkeypatch.setenv("NFOLD_HOME", str(tmp_path))

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["nfold", *arguments])
        with patch.dict(os.environ), pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Outcome(done.value.code or 0, out, err)

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "/nowhere.yaml"], ["/nowhere.yaml", "No such file"]),
        (["status"], ["nothing is running", "nfold serve"]),
        (["down"], ["nothing is running"]),
        (["scale", "m", "--nodes", "2"], ["nothing is running"]),
        (["baseline"], ["nothing is running"]),
        (["chat", "hello"], ["nothing is running"]),
        (["status", "--name", "other"], ["no service named other"]),
    ],
)
def test_an_error_is_one_paragraph(nfold: Nfold, arguments: list[str], words: list[str]) -> None:
    done = nfold(*arguments)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("nfold: ")
    assert len(done.err.splitlines()) == 1
    for word in words:
        assert word in done.err


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["scale", "m"], ["scale", "m", "--nodes", "0"], ["scale", "--nodes", "2"], ["serve", "a", "b"]],
)
def test_wrong_usage_is_exit_code_2(nfold: Nfold, arguments: list[str]) -> None:
    assert nfold(*arguments).code == 2


def test_help_names_every_verb(nfold: Nfold) -> None:
    done = nfold("--help")
    assert done.code == 0
    for verb in ("serve", "status", "scale", "down", "baseline", "chat", "demo"):
        assert verb in done.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [{name: a, pols: []}]", ["models[0].pols", "did you mean pools?"]),
        ("models: [", ["line 3", "not YAML"]),
        ("models: [{name: a}]\ncluster: {local: {cores_per_node: 9999}}", ["cores_per_node", "9999", "cores"]),
    ],
)
def test_a_bad_config_is_refused(nfold: Nfold, tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "nfold.yaml").write_text(text + free_ports())
    done = nfold("serve", str(tmp_path / "nfold.yaml"))
    assert done.code == 1
    for word in words:
        assert word in done.err


UNFIT = {
    "models: [{name: a, path: /nowhere}]": ["/nowhere"],
    "models: [{name: a, pools: [{tp: 3}]}]": ["models[0].pools[0].tp", "3"],
    "models: [{name: a, engine: {max_model_len: 999999}}]": ["models[0].engine.max_model_len", "999999"],
    "models: [{name: a, pools: [{accelerator: GPU}]}]": ["a--GPU", "node-0 has no GPU", "node-1 has no GPU"],
    "models: [{name: a, pools: [{num_replicas: 999}]}]": ["replica", "of 999", "CPU"],
}


def test_what_cannot_be_placed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """In one process of its own: the check imports Ray Serve, which reads its environment once."""
    paths = [tmp_path / f"{number}.yaml" for number in range(len(UNFIT))]
    for path, text in zip(paths, UNFIT, strict=True):
        path.write_text(text + free_ports())
    done = subprocess.run(
        [sys.executable, "-c", SERVE_EACH, *map(str, paths)],
        env={**os.environ, "NFOLD_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("nfold: ")]
    assert done.stdout.split() == ["1"] * len(UNFIT)
    for error, words in zip(errors, UNFIT.values(), strict=True):
        for word in words:
            assert word in error
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("*/state.json"))


SERVE_EACH = """
import sys
from nfold.cluster import cli
for path in sys.argv[1:]:
    sys.argv = ["nfold", "serve", path]
    try:
        cli.main()
    except SystemExit as done:
        print(done.code)
"""


def test_a_taken_port_is_named(nfold: Nfold, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (tmp_path / "nfold.yaml").write_text(f"models: [{{name: a}}]\nhttp: {{port: {port}}}")
        done = nfold("serve", str(tmp_path / "nfold.yaml"))
    assert done.code == 1
    assert f"http.port: nothing can listen on 127.0.0.1:{port}" in done.err


def test_a_running_service_is_not_started_again(nfold: Nfold, tmp_path: Path) -> None:
    _record(tmp_path, "127.0.0.1:1")
    done = nfold("serve")
    assert done.code == 1
    assert "a service named nfold is running already" in done.err


@pytest.mark.parametrize(
    "arguments", [["status"], ["down"], ["scale", "nfold-sums", "--nodes", "2"], ["baseline"]], ids=lambda a: a[0]
)
def test_a_cluster_that_does_not_answer_is_named(nfold: Nfold, tmp_path: Path, arguments: list[str]) -> None:
    port = _free_port()
    _record(tmp_path, f"127.0.0.1:{port}")
    done = nfold(*arguments)
    assert done.code == 1
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in done.err


def test_an_api_that_does_not_answer_is_named(nfold: Nfold, tmp_path: Path) -> None:
    port = _free_port()
    config = NfoldConfig.default().model_copy(update={"http": HttpConfig(port=port)})
    write_state(run_directory(tmp_path, "nfold"), RunState(config=config, address="auto", environment={}))
    done = nfold("chat", "hello")
    assert done.code == 1
    assert f"the API at http://127.0.0.1:{port}/v1 does not answer" in done.err


def test_joining_a_cluster_that_is_not_there_leaves_nothing(nfold: Nfold, tmp_path: Path) -> None:
    address = f"127.0.0.1:{_free_port()}"
    (tmp_path / "nfold.yaml").write_text(f"models: [{{name: a}}]\ncluster: {{address: '{address}'}}")
    done = nfold("serve", str(tmp_path / "nfold.yaml"))
    assert done.code == 1
    assert f"no Ray cluster answers at {address}" in done.err
    assert "nothing is running" in nfold("status").err


def test_the_demo_takes_free_ports_beside_those_that_are_taken() -> None:
    usual = NfoldConfig.default()
    assert demo_config(lambda host, port: True).http == usual.http
    config = demo_config(lambda host, port: port not in (8000, 8001, 9400))
    assert (config.http.port, config.metrics.port) == (8002, 9401)
    assert config.name != usual.name


def _record(home: Path, address: str) -> None:
    state = RunState(config=NfoldConfig.default(), address=address, environment={})
    write_state(run_directory(home, "nfold"), state)


def free_ports() -> str:
    return f"\nhttp: {{port: {_free_port()}}}\nmetrics: {{port: {_free_port()}}}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
