"""Tile sizes, warps and stages of every kernel, keyed by architecture: for the launchers and for the ISA test.

`cores` is what fills the device: compute units or multiprocessors of the largest accelerator of the architecture.
Options are Triton's own: `waves_per_eu` and `matrix_instr_nonkdim` exist on AMD only.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from triton import knobs
from triton.runtime import driver

Options = dict[str, int]


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """`rows`: query tokens times heads of a group, at least 16; `keys`: cached tokens per turn of the loop."""

    rows: int
    keys: int
    options: Options


@dataclass(frozen=True, slots=True)
class Tuning:
    """One architecture's choices.

    Attributes:
        decode: sequences with one query token.
        prefill: all others.
        programs_per_core: attention programs that a core holds; fewer than these in all, and keys are split.
        norm, elementwise: options; a norm's program takes a row.
        rotary_heads: heads of one token per program.
        activation_block: elements per program.
        table_block: entries of a block table per turn of the loop over a row.
        row_block, vocabulary_block: elements per turn of the loop over a row.
    """

    cores: int
    decode: AttentionTile
    prefill: AttentionTile
    programs_per_core: int
    norm: Options
    elementwise: Options
    rotary_heads: int
    activation_block: int
    table_block: int
    row_block: int
    vocabulary_block: int
    vocabulary: Options


_TUNING = {
    # On Hopper wgmma multiplies 64 rows per warp group of 4 warps; 16 rows of a decode take mma.sync.
    "sm_90": Tuning(
        cores=132,
        decode=AttentionTile(16, 64, {"num_warps": 4, "num_stages": 3}),
        prefill=AttentionTile(128, 64, {"num_warps": 8, "num_stages": 3}),
        programs_per_core=4,
        norm={"num_warps": 8},
        elementwise={"num_warps": 4},
        rotary_heads=16,
        activation_block=1024,
        table_block=128,
        row_block=4096,
        vocabulary_block=4096,
        vocabulary={"num_warps": 8},
    ),
    # 64 KiB of LDS: with two stages a tile's keys and values fill half of it, so two programs share a compute unit.
    "gfx942": Tuning(
        cores=304,
        decode=AttentionTile(
            16, 64, {"num_warps": 4, "num_stages": 1, "waves_per_eu": 2, "matrix_instr_nonkdim": 16}
        ),
        prefill=AttentionTile(128, 64, {"num_warps": 8, "num_stages": 1, "matrix_instr_nonkdim": 16}),
        programs_per_core=4,
        norm={"num_warps": 8},
        elementwise={"num_warps": 4},
        rotary_heads=16,
        activation_block=1024,
        table_block=128,
        row_block=4096,
        vocabulary_block=4096,
        vocabulary={"num_warps": 8},
    ),
    # 160 KiB of LDS: room for two stages.
    "gfx950": Tuning(
        cores=256,
        decode=AttentionTile(
            16, 64, {"num_warps": 4, "num_stages": 2, "waves_per_eu": 2, "matrix_instr_nonkdim": 16}
        ),
        prefill=AttentionTile(128, 64, {"num_warps": 8, "num_stages": 2, "matrix_instr_nonkdim": 16}),
        programs_per_core=4,
        norm={"num_warps": 8},
        elementwise={"num_warps": 4},
        rotary_heads=16,
        activation_block=1024,
        table_block=128,
        row_block=4096,
        vocabulary_block=4096,
        vocabulary={"num_warps": 8},
    ),
    # Small tiles, so that the interpreter's tests cross their borders.
    "interpreter": Tuning(
        cores=4,
        decode=AttentionTile(16, 16, {}),
        prefill=AttentionTile(32, 32, {}),
        programs_per_core=2,
        norm={},
        elementwise={},
        rotary_heads=4,
        activation_block=64,
        table_block=2,
        row_block=128,
        vocabulary_block=1024,
        vocabulary={},
    ),
}


@cache
def tuning() -> Tuning:
    """Of the accelerator that this process computes on."""
    return tuning_of(architecture())


def architecture() -> str:
    """`gfx950`, `sm_90`, or `interpreter`."""
    if knobs.runtime.interpret:
        return "interpreter"
    target: Any = driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def tuning_of(architecture: str) -> Tuning:
    """What an untuned architecture gets is its vendor's smallest: correct everywhere, fast perhaps not."""
    if architecture in _TUNING:
        return _TUNING[architecture]
    return _TUNING["sm_90" if architecture.startswith("sm_") else "gfx942"]
