"""The wire format between routers and replicas, and its version. No other file knows it.

(In work: messages and codecs follow.)
"""

from dataclasses import dataclass

from ..models.engine.protocol import EngineStats

WIRE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """What a replica tells about once a second. Totals only grow; the three times sum to its time in service.

    Attributes:
        stats: the engine's.
        idle_s: seconds without work.
        busy_s: seconds inside `engine.step`.
        overhead_s: seconds with work present, outside `engine.step` (messages, bookkeeping).
        draining: finishes what it has and takes nothing new.
        num_gateways: routers connected.
        num_messages_in, num_messages_out: wire messages, totals.
        num_rejected_messages: of those in, the malformed or unwelcome.
    """

    stats: EngineStats
    idle_s: float
    busy_s: float
    overhead_s: float
    draining: bool
    num_gateways: int
    num_messages_in: int
    num_messages_out: int
    num_rejected_messages: int
