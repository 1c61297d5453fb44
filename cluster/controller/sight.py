"""What the controller makes of what the observer reports and the actuator sees: a `Snapshot`. No Ray here."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...deployments.router_stats import RouterSnapshot
from ..config import NfoldConfig
from ..ledger import Ledger, Place, total
from ..observer import ModelReport, Reading, ServiceReport
from ..service_view import ReplicaView
from .actuation import Actual
from .attainment import Attainment
from .offers import offers_of
from .settings import ControllerSettings
from .snapshot import Load, NodeOutput, ReplicaSigns, Snapshot, Window

# The observer's window that decisions are made by, seconds.
WINDOW_S = 60.0
ARRIVALS_S = 30.0


@dataclass(frozen=True, slots=True)
class Probe:
    """How the latest small generation of a replica ended."""

    passed: bool
    ended_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Life:
    """When a replica last brought a token and last had a request, by this process's clock."""

    num_tokens: int
    brought_s: float
    busy_s: float


class Sight:
    """Remembers what rates and silences are taken from. One thread."""

    def __init__(self, config: NfoldConfig, settings: ControllerSettings) -> None:
        self._config = config
        self._settings = settings
        self._attainment = Attainment(WINDOW_S)
        self._asked: dict[str, dict[str, tuple[int, float]]] = {}
        self._arrivals: deque[tuple[float, dict[str, float]]] = deque()
        self._lives: dict[str, _Life] = {}

    def watch(self, reading: Reading, report: ServiceReport, now_s: float) -> None:
        """One look, about once a second.

        Args:
            now_s: seconds on a clock that only goes forward.
        """
        self._attainment.look(now_s, report.histograms)
        self._count_arrivals(reading.snapshots, now_s)
        self._lives = {name: self._life(view, now_s) for name, view in report.view.replicas.items()}

    def snapshot(
        self, reading: Reading, report: ServiceReport, actual: Actual, probes: Mapping[str, Probe], now_s: float
    ) -> Snapshot:
        """What the latest look makes; the same `reading` and `report`."""
        types = {node.node_id: node.node_type for node in actual.nodes}
        ids = {name: node_id for node_id, name in reading.node_names.items()}
        return Snapshot(
            time_s=actual.time_s,
            actual=actual,
            loads=tuple(
                self._load(model.name, reading.snapshots, report, types, ids) for model in self._config.models
            ),
            offers=offers_of(self._config, actual.node_types, reading.baselines),
            replicas=tuple(
                self._signs(view, report.models.get(view.address.model), probes.get(name), now_s)
                for name, view in sorted(report.view.replicas.items())
            ),
        )

    def _count_arrivals(self, snapshots: Sequence[RouterSnapshot], now_s: float) -> None:
        """Output tokens that were asked for, in all; a router that is new, or gone, is no arrival."""
        came = dict(self._arrivals[-1][1]) if self._arrivals else {}
        for snapshot in snapshots:
            before = self._asked.setdefault(snapshot.router_id, {})
            for model in snapshot.models:
                asked = model.num_submitted + model.num_refused
                old, _ = before.get(model.model, (asked, 0.0))
                tokens = max(0, asked - old) * model.expected_output_tokens
                came[model.model] = came.get(model.model, 0.0) + tokens
                before[model.model] = (asked, model.expected_output_tokens)
        self._arrivals.append((now_s, came))
        while len(self._arrivals) > 2 and now_s - self._arrivals[1][0] >= ARRIVALS_S:
            self._arrivals.popleft()

    def _arriving(self, model: str) -> float:
        (from_s, before), (to_s, now) = self._arrivals[0], self._arrivals[-1]
        return (now.get(model, 0.0) - before.get(model, 0.0)) / (to_s - from_s) if to_s > from_s else 0.0

    def _load(
        self,
        model: str,
        snapshots: Sequence[RouterSnapshot],
        report: ServiceReport,
        types: Mapping[str, str],
        ids: Mapping[str, str],
    ) -> Load:
        told = [one for snapshot in snapshots for one in snapshot.models if one.model == model]
        views = [view for view in report.view.replicas.values() if view.address.model == model and view.alive]
        stats = [view.status.stats for view in views if view.status is not None]
        num_queued = sum(one.num_queued for one in told) + sum(one.num_waiting for one in stats)
        expected = max((one.expected_output_tokens for one in told), default=0.0)
        of_model = report.models.get(model)
        window, nodes = _account(of_model, types, ids)
        rate = window.measured if window else 0.0
        scaling = self._settings.models.get(model)
        slo = scaling.slo if scaling else None
        return Load(
            model=model,
            num_queued=num_queued,
            num_in_flight=sum(one.num_running for one in stats),
            queued_tokens=num_queued * expected,
            queue_age_s=num_queued * expected / rate if rate > 0.0 else 0.0,
            arriving_tokens_per_s=self._arriving(model),
            kv_use=max((one.num_kv_blocks_used / max(1, one.num_kv_blocks) for one in stats), default=0.0),
            ttft_attained=self._attainment.share("ttft", model, slo.ttft_s) if slo else None,
            tpot_attained=self._attainment.share("tpot", model, slo.tpot_s) if slo else None,
            window=window,
            nodes=nodes,
        )

    def _life(self, view: ReplicaView, now_s: float) -> _Life:
        num_tokens = view.status.stats.total_output_tokens if view.status else 0
        old = self._lives.get(view.address.replica_id, _Life(num_tokens, now_s, now_s))
        brought = num_tokens != old.num_tokens or not view.num_in_flight
        return _Life(num_tokens, now_s if brought else old.brought_s, now_s if view.num_in_flight else old.busy_s)

    def _signs(
        self, view: ReplicaView, report: ModelReport | None, probe: Probe | None, now_s: float
    ) -> ReplicaSigns:
        name = view.address.replica_id
        life = self._lives[name]
        return ReplicaSigns(
            replica_id=name,
            model=view.address.model,
            pool=view.address.pool,
            node_id=view.address.node_id,
            num_in_flight=view.num_in_flight,
            silent_s=now_s - life.brought_s,
            idle_s=now_s - life.busy_s,
            speed=_speed(name, report),
            probe="" if probe is None else "passed" if probe.passed else "failed",
            probe_age_s=0.0 if probe is None else now_s - probe.ended_s,
            reason="" if probe is None else probe.reason,
            state=view.state,
        )


