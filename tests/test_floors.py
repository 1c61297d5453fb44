"""The house keeps its floors: imports go down only, and each library stands only where it may."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Longest prefix wins: models/engine stands above models.
FLOORS = {"kernels": 0, "models": 1, "models/engine": 2, "deployments": 3, "cluster": 4}
LOWEST_FLOOR_OF_LIBRARY = {"ray": 3, "zmq": 3, "msgspec": 3, "starlette": 3, "prometheus_client": 3, "typer": 4}
ONLY_FOLDER_OF_LIBRARY = {"triton": "kernels/triton"}


def house_files() -> list[Path]:
    files = [
        path for folder in ("kernels", "models", "deployments", "cluster") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 20
    return files


def floor_of(path: str) -> int:
    return max((len(prefix), floor) for prefix, floor in FLOORS.items() if (path + "/").startswith(prefix + "/"))[1]


def imported_modules(source: str, file: str) -> list[str]:
    """Dotted names that `file` (relative to the root) imports; relative ones as paths from the root."""
    names: list[str] = []
    package = Path(file).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names += [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
    return names


def broken_rules(source: str, file: str) -> list[str]:
    here = floor_of(str(Path(file).parent))
    broken: list[str] = []
    for name in imported_modules(source, file):
        top = name.split(".")[0]
        path = name.removeprefix("nfold.").replace(".", "/")
        if top == "nfold":
            broken.append(f"{file}: import {name} relatively")
        elif top in ("kernels", "models", "deployments", "cluster") and floor_of(path) > here:
            broken.append(f"{file}: floor {here} imports {name} of floor {floor_of(path)}")
        elif here < LOWEST_FLOOR_OF_LIBRARY.get(top, 0):
            broken.append(f"{file}: {top} may stand on floor {LOWEST_FLOOR_OF_LIBRARY[top]} and above only")
        elif top in ONLY_FOLDER_OF_LIBRARY and not file.startswith(ONLY_FOLDER_OF_LIBRARY[top]):
            broken.append(f"{file}: {top} may stand in {ONLY_FOLDER_OF_LIBRARY[top]} only")
    return broken


def test_imports_go_down_only() -> None:
    broken = [
        rule for path in house_files() for rule in broken_rules(path.read_text(), str(path.relative_to(ROOT)))
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/llama.py", "from .engine.protocol import Engine"),
        ("models/engine/native.py", "import ray"),
        ("deployments/router.py", "from ..cluster.ledger import Ledger"),
        ("deployments/router.py", "from ..cluster import ledger"),
        ("models/llama.py", "def f():\n    import triton.language"),
        ("kernels/ops.py", "from ..models import errors"),
        ("cluster/cli.py", "from nfold.models import errors"),
    ],
)
def test_a_broken_floor_is_seen(file: str, source: str) -> None:
    assert len(broken_rules(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/engine/native.py", "from ..registry import load_model\nfrom ...kernels.ops import rms_norm"),
        ("cluster/cli.py", "import ray\nfrom ..models.errors import NfoldError"),
        ("kernels/triton/rms_norm.py", "import triton"),
    ],
)
def test_what_is_allowed_passes(file: str, source: str) -> None:
    assert broken_rules(source, file) == []


def test_no_importable_package_named_kernels() -> None:
    """transformers takes a top-level `kernels` for the Hugging Face package of that name."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_files_keep_to_one_reason() -> None:
    """Past 400 lines a file has a second reason."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in house_files()
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}
