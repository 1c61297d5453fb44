"""Simulated engines in the YAML: what is wrong is named, and what is right says `simulated` wherever it goes."""

import pytest
from nfold.deployments.config import EngineConfig, PoolConfig, ServedModelConfig
from nfold.deployments.simulated_config import FaultConfig, SimulatedConfig
from nfold.models.engine.simulated.faults import Die, LoseSlots, Slow, Stall
from pydantic import ValidationError


def served(accelerator: str = "MI355X", **simulated: object) -> ServedModelConfig:
    return ServedModelConfig.model_validate(
        {
            "name": "m",
            "path": "simulated",
            "engine": {"engine": "simulated", "simulated": simulated},
            "pools": [{"accelerator": accelerator}],
        }
    )


def test_a_pool_is_named_simulated_and_stays_so() -> None:
    model = served("MI355X")
    assert model.pools[0].accelerator == "simulated-MI355X"
    assert model.pools[0].is_simulated
    assert ServedModelConfig.model_validate_json(model.model_dump_json()) == model


def test_the_profile_follows_from_model_profile_and_accelerator() -> None:
    simulated = served(model_profile="gpt-oss-120b").simulated
    assert simulated is not None
    assert simulated.profile("simulated-MI355X").name == "MI355X--gpt-oss-120b"


@pytest.mark.parametrize(
    ("accelerator", "simulated", "words"),
    [
        ("MI999", {}, r"pools\[0\].*'MI999--llama-2-70b'.*llama-2-70b on B200, .*MI355X"),
        ("CPU", {}, "'CPU--llama-2-70b'"),
        ("MI300X", {"model_profile": "gpt-oss-120b"}, "'MI300X--gpt-oss-120b'.*gpt-oss-120b on B200"),
        ("MI355X", {"scenario": "offlin"}, "'offlin'.*has offline, server"),
        ("MI355X", {"faults": [{"kind": "slow"}]}, "kind slow needs percent"),
        ("MI355X", {"faults": [{"kind": "die", "share": 0.5}]}, "kind die has no share"),
        ("MI355X", {"faults": [{"kind": "explode"}]}, "'slow', 'stall', 'die' or 'lose_slots'"),
        ("MI355X", {"faults": [{"kind": "lose_slots", "share": 2}]}, "less than or equal to 1"),
        ("MI355X", {"faults": [{"kind": "die", "engines": [-1]}]}, "greater than or equal to 0"),
    ],
)
def test_what_is_wrong_is_named(accelerator: str, simulated: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        served(accelerator, **simulated)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"path": "simulated"}, "go together"),
        ({"engine": {"engine": "simulated"}}, "go together"),
        ({"engine": {"simulated": {}}}, "needs `engine: simulated`"),
        ({"pools": [{"accelerator": "simulated-MI355X"}]}, "needs `engine: {engine: simulated}`"),
        (
            {"path": "simulated", "engine": {"engine": "simulated", "max_num_seqs": 3}},
            "max_num_seqs .* its profile",
        ),
        (
            {
                "path": "simulated",
                "engine": {"engine": "simulated"},
                "pools": [{"accelerator": "MI355X", "tp": 8}],
            },
            r"pools\[0\].tp: got 8",
        ),
        (
            {
                "path": "simulated",
                "engine": {"engine": "simulated", "max_model_len": 10**6},
                "pools": [{"accelerator": "MI355X"}],
            },
            "max_model_len: got 1000000; must not exceed 2048",
        ),
    ],
)
def test_engine_and_path_have_to_fit(model: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ServedModelConfig.model_validate({"name": "m", **model})


def test_faults_hit_the_engines_that_are_named() -> None:
    faults = [
        FaultConfig(kind="slow", percent=20, at_s=5, hosts=[1], engines=[0, 2]),
        FaultConfig(kind="stall", at_s=1, duration_s=2, hosts=[1]),
        FaultConfig(kind="die", at_s=3, engines=[7]),
        FaultConfig(kind="lose_slots", share=0.5),
    ]
    simulated = SimulatedConfig(faults=faults)
    assert simulated.faults_of(1, 2) == [Slow(20, 5), Stall(1, 2), LoseSlots(0.5)]
    assert simulated.faults_of(1, 7) == [Stall(1, 2), Die(3), LoseSlots(0.5)]
    assert simulated.faults_of(0, 0) == [LoseSlots(0.5)]


def test_an_engine_that_computes_has_no_simulated_part() -> None:
    model = ServedModelConfig(name="m", engine=EngineConfig(), pools=[PoolConfig()])
    assert model.simulated is None
