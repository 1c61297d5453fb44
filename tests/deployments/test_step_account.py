"""The account of steps: what it sums, and that a request computed again in one piece is not taken for a batch."""

import pytest
from nfold.deployments.step_account import NUM_BUCKETS, StepAccount
from nfold.models.engine.protocol import StepRecord


def test_steps_are_summed_by_their_decode_batch() -> None:
    account = StepAccount()
    for num_decode in (0, 1, 2, 3, 4, 7, 8):
        account.add(StepRecord(0.5, 0, num_decode, 0, num_running=num_decode), num_held=num_decode)
    totals = account.totals()
    assert totals.steps[:5] == (1, 1, 2, 2, 1)
    assert totals.decode_tokens[:5] == (0, 1, 5, 11, 8)
    assert totals.num_steps == 7
    assert totals.step_s == pytest.approx(3.5)
    assert totals.decode_s == pytest.approx(0.5 * 25)


def test_a_batch_of_any_size_has_a_bucket() -> None:
    account = StepAccount()
    account.add(StepRecord(0.1, 0, 1 << 30, 0, num_running=1 << 30), num_held=1 << 30)
    assert account.totals().steps[NUM_BUCKETS - 1] == 1


def test_prompts_context_and_those_that_wait() -> None:
    account = StepAccount()
    full = StepRecord(2.0, 300, 4, 20, num_kv_tokens=1000, num_running=5, num_without_room=3, num_deferred=1)
    account.add(full, num_held=10)  # one of which came while it ran
    account.add(StepRecord(1.0, 0, 5, 0, num_kv_tokens=1005, num_running=5, num_deferred=2), num_held=7)
    totals = account.totals(open_s=0.25)
    assert (totals.num_prefill_steps, totals.num_prefill_tokens, totals.num_recomputed_tokens) == (1, 300, 20)
    assert totals.num_kv_tokens == 2005
    assert (totals.waiting_s, totals.held_s, totals.open_s) == pytest.approx((6.0, 27.0, 0.25))
    assert (totals.roomed_s, totals.full_s, totals.full_roomed_s) == pytest.approx((19.0, 2.0, 12.0))


def test_an_answer_computed_again_in_one_piece_counts_as_prompt() -> None:
    """Eight at the replica, two of which wait: six are in the step, one of them with 95 tokens at once."""
    account = StepAccount()
    account.add(StepRecord(1.0, 10, 100, 95, num_running=6, num_without_room=1, num_deferred=1), num_held=8)
    totals = account.totals()
    assert totals.decode_tokens[3] == 6
    assert totals.num_prefill_tokens == 10 + 94
