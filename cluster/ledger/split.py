"""One replica's time, split by what it went to. Pure; seconds in, seconds out.

    span  =  idle  +  between steps  +  in steps
                                           │
      slow step      steps over the curve ─┤
      short          steps at batches below the baseline's, whose fixed part fewer tokens share
      recompute      tokens computed before
      useful         tokens at the baseline's price: decode, prompt, context

Time that is neither useful nor lost is not left: the parts sum to the span, some of them negative where the replica
did better than its baseline. Useful time is worth its tokens at the baseline's rate. What came beyond that, or did
not (other prompts or contexts than the baseline's, prompts computed whose answers come later), is in no part.
"""

from dataclasses import dataclass

from .counters import Span
from .yardstick import Saturation, Yardstick, pending_s


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of one span.

    Attributes:
        idle_s: without work.
        between_s: with work, between steps, beyond what the baseline had of it.
        slow_s: in steps, over the curve.
        short_s: in steps, at a batch below the baseline's.
        recompute_s: in steps, on tokens computed before, beyond what the baseline had of it.
        empty_slots: of the baseline's batch, mean over the span; negative above it.
        held: requests at the replica, mean.
        pending: of these, beyond what is usual, those whose prompts are computed or will be in a later step, mean.
        waiting: of these, in its queue without room, mean.
        own: so many of the slots were empty although requests waited in its queue at the same time, mean.
        on_the_way: requests bound to it that it does not hold, mean.
    """

    idle_s: float
    between_s: float
    slow_s: float
    short_s: float
    recompute_s: float
    empty_slots: float
    held: float
    pending: float
    waiting: float
    own: float
    on_the_way: float

    @property
    def lacking_s(self) -> float:
        """For want of a full batch, whatever the reason."""
        return self.idle_s + self.short_s


def split(span: Span, yardstick: Yardstick) -> Parts:
    """Without a curve, or where the replica tells nothing of its steps, only idling is told apart."""
    steps, curve, saturation = span.steps, yardstick.curve, yardstick.saturation
    held = steps.held_s / span.seconds
    on_the_way = 0.0 if span.in_flight is None else max(0.0, span.in_flight - held)
    if curve is None or saturation is None or (steps.num_steps == 0 and span.output_tokens > 0):
        batch = yardstick.num_in_flight
        idle_share = span.idle_s / span.seconds
        return Parts(
            idle_s=span.idle_s,
            between_s=0.0,
            slow_s=0.0,
            short_s=0.0,
            recompute_s=0.0,
            empty_slots=batch * idle_share,
            held=batch * (1.0 - idle_share),
            pending=0.0,
            waiting=0.0,
            own=0.0,
            on_the_way=on_the_way,
        )
    said = curve.seconds(steps)
    num_decode = sum(steps.decode_tokens)
    overhead_s = yardstick.overhead_s(steps.num_steps, num_decode)
    decode_s = num_decode * yardstick.decode_token_s
    prefill_s = steps.num_prefill_tokens * yardstick.prefill_token_s
    recomputed = steps.num_recomputed_tokens - yardstick.recomputed_per_token * span.output_tokens
    return Parts(
        idle_s=span.idle_s,
        between_s=span.working_s - steps.step_s - overhead_s,
        slow_s=steps.step_s - said.total_s,
        short_s=said.decode_s + overhead_s - decode_s + said.prefill_s - prefill_s,
        recompute_s=recomputed * yardstick.prefill_token_s,
        empty_slots=saturation.batch - steps.decode_s / span.seconds,
        held=held,
        pending=max(0.0, pending_s(span) / span.seconds - saturation.pending),
        waiting=steps.waiting_s / span.seconds,
        own=_own_slots(span, saturation),
        on_the_way=on_the_way,
    )


def _own_slots(span: Span, saturation: Saturation) -> float:
    """Slots that were empty in steps that left requests waiting, at most as many as waited; time between steps is
    like the steps. Means over all steps would not do: of what comes in bursts, some waits at one moment, and slots
    are empty at another."""
    steps, in_steps = span.steps, 1.0 - saturation.overhead_s
    if steps.step_s <= 0.0 or in_steps <= 0.0:
        return 0.0
    full_batch = (saturation.batch + saturation.pending) / in_steps
    empty_s = min(steps.waiting_s, max(0.0, full_batch * steps.full_s - steps.full_roomed_s))
    return empty_s / steps.step_s * span.working_s / span.seconds
