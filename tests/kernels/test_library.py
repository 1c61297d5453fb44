"""How the C++ ops are built, and what happens where they cannot be."""

import logging
import shutil
import subprocess
from pathlib import Path

import pytest
from nfold.kernels.avx512 import library


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_compiled_once(tmp_path: Path) -> None:
    counting = 'test "$1" = --version && echo 1 && exit; echo x >> "$0.calls"; for last; do :; done; echo > "$last"'
    compiler = fake_compiler(tmp_path, counting)
    first, second = (
        library.build(compiler, tmp_path / "cache", has_bfloat16=True, has_byte_tables=True) for _ in range(2)
    )
    assert first == second
    assert first.exists()
    assert Path(f"{compiler}.calls").read_text() == "x\n"
    for flags in (
        {"has_bfloat16": False, "has_byte_tables": True},
        {"has_bfloat16": True, "has_byte_tables": False},
    ):
        assert library.build(compiler, tmp_path / "cache", **flags) != first


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, 'test "$1" = --version || { echo no such option >&2; exit 1; }')
    with pytest.raises(subprocess.CalledProcessError):
        library.build(compiler, tmp_path / "cache", has_bfloat16=True, has_byte_tables=True)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("flags", "compiler", "said"),
    [
        (frozenset({"sse2"}), "true", "no AVX-512"),
        (frozenset(library._NEEDED), None, "is installed"),
        (frozenset(library._NEEDED), "false", "cannot build"),
        (frozenset(library._NEEDED), "gone", "cannot build"),
    ],
)
def test_without_it_the_ops_are_torchs_and_the_log_says_why(
    flags: frozenset[str],
    compiler: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(library, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(shutil, "which", lambda _: compiler)
    with caplog.at_level(logging.INFO):
        assert library.load.__wrapped__() is None
    assert said in caplog.text
