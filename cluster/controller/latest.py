"""The controller's latest decision, kept in the cluster for whoever asks. Needs a connected process."""

import msgspec

from ...deployments import discovery
from .decision import Decision

_KEY = "controller/latest"


def publish_latest(service: str, decision: Decision) -> None:
    discovery.put_value(service, _KEY, msgspec.json.encode(decision))


def latest(service: str) -> Decision | None:
    """None when there is none, or it is another version's."""
    value = discovery.get_value(service, _KEY)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=Decision)
    except msgspec.MsgspecError:
        return None
