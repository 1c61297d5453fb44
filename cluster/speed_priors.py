"""From a baseline, or the profile of a simulated accelerator, to what routers take replicas' speed for until they
have seen their steps."""

from typing import Protocol

from ..deployments.speed_prior import SpeedPrior
from ..models.engine.simulated.lengths import WORKLOADS
from ..models.engine.simulated.profile import StepTimeProfile
from .baseline import Baseline

# Of the batch at saturation: where the curve is read.
BATCH_SHARES = (0.125, 0.5, 1.0)

Points = tuple[tuple[float, float, float], ...]


class Curve(Protocol):
    """How long steps take."""

    def step_s(self, num_prefill: float, num_decode: float, num_kv: float, /) -> float: ...


def speed_prior_of(baseline: Baseline) -> SpeedPrior | None:
    """What its curve says; None without a curve."""
    curve, told = baseline.curve, baseline.saturation
    if curve is None or told is None or not (told.steps and told.decode_tokens):
        return None
    points = _read(
        curve,
        num_prompt=told.prefill_tokens / told.steps,
        num_decode=told.decode_tokens / told.steps,
        context=told.kv_tokens / told.decode_tokens,
    )
    key = baseline.key
    return SpeedPrior(model=key.model, accelerator=key.accelerator, tp=key.tp, points=points)


def profile_points(profile: StepTimeProfile, scenario: str) -> Points:
    """What a baseline of it would tell routers, contexts as long as on the mean; see `StepLine.from_baseline`."""
    batch = full_batch(profile, scenario)
    return _read(profile.curve, num_prompt=batch, num_decode=batch, context=_mean_context(profile))


def full_batch(profile: StepTimeProfile, scenario: str) -> float:
    """Requests that an engine runs at saturation: by its slots or its KV cache, as a baseline tells."""
    slots = profile.scenario(scenario).limits.max_num_seqs
    return min(slots, profile.kv_capacity_tokens / _mean_context(profile))


def _mean_context(profile: StepTimeProfile) -> float:
    lengths = WORKLOADS[profile.workload]
    return lengths.prompt.mean + lengths.answer.mean / 2


def _read(curve: Curve, *, num_prompt: float, num_decode: float, context: float) -> Points:
    """Steps of growing batches, each without prompts and with them.

    Args:
        num_prompt, num_decode: tokens of a step at saturation.
        context: that each of the latter has.
    """
    batches = [(share * num_prompt, share * num_decode) for share in BATCH_SHARES]
    return tuple(
        (prompt, decode, curve.step_s(prompt, decode, context * decode))
        for most, decode in batches
        for prompt in (0.0, most)
    )
