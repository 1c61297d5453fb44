"""How far a run is, and when it will end."""

import math

from .queries import Queries
from .samples import SampleSet
from .scenarios import Scenario
from .settings import RunSettings

# Without so many, LoadGen gives no estimate of a 90th percentile.
EARLY_STOPPING_QUERIES = 64


class ProgressLine:
    """Of one run."""

    def __init__(self, settings: RunSettings, samples: SampleSet) -> None:
        self._settings = settings
        self._expected = expected_queries(settings, len(samples))

    def of(self, queries: Queries, elapsed_s: float) -> str:
        """For people."""
        rate = queries.num_ended_tokens / elapsed_s if elapsed_s > 0 else 0.0
        failed = f", {queries.num_failed} FAILED" if queries.num_failed else ""
        left_s = self.left_s(queries, elapsed_s)
        left = "the end is not in sight yet" if left_s is None else f"about {_span(left_s)} left"
        whole = "" if self._settings.scenario is Scenario.SINGLE_STREAM else f" of {self._whole(queries):,}"
        what = "accuracy" if self._settings.accuracy else "performance"
        return (
            f"{self._settings.scenario} {what}: {queries.num_ended:,}{whole} answered{failed}, "
            f"{rate:,.0f} tokens/s, {left}"
        )

    def left_s(self, queries: Queries, elapsed_s: float) -> float | None:
        """Seconds until the last answer; None before anything can be said."""
        settings = self._settings
        if settings.scenario is Scenario.SINGLE_STREAM:
            rest_s = (EARLY_STOPPING_QUERIES - queries.num_ended) * elapsed_s / max(queries.num_ended, 1)
            return max(0.0, settings.min_duration_s - elapsed_s, rest_s)
        if settings.scenario.is_server and not settings.accuracy:
            whole_s = max(settings.min_duration_s, self._expected / settings.target_qps)
            if elapsed_s < whole_s:
                return whole_s - elapsed_s
        if queries.num_ended == 0:
            return None
        return (self._whole(queries) - queries.num_ended) / queries.num_ended * elapsed_s

    def _whole(self, queries: Queries) -> int:
        return max(len(queries), self._expected)


def expected_queries(settings: RunSettings, num_samples: int) -> int:
    """How many samples LoadGen will issue: enough for the least duration and count, and, when it concatenates
    permutations, whole data sets."""
    if settings.accuracy:
        return num_samples
    if settings.scenario is Scenario.SINGLE_STREAM:
        return int(settings.values["min_query_count"])
    slack = 1.1 if settings.scenario is Scenario.OFFLINE else 1.0
    count = max(
        math.ceil(slack * settings.target_qps * settings.min_duration_s), int(settings.values["min_query_count"])
    )
    size = int(settings.values["performance_sample_count_override"]) or num_samples
    return math.ceil(count / size) * size if settings.values["sample_concatenate_permutation"] else count


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
