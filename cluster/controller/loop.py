"""The controller's loop: observe, decide, keep, act, score. Whatever it is killed in, it resumes from what it kept.

    observe ──> decide ──> keep decision + state ──> converge ──> score ──> keep state
                                    │
       killed before: nothing was done, the next decides anew
       killed after:  the target is kept, and handed over whole at the next tick

The data path never waits for it: it reads what routers publish, and speaks to Ray and Serve.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from ...models.errors import StateError
from .actuation import Actual, Actuator
from .decision import Decision
from .history import History
from .policy import decide
from .records import Decided, Entry, Hole, State
from .scoring import close_scores, open_scores
from .settings import ControllerSettings
from .snapshot import Memory, Snapshot

logger = logging.getLogger(__name__)

# A decision that changes nothing and says what was said before is kept so often only.
REPEAT_S = 900.0
# So many ticks without a look are a hole.
HOLE_TICKS = 3


class Service(Protocol):
    """The running service, as the controller sees and touches it beside the actuator."""

    def look(self, actual: Actual, memory: Memory) -> Snapshot:
        """What is now.

        Raises:
            StateError: the service does not answer.
        """
        ...

    def quarantine(self, replica_ids: Sequence[str]) -> None:
        """Keep exactly these out of routing. Idempotent.

        Raises:
            StateError: the service does not answer.
        """
        ...


class Controller:
    """One thread calls `tick` every `settings.tick_s` seconds.

    Args:
        clock: Unix time, seconds.
    """

    def __init__(
        self,
        service: Service,
        actuator: Actuator,
        settings: ControllerSettings,
        history: History,
        clock: Callable[[], float],
    ) -> None:
        self._service = service
        self._actuator = actuator
        self._settings = settings
        self._history = history
        self._clock = clock
        self._state = history.resume()

    @property
    def state(self) -> State:
        return self._state

    def tick(self) -> Decision | None:
        """One round; None when the cluster does not answer, which leaves everything as it is."""
        try:
            actual = self._actuator.observe()
            snapshot = self._service.look(actual, self._state.memory)
        except StateError as error:
            logger.warning("the controller does not see the service, and changes nothing: %s", error)
            return None
        self._mark_hole(self._clock())
        before = self._state
        decision, memory = decide(snapshot, self._settings, before.memory)
        self._keep(snapshot, before, decision, memory)
        try:
            self._actuator.converge(decision.target)
            self._service.quarantine(decision.quarantined)
        except StateError as error:
            logger.warning("decision %d is kept and will be tried again: %s", decision.number, error)
        pending, scores = close_scores(snapshot, memory, self._state.pending)
        if scores:
            self._history.append(Entry(scores=tuple(scores)))
        self._state = replace(self._state, pending=pending)
        self._history.keep_state(self._state)
        return decision

    def _mark_hole(self, now_s: float) -> None:
        last_s = self._state.time_s
        if last_s and now_s - last_s > HOLE_TICKS * self._settings.tick_s:
            self._history.append(Entry(hole=Hole(from_s=last_s, to_s=now_s)))
            pending = tuple(replace(one, hole_s=one.hole_s + now_s - last_s) for one in self._state.pending)
            self._state = replace(self._state, pending=pending)
        self._state = replace(self._state, time_s=now_s)

    def _keep(self, snapshot: Snapshot, before: State, decision: Decision, memory: Memory) -> None:
        """With the state after it, before anything is done. What says nothing new is kept in the state alone."""
        told = {verdict.model: verdict.cause.value for verdict in decision.verdicts}
        pending, superseded = open_scores(decision, self._state.pending)
        state = replace(self._state, memory=memory, pending=pending)
        due = self._state.time_s - before.told_s >= REPEAT_S
        if not (decision.changes or told != before.told or due):
            self._state = state
            return
        state = replace(state, told=told, told_s=self._state.time_s)
        decided = Decided(
            decision=decision,
            snapshot=snapshot,
            settings=self._settings.model_dump(mode="json"),
            before=before.memory,
            after=memory,
        )
        self._history.append(Entry(decided=decided, scores=tuple(superseded), state=state))
        self._state = state
        for verdict in decision.verdicts:
            logger.info("decision %d, %s: %s: %s", decision.number, verdict.model, verdict.action, verdict.reason)
