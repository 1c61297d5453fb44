"""The C++ half of the CPU kernels: compiled on this machine once, then loaded from the user's cache.

Without AVX-512 or a compiler there is none, and the ops take their torch reference.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
_BFLOAT16 = "avx512_bf16"
_BYTE_TABLES = "avx512vbmi"
_COMPILERS = ("g++", "clang++")
_COMPILE_TIMEOUT_S = 300


class Library:
    """The compiled functions, with their argument types."""

    def __init__(self, path: Path, *, has_bfloat16: bool, has_byte_tables: bool, has_amx: bool) -> None:
        self._functions = ctypes.CDLL(str(path))
        self.has_bfloat16 = has_bfloat16
        self.has_byte_tables = has_byte_tables
        self.has_amx = has_amx

    def function(
        self,
        name: str,
        *types: "type[ctypes._SimpleCData[Any]]",
        returns: "type[ctypes._SimpleCData[Any]] | None" = None,
    ) -> "ctypes._NamedFuncPointer":
        function = self._functions[name]
        function.argtypes = types
        function.restype = returns
        return function


@cache
def load() -> Library | None:
    """None where there is no AVX-512 or no compiler, and the reason in the log."""
    flags = _cpu_flags()
    if not flags.issuperset(_NEEDED):
        _log.info("CPU kernels: torch's, as this processor has no AVX-512")
        return None
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        _log.warning("CPU kernels: torch's, which are slower: none of %s is installed", ", ".join(_COMPILERS))
        return None
    has_bfloat16, has_byte_tables = _BFLOAT16 in flags, _BYTE_TABLES in flags
    folder = Path.home() / ".cache" / "nfold" / "kernels"
    try:
        path = build(compiler, folder, has_bfloat16=has_bfloat16, has_byte_tables=has_byte_tables)
        return Library(
            path, has_bfloat16=has_bfloat16, has_byte_tables=has_byte_tables, has_amx="amx_bf16" in flags
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        _log.warning("CPU kernels: torch's, which are slower: %s cannot build ours: %s", compiler, said)
        return None


def build(compiler: str, folder: Path, *, has_bfloat16: bool, has_byte_tables: bool) -> Path:
    """Compile into `folder` unless it is there already: some seconds. OSError, SubprocessError."""
    sources, headers = (sorted(_SOURCES.glob(pattern)) for pattern in ("*.cpp", "*.h"))
    options = ["-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-w", "-mtune=native", "-mfma"]
    options += [f"-m{flag}" for flag in _NEEDED[:-1]]
    options += ["-mavx512bf16"] if has_bfloat16 else []
    options += ["-mavx512vbmi"] if has_byte_tables else []
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    recipe = "\0".join([version, *options, *(p.read_text() for p in (*headers, *sources))])
    path = folder / f"avx512-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # one of the ranks that start together
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _log.info("compiling the CPU kernels with %s, once", compiler)
            unfinished = path.with_suffix(".part")
            command = [compiler, *options, *map(str, sources), "-o", str(unfinished)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMPILE_TIMEOUT_S)
            os.replace(unfinished, path)
    return path


def _cpu_flags() -> frozenset[str]:
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return frozenset()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
