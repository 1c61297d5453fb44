"""The step-time curve: how long steps take that compute so many tokens, fitted to what engines told of theirs.

    step  =  batch_s(decode tokens)                 linear between powers of two
          +  prefill_step_s                         if there are prompt tokens
          +  prefill_token_s  x prompt tokens
          +  kv_token_s       x context tokens held

All of it is linear in the sums of `StepTotals`, so any number of steps is integrated exactly, and fitted likewise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...deployments.step_account import NUM_BUCKETS, StepTotals
from ..record import Record

F64 = NDArray[np.float64]

# Batches at which the curve has its values: none, and every power of two up to where the last bucket begins.
_BATCHES = np.array([0.0, *(2.0**power for power in range(NUM_BUCKETS))])
_NUM_OTHERS = 3
# Of the singular values, against the largest: what the steps do not tell apart is shared out evenly.
_RCOND = 1e-6
# Of all steps, at a batch at which the curve is to bend.
_LEAST_SHARE = 0.02
# So many sums must be of smaller batches, of at most such a share of the largest: from fewer, or others that are
# all alike, it cannot be told whether tokens or steps take time. As many about a batch tell how long its steps are.
_LEAST_SUMS, _SMALL_SHARE = 4, 0.5


class StepCurve(Record):
    """One kind of replica's steps, in seconds.

    Attributes:
        batch_s: step time at decode batches 0, 1, 2, 4, 8, ...; it goes on straight after the last.
        prefill_step_s: more, for any prompt tokens.
        prefill_token_s: more, for each prompt token.
        kv_token_s: more, for each token of context.
    """

    batch_s: tuple[float, ...]
    prefill_step_s: float = 0.0
    prefill_token_s: float = 0.0
    kv_token_s: float = 0.0

    @classmethod
    def affine(
        cls, fixed_s: float, decode_token_s: float, prefill_token_s: float = 0.0, kv_token_s: float = 0.0
    ) -> "StepCurve":
        """A straight one."""
        return cls(
            batch_s=(fixed_s, fixed_s + decode_token_s),
            prefill_token_s=prefill_token_s,
            kv_token_s=kv_token_s,
        )

    def step_s(self, num_prefill: float, num_decode: float, num_kv: float) -> float:
        """One step."""
        values = self._values()
        batch_s = float(np.interp(num_decode, _BATCHES, values))
        prefill_s = self.prefill_step_s + self.prefill_token_s * num_prefill if num_prefill else 0.0
        return batch_s + prefill_s + self.kv_token_s * num_kv

    def seconds(self, totals: StepTotals) -> "CurveSeconds":
        """All steps of `totals` together."""
        return CurveSeconds(
            decode_s=float(_batch_weights(totals) @ self._values()),
            prefill_s=self.prefill_step_s * totals.num_prefill_steps
            + self.prefill_token_s * totals.num_prefill_tokens,
            kv_s=self.kv_token_s * totals.num_kv_tokens,
        )

    def scaled(self, factor: float) -> "StepCurve":
        """Everything takes `factor` as long."""
        return StepCurve(
            batch_s=tuple(factor * value for value in self.batch_s),
            prefill_step_s=factor * self.prefill_step_s,
            prefill_token_s=factor * self.prefill_token_s,
            kv_token_s=factor * self.kv_token_s,
        )

    def _values(self) -> F64:
        """[batches] with what lies beyond the last value."""
        known = np.array(self.batch_s)
        if len(known) == 1:
            return np.full(len(_BATCHES), known[0])
        at = _BATCHES[: len(known)]
        slope = (known[-1] - known[-2]) / (at[-1] - at[-2])
        return np.concatenate((known, known[-1] + slope * (_BATCHES[len(known) :] - at[-1])))


@dataclass(frozen=True, slots=True)
class CurveSeconds:
    """What a curve says some steps take, by what for."""

    decode_s: float
    prefill_s: float
    kv_s: float

    @property
    def total_s(self) -> float:
        return self.decode_s + self.prefill_s + self.kv_s


def fit_curve(observed: Sequence[StepTotals]) -> StepCurve | None:
    """The curve that fits sums of steps best, relative to how long each sum took; none of its parts is negative.

    The more the sums differ in batch, prompts and context, the better its parts are told apart. None without a
    step, and where all sums are of about the same batch, as at saturation alone: what the parts add up to is known
    then, but not what makes a step long.

    Args:
        observed: each of a second or so, under loads from one request to saturation.
    """
    return closest_curve(observed) if tell_apart(observed) else None


def closest_curve(observed: Sequence[StepTotals]) -> StepCurve | None:
    """As `fit_curve`, but always, if there was a step: it says how long steps like those observed take, and nothing
    of others where these are all alike."""
    rows = [totals for totals in observed if totals.num_steps > 0 and totals.step_s > 0.0]
    if not rows:
        return None
    weights = np.array([_batch_weights(totals) for totals in rows])
    knots = _knots(weights)
    others = np.array([(t.num_prefill_steps, t.num_prefill_tokens, t.num_kv_tokens) for t in rows], np.float64)
    wanted_s = np.array([totals.step_s for totals in rows])
    design = np.concatenate((weights @ _between(knots), others), axis=1) / wanted_s[:, None]
    found = _non_negative(design, np.ones(len(rows)))
    values = _between(knots) @ found[:-_NUM_OTHERS]
    last = int(np.flatnonzero(weights.sum(axis=0))[-1]) if weights.any() else 0
    return StepCurve(
        batch_s=tuple(values[: max(last + 1, 2)].tolist()),
        prefill_step_s=float(found[-3]),
        prefill_token_s=float(found[-2]),
        kv_token_s=float(found[-1]),
    )


def tell_apart(observed: Sequence[StepTotals]) -> bool:
    """Whether there are sums of small batches beside those of large ones."""
    batches = [sum(totals.decode_tokens) / totals.num_steps for totals in observed if totals.num_steps]
    most = _SMALL_SHARE * max(batches, default=0.0)
    return sum(batch <= most for batch in batches) >= _LEAST_SUMS


def _batch_weights(totals: StepTotals) -> F64:
    """[batches] by which the curve's values there are to be multiplied: each bucket lies between two of them."""
    steps, tokens = np.array(totals.steps, np.float64), np.array(totals.decode_tokens, np.float64)
    low = _BATCHES[1:NUM_BUCKETS]
    share = tokens[1:] / low - steps[1:]  # of the way to twice as many
    weights = np.zeros(len(_BATCHES))
    weights[0] = steps[0]
    weights[1:NUM_BUCKETS] = steps[1:] - share
    weights[2 : NUM_BUCKETS + 1] += share
    return weights


