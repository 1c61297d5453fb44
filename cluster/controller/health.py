"""Health that means goodput: who is kept out of routing, let back in, or replaced. Pure.

            sick, and not too many are out          well again
    well ────────────────────────────────> out ──────────────────> well
                                            │ still sick after `replace_after_s`
                                            v
                                         replaced (its node drained, where all its replicas are sick)

A replica is well if it brings tokens while it has requests, completes a small generation when it has none, and
keeps near its baseline, or as near as the best of its model: a slowness that all share would stay if one were
replaced. Never more than a share of a model's replicas is out, the sickest first, and never the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .decision import HealthVerdict, Remedy
from .settings import HealthSettings
from .snapshot import Memory, Quarantine, ReplicaSigns

OUT = ("connecting", "draining", "lost", "refused")


@dataclass(frozen=True, slots=True)
class _Finding:
    """Why a replica is sick; `rank` says how badly: worst first."""

    reason: str
    rank: float


def decide_health(
    replicas: Sequence[ReplicaSigns], settings: HealthSettings, memory: Memory, time_s: float
) -> tuple[tuple[HealthVerdict, ...], Memory]:
    """What to do about whom, and what to remember of it."""
    best = _best_speeds(replicas)
    slow = {
        signs.replica_id: memory.slow_since_s.get(signs.replica_id, time_s)
        for signs in replicas
        if _is_slow(signs, settings.min_speed * best.get(signs.model, 1.0), memory)
    }
    memory = replace(memory, slow_since_s=slow)
    findings = {
        signs.replica_id: finding
        for signs in replicas
        if (finding := _finding(signs, settings, slow.get(signs.replica_id), time_s)) is not None
    }
    known = {signs.replica_id for signs in replicas}
    kept = [quarantine for quarantine in memory.quarantine if quarantine.replica_id in known]
    verdicts: list[HealthVerdict] = []
    held: list[Quarantine] = []
    by_id = {signs.replica_id: signs for signs in replicas}
    for quarantine in kept:
        signs = by_id[quarantine.replica_id]
        if not quarantine.replaced and _is_well_again(
            signs, quarantine, settings, signs.replica_id in slow, time_s
        ):
            verdicts.append(_verdict(Remedy.RELEASE, signs, "a small generation ended well and its speed is usual"))
            continue
        if not quarantine.replaced and time_s - quarantine.since_s >= settings.replace_after_s:
            verdicts.append(_verdict(Remedy.REPLACE, signs, quarantine.reason))
            quarantine = replace(quarantine, replaced=True)
        held.append(quarantine)
    for model in sorted({signs.model for signs in replicas}):
        verdicts += _quarantine(model, replicas, findings, settings, held, time_s)
    leaving, drained = _sick_nodes(replicas, held, memory)
    return (*verdicts, *drained), replace(memory, quarantine=tuple(held), leaving=leaving)


def needs_probe(signs: ReplicaSigns, settings: HealthSettings, quarantined: bool) -> bool:
    """Nothing else proves that it completes requests."""
    if signs.state in OUT:
        return False
    waits_s = settings.probe_timeout_s if quarantined else settings.probe_every_s
    due = not signs.probe or signs.probe_age_s >= waits_s
    return due and (quarantined or signs.idle_s >= settings.probe_every_s)


def _best_speeds(replicas: Sequence[ReplicaSigns]) -> dict[str, float]:
    """By model, the highest share of its baseline that a replica in routing keeps; at most 1."""
    best: dict[str, float] = {}
    for signs in replicas:
        if signs.speed is not None and signs.state not in (*OUT, "quarantined"):
            best[signs.model] = min(1.0, max(best.get(signs.model, 0.0), signs.speed))
    return best


def _is_slow(signs: ReplicaSigns, least: float, memory: Memory) -> bool:
    if signs.speed is None:  # it does nothing now: as it was, if it was slow
        return signs.replica_id in memory.slow_since_s
    return signs.speed < least


def _finding(
    signs: ReplicaSigns, settings: HealthSettings, slow_since_s: float | None, time_s: float
) -> _Finding | None:
    if signs.state in OUT:  # routers sent its requests elsewhere already, and Serve sees to it
        return None
    if signs.num_in_flight and signs.silent_s >= settings.stuck_after_s:
        text = f"holds {signs.num_in_flight} requests and has brought no token for {signs.silent_s:.0f} s"
        return _Finding(text, 0.0)
    if signs.probe == "failed":
        return _Finding(f"did not complete a small generation: {signs.reason}", 1.0)
    if slow_since_s is not None and time_s - slow_since_s >= settings.slow_for_s and signs.speed is not None:
        text = f"works at {signs.speed:.0%} of its baseline, for {time_s - slow_since_s:.0f} s"
        return _Finding(text, 2.0 + signs.speed)
    return None


def _is_well_again(
    signs: ReplicaSigns, quarantine: Quarantine, settings: HealthSettings, slow: bool, time_s: float
) -> bool:
    """It completed a probe since it was taken out, at its usual speed as far as is known."""
    fresh = signs.probe == "passed" and signs.probe_age_s < time_s - quarantine.since_s
    stuck = bool(signs.num_in_flight) and signs.silent_s >= settings.stuck_after_s
    return fresh and not stuck and not slow


def _quarantine(
    model: str,
    replicas: Sequence[ReplicaSigns],
    findings: dict[str, _Finding],
    settings: HealthSettings,
    held: list[Quarantine],
    time_s: float,
) -> list[HealthVerdict]:
    """Adds to `held` as many of a model's sick replicas as may be out."""
    own = [signs for signs in replicas if signs.model == model]
    out = {quarantine.replica_id for quarantine in held}
    serving = [signs for signs in own if signs.replica_id not in out and signs.state not in OUT]
    num_out = len(own) - len(serving)
    most = max(1, int(settings.max_quarantined * len(own)))
    verdicts: list[HealthVerdict] = []
    sick = sorted(
        (signs for signs in serving if signs.replica_id in findings),
        key=lambda signs: (findings[signs.replica_id].rank, signs.replica_id),
    )
    for signs in sick:
        reason = findings[signs.replica_id].reason
        if num_out >= most or len(serving) - len(verdicts) <= 1:
            verdicts.append(
                _verdict(
                    Remedy.WAIT, signs, f"{reason}; {num_out} of {len(own)} replicas are out already, no more may"
                )
            )
            break
        verdicts.append(_verdict(Remedy.QUARANTINE, signs, reason))
        held.append(
            Quarantine(
                replica_id=signs.replica_id, model=model, node_id=signs.node_id, since_s=time_s, reason=reason
            )
        )
        num_out += 1
    return verdicts


