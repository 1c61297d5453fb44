"""How a verdict on one model is put together."""

from collections.abc import Mapping

from .decision import Action, Cause, Verdict
from .outlook import Outlook


def hold(
    model: str, o: Outlook, cause: Cause, reason: str, *, marginal: float | None = None, eaten_by: str = ""
) -> Verdict:
    return verdict(model, o, Action.HOLD, cause, o.have, reason, marginal=marginal, eaten_by=eaten_by)


def verdict(
    model: str,
    o: Outlook,
    action: Action,
    cause: Cause,
    after: Mapping[str, int],
    reason: str,
    *,
    marginal: float | None = None,
    eaten_by: str = "",
) -> Verdict:
    return Verdict(
        model=model,
        action=action,
        cause=cause,
        before=dict(o.have),
        after=dict(after),
        reason=reason,
        prediction=o.predict(after),
        without=o.predict(o.have),
        marginal=marginal,
        eaten_by=eaten_by,
        done_at_s=o.time_s + (o.lead_s if action is Action.ADD else 0.0),
    )
