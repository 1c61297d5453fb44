"""Products with packed weights against plain ones."""

import pytest
import torch
from nfold.kernels import ops
from nfold.kernels.avx512.linear import PanelLinear

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
pytestmark = pytest.mark.usefixtures("implementation")


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed_of(weight: torch.Tensor) -> ops.PackedWeight:
    packed = ops.pack_weight(weight.clone())
    if packed is None and weight.dtype == torch.bfloat16 and not ops.computes_bfloat16(weight.device):
        pytest.skip("this processor emulates bfloat16")
    assert packed is not None
    return packed


# Rows around the tile of 6 and the block of 96, outputs around the panel of 64, inputs beyond one block of a panel.
@pytest.mark.parametrize("num_rows", [0, 1, 5, 6, 7, 13, 96, 97, 200])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(32, 48), (64, 64), (38, 130), (2200, 65)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(num_rows: int, num_inputs: int, num_outputs: int, dtype: torch.dtype) -> None:
    weight = random(num_outputs, num_inputs, dtype=dtype, seed=1) / num_inputs**0.5
    bias = random(num_outputs, dtype=dtype, seed=2)
    x = random(num_rows, num_inputs, dtype=dtype)
    packed = packed_of(weight)
    wanted = x.double() @ weight.double().T
    for got, exact in ((packed(x, None), wanted), (packed(x, bias), wanted + bias.double())):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    wide = packed(x, None, torch.float32)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.double(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_inputs_may_be_a_part_of_wider_rows() -> None:
    weight, x = random(70, 40, dtype=torch.float32), random(9, 100, dtype=torch.float32, seed=1)
    torch.testing.assert_close(packed_of(weight)(x[:, 30:70], None), x[:, 30:70] @ weight.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_those_of_the_weight(dtype: torch.dtype) -> None:
    weight = random(150, 34, dtype=dtype)
    packed = packed_of(weight)
    if packed.reads_rows:
        ids = torch.tensor([0, 149, 63, 64, 0, 100])
        assert torch.equal(packed.rows(ids), weight[ids])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_result_does_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    packed = packed_of(random(200, 2100, dtype=dtype, seed=1))
    if isinstance(packed, PanelLinear):  # oneDNN promises no such thing
        x = random(131, 2100, dtype=dtype)
        together = packed(x, None)
        for start, stop in ((0, 1), (1, 3), (3, 10), (10, 131)):
            assert torch.equal(packed(x[start:stop], None), together[start:stop])


def test_types_without_a_packed_form_stay_as_they_are() -> None:
    assert ops.pack_weight(torch.zeros(4, 4, dtype=torch.float64)) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(64, 128, 64), (128, 30), (70,)])
def test_parts_put_one_by_one_are_the_whole(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, x = random(sum(sizes), 40, dtype=dtype), random(5, 40, dtype=dtype, seed=1)
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    packed = ops.empty_packed_weight(*weight.shape, firsts, dtype, weight.device)
    assert (packed is not None) == isinstance(packed_of(weight), PanelLinear)
    if packed is not None:
        for first, part in zip(reversed(firsts), reversed(weight.split(sizes)), strict=True):
            packed.put(first, part)
        assert torch.equal(packed(x, None), packed_of(weight)(x, None))


@pytest.mark.parametrize("num_rows", [1, 6, 97])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(32, 48), (2200, 64), (40, 90)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gate_and_what_it_gates_in_one_product(
    num_rows: int, num_inputs: int, num_outputs: int, dtype: torch.dtype
) -> None:
    gate, gated = (random(num_outputs, num_inputs, dtype=dtype, seed=seed) for seed in (1, 2))
    x = random(num_rows, num_inputs, dtype=dtype, seed=3) / num_inputs**0.5
    panels = ops.empty_gated_panels(2 * num_outputs, num_inputs, dtype, x.device)
    in_two = packed_of(torch.cat((gate, gated)))
    assert (panels is not None) == isinstance(in_two, PanelLinear)
    if panels is not None:
        panels.put(num_outputs, gated)
        panels.put(0, gate)
        assert torch.equal(panels(x), ops.silu_and_mul(in_two(x, None)))


def test_touch_stays_within_its_spans() -> None:
    units = torch.ones(5000, dtype=torch.int32)
    ops.touch([units[1000:1001], units[2000:4000]])
    for outside in (units[:1000], units[1001:2000], units[4000:]):
        assert outside.all()


def test_parts_that_begin_within_a_panel_are_packed_together() -> None:
    assert ops.empty_packed_weight(96, 40, [0, 32], torch.float32, torch.device("cpu")) is None