def _sick_nodes(
    replicas: Sequence[ReplicaSigns], held: Sequence[Quarantine], memory: Memory
) -> tuple[tuple[str, ...], list[HealthVerdict]]:
    """Nodes all of whose replicas, two at least, are to be replaced: the fault is the node's."""
    replaced = {quarantine.replica_id for quarantine in held if quarantine.replaced}
    by_node: dict[str, list[ReplicaSigns]] = {}
    for signs in replicas:
        by_node.setdefault(signs.node_id, []).append(signs)
    sick = {
        node: signs[0]
        for node, signs in by_node.items()
        if len(signs) > 1 and all(one.replica_id in replaced for one in signs)
    }
    fresh = [
        HealthVerdict(
            remedy=Remedy.DRAIN_NODE,
            model=signs.model,
            replica_id="",
            node_id=node,
            reason="all replicas on it are sick",
        )
        for node, signs in sick.items()
        if node not in memory.leaving
    ]
    still = [node for node in memory.leaving if node in by_node]
    return tuple(dict.fromkeys([*still, *sick])), fresh


def _verdict(remedy: Remedy, signs: ReplicaSigns, reason: str) -> HealthVerdict:
    return HealthVerdict(
        remedy=remedy, model=signs.model, replica_id=signs.replica_id, node_id=signs.node_id, reason=reason
    )
