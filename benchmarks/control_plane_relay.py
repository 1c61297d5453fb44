"""TCP relays that deliver late: replicas behind them are as if so far away. Bytes pass unread, CURVE included.

    python benchmarks/control_plane_relay.py --delay-ms 30 HOST:PORT [HOST:PORT ...]

Prints one line of JSON, the relays' ports in order, and runs until its input ends.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nfold.deployments.addresses import ReplicaAddress

CHUNK_BYTES = 1 << 16


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """What comes in goes out in order, each piece `delay_s` later; the end, too."""
    loop = asyncio.get_running_loop()
    try:
        while data := await reader.read(CHUNK_BYTES):
            loop.call_later(delay_s, writer.write, data)
    except ConnectionError:
        pass
    await asyncio.sleep(delay_s)
    writer.close()


async def _relay(target: str, delay_s: float, tasks: set[asyncio.Task[None]]) -> int:
    host, _, port = target.rpartition(":")

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        for each in (writer, far_writer):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(_pass_on(reader, far_writer, delay_s), _pass_on(far_reader, writer, delay_s))

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connect(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


async def _serve(targets: Sequence[str], delay_s: float) -> None:
    tasks: set[asyncio.Task[None]] = set()
    ports = [await _relay(target, delay_s, tasks) for target in targets]
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextmanager
def far_away(replicas: Sequence[ReplicaAddress], delay_ms: float) -> Generator[list[ReplicaAddress]]:
    """The same replicas, `delay_ms` away each way, while the context lasts."""
    targets = [replica.tcp_endpoint.removeprefix("tcp://") for replica in replicas]
    assert all(targets), "replicas are reached over tcp from afar"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), "--delay-ms", str(delay_ms), *targets],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ports = json.loads(process.stdout.readline())
        yield [
            replace(replica, host=f"far-{replica.host}", ipc_endpoint="", tcp_endpoint=f"tcp://127.0.0.1:{port}")
            for replica, port in zip(replicas, ports, strict=True)
        ]
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--delay-ms", type=float, required=True, help="each way")
    args = parser.parse_args()
    asyncio.run(_serve(args.targets, args.delay_ms / 1e3))


if __name__ == "__main__":
    main()
