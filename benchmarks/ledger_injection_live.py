"""Known losses on a running service of simulated accelerators, in real time: Ray, Serve, sockets, the engines'
hosts and the router are the real ones; only the steps' times are simulated.

One service has all its faults to come, each on an engine of its own; the phases follow each other, so that the
later ones are pairs and more:

    curve │ saturation │ nothing │ delay │ no demand │ slow │ + half the slots │ + one engine dead
          └ yardstick ─┘         (what the load generator does)   (what the engines' faults do)

The load generator forces `delay` by looking at the router only now and then, and `no demand` by having few requests
in flight.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from control_plane_drive import Drive
from control_plane_fleet import MODEL, Fleet, fleet_config, open_router, profile_of, start_fleet
from control_plane_requests import Prompts, Requests
from nfold.cluster.config import NfoldConfig
from nfold.cluster.ledger import ModelCounters, Presence, Yardstick, fit_curve, spans, yardstick_of
from nfold.cluster.service_view import merge, model_counters, yardstick_name
from nfold.deployments.router import Router
from nfold.deployments.simulated_config import FaultConfig
from nfold.models.engine.simulated.answers import seeds_with_ends

ACCELERATOR, MODEL_PROFILE, SCENARIO = "MI355X", "gpt-oss-120b", "server"
PROMPT, MEAN_ANSWER = 200, 100
# After the engines' start, seconds. The first leaves time to start a service and to take its yardstick.
SLOW_AT_S, HALF_SLOTS_AT_S, DEAD_AT_S = 240.0, 280.0, 320.0
SLOW_ENGINE, HALF_SLOTS_ENGINE, DEAD_ENGINE = 0, 1, 2
SLOW_PERCENT = 20.0
LOADS, LOAD_S, WARM_S = (1, 4, 16, 64, 256), 5.0, 20.0
WINDOW_S, SETTLE_S = 25.0, 8.0
HOLD_S = 1.0
# Requests in flight per slot.
FULL_LOAD, LITTLE_LOAD = 1.5, 0.4
SAMPLE_S = 0.5
_ENDLESS = 1_000_000

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Phase:
    """One window.

    Attributes:
        injections: by the names of `ledger_injection.INJECTIONS`.
        samples: looks at it.
    """

    injections: tuple[str, ...]
    samples: tuple[ModelCounters, ...]

    @property
    def window_s(self) -> float:
        return self.samples[-1].time_s - self.samples[0].time_s

    @property
    def tokens_per_s(self) -> float:
        """By the replicas' own time, as what they told last may be seconds old."""
        pairs = zip(self.samples[0].replicas, self.samples[-1].replicas, strict=True)
        told = [(new.output_tokens - old.output_tokens, new.service_s - old.service_s) for old, new in pairs]
        return sum(tokens / seconds for tokens, seconds in told if seconds > 0.0)


@dataclass(frozen=True, slots=True)
class LiveRun:
    """All phases of one service, and what they are measured by."""

    yardstick_name: str
    yardstick: Yardstick
    phases: tuple[Phase, ...]
    slow: str


def config_of(num: int, port: int) -> NfoldConfig:
    """So many accelerators, faults to come."""
    config = fleet_config([(ACCELERATOR, num)], MODEL_PROFILE, SCENARIO, port=port, name="ledger")
    faults = [
        FaultConfig(kind="slow", percent=SLOW_PERCENT, at_s=SLOW_AT_S, hosts=[0], engines=[SLOW_ENGINE]),
        FaultConfig(kind="lose_slots", share=0.5, at_s=HALF_SLOTS_AT_S, hosts=[0], engines=[HALF_SLOTS_ENGINE]),
        FaultConfig(kind="die", at_s=DEAD_AT_S, hosts=[0], engines=[DEAD_ENGINE]),
    ]
    [model] = config.models
    assert model.engine.simulated is not None, "they are simulated"
    simulated = model.engine.simulated.model_copy(update={"faults": faults})
    engine = model.engine.model_copy(update={"simulated": simulated})
    return config.model_copy(update={"models": [model.model_copy(update={"engine": engine})]})


def run_live(num: int, port: int, tell: Tell) -> LiveRun:
    """Some six minutes."""
    with start_fleet(config_of(num, port), tell) as fleet, open_router(fleet) as router:
        return _Course(fleet, router, tell).run()


class _Load(Drive):
    """A load whose size can change."""

    def limit(self, num_open: int) -> None:
        """Requests open at any time from now on."""
        self._max_open = num_open


