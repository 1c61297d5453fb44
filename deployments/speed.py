"""How long a replica takes for the work it has, learnt from the steps that it reports.

    step_s  =  fixed_s  +  prompt_token_s x prompt tokens  +  output_token_s x decode tokens

The line belongs to a pool: all its replicas teach it. Each replica has a factor on it, its slowness. A prompt token
and an output token cost differently, and differently on each accelerator, so they are counted apart.

Not learnt from is the rate seen last: a replica with two requests runs at a small fraction of its speed, and would
be starved for looking slow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Steps of the whole pool and of one replica after which an observation counts half.
LINE_HALF_LIFE_STEPS = 2000.0
SLOWNESS_HALF_LIFE_STEPS = 20.0
# One odd step (a compilation, a page fault) may not turn an estimate over.
ODD_STEP_CLAMP = 4.0
BASELINE_WEIGHT_STEPS = 50.0
# Replicas of a pool whose slowness differs by less count as equal in how fast one answer grows.
SLOWNESS_GRAIN = 0.25
# Slopes move off what they were by as much as the batches seen differ, against this share of the batch itself.
_HOLD = 1e-4
_SOLVE_EVERY = 16
_LEAST_S = 1e-12
_STEPS_BEFORE_CLAMPING = 8.0


@dataclass(frozen=True, slots=True)
class StepCosts:
    """One pool's line: seconds of a step, and on top of that of each of its prompt and decode tokens.

    Attributes:
        alone_s: of a step with hardly a token, as a baseline tells; None when none does. Full batches do not
            show it: the context that they hold always is in `fixed_s`, too.
    """

    fixed_s: float
    prompt_token_s: float
    output_token_s: float
    alone_s: float | None = None

    @property
    def least_s(self) -> float:
        """What each output token of a request takes, however little else there is."""
        return self.fixed_s if self.alone_s is None else self.alone_s

    def step_s(self, num_prompt: float, num_decode: float) -> float:
        return self.fixed_s + self.prompt_token_s * num_prompt + self.output_token_s * num_decode


class StepLine:
    """A pool's `StepCosts`, fitted to decayed sums of the steps observed; none is ever below 0.

    What the steps do not tell apart stays as it was. Before any two steps differed, all their time counts as fixed.
    """

    def __init__(self) -> None:
        self._keep = 0.5 ** (1.0 / LINE_HALF_LIFE_STEPS)
        self._weight = 0.0
        self._p = self._d = self._y = 0.0
        self._pp = self._pd = self._dd = self._py = self._dy = 0.0
        self._costs: StepCosts | None = None
        self._alone_s: float | None = None
        self._num_unsolved = 0

    @classmethod
    def from_baseline(
        cls, points: Sequence[tuple[float, float, float]], weight_steps: float = BASELINE_WEIGHT_STEPS
    ) -> "StepLine":
        """As if `weight_steps` steps had been seen, spread evenly over `points` of the baseline's curve.

        Args:
            points: prompt tokens, decode tokens and seconds per step. Steps that are really seen outweigh them.
        """
        line = cls()
        for num_prompt, num_decode, step_s in points:
            line._add(num_prompt, num_decode, step_s, weight_steps / len(points))
        if (costs := line.costs) is not None:
            line._alone_s = costs.fixed_s
        return line

    @property
    def costs(self) -> StepCosts | None:
        """None before any step was seen. Up to 16 steps old."""
        if self._num_unsolved >= _SOLVE_EVERY or (self._costs is None and self._weight > 0.0):
            self._solve()
        return self._costs

    def observe(self, num_prompt: int, num_decode: int, step_s: float) -> None:
        """One more step. Steps that computed nothing teach nothing."""
        if num_prompt + num_decode <= 0 or step_s <= 0.0:
            return
        if self._weight >= _STEPS_BEFORE_CLAMPING and (costs := self.costs) is not None:
            expected_s = costs.step_s(num_prompt, num_decode)
            step_s = min(max(step_s, expected_s / ODD_STEP_CLAMP), expected_s * ODD_STEP_CLAMP)
        keep = self._keep
        self._weight *= keep
        self._p *= keep
        self._d *= keep
        self._y *= keep
        self._pp *= keep
        self._pd *= keep
        self._dd *= keep
        self._py *= keep
        self._dy *= keep
        self._add(num_prompt, num_decode, step_s, 1.0)

    def _add(self, p: float, d: float, y: float, weight: float) -> None:
        self._weight += weight
        self._p += weight * p
        self._d += weight * d
        self._y += weight * y
        self._pp += weight * p * p
        self._pd += weight * p * d
        self._dd += weight * d * d
        self._py += weight * p * y
        self._dy += weight * d * y
        self._num_unsolved += 1

    def _solve(self) -> None:
        """Least squares around the means, held to the slopes before; between 0 and the line through the origin."""
        self._num_unsolved = 0
        weight = self._weight
        p, d, y = self._p / weight, self._d / weight, self._y / weight
        var_p, var_d = max(self._pp / weight - p * p, 0.0), max(self._dd / weight - d * d, 0.0)
        cov_pd, cov_py, cov_dy = self._pd / weight - p * d, self._py / weight - p * y, self._dy / weight - d * y
        before_p = self._costs.prompt_token_s if self._costs else 0.0
        before_d = self._costs.output_token_s if self._costs else 0.0
        hold_p, hold_d = _HOLD * self._pp / weight + 1e-12, _HOLD * self._dd / weight + 1e-12
        right_p, right_d = cov_py + hold_p * before_p, cov_dy + hold_d * before_d
        var_p, var_d = var_p + hold_p, var_d + hold_d
        determinant = var_p * var_d - cov_pd * cov_pd
        slope_p = (right_p * var_d - right_d * cov_pd) / determinant
        slope_d = (right_d * var_p - right_p * cov_pd) / determinant
        if slope_p < 0.0:
            slope_p, slope_d = 0.0, max(right_d / var_d, 0.0)
        elif slope_d < 0.0:
            slope_p, slope_d = max(right_p / var_p, 0.0), 0.0
        variable_s = slope_p * p + slope_d * d
        if variable_s > y:
            slope_p, slope_d, variable_s = slope_p * y / variable_s, slope_d * y / variable_s, y
        self._costs = StepCosts(y - variable_s, slope_p, slope_d, self._alone_s)


def observe_step(
    slowness: float, costs: StepCosts | None, num_prompt: int, num_decode: int, step_s: float
) -> float:
    """A replica's factor on its pool's line after one more step: 1 is as the pool, 2 takes twice as long."""
    if costs is None or num_prompt + num_decode <= 0 or step_s <= 0.0:
        return slowness
    expected_s = costs.step_s(num_prompt, num_decode)
    if expected_s <= 0.0:
        return slowness
    ratio = min(max(step_s / expected_s, 1.0 / ODD_STEP_CLAMP), ODD_STEP_CLAMP)
    return slowness + (1.0 - 0.5 ** (1.0 / SLOWNESS_HALF_LIFE_STEPS)) * (ratio - slowness)


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """What tokens cost at each replica; all arrays [K], in seconds.

    Attributes:
        step_s: that each output token of a request takes at least: a step of this request alone.
        prompt_token_s: of the replica's time, per prompt token.
        output_token_s: of the replica's time, per output token at a full batch.
        step_share_s: what is in that of a step that is the same with hardly a token, as far as it is known.
    """

    step_s: F64
    prompt_token_s: F64
    output_token_s: F64
    step_share_s: F64

    @property
    def tokens_per_s(self) -> F64:
        """Output tokens at a full batch, prompts left out."""
        return 1.0 / self.output_token_s

    def beside_steps(self) -> "TokenCosts":
        """Where all steps to come are counted apart, at `step_s` each."""
        return replace(self, output_token_s=np.maximum(self.output_token_s - self.step_share_s, _LEAST_S))


def costs_of_replicas(costs: TokenCosts, pool_of: I64, slowness: F64) -> TokenCosts:
    """What tokens cost at each replica: what they cost in its pool times its own slowness.

    Args:
        costs: by pool.
        pool_of, slowness: [K] of each replica.
    """
    # Times the steps of an answer, a noise of some per cent would outweigh the work that replicas have.
    felt = np.maximum(np.rint(slowness / SLOWNESS_GRAIN) * SLOWNESS_GRAIN, SLOWNESS_GRAIN)
    return TokenCosts(
        costs.step_s[pool_of] * felt,
        costs.prompt_token_s[pool_of] * slowness,
        costs.output_token_s[pool_of] * slowness,
        costs.step_share_s[pool_of] * slowness,
    )


def token_costs(
    costs: Sequence[StepCosts | None], slowness: F64, full_batch: F64, pool_of: I64 | None = None
) -> TokenCosts:
    """Per replica: its pool's line (None: nothing known), its own slowness, and the requests of a full batch.
    `pool_of` says whose line each replica's is; None: each has its own.

    Replicas of pools of which nothing is known count as the mean of the others; when of none, all are equal.
    """
    known = np.array([one is not None for one in costs], np.bool_)
    rows = np.array(
        [
            (c.least_s, c.prompt_token_s, c.output_token_s, c.fixed_s, c.alone_s or 0.0) if c else (0.0,) * 5
            for c in costs
        ]
    ).reshape(-1, 5)
    if pool_of is not None:
        known, rows = known[pool_of], rows[pool_of]
    rows[:, 3:] /= full_batch[:, None]
    rows[:, 2] += rows[:, 3]
    rows *= slowness[:, None]
    if known.any():
        rows[~known] = rows[known].mean(axis=0)
    else:
        rows[:] = (0.0, 1.0, 1.0, 0.0, 0.0)
    return TokenCosts(rows[:, 0], rows[:, 1], np.maximum(rows[:, 2], _LEAST_S), rows[:, 4])
