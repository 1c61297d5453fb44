"""FP8 numbers and products: exact where they must be, near elsewhere."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
import torch.nn.functional as F
from cpu_kernels import IMPLEMENTATIONS, Implementation, kernels
from nfold.kernels import ops, quantized
from nfold.kernels.avx512 import fp8_linear, library, linear
from nfold.kernels.avx512.linear import PanelLinear
from nfold.kernels.reference import fp8

TYPES = [torch.float8_e4m3fn, torch.float8_e4m3fnuz]
OCP = torch.float8_e4m3fn
CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@contextmanager
def byte_panels() -> Generator[None]:
    with kernels("compiled"):
        if fp8_linear.fp8_products() is None:
            pytest.skip("needs AVX-512 with BF16 and VBMI")
        yield


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


def products() -> dict[str, Callable[..., ops.PackedWeight]]:
    return {
        "reference": quantized.ReferenceFp8,
        "compiled": quantized.PanelFp8.of,
        "scaled_mm": quantized.ScaledProduct,
    }


def where(kind: str) -> AbstractContextManager[None]:
    return byte_panels() if kind == "compiled" else kernels("torch")


@pytest.mark.parametrize("kind", products())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 7, 100])
def test_product(kind: str, dtype: torch.dtype, num_rows: int) -> None:
    weight, scale = fp8.quantize_rows(random(96, 160, seed=1, scale=0.08), OCP)
    x, bias = random(num_rows, 160).to(dtype), random(96, seed=2).to(dtype)
    numbers, x_scale = fp8.quantize_rows(x, OCP)
    exact = (numbers.double() * x_scale) @ (weight.double() * scale).T + bias.double()
    with where(kind):
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
    with where(kind):
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


def held_as_bfloat16(weight: torch.Tensor, scale: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The product whose sums, scales and rounding `PanelFp8` must give, of numbers that were widened before."""
    if linear.products(torch.bfloat16) is None:
        pytest.skip("products of bfloat16 are oneDNN's here")
    product = PanelLinear(fp8.decode(weight, torch.bfloat16))

    def multiply(x: ops.Fp8Rows, bias: torch.Tensor | None) -> torch.Tensor:
        y = product(fp8.decode(x.numbers_RI, torch.bfloat16), None, torch.float32)
        y.mul_(x.scale_R1).mul_(scale)
        return (y if bias is None else y.add_(bias)).to(x.dtype)

    return multiply


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)


# Rows around the tile of 6 and the block of 96, outputs around the panel of 64, inputs around a line's 4 and beyond
# one block of a panel.
@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 6, 7, 13, 64, 96, 97, 200])
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"),
    [(4, 64), (32, 48), (38, 130), (46, 1), (64, 64), (160, 65), (2202, 130), (4096, 64)],
)
def test_weights_held_as_bytes_give_the_bits_of_those_held_as_bfloat16(
    num_inputs: int, num_outputs: int, num_rows: int
) -> None:
    generator = torch.Generator().manual_seed(num_inputs + num_rows)
    codes = torch.randint(0, 256, (num_outputs, num_inputs), dtype=torch.uint8, generator=generator)
    codes.masked_fill_(codes & 0x7F == 0x7F, 0)  # NaN
    weight, scale = codes.view(OCP), torch.rand(num_outputs, generator=generator) * 1e-3
    rows = ops.quantize_rows(random(num_rows, num_inputs), OCP)
    bias = random(num_outputs, seed=3)
    with byte_panels():
        got, wanted = quantized.PanelFp8.of(weight, scale), held_as_bfloat16(weight, scale)
        for dtype in (torch.float32, torch.bfloat16):
            x = rows._replace(dtype=dtype)
            for offset in (None, bias.to(dtype)):
                assert torch.equal(bits(got(x, offset)), bits(wanted(x, offset)))


def test_inputs_may_be_odd_in_number() -> None:
    weight, x = fp8.quantize_rows(random(70, 37, seed=1), OCP)[0], random(9, 37)
    padded = F.pad(weight.view(torch.uint8), (0, 3)).view(OCP)
    with byte_panels():
        got, wanted = (quantized.PanelFp8.of(numbers, torch.ones(70)) for numbers in (weight, padded))
        assert torch.equal(got(x, None), wanted(F.pad(x, (0, 3)), None))


