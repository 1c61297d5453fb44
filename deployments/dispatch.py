"""The way out of a router: from a model's queue to replicas with room, one Submit message per replica."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..models.errors import OverloadedError, UnavailableError
from .clumping import Rate, clump_s
from .index_pool import Indices
from .model_state import Model
from .replica_connections import ReplicaConnections
from .replica_loads import F64, NEVER, ReplicaLoads
from .request_table import RequestTable
from .router_settings import RouterSettings
from .router_state import Replica
from .routing_policy import Candidates, assign, longest_first, retry_after_s, tail_room, weigh, while_it_runs
from .wire import Abort, Submit

# Requests of a finite batch that are looked at, at least: longer ones go first.
LOOK_AHEAD = 256
# So often, what a finite batch has left is reckoned anew from what all its answers have come to.
RECKON_EVERY_S = 1.0
# Between two messages of a huge batch replicas must hear that the router lives, and be heard.
MAX_FLUSH_S = 0.5


class Dispatcher:
    """Admits, assigns and sends. It binds a request to a replica as late as it can: when there is room for it."""

    def __init__(
        self,
        table: RequestTable,
        models: Sequence[Model],
        loads: ReplicaLoads,
        connections: ReplicaConnections,
        settings: RouterSettings,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._models = models
        self._loads = loads
        self._connections = connections
        self._settings = settings
        self._clock = clock
        self._rate = Rate()
        self._next_send_s = NEVER
        self._assigned_s = -NEVER

    def admit(self, model: Model, num_requests: int) -> None:
        """Raises UnavailableError or OverloadedError when the model cannot take so many more."""
        if not self._has_prospects(model):
            model.num_refused += num_requests
            reasons = [f"{r.replica_id} is {r.state}: {r.reason}" for r in model.replicas if r.listed]
            raise UnavailableError(
                f"no replica of model {model.name} takes requests now ({'; '.join(reasons) or 'none known'})"
            )
        if len(model.queue) + num_requests <= model.max_queued:
            return
        self._assign(model, self._clock())
        _, _, room = self._loads.room(model.numbers)
        if len(model.queue) + num_requests > model.max_queued + room:
            model.num_refused += num_requests
            speeds = [replica.tokens_per_s() for replica in model.replicas if replica.accepts]
            raise OverloadedError(
                f"{len(model.queue)} requests of model {model.name} wait here; at most {model.max_queued} may",
                retry_after_s(model.queued_tokens(), speeds),
            )

    def flush(self) -> None:
        """Assign what has room and send what is due. What a replica found lost had goes to those that are left."""
        while not self._flush_once():
            pass

    def abort(self, replica: Replica, wire_id: int) -> None:
        """The replica hears of it with the next flush."""
        replica.aborts.append(wire_id)
        self._loads.send_at_s[replica.number] = self._next_send_s = -NEVER

    def give_way(self) -> None:
        """Let whoever was just woken on this core run first, unless the router is busy: where cores are few, it
        would wait until this thread sleeps."""
        if not self._is_busy:
            os.sched_yield()

    def next_send_s(self) -> float:
        """When the next message is due; NEVER when none waits."""
        return self._next_send_s

    def _flush_once(self) -> bool:
        """False when a replica was found lost."""
        loads, now_s = self._loads, self._clock()
        if loads.has_news and not any(len(model.queue) for model in self._models):
            loads.has_news = False
        if loads.has_news and not self._may_wait(now_s):
            loads.has_news = False
            self._assigned_s = now_s
            for model in self._models:
                if len(model.queue):
                    self._assign(model, now_s)
        elif self._next_send_s == NEVER and not loads.has_news:
            return True
        due = (loads.send_at_s <= now_s).nonzero()[0].tolist()
        all_live = self._send_outboxes(due, now_s + MAX_FLUSH_S)
        if due:
            self.give_way()  # to ZeroMQ's thread, which has yet to send
        next_look_s = self._assigned_s + self._settings.assign_every_s if loads.has_news else NEVER
        self._next_send_s = min(float(loads.send_at_s.min()), next_look_s)
        return all_live

    def _has_prospects(self, model: Model) -> bool:
        """Where the last replica has just gone, requests wait for another one, like those that it had."""
        if any(replica.may_accept_soon for replica in model.replicas):
            return True
        since_s = model.unserved_since_s
        is_late = since_s is not None and self._clock() - since_s > self._settings.continuation_timeout_s
        return model.num_output_tokens > 0 and not is_late

    @property
    def _is_busy(self) -> bool:
        return self._rate.per_s > self._settings.max_submits_per_s

    def _may_wait(self, now_s: float) -> bool:
        """A busy router looks at its queue every few milliseconds only, for all that came meanwhile."""
        return self._is_busy and now_s < self._assigned_s + self._settings.assign_every_s

    def _assign(self, model: Model, now_s: float) -> None:
        """From the queue into outboxes, as far as there is room."""
        loads = self._loads
        rows, room, total_room = loads.room(model.numbers)
        count = min(total_room, len(model.queue))
        if count == 0:
            return
        numbers = model.numbers[rows]
        is_batch = self._settings.finite_batch
        if is_batch and now_s - model.reckoned_s >= RECKON_EVERY_S:
            model.reckon(now_s)
        slots = model.queue.first(max(count, LOOK_AHEAD) if is_batch else count)
        prompt_tokens, output_tokens = model.expected_tokens(slots)
        means = float(prompt_tokens.mean()), float(output_tokens.mean())
        num_queued = len(model.queue)
        model.queue.pop(len(slots))
        if is_batch:
            means = means if len(slots) == num_queued else model.mean_queued
            longest = int(self._table.max_tokens[slots].max())
            candidates, weight = self._weigh_batch(model, rows, room, means, longest)
            room = tail_room(weight * means[0] + means[1], num_queued, candidates)
            picked, chosen = _assign_batch(
                weight * prompt_tokens + output_tokens, output_tokens, replace(candidates, room=room)
            )
            model.queue.push_first(np.delete(slots, picked))
            slots, prompt_tokens, output_tokens = slots[picked], prompt_tokens[picked], output_tokens[picked]
        elif len(rows) == 1 and self._settings.prefix_affinity_s <= 0.0:
            chosen = np.zeros(len(slots), np.int64)  # nothing to weigh
        else:
            candidates, weight = self._weigh(model, rows, room, means, now_s)
            costs = weight * prompt_tokens + output_tokens
            chosen = self._assign_near_prefixes(model, slots, numbers, costs, candidates)
        if len(slots):
            self._bind(slots, numbers[chosen], prompt_tokens, output_tokens)
            self._put_in_outboxes(model, slots, numbers[chosen], now_s)

    def _weigh(
        self, model: Model, rows: Indices, room: Indices, means: tuple[float, float], now_s: float
    ) -> tuple[Candidates, float]:
        """What the replicas in these `rows` of the model's compute beside requests of so many prompt and expected
        output tokens."""
        numbers = model.numbers[rows]
        mean_prompt, mean_output = means
        prompts, outputs = while_it_runs(
            self._loads.num_held(numbers), self._loads.prompt_tokens[numbers], mean_prompt, mean_output
        )
        return weigh(
            room,
            prompts,
            outputs,
            model.token_costs(rows),
            self._loads.way_in(numbers).wait_s(now_s),
            mean_prompt=mean_prompt,
            mean_output=mean_output,
            steps=mean_output,
        )

    def _weigh_batch(
        self, model: Model, rows: Indices, room: Indices, means: tuple[float, float], max_tokens: int
    ) -> tuple[Candidates, float]:
        """The same for a finite batch, whose answers have at most `max_tokens`. It gains nothing where its next
        request would start soonest; and the longest answer may begin last anywhere."""
        numbers = model.numbers[rows]
        mean_prompt, mean_output = means
        prompts, outputs = self._loads.backlog(numbers, mean_prompt, mean_output)
        longest = model.answers.longest_of(float(self._loads.num_held(numbers).sum()), max_tokens)
        return weigh(
            room,
            prompts,
            outputs,
            model.token_costs(rows).beside_steps(),
            self._loads.way_in(numbers).delay_s,
            mean_prompt=mean_prompt,
            mean_output=mean_output,
            steps=max(longest, mean_output),
        )

    def _assign_near_prefixes(
        self, model: Model, slots: Indices, numbers: Indices, costs: F64, candidates: Candidates
    ) -> Indices:
        """Weighing where prompts that begin alike went, when that is wanted."""
        guard_s = self._settings.prefix_affinity_s
        if guard_s <= 0.0:
            return assign(costs, candidates)
        keys = model.prefixes.keys(self._table.prompts(slots), self._table.prompt_lens[slots])
        row_of = np.full(len(self._loads.limit) + 1, -1)  # the last is for -1, no replica
        row_of[numbers] = np.arange(len(numbers))
        chosen = assign(costs, candidates, row_of[model.prefixes.match(keys)[0]], guard_s)
        model.prefixes.note(keys, numbers[chosen])
        return chosen

    def _bind(self, slots: Indices, numbers: Indices, prompt_tokens: Indices, output_tokens: F64) -> None:
        table = self._table
        table.replica[slots] = numbers
        table.charge[slots] = output_tokens
        table.prompt_charge[slots] = prompt_tokens
        self._loads.bind(numbers, prompt_tokens, output_tokens)

    def _put_in_outboxes(self, model: Model, slots: Indices, numbers: Indices, now_s: float) -> None:
        settings = self._settings
        requests_per_s = self._rate.count(len(slots), now_s)
        hold_s = clump_s(requests_per_s, len(model.replicas), settings.max_submits_per_s, settings.max_clump_s)
        order = np.argsort(numbers, kind="stable")
        wire_ids, numbers = self._table.wire_ids[slots[order]], numbers[order]
        starts = [0, *((numbers[1:] != numbers[:-1]).nonzero()[0] + 1).tolist(), len(numbers)]
        firsts = numbers[starts[:-1]]
        for number, start, end in zip(firsts.tolist(), starts[:-1], starts[1:], strict=True):
            self._connections.by_number(number).outbox.append(wire_ids[start:end])
        if hold_s <= 0.0:  # a quiet router, whose one request has cold caches to come through
            self._loads.send_at_s[firsts] = self._next_send_s = now_s
            return
        due_s = self._loads.way_in(firsts).send_at_s(now_s, hold_s)
        self._loads.send_at_s[firsts] = np.minimum(self._loads.send_at_s[firsts], due_s)
        self._next_send_s = min(self._next_send_s, float(due_s.min()))

    def _send_outboxes(self, numbers: Sequence[int], until_s: float) -> bool:
        """At least one, and more until then. False when a replica was found lost: those after it wait."""
        for number in numbers:
            if not self._send_outbox(self._connections.by_number(number)):
                return False
            if self._clock() >= until_s:
                break
        return True

    def _send_outbox(self, replica: Replica) -> bool:
        """False when it turned out to be lost."""
        self._loads.send_at_s[replica.number] = NEVER
        if replica.outbox:
            wire_ids = np.concatenate(replica.outbox)
            slots, valid = self._table.match(wire_ids)
            if not valid.all():
                slots = slots[valid]
            if len(slots) and not self._connections.send(replica, Submit(self._table.batch(slots))):
                return False
            replica.outbox.clear()
        aborts, replica.aborts = replica.aborts, []
        return not aborts or self._connections.send(replica, Abort(np.array(aborts, np.uint64)))


def _assign_batch(costs: F64, output_tokens: F64, candidates: Candidates) -> tuple[Indices, Indices]:
    """Of a finite batch: which of these requests go now, and to which candidate each."""
    order = longest_first(output_tokens)
    chosen = assign(costs[order], candidates)
    return order[: len(chosen)], chosen
