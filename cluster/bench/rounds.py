"""Rounds of MLPerf Inference that LoadGen's wheels belong to: each has seeds of its own, by which its submission
checker knows the runs that it takes."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Round:
    """
    Attributes:
        seeds: fields of LoadGen's TestSettings.
        gone: benchmarks that it takes no results of any more.
    """

    name: str
    seeds: Mapping[str, int]
    gone: tuple[str, ...] = ()


def _seeds(qsl: int, sample_index: int, schedule: int) -> dict[str, int]:
    return {"qsl_rng_seed": qsl, "sample_index_rng_seed": sample_index, "schedule_rng_seed": schedule}


ROUNDS = (
    Round("v6.0", _seeds(2465351861681999779, 14276810075590677512, 3936089224930324775)),
    Round("v6.1", _seeds(2085463073848966840, 2747215439041700203, 16159082839903944936), ("llama2-70b-99",)),
)


def round_of(settings: Mapping[str, object]) -> Round | None:
    """Whose seeds these settings of LoadGen have; None when nfold knows of no such round."""
    for each in ROUNDS:
        if all(settings.get(name) == seed for name, seed in each.seeds.items()):
            return each
    return None
