"""How much work there is and will be when a node that is asked for now serves. Pure.

tokens/s │                             . expected
 asked   │                       .  ·
 for     │          · ·  ·  · ·
         └────────────────────────┬────────┬──> time
                                 now      now + lead
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

from .settings import ScalingSettings
from .snapshot import DemandSample, Load, ModelMemory

SAMPLE_EVERY_S = 30.0
KEEP_S = 2 * 3600.0
# The trend is taken over as long as the lead, but not less than this; seconds.
MIN_TREND_S = 180.0
# A trend counts when it is so many standard errors from none.
CERTAIN = 2.5
# No trend is believed to more than so many times what is asked for now.
MAX_GROWTH = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Work, in output tokens/s of nodes fully used.

    Attributes:
        now: asked for at present.
        expected: the most that will be asked for until a node that is asked for now serves.
        peak: the most that was asked for of late, for giving nodes back.
        lead_s: until then.
        backlog_tokens: queued that will still wait then, if nothing is added.
        queue_tokens: that will wait then, with what comes until then.
        planned: that nodes should be able to do: what is expected, at the utilisation that is aimed at, and the
            backlog in the time that is set for it.
    """

    now: float
    expected: float
    peak: float
    lead_s: float
    backlog_tokens: float
    queue_tokens: float
    planned: float


def remember(memory: ModelMemory, load: Load, time_s: float) -> ModelMemory:
    """One sample more, and those that are too old less. In a hole, while nobody looked, there are none."""
    last = memory.demand[-1].time_s if memory.demand else float("-inf")
    if time_s - last < SAMPLE_EVERY_S:
        return memory
    kept = tuple(sample for sample in memory.demand if sample.time_s > time_s - KEEP_S)
    return replace(memory, demand=(*kept, DemandSample(time_s=time_s, tokens_per_s=load.arriving_tokens_per_s)))


def estimate(
    load: Load,
    samples: Sequence[DemandSample],
    settings: ScalingSettings,
    *,
    time_s: float,
    lead_s: float,
    look_back_s: float,
    capacity: float,
) -> Demand:
    """
    Args:
        samples: of the past, see `remember`.
        lead_s: until a node that is asked for now serves.
        look_back_s: for `peak`.
        capacity: tokens/s of what is there and on its way.
    """
    now = load.arriving_tokens_per_s
    expected = max(now, _forecast(samples, now, time_s, lead_s))
    recent = [sample.tokens_per_s for sample in samples if sample.time_s >= time_s - look_back_s]
    worked_off = max(0.0, capacity - now) * lead_s
    backlog = max(0.0, load.queued_tokens - worked_off)
    return Demand(
        now=now,
        expected=expected,
        peak=max([now, expected, *recent]),
        lead_s=lead_s,
        backlog_tokens=backlog,
        queue_tokens=max(0.0, load.queued_tokens + (now - capacity) * lead_s),
        planned=expected / settings.target_utilisation + backlog / settings.backlog_within_s,
    )


def _forecast(samples: Sequence[DemandSample], now: float, time_s: float, lead_s: float) -> float:
    """By the trend of the latest samples, when it rises beyond doubt: by Kendall's test, many more pairs of samples
    rise than fall. So that a step is no trend, the lesser slope of the two halves of the time counts."""
    since_s = time_s - max(lead_s, MIN_TREND_S)
    recent = [sample for sample in samples if sample.time_s >= since_s]
    n = len(recent)
    if n < 6 or recent[-1].time_s - recent[0].time_s < MIN_TREND_S / 2:
        return now
    pairs = combinations((sample.tokens_per_s for sample in recent), 2)
    rising = sum((after > before) - (after < before) for before, after in pairs)
    slope = min(_slope(recent[: n // 2]), _slope(recent[n // 2 :]))
    if slope <= 0.0 or rising <= CERTAIN * (n * (n - 1) * (2 * n + 5) / 18) ** 0.5:
        return now
    level = median(sample.tokens_per_s + slope * (time_s - sample.time_s) for sample in recent)
    return min(level + slope * lead_s, MAX_GROWTH * max(now, level))


def _slope(samples: Sequence[DemandSample]) -> float:
    """Tokens/s per second: the median of the slopes of all pairs (Theil and Sen)."""
    return median(
        (after.tokens_per_s - before.tokens_per_s) / (after.time_s - before.time_s)
        for before, after in combinations(samples, 2)
    )
