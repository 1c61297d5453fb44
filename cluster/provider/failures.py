"""Why a host could not be added: told by node providers, read by the controller, through Ray's key-value store.

    nfold-hosts/<host>     HostFailure   until the host joins

Ray's autoscaler has no place for a provider's reasons, and runs in a process that has not joined the cluster.
"""

from typing import Any, cast

import msgspec
from ray.experimental.internal_kv import internal_kv_get_gcs_client

NAMESPACE = b"nfold"
PREFIX = b"nfold-hosts/"  # no service can be named so that its keys begin with this
TIMEOUT_S = 10.0


class HostFailure(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        at_s: when it failed, Unix time.
        reason: for people; names the host and what would help.
        retry_at_s: it is not tried before.
    """

    host: str
    node_type: str
    at_s: float
    reason: str
    retry_at_s: float


def publish_failure(gcs: Any, failure: HostFailure) -> None:
    """
    Args:
        gcs: a GcsClient.
    """
    gcs.internal_kv_put(_key(failure.host), msgspec.msgpack.encode(failure), True, NAMESPACE, TIMEOUT_S)


def forget_failure(gcs: Any, host: str) -> None:
    gcs.internal_kv_del(_key(host), False, NAMESPACE, TIMEOUT_S)


def list_failures(gcs: Any = None) -> list[HostFailure]:
    """Of hosts that have not joined since. Without a client, that of the connected cluster."""
    client = cast(Any, gcs or internal_kv_get_gcs_client())
    keys = client.internal_kv_keys(PREFIX, NAMESPACE, TIMEOUT_S)
    values = (client.internal_kv_get(key, NAMESPACE, TIMEOUT_S) for key in keys)
    return [msgspec.msgpack.decode(value, type=HostFailure) for value in values if value is not None]


def _key(host: str) -> bytes:
    return PREFIX + host.encode()
