"""A whole service on a local Ray cluster: OpenAI's client, handles, bad input, lost clients, lost replicas."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from nfold.deployments import discovery
from nfold.deployments.application import ServicePlan, deploy, scale_pool, take_down
from nfold.deployments.config import EngineConfig, HttpConfig, PoolConfig, ServedModelConfig, ServiceConfig
from nfold.deployments.readiness import PoolProgress, wait_ready
from nfold.deployments.router_stats import RouterSnapshot
from nfold.models.errors import ConfigError, EngineError, PlacementError, StateError, UnknownModelError
from openai import NotFoundError, OpenAI, RateLimitError
from ray import serve
from ray._private.state import actors
from ray_cluster import free_port, local_ray
from tiny_models import make_llama

pytestmark = pytest.mark.cluster

BODY_LIMIT = 100_000
PLAN = ServicePlan({"tiny--CPU": 2, "tiny-tp2--CPU": 1}, num_gateways=1, ingress_everywhere=False)
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}


def wait_until(what: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", "llama3", max_position=4096)


@pytest.fixture(scope="module")
def config(model_directory: Path) -> ServiceConfig:
    engine = EngineConfig(kv_cache_bytes=32 << 20)
    narrow = EngineConfig(kv_cache_bytes=32 << 20, max_num_seqs=1)
    return ServiceConfig(
        http=HttpConfig(port=free_port(), max_body_bytes=BODY_LIMIT),
        models=[
            ServedModelConfig(
                name="tiny", path=str(model_directory), engine=engine, pools=[PoolConfig(num_replicas=2)]
            ),
            ServedModelConfig(
                name="tiny-tp2",
                path=str(model_directory),
                engine=narrow,
                pools=[PoolConfig(tp=2, num_replicas=1)],
                max_queued_requests=2,
            ),
        ],
    )


@pytest.fixture(scope="module")
def cluster(config: ServiceConfig) -> Iterator[Path]:
    """Three nodes; the last says that it has a GPU, which is not there."""
    node: dict[str, Any] = {"num_cpus": 2, "labels": {"nfold-cores": "0.1"}}
    nodes = [node | {"node_name": f"node-{index}", "num_gpus": index // 2} for index in range(3)]
    with local_ray(nodes, config.http) as path:
        yield path


@pytest.fixture(scope="module")
def service(cluster: Path, config: ServiceConfig) -> ServiceConfig:
    told: list[PoolProgress] = []
    plan = deploy(config)
    assert plan == PLAN
    wait_ready(config, plan, 120, told.extend)
    assert str(told[-1]) == "tiny-tp2--CPU: 1 of 1 ready"
    return config


@pytest.fixture
def client(service: ServiceConfig) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{service.http.port}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def snapshots(service: ServiceConfig) -> list[RouterSnapshot]:
    return [
        msgspec.msgpack.decode(raw, type=RouterSnapshot) for raw in discovery.list_gateways(service.name).values()
    ]


# Before anything serves


def with_model(config: ServiceConfig, **changes: Any) -> ServiceConfig:
    return config.model_copy(update={"models": [config.models[0].model_copy(update=changes)]})


def test_what_does_not_fit_is_said_before_anything_starts(cluster: Path, config: ServiceConfig) -> None:
    with pytest.raises(PlacementError, match=r"tiny--CPU.*needs CPU 4 on one node; node-0 has 2 free of 2"):
        deploy(with_model(config, pools=[PoolConfig(tp=4)]))
    with pytest.raises(ConfigError, match=r"models\[0\]\.pools\[0\]\.tp: got 3; 8 heads"):
        deploy(with_model(config, pools=[PoolConfig(tp=3)]))
    with pytest.raises(ConfigError, match=r"models\[0\]\.engine\.max_model_len: got 9999"):
        deploy(with_model(config, engine=EngineConfig(max_model_len=9999)))
    assert config.name not in serve.status().applications


def test_a_missing_shard_is_told_in_the_replicas_own_words(
    cluster: Path, config: ServiceConfig, tmp_path: Path
) -> None:
    broken = make_llama(tmp_path / "broken")
    (broken / "model-00002-of-00002.safetensors").unlink()
    wanted = with_model(config, path=str(broken), pools=[PoolConfig(num_replicas=1)])
    with pytest.raises(EngineError, match=r"model-00002-of-00002\.safetensors: missing") as error:
        wait_ready(wanted, deploy(wanted), 120)
    assert "Traceback" not in str(error.value)
    take_down(config.name)


def test_a_rank_that_does_not_see_its_accelerator_refuses(cluster: Path, config: ServiceConfig) -> None:
    wanted = with_model(config, pools=[PoolConfig(accelerator="GPU", num_replicas=1)])
    with pytest.raises(EngineError, match=r"rank 0 on GPU: Ray assigned GPU 0, .*=0.*torch sees 0"):
        wait_ready(wanted, deploy(wanted), 120)
    take_down(config.name)


# A service


def test_openai_chat(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=24, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    )
    assert whole.choices[0].finish_reason == "length"
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    )
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24


def test_openai_completions(client: OpenAI) -> None:
    def texts(model: str) -> list[str]:
        answer = client.completions.create(model=model, prompt=["one", "two"], max_tokens=16, logprobs=2, **GREEDY)
        assert [len(choice.logprobs.tokens or []) for choice in answer.choices if choice.logprobs] == [16, 16]
        return [choice.text for choice in answer.choices]

    assert texts("tiny") == texts("tiny-tp2"), "two ranks give the tokens of one"
    assert sorted(model.id for model in client.models.list()) == ["tiny", "tiny-tp2"]


def test_a_seed_gives_the_same_answers_again(client: OpenAI) -> None:
    def answers(seed: int) -> list[str]:
        answer = client.completions.create(model="tiny", prompt="x", max_tokens=24, temperature=1, seed=seed, n=3)
        return [choice.text for choice in answer.choices]

    assert answers(1) == answers(1)
    assert len(set(answers(1))) == 3
    assert answers(1)[1:] == answers(2)[:2]


def test_serve_handle(service: ServiceConfig) -> None:
    handle = serve.get_app_handle(service.name)
    request = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    whole = handle.completions.remote(request).result(timeout_s=60)["choices"][0]["text"]
    items = list(handle.options(stream=True).stream_completions.remote(request))
    assert "".join(chunk["choices"][0]["text"] for chunks in items for chunk in chunks) == whole
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    assert handle.chat.remote(chat).result(timeout_s=60)["choices"][0]["message"]["role"] == "assistant"
    prompts = [[index + 1, 2, 3] for index in range(40)]
    sampling = {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
    batch = handle.generate_batch.remote("tiny", prompts, sampling).result(timeout_s=60)
    assert [len(answer["token_ids"]) for answer in batch] == [5] * 40
    with pytest.raises(UnknownModelError, match="served: tiny, tiny-tp2"):
        handle.completions.remote(request | {"model": "other"}).result(timeout_s=60)


def test_bad_input_through_the_ingress(service: ServiceConfig, client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as error:
        client.completions.create(model="other", prompt="x")
    assert error.value.code == "model_not_found"
    url = f"http://127.0.0.1:{service.http.port}/v1/completions"
    assert httpx.post(url, content=b"{").status_code == 400
    assert httpx.post(url, json={"model": "tiny", "prompt": "x", "max_tokens": 0}).status_code == 400
    too_long = httpx.post(url, json={"model": "tiny", "prompt": "x" * 5000})
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert httpx.post(url, content=b" " * (BODY_LIMIT + 1)).status_code == 413


def test_haproxy_listens_on_loopback_only(service: ServiceConfig, cluster: Path) -> None:
    listening = {
        connection.laddr.ip
        for process in psutil.process_iter(["cmdline"])
        if any(str(cluster / "") in part for part in process.info["cmdline"] or ()) and process.name() == "haproxy"
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_client_that_goes_away_frees_its_kv_blocks(service: ServiceConfig) -> None:
    def blocks_used() -> int:
        statuses = [replica.status for each in snapshots(service) for replica in each.replicas]
        return sum(status.stats.num_kv_blocks_used for status in statuses if status is not None)

    request = {"model": "tiny", "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    url = f"http://127.0.0.1:{service.http.port}/v1/completions"
    wait_until(lambda: blocks_used() == 0)
    with httpx.stream("POST", url, json=request, timeout=30) as response:
        lines = response.iter_lines()  # when this is collected, httpx hangs up
        assert next(lines).startswith("data: ")
        wait_until(lambda: blocks_used() > 0)
    wait_until(lambda: blocks_used() == 0)
    totals = [model for each in snapshots(service) for model in each.models if model.model == "tiny"]
    assert sum(model.num_aborted for model in totals) == 1


def test_a_full_queue_is_429_with_retry_after(service: ServiceConfig, client: OpenAI) -> None:
    """One slot, one successor and a queue of two: of eight, some are refused."""
    slow = {"ignore_eos": True}
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(client.completions.create, model="tiny-tp2", prompt="x", max_tokens=40, extra_body=slow)
            for _ in range(8)
        ]
        errors = [each.exception(timeout=60) for each in asked]
    refused = [error for error in errors if error is not None]
    assert 0 < len(refused) <= 4
    for error in refused:
        assert isinstance(error, RateLimitError)
        assert int(error.response.headers["retry-after"]) >= 1


class Streams:
    """Four seeded streams at once, over as many of two replicas as the router likes."""

    def __init__(self, client: OpenAI, max_tokens: int = 800) -> None:
        self._client = client
        self._max_tokens = max_tokens
        self._begun = [Event() for _ in range(4)]
        self._pool = ThreadPoolExecutor(4)

    def start(self) -> "list[Future[str]]":
        """Returns when all stream, long before they end."""
        for event in self._begun:
            event.clear()
        answers = [self._pool.submit(self._answer, index) for index in range(4)]
        assert all(event.wait(30) for event in self._begun)
        return answers

    def _answer(self, index: int) -> str:
        text = ""
        for chunk in self._client.completions.create(
            model="tiny",
            prompt="once",
            max_tokens=self._max_tokens,
            temperature=0.8,
            seed=100 * index,
            stream=True,
            extra_body={"ignore_eos": True},
        ):
            self._begun[index].set()
            text += chunk.choices[0].text
        return text


@pytest.fixture
def streams(client: OpenAI) -> Streams:
    return Streams(client)


def test_scaling_down_cuts_no_stream_and_scaling_up_serves_again(service: ServiceConfig, streams: Streams) -> None:
    expected = [answer.result(60) for answer in streams.start()]
    answers = streams.start()
    scale_pool(service.name, "tiny--CPU", 1)
    assert [answer.result(60) for answer in answers] == expected
    wait_until(lambda: len(discovery.list_replicas(service.name)) == 2)
    totals = [model for each in snapshots(service) for model in each.models]
    assert sum(model.num_continued for model in totals) == 0, "they were drained, not moved"
    with pytest.raises(StateError, match="has no 'other'"):
        scale_pool(service.name, "other", 1)
    scale_pool(service.name, "tiny--CPU", 2)
    wait_ready(service, PLAN, 60)


def test_streams_go_on_with_the_same_tokens_when_their_replica_is_killed(
    service: ServiceConfig, client: OpenAI
) -> None:
    wait_until(lambda: [r.state for each in snapshots(service) for r in each.replicas].count("ready") == 3)
    # Long enough that a gateway tells which replica holds them before they end.
    streams = Streams(client, max_tokens=3000)
    expected = [answer.result(60) for answer in streams.start()]
    pids = {each.replica_id: pid_of(each.replica_id) for each in discovery.list_replicas(service.name)}
    wait_until(lambda: not holding_replicas(service))
    answers = streams.start()
    wait_until(lambda: bool(holding_replicas(service)))
    victim = holding_replicas(service)[0]
    os.kill(pids[victim], signal.SIGKILL)
    assert [answer.result(60) for answer in answers] == expected
    wait_until(lambda: sum(model.num_continued for each in snapshots(service) for model in each.models) > 0)
    wait_until(lambda: victim not in {each.replica_id for each in discovery.list_replicas(service.name)})


def test_requests_outlive_their_gateway(service: ServiceConfig, client: OpenAI) -> None:
    """The only one is killed with a request that it has not answered; another comes while there is none."""

    def ask(max_tokens: int) -> str:
        answer = client.completions.create(model="tiny", prompt="once", max_tokens=max_tokens, **GREEDY)
        return answer.choices[0].text

    expected = ask(3000)
    wait_until(lambda: not holding_replicas(service))
    with ThreadPoolExecutor() as pool:
        lost = pool.submit(ask, 3000)
        wait_until(lambda: bool(holding_replicas(service)))
        os.kill(pid_of("#gateways#"), signal.SIGKILL)
        assert expected.startswith(ask(8))
        assert lost.result() == expected


def holding_replicas(service: ServiceConfig) -> list[str]:
    """Those with requests in flight, as the gateways last told."""
    replicas = [replica for each in snapshots(service) for replica in each.replicas]
    return [replica.address.replica_id for replica in replicas if replica.num_in_flight > 0]


def pid_of(part_of_name: str) -> int:
    living = (state for state in actors().values() if state["State"] == "ALIVE")
    return next(int(state["Pid"]) for state in living if part_of_name in state["Name"])


def test_taking_down_cuts_no_stream_and_leaves_no_replica_and_no_rank(
    service: ServiceConfig, client: OpenAI
) -> None:
    streams = Streams(client, max_tokens=3000)
    expected = [answer.result(60) for answer in streams.start()]
    answers = streams.start()
    take_down(service.name)
    assert [answer.result(60) for answer in answers] == expected

    def leftovers() -> list[str]:
        return [state["ActorClassName"] for state in actors().values() if state["State"] == "ALIVE"]

    wait_until(lambda: not [name for name in leftovers() if "ServeReplica" in name or name == "RankActor"])
    assert discovery.list_replicas(service.name) == []
