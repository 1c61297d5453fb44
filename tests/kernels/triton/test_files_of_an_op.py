"""An op is four things of one name: Triton kernels, a reference, a test and cases for the benchmark."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OPS = sorted(path.stem for path in (ROOT / "kernels/triton").glob("*.py") if "@triton.jit" in path.read_text())


def test_there_are_ops() -> None:
    assert len(OPS) >= 6


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_whole(op: str) -> None:
    references = [path.read_text() for path in (ROOT / "kernels/reference").glob("*.py")]
    assert any(f"\ndef {op}(" in reference for reference in references)
    assert (ROOT / f"tests/kernels/triton/test_{op}.py").exists()
    assert f'"{op}",' in (ROOT / "benchmarks/gpu_engine_kernels.py").read_text()
    assert (ROOT / f"benchmarks/ops/{op}.py").exists()
