"""Rank 0's voice: it tells the other ranks of its replica what to do, and that it is still there."""

import contextlib
import threading
from collections.abc import Generator
from contextlib import contextmanager

from ..errors import EngineError
from ..parallel import TpGroup
from .tp_messages import Message, MessageKind

HEARTBEAT_S = 2.0


class TpLeader:
    """Sends messages from rank 0; while there are none a thread sends heartbeats. So a rank that waits hears from
    rank 0 long before the group's timeout, and rank 0 learns of a dead rank while it is idle, too.

    Args:
        heartbeat_s: longest silence between steps; must be well under the group's timeout.
    """

    def __init__(self, tp: TpGroup, heartbeat_s: float) -> None:
        assert tp.rank == 0
        self._tp = tp
        self._heartbeat_s = heartbeat_s
        self._speaking = threading.Lock()
        self._spoke = threading.Event()
        self._closing = False
        self._failure: EngineError | None = None
        self._thread = threading.Thread(target=self._beat, name="tp-heartbeat", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> EngineError | None:
        """Why nothing can be sent any more: a rank is gone or failed."""
        return self._failure

    @contextmanager
    def lead(self, message: Message) -> Generator[None]:
        """Send `message`; what the ranks do together because of it happens inside the context.

        Raises EngineError when another rank is gone. An EngineError inside ends all sending.
        """
        # The model's collectives may share their group with ours: a heartbeat among them would mix up their order.
        with self._speaking:
            if self._failure is not None:
                raise self._failure
            try:
                self._tp.broadcast_bytes(message.encode())
                yield
            except EngineError as error:
                self._failure = error
                raise
        self._spoke.set()

    def close(self) -> None:
        """Let the other ranks' `follow` return, if they still listen."""
        if self._closing:
            return
        self._closing = True
        self._spoke.set()
        self._thread.join()
        self._send_quietly(MessageKind.STOP)

    def _beat(self) -> None:
        while not self._closing and self._failure is None:
            if self._spoke.wait(self._heartbeat_s):
                self._spoke.clear()
            else:
                self._send_quietly(MessageKind.HEARTBEAT)

    def _send_quietly(self, kind: MessageKind) -> None:
        """There is nobody here to act on an error; it stays in `failure`."""
        with contextlib.suppress(EngineError), self.lead(Message(kind)):
            pass
