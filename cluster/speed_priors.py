"""From a baseline to what routers take replicas' speed for until they have seen their steps."""

from ..deployments.speed_prior import SpeedPrior
from .baseline import Baseline

# Of the batch at saturation: where the curve is read.
BATCH_SHARES = (0.125, 0.5, 1.0)


def speed_prior_of(baseline: Baseline) -> SpeedPrior | None:
    """Steps of growing batches, with and without prompts, as its curve has them; None without a curve."""
    curve, told = baseline.curve, baseline.saturation
    if curve is None or told is None or not (told.steps and told.decode_tokens):
        return None
    num_prompt, num_decode = told.prefill_tokens / told.steps, told.decode_tokens / told.steps
    context = told.kv_tokens / told.decode_tokens
    points: list[tuple[float, float, float]] = []
    for share in BATCH_SHARES:
        for prompt in (0.0, num_prompt * share):
            decode = num_decode * share
            points.append((prompt, decode, curve.step_s(prompt, decode, context * decode)))
    key = baseline.key
    return SpeedPrior(model=key.model, accelerator=key.accelerator, tp=key.tp, points=tuple(points))
