"""The controller's memory on disk. It survives being killed between any two bytes.

    <directory>/history.jsonl       one `Entry` per line, only appended to: decisions, scores, holes
    <directory>/history.1.jsonl     the one before, when it grew too long
    <directory>/state.json          what to resume from; replaced as a whole

A decision is kept before it is acted on, with the state after it. A line without an end was being written: it does
not count, and is cut off. Of the state file and the last decision's state, the later counts.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from ...models.errors import StateError
from .records import Entry, State

MAX_BYTES = 128 << 20


def history_directory(home: Path, service: str) -> Path:
    """Of a service's controller, on the head."""
    return home / "controller" / service


class History:
    """The history in a directory; one writer.

    Raises:
        StateError: the directory cannot be written.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = directory / "history.jsonl"
        self._state = directory / "state.json"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > max_bytes:
                self._path.replace(directory / "history.1.jsonl")
            _cut_torn_line(self._path)
        except OSError as error:
            raise StateError(f"the controller cannot keep its history in {directory}: {error.strerror}") from None

    def append(self, entry: Entry) -> None:
        """Kept when this returns."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_state(self, state: State) -> None:
        fresh = self._state.with_suffix(".tmp")
        fresh.write_bytes(msgspec.json.encode(state))
        fresh.replace(self._state)

    def resume(self) -> State:
        """The latest state; an empty one when there is none."""
        kept: list[State] = []
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):  # decisions carry the state, too
            kept.append(msgspec.json.decode(self._state.read_bytes(), type=State))
        scored: set[tuple[int, str]] = set()
        for entry in read(self._path.parent):
            scored |= {(score.decision, score.model) for score in entry.scores}
            kept += [] if entry.state is None else [entry.state]
        state = max(kept, key=lambda one: one.memory.decision, default=State())
        pending = tuple(one for one in state.pending if (one.decision, one.model) not in scored)
        return replace(state, pending=pending)


def read(directory: Path) -> Iterator[Entry]:
    """All that is kept, oldest first. Lines of another version, which cannot be read, are left out."""
    for name in ("history.1.jsonl", "history.jsonl"):
        path = directory / name
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    yield msgspec.json.decode(line, type=Entry)
                except msgspec.MsgspecError:
                    continue


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
