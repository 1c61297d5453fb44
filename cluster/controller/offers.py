"""What a node of each type is to each model: by its resources, its pools' settings, and their baselines. Pure."""

from collections.abc import Mapping, Sequence

from ...deployments.config import PoolConfig
from ...deployments.placement import NodeResources, engines_per_node, replicas_that_fit
from ..baseline import Baseline
from ..config import NfoldConfig
from ..service_view import yardstick_name
from .actuation import NodeType
from .misfits import Room, misfit, needs
from .snapshot import Offer, StepTime

# Shares of a full batch at which the step-time curve is told.
BATCH_SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


def offers_of(
    config: NfoldConfig, node_types: Sequence[NodeType], baselines: Sequence[Baseline]
) -> dict[str, tuple[Offer, ...]]:
    """By model, of each type of node the pool that makes most of it, or else why none fits."""
    known = {(one.key.model, yardstick_name(one.key.accelerator, one.key.tp)): one for one in baselines}
    offers: dict[str, tuple[Offer, ...]] = {}
    for model in config.models:
        pools = {
            name: pool for name, pool in config.pools.items() if pool in model.pools and _is_of(name, model.name)
        }
        measured = {
            name: known.get((model.name, yardstick_name(pool.accelerator, pool.tp))) for name, pool in pools.items()
        }
        best = [_best(kind, pools, measured) for kind in node_types]
        offers[model.name] = tuple(offer for offer in best if offer is not None)
    return offers


def _is_of(pool: str, model: str) -> bool:
    return pool.startswith(f"{model}--")


def _best(kind: NodeType, pools: Mapping[str, PoolConfig], measured: Mapping[str, Baseline | None]) -> Offer | None:
    found = [_offer(kind, name, pool, measured[name]) for name, pool in pools.items()]
    if not found:
        return None
    return max(found, key=lambda offer: (offer.num_replicas > 0, offer.tokens_per_s or 0.0))


def _offer(kind: NodeType, name: str, pool: PoolConfig, baseline: Baseline | None) -> Offer:
    node = NodeResources(kind.name, kind.name, "", kind.resources, kind.resources, kind.labels)
    num_replicas = replicas_that_fit(pool, [node])
    per_replica = engines_per_node(pool.accelerator, kind.resources) if pool.is_simulated and num_replicas else 1
    num_engines = num_replicas * per_replica
    reason = misfit(needs(pool), Room(kind.name, kind.resources, kind.resources))
    return Offer(
        node_type=kind.name,
        pool=name,
        num_replicas=num_replicas,
        misfit=f"{kind.name} {reason}" if reason else "",
        tokens_per_s=baseline.yardstick.tokens_per_s * num_engines if baseline and num_engines else None,
        num_engines=num_engines,
        full_batch=baseline.num_in_flight if baseline else 1.0,
        step_times=_step_times(baseline) if baseline else (),
    )


def _step_times(baseline: Baseline) -> tuple[StepTime, ...]:
    """By the baseline's curve, with prompts and context in proportion as at saturation; else as measured."""
    told, curve = baseline.saturation, baseline.curve
    if told is None or curve is None or not told.decode_tokens:
        points = sorted(baseline.step_times, key=lambda point: point.num_tokens)
        return tuple(StepTime(batch=point.num_tokens, step_s=point.step_s) for point in points)
    full = told.batch
    batches = dict.fromkeys(max(1.0, share * full) for share in BATCH_SHARES)
    per_token = (told.prefill_tokens / told.decode_tokens, told.kv_tokens / told.decode_tokens)
    between = baseline.yardstick.overhead_s
    return tuple(
        StepTime(batch=b, step_s=curve.step_s(per_token[0] * b, b, per_token[1] * b) + between(1.0, b))
        for b in batches
    )
