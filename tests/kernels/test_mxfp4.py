"""MXFP4 numbers, scales and their layout in bytes."""

import pytest
import torch
from cpu_kernels import IMPLEMENTATIONS, Implementation, kernels
from nfold.kernels import quantized
from nfold.kernels.reference import mxfp4
from torch.nn.functional import ScalingType, SwizzleType

# Of the OCP Microscaling Formats specification 1.0, in the order of the codes.
NUMBERS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_every_code_and_the_first_number_in_the_low_half() -> None:
    codes = torch.tensor([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2, dtype=torch.uint8)[None]
    for exponent in (0, 100, 127, 128, 250):
        scale = torch.tensor([[exponent]], dtype=torch.uint8)
        wanted = torch.tensor(NUMBERS * 2, dtype=torch.float64) * 2.0 ** (exponent - 127)
        got = mxfp4.dequantize(codes, scale, torch.float32)[0]
        assert torch.equal(got.double(), wanted)
        assert torch.equal(got.signbit(), torch.tensor(NUMBERS * 2).signbit())


def test_quantising_takes_the_nearest_number_and_the_even_code_of_two() -> None:
    x = torch.cat([torch.tensor([4.0]), torch.linspace(-6.5, 6.5, 1024 - 1)]).view(-1, 32).clone()
    x[:, 0] = 4.0  # every group's scale is 1
    x = x.clamp(-6.9, 6.9)
    codes, scale = mxfp4.quantize(x)
    assert (scale == 127).all()
    got = mxfp4.dequantize(codes, scale, torch.float64)
    numbers = torch.tensor(NUMBERS, dtype=torch.float64)
    assert torch.equal((got - x).abs(), (x.double()[..., None] - numbers).abs().amin(-1))
    ties = torch.tensor([4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -2.5, -5.0] + [0.0] * 20)[None]
    wanted = torch.tensor([4.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -0.0, -1.0, -2.0, -4.0] + [0.0] * 20)[None]
    assert torch.equal(mxfp4.dequantize(*mxfp4.quantize(ties), torch.float32), wanted)


@pytest.mark.parametrize(("largest", "exponent"), [(6.0, 0), (6.9, 0), (7.0, 1), (8.0, 1), (4.0, 0), (3.49, -1)])
def test_the_largest_of_a_group_sets_its_scale(largest: float, exponent: int) -> None:
    x = torch.zeros(1, 64)
    x[0, 5], x[0, 40] = -largest, largest * 2.0**-90
    assert mxfp4.quantize(x)[1].tolist() == [[127 + exponent, 127 + exponent - 90]]


def test_quantised_numbers_are_a_fixed_point_and_exact_in_bfloat16() -> None:
    codes, scale = mxfp4.quantize(random(40, 320) * torch.logspace(-20, 20, 40)[:, None])
    x = mxfp4.dequantize(codes, scale, torch.float32)
    assert torch.equal(mxfp4.dequantize(*mxfp4.quantize(x), torch.float32), x)
    assert torch.equal(mxfp4.dequantize(codes, scale, torch.bfloat16).float(), x)


def test_the_error_is_that_of_two_bits_of_mantissa() -> None:
    x = random(64, 512)
    got = mxfp4.dequantize(*mxfp4.quantize(x), torch.float32)
    assert 0.08 < (got - x).norm() / x.norm() < 0.13


def test_zeros_stay() -> None:
    codes, scale = mxfp4.quantize(torch.zeros(2, 32))
    assert not mxfp4.dequantize(codes, scale, torch.float32).any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product(implementation: Implementation, dtype: torch.dtype) -> None:
    codes, scale = mxfp4.quantize(random(96, 160, seed=1, scale=0.08))
    x, bias = random(9, 160).to(dtype), random(96, seed=2).to(dtype)
    exact = x.double() @ mxfp4.dequantize(codes, scale, torch.float64).T + bias.double()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with kernels(implementation):
        for product in (
            quantized.pack_mxfp4(codes, scale, dtype, may_round_inputs=True),
            quantized.UnpackedMxfp4(codes, scale),
        ):
            got = product(x, bias)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), exact, atol=tolerance, rtol=tolerance)


def scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    recipe_a: ScalingType,
    scale_b: torch.Tensor,
    recipe_b: ScalingType,
    swizzle_a: SwizzleType,
    swizzle_b: SwizzleType,
    *,
    output_dtype: torch.dtype,
) -> torch.Tensor:
    """What torch 2.11 to 2.13 ask of operands on gfx950, and what they give."""
    assert {recipe_a, recipe_b} == {ScalingType.BlockWise1x32}
    assert {swizzle_a, swizzle_b} == {SwizzleType.NO_SWIZZLE}
    assert a.dtype == b.dtype == torch.float4_e2m1fn_x2
    assert scale_a.dtype == scale_b.dtype == torch.float8_e8m0fnu
    assert a.is_contiguous()
    assert b.t().is_contiguous()
    assert a.shape[1] == b.shape[0]
    assert not any(size % 32 for size in (a.shape[0], 2 * a.shape[1], b.shape[1]))
    assert scale_a.numel() == a.shape[0] * 2 * a.shape[1] // 32
    assert scale_b.numel() == b.shape[1] * 2 * a.shape[1] // 32
    assert output_dtype == torch.bfloat16
    x, weight = (
        mxfp4.dequantize(codes.view(torch.uint8), scale.view(torch.uint8), torch.float64)
        for codes, scale in ((a, scale_a), (b.t(), scale_b))
    )
    return (x @ weight.T).to(output_dtype)


@pytest.mark.parametrize("num_tokens", [1, 32, 45])
def test_product_of_mxfp4_inputs(num_tokens: int) -> None:
    codes, scale = mxfp4.quantize(random(96, 160, seed=1, scale=0.08))
    x, bias = random(num_tokens, 160).bfloat16(), random(96, seed=2).bfloat16()
    rounded = mxfp4.dequantize(*mxfp4.quantize(x), torch.float64)
    exact = rounded @ mxfp4.dequantize(codes, scale, torch.float64).T + bias.double()
    got = quantized.ScaledMxfp4(codes, scale, scaled_mm)(x, bias)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, atol=2e-2, rtol=2e-2)