def _rows(report: ModelReport | None) -> Mapping[Place, Ledger]:
    return report.ledgers.get(WINDOW_S, {}) if report else {}


def _account(
    report: ModelReport | None, types: Mapping[str, str], ids: Mapping[str, str]
) -> tuple[Window | None, tuple[NodeOutput, ...]]:
    rows = _rows(report)
    whole = total(rows.values())
    if whole is None:
        return None, ()
    window = Window(
        window_s=whole.window_s,
        baseline=whole.baseline,
        measured=whole.measured,
        losses=whole.losses,
        saturated=whole.saturated,
    )
    nodes: list[NodeOutput] = []
    for name in dict.fromkeys(place.node for place in rows):
        node_id = ids.get(name, name)
        of_node = [ledger for place, ledger in rows.items() if place.node == name]
        nodes.append(
            NodeOutput(
                node_id=node_id,
                node_type=types.get(node_id, "unknown"),
                baseline=sum(ledger.baseline for ledger in of_node),
                measured=sum(ledger.measured for ledger in of_node),
            )
        )
    return window, tuple(nodes)


def _speed(replica_id: str, report: ModelReport | None) -> float | None:
    """Of its baseline while it works, as far as its own steps are to blame."""
    ledger = next((ledger for place, ledger in _rows(report).items() if place.replica == replica_id), None)
    if ledger is None or ledger.measured <= 0.0:
        return None
    return ledger.measured / max(ledger.measured + ledger.columns["slow step"], 1e-9)
