"""What a service is made of, before anything starts."""

import pytest
from nfold.deployments.application import build_application, plan_service, rank_0_options
from nfold.deployments.config import HttpConfig, PoolConfig, ServedModelConfig, ServiceConfig
from nfold.deployments.gateway import GATEWAYS
from nfold.deployments.placement import NodeResources


def node(name: str, machine: str) -> NodeResources:
    return NodeResources(name, name, machine, {"CPU": 2}, {"CPU": 2}, {})


@pytest.mark.parametrize("per_machine", [1, 2])
@pytest.mark.parametrize(("machines", "everywhere"), [(["a", "b", "c"], True), (["a", "a", "b"], False)])
def test_each_machine_has_its_gateways(machines: list[str], everywhere: bool, per_machine: int) -> None:
    config = ServiceConfig(http=HttpConfig(gateways=per_machine), models=[ServedModelConfig(name="sums")])
    plan = plan_service(config, [node(f"node-{index}", machine) for index, machine in enumerate(machines)])
    assert plan.num_gateways == per_machine * len(set(machines))
    assert plan.ingress_everywhere == everywhere
    gateways = build_application(config, plan)._bound_deployment
    assert (gateways.name, gateways.num_replicas) == (GATEWAYS, plan.num_gateways)
    assert gateways._replica_config.max_replicas_per_node == per_machine


def test_rank_0_takes_the_first_bundle_and_sees_what_its_replica_needs() -> None:
    assert rank_0_options(PoolConfig(tp=2, cores_per_rank=3)) == {"num_cpus": 3, "num_gpus": 0, "resources": {}}
    assert rank_0_options(PoolConfig(accelerator="GPU")) == {"num_cpus": 0, "num_gpus": 1, "resources": {}}
    together = rank_0_options(PoolConfig(accelerator="GPU", tp=2))
    assert together["num_gpus"] == 1
    assert "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES" in together["runtime_env"]["env_vars"]
