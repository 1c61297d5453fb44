"""Under Triton's interpreter: the reference's numbers and scales, bit for bit."""

import pytest
import torch
from fp8_numbers import random_fp8
from nfold.kernels.reference import fp8 as reference
from nfold.kernels.triton import quantize_rows


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "num_inputs"), [(0, 16), (1, 1), (4, 64), (3, 300)])
def test_equals_the_reference(num_rows: int, num_inputs: int, dtype: torch.dtype, fp8: torch.dtype) -> None:
    x = random_fp8(num_rows, num_inputs, dtype=fp8)
    x[:, -1:] = reference.largest(fp8)  # so that the scale is the power of two that follows
    x = (x * torch.tensor([0.25, 1.0, 2.0**40, 1.0])[:num_rows, None]).to(dtype)
    x[3:] = 0
    numbers, scale = quantize_rows.quantize_rows(x, fp8)
    wanted_numbers, wanted_scale = reference.quantize_rows(x, fp8)
    assert numbers.dtype == fp8
    assert torch.equal(scale, wanted_scale)
    assert torch.equal(numbers.float(), wanted_numbers.float())
