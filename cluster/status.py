"""`nfold status`: Ray knows nodes and pools, the observer knows models. Needs a connected process."""

from typing import Any

import httpx
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..deployments.config import PoolConfig
from ..deployments.nodes import alive_nodes
from ..deployments.placement import NodeResources
from .controller.costs import in_words
from .hardware import hardware
from .pool_scaling import pool_states
from .run_state import RunState
from .service import listeners, observer_url

OBSERVER_TIMEOUT_S = 5.0

Json = dict[str, Any]


def gather(state: RunState) -> Json:
    """`{"service", "listeners", "nodes", "pools", "models"}`; `models` is the observer's /status.json, and
    `{"error": text}` when it does not answer.

    Raises:
        StateError: the service is not running on its cluster.
    """
    config = state.config
    observed = _ask_observer(observer_url(config))
    models = observed.get("models", {})
    states = pool_states(config)
    return {
        "service": config.name,
        "cluster": "local" if state.local else state.address,
        "listeners": listeners(config),
        "nodes": [_node(node, models) for node in alive_nodes()],
        "pools": [_pool(name, pool, states[name], models) for name, pool in config.pools.items()],
        **observed,
    }


def _ask_observer(url: str) -> Json:
    try:
        answer = httpx.get(url, timeout=OBSERVER_TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return {"models": {}, "error": f"the observer at {url} does not answer: {error}"}
    return answer.json()


def _node(node: NodeResources, models: Json) -> Json:
    replicas = [each for model in models.values() for each in model["replicas"] if each["node"] == node.name]
    return {
        "name": node.name,
        "node_id": node.node_id,
        "address": node.address,
        "has": hardware(node),
        "replicas": len(replicas),
        "tokens_per_s": sum(each["tokens_per_s"] or 0.0 for each in replicas),
    }


def _pool(name: str, pool: PoolConfig, states: dict[str, int], models: Json) -> Json:
    told = {"name": name, "accelerator": pool.accelerator, "tp": pool.tp, "replicas": states}
    if not pool.is_simulated:
        return told
    engines = [
        each for model in models.values() for each in model["replicas"] if each["pool"] == name and each["up"]
    ]
    return {**told, "simulated": True, "engines": len(engines)}


def render(status: Json) -> RenderableType:
    """For the terminal; without colour it reads the same."""
    where = "a local cluster" if status["cluster"] == "local" else f"the Ray cluster at {status['cluster']}"
    listening = " · ".join(f"{name} {url}" for name, url in status["listeners"].items())
    parts: list[RenderableType] = [
        Text(f"{status['service']} on {where}", style="bold"),
        Text(listening),
        _nodes_table(status),
        _pools_table(status),
        _models_table(status),
        *(
            Text(f"{name} loses most to {worst}")
            for name, model in status["models"].items()
            if (worst := _worst(model))
        ),
    ]
    parts += [
        Text(in_words(name, cost["currency"], cost["per_hour"], cost["per_million_tokens"]))
        for name, model in status["models"].items()
        if (cost := model.get("cost"))
    ]
    if "error" in status:
        parts.append(Text(status["error"], style="yellow"))
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in ("node", "pool", "model", "has", "state") else "right")
    return table


def _nodes_table(status: Json) -> Table:
    table = _table("node", "has", "replicas", "tokens/s")
    for node in status["nodes"]:
        table.add_row(node["name"], node["has"], str(node["replicas"]), f"{node['tokens_per_s']:,.0f}")
    return table


def _pools_table(status: Json) -> Table:
    table = _table("pool", "tp", "state")
    for pool in status["pools"]:
        states = ", ".join(f"{count} {state}" for state, count in pool["replicas"].items()) or "no replica"
        if pool.get("simulated"):  # what Serve counts are nodes
            states += f", {pool['engines']} simulated engines"
        table.add_row(pool["name"], str(pool["tp"]), states)
    return table


def _models_table(status: Json) -> Table:
    table = _table("model", "running", "waiting", "tokens/s", "TTFT p50", "efficiency")
    for name, model in status["models"].items():
        waiting = model["num_queued"] + sum(each.get("waiting", 0) for each in model["replicas"])
        running = sum(each.get("running", 0) for each in model["replicas"])
        ttft_s = model["latency_s"].get("ttft_p50")
        table.add_row(
            f"{name} (simulated)" if model["simulated"] else name,
            str(running),
            str(waiting),
            f"{model['tokens_per_s']:,.0f}",
            "-" if ttft_s is None else f"{1000 * ttft_s:.0f} ms",
            _efficiency(model),
        )
    return table


def _worst(model: Json) -> str:
    """The ledger's largest column; `nfold ledger` has all."""
    ledger = model["ledger"]
    if ledger is None or ledger["baseline"] <= 0.0:
        return ""
    column = max(ledger["losses"], key=lambda name: ledger["losses"][name])
    share = ledger["losses"][column] / ledger["baseline"]
    return f"{column} {share:.1%}" if share >= 0.0005 else ""


def _efficiency(model: Json) -> str:
    ledger = model["ledger"]
    if ledger is None:
        return "no baseline" if not model["baselines"] else "-"
    if ledger["efficiency"] is None:
        return f"room for {ledger['headroom']:,.0f}/s"
    return f"{ledger['efficiency']:.1%}"