@pytest.mark.parametrize("num_rows", [1, 8])
def test_every_byte_is_multiplied_as_its_number(num_rows: int) -> None:
    """Each output has one byte in all its inputs; two of the outputs are NaN."""
    weight = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 64).contiguous().view(OCP)
    x = ops.quantize_rows(random(num_rows, 64), OCP)
    with byte_panels():
        got, wanted = quantized.PanelFp8.of(weight, torch.ones(256)), held_as_bfloat16(weight, torch.ones(256))
        assert torch.equal(bits(got(x, None).nan_to_num()), bits(wanted(x, None).nan_to_num()))
        one = ops.Fp8Rows(torch.eye(64)[:num_rows].to(OCP), torch.ones(num_rows, 1), torch.float32)
        y = got(one, None)[0]
    numbers = weight[:, 0].float()
    assert numbers.isnan().sum() == 2
    assert torch.equal(y.isnan(), numbers.isnan())
    assert torch.equal(y.nan_to_num(), numbers.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 15, 64, 200])
def test_compiled_rounding_gives_the_references_bits(size: int, dtype: torch.dtype) -> None:
    exponents = torch.linspace(-45, 38, 64)[:, None]
    inside = random(64, size, seed=2) * torch.logspace(-7, 0, size)
    rows = [random(64, size) * 10**exponents, inside, inside * 0, -inside * 0, (inside * 64).round() / 64]
    # The scale of rows with 448 in front is 1: all numbers and what is halfway between two.
    numbers = all_numbers(OCP)[:126].double()
    between = torch.cat([numbers, -numbers, (numbers[1:] + numbers[:-1]) / 2])
    between = torch.cat([between, between * (1 + 2**-20), between * (1 - 2**-20)]).float()
    rows += [torch.cat([torch.tensor([448.0]), row])[None, :] for row in between.split(max(1, size - 1))]
    for row in rows:
        x = row.to(dtype)
        with kernels("compiled"):
            got = ops.quantize_rows(x, OCP)
        numbers_RI, scale_R1 = fp8.quantize_rows(x, OCP)
        assert torch.equal(bits(got.scale_R1), bits(scale_R1))
        assert torch.equal(got.numbers_RI.view(torch.uint8), numbers_RI.view(torch.uint8))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_row_with_a_number_that_is_none_becomes_nan(odd: float, implementation: Implementation) -> None:
    x = random(3, 40)
    x[1, 17] = odd
    with kernels(implementation):
        numbers, scale, _ = ops.quantize_rows(x, OCP)
    values = numbers.float() * scale
    assert values[1].isnan().all()
    assert values[::2].isfinite().all()


def test_the_reference_adds_exactly_in_any_order() -> None:
    """Any order of inputs gives the same bits."""
    numbers, scale = fp8.quantize_rows(random(50, 3000, seed=1), OCP)
    x, order = random(4, 3000), torch.randperm(3000, generator=torch.Generator().manual_seed(3))
    rows = ops.quantize_rows(x, OCP)
    mixed = rows._replace(numbers_RI=rows.numbers_RI[:, order])
    straight = fp8.fp8_linear(rows, numbers, scale[:, 0], None)
    assert torch.equal(straight, fp8.fp8_linear(mixed, numbers[:, order], scale[:, 0], None))


def test_cpu_takes_the_compiled_product_or_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, scale = fp8.quantize_rows(random(64, 64), OCP)
    with kernels("torch"):
        assert isinstance(quantized.pack_fp8(numbers, scale[:, 0]), quantized.ReferenceFp8)
        assert quantized.empty_fp8(64, 64, [0], CPU) is None
    with kernels("compiled"):
        compiled = library.load()
        assert compiled is not None
        can = compiled.has_bfloat16 and compiled.has_byte_tables
        assert isinstance(quantized.pack_fp8(numbers, scale[:, 0]), quantized.PanelFp8) == can
    with kernels("compiled"):
        monkeypatch.setattr(compiled, "has_byte_tables", False)
        assert isinstance(quantized.pack_fp8(numbers, scale[:, 0]), quantized.ReferenceFp8)


@pytest.mark.parametrize("sizes", [(64, 128, 64), (128, 30), (70,)])
def test_parts_put_one_by_one_are_the_whole(sizes: tuple[int, ...]) -> None:
    numbers, scale = fp8.quantize_rows(random(sum(sizes), 42, seed=1), OCP)
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    x = random(5, 42)
    with byte_panels():
        panels = quantized.empty_fp8(len(numbers), 42, firsts, CPU)
        assert panels is not None
        for first, part in zip(reversed(firsts), reversed(numbers.split(sizes)), strict=True):
            panels.put(first, part)
        panels.scale_O.copy_(scale[:, 0])
        whole = quantized.PanelFp8.of(numbers, scale[:, 0])
        assert torch.equal(quantized.PanelFp8(panels)(x, None), whole(x, None))
        assert quantized.empty_fp8(96, 42, [0, 32], CPU) is None


def test_weights_take_a_byte_each() -> None:
    with byte_panels():
        assert quantized.Fp8Panels(192, 320).packed.nbytes == 192 * 320
