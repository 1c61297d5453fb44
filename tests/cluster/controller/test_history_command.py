"""`nfold history` out of a directory: decisions beside what came of them, holes, costs and calibration."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from fluid_fleet import MODEL, FluidFleet, Kind
from nfold.cluster.controller.actuation import Actual
from nfold.cluster.controller.history import History
from nfold.cluster.controller.history_command import Told, render, tell
from nfold.cluster.controller.loop import Controller
from nfold.cluster.controller.settings import ControllerSettings, PriceSettings, ScalingSettings
from nfold.cluster.controller.snapshot import Memory, Snapshot
from rich.console import Console


class Service:
    def __init__(self, fleet: FluidFleet) -> None:
        self.fleet = fleet

    def look(self, actual: Actual, memory: Memory) -> Snapshot:
        return self.fleet.snapshot()

    def quarantine(self, replica_ids: Sequence[str]) -> None:
        assert not replica_ids


def run(directory: Path) -> None:
    """Two nodes, work for three; nobody looks for a while."""
    fleet = FluidFleet([Kind(provision_s=60.0, load_s=30.0)], lambda time_s: 2500.0, max_waiting_s=3600.0)
    fleet.start_with("mi355x", 2)
    settings = ControllerSettings(
        tick_s=10.0,
        models={MODEL: ScalingSettings(provision_s=60.0, load_s=30.0)},
        prices=PriceSettings(node_hour={"mi355x": 24.0}),
    )
    for ticks in (30, 20):
        controller = Controller(Service(fleet), fleet, settings, History(directory), lambda: fleet.time_s)
        for _ in range(ticks):
            controller.tick()
            fleet.advance(10.0)
        fleet.advance(100.0)


def shown(told: Told) -> str:
    console = Console(width=250, force_terminal=False)
    with console.capture() as capture:
        console.print(render(told))
    return capture.get()


def test_decisions_stand_beside_what_came_of_them(tmp_path: Path) -> None:
    run(tmp_path)
    told = tell(tmp_path, last=20, every=False)
    text = shown(told)

    assert "2,500 tokens/s are asked for" in text
    assert "3 mi355x" in text
    assert "100.0%" in text
    assert "nobody looked from" in text
    assert "scored, off by" in text
    assert "off by 0.0%" in text
    assert "USD per hour" in shown(tell(tmp_path, last=20, every=True))
    assert msgspec.json.decode(msgspec.json.encode(told), type=Told).scores == told.scores


def test_only_the_latest_are_told_when_asked_so(tmp_path: Path) -> None:
    run(tmp_path)
    everything = tell(tmp_path, last=100, every=True)
    one = tell(tmp_path, last=1, every=True)

    assert len(everything.decided) > len(tell(tmp_path, last=100, every=False).decided)
    assert [decided.decision.number for decided in one.decided] == [everything.decided[-1].decision.number]
    assert one.calibration == everything.calibration


def test_without_a_decision_it_says_so(tmp_path: Path) -> None:
    assert "decided nothing yet" in shown(tell(tmp_path, last=5, every=False))
