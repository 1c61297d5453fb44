"""Under Triton's interpreter, against the reference."""

import pytest
import torch
from nfold.kernels.reference import rms_norm as reference
from nfold.kernels.triton import quantize_rows, rms_norm

ACCURACY = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PLACE = {torch.float32: 0, torch.bfloat16: 2**-7}  # the interpreter cuts where GPUs round to bfloat16


def random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("size", [1, 48, 64, 301])
@pytest.mark.parametrize("dtype", ACCURACY)
def test_rms_norm(num_rows: int, size: int, dtype: torch.dtype) -> None:
    x, weight = random(num_rows, size, dtype=dtype, seed=0), random(size, dtype=dtype, seed=1)
    accuracy = {"atol": ACCURACY[dtype], "rtol": ACCURACY[dtype]}
    torch.testing.assert_close(rms_norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **accuracy)
    residual = random(num_rows, size, dtype=dtype, seed=2)
    wanted, wanted_residual = reference.add_rms_norm(x, residual.clone(), weight, 1e-5)
    got, got_residual = rms_norm.add_rms_norm(x, residual, weight, 1e-5)
    assert got_residual is residual
    torch.testing.assert_close(got_residual, wanted_residual, atol=0, rtol=PLACE[dtype])
    torch.testing.assert_close(got, wanted, **accuracy)


def test_rows_may_be_a_part_of_wider_ones() -> None:
    x, weight = random(4, 100, dtype=torch.float32, seed=0)[:, 30:70], torch.ones(40)
    torch.testing.assert_close(rms_norm.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("size", [1, 48, 301])
@pytest.mark.parametrize("dtype", ACCURACY)
@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_to_fp8_is_the_norm_and_then_its_rows_rounded(
    num_rows: int, size: int, dtype: torch.dtype, fp8: torch.dtype
) -> None:
    x, weight = random(num_rows, size, dtype=dtype, seed=0), random(size, dtype=dtype, seed=1)
    residual = random(num_rows, size, dtype=dtype, seed=2)
    plain, plain_residual = rms_norm.add_rms_norm(x, residual.clone(), weight, 1e-5)
    for wanted, got in (
        (rms_norm.rms_norm(x, weight, 1e-5), rms_norm.rms_norm_to_fp8(x, weight, 1e-5, fp8)),
        (plain, rms_norm.add_rms_norm_to_fp8(x, residual, weight, 1e-5, fp8)),
    ):
        wanted_numbers, wanted_scale = quantize_rows.quantize_rows(wanted, fp8)
        numbers, scale = got
        assert numbers.dtype == fp8
        assert torch.equal(scale, wanted_scale)
        assert torch.equal(numbers.view(torch.uint8), wanted_numbers.view(torch.uint8))
    assert torch.equal(residual, plain_residual)
