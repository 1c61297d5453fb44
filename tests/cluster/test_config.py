"""The YAML: examples load, and each mistake is named with its place, its value and what would be right."""

from pathlib import Path

import pytest
from nfold.cluster.config import LocalClusterConfig, NfoldConfig, load_config
from nfold.models.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
ONE_MODEL = "models: [{name: a}]\n"


def test_the_example_is_the_default() -> None:
    assert load_config(EXAMPLES / "local.yaml") == NfoldConfig.default()


def test_the_default_is_two_local_nodes() -> None:
    assert NfoldConfig.default().cluster.local_or_default == LocalClusterConfig(nodes=2, cores_per_node="auto")


def test_the_mi355x_example_joins_a_running_cluster() -> None:
    config = load_config(EXAMPLES / "mi355x.yaml")
    assert config.cluster.local_or_default is None
    assert config.cluster.address == "auto"
    assert config.models[0].pools[0].accelerator == "AMD-Instinct-MI355X-OAM"


def test_without_a_cluster_section_the_cluster_is_local(tmp_path: Path) -> None:
    assert _load(tmp_path, ONE_MODEL).cluster.local_or_default == LocalClusterConfig()


def test_relative_model_paths_count_from_the_file(tmp_path: Path) -> None:
    config = _load(tmp_path, "models: [{name: a, path: models/a}, {name: b, path: ~/b}, {name: c}]")
    assert [model.path for model in config.models] == [str(tmp_path / "models" / "a"), "~/b", "embedded"]


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("models: [{name: a, pols: []}]", "models[0].pols", ["did you mean pools?"]),
        ("htpp: {}\n" + ONE_MODEL, "htpp", ["did you mean http?"]),
        ("qqq: 1\n" + ONE_MODEL, "qqq", ["no such field", "name, http, metrics"]),
        ("cluster: {local: {node: 2}}\n" + ONE_MODEL, "cluster.local.node", ["did you mean nodes?"]),
        ("models: [{name: a, engine: {max_num_seq: 3}}]", "models[0].engine.max_num_seq", ["max_num_seqs?"]),
        ("models: [{name: a, pools: [{tp: 0}]}]", "models[0].pools[0].tp", ["0", "greater than or equal to 1"]),
        ("models: [{name: a, pools: [{tp: two}]}]", "models[0].pools[0].tp", ["'two'", "integer"]),
        ("models: [{name: a}, {name: a}]", "config", ["names must differ", "a stands twice"]),
        ("routing: {prefix_affinity_s: -1}\n" + ONE_MODEL, "routing.prefix_affinity_s", ["-1", "equal to 0"]),
        ("models: []", "models", ["at least 1"]),
        ("models: [{name: a b}]", "models[0].name", ["'a b'"]),
        ("models: [{path: x}]", "models[0].name", ["needed"]),
        ("name: nfold", "models", ["needed"]),
        ("models: {name: a}", "models", ["a mapping of 1", "list"]),
        ("http: {port: 70000}\n" + ONE_MODEL, "http.port", ["70000", "65535"]),
        ("http: {port: 9400}\n" + ONE_MODEL, "config", ["http.port and metrics.port must differ"]),
        ("http: {ingress: nginx}\n" + ONE_MODEL, "http.ingress", ["'nginx'", "'proxy' or 'haproxy'"]),
        ("cluster: {local: {}, address: auto}\n" + ONE_MODEL, "cluster", ["either local", "or address"]),
        (
            "cluster: {local: {simulated_nodes: [{accelerator: MI9}]}}\n" + ONE_MODEL,
            "cluster.local.simulated_nodes[0].accelerator",
            ["'MI9'", "must be one of", "MI355X"],
        ),
        (
            "models: [{name: a, engine: {engine: simulated, simulated: {faults: [{kind: slow}]}}}]",
            "models[0].engine.simulated.faults[0]",
            ["a fault of kind slow needs percent"],
        ),
        (
            "models: [{name: a, path: simulated, engine: {engine: simulated}, pools: [{accelerator: MI3}]}]",
            "models[0]",
            ["pools[0]", "'MI3--llama-2-70b'", "llama-2-70b on B200"],
        ),
        ("cluster: {local: {nodes: 0}}\n" + ONE_MODEL, "cluster.local.nodes", ["greater than or equal to 1"]),
        (
            "cluster: {local: {cores_per_node: half}}\n" + ONE_MODEL,
            "cluster.local.cores_per_node",
            ["'half'", "'auto' or", "integer"],
        ),
        ("cluster: {address: 'http://head:8265'}\n" + ONE_MODEL, "cluster.address", ["http://head:8265"]),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, text: str, field: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert caught.value.field == field
    for word in words:
        assert word in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)^http\.port: got 'x'.*also models\[0\]\.pols"):
        _load(tmp_path, "http: {port: x}\nmodels: [{name: a, pols: 1}]")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("name: a\nmodels: [", "line 2", "not YAML"),
        ("name: a\n\tmodels: x", "line 2", "not YAML"),
        ("name: a\nhttp: {}\nname: b", "line 3", "the key 'name' stands twice"),
        ("a: &x 1\nb: *y", "line 2", "undefined alias"),
    ],
)
def test_a_yaml_error_names_its_line(tmp_path: Path, text: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert f"nfold.yaml, {place}" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n- 2", "just words"])
def test_a_file_without_fields_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="should hold fields"):
        _load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml.*No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nfold.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(tmp_path / "nfold.yaml")


def _load(folder: Path, text: str) -> NfoldConfig:
    path = folder / "nfold.yaml"
    path.write_text(text)
    return load_config(path)
