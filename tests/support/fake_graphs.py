"""Stands in for a GPU's graphs. Importable by spawned processes: no pytest here."""

from nfold.models.engine.graph import Capture, Compute, Outputs
from nfold.models.engine.native import NativeEngine


def fake_graphs() -> Capture:
    """As with a GPU's, a capture computes nothing, and replays leave their results in one place; they know no more
    of a step than the device does.

    Like kernels on a GPU, those of a step must read contexts there: the compiled ones do. On CPU the host reads
    that place, not a copy, so steps must not overlap.
    """

    def capture(compute: Compute) -> Compute:
        places: list[Outputs] = []

        def replay() -> Outputs:
            results = compute()
            if not places:
                places.append(results)
            for place, result in zip(places[0], results, strict=True):
                place.copy_(result)
            return places[0]

        return replay

    return capture


def broken_graphs() -> Capture:
    """The third capture fails."""
    captured = list[Compute]()

    def capture(compute: Compute) -> Compute:
        captured.append(compute)
        if len(captured) == 3:
            raise RuntimeError("operation not permitted when stream is capturing")
        return compute

    return capture


def has_graphs(engine: NativeEngine) -> bool:
    decodes = engine.core._decodes
    assert decodes is not None
    replays = {step._replay is not None for step in decodes._steps}
    assert len(replays) == 1
    return replays.pop()
