"""A router inside asyncio. (In work.)"""

import asyncio

from .router import Router


class Attachment:
    """A router driven by an event loop, until `detach`."""

    def detach(self) -> None:
        """Stop driving the router; it stays open. Ignored the second time."""
        raise NotImplementedError


def attach(router: Router, loop: asyncio.AbstractEventLoop) -> Attachment:
    """Let `loop` drive `router`: messages as they come, one flush per tick of the loop, `tick`.

    From then on use the router in the loop's thread only.
    """
    raise NotImplementedError
