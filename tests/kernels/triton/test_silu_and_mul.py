"""Under Triton's interpreter, against the reference."""

import pytest
import torch
from nfold.kernels.reference import silu_and_mul as reference
from nfold.kernels.triton import quantize_rows, silu_and_mul


@pytest.mark.parametrize("num_rows", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 64, 150])
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_silu_and_mul(num_rows: int, size: int, dtype: torch.dtype, accuracy: float) -> None:
    x = (3 * torch.randn(num_rows, 2 * size, generator=torch.Generator().manual_seed(0))).to(dtype)
    got, wanted = silu_and_mul.silu_and_mul(x), reference.silu_and_mul(x)
    torch.testing.assert_close(got, wanted, atol=accuracy, rtol=accuracy)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's word for exp(200); a GPU has none
def test_large_and_small_gates() -> None:
    gate = torch.tensor([[-1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 200.0, 1e4]])
    got = silu_and_mul.silu_and_mul(torch.cat((gate, torch.ones_like(gate)), -1))
    torch.testing.assert_close(got, torch.nn.functional.silu(gate), atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("num_rows", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_to_fp8_is_the_activation_and_then_its_rows_rounded(
    num_rows: int, size: int, dtype: torch.dtype, fp8: torch.dtype
) -> None:
    x = (3 * torch.randn(num_rows, 2 * size, generator=torch.Generator().manual_seed(0))).to(dtype)
    wanted_numbers, wanted_scale = quantize_rows.quantize_rows(silu_and_mul.silu_and_mul(x), fp8)
    numbers, scale = silu_and_mul.silu_and_mul_to_fp8(x, fp8)
    assert numbers.dtype == fp8
    assert torch.equal(scale, wanted_scale)
    assert torch.equal(numbers.view(torch.uint8), wanted_numbers.view(torch.uint8))
