import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from fake_engine import FakeEngine, fake_tokens
from nfold.deployments.router import Router, RouterSettings, TokenChunk
from nfold.deployments.router_asyncio import attach
from nfold.models.engine.protocol import SamplingParams
from service_rig import TIMEOUT_S, Rig, Running, wait_until


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


@asynccontextmanager
async def attached(
    *replicas: Running, tick_s: float = 0.02, max_submits_per_s: float = 1000.0, max_clump_s: float = 0.02
) -> AsyncIterator[Router]:
    settings = RouterSettings(tick_s=tick_s, max_submits_per_s=max_submits_per_s, max_clump_s=max_clump_s)
    router = Router("router", None, settings)
    router.update_replicas([replica.address for replica in replicas])
    attachment = attach(router, asyncio.get_running_loop())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield router
    finally:
        attachment.detach()
        attachment.detach()
        router.close()


async def ask(router: Router, prompt: list[int], num_tokens: int) -> list[int]:
    ended = asyncio.get_running_loop().create_future()
    tokens: list[int] = []

    def sink(chunk: TokenChunk) -> None:
        tokens.extend(chunk.token_ids)
        if chunk.finish:
            ended.set_result(None)

    router.submit("m", prompt, SamplingParams(num_tokens, ignore_eos=True), sink)
    await ended
    return tokens


def test_messages_that_gather_arrive_all(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = [rig.replica("r0"), rig.replica("r1")]
    monkeypatch.setattr(Router, "gather_s", lambda router: 0.002)

    async def main() -> list[list[int]]:
        async with attached(*replicas) as router:
            return await asyncio.gather(*[ask(router, [i], 30) for i in range(40)])

    assert asyncio.run(main()) == [fake_tokens([i], 30) for i in range(40)]


def test_concurrent_answers(rig: Rig) -> None:
    replicas = [rig.replica("r0"), rig.replica("r1")]

    async def main() -> list[list[int]]:
        async with attached(*replicas) as router:
            return await asyncio.gather(*[ask(router, [i], 30) for i in range(40)])

    assert asyncio.run(main()) == [fake_tokens([i], 30) for i in range(40)]
    assert sum(len(replica.engine.submitted_ids) for replica in replicas) == 40


def test_no_message_waits_for_the_timer(rig: Rig) -> None:
    """With a timer that fires once, each request still is sent and each answer still is seen: 200 times one after
    the other, so that a missed edge of ZMQ's descriptor would leave one hanging."""
    replica = rig.replica("r")

    async def main() -> None:
        async with attached(replica, tick_s=3600) as router:
            for i in range(200):
                assert await ask(router, [i], 2) == fake_tokens([i], 2)

    asyncio.run(main())


def test_requests_of_one_turn_share_a_message(rig: Rig) -> None:
    replica = rig.replica("r")

    async def main() -> None:
        async with attached(replica) as router:
            await ask(router, [0], 1)
            before = replica.engine.num_submit_calls
            await asyncio.gather(*[ask(router, [i], 3) for i in range(30)])
            assert replica.engine.num_submit_calls == before + 1

    asyncio.run(main())


def test_abort_frees(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(step_s=0.001))

    async def main() -> None:
        async with attached(replica) as router:
            begun = asyncio.Event()
            sampling = SamplingParams(4000, ignore_eos=True)
            request_id = router.submit("m", [1], sampling, lambda chunk: begun.set())
            await begun.wait()
            router.abort(request_id)
            await asyncio.to_thread(wait_until, lambda: not replica.engine.has_work(), "an idle engine")

    asyncio.run(main())


def test_what_is_held_back_is_sent_without_the_timer(rig: Rig) -> None:
    """A step goes on for as long as the test wants, and the timer fires once: only the loop can send in time."""
    replica = rig.replica("r")

    async def main() -> None:
        async with attached(replica, tick_s=3600.0, max_submits_per_s=1.0, max_clump_s=0.3) as router:
            await ask(router, [0], 3)
            router._dispatcher._rate.per_s = 1e6  # busy
            replica.engine.gate.clear()
            num_before = replica.engine.num_submit_calls
            first = asyncio.create_task(ask(router, [1], 3))
            while replica.engine.num_submit_calls == num_before:
                await asyncio.sleep(0.001)
            state = next(iter(router._connections))
            router._loads.intake_s[state.number] = router._clock() + 1000.0
            second = asyncio.create_task(ask(router, [2], 3))
            for _ in range(3):  # turns: to submit, to flush
                await asyncio.sleep(0)
            assert 0.0 < router.next_flush_s() <= router.settings.max_clump_s
            while router.next_flush_s() < float("inf"):
                await asyncio.sleep(0.001)
            replica.engine.gate.set()
            assert await first == fake_tokens([1], 3)
            assert await second == fake_tokens([2], 3)

    asyncio.run(main())
