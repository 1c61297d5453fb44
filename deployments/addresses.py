"""Where a replica is reached, and the keys that let a gateway in."""

import socket
import time
from dataclasses import dataclass, field

import msgspec
import zmq


def this_host() -> str:
    """The name by which replicas and gateways on this machine know each other."""
    return socket.gethostname()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaIdentity:
    """Who a replica is, known before its engine runs.

    Attributes:
        replica_id: unique in the service, 1 to 200 bytes of UTF-8, also the replica's name on the wire.
        model: the served model's name.
        pool: the pool's name; replicas of one pool have equal accelerators and engine settings.
        accelerator: `CPU`, or the type as Ray names it.
        node_id: Ray's id of the node.
        tp: ranks of the replica.
    """

    replica_id: str
    model: str
    pool: str
    accelerator: str = "CPU"
    node_id: str = ""
    tp: int = 1

    def __post_init__(self) -> None:
        if not 1 <= len(self.replica_id.encode()) <= 200:
            raise ValueError(f"replica_id: got {self.replica_id!r}; it must have 1 to 200 bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAddress:
    """How to reach one replica, and what a router must know before the first message.

    Attributes:
        host: `this_host()` of the replica; equal to the router's own means `ipc_endpoint` can be tried.
        ipc_endpoint: `ipc://PATH`.
        tcp_endpoint: `tcp://HOST:PORT` with CURVE, or empty when the service has no keys.
        max_num_seqs: most requests in one step.
        max_model_len: most tokens of prompt + answer.
        started_at: seconds since the epoch; tells a restarted replica of the same id from its predecessor.
        engine: `EngineInfo.engine`.
        settings: the engine's settings as effective, for the provenance of measurements.
    """

    replica_id: str
    model: str
    pool: str
    accelerator: str
    node_id: str
    host: str
    ipc_endpoint: str
    tcp_endpoint: str
    max_num_seqs: int
    max_model_len: int
    tp: int
    started_at: float = field(default_factory=time.time)
    engine: str = "native"
    settings: dict[str, str | int | float | bool] = field(default_factory=dict, hash=False)

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "ReplicaAddress":
        """Raises msgspec.ValidationError or msgspec.DecodeError that names what is wrong."""
        return msgspec.json.decode(text, type=cls)


@dataclass(frozen=True, slots=True)
class ServiceKeys:
    """The CURVE keys of one service, z85 text: one pair for all replicas, one for all gateways.

    A replica admits the clients' public key and no other, so whoever holds these keys is a member. They travel
    inside Ray only, never in a file or a log (`repr` hides the secrets).
    """

    server_public: str
    server_secret: str = field(repr=False)
    client_public: str
    client_secret: str = field(repr=False)

    @classmethod
    def generate(cls) -> "ServiceKeys":
        server_public, server_secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        return cls(server_public.decode(), server_secret.decode(), client_public.decode(), client_secret.decode())
