"""What routers learn from a baseline."""

import pytest
from fake_service import baseline
from nfold.cluster.ledger.curve import StepCurve
from nfold.cluster.ledger.yardstick import Saturation
from nfold.cluster.speed_priors import full_batch, profile_points, speed_prior_of
from nfold.deployments.speed import StepLine
from nfold.models.engine.simulated.lengths import OPENORCA
from nfold.models.engine.simulated.profile import load_profile

SATURATION = Saturation(
    batch=100.0,
    pending=0.0,
    steps=10.0,
    decode_tokens=1000.0,
    prefill_tokens=500.0,
    recomputed_tokens=0.0,
    kv_tokens=200_000.0,
    overhead_s=0.0,
    curve_decode_s=0.5,
    curve_prefill_s=0.1,
)
CURVE = StepCurve.affine(fixed_s=0.01, decode_token_s=1e-4, prefill_token_s=2e-4, kv_token_s=1e-7)


def test_a_prior_has_the_curve_s_costs() -> None:
    prior = speed_prior_of(baseline().model_copy(update={"curve": CURVE, "saturation": SATURATION}))
    assert prior is not None
    assert (prior.accelerator, prior.tp) == ("CPU", 1)
    costs = StepLine.from_baseline(prior.points).costs
    assert costs is not None
    assert costs.prompt_token_s == pytest.approx(2e-4, rel=0.02)
    assert costs.output_token_s == pytest.approx(1e-4 + 200 * 1e-7, rel=0.02), "with the context of each"
    assert costs.fixed_s == pytest.approx(0.01, rel=0.05)


def test_a_baseline_without_a_curve_tells_nothing() -> None:
    assert speed_prior_of(baseline()) is None


def test_a_profile_tells_what_its_baseline_would() -> None:
    profile = load_profile("MI300X--llama-2-70b")
    points = profile_points(profile, "server")
    batch, context = full_batch(profile, "server"), OPENORCA.prompt.mean + OPENORCA.answer.mean / 2
    assert points[0] == (0.0, batch / 8, profile.curve.step_s(0.0, batch / 8, context * batch / 8))
    assert points[-1] == (batch, batch, profile.curve.step_s(batch, batch, context * batch))


def test_a_full_batch_is_what_slots_and_cache_hold() -> None:
    held_by_cache, held_by_slots = load_profile("MI300X--llama-2-70b"), load_profile("H200--gpt-oss-120b")
    context = OPENORCA.prompt.mean + OPENORCA.answer.mean / 2
    assert full_batch(held_by_cache, "server") == held_by_cache.kv_capacity_tokens / context < 2048
    assert full_batch(held_by_slots, "offline") == 320
