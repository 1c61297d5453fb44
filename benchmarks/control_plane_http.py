"""The HTTP clients of `control_plane.py streams`, in a process of their own: a closed loop of streams.

    python benchmarks/control_plane_http.py --url http://127.0.0.1:8000/v1 --model NAME --streams 200

Last line: JSON with what the clients saw in the window.
"""

import argparse
import asyncio
import json
import time

import httpx
import numpy as np

_PROMPT_TOKENS = 64
_LOWEST_ID = 3


class Clients:
    """`count` streams open at all times; what ends in the window counts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._random = np.random.default_rng(args.seed)
        self._begin_s = time.perf_counter()
        self.ttfts_s: list[float] = []
        self.tpots_s: list[float] = []
        self.gaps_s: list[float] = []
        self.num_tokens = 0
        self.num_failed = 0
        self.first_error = ""

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._begin_s = time.perf_counter()
        async with httpx.AsyncClient(
            base_url=self._args.url, timeout=300, limits=limits, trust_env=False
        ) as client:
            await asyncio.gather(*(self._loop(client, number) for number in range(self._args.streams)))

    def _in_window(self, at_s: float) -> bool:
        return self._args.warmup <= at_s - self._begin_s < self._args.warmup + self._args.window

    async def _loop(self, client: httpx.AsyncClient, number: int) -> None:
        end_s = self._begin_s + self._args.warmup + self._args.window
        await asyncio.sleep(self._args.warmup / 2 * number / self._args.streams)  # not all at the same step
        while time.perf_counter() < end_s:
            await self._stream(client)

    async def _stream(self, client: httpx.AsyncClient) -> None:
        prompt = self._random.integers(_LOWEST_ID, self._args.vocab, _PROMPT_TOKENS).tolist()
        body = {"model": self._args.model, "prompt": prompt, "max_tokens": self._args.tokens, "temperature": 0}
        asked_s, times_s = time.perf_counter(), []
        async with client.stream(
            "POST", "completions", json=body | {"ignore_eos": True, "stream": True}
        ) as response:
            if response.status_code != 200:
                self.num_failed += 1
                self.first_error = self.first_error or (await response.aread())[:300].decode(errors="replace")
                await asyncio.sleep(1.0)
                return
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    times_s.append(time.perf_counter())
        if len(times_s) < 2 or not self._in_window(times_s[-1]):
            return
        self.ttfts_s.append(times_s[0] - asked_s)
        self.tpots_s.append((times_s[-1] - times_s[0]) / (len(times_s) - 1))
        self.gaps_s.extend(np.diff(times_s).tolist())
        self.num_tokens += len(times_s)

    def figures(self) -> dict[str, float | int | str | None]:
        return {
            "num_answers": len(self.tpots_s),
            "num_failed": self.num_failed,
            "first_error": self.first_error,
            "chunks_per_answer": self.num_tokens / len(self.tpots_s) if self.tpots_s else None,
            **_milliseconds("ttft", self.ttfts_s),
            **_milliseconds("tpot", self.tpots_s),
            **_milliseconds("gap", self.gaps_s),
            "client_cpu_s": time.process_time(),
        }


def _milliseconds(name: str, values_s: list[float]) -> dict[str, float | None]:
    shares = {f"client_{name}_p50_ms": 50, f"client_{name}_p99_ms": 99}
    return {key: float(np.percentile(values_s, share)) * 1e3 if values_s else None for key, share in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--vocab", type=int, required=True, help="prompts consist of ids below it")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--warmup", type=float, default=30.0, help="seconds")
    parser.add_argument("--window", type=float, default=60.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    clients = Clients(parser.parse_args())
    asyncio.run(clients.run())
    print(json.dumps(clients.figures()))


if __name__ == "__main__":
    main()
