"""What the steps of one engine add up to, so that a ledger can say how long they should have taken.

Steps are summed by the size of their decode batch, in buckets that begin at powers of two:

    bucket     0    1     2      3       4  ...
    decode     0    1   2..3   4..7   8..15 ...

A step-time curve that is linear within each bucket, and in prompt tokens and context, is integrated over any number
of steps exactly from these sums: how many steps, and how many tokens. One call per step, a few microseconds.
"""

from dataclasses import dataclass

from ..models.engine.protocol import StepRecord

NUM_BUCKETS = 18


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Totals since the engine's start; they only grow, except `open_s`.

    Attributes:
        steps: [NUM_BUCKETS] steps.
        decode_tokens: [NUM_BUCKETS] decode tokens in them.
        num_prefill_steps: steps with prompt tokens.
        num_prefill_tokens: in them.
        num_recomputed_tokens: computed before.
        num_kv_tokens: context held, summed over steps.
        step_s: seconds in steps.
        decode_s: request-seconds in decode: batch x seconds.
        roomed_s: request-seconds of those that there was room for: in steps, or deferred.
        waiting_s: of those that there was none for.
        full_s: seconds in steps that left some of these; full_roomed_s: of `roomed_s`, in such steps.
        held_s: request-seconds at the replica: also of those that came while a step ran.
        open_s: of the time in service, what has passed since the last step's end while another one runs.
    """

    steps: tuple[int, ...] = (0,) * NUM_BUCKETS
    decode_tokens: tuple[int, ...] = (0,) * NUM_BUCKETS
    num_prefill_steps: int = 0
    num_prefill_tokens: int = 0
    num_recomputed_tokens: int = 0
    num_kv_tokens: int = 0
    step_s: float = 0.0
    decode_s: float = 0.0
    roomed_s: float = 0.0
    waiting_s: float = 0.0
    full_s: float = 0.0
    full_roomed_s: float = 0.0
    held_s: float = 0.0
    open_s: float = 0.0

    @property
    def num_steps(self) -> int:
        return sum(self.steps)

    def since(self, earlier: "StepTotals") -> "StepTotals":
        """What was added; `open_s` as the difference of both."""
        return StepTotals(
            steps=tuple(new - old for new, old in zip(self.steps, earlier.steps, strict=True)),
            decode_tokens=tuple(
                new - old for new, old in zip(self.decode_tokens, earlier.decode_tokens, strict=True)
            ),
            num_prefill_steps=self.num_prefill_steps - earlier.num_prefill_steps,
            num_prefill_tokens=self.num_prefill_tokens - earlier.num_prefill_tokens,
            num_recomputed_tokens=self.num_recomputed_tokens - earlier.num_recomputed_tokens,
            num_kv_tokens=self.num_kv_tokens - earlier.num_kv_tokens,
            step_s=self.step_s - earlier.step_s,
            decode_s=self.decode_s - earlier.decode_s,
            roomed_s=self.roomed_s - earlier.roomed_s,
            waiting_s=self.waiting_s - earlier.waiting_s,
            full_s=self.full_s - earlier.full_s,
            full_roomed_s=self.full_roomed_s - earlier.full_roomed_s,
            held_s=self.held_s - earlier.held_s,
            open_s=self.open_s - earlier.open_s,
        )


NO_STEPS = StepTotals()


class StepAccount:
    """Adds up steps."""

    __slots__ = (
        "_decode_s",
        "_decode_tokens",
        "_full_roomed_s",
        "_full_s",
        "_held_s",
        "_num_kv",
        "_num_prefill",
        "_num_prefill_steps",
        "_num_recomputed",
        "_roomed_s",
        "_step_s",
        "_steps",
        "_waiting_s",
    )

    def __init__(self) -> None:
        self._steps = [0] * NUM_BUCKETS
        self._decode_tokens = [0] * NUM_BUCKETS
        self._num_prefill_steps = self._num_prefill = self._num_recomputed = self._num_kv = 0
        self._step_s = self._decode_s = self._waiting_s = self._held_s = 0.0
        self._roomed_s = self._full_s = self._full_roomed_s = 0.0

    def add(self, step: StepRecord, num_held: int) -> None:
        """One step, at whose end the replica held so many requests, those that ended in it included."""
        step_s, num_prefill = step.step_s, step.num_prefill_tokens
        # A request that is computed again in one piece counts as prompt: decoding is one token each.
        num_decode = min(step.num_decode_tokens, step.num_running)
        num_prefill += step.num_decode_tokens - num_decode
        bucket = min(num_decode.bit_length(), NUM_BUCKETS - 1)
        self._steps[bucket] += 1
        self._decode_tokens[bucket] += num_decode
        self._step_s += step_s
        self._decode_s += step_s * num_decode
        self._held_s += step_s * num_held
        roomed_s = step_s * (step.num_running + step.num_deferred)
        self._roomed_s += roomed_s
        self._num_kv += step.num_kv_tokens
        if num_prefill:
            self._num_prefill_steps += 1
            self._num_prefill += num_prefill
            self._num_recomputed += step.num_recomputed_tokens
        if step.num_without_room:
            self._waiting_s += step_s * step.num_without_room
            self._full_s += step_s
            self._full_roomed_s += roomed_s

    def totals(self, open_s: float = 0.0) -> StepTotals:
        """So far; `open_s` as in `StepTotals`."""
        return StepTotals(
            steps=tuple(self._steps),
            decode_tokens=tuple(self._decode_tokens),
            num_prefill_steps=self._num_prefill_steps,
            num_prefill_tokens=self._num_prefill,
            num_recomputed_tokens=self._num_recomputed,
            num_kv_tokens=self._num_kv,
            step_s=self._step_s,
            decode_s=self._decode_s,
            roomed_s=self._roomed_s,
            waiting_s=self._waiting_s,
            full_s=self._full_s,
            full_roomed_s=self._full_roomed_s,
            held_s=self._held_s,
            open_s=open_s,
        )
