"""The `controller:` section: what is wrong in it is named as the user wrote it."""

from pathlib import Path

import pytest
from nfold.cluster.config import load_config
from nfold.cluster.controller.settings import ScalingSettings
from nfold.models.errors import ConfigError


def load(path: Path, controller: str) -> ScalingSettings:
    path.write_text(f"models: [{{name: sums}}]\ncontroller: {controller}\n")
    return load_config(path).controller.models["sums"]


def test_a_model_with_nothing_behind_it_has_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "a.yaml", "{models: {sums: }}") == ScalingSettings()


@pytest.mark.parametrize(
    ("controller", "message"),
    [
        ("{models: {sums: {max_node: 3}}}", r"controller\.models\.sums\.max_node: .*did you mean max_nodes"),
        (
            "{models: {sums: {min_nodes: 9, max_nodes: 2}}}",
            r"controller\.models\.sums: .*must not exceed max_nodes",
        ),
        ("{models: {sums: {keep_utilisation: 0.9}}}", "must not exceed target_utilisation"),
        ("{models: {other: {}}}", "no such model is served; there is sums"),
        ("{prices: {node_hour: {a: -1}}}", r"controller\.prices\.node_hour\.a: got -1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, controller: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "a.yaml", controller)
