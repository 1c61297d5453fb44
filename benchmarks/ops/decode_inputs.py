"""Cases of `decode_inputs` at a model's shapes (see `case.py`)."""

from collections.abc import Iterator
from dataclasses import astuple

import torch
from nfold.kernels.reference import decode_inputs as reference
from nfold.kernels.running_slots import RunningSlots

from .case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    sizes, device, b = setting.sizes, setting.device, setting.sizes.block_size
    R, blocks = sizes.num_decodes, -(-sizes.context // b)
    slots = torch.randperm(R, generator=torch.Generator().manual_seed(0)).to(device)
    # All are as long as can be, so that a call fills the block tables.
    running = RunningSlots(
        token_ids_S=torch.arange(R + 1, device=device),
        positions_S=torch.full((R + 1,), blocks * b - 1, device=device),
        seeds_S=torch.arange(R + 1, device=device) * 12345,
        top_k_S=torch.arange(R + 1, device=device, dtype=torch.int32),
        temperature_S=torch.ones(R + 1, device=device),
        top_p_S=torch.ones(R + 1, device=device),
        block_tables_SB=torch.arange((R + 1) * blocks, device=device, dtype=torch.int32).view(R + 1, blocks),
    )
    yield Case(
        "decode_inputs",
        run=lambda: setting.ops.decode_inputs(running, slots, b),
        wanted=lambda: astuple(reference.decode_inputs(running, slots, b)),
        got=lambda: astuple(setting.ops.decode_inputs(running, slots, b)),
        bytes=R * (8 * blocks + 92),
    )
