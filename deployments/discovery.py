"""What the parts of a service know of each other, kept in Ray's own key-value store on the head (the GCS).

    nfold/<service>/replicas/<replica id>     ReplicaAddress   published by a replica when it is ready
    nfold/<service>/starts/<replica id>       StartReport      how far a replica's start has come, or why it failed
    nfold/<service>/gateways/<gateway id>     bytes            a gateway's RouterSnapshot, once a second
    nfold/<service>/quarantine/               list[str]        replica ids that gateways keep out of routing
    nfold/<service>/priors/<kind of replica>  SpeedPrior       what a baseline tells of its speed
    nfold/<service>/keys                      ServiceKeys      CURVE keys: who can read the GCS is a member
    nfold/<service>/values/<key>              bytes            floor 4's own: baselines, decisions

Entries of a replica or gateway carry the Ray actor that owns them; `remove_stale` takes away those whose actor is
dead, which is safe for whoever notices, because actor ids are never used again.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import ray
from ray._private.state import actors
from ray.experimental import internal_kv

from .addresses import ReplicaAddress, ServiceKeys
from .speed_prior import SpeedPrior

NAMESPACE = b"nfold"
TIMEOUT_S = 10.0
OWNED_KINDS = ("replicas", "gateways", "starts")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """How far a replica's start has come.

    Attributes:
        phase: what it does now, for people: `placing ranks`, `loading`, `ready`.
        error: the nfold error that ended the start, else empty.
        serves: the replicas that gateways reach through it: itself, or the engines of a simulated node.
    """

    replica_id: str
    pool: str
    node_id: str
    phase: str
    error: str = ""
    serves: tuple[str, ...] = ()
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class _Entry:
    owner: str
    value: bytes


def publish_replica(service: str, address: ReplicaAddress) -> None:
    """Tell the gateways of this replica. Called by the replica's own actor."""
    _put_owned(service, "replicas", address.replica_id, msgspec.msgpack.encode(address))


def withdraw_replica(service: str, replica_id: str) -> None:
    """Gateways send it nothing new from their next look on."""
    _delete(_key(service, "replicas", replica_id))


def list_replicas(service: str) -> list[ReplicaAddress]:
    """The replicas that are ready."""
    return [
        msgspec.msgpack.decode(entry.value, type=ReplicaAddress)
        for _, entry in sorted(_list_owned(service, "replicas").items())
    ]


def quarantine(service: str, replica_ids: Iterable[str]) -> None:
    """Gateways keep exactly these replicas out of routing from their next look on."""
    _put(_key(service, "quarantine", ""), msgspec.msgpack.encode(sorted(replica_ids)))


def list_quarantined(service: str) -> frozenset[str]:
    """Ids of the replicas that are to be kept out of routing."""
    value = _get(_key(service, "quarantine", ""))
    return frozenset(msgspec.msgpack.decode(value, type=list[str])) if value else frozenset()


def publish_speed_prior(service: str, prior: SpeedPrior) -> None:
    """Tell the gateways, in place of what they were told of that kind of replica before."""
    _put(_key(service, "priors", prior.key), msgspec.msgpack.encode(prior))


def list_speed_priors(service: str) -> list[SpeedPrior]:
    """One for each kind of replica that has a baseline."""
    return [msgspec.msgpack.decode(value, type=SpeedPrior) for value in _list(service, "priors", "").values()]


def report_start(service: str, report: StartReport) -> None:
    """Tell whoever waits how far a replica's start has come. Called by the replica's own actor."""
    _put_owned(service, "starts", report.replica_id, msgspec.msgpack.encode(report))


def list_starts(service: str) -> list[StartReport]:
    """The latest report of each replica that has one; those that failed are kept until the service is cleared."""
    return [
        msgspec.msgpack.decode(entry.value, type=StartReport)
        for _, entry in sorted(_list_owned(service, "starts").items())
    ]


def publish_gateway(service: str, gateway_id: str, snapshot: bytes) -> None:
    """Publish a gateway's RouterSnapshot (msgpack). Called by the gateway's own actor."""
    _put_owned(service, "gateways", gateway_id, snapshot)


def withdraw_gateway(service: str, gateway_id: str) -> None:
    _delete(_key(service, "gateways", gateway_id))


def list_gateways(service: str) -> dict[str, bytes]:
    """The latest RouterSnapshot (msgpack) of each gateway, by gateway id."""
    return {name: entry.value for name, entry in _list_owned(service, "gateways").items()}


def service_keys(service: str) -> ServiceKeys:
    """The service's CURVE keys, made by whoever asks first."""
    key = f"nfold/{service}/keys".encode()
    stored = _get(key)
    if stored is None:
        _put(key, msgspec.msgpack.encode(ServiceKeys.generate()), overwrite=False)
        stored = _get(key)
    assert stored is not None
    return msgspec.msgpack.decode(stored, type=ServiceKeys)


def put_value(service: str, key: str, value: bytes) -> None:
    _put(_key(service, "values", key), value)


def get_value(service: str, key: str) -> bytes | None:
    return _get(_key(service, "values", key))


def delete_value(service: str, key: str) -> None:
    _delete(_key(service, "values", key))


def list_values(service: str, prefix: str = "") -> dict[str, bytes]:
    """All values whose key begins with `prefix`."""
    return _list(service, "values", prefix)


def remove_stale(service: str) -> list[str]:
    """Take away the entries of replicas and gateways whose actor is dead; returns their names.

    Reports of failed starts stay: they tell why.
    """
    removed: list[str] = []
    for kind in OWNED_KINDS:
        for name, entry in _list_owned(service, kind).items():
            if kind == "starts" and msgspec.msgpack.decode(entry.value, type=StartReport).error:
                continue
            if entry.owner and actors(entry.owner).get("State") in (None, "DEAD"):
                _delete(_key(service, kind, name))
                removed.append(name)
    return removed


def clear(service: str) -> None:
    """Forget all that replicas and gateways published; floor 4's values stay."""
    for kind in (*OWNED_KINDS, "quarantine"):
        internal_kv._internal_kv_del(_key(service, kind, ""), del_by_prefix=True, namespace=NAMESPACE)


def _key(service: str, kind: str, name: str) -> bytes:
    return f"nfold/{service}/{kind}/{name}".encode()


def _put_owned(service: str, kind: str, name: str, value: bytes) -> None:
    owner = ray.get_runtime_context().get_actor_id() or ""
    _put(_key(service, kind, name), msgspec.msgpack.encode(_Entry(owner, value)))


def _list_owned(service: str, kind: str) -> dict[str, _Entry]:
    return {name: msgspec.msgpack.decode(value, type=_Entry) for name, value in _list(service, kind, "").items()}


def _list(service: str, kind: str, prefix: str) -> dict[str, bytes]:
    keys = internal_kv._internal_kv_list(_key(service, kind, prefix), namespace=NAMESPACE)
    if not keys:
        return {}
    start = len(_key(service, kind, ""))
    client = internal_kv.internal_kv_get_gcs_client()
    assert client is not None, "Ray is not connected"
    values = client.internal_kv_multi_get(keys, namespace=NAMESPACE, timeout=TIMEOUT_S)
    return {key[start:].decode(): value for key, value in values.items()}


def _get(key: bytes) -> bytes | None:
    return internal_kv._internal_kv_get(key, namespace=NAMESPACE)


def _put(key: bytes, value: bytes, overwrite: bool = True) -> None:
    internal_kv._internal_kv_put(key, value, overwrite, namespace=NAMESPACE)


def _delete(key: bytes) -> None:
    internal_kv._internal_kv_del(key, namespace=NAMESPACE)
