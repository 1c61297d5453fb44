"""Whether two sets of repeats are the same within a margin: two one-sided tests on the log ratio (TOST). Pure.

    not reproduced      reproduced       not reproduced
    ───────────────┤──────┼──────├───────────────────────  log of here / there
                -margin   0    +margin
             [ci]      [  ci  ]                            all of it outside, all of it inside
                  [     ci     ]                           inconclusive: more repeats narrow it

Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", Journal of Pharmacokinetics
and Biopharmaceutics 15, 1987. The interval is Welch's, as sites need not be equally noisy.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy.stats import t as student

# Each one-sided test's error: a verdict looks at two measures and must be wrong in less than 5 % of all cases.
ALPHA = 0.0125
MAX_MORE = 100
MIN_REPEATS = 2


class Verdict(StrEnum):
    """What can be said."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of one measure.

    Attributes:
        ratio: here over there, of the geometric means.
        low, high: its confidence interval; None with too few repeats.
        num_more: repeats here that would probably decide it, when inconclusive; None past 100.
    """

    verdict: Verdict
    ratio: float
    low: float | None
    high: float | None
    num_more: int | None = 0


def compare(there: Sequence[float], here: Sequence[float], margin: float, *, alpha: float = ALPHA) -> Comparison:
    """Repeats of a positive measure at two sites.

    Args:
        margin: the share by which they may differ, such as 0.02.
    """
    assert min(len(there), len(here), *there, *here) > 0
    assert 0 < margin < 1
    before, after = ([math.log(value) for value in values] for values in (there, here))
    difference = statistics.fmean(after) - statistics.fmean(before)
    if min(len(before), len(after)) < MIN_REPEATS:
        missing = MIN_REPEATS + 1 - len(after) if len(before) >= MIN_REPEATS else None
        return Comparison(Verdict.INCONCLUSIVE, math.exp(difference), None, None, missing)
    variances = statistics.variance(before), statistics.variance(after)
    half = _half_width(variances, (len(before), len(after)), alpha)
    verdict = _verdict(difference, half, margin)
    more = (
        0 if verdict is not Verdict.INCONCLUSIVE else _num_more(difference, variances, before, after, margin, alpha)
    )
    return Comparison(verdict, math.exp(difference), math.exp(difference - half), math.exp(difference + half), more)


def _verdict(difference: float, half: float, margin: float) -> Verdict:
    low, high = math.log1p(-margin), math.log1p(margin)
    if low < difference - half and difference + half < high:
        return Verdict.REPRODUCED
    if difference + half < low or difference - half > high:
        return Verdict.NOT_REPRODUCED
    return Verdict.INCONCLUSIVE


def _half_width(variances: tuple[float, float], counts: tuple[int, int], alpha: float) -> float:
    """Of the interval that each of two one-sided tests at `alpha` leaves, with Welch's degrees of freedom."""
    parts = [variance / count for variance, count in zip(variances, counts, strict=True)]
    square = sum(parts)
    if square == 0.0:
        return 0.0
    freedom = square**2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return float(student.ppf(1 - alpha, freedom)) * math.sqrt(square)


def _num_more(
    difference: float,
    variances: tuple[float, float],
    before: Sequence[float],
    after: Sequence[float],
    margin: float,
    alpha: float,
) -> int | None:
    """Repeats here after which the same difference and spread would decide; there they are as many as they are."""
    for more in range(1, MAX_MORE + 1):
        half = _half_width(variances, (len(before), len(after) + more), alpha)
        if _verdict(difference, half, margin) is not Verdict.INCONCLUSIVE:
            return more
    return None


def whole_verdict(comparisons: Sequence[Comparison]) -> tuple[Verdict, int | None]:
    """Of several measures: all must be reproduced, one that is not decides; and repeats that are missing."""
    verdicts = [comparison.verdict for comparison in comparisons]
    if Verdict.NOT_REPRODUCED in verdicts:
        return Verdict.NOT_REPRODUCED, 0
    open_ones = [each.num_more for each in comparisons if each.verdict is Verdict.INCONCLUSIVE]
    if not open_ones:
        return Verdict.REPRODUCED, 0
    known = [more for more in open_ones if more is not None]
    return Verdict.INCONCLUSIVE, max(known) if len(known) == len(open_ones) else None
