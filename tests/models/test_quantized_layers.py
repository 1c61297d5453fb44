"""The error of one quantised layer against float64, number by number, within what the formats' mantissas allow."""

import pytest
import torch
from cpu_kernels import IMPLEMENTATIONS, Implementation, kernels
from nfold.kernels.reference import mxfp4
from nfold.models.layers.linear import ColumnLinear, Linear, Part, RowLinear
from nfold.models.parallel import TpGroup
from nfold.models.quantization.formats import Quantization, Scheme

CPU = torch.device("cpu")
INPUTS, OUTPUTS = 512, 192
# Half a unit in the last place of three bits of mantissa, and of the smallest number there is.
FP8_RELATIVE, FP8_SMALLEST = 2.0**-4, 2.0**-10


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loaded(layer: ColumnLinear | RowLinear, weight: torch.Tensor) -> Linear:
    for slot in layer.slots():
        slot.put(weight.narrow(slot.dim, slot.start, slot.stop - slot.start))
    layer.pack()
    return layer


def column(weight: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> Linear:
    parts = [Part("layer", OUTPUTS, 0, OUTPUTS)]
    quantization = Quantization.while_loading(scheme)
    layer = ColumnLinear(INPUTS, parts, bias=False, dtype=dtype, device=CPU, quantization=quantization)
    return loaded(layer, weight)


def row(weight: torch.Tensor, scheme: Scheme, rank: int, size: int) -> Linear:
    layer = RowLinear(
        "layer",
        INPUTS,
        OUTPUTS,
        TpGroup(rank, size, None, None),
        bias=False,
        dtype=torch.float32,
        device=CPU,
        quantization=Quantization.while_loading(scheme),
    )
    return loaded(layer, weight)


def fp8_error(x: torch.Tensor) -> torch.Tensor:
    """The most that rounding changes each number of rows with a scale each."""
    x = x.double().abs()
    return x * FP8_RELATIVE + x.amax(-1, keepdim=True) / 448 * FP8_SMALLEST


def mxfp4_error(weight: torch.Tensor) -> torch.Tensor:
    """A quarter of a number over a group's unit, half a unit's half below it."""
    unit = mxfp4.dequantize(torch.full((OUTPUTS, INPUTS // 2), 0x22, dtype=torch.uint8), mxfp4.quantize(weight)[1],
                            torch.float64)  # fmt: skip
    return torch.maximum(weight.double().abs() / 4, unit / 4)


def bound(x: torch.Tensor, weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    x_error = fp8_error(x) if scheme == "fp8" else torch.zeros_like(x.double())
    weight_error = fp8_error(weight) if scheme == "fp8" else mxfp4_error(weight)
    return x_error @ (weight.double().abs() + weight_error).T + x.double().abs() @ weight_error.T


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scheme", "typical"), [("fp8", 0.045), ("mxfp4", 0.13)])
def test_one_layer(scheme: Scheme, typical: float, dtype: torch.dtype, implementation: Implementation) -> None:
    weight = (random(OUTPUTS, INPUTS, seed=1) / INPUTS**0.5).to(dtype)
    x = (random(20, INPUTS, seed=2) * torch.logspace(-2, 2, 20)[:, None]).to(dtype)
    with kernels(implementation):
        got = column(weight, scheme, dtype)(x)
    assert got.dtype == dtype
    exact = x.double() @ weight.double().T
    error = (got.double() - exact).abs()
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    assert (
        error <= bound(x, weight, scheme) + rounding * exact.abs() + 1e-6 * x.double().abs().amax(1)[:, None]
    ).all()
    assert error.norm() / exact.norm() < typical
    assert error.norm() / exact.norm() > typical / 10


@pytest.mark.parametrize("scheme", ["fp8", "mxfp4"])
def test_inputs_split_over_ranks(scheme: Scheme) -> None:
    """MXFP4: the sum over ranks is that of one rank. FP8: each rank rounds its own inputs, which stays within
    the bound of one rank, as no part has a larger input than the whole."""
    weight, x = random(OUTPUTS, INPUTS, seed=1) / INPUTS**0.5, random(6, INPUTS, seed=2)
    whole = row(weight, scheme, 0, 1)(x)
    for size in (2, 4):
        shares = x.chunk(size, dim=1)
        summed = sum((row(weight, scheme, rank, size)(share) for rank, share in enumerate(shares)), torch.zeros(()))
        exact = x.double() @ weight.double().T
        assert ((summed - exact).abs() <= bound(x, weight, scheme) + 1e-5).all()
        if scheme == "mxfp4":
            torch.testing.assert_close(summed, whole, atol=1e-5, rtol=0)
