"""The step-time curve: integrated over sums as over single steps, and found again from sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nfold.cluster.ledger import StepCurve, fit_curve
from nfold.deployments.step_account import NO_STEPS, StepAccount, StepTotals
from nfold.models.engine.protocol import StepRecord

BENT = StepCurve(batch_s=(0.010, 0.011, 0.012, 0.014, 0.030, 0.032), prefill_step_s=0.005, prefill_token_s=2e-5)
STEPS = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 300), st.integers(0, 10**6)), min_size=1, max_size=30
)


def totals_of(curve: StepCurve, steps: list[tuple[int, int, int]]) -> StepTotals:
    account = StepAccount()
    for prefill, decode, kv in steps:
        step_s = curve.step_s(prefill, decode, kv)
        record = StepRecord(step_s, prefill, decode, 0, num_kv_tokens=kv, num_running=decode)
        account.add(record, num_held=decode)
    return account.totals()


@given(steps=STEPS)
def test_a_sum_takes_as_long_as_its_steps(steps: list[tuple[int, int, int]]) -> None:
    curve = BENT.model_copy(update={"kv_token_s": 3e-8})
    totals = totals_of(curve, steps)
    assert curve.seconds(totals).total_s == pytest.approx(totals.step_s)


def test_it_goes_straight_on_beyond_its_last_value() -> None:
    assert StepCurve.affine(0.01, 0.001).step_s(0, 1000, 0) == pytest.approx(1.01)


def test_a_curve_is_found_again() -> None:
    """A second each under loads of 1 to 256, each with a mix of prompts and contexts of its own."""
    random = np.random.default_rng(0)
    curve = StepCurve.affine(0.02, 3e-4, 4e-5, 5e-8)
    seconds: list[StepTotals] = []
    for load in (1, 4, 16, 64, 256):
        for _ in range(10):
            decode = random.integers(max(1, load // 2), load + 1, 20).tolist()
            steps = [(int(random.integers(0, 400)), one, one * int(random.integers(200, 600))) for one in decode]
            seconds.append(totals_of(curve, steps))
    found = fit_curve(seconds)
    assert found is not None
    for prefill, decode, kv in ((0, 1, 400), (300, 100, 40_000), (0, 256, 100_000)):
        assert found.step_s(prefill, decode, kv) == pytest.approx(curve.step_s(prefill, decode, kv), rel=1e-3)


def test_it_bends_where_there_were_loads() -> None:
    """BENT's longest way is from 4 to 8."""
    random = np.random.default_rng(0)

    def sums_of(load: int) -> list[StepTotals]:
        prompts = (random.integers(1, 400, (4, 20)) * random.integers(0, 2, (4, 20))).tolist()
        return [totals_of(BENT, [(prompt, load, 0) for prompt in each]) for each in prompts]

    coarse = [one for load in (1, 4, 16) for one in sums_of(load)]
    for sums, error_s in ((coarse, 0.010), ([*coarse, *sums_of(8)], 0.0)):
        found = fit_curve(sums)
        assert found is not None
        assert BENT.step_s(0, 8, 0) - found.step_s(0, 8, 0) == pytest.approx(error_s, abs=1e-6)


def test_what_is_not_told_apart_is_shared_out_and_never_negative() -> None:
    """Prompts and context that grow with the batch alone."""
    sums = [totals_of(BENT, [(4 * batch, batch, 400 * batch)] * 20) for batch in (1, 1, 4, 4, 12, 12)]
    found = fit_curve(sums)
    assert found is not None
    assert sum(found.seconds(one).total_s for one in sums) == pytest.approx(sum(s.step_s for s in sums), rel=0.01)
    assert min(found.batch_s) >= 0.0
    assert min(found.prefill_step_s, found.prefill_token_s, found.kv_token_s) >= 0.0


def test_no_curve_out_of_saturation_alone() -> None:
    random = np.random.default_rng(0)
    alike = [totals_of(BENT, [(50, int(num), 5000) for num in random.integers(10, 15, 20)]) for _ in range(50)]
    assert fit_curve(alike) is None
    few = [totals_of(BENT, [(5, 4, 500)] * 20)] * 4
    assert fit_curve([*alike, *few[1:]]) is None
    assert fit_curve([*alike, *few]) is not None


def test_no_curve_without_steps() -> None:
    assert fit_curve([]) is None
    assert fit_curve([NO_STEPS]) is None
