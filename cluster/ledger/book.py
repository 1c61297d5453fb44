"""The books of one model: each look is charged at once, and kept for as long as the longest window.

    look   0 ── 1 ── 2 ── 3 ──────────── 4 ── 5
                           └─── hole ───┘           too long without a look to say anything: charged to nobody
    window            |<───────────────────────|

Totals per replica are kept as they stood at each look, so that any window is the difference of two of them.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from .columns import COLUMNS, Ledger
from .counters import ModelCounters, Presence, ReplicaCounters, Span, span_between, unborn
from .reasons import lacking_shares
from .split import Parts, split
from .yardstick import Yardstick

F64 = NDArray[np.float64]

# Of the requests in flight when the baseline was measured; with fewer, replicas are slower for want of work.
SATURATED_IN_FLIGHT_SHARE = 0.9

_COLUMN = {name: index for index, name in enumerate(COLUMNS)}
_ABSENT = {Presence.STARTING: _COLUMN["starting"], Presence.DEAD: _COLUMN["unhealthy"]}
# A row of totals: tokens by column of those that answer; then these; then tokens by column of those that do not.
_OUTPUT, _BASELINE, _SPAN_S, _STANDING_S, _AWAY = range(len(COLUMNS), len(COLUMNS) + 5)
_ROW = _AWAY + len(COLUMNS)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica runs, for sums by it."""

    replica: str
    pool: str
    node: str


@dataclass(frozen=True, slots=True)
class _Mark:
    """The books as they stood at one look.

    Attributes:
        table: [replicas, _ROW].
        num_wanted, num_present: requests in flight that saturate, and those of them there, over all looks.
    """

    time_s: float
    table: F64
    hole_s: float
    num_wanted: float
    num_present: float


