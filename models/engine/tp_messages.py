"""What rank 0 tells the other ranks of its replica, as flat bytes.

    rank 0   submit, abort, submit ── step ──────────> ... idle ... ── heartbeat ──> ... ── stop ──>
                      │ one broadcast: STEP with the commands since the last one
    ranks 1..         └──> same commands, same schedule, same forward pass, same tokens

No schedule and no token travels. Each STEP carries its number and a checksum of the tokens so far, so that ranks
that drift apart fail loudly instead of serving garbage.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .protocol import I32, U64, SubmitBatch

_HEADER = struct.Struct("<BQII")  # kind, step, checksum, number of commands
_ABORT = struct.Struct("<cI")  # b"A", number of ids
_SUBMIT = struct.Struct("<cIII")  # b"S", requests, prompt tokens, stop ids
_SUBMIT_FIELDS: dict[str, np.dtype[Any]] = {
    "request_ids": np.dtype(np.uint64),
    "prompt_lens": np.dtype(np.int32),
    "prompt_ids": np.dtype(np.int32),
    "max_tokens": np.dtype(np.int32),
    "temperature": np.dtype(np.float32),
    "top_k": np.dtype(np.int32),
    "top_p": np.dtype(np.float32),
    "seed": np.dtype(np.uint64),
    "ignore_eos": np.dtype(np.uint8),
    "num_logprobs": np.dtype(np.int8),
    "stop_lens": np.dtype(np.int32),
    "stop_ids": np.dtype(np.int32),
}

Command = SubmitBatch | U64
"""Requests to queue, or ids of requests to abort."""


class MessageKind(IntEnum):
    STEP = 0
    HEARTBEAT = 1
    STOP = 2


@dataclass(frozen=True, slots=True)
class Message:
    """From rank 0 to all others. `step` and `checksum` are of the sender before the step."""

    kind: MessageKind
    step: int = 0
    checksum: int = 0
    commands: Sequence[Command] = ()

    def encode(self) -> bytes:
        """Flat bytes: the header, then each command with its arrays as they lie in memory."""
        parts = [_HEADER.pack(self.kind, self.step, self.checksum, len(self.commands))]
        for command in self.commands:
            if isinstance(command, SubmitBatch):
                parts.append(_SUBMIT.pack(b"S", len(command), len(command.prompt_ids), len(command.stop_ids)))
                for name, dtype in _SUBMIT_FIELDS.items():
                    array: NDArray[Any] = getattr(command, name)
                    assert array.dtype == dtype, f"{name} is {array.dtype}, not {dtype}"
                    parts.append(array.tobytes())
            else:
                parts += [_ABORT.pack(b"A", len(command)), command.tobytes()]
        return b"".join(parts)

    @classmethod
    def decode(cls, payload: bytes) -> "Message":
        kind, step, checksum, num_commands = _HEADER.unpack_from(payload)
        offset = _HEADER.size
        commands: list[Command] = []
        for _ in range(num_commands):
            command, offset = _decode_command(payload, offset)
            commands.append(command)
        return cls(MessageKind(kind), step, checksum, commands)


def _decode_command(payload: bytes, offset: int) -> tuple[Command, int]:
    """The command at `offset` and where the next one begins. Arrays read the payload's own memory."""
    if payload[offset : offset + 1] == b"A":
        _, count = _ABORT.unpack_from(payload, offset)
        start = offset + _ABORT.size
        return np.frombuffer(payload, np.uint64, count, start), start + 8 * count
    _, num_requests, num_prompt_ids, num_stop_ids = _SUBMIT.unpack_from(payload, offset)
    offset += _SUBMIT.size
    lengths = {"prompt_ids": num_prompt_ids, "stop_ids": num_stop_ids}
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype in _SUBMIT_FIELDS.items():
        count = lengths.get(name, num_requests)
        arrays[name] = np.frombuffer(payload, dtype, count, offset)
        offset += dtype.itemsize * count
    return SubmitBatch(**arrays), offset


class TokenChecksum:
    """A running checksum of all sampled tokens."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, token_ids: I32) -> None:
        self.value = zlib.crc32(token_ids.tobytes(), self.value)
