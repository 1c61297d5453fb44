"""Baselines and loads on a running service's own replicas. Import this only when connected (see `connect.py`)."""

from pathlib import Path

from ..deployments import discovery
from ..deployments.addresses import ReplicaAddress
from ..deployments.config import EMBEDDED_MODEL, ServedModelConfig
from ..deployments.cores import kept_on
from ..models.errors import CheckpointError, StateError
from .baseline import Baseline, BaselineKey, hash_profile, hash_weights, keep_baseline, load_baseline
from .config import NfoldConfig
from .ledger import account
from .load import LoadSettings
from .measure import measure_baseline, measure_load, replicas_of_one_node
from .published import cores_of, node_names, publish_baseline
from .report import ScalingReport
from .service import Progress, listeners, served_model
from .service_view import yardstick_name
from .workloads import Workload, make_workload


def take_baseline(
    config: NfoldConfig,
    home: Path,
    model: str,
    progress: Progress,
    *,
    workload: str | None = None,
    repeats: int = 3,
    settings: LoadSettings = LoadSettings(),  # noqa: B008
    curve: bool = True,
    max_spread: float | None = None,
    roofline: bool = True,
) -> Baseline:
    """Measure one node of the running service at saturation, keep the result, and tell the service's observer.

    Args:
        workload: by name; None takes `sums` for the model that comes with nfold, else `random`.
        curve: also measure the step-time curve; without it, the ledger cannot tell losses within steps apart.
        max_spread, roofline: see `measure_baseline`.

    Raises:
        StateError: no such model, no replica of it is ready, requests failed, or it is not certain enough.
        ConfigError: no such workload.
        CheckpointError: the model's directory cannot be read here.
    """
    served, replicas = served_model(config, model), replicas_of(config, model)
    progress("preparing the load")
    weights, weights_name = weights_of(served, replicas[0])
    chosen = replicas_of_one_node(replicas)
    # Where nodes share this machine, one node has its part of it for the load generator too.
    with kept_on(cores_of(chosen)):
        baseline = measure_baseline(
            chosen,
            discovery.service_keys(config.name),
            workload_of(served, workload, replicas[0]),
            weights=weights,
            weights_name=weights_name,
            repeats=repeats,
            settings=settings,
            curve=curve,
            max_spread=max_spread,
            roofline=roofline,
            node_names=node_names(),
            progress=progress,
        )
    keep_baseline(baseline, home)
    publish_baseline(config.name, baseline)
    return baseline


def measure_all_nodes(
    config: NfoldConfig,
    baseline: Baseline,
    progress: Progress,
    *,
    settings: LoadSettings = LoadSettings(),  # noqa: B008
) -> ScalingReport:
    """All replicas of the baseline's model under its load, each with as many requests in flight as then.

    Raises:
        StateError: no replica is ready, or replicas came and went so that nothing can be said.
    """
    served = served_model(config, baseline.key.model)
    replicas = replicas_of(config, served.name)
    workload = workload_of(served, baseline.key.workload, replicas[0])
    result = measure_load(
        replicas,
        discovery.service_keys(config.name),
        workload,
        concurrency=baseline.concurrency,
        settings=settings,
        first=len(workload) // 2,  # not what the baseline asked: one node would know those prompts
        node_names=node_names(),
        progress=progress,
    )
    yardsticks = {yardstick_name(baseline.key.accelerator, baseline.key.tp): baseline.yardstick}
    ledger = account(result.samples, yardsticks, measured=result.output_tokens_per_s)
    if ledger is None:
        raise StateError(f"replicas of {served.name} came and went, or are of another kind than the baseline's")
    return ScalingReport(
        model=served.name,
        workload=result.workload,
        one_node_tokens_per_s=baseline.tokens_per_s,
        one_node_spread=baseline.spread if len(baseline.repeats) > 1 else None,
        num_nodes=len({replica.node_id for replica in replicas}),
        node_tokens_per_s=result.tokens_per_s_by_node,
        ledger=ledger,
        exact_share=result.exact_share,
        num_failed=result.num_failed,
        addresses=listeners(config),
        simulated=baseline.simulated,
    )


def replicas_of(config: NfoldConfig, model: str) -> list[ReplicaAddress]:
    """The model's replicas that are ready.

    Raises:
        StateError: there is none.
    """
    replicas = [replica for replica in discovery.list_replicas(config.name) if replica.model == model]
    if not replicas:
        raise StateError(f"no replica of {model} is ready; see `nfold status`")
    return replicas


def weights_of(model: ServedModelConfig, replica: ReplicaAddress) -> tuple[str, str]:
    """Hash and name of what decides how fast the model's replicas are: its checkpoint, or the profile that a
    simulated one follows.

    Raises:
        CheckpointError: the model's directory cannot be read here.
    """
    if model.simulated is None:
        return hash_weights(model.directory), model.directory.name
    name = model.simulated.profile(replica.accelerator).name
    return hash_profile(name), f"profile {name}"


def workload_of(model: ServedModelConfig, name: str | None, replica: ReplicaAddress) -> Workload:
    """The load of this name; None takes the model's usual one."""
    return make_workload(name or _usual_workload(model), model.directory, max_model_len=replica.max_model_len)


def _usual_workload(model: ServedModelConfig) -> str:
    return "sums" if model.path == EMBEDDED_MODEL else "random-128-128"


def publish_kept_baselines(config: NfoldConfig, home: Path) -> list[str]:
    """Tell the service's observer the baselines that earlier services kept, where they are of the same thing.

    Returns:
        For each kind of replica that has none, why, for people.
    """
    notes: list[str] = []
    for model in config.models:
        kinds = {(replica.accelerator, replica.tp): replica for replica in replicas_of(config, model.name)}
        for (accelerator, tp), replica in sorted(kinds.items()):
            key = BaselineKey(model=model.name, accelerator=accelerator, tp=tp, workload=_usual_workload(model))
            try:
                weights, _ = weights_of(model, replica)
                kept = load_baseline(key, home, weights=weights, settings=replica.settings)
            except (StateError, CheckpointError) as error:
                notes.append(str(error))
            else:
                publish_baseline(config.name, kept)
    return notes