class Books:
    """Keeps the account of one model. One thread.

    Args:
        longest_s: the longest window that will be asked for.
        hole_after_s: looks further apart than this leave a hole.
    """

    def __init__(self, longest_s: float = inf, hole_after_s: float = inf) -> None:
        self._longest_s = longest_s
        self._hole_after_s = hole_after_s
        self._rows: dict[str, int] = {}
        self._places: list[Place] = []
        self._table = np.zeros((0, _ROW))
        self._hole_s = self._num_wanted = self._num_present = 0.0
        self._marks: deque[_Mark] = deque()
        self._last: ModelCounters | None = None
        self._continued = self._continued_left = 0.0

    def look(self, now: ModelCounters, yardsticks: Mapping[str, Yardstick]) -> None:
        """Charge what happened since the last look. Replicas without a yardstick are left out."""
        before, self._last = self._last, now
        self._count_load(now, yardsticks)
        if before is not None:
            stretch_s = now.time_s - before.time_s
            if stretch_s > self._hole_after_s:
                self._hole_s += stretch_s
            elif stretch_s > 0.0:
                self._charge(before, now, yardsticks)
        self._marks.append(_Mark(now.time_s, self._table.copy(), self._hole_s, self._num_wanted, self._num_present))
        while len(self._marks) > 2 and now.time_s - self._marks[1].time_s >= self._longest_s:
            self._marks.popleft()

    def window(self, seconds: float = inf, *, known_s: float = 0.0) -> dict[Place, Ledger]:
        """The account of the last so many seconds, by replica; empty before the second look.

        Args:
            known_s: for how long there has been something to account for; what of the window was before the first
                look is a hole.
        """
        if len(self._marks) < 2:
            return {}
        new = self._marks[-1]
        old = next((mark for mark in reversed(self._marks) if new.time_s - mark.time_s >= seconds), self._marks[0])
        hole_s = new.hole_s - old.hole_s
        window_s = new.time_s - old.time_s - hole_s
        hole_s += max(0.0, min(seconds, known_s) - (new.time_s - old.time_s)) if seconds < inf else 0.0
        if window_s <= 0.0:
            return {}
        table = new.table.copy()
        table[: len(old.table)] -= old.table
        wanted, present = new.num_wanted - old.num_wanted, new.num_present - old.num_present
        saturated = wanted > 0.0 and present >= SATURATED_IN_FLIGHT_SHARE * wanted
        ledgers: dict[Place, Ledger] = {}
        for place, row in zip(self._places, table, strict=True):
            if row[_SPAN_S] > 0.0 or row[_AWAY:].any():
                ledgers[place] = _ledger(row, window_s, hole_s, saturated)
        return ledgers

    def _count_load(self, now: ModelCounters, yardsticks: Mapping[str, Yardstick]) -> None:
        """Requests in flight against those that saturate; more than wanted at one moment does not make up for less
        at another."""
        wanted = sum(
            yardsticks[replica.yardstick].num_in_flight
            for replica in now.replicas
            if replica.presence is Presence.SERVING and replica.yardstick in yardsticks
        )
        self._num_wanted += wanted
        self._num_present += min(now.num_in_flight, wanted)

    def _charge(self, before: ModelCounters, now: ModelCounters, yardsticks: Mapping[str, Yardstick]) -> None:
        stretch_s = now.time_s - before.time_s
        earlier = {replica.replica: replica for replica in before.replicas}
        told: dict[str, tuple[ReplicaCounters, Span, Parts]] = {}
        for replica in now.replicas:
            yardstick, old = yardsticks.get(replica.yardstick), earlier.get(replica.replica)
            if yardstick is None:
                continue
            if replica.presence in _ABSENT:
                tokens = yardstick.tokens_per_s * stretch_s
                self._row(replica)[_AWAY + _ABSENT[replica.presence]] += tokens
            elif old is not None:
                standing_s = stretch_s
                if old.presence in _ABSENT:
                    standing_s = min(stretch_s, replica.service_s)
                    tokens = yardstick.tokens_per_s * (stretch_s - standing_s)
                    self._row(replica)[_AWAY + _ABSENT[old.presence]] += tokens
                    if old.presence is Presence.STARTING:
                        old = unborn(replica)
                span = span_between(old, replica)
                if not _started_anew(old, replica):
                    self._row(replica)[_STANDING_S] += standing_s
                if span is not None:
                    told[replica.replica] = replica, span, split(span, yardstick)
        shares = lacking_shares(
            {name: parts for name, (_, _, parts) in told.items()},
            {name: replica.presence for name, (replica, _, _) in told.items()},
            (before.num_queued + now.num_queued) / 2,
        )
        self._continued += max(0, now.num_continued_tokens - before.num_continued_tokens)
        self._continued_left += max(0.0, now.num_continued_left - before.num_continued_left)
        again_s = self._continued_s(told, yardsticks)
        for name, (replica, span, parts) in told.items():
            rate, row = yardsticks[replica.yardstick].tokens_per_s, self._row(replica)
            for column, share in shares[name].items():
                row[_COLUMN[column]] += rate * share * parts.lacking_s
            row[_COLUMN["slow step"]] += rate * parts.slow_s
            row[_COLUMN["recompute"]] += rate * (parts.recompute_s + again_s.get(name, 0.0))
            row[_COLUMN["control plane"]] += rate * parts.between_s
            row[_OUTPUT] += span.output_tokens
            row[_BASELINE] += rate * span.seconds
            row[_SPAN_S] += span.seconds

    def _continued_s(
        self, told: Mapping[str, tuple[ReplicaCounters, Span, Parts]], yardsticks: Mapping[str, Yardstick]
    ) -> dict[str, float]:
        """What dead replicas' requests cost the others, which cannot tell them from new ones: charged where prompts
        are computed next, and only what these have of prompts beyond other requests with as much to answer."""
        num_prefill = {name: span.steps.num_prefill_tokens for name, (_, span, _) in told.items()}
        total = sum(num_prefill.values())
        if self._continued <= 0.0 or total == 0:
            return {}
        part = min(1.0, total / self._continued)
        tokens, left = part * self._continued, part * self._continued_left
        self._continued -= tokens
        self._continued_left -= left
        found: dict[str, float] = {}
        for name, num in num_prefill.items():
            yardstick = yardsticks[told[name][0].yardstick]
            more = max(0.0, tokens - yardstick.prefill_per_token * left)
            found[name] = more * num / total * yardstick.prefill_token_s
        return found

    def _row(self, replica: ReplicaCounters) -> F64:
        index = self._rows.get(replica.replica)
        place = Place(replica.replica, replica.pool, replica.node)
        if index is None:
            if len(self._places) > 2 * len(self._last.replicas if self._last else ()) + 64:
                self._forget_gone()
            index = self._rows[replica.replica] = len(self._places)
            self._places.append(place)
            self._table = np.concatenate((self._table, np.zeros((1, _ROW))))
        self._places[index] = place
        return self._table[index]

    def _forget_gone(self) -> None:
        """Replicas of which no window says anything any more."""
        oldest = self._marks[0].table
        changed = np.ones(len(self._table), np.bool_)
        changed[: len(oldest)] = (self._table[: len(oldest)] != oldest).any(axis=1)
        kept = np.flatnonzero(changed)
        self._table = self._table[kept]
        self._places = [self._places[index] for index in kept.tolist()]
        self._rows = {place.replica: index for index, place in enumerate(self._places)}
        self._marks = deque(
            _Mark(m.time_s, m.table[kept[kept < len(m.table)]], m.hole_s, m.num_wanted, m.num_present)
            for m in self._marks
        )


def _started_anew(old: ReplicaCounters, new: ReplicaCounters) -> bool:
    return (
        new.service_s < old.service_s
        or new.idle_s < old.idle_s
        or new.output_tokens < old.output_tokens
        or new.steps.step_s < old.steps.step_s
    )


def _ledger(row: F64, window_s: float, hole_s: float, saturated: bool) -> Ledger:
    """A replica's counters are as old as its last message, so they cover a span of its own, not quite the time that
    it stood here: what it told is scaled from the one to the other."""
    scale = row[_STANDING_S] / row[_SPAN_S] if row[_SPAN_S] > 0.0 else 0.0
    columns = (row[: len(COLUMNS)] * scale + row[_AWAY:]) / window_s
    return Ledger(
        window_s=window_s,
        measured=float(row[_OUTPUT] * scale / window_s),
        baseline=float((row[_BASELINE] * scale + row[_AWAY:].sum()) / window_s),
        columns=dict(zip(COLUMNS, columns.tolist(), strict=True)),
        saturated=saturated,
        hole_s=hole_s,
    )
