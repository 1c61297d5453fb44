"""What a replay's router believes of its replicas."""

import numpy as np
from nfold.cluster.replay_policies import FleetView, least_outstanding
from nfold.cluster.replay_router import ReplayRouter
from nfold.deployments.speed import StepLine
from nfold.models.engine.simulated.scheduler import NewTokens, StepWork

PROMPT = 50
STEP_S = 0.01


def test_a_request_that_went_on_elsewhere_leaves_no_prompt_behind() -> None:
    seen: list[list[float]] = []  # outstanding prompt tokens, as a policy was told

    def policy(view: FleetView, prompt_lens: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(view.prompt_tokens.tolist())
        return least_outstanding(view, prompt_lens, expected)

    router = ReplayRouter(
        np.full(3, PROMPT, np.int32),
        policy,
        lines=[StepLine.from_baseline([(0, 1, STEP_S), (PROMPT, 1, 2 * STEP_S)])],
        pool_of=np.zeros(2, np.int64),
        limit=np.full(2, 4),
        full_batch=np.full(2, 4.0),
        delay_s=np.zeros(2),
    )

    def send(request: int, serves: list[bool]) -> int:
        if request >= 0:
            router.enqueue(np.array([request]))
        router.bind(*router.choose(0.0, np.array(serves)))
        return int(router.replica[max(request, 0)])

    def first_token(replica: int) -> np.ndarray:
        new = NewTokens(np.array([0], np.uint64), np.array([7], np.int32), np.zeros(1, np.uint8))
        return router.take_in(replica, new, StepWork(PROMPT, 0, 0, PROMPT), STEP_S)[0]

    assert send(0, [True, False]) == 0
    assert first_token(0).tolist() == [0]
    router.lose(0)
    assert send(-1, [False, True]) == 1
    assert send(1, [True, False]) == 0
    assert seen[-1] == [0, PROMPT]
    assert first_token(1).tolist() == [], "its first token came long before"
    assert send(2, [True, False]) == 0
    assert seen[-1] == [PROMPT, 0]
