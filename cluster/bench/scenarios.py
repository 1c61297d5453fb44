"""MLPerf's scenarios, by the names that results are published under."""

from enum import StrEnum


class Scenario(StrEnum):
    """How requests come, and what is asked of the answers."""

    OFFLINE = "Offline"
    SERVER = "Server"
    INTERACTIVE = "Interactive"
    SINGLE_STREAM = "SingleStream"

    @property
    def loadgen(self) -> str:
        """LoadGen's own name: Interactive is Server with another model key."""
        return "Server" if self is Scenario.INTERACTIVE else self.value

    @property
    def is_server(self) -> bool:
        """Requests come by the clock, whatever becomes of the earlier ones, and latencies are limited."""
        return self in (Scenario.SERVER, Scenario.INTERACTIVE)

    @property
    def lower_is_better(self) -> bool:
        """The result is a latency, not a rate."""
        return self is Scenario.SINGLE_STREAM
