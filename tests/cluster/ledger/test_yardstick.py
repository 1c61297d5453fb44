"""What a yardstick says of the time between steps: a part for each step, a part for each token."""

import pytest
from nfold.cluster.ledger import ModelCounters, Span, account, overhead_token_s, span_between, yardstick_of
from step_spans import BATCH, CURVE, SteppingReplica

STEP_S, TOKEN_S = 0.002, 0.0001


def span_of(batch: int) -> Span:
    replica = SteppingReplica()
    before = replica.counters()
    replica.work(2.0, batch=batch, between_s=STEP_S + TOKEN_S * batch)
    span = span_between(before, replica.counters())
    assert span is not None
    return span


def test_time_between_steps_is_told_apart() -> None:
    spans = [span_of(batch) for batch in (1, 1, 4, 4, 16, 16, BATCH, BATCH)]
    assert overhead_token_s(spans) == pytest.approx(TOKEN_S, rel=1e-6)
    yardstick = yardstick_of([span_of(BATCH)], BATCH, CURVE, overhead_token_s(spans))
    for batch in (1, 16, BATCH):
        assert yardstick.overhead_s(1, batch) == pytest.approx(STEP_S + TOKEN_S * batch, rel=1e-6)


def test_of_batches_that_are_alike_it_is_each_steps() -> None:
    spans = [span_of(batch) for batch in (60, 61, 62, 63, BATCH)]
    assert overhead_token_s(spans) == 0.0
    yardstick = yardstick_of(spans, BATCH, CURVE)
    assert yardstick.overhead_s(1, 1) == pytest.approx(STEP_S + TOKEN_S * 62, rel=0.01)


def test_no_more_of_it_is_the_tokens_than_there_is() -> None:
    yardstick = yardstick_of([span_of(BATCH)], BATCH, CURVE, overhead_token_s=1.0)
    assert yardstick.overhead_s(1, 0) == pytest.approx(0.0, abs=1e-12)
    assert yardstick.overhead_s(1, BATCH) == pytest.approx(STEP_S + TOKEN_S * BATCH)


def test_a_small_batch_takes_no_more_of_the_control_plane_than_it_does() -> None:
    """By the step alone, the baseline's time between steps would be that of a full batch."""
    spans = [span_of(batch) for batch in (1, 1, 4, 4, 16, 16, BATCH, BATCH)]
    yardstick = yardstick_of([span_of(BATCH)], BATCH, CURVE, overhead_token_s(spans))
    replica = SteppingReplica()
    samples = [ModelCounters(time_s=0.0, num_queued=0, replicas=(replica.counters(),))]
    for second in range(1, 11):
        replica.work(1.0, batch=16, waiting=100, between_s=STEP_S + TOKEN_S * 16)
        samples.append(ModelCounters(time_s=float(second), num_queued=0, replicas=(replica.counters(),)))
    ledger = account(samples, {"CPU": yardstick})
    assert ledger is not None
    assert ledger.share("control plane") == pytest.approx(0.0, abs=1e-6)
    assert ledger.share("underfilled") > 0.3
    assert ledger.share("unexplained") == pytest.approx(0.0, abs=0.01)
