"""The table of what Ray assigned, what the variables hide, and what torch counts."""

import pytest
from nfold.deployments.config import PoolConfig
from nfold.deployments.devices import (
    AssignedDevice,
    ProvenDevice,
    check_distinct,
    inspect_device,
    plan_device,
    prove_device,
    ray_options,
    visibility,
)
from nfold.models.errors import DeviceError
from ray._private.accelerators.nvidia_gpu import NOSET_CUDA_VISIBLE_DEVICES_ENV_VAR

MI355X = "AMD-Instinct-MI355X-OAM"


def assigned(ids: list[str], **environment: str) -> AssignedDevice:
    return AssignedDevice(rank=3, accelerator=MI355X, gpu_ids=ids, environment=environment)


@pytest.mark.parametrize(
    ("view", "device_count", "device"),
    [
        # Ray set the variable of its vendor.
        (assigned(["5"], HIP_VISIBLE_DEVICES="5"), 1, "cuda:0"),
        (assigned(["5"], CUDA_VISIBLE_DEVICES="5"), 1, "cuda:0"),
        (assigned(["5"], HIP_VISIBLE_DEVICES="5", CUDA_VISIBLE_DEVICES="5"), 1, "cuda:0"),
        (assigned(["5"], HIP_VISIBLE_DEVICES="5", ROCR_VISIBLE_DEVICES="0,1,2,3,4,5"), 1, "cuda:0"),
        (assigned(["GPU-ab"], CUDA_VISIBLE_DEVICES="GPU-ab"), 1, "cuda:0"),
        # NOSET: the process sees all, or what the node was given before `ray start`; ids need not be sorted.
        (assigned(["5"]), 8, "cuda:5"),
        (assigned(["5"], HIP_VISIBLE_DEVICES="6,5,4"), 3, "cuda:1"),
    ],
)
def test_the_assigned_device_is_found(view: AssignedDevice, device_count: int, device: str) -> None:
    assert prove_device(plan_device(view), device_count) == device


@pytest.mark.parametrize(
    ("view", "phrase"),
    [
        (assigned([]), "Ray assigned no GPU.*exactly one"),
        (assigned(["0", "1"], HIP_VISIBLE_DEVICES="0,1"), "GPU 0, 1.*exactly one"),
        (assigned(["5"], HIP_VISIBLE_DEVICES="4"), "hides the GPU"),
        (assigned(["5"], HIP_VISIBLE_DEVICES=""), "hides the GPU"),
        (assigned(["5"], ROCR_VISIBLE_DEVICES="5"), "ROCR_VISIBLE_DEVICES hides devices below Ray"),
        # amdsmi is missing: Ray set CUDA's variable, and the image had set HIP's.
        (assigned(["5"], HIP_VISIBLE_DEVICES="0,1,2,3,4,5", CUDA_VISIBLE_DEVICES="5"), "contradict.*amdsmi"),
        (assigned(["GPU-ab"]), "not a number"),
    ],
)
def test_a_contradiction_is_refused_and_says_what_it_saw(view: AssignedDevice, phrase: str) -> None:
    with pytest.raises(DeviceError, match=phrase) as error:
        plan_device(view)
    for name, value in view.environment.items():
        assert f"{name}={value}" in str(error.value)
    assert f"rank 3 on {MI355X}" in str(error.value)


@pytest.mark.parametrize(
    ("view", "device_count"),
    [
        (assigned(["5"], HIP_VISIBLE_DEVICES="5"), 8),  # HIP had read its variable before Ray set it
        (assigned(["5"], HIP_VISIBLE_DEVICES="5"), 0),
        (assigned(["5"]), 4),
    ],
)
def test_torch_must_agree(view: AssignedDevice, device_count: int) -> None:
    with pytest.raises(DeviceError, match=rf"torch sees {device_count}"):
        prove_device(plan_device(view), device_count)


def test_a_cpu_rank_needs_no_gpu() -> None:
    planned = plan_device(AssignedDevice(0, "CPU", [], {}))
    assert inspect_device(planned) == ProvenDevice("cpu", "CPU")


def test_two_ranks_on_one_device_are_refused() -> None:
    check_distinct([ProvenDevice("cpu", "CPU"), ProvenDevice("cpu", "CPU")])
    check_distinct([ProvenDevice("cuda:0", "MI355X", "gfx950", id) for id in ("a", "b")])
    with pytest.raises(DeviceError, match="ranks 0 and 2 both see MI355X a"):
        check_distinct([ProvenDevice("cuda:0", "MI355X", "gfx950", id) for id in ("a", "b", "a")])


def test_visibility_keeps_only_its_variables() -> None:
    environment = {"PATH": "/bin", "ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}
    assert visibility(environment) == {"HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "1"}


def test_only_ranks_that_read_each_others_memory_see_all_gpus() -> None:
    for pool in (
        PoolConfig(tp=2),
        PoolConfig(accelerator="H200"),
        PoolConfig(accelerator="H200", tp=2, shares_memory=False),
    ):
        assert ray_options(pool) == {}
    options = ray_options(PoolConfig(accelerator="H200", tp=2))
    assert options == {"runtime_env": {"env_vars": {NOSET_CUDA_VISIBLE_DEVICES_ENV_VAR: "1"}}}
