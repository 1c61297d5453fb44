"""HTTP clients of a service that scales, in a process of their own: streams of the OpenAI API, checked to the end.

    python benchmarks/autoscaling_clients.py --url http://127.0.0.1:8000/v1

Takes JSON lines on standard input, answers each with a line of `Counts`: `{"streams": {MODEL: COUNT}}` sets how
many streams each model has from now on (those too many finish first); `{"end": true}` waits until all have ended.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field

import aiohttp

PROMPT_TOKENS = 24
LOWEST_ID, HIGHEST_ID = 3, 120
RETRY_S = 0.5
TIMEOUT_S = 120.0
NO_ANSWER = (aiohttp.ClientError, asyncio.TimeoutError)


@dataclass
class Counts:
    """
    Attributes:
        num_done: streams that ended with all tokens they asked for.
        num_failed: of whose answer nothing came, or something else than a stream.
        num_cut: began and ended too early.
        first_error: of the first that failed; first_cut: of the first that was cut.
        longest_wait_s: from asking to the first byte of an answer, at most, since streams were last set.
    """

    num_done: int = 0
    num_failed: int = 0
    num_cut: int = 0
    num_tokens: int = 0
    first_error: str = ""
    first_cut: str = ""
    longest_wait_s: float = 0.0
    open: dict[str, int] = field(default_factory=dict)


class Clients:
    def __init__(self, url: str, max_tokens: int, *, whole: bool = False) -> None:
        self._url = url
        self._ask = self._whole if whole else self._stream
        self._max_tokens = max_tokens
        self._wanted: dict[str, int] = {}
        self._random = random.Random(0)
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = Counts()

    def want(self, client: aiohttp.ClientSession, streams: dict[str, int]) -> None:
        if streams:
            self.counts.longest_wait_s = 0.0
        self._wanted |= streams
        for model, count in self._wanted.items():
            for _ in range(count - self.counts.open.get(model, 0)):
                self.counts.open[model] = self.counts.open.get(model, 0) + 1
                task = asyncio.create_task(self._loop(client, model))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def ended(self) -> None:
        await asyncio.gather(*self._tasks)

    async def _loop(self, client: aiohttp.ClientSession, model: str) -> None:
        try:
            while self.counts.open[model] <= self._wanted[model]:
                await self._ask(client, model)
        finally:
            self.counts.open[model] -= 1

    def _request(self, model: str) -> tuple[dict[str, object], int]:
        max_tokens = self._random.randint(self._max_tokens // 2, self._max_tokens)
        prompt = [self._random.randint(LOWEST_ID, HIGHEST_ID) for _ in range(PROMPT_TOKENS)]
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "seed": 1, "ignore_eos": True}
        return body, max_tokens

    async def _whole(self, client: aiohttp.ClientSession, model: str) -> None:
        body, max_tokens = self._request(model)
        began, asked_s = False, time.monotonic()
        try:
            async with client.post(f"{self._url}/completions", json=body) as response:
                began = self._waited(asked_s)
                text = await response.text()
        except NO_ANSWER as error:
            return await self._fail(f"{type(error).__name__}: {error}", began=began)
        if response.status != 200:
            return await self._fail(f"HTTP {response.status}: {text[:300]}", began=False)
        num_tokens = json.loads(text)["usage"]["completion_tokens"]
        if num_tokens != max_tokens:
            return await self._fail(f"{num_tokens} of {max_tokens} tokens", began=True)
        self._done(num_tokens)

    def _waited(self, since_s: float) -> bool:
        self.counts.longest_wait_s = max(self.counts.longest_wait_s, time.monotonic() - since_s)
        return True

    def _done(self, num_tokens: int) -> None:
        self.counts.num_done += 1
        self.counts.num_tokens += num_tokens

    async def _stream(self, client: aiohttp.ClientSession, model: str) -> None:
        body, max_tokens = self._request(model)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        num_tokens, finish, began, told_end = 0, None, False, False
        asked_s = time.monotonic()
        try:
            async with client.post(f"{self._url}/completions", json=body) as response:
                began = self._waited(asked_s)
                if response.status != 200:
                    text = (await response.text())[:300]
                    return await self._fail(f"HTTP {response.status}: {text}", began=False)
                async for line in response.content:
                    told_end = told_end or line == b"data: [DONE]\n"
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        return await self._fail(f"in a stream: {event['error']}", began=True)
                    for choice in event["choices"]:
                        finish = choice["finish_reason"] or finish
                    num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        except NO_ANSWER as error:
            return await self._fail(f"{type(error).__name__}: {error}", began=began)
        if num_tokens != max_tokens or finish != "length" or not told_end:
            await self._fail(
                f"{num_tokens} of {max_tokens} tokens, finish {finish}, end told {told_end}", began=True
            )
            return
        self._done(num_tokens)

    async def _fail(self, reason: str, *, began: bool) -> None:
        if began:
            self.counts.num_cut += 1
            self.counts.first_cut = self.counts.first_cut or reason
        else:
            self.counts.num_failed += 1
            self.counts.first_error = self.counts.first_error or reason
        await asyncio.sleep(RETRY_S)


async def serve(clients: Clients) -> None:
    timeout, connector = aiohttp.ClientTimeout(total=TIMEOUT_S), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            clients.want(client, order.get("streams", {}))
            if order.get("end"):
                clients.want(client, dict.fromkeys(clients.counts.open, 0))
                await clients.ended()
            print(json.dumps(asdict(clients.counts)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--whole", action="store_true", help="answers in one piece, which spare the clients' CPU")
    args = parser.parse_args()
    asyncio.run(serve(Clients(args.url, args.max_tokens, whole=args.whole)))


if __name__ == "__main__":
    main()
