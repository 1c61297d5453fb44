"""`nfold scale`: a model on more or fewer nodes, while it serves. Needs a connected process."""

from dataclasses import dataclass

from ..deployments.config import pool_name
from ..models.errors import StateError
from .config import NfoldConfig
from .pool_scaling import replica_counts
from .run_state import RunState
from .scale_joined import scale_to_nodes
from .scale_local import grow, shrink
from .service import Progress, served_model


@dataclass(frozen=True)
class Scaled:
    """What scaling came to: nodes that the model may use, and its replicas."""

    num_nodes: int
    num_replicas: int


def scale(state: RunState, model: str, num_nodes: int, timeout_s: float, progress: Progress) -> Scaled:
    """Serve `model` on `num_nodes` nodes.

    Args:
        timeout_s: how long to wait for nodes of a running cluster's autoscaler.

    Raises:
        StateError: no such model is served, the controller scales it, or nodes or replicas do not come or go in
            time.
        PlacementError: no node has room for a replica.
    """
    pool = _only_pool(state.config, model)
    controller = state.config.controller
    if controller.enabled and model in controller.models:
        raise StateError(
            f"the controller scales {model}, and would undo this at once; bound it by min_nodes and max_nodes in "
            f"controller.models.{model} and serve anew"
        )
    if state.local is not None and state.config.pools[pool].is_simulated:
        raise StateError("a local cluster's simulated nodes are what its config says; change that and serve anew")
    if state.local is None:
        scale_to_nodes(state.config, pool, num_nodes, timeout_s, progress)
    elif num_nodes < len(state.local.nodes):
        shrink(state.config, state.local, num_nodes, progress)
    else:
        grow(state.config, state.local, pool, num_nodes, progress)
    return Scaled(num_nodes, replica_counts(state.config)[pool])


def _only_pool(config: NfoldConfig, model: str) -> str:
    pools = served_model(config, model).pools
    if len(pools) > 1:
        raise StateError(
            f"{model} has pools on {', '.join(pool.accelerator for pool in pools)}; `nfold scale` knows "
            "models with one pool only"
        )
    return pool_name(model, pools[0])
