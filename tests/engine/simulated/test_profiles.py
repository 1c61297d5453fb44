"""The profiles in the package: complete, sourced, and true to the results that they were fitted to."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from nfold.models.engine.simulated.engine import SimulatedEngine
from nfold.models.engine.simulated.loops import NUM_PROMPT
from nfold.models.engine.simulated.profile import PROFILES, load_profile, profile_names
from nfold.models.engine.simulated.virtual import make_load, replay
from nfold.models.errors import ConfigError
from simulated import FakeClock, make_batch, make_profile, run_out


def test_the_accelerators_of_the_published_results_are_there() -> None:
    llama = {name.split("--")[0] for name in profile_names() if name.endswith("--llama-2-70b")}
    gpt_oss = {name.split("--")[0] for name in profile_names() if name.endswith("--gpt-oss-120b")}
    assert llama == {"MI300X", "MI325X", "MI355X", "H200", "B200"}
    assert gpt_oss == {"MI355X", "H200", "B200"}


@pytest.mark.parametrize("name", profile_names())
def test_each_profile_loads_and_says_where_its_figures_come_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.curve_source
    assert profile.kv_capacity_source
    for scenario in profile.scenarios.values():
        assert "tokens_per_s" in scenario.figures
        assert scenario.limits_source
        assert all(figure.source for figure in scenario.figures.values())
        assert all((figure.value is None) != (figure.max is None) for figure in scenario.figures.values())
        SimulatedEngine(profile, next(iter(profile.scenarios)))


def test_an_unknown_profile_and_a_misspelt_field_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="profile: got 'MI1--x'; must be one of B200--gpt-oss-120b,"):
        load_profile("MI1--x")
    content = json.loads((PROFILES / "MI355X--llama-2-70b.json").read_text())
    content["curve"]["fixd_s"] = content["curve"].pop("fixed_s")
    (tmp_path / "A--b.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"A--b\.json: curve\.fixed_s"):
        load_profile("A--b", tmp_path)


def test_a_whole_offline_run_takes_as_long_as_published() -> None:
    profile = load_profile("H200--gpt-oss-120b")
    scenario = profile.scenario("offline")
    result = replay(profile, "offline", make_load(profile, scenario.run))
    assert result.tokens_per_s == pytest.approx(scenario.figures["tokens_per_s"].value, rel=0.02)


def test_a_full_accelerator_reaches_its_published_rate() -> None:
    """A twentieth of the run; ramp and tail, which would weigh more than in the published one, are left out."""
    profile = load_profile("MI355X--llama-2-70b")
    scenario = profile.scenario("offline")
    result = replay(profile, "offline", make_load(profile, scenario.run, share=0.05))
    assert result.saturated_tokens_per_s == pytest.approx(scenario.figures["tokens_per_s"].value, rel=0.03)


def test_interactive_keeps_the_limits_and_looks_like_the_log() -> None:
    profile = load_profile("MI355X--llama-2-70b")
    scenario = profile.scenario("interactive")
    result = replay(profile, "interactive", make_load(profile, scenario.run, share=0.2))
    assert result.figure("ttft_p99_s") < 0.45
    assert result.figure("tpot_p99_s") < 0.040
    for name, tolerance in {"tpot_p50_s": 0.1, "tpot_p99_s": 0.1, "ttft_p50_s": 0.3, "ttft_p99_s": 0.3}.items():
        assert result.figure(name) == pytest.approx(scenario.figures[name].value, rel=tolerance), name


def test_the_engine_and_the_replay_agree() -> None:
    """The replay skips clock and messages; the engine must take the same time for the same requests."""
    profile = make_profile()
    run = replace(profile.scenario("server").run, num_samples=50, tokens_per_sample=20.0)
    profile = replace(profile, max_model_len=2048)
    load = make_load(profile, run)
    clock = FakeClock(0.0)
    engine = SimulatedEngine(profile, clock=clock, sleep=clock.sleep)
    for request_id, (prompt_len, answer_len) in enumerate(
        zip(load.sequences[NUM_PROMPT].tolist(), load.answer_lens.tolist(), strict=True)
    ):
        engine.submit(make_batch([request_id], prompt_len=prompt_len, max_tokens=answer_len))
    run_out(engine)
    result = replay(profile, "server", load)
    assert engine.stats().total_steps == result.num_steps
    assert load.answer_lens.sum() / clock.now_s == pytest.approx(result.tokens_per_s)


def test_importing_it_does_not_import_torch() -> None:
    code = (
        "import sys; from nfold.models.engine.simulated import engine, fit; "
        "sys.exit(int(any(name.split('.')[0] in ('torch', 'transformers', 'ray') for name in sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
