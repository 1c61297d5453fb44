"""The figures behind a verdict, in words."""

from collections.abc import Mapping

from .outlook import Outlook


def tokens(rate: float) -> str:
    return f"{rate:,.0f} tokens/s"


def nodes_of(nodes: Mapping[str, int]) -> str:
    parts = [f"{count} {kind}" for kind, count in sorted(nodes.items()) if count]
    return " + ".join(parts) or "no nodes"


def growth(o: Outlook) -> str:
    """What is asked for, and what that takes."""
    d = o.demand
    text = f"{tokens(d.now)} are asked for"
    if d.expected > 1.02 * d.now:
        text += f", {tokens(d.expected)} are expected in the {d.lead_s:.0f} s that a new node needs"
    if d.backlog_tokens > 0.0:
        text += f", {d.backlog_tokens:,.0f} tokens wait that would still wait then"
    return text + f", which takes {tokens(d.planned)}"


def idle(o: Outlook) -> str:
    """Why fewer do."""
    d = o.demand
    used = f"at most {tokens(d.peak)} were asked for in the last {o.idle_s:.0f} s"
    return f"{used}, which is to be {o.settings.keep_utilisation:.0%} at most of what is kept"


def waiting(o: Outlook) -> str:
    return f"waiting for {nodes_of(o.have)} to serve or to go"
