"""Streams a safetensors checkpoint into a rank's parameters, shard by shard, slice by slice.

Only the slices that a rank needs are read; no rank ever holds the whole model.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .slots import Slot

logger = logging.getLogger(__name__)

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def load_weights(directory: str | Path, slots: Iterable[Slot]) -> None:
    """Fills every slot. CheckpointError names file and tensor: missing or damaged file, missing or wrong tensor."""
    by_file: dict[Path, list[Slot]] = {}
    slots = list(slots)
    files = _files(Path(directory), {slot.name for slot in slots})
    for slot in slots:
        by_file.setdefault(files[slot.name], []).append(slot)
    for number, (path, some) in enumerate(by_file.items(), 1):
        logger.info("loading %s (%d of %d)", path, number, len(by_file))
        _fill(path, some)


def _files(directory: Path, names: set[str]) -> dict[str, Path]:
    """The file of each tensor."""
    index = directory / _INDEX
    single = directory / _SINGLE
    if not index.exists():
        if single.exists():
            return dict.fromkeys(names, single)
        raise CheckpointError(f"{directory}: neither {_SINGLE} nor {_INDEX} is there")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: directory / file for name, file in weight_map.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected an object whose weight_map names each tensor's file") from error
    missing = sorted(names - files.keys())
    if missing:
        raise CheckpointError(
            f"{index}: no entry for {missing[0]} ({len(missing)} of {len(names)} tensors missing)"
        )
    return files


def _fill(path: Path, slots: list[Slot]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing (it holds {slots[0].name})")
    try:
        with safe_open(path, framework="pt") as shard:
            names = set(shard.keys())
            for slot in slots:
                if slot.name not in names:
                    raise CheckpointError(f"{path}: no tensor {slot.name}")
                _copy(path, shard.get_slice(slot.name), slot)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or cut short: {error}") from error


def _copy(path: Path, source: Any, slot: Slot) -> None:
    shape = tuple(source.get_shape())
    if shape != slot.shape:
        raise CheckpointError(
            f"{path}: {slot.name} has shape {list(shape)}, config.json asks for {list(slot.shape)}"
        )
    stop = slot.start + slot.destination.shape[slot.dim]
    whole = (slice(None),) * slot.dim
    slot.destination.copy_(source[(*whole, slice(slot.start, stop))])
