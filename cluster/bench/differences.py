"""What differs between two records, what matters most first. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .balance import mean_by_node, told_by_steps
from .record import RunRecord, Setting

# A node this much off the others, more than it was, is told.
_NODE_OFF = 0.01
# Where things lie says nothing of speed, and an injected fault is no setting: its effect is what must be found.
_NO_SETTING = ("model_dir", "device", "faults")
_LOOSE_SETTINGS = ("num_kv_blocks", "kv_cache_bytes")
_LOOSE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs.

    Attributes:
        weight: larger is likelier to matter; they are told in this order.
        what: its name.
        there, here: in words.
    """

    weight: float
    what: str
    there: str
    here: str

    def __str__(self) -> str:
        return f"{self.what}: {self.there} there, {self.here} here"


def differences(there: RunRecord, here: RunRecord) -> list[Difference]:
    """From what changes the computation itself, over slow nodes and the load, to the surroundings."""
    found = [
        *_plain(100, "weights", there.model.weights[:16], here.model.weights[:16]),
        *_plain(95, "engine", there.model.engine, here.model.engine),
        *_plain(94, "ranks of a replica (tp)", there.model.tp, here.model.tp),
        *_settings(90, "engine setting", there.model.settings, here.model.settings),
        *_plain(85, "accelerator", there.model.accelerator, here.model.accelerator),
        *_plain(80, "nodes", there.whole.num_nodes, here.whole.num_nodes),
        *_plain(80, "accelerators", there.whole.num_accelerators, here.whole.num_accelerators),
        *_slow_nodes(there, here),
        *_plain(70, "samples (hash)", there.workload.digest[:16], here.workload.digest[:16]),
        *_settings(65, "LoadGen setting", there.loadgen.settings, here.loadgen.settings),
        *_plain(60, "LoadGen", there.loadgen.version, here.loadgen.version),
        *_hosts(there, here),
        *_settings(30, "version of", there.provenance.versions, here.provenance.versions),
        *_plain(20, "CPU of the client", there.provenance.cpu, here.provenance.cpu),
        *_plain(20, "cores of the client", there.provenance.num_cores, here.provenance.num_cores),
    ]
    return sorted(found, key=lambda difference: -difference.weight)


def _slow_nodes(there: RunRecord, here: RunRecord) -> Iterable[Difference]:
    """Nodes that are further off the others here than the slowest was there; the worst has most weight."""
    by_steps = told_by_steps(*(record for record in (there, here) if record.whole.num_nodes > 1))
    before, after = (mean_by_node(record, by_steps=by_steps) for record in (there, here))
    usual = min(before.values()) - 1.0 if before else 0.0
    for name, speed in after.items():
        off = speed - 1.0
        if off < min(usual, 0.0) - _NODE_OFF:
            said = f"the slowest is {abs(min(usual, 0.0)):.1%} below" if before else "one node"
            # Between engine settings and the load: a slow node moves the figure, whatever else differs.
            yield Difference(75 - off, f"speed of {name} against the other nodes", said, f"{-off:.1%} below")


def _plain(weight: float, what: str, there: object, here: object) -> Iterable[Difference]:
    if there != here:
        yield Difference(weight, what, str(there), str(here))


def _settings(
    weight: float, what: str, there: Mapping[str, Setting], here: Mapping[str, Setting]
) -> Iterable[Difference]:
    for name in sorted(there.keys() | here.keys()):
        before, after = there.get(name), here.get(name)
        if name in _NO_SETTING or before == after:
            continue
        if name in _LOOSE_SETTINGS and _about_equal(before, after):
            continue
        yield Difference(weight, f"{what} {name}", _said(before), _said(after))


def _about_equal(before: Setting | None, after: Setting | None) -> bool:
    """What follows from the memory that was free moves from start to start."""
    return isinstance(before, int) and isinstance(after, int) and abs(after - before) <= _LOOSE_SHARE * before


def _hosts(there: RunRecord, here: RunRecord) -> Iterable[Difference]:
    """Fields in which the sets of hosts differ; names of hosts always do."""
    weights = {"driver": 50, "runtime": 49, "firmware": 48, "clocks_mhz": 47, "accelerators": 46}
    for name in (*weights, "cpu", "num_cores", "memory_bytes", "cpu_governor", "kernel", "system"):
        before, after = (sorted({str(getattr(host, name)) for host in record.hosts}) for record in (there, here))
        if before != after:
            yield Difference(weights.get(name, 40), f"hosts' {name}", ", ".join(before), ", ".join(after))


def _said(value: Setting | None) -> str:
    return "not set" if value is None else str(value)