def _knots(weights: F64) -> list[int]:
    """Where the curve may bend: at 1, 4, 16, ... where there were steps enough to say how; and between two of these
    where all three have sums of their own."""
    seen = np.abs(weights).sum(axis=0)
    own = np.bincount(np.abs(weights).argmax(axis=1), minlength=len(_BATCHES)) >= _LEAST_SUMS
    first, last = int(np.flatnonzero(seen)[0]), int(np.flatnonzero(seen)[-1])
    inner = [
        index
        for index in range(first + 1, last)
        if seen[index] > _LEAST_SHARE * seen.sum() and (index % 2 or own[index - 1 : index + 2].all())
    ]
    return [first, *inner, last] if last > first else [first]


def _between(knots: list[int]) -> F64:
    """[batches, knots]: values at all batches from those at knots; straight on beyond them."""
    matrix = np.zeros((len(_BATCHES), len(knots)))
    if len(knots) == 1:
        matrix[:, 0] = 1.0
        return matrix
    at = _BATCHES[knots]
    right = np.clip(np.searchsorted(at, _BATCHES), 1, len(knots) - 1)
    share = (_BATCHES - at[right - 1]) / (at[right] - at[right - 1])
    rows = np.arange(len(_BATCHES))
    matrix[rows, right - 1] = 1.0 - share
    matrix[rows, right] += share
    return matrix


def _non_negative(design: F64, wanted: F64) -> F64:
    """Least squares; the columns that would come out negative are left out, the worst first."""
    found = np.zeros(design.shape[1])
    kept = np.flatnonzero(design.any(axis=0))
    while len(kept):
        columns = design[:, kept]
        scale = np.linalg.norm(columns, axis=0)
        solution = np.linalg.lstsq(columns / scale, wanted, rcond=_RCOND)[0] / scale
        worst = int(np.argmin(solution * scale))
        if solution[worst] >= 0.0:
            found[kept] = solution
            break
        kept = np.delete(kept, worst)
    return found
