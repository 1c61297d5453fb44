"""What so many nodes will bring, from what was seen of fewer."""

import pytest
from nfold.cluster.controller.prediction import predict, see, usable_share
from nfold.cluster.controller.settings import SloSettings
from nfold.cluster.controller.snapshot import NodeOutput, Offer, Seen, StepTime, Window

OFFERS = {"new": Offer(node_type="new", pool="p", num_replicas=8, tokens_per_s=1000.0)}


def seen(num_nodes: int, typical: float, time_s: float = 0.0, slow: float = 0.0) -> Seen:
    """So many nodes of 1,000 tokens/s; `slow` is what one of them loses more than the others, of all."""
    losses = {"control plane": 1.0 - typical, "slow step": slow, "no demand": 0.0}
    return Seen(
        time_s=time_s,
        num_nodes=num_nodes,
        baseline=1000.0 * num_nodes,
        efficiency=typical - slow,
        typical=typical,
        losses=losses,
    )


def test_without_history_nodes_bring_their_baseline() -> None:
    prediction = predict(OFFERS, {"new": 3}, {})

    assert (prediction.baseline, prediction.efficiency, prediction.tokens_per_s) == (3000.0, 1.0, 3000.0)


def test_losses_and_tokens_sum_to_the_baseline() -> None:
    prediction = predict(OFFERS, {"new": 5}, {2: seen(2, 0.97, 1.0, slow=0.02)}, wanted=2000.0, missing=125.0)

    assert prediction.baseline == 4875.0
    assert prediction.tokens_per_s + sum(prediction.losses.values()) == pytest.approx(prediction.baseline)
    assert prediction.losses["no demand"] == pytest.approx(prediction.capacity - 2000.0)


def test_a_straggler_is_lost_once_however_many_join() -> None:
    """One of two loses a fifth: 200 tokens/s of 2,000, and of 8,000."""
    eight = predict(OFFERS, {"new": 8}, {2: seen(2, 1.0, slow=0.1)})

    assert eight.losses["slow step"] == pytest.approx(200.0)
    assert eight.efficiency == pytest.approx(1.0 - 200.0 / 8000.0)


def test_what_grows_with_the_number_is_learnt_from_it() -> None:
    """Half a point per node: from 1, 2, 4 and 8 nodes, that of 11 is known within half a point."""
    shares = {n: seen(n, 1.0 - 0.005 * n, time_s=n) for n in (1, 2, 4, 8)}
    prediction = predict(OFFERS, {"new": 11}, shares)

    assert prediction.efficiency == pytest.approx(0.945, abs=0.005)
    assert predict(OFFERS, {"new": 11}, {8: shares[8]}).efficiency == pytest.approx(0.96)


def test_only_settled_saturated_windows_teach() -> None:
    def window(saturated: bool, **losses: float) -> Window:
        return Window(window_s=60.0, baseline=2000.0, measured=1800.0, losses=losses, saturated=saturated)

    nodes = [
        NodeOutput(node_id=str(i), node_type="new", baseline=1000.0, measured=m) for i, m in enumerate((980, 820))
    ]
    full = see(1.0, window(True, **{"slow step": 200.0}), nodes)

    assert full is not None
    assert (full.efficiency, full.typical, full.losses["slow step"]) == (0.9, 0.98, 0.1)
    assert see(1.0, window(False), nodes) is None
    assert see(1.0, window(True, starting=100.0), nodes) is None
    assert see(1.0, None, nodes) is None


def test_the_slo_bounds_the_batch() -> None:
    offer = Offer(
        node_type="new",
        pool="p",
        num_replicas=8,
        tokens_per_s=1000.0,
        full_batch=200.0,
        step_times=(
            StepTime(batch=1.0, step_s=0.02),
            StepTime(batch=100.0, step_s=0.04),
            StepTime(batch=200.0, step_s=0.05),
        ),
        first_token_s=0.5,
    )

    assert usable_share(offer, SloSettings()) == 1.0
    assert usable_share(offer, SloSettings(tpot_s=0.05)) == 1.0
    assert usable_share(offer, SloSettings(tpot_s=0.04)) == pytest.approx((100 / 0.04) / (200 / 0.05), rel=0.01)
    assert usable_share(offer, SloSettings(tpot_s=0.01)) == 0.0
    assert usable_share(offer, SloSettings(ttft_s=0.4)) == 0.0
    assert usable_share(offer, SloSettings(ttft_s=0.6)) == 1.0
