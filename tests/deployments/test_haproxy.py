"""What becomes of requests when their gateway dies: HAProxy with the configuration that it serves with."""

from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty

import httpx
import pytest
from haproxy_rig import PATIENCE_S, FakeGateway, HAProxyRig, haproxy
from nfold.deployments.haproxy_config import RETRIES

COMPLETIONS = "/v1/completions"


class Client:
    def __init__(self, rig: HAProxyRig) -> None:
        self._url = rig.url
        self._threads = ThreadPoolExecutor(8)

    def post(self, path: str = COMPLETIONS, body: bytes = b"{}") -> "Future[httpx.Response]":
        return self._threads.submit(httpx.post, self._url + path, content=body, timeout=PATIENCE_S, trust_env=False)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self._url + path, timeout=PATIENCE_S, trust_env=False)


def holder_of(gateways: list[FakeGateway], body: bytes) -> FakeGateway:
    """The gateway that a request has come to."""
    while True:
        for gateway in gateways:
            try:
                assert gateway.asked.get(timeout=0.05) == body
            except Empty:
                continue
            return gateway


def check_no_gateway(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert response.json()["error"]["type"] == "service_unavailable"
    assert response.json()["error"]["code"] == "no_gateway"


@pytest.mark.parametrize("num_bytes", [2, 60_000])
def test_a_request_goes_to_another_gateway_when_its_own_dies(num_bytes: int) -> None:
    gateways, body = [FakeGateway("a"), FakeGateway("b")], b"x" * num_bytes
    with haproxy(*gateways) as rig:
        response = Client(rig).post(body=body)
        first = holder_of(gateways, body)
        first.kill()
        second = holder_of([each for each in gateways if each is not first], body)
        second.released.set()
        assert response.result().text == second.name


def test_a_request_is_not_lost_to_dead_connections_of_other_clients() -> None:
    gateway = FakeGateway("a")
    gateway.keeps_connections = False
    with haproxy(gateway) as rig, httpx.Client(base_url=rig.url, timeout=PATIENCE_S, trust_env=False) as kept:
        client, bodies = Client(rig), [b"%d" % index for index in range(RETRIES + 2)]
        at_once = [client.post(body=body) for body in bodies]
        assert {gateway.asked.get(timeout=PATIENCE_S) for _ in bodies} == set(bodies)
        gateway.released.set()
        assert [each.result().text for each in at_once] == ["a"] * len(bodies)
        assert client.post().result().text == "a"
        assert [kept.post(COMPLETIONS, content=b"{}").text for _ in range(3)] == ["a"] * 3, "nor to its own"


def test_requests_wait_for_a_new_gateway_when_the_only_one_dies() -> None:
    """The one that it had, which HAProxy's old process holds, as well as one that comes later."""
    old, new = FakeGateway("old"), FakeGateway("new")
    new.released.set()
    with haproxy(old) as rig:
        client = Client(rig)
        lost = client.post(body=b"lost")
        assert holder_of([old], b"lost") is old
        old.kill()
        rig.know([])
        later = client.post(body=b"later")
        with pytest.raises(TimeoutError):
            later.result(0.5)
        assert not lost.done()
        rig.know([new])
        assert [lost.result().text, later.result().text] == ["new", "new"]


def test_a_gateway_that_comes_back_under_its_address_is_found() -> None:
    gateway = FakeGateway("a")
    with haproxy(gateway) as rig:
        client = Client(rig)
        gateway.kill()
        response = client.post()
        again = FakeGateway("again", gateway.server_port)
        again.released.set()
        try:
            assert response.result().text == "again"
        finally:
            again.kill()


def test_without_a_gateway_requests_end_with_503_in_time() -> None:
    with haproxy(wait_s=1) as rig:
        client = Client(rig)
        check_no_gateway(client.post().result())
        check_no_gateway(client.get("/v1/models"))


def test_a_request_that_kills_gateways_comes_to_an_end() -> None:
    first, second = FakeGateway("a"), FakeGateway("b")
    with haproxy(first) as rig:
        response = Client(rig).post(body=b"poison")
        holder_of([first], b"poison").kill()
        rig.know([second])
        holder_of([second], b"poison").kill()
        check_no_gateway(response.result())


def test_health_is_told_at_once() -> None:
    with haproxy() as rig:
        check_no_gateway(Client(rig).get("/health"))


def test_only_the_streams_of_the_dead_gateway_are_cut() -> None:
    gateways = [FakeGateway("a"), FakeGateway("b")]
    with haproxy(*gateways) as rig:
        client = Client(rig)
        streams = [client.post(f"/{index}/stream") for index in range(4)]
        for gateway in gateways:
            for _ in range(2):
                assert gateway.asked.get(timeout=PATIENCE_S) == b"{}", "each has half of them"
        gateways[0].kill()
        gateways[1].released.set()
        ends = [stream.exception() or stream.result().text for stream in streams]
    assert sorted(end for end in ends if isinstance(end, str)) == ["bb", "bb"]
    assert sum(isinstance(end, httpx.RemoteProtocolError) for end in ends) == 2


@pytest.mark.parametrize(("path", "num_bytes"), [("/other", 2), (COMPLETIONS, 100_000)])
def test_what_cannot_be_sent_again_is_told(path: str, num_bytes: int) -> None:
    """Posts of which nobody says that they may be, and bodies over HAProxy's buffer."""
    gateways, body = [FakeGateway("a"), FakeGateway("b")], b"x" * num_bytes
    with haproxy(*gateways) as rig:
        response = Client(rig).post(path, body)
        holder_of(gateways, body).kill()
        check_no_gateway(response.result())
        assert all(gateway.asked.empty() for gateway in gateways)


def test_an_error_of_the_gateway_itself_reaches_the_client() -> None:
    gateway = FakeGateway("a")
    with haproxy(gateway) as rig:
        response = Client(rig).post("/v1/completions", b"error")
        gateway.released.set()
        assert response.result().status_code == 500
        assert gateway.asked.get_nowait() == b"error"
        assert gateway.asked.empty(), "it was asked once"
