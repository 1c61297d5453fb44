"""FP8 numbers and products: exact where they must be, near elsewhere."""

import pytest
import torch
from cpu_kernels import IMPLEMENTATIONS, Implementation, kernels
from nfold.kernels import ops, quantized
from nfold.kernels.reference import fp8

TYPES = [torch.float8_e4m3fn, torch.float8_e4m3fnuz]
OCP = torch.float8_e4m3fn


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def all_numbers(dtype: torch.dtype) -> torch.Tensor:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    return codes[~codes.float().isnan()]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32, torch.float64])
def test_every_number_is_decoded_as_the_cast_does(dtype: torch.dtype, wide: torch.dtype) -> None:
    numbers = all_numbers(dtype)
    assert torch.equal(fp8.decode(numbers, wide), numbers.to(wide))
    assert torch.equal(fp8.decode(numbers, torch.float64), fp8.decode(numbers, wide).double())


@pytest.mark.parametrize("dtype", TYPES)
def test_encoding_takes_the_nearest_number(dtype: torch.dtype) -> None:
    reachable = all_numbers(dtype).double()
    reachable = reachable[reachable.abs() <= fp8.largest(dtype)]
    x = torch.cat([random(2000, scale=scale) for scale in (1e-3, 1.0, 300.0)])
    nearest = (x[:, None].double() - reachable).abs().amin(1)
    assert torch.equal((fp8.encode(x, dtype).double() - x.double()).abs(), nearest)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_rows_largest_becomes_the_types_largest(dtype: torch.dtype) -> None:
    x = random(5, 40) * torch.tensor([1e-30, 1e-3, 1.0, 1e4, 1e30])[:, None]
    numbers, scale = fp8.quantize_rows(x, dtype)
    assert (numbers.float().abs().amax(1) == fp8.largest(dtype)).all()
    relative = (numbers.double() * scale - x).norm(dim=1) / x.double().norm(dim=1)
    assert (relative < 0.04).all()


def test_zeros_and_tiny_rows_stay_finite() -> None:
    numbers, scale = fp8.quantize_rows(torch.tensor([[0.0, 0.0], [1e-44, 0.0]]), OCP)
    assert (numbers.float() * scale).isfinite().all()
    assert (numbers[0].float() == 0).all()


def test_values_stay_when_the_type_becomes_that_of_gfx942() -> None:
    numbers = all_numbers(OCP)
    converted, scale = fp8.to_fnuz(numbers, torch.tensor(3.0))
    assert torch.equal(converted.double() * scale, numbers.double() * 3.0)


def products() -> dict[str, type]:
    return {
        "reference": quantized.ReferenceFp8,
        "compiled": quantized.PanelFp8,
        "scaled_mm": quantized.ScaledProduct,
    }


@pytest.mark.parametrize("kind", products())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 7, 100])
def test_product(kind: str, dtype: torch.dtype, num_rows: int) -> None:
    weight, scale = fp8.quantize_rows(random(96, 160, seed=1, scale=0.08), OCP)
    x, bias = random(num_rows, 160).to(dtype), random(96, seed=2).to(dtype)
    numbers, x_scale = fp8.quantize_rows(x, OCP)
    exact = (numbers.double() * x_scale) @ (weight.double() * scale).T + bias.double()
    with kernels("compiled" if kind == "compiled" else "torch"):
        got = products()[kind](weight, scale[:, 0])(x, bias)
    # The scaled product of a GPU gives bfloat16 whatever it is fed.
    tolerance = 1e-5 if dtype == torch.float32 and kind != "scaled_mm" else 2e-2
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", products())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_come_rounded_give_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    weight, scale = fp8.quantize_rows(random(96, 160, seed=1, scale=0.08), OCP)
    x = random(7, 160).to(dtype)
    with kernels("compiled" if kind == "compiled" else "torch"):
        product = products()[kind](weight, scale[:, 0])
        rows = ops.quantize_rows(x, product.input_fp8)
        assert torch.equal(product(rows, None), product(x, None))
        assert product(rows, None).dtype == dtype


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_rows_bits_depend_neither_on_the_batch_nor_on_the_bias(implementation: Implementation) -> None:
    with kernels(implementation):
        numbers, scale = fp8.quantize_rows(random(70, 200, seed=1), OCP)
        product = quantized.pack_fp8(numbers, scale[:, 0])
        x = random(33, 200)
        together = product(x, None)
        alone = torch.cat([product(row[None], None) for row in x])
        assert torch.equal(together, alone)
        assert torch.equal(product(x, torch.zeros(70)), together)


def test_the_reference_adds_exactly_in_any_order() -> None:
    """Any order of inputs gives the same bits."""
    numbers, scale = fp8.quantize_rows(random(50, 3000, seed=1), OCP)
    x, order = random(4, 3000), torch.randperm(3000, generator=torch.Generator().manual_seed(3))
    rows = ops.quantize_rows(x, OCP)
    mixed = rows._replace(numbers_RI=rows.numbers_RI[:, order])
    straight = fp8.fp8_linear(rows, numbers, scale[:, 0], None)
    assert torch.equal(straight, fp8.fp8_linear(mixed, numbers[:, order], scale[:, 0], None))


def test_cpu_takes_the_compiled_product_or_the_reference() -> None:
    numbers, scale = fp8.quantize_rows(random(64, 64), OCP)
    with kernels("torch"):
        assert isinstance(quantized.pack_fp8(numbers, scale[:, 0]), quantized.ReferenceFp8)
