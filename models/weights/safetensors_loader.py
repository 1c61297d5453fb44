"""Streams a safetensors checkpoint into a rank's parameters, shard by shard, slice by slice.

Only the slices that a rank needs are read; no rank ever holds the whole model.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...kernels import ops
from ..errors import CheckpointError
from .slots import Slot

logger = logging.getLogger(__name__)

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def load_weights(directory: str | Path, slots: Iterable[Slot]) -> None:
    """Fills every slot. CheckpointError names file and tensor: missing or damaged file, missing or wrong tensor."""
    by_file: dict[Path, list[Slot]] = {}
    slots = list(slots)
    for slot, path in zip(slots, _files(Path(directory), slots), strict=True):
        by_file.setdefault(path, []).append(slot)
    ops.touch(list({id(slot.memory): slot.memory for slot in slots if slot.memory is not None}.values()))
    for number, (path, some) in enumerate(by_file.items(), 1):
        logger.info("loading %s (%d of %d)", path, number, len(by_file))
        _fill(path, some)


def _files(directory: Path, slots: list[Slot]) -> list[Path]:
    """The file of each slot's tensor."""
    index = directory / _INDEX
    single = directory / _SINGLE
    if not index.exists():
        if single.exists():
            return [single] * len(slots)
        raise CheckpointError(f"{directory}: neither {_SINGLE} nor {_INDEX} is there")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: directory / file for name, file in weight_map.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected an object whose weight_map names each tensor's file") from error
    missing = sorted(slot.name for slot in slots if not _first_there(slot, files))
    if missing:
        slot = next(slot for slot in slots if slot.name == missing[0])
        raise CheckpointError(
            f"{index}: no entry for {missing[0]}, which {slot.asked_by} asks for"
            f" ({len(missing)} of {len(slots)} tensors missing)"
        )
    return [files[_first_there(slot, files)] for slot in slots]


def _first_there(slot: Slot, there: Mapping[str, Any] | set[str]) -> str:
    """Of the slot's names; empty when none is there."""
    return next((name for name in slot.names if name in there), "")


def _fill(path: Path, slots: list[Slot]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing (it holds {slots[0].name})")
    try:
        with safe_open(path, framework="pt") as shard:
            names = set(shard.keys())
            for slot in slots:
                name = _first_there(slot, names)
                if not name:
                    raise CheckpointError(f"{path}: no tensor {slot.name}, which {slot.asked_by} asks for")
                _put(path, name, shard, slot)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or cut short: {error}") from error


def _put(path: Path, name: str, shard: Any, slot: Slot) -> None:
    source = shard.get_slice(name)
    shape, dtype = tuple(source.get_shape()), source.get_dtype()
    if dtype not in slot.dtypes:
        raise CheckpointError(
            f"{path}: {name} is of type {dtype}, {slot.asked_by} asks for {' or '.join(slot.dtypes)}"
        )
    if slot.may_be_scalar and not _without_ones(shape):
        slot.put(shard.get_tensor(name).reshape(()))
        return
    if _without_ones(shape) != _without_ones(slot.shape):
        raise CheckpointError(
            f"{path}: {name} has shape {list(shape)}, {slot.asked_by} asks for {list(slot.shape)}"
        )
    whole = (slice(None),) * slot.dim
    part = source[(*whole, slice(slot.start, slot.stop))]
    slot.put(part.reshape(part.shape[: len(slot.shape)]))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the dimensions of 1 at its end."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
