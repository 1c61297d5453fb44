"""The HTTP path of overhead.py: streaming clients of the OpenAI API. Answers a JSON line per JSON line."""

import argparse
import asyncio
import http.client
import json
import sys
import time
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import httpx
from overhead_load import make_prompts, output_lengths

MODEL = "bench"


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


def ttft_ms(connection: http.client.HTTPConnection, path: str, prompt: list[int]) -> float:
    """Over one kept connection, with the standard library's client: a richer one adds milliseconds of its own."""
    begin = time.perf_counter()
    body = json.dumps(request(prompt, 1))
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    while not response.readline().startswith(b"data: {"):
        pass
    elapsed = time.perf_counter() - begin
    response.read()
    return 1e3 * elapsed


async def serve(url: str, vocab_size: int) -> None:
    prompts = [prompt.tolist() for prompt in make_prompts(vocab_size)]
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=120)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            question = json.loads(line)
            if question["kind"] == "ttft":
                figure = ttft_ms(connection, f"{split.path}/completions", prompts[question["row"] % len(prompts)])
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
