"""The life of a rank above 0: do what rank 0 says, until it says stop."""

import logging

from ..errors import EngineError
from .native import NativeEngine
from .tp_messages import Message, MessageKind

_log = logging.getLogger(__name__)


def follow(engine: NativeEngine) -> None:
    """Run the steps that rank 0 announces; returns when it closes its engine.

    Raises EngineError when another rank is gone or silent for longer than the group's timeout, when this rank fails
    to compute, or when it no longer has the same state as rank 0.
    """
    core, tp = engine.core, engine.tp
    assert tp.rank > 0, "rank 0 is driven through the Engine protocol"
    while True:
        message = Message.decode(tp.broadcast_bytes(None))
        if message.kind == MessageKind.STOP:
            _log.info("rank %d of %d: rank 0 said stop", tp.rank, tp.size)
            return
        if message.kind == MessageKind.HEARTBEAT:
            continue
        ours, theirs = (core.num_steps, core.checksum.value), (message.step, message.checksum)
        if ours != theirs:
            raise EngineError(
                f"rank {tp.rank} of {tp.size} is out of step: (steps, token checksum) {ours}, rank 0 has {theirs}"
            )
        for command in message.commands:
            engine.apply(command)
        engine.compute_step()
