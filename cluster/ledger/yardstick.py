"""What the ledger takes from a baseline: the rate at saturation, and at what price in time its tokens came."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..record import Record
from .counters import Span
from .curve import StepCurve, fit_curve, tell_apart


class Saturation(Record):
    """How one replica worked while its baseline was measured, per second of it.

    Attributes:
        batch: requests in decode, mean over time.
        pending: requests that there is room for and that do not decode, mean: their prompts are computed, or will
            be in a later step.
        steps: engine steps.
        decode_tokens, prefill_tokens, recomputed_tokens: computed in them.
        kv_tokens: context held, summed over them.
        overhead_s: seconds outside steps and not idle.
        overhead_token_s: of these, for each decode token; the rest is for each step.
        curve_decode_s, curve_prefill_s: what the curve says its decode batches and its prompts take.
    """

    batch: float
    pending: float
    steps: float
    decode_tokens: float
    prefill_tokens: float
    recomputed_tokens: float
    kv_tokens: float
    overhead_s: float
    curve_decode_s: float
    curve_prefill_s: float
    overhead_token_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Yardstick:
    """One replica's.

    Attributes:
        tokens_per_s: output tokens at saturation.
        num_in_flight: requests that a replica held then.
        curve: of its step times; without one, what is lost within steps is not told apart.
        saturation: how it worked then; with the curve.
    """

    tokens_per_s: float
    num_in_flight: float
    curve: StepCurve | None = None
    saturation: Saturation | None = None

    def overhead_s(self, num_steps: float, num_decode: float) -> float:
        """What so many steps with so many decode tokens take between them."""
        told = self.saturation
        if told is None or not told.steps:
            return 0.0
        of_tokens_s = told.overhead_token_s * told.decode_tokens
        return num_steps * (told.overhead_s - of_tokens_s) / told.steps + num_decode * told.overhead_token_s

    @property
    def decode_token_s(self) -> float:
        """A decode token's share of a full step, its share of what a step takes anyway included."""
        told = self.saturation
        return (told.curve_decode_s + told.overhead_s) / told.decode_tokens if told and told.decode_tokens else 0.0

    @property
    def prefill_token_s(self) -> float:
        """A prompt token's."""
        told = self.saturation
        return told.curve_prefill_s / told.prefill_tokens if told and told.prefill_tokens else 0.0

    @property
    def prefill_per_token(self) -> float:
        """Prompt tokens for each output token."""
        told = self.saturation
        return told.prefill_tokens / self.tokens_per_s if told and self.tokens_per_s else 0.0

    @property
    def recomputed_per_token(self) -> float:
        """Tokens computed again for each output token; so much is in the rate already."""
        told = self.saturation
        return told.recomputed_tokens / self.tokens_per_s if told and self.tokens_per_s else 0.0


def pending_s(span: Span) -> float:
    """Request-seconds, see `Saturation.pending`."""
    return span.steps.roomed_s - span.steps.decode_s


def overhead_token_s(spans: Sequence[Span]) -> float:
    """Seconds between steps that each decode token takes, as it has to be handed over; what does not grow with the
    batch is each step's. By least squares over spans of small and large batches; 0 where these are alike."""
    told = [span for span in spans if span.steps.num_steps]
    if not tell_apart([span.steps for span in told]):
        return 0.0
    num_steps = np.array([span.steps.num_steps for span in told])
    batch = np.array([sum(span.steps.decode_tokens) for span in told]) / num_steps
    between_s = np.array([span.working_s - span.steps.step_s for span in told]) / num_steps
    apart = batch - batch.mean()
    return max(0.0, float(apart @ between_s / (apart @ apart)))


def saturation_of(
    spans: Sequence[Span], curve: StepCurve, overhead_token_s: float = 0.0
) -> tuple[Saturation, StepCurve]:
    """Out of one or more replicas' spans at saturation; and the curve scaled so that it explains them in sum.

    Args:
        overhead_token_s: see the function of that name; no more of it is taken than there is overhead.

    Raises:
        ValueError: there is no step in them.
    """
    seconds = sum(span.seconds for span in spans)
    step_s = sum(span.steps.step_s for span in spans)
    said = [curve.seconds(span.steps) for span in spans]
    said_s = sum(each.total_s for each in said)
    if seconds <= 0.0 or step_s <= 0.0 or said_s <= 0.0:
        raise ValueError("no steps to take a yardstick from")
    factor = step_s / said_s
    overhead_s = max(0.0, sum(span.working_s - span.steps.step_s for span in spans))
    num_decode = sum(sum(span.steps.decode_tokens) for span in spans)
    saturation = Saturation(
        batch=sum(span.steps.decode_s for span in spans) / seconds,
        pending=sum(pending_s(span) for span in spans) / seconds,
        steps=sum(span.steps.num_steps for span in spans) / seconds,
        decode_tokens=num_decode / seconds,
        prefill_tokens=sum(span.steps.num_prefill_tokens for span in spans) / seconds,
        recomputed_tokens=sum(span.steps.num_recomputed_tokens for span in spans) / seconds,
        kv_tokens=sum(span.steps.num_kv_tokens for span in spans) / seconds,
        overhead_s=overhead_s / seconds,
        overhead_token_s=min(overhead_token_s, overhead_s / num_decode) if num_decode else 0.0,
        curve_decode_s=factor * sum(each.decode_s for each in said) / seconds,
        curve_prefill_s=factor * sum(each.prefill_s for each in said) / seconds,
    )
    return saturation, curve.scaled(factor)


def fit_saturation(
    observed: Sequence[Span], at_saturation: Sequence[Span]
) -> tuple[Saturation | None, StepCurve | None]:
    """How replicas worked at saturation, and the curve of their steps, out of all that was observed of them.

    The curve is None as `fit_curve` says; without a curve or a step at saturation the former is None as well."""
    curve = fit_curve([span.steps for span in observed])
    if curve is None or not any(span.steps.num_steps for span in at_saturation):
        return None, curve
    return saturation_of(at_saturation, curve, overhead_token_s(observed))


def yardstick_of(
    spans: Sequence[Span], num_in_flight: float, curve: StepCurve, overhead_token_s: float = 0.0
) -> Yardstick:
    """Out of spans at saturation, of one replica or several alike; the last argument as in `saturation_of`."""
    saturation, curve = saturation_of(spans, curve, overhead_token_s)
    seconds = sum(span.seconds for span in spans)
    rate = sum(span.output_tokens for span in spans) / seconds
    return Yardstick(rate, num_in_flight, curve, saturation)
