"""A router inside asyncio."""

import asyncio
import math

from .router import Router


class Attachment:
    """A router driven by an event loop, until `detach`. Made by `attach`."""

    def __init__(self, router: Router, loop: asyncio.AbstractEventLoop) -> None:
        self._router = router
        self._loop = loop
        self._attached = True
        router.on_pending = self._flush_soon
        loop.add_reader(router.fileno(), self._drain)
        self._timer = loop.call_soon(self._tick)
        self._held: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None

    def detach(self) -> None:
        """Stop driving the router; it stays open. Ignored the second time."""
        if self._attached:
            self._attached = False
            self._router.on_pending = None
            self._loop.remove_reader(self._router.fileno())
            self._timer.cancel()
            for timer in (self._held, self._gathering):
                if timer is not None:
                    timer.cancel()

    def _flush_soon(self) -> None:
        """At the end of this turn of the loop, so that all of the turn's requests share one message."""
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._attached:
            self._router.flush()
            self._look_again()

    def _drain(self) -> None:
        """Now, or once enough have gathered; what comes until then is handled with them."""
        if not self._attached or self._gathering is not None:
            return
        if (gather_s := self._router.gather_s()) > 0.0:
            self._gathering = self._loop.call_later(gather_s, self._drain_gathered)
        else:
            self._drain_gathered()

    def _drain_gathered(self) -> None:
        self._gathering = None
        if self._attached:
            self._router.drain_messages()
            self._look_again()

    def _tick(self) -> None:
        if self._attached:
            self._timer = self._loop.call_later(self._router.settings.tick_s, self._tick)
            self._router.tick()
            self._look_again()

    def _look_again(self) -> None:
        """ZMQ's descriptor tells of a message once, and sending may have used that up."""
        if self._router.has_messages():
            self._loop.call_soon(self._drain)
        self._flush_when_due()

    def _flush_when_due(self) -> None:
        """What the router holds back is sent in time."""
        wait_s = self._router.next_flush_s()
        if self._held is not None:
            if self._held.when() <= self._loop.time() + wait_s:
                return
            self._held.cancel()
        self._held = self._loop.call_later(wait_s, self._flush_held) if math.isfinite(wait_s) else None

    def _flush_held(self) -> None:
        self._held = None
        self._flush()


def attach(router: Router, loop: asyncio.AbstractEventLoop) -> Attachment:
    """Let `loop` drive `router`: messages as they come, one flush per tick of the loop, `tick`.

    From then on use the router in the loop's thread only.
    """
    return Attachment(router, loop)
