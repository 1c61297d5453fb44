"""Counters of replicas whose steps take as long as a curve says, or longer, for the ledger."""

from dataclasses import dataclass, field

from nfold.cluster.ledger import Presence, ReplicaCounters, StepCurve, Yardstick, span_between, yardstick_of
from nfold.deployments.step_account import StepAccount
from nfold.models.engine.protocol import StepRecord

# A quarter of a full step is fixed.
CURVE = StepCurve.affine(fixed_s=0.025, decode_token_s=0.001, prefill_token_s=0.00004, kv_token_s=0.0)
BATCH = 64
PROMPT = 100
ANSWER = 64


@dataclass
class SteppingReplica:
    """A replica at which each of `batch` requests gets a token per step, and one of `ANSWER` a new prompt."""

    name: str = "a"
    node: str = "node-0"
    pool: str = "pool"
    yardstick: str = "CPU"
    presence: Presence = Presence.SERVING
    now_s: float = 0.0
    idle_s: float = 0.0
    in_flight_s: float = 0.0
    num_output: int = 0
    num_held: int = 0
    num_waiting: int = 0
    account: StepAccount = field(default_factory=StepAccount)

    def work(
        self,
        seconds: float,
        *,
        batch: int = BATCH,
        waiting: int = 0,
        deferred: int = 0,
        slow: float = 1.0,
        between_s: float = 0.0,
        again: int = 0,
        on_the_way: int = 0,
    ) -> None:
        """Steps for so long; `waiting`, `deferred`: requests that each leaves, without and with room for them;
        `again`: tokens computed before in each; `between_s`: after each."""
        until_s = self.now_s + seconds
        prefill = round(PROMPT * batch / ANSWER) + again
        step_s = slow * CURVE.step_s(prefill, batch, 0)
        self.num_held, self.num_waiting = batch + waiting + deferred, waiting + deferred
        while self.now_s + step_s + between_s <= until_s + 1e-9:
            record = StepRecord(
                step_s,
                prefill,
                batch,
                again,
                num_running=batch,
                num_without_room=waiting,
                num_deferred=deferred,
            )
            self.account.add(record, self.num_held)
            self.num_output += batch
            self._pass(step_s + between_s, self.num_held + on_the_way)

    def idle(self, seconds: float, *, on_the_way: int = 0) -> None:
        self.num_held = self.num_waiting = 0
        self.idle_s += seconds
        self._pass(seconds, on_the_way)

    def _pass(self, seconds: float, in_flight: int) -> None:
        self.now_s += seconds
        self.in_flight_s += seconds * in_flight

    def counters(self) -> ReplicaCounters:
        return ReplicaCounters(
            replica=self.name,
            node=self.node,
            pool=self.pool,
            yardstick=self.yardstick,
            presence=self.presence,
            service_s=self.now_s,
            idle_s=self.idle_s,
            output_tokens=self.num_output,
            num_in_flight=self.num_held,
            num_waiting=self.num_waiting,
            steps=self.account.totals(),
            in_flight_s=self.in_flight_s,
        )


def saturated_yardstick() -> Yardstick:
    """That of such a replica at its full batch."""
    replica = SteppingReplica()
    before = replica.counters()
    replica.work(10.0)
    span = span_between(before, replica.counters())
    assert span is not None
    return yardstick_of([span], BATCH, CURVE)
