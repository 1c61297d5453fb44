"""The controller killed between any two steps, its history cut at any byte, and its decisions made again."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fluid_fleet import MODEL, FluidFleet, Kind
from nfold.cluster.controller.actuation import Actual, Target
from nfold.cluster.controller.decision import Action
from nfold.cluster.controller.history import History, read
from nfold.cluster.controller.loop import Controller
from nfold.cluster.controller.policy import decide
from nfold.cluster.controller.records import Entry, Score, State
from nfold.cluster.controller.scoring import calibrate
from nfold.cluster.controller.settings import ControllerSettings, ScalingSettings
from nfold.cluster.controller.snapshot import Memory, Snapshot
from nfold.models.errors import StateError

SETTINGS = ControllerSettings(
    tick_s=10.0, models={MODEL: ScalingSettings(idle_before_removal_s=300.0, keep_utilisation=0.8)}
)


class Killed(BaseException):
    """The process is gone."""


class Rig:
    """A fleet, a controller, and death at its `dies_at`-th step of all."""

    def __init__(self, directory: Path, dies_at: float = math.inf) -> None:
        self.fleet = FluidFleet([Kind(provision_s=60.0, load_s=30.0)], self._asked_for, max_waiting_s=3600.0)
        self.fleet.start_with("mi355x", 2)
        self.directory = directory
        self.dies_at = dies_at
        self.num_steps = 0
        self.blind = False
        self.quarantined: Sequence[str] = ()
        self.change_steps: list[int] = []
        self.controller = self._born()

    def _asked_for(self, time_s: float) -> float:
        return 3000.0 if 100.0 <= time_s - 1_000_000.0 < 900.0 else 1400.0

    def _born(self) -> Controller:
        history = History(self.directory)
        for step in ("append", "keep_state"):
            setattr(history, step, self._mortal(getattr(history, step)))
        return Controller(self, self, SETTINGS, history, lambda: self.fleet.time_s)

    def _mortal(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """It may die before the step, and after it."""

        def mortal(*args: Any) -> Any:
            self._live()
            result = step(*args)
            self._live()
            return result

        return mortal

    def _live(self) -> None:
        self.num_steps += 1
        if self.num_steps == self.dies_at:
            raise Killed

    def observe(self) -> Actual:
        self._live()
        if self.blind:
            raise StateError("the head is away")
        return self.fleet.observe()

    def look(self, actual: Actual, memory: Memory) -> Snapshot:
        return self._mortal(self.fleet.snapshot)()

    def converge(self, target: Target) -> None:
        self._mortal(self.fleet.converge)(target)

    def quarantine(self, replica_ids: Sequence[str]) -> None:
        self._live()
        self.quarantined = replica_ids

    def go(self, seconds: float) -> "Rig":
        for _ in range(round(seconds / SETTINGS.tick_s)):
            first = self.num_steps + 1
            try:
                decision = self.controller.tick()
                if decision and decision.changes:
                    self.change_steps += range(first, self.num_steps + 1)
            except Killed:
                self.controller = self._born()
            self.fleet.advance(SETTINGS.tick_s)
        return self

    @property
    def entries(self) -> list[Entry]:
        return list(read(self.directory))

    @property
    def changes(self) -> list[tuple[Action, dict[str, int]]]:
        decided = [entry.decided.decision for entry in self.entries if entry.decided]
        verdicts = [decision.verdicts[0] for decision in decided]
        return [(each.action, dict(each.after)) for each in verdicts if each.action is not Action.HOLD]

    @property
    def scores(self) -> list[Score]:
        return [score for entry in self.entries for score in entry.scores]


def test_killed_at_any_step_it_does_the_same(tmp_path: Path) -> None:
    """Load rises and falls. Wherever the controller dies, it decides the same, once each, and scores each once."""
    whole = Rig(tmp_path / "whole").go(1600.0)
    assert whole.changes[-1] == (Action.REMOVE, {"mi355x": 2})
    steps = whole.change_steps
    assert len(steps) >= 20
    for dies_at in [*steps[:10], *steps[-10:], 300, 301, 302, 303, 304, 305, 306, 307]:
        rig = Rig(tmp_path / str(dies_at), dies_at).go(1600.0)

        assert rig.num_steps > dies_at
        assert rig.changes == whole.changes, dies_at
        numbers = [entry.decided.decision.number for entry in rig.entries if entry.decided]
        assert numbers == sorted(set(numbers))
        assert [(score.outcome, score.tokens_per_s) for score in rig.scores] == [
            (score.outcome, score.tokens_per_s) for score in whole.scores
        ]
        assert rig.fleet.serving == whole.fleet.serving


def test_every_kept_decision_is_made_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path).go(2000.0)
    decided = [entry.decided for entry in rig.entries if entry.decided]

    assert len(decided) >= 5
    for kept in decided:
        decision, memory = decide(kept.snapshot, kept.read_settings(), kept.before)
        assert msgspec.json.encode(decision) == msgspec.json.encode(kept.decision)
        assert msgspec.json.encode(memory) == msgspec.json.encode(kept.after)


def test_changes_are_scored_against_their_predictions(tmp_path: Path) -> None:
    rig = Rig(tmp_path).go(2000.0)
    scores = [score for score in rig.scores if score.outcome == "reached"]

    assert scores
    calibration = calibrate(scores)
    assert calibration.num_tokens == len(scores)
    assert calibration.num_efficiency >= 1
    assert calibration.efficiency_error < 0.1
    assert calibration.tokens_error < 0.02
    assert abs(scores[-1].late_s) <= 60.0


def test_a_hole_is_marked_and_not_filled(tmp_path: Path) -> None:
    rig = Rig(tmp_path).go(200.0)
    demand = rig.controller.state.memory.models[MODEL].demand
    rig.blind = True
    rig.go(300.0)
    rig.blind = False
    rig.go(200.0)

    (hole,) = [entry.hole for entry in rig.entries if entry.hole]
    assert hole.to_s - hole.from_s == pytest.approx(310.0, abs=10.0)
    later = rig.controller.state.memory.models[MODEL].demand[len(demand) :]
    assert min(sample.time_s for sample in later) >= hole.to_s
    assert any(score.hole_s for score in rig.scores)


@pytest.mark.parametrize("num_bytes", [1, 7, 100, 150])
def test_a_torn_line_does_not_count(tmp_path: Path, num_bytes: int) -> None:
    rig = Rig(tmp_path).go(500.0)
    path = tmp_path / "history.jsonl"
    whole, numbers = path.read_bytes(), len(rig.entries)
    last = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[: last + num_bytes])
    history = History(tmp_path)

    assert len(list(read(tmp_path))) == numbers - 1
    history.append(Entry(state=State(time_s=1.0)))
    assert len(list(read(tmp_path))) == numbers


def test_without_its_state_file_it_resumes_from_the_last_decision(tmp_path: Path) -> None:
    rig = Rig(tmp_path).go(500.0)
    kept = [entry.state for entry in rig.entries if entry.state][-1]
    (tmp_path / "state.json").write_text("{")

    assert History(tmp_path).resume().memory == kept.memory


def test_a_long_history_begins_anew_and_is_still_read(tmp_path: Path) -> None:
    rig = Rig(tmp_path).go(500.0)
    numbers = len(rig.entries)
    history = History(tmp_path, max_bytes=10)
    history.append(Entry())

    assert len(list(read(tmp_path))) == numbers + 1
    assert history.resume().memory.decision > 0


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot keep its history in .*file/here"):
        History(tmp_path / "file" / "here")