class _Course:
    """The phases on one service."""

    def __init__(self, fleet: Fleet, router: Router, tell: Tell) -> None:
        self._fleet, self._router, self._tell = fleet, router, tell
        self._profile, _ = profile_of(fleet.replicas[0])
        self._started_at = min(replica.started_at for replica in fleet.replicas)
        self._hold_s = 0.0

    def run(self) -> LiveRun:
        replica = self._fleet.replicas[0]
        name = yardstick_name(replica.accelerator, replica.tp)
        curve_samples = [self._load(load) for load in LOADS]
        drive = self._drive(inf)
        self._watch(drive, WARM_S)
        saturated = self._watch(drive, WINDOW_S)
        curve = fit_curve([span.steps for samples in (*curve_samples, saturated) for span in spans(samples)])
        assert curve is not None, "there were steps"
        in_flight = np.mean([sample.num_in_flight - sample.num_queued for sample in saturated])
        yardstick = yardstick_of(spans(saturated), float(in_flight) / len(self._fleet.replicas), curve)
        self._tell(f"yardstick: {yardstick.tokens_per_s:,.0f} tokens/s and accelerator, simulated")
        phases = [Phase((), self._watch(drive, WINDOW_S))]
        self._hold_s = HOLD_S
        self._watch(drive, SETTLE_S)
        phases.append(Phase(("delay",), self._watch(drive, WINDOW_S)))
        self._hold_s = 0.0
        self._watch(drive, SETTLE_S)
        self._limit(drive, LITTLE_LOAD)
        self._watch(drive, SETTLE_S)
        phases.append(Phase(("no_demand",), self._watch(drive, WINDOW_S)))
        self._limit(drive, FULL_LOAD)
        past: tuple[str, ...] = ()
        for injection, at_s in (("slow_20", SLOW_AT_S), ("half_slots", HALF_SLOTS_AT_S), ("dead_node", DEAD_AT_S)):
            past = (*past, injection)
            left_s = self._started_at + at_s - time.time()
            if left_s < 0.0:
                raise SystemExit(f"{injection} came {-left_s:.0f} s before its phase: this machine is too slow")
            self._watch(drive, left_s + SETTLE_S)
            phases.append(Phase(past, self._watch(drive, WINDOW_S)))
        self._abort(drive)
        slow = sorted(replica.replica_id for replica in self._fleet.replicas)[SLOW_ENGINE]
        return LiveRun(name, yardstick, tuple(phases), slow)

    def _drive(self, max_open: float) -> _Load:
        """Requests without an end, so many open at a time and accelerator."""
        random = np.random.default_rng(0)
        count = _ENDLESS
        answer_lens = random.integers(MEAN_ANSWER // 2, MEAN_ANSWER * 3 // 2, count).astype(np.int32)
        prompt_lens = random.integers(PROMPT // 2, PROMPT * 3 // 2, count).astype(np.int32)
        noise = random.integers(0, 1 << 28, count, dtype=np.uint64)
        requests = Requests(
            due_s=np.zeros(count),
            prompt_lens=prompt_lens,
            answer_lens=answer_lens,
            max_tokens=np.full(count, 2 * MEAN_ANSWER, np.int32),
            seeds=seeds_with_ends(noise, prompt_lens, answer_lens),
        )
        drive = _Load(self._router, MODEL, requests, Prompts(self._profile.vocab_size))
        slots = self._fleet.replicas[0].max_num_seqs
        self._limit(drive, min(max_open / slots, FULL_LOAD))
        drive.start()
        return drive

    def _limit(self, drive: _Load, share: float) -> None:
        """To so many requests per slot."""
        drive.limit(round(share * self._fleet.replicas[0].max_num_seqs * len(self._fleet.replicas)))

    def _load(self, load: int) -> tuple[ModelCounters, ...]:
        """A few seconds of so many requests at a time and accelerator; then none are left."""
        self._tell(f"step times at {load} requests")
        drive = self._drive(load)
        self._watch(drive, 2.0)
        samples = self._watch(drive, LOAD_S)
        self._abort(drive)
        return samples

    def _watch(self, drive: Drive, seconds: float) -> tuple[ModelCounters, ...]:
        """Looks at the service for so long."""
        begin_s = time.monotonic()
        samples: list[ModelCounters] = []
        while True:
            now_s = time.monotonic()
            if not samples or now_s - samples[-1].time_s >= SAMPLE_S:
                samples.append(model_counters(merge([self._router.snapshot()], {}), MODEL, now_s))
            if now_s - begin_s >= seconds:
                return tuple(samples)
            if self._hold_s:
                time.sleep(self._hold_s)
                until_s = time.monotonic() + 0.2
                while time.monotonic() < until_s and self._router.has_messages():
                    drive.turn(wait=False)
            drive.turn()

    def _abort(self, drive: Drive) -> None:
        ids = self._router._table.request_ids_of(drive)
        self._router.abort_many(ids)
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            self._router.poll(0.05)


def known_losses(live: LiveRun, phase: Phase) -> dict[str, float]:
    """Tokens lost for reasons whose size the injections themselves say."""
    rate = live.yardstick.tokens_per_s
    first, last = phase.samples[0].replicas, phase.samples[-1].replicas
    lost = {"slow step": 0.0, "unhealthy": 0.0}
    for old, new in zip(first, last, strict=True):
        if "slow_20" in phase.injections and new.replica == live.slow:
            lost["slow step"] += (
                rate * (new.steps.step_s - old.steps.step_s) * SLOW_PERCENT / (100.0 + SLOW_PERCENT)
            )
        if new.presence is Presence.DEAD:
            lost["unhealthy"] += rate * phase.window_s
    return lost
