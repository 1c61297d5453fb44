"""Under Triton's interpreter, against the reference."""

from dataclasses import astuple, fields

import pytest
import torch
from nfold.kernels.reference import decode_inputs as reference
from nfold.kernels.running_slots import DecodeInputs, RunningSlots
from nfold.kernels.triton import decode_inputs

PADDING_BLOCK = 1000


def running_slots(num_slots: int, num_blocks: int, block_size: int) -> RunningSlots:
    """With a last one for padding, at no valid position and with no valid token."""
    generator = torch.Generator().manual_seed(num_slots)
    random = torch.rand(2, num_slots + 1, generator=generator)
    longs = torch.randint(-(2**62), 2**62, (2, num_slots + 1), generator=generator)
    positions = torch.randint(0, num_blocks * block_size, (num_slots + 1,), generator=generator)
    positions[:2], positions[-1] = torch.tensor([0, num_blocks * block_size - 1]), 2**40
    tables = torch.randint(0, PADDING_BLOCK, (num_slots + 1, num_blocks), generator=generator).int()
    tables[-1] = PADDING_BLOCK
    return RunningSlots(longs[0], positions, longs[1], (100 * random[0]).int(), *random.unbind(), tables)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(1, 16), (5, 4), (9, 1)])
@pytest.mark.parametrize("slots", [[], [0], [6, 1, 0, 3], [2, 7, 7, 7], [7]])
def test_equals_the_reference(slots: list[int], num_blocks: int, block_size: int) -> None:
    running, slots_R = running_slots(7, num_blocks, block_size), torch.tensor(slots, dtype=torch.int64)
    before = [tensor.clone() for tensor in astuple(running)]
    wanted = reference.decode_inputs(running, slots_R, block_size)
    got = decode_inputs.decode_inputs(running, slots_R, block_size)
    for field in fields(DecodeInputs):
        if field.name != "block_tables_RB":
            assert_same(getattr(got, field.name), getattr(wanted, field.name))
    for row, context in enumerate(wanted.context_lens_R.tolist()):
        used = -(-context // block_size)
        assert_same(got.block_tables_RB[row, :used], wanted.block_tables_RB[row, :used])
    assert all(map(torch.equal, astuple(running), before))


def test_the_last_slot_pads() -> None:
    inputs = reference.decode_inputs(running_slots(7, 5, 4), torch.tensor([3, 7, 7]), 4)
    assert inputs.token_ids_R[1:].tolist() == inputs.positions_R[1:].tolist() == [0, 0]
    assert inputs.context_lens_R[1:].tolist() == inputs.new_positions_R[1:].tolist() == [1, 1]
    assert inputs.slot_mapping_R[1:].tolist() == [4 * PADDING_BLOCK] * 2


def assert_same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype
    assert torch.equal(got, wanted)
