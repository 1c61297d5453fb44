"""The HTTP path of overhead.py: streaming clients of the OpenAI API. Answers a JSON line per JSON line."""

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import httpx
from overhead_load import MODEL, make_prompts, output_lengths


def request(prompt: list[int], max_tokens: int) -> dict[str, object]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    return body | {"ignore_eos": True, "stream": True}


async def stream(client: httpx.AsyncClient, prompt: list[int], max_tokens: int) -> AsyncGenerator[float]:
    """The times of a stream's token chunks."""
    async with client.stream("POST", "completions", json=request(prompt, max_tokens)) as response:
        if response.status_code != 200:
            raise SystemExit(f"HTTP {response.status_code}: {(await response.aread())[:500]!r}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield time.perf_counter()


async def tokens_per_s(
    client: httpx.AsyncClient, prompts: list[list[int]], concurrency: int, warmup_s: float, window_s: float
) -> float:
    """Of a closed loop; tokens are counted chunk by chunk, one chunk per token and stream."""
    lengths = output_lengths()
    begin = time.perf_counter()
    opens, closes = begin + warmup_s, begin + warmup_s + window_s
    counted, next_row = 0, 0

    async def loop() -> None:
        nonlocal counted, next_row
        while time.perf_counter() < closes:
            row, next_row = next_row % len(prompts), next_row + 1
            async for at in stream(client, prompts[row], lengths[row]):
                counted += opens <= at < closes

    await asyncio.gather(*(loop() for _ in range(concurrency)))
    return counted / window_s


class BareClient:
    """One kept connection that reads no more of a response than it must: what a client's HTTP library adds, up to
    milliseconds, is not the service's. The clock runs from the request's bytes to the first token's."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._socket = socket.create_connection((host, port), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"

    def ttft_ms(self, prompt: list[int]) -> float:
        body = json.dumps(request(prompt, 1))
        message = f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        received, elapsed_s = b"", 0.0
        begin = time.perf_counter()
        self._socket.sendall(message)
        while not received.endswith(b"0\r\n\r\n"):  # of the last chunk
            part = self._socket.recv(65536)
            if not part:
                raise SystemExit(f"the service closed the connection after {received[:500]!r}")
            received += part
            if not elapsed_s and b"\r\ndata: {" in received:
                elapsed_s = time.perf_counter() - begin
        if not received.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"got {received[:500]!r}")
        return 1e3 * elapsed_s


async def serve(url: str, vocab_size: int) -> None:
    prompts = [prompt.tolist() for prompt in make_prompts(vocab_size)]
    split = urlsplit(url)
    assert split.hostname is not None
    assert split.port is not None
    bare_client = BareClient(split.hostname, split.port, f"{split.path}/completions")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            question = json.loads(line)
            if question["kind"] == "ttft":
                figure = bare_client.ttft_ms(prompts[question["row"] % len(prompts)])
            else:
                load = (question["concurrency"], question["warmup_s"], question["window_s"])
                figure = await tokens_per_s(client, prompts, *load)
            print(json.dumps({"figure": figure}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--vocab", type=int, required=True)
    args = parser.parse_args()
    asyncio.run(serve(args.url, args.vocab))


if __name__ == "__main__":
    main()
