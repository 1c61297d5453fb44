"""The account of looks that were kept: those of a measurement, or of a replay."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from .book import Books
from .columns import Ledger, total
from .counters import ModelCounters, Span, span_between
from .yardstick import Yardstick


def account(
    samples: Sequence[ModelCounters], yardsticks: Mapping[str, Yardstick], *, measured: float | None = None
) -> Ledger | None:
    """The ledger of one model over `samples`, oldest first.

    A replica counts in the stretches at whose both ends it stands, so one that comes or goes within the window is
    provisioned for its own part of it.

    Args:
        samples: at least two, with growing times; a second or so apart, as why replicas lacked work is told by the
            means of each stretch.
        yardsticks: by name.
        measured: output tokens/s over the window as a client counted them; None takes what the replicas told.

    Returns None when no replica stands at both ends of any stretch, or one has no yardstick.
    """
    known = all(replica.yardstick in yardsticks for sample in samples for replica in sample.replicas)
    ledger = total(books_of(samples, yardsticks).window().values()) if known else None
    return ledger if ledger is None or measured is None else replace(ledger, measured=measured)


def books_of(samples: Sequence[ModelCounters], yardsticks: Mapping[str, Yardstick]) -> Books:
    """All of `samples` in the books: `window()` has the account by replica."""
    books = Books()
    for sample in samples:
        books.look(sample, yardsticks)
    return books


def spans(samples: Sequence[ModelCounters]) -> list[Span]:
    """Everything that replicas told of themselves between the samples."""
    return [span for found in spans_by_replica(samples).values() for span in found]


def spans_by_replica(samples: Sequence[ModelCounters]) -> dict[str, list[Span]]:
    """What each told of itself between the samples, stretch by stretch."""
    found: dict[str, list[Span]] = {}
    for before, now in pairwise(samples):
        earlier = {replica.replica: replica for replica in before.replicas}
        for replica in now.replicas:
            old = earlier.get(replica.replica)
            if old is not None and (span := span_between(old, replica)) is not None:
                found.setdefault(replica.replica, []).append(span)
    return found


def tokens_per_s(samples: Sequence[ModelCounters]) -> dict[str, float]:
    """Output tokens per second by replica over `samples`, for those that stand at both ends of some stretch."""
    sums: dict[str, list[float]] = {}
    window_s = samples[-1].time_s - samples[0].time_s if samples else 0.0
    for before, now in pairwise(samples):
        earlier = {replica.replica: replica for replica in before.replicas}
        for replica in now.replicas:
            old = earlier.get(replica.replica)
            if old is None or replica.service_s < old.service_s or not replica.presence.answers:
                continue
            mine = sums.setdefault(replica.replica, [0.0, 0.0, 0.0])
            mine[0] += replica.output_tokens - old.output_tokens
            mine[1] += replica.service_s - old.service_s
            mine[2] += now.time_s - before.time_s
    return {
        name: tokens / service_s * standing_s / window_s
        for name, (tokens, service_s, standing_s) in sums.items()
        if service_s > 0.0
    }
