import numpy as np
import pytest
from nfold.deployments.speed import StepCosts, StepLine, observe_step, token_costs

# As fitted for Llama 2 70B, the KV cache left out.
ACCELERATORS = {
    "MI300X": StepCosts(0.027318, 5.3723e-05, 0.00017978),
    "MI325X": StepCosts(0.016349, 7.4536e-05, 0.00012912),
    "MI355X": StepCosts(0.011514, 2.5004e-05, 3.0594e-05),
}


def teach(line: StepLine, truth: StepCosts, *, num_steps: int = 400, noise: float = 0.03, batch: int = 500) -> None:
    """Steps of a serving engine: a batch that wanders, prompts in every third step."""
    random = np.random.default_rng(0)
    for i in range(num_steps):
        decode = int(random.uniform(0.5, 1.5) * batch)
        prompt = int(random.uniform(0, 3000)) if i % 3 == 0 else 0
        line.observe(prompt, decode, truth.step_s(prompt, decode) * float(random.uniform(1 - noise, 1 + noise)))


def solved(line: StepLine) -> StepCosts:
    assert line.costs is not None
    return line.costs


@pytest.mark.parametrize("name", ACCELERATORS)
def test_prompt_and_output_tokens_are_told_apart(name: str) -> None:
    line, truth = StepLine(), ACCELERATORS[name]
    teach(line, truth)

    assert solved(line).prompt_token_s == pytest.approx(truth.prompt_token_s, rel=0.05)
    assert solved(line).output_token_s == pytest.approx(truth.output_token_s, rel=0.05)
    assert solved(line).fixed_s == pytest.approx(truth.fixed_s, rel=0.15)


def test_steps_that_are_all_alike_count_as_fixed() -> None:
    line = StepLine()
    for _ in range(9):
        line.observe(0, 4, 0.02)

    assert solved(line) == StepCosts(pytest.approx(0.02), 0.0, 0.0)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([(1, 0.02), (100, 0.01)], StepCosts(0.015, 0.0, 0.0), id="noise is taken as flat"),
        pytest.param([(10, 0.01), (20, 0.04)], StepCosts(0.0, 0.0, 0.025 / 15), id="at most through the origin"),
    ],
)
def test_a_line_stays_within_reason(steps: list[tuple[int, float]], expected: StepCosts) -> None:
    line = StepLine()
    for decode, step_s in steps * 50:
        line.observe(0, decode, step_s)

    found = solved(line)
    assert found.fixed_s == pytest.approx(expected.fixed_s, abs=3e-4)
    assert found.output_token_s == pytest.approx(expected.output_token_s, rel=0.02)


def test_empty_steps_teach_nothing() -> None:
    line = StepLine()
    line.observe(0, 0, 0.1)
    line.observe(0, 5, 0.0)

    assert line.costs is None


def test_a_line_forgets() -> None:
    line = StepLine()
    teach(line, ACCELERATORS["MI300X"], num_steps=1000)
    teach(line, ACCELERATORS["MI355X"], num_steps=20_000, noise=0.0)

    assert solved(line).step_s(0, 500) == pytest.approx(ACCELERATORS["MI355X"].step_s(0, 500), rel=0.05)


def test_a_long_steady_state_does_not_unlearn_the_slopes() -> None:
    """Full batches only, for many half-lives: what one batch costs cannot be told from fixed time any more."""
    line, truth = StepLine(), ACCELERATORS["MI300X"]
    teach(line, truth, noise=0.0)
    for _ in range(20_000):
        line.observe(0, 1000, truth.step_s(0, 1000))

    assert solved(line).output_token_s == pytest.approx(truth.output_token_s, rel=0.1)


def test_a_pool_starts_from_its_baseline_and_learns_better() -> None:
    claimed, truth = ACCELERATORS["MI355X"], ACCELERATORS["MI300X"]
    points = [(p, d, claimed.step_s(p, d)) for p, d in ((0, 100), (500, 500), (900, 2000), (0, 1000))]
    line = StepLine.from_baseline(points)
    assert solved(line).output_token_s == pytest.approx(claimed.output_token_s, rel=0.02)

    teach(line, truth, num_steps=12_000)
    assert solved(line).output_token_s == pytest.approx(truth.output_token_s, rel=0.1)


def test_full_batches_do_not_hide_what_a_step_takes_alone() -> None:
    """The context that they hold costs the same in every step, however many requests hold it."""
    truth, context_s, batch = ACCELERATORS["MI300X"], 0.03, 1500
    line = StepLine.from_baseline([(0, d, truth.step_s(0, d)) for d in (10, 100, 1000)])
    for i in range(5000):
        line.observe(0, batch + i % 7, truth.step_s(0, batch + i % 7) + context_s)
    found = token_costs([line.costs], np.ones(1), np.full(1, float(batch)))

    assert found.step_s[0] == pytest.approx(truth.fixed_s, rel=0.01)
    assert found.output_token_s[0] * batch == pytest.approx(truth.step_s(0, batch) + context_s, rel=0.01)
    beside_s = truth.step_s(0, batch) + context_s - truth.fixed_s
    assert found.beside_steps().output_token_s[0] * batch == pytest.approx(beside_s, rel=0.01)


def test_one_odd_step_does_not_turn_the_estimates_over() -> None:
    line = StepLine()
    teach(line, ACCELERATORS["MI325X"])
    before_s = solved(line).step_s(0, 500)
    slowness = observe_step(1.0, line.costs, 0, 500, 60.0)
    line.observe(0, 500, 60.0)
    teach(line, ACCELERATORS["MI325X"], num_steps=16)

    assert slowness < 1.2
    assert solved(line).step_s(0, 500) == pytest.approx(before_s, rel=0.05)


@pytest.mark.parametrize(
    ("batches", "truth"),
    [
        pytest.param((2, 500, 500), (1.0, 1.0, 1.0), id="light load does not look slow"),
        pytest.param((500, 500, 500), (1.0, 1.0, 1.5), id="a straggler is found"),
    ],
)
def test_slowness_of_replicas(batches: tuple[int, ...], truth: tuple[float, ...]) -> None:
    line, costs = StepLine(), ACCELERATORS["MI355X"]
    slowness = [1.0, 1.0, 1.0]
    for i in range(600):
        replica = i % 3
        decode = batches[replica] + i % 7
        step_s = costs.step_s(0, decode) * truth[replica]
        line.observe(0, decode, step_s)
        slowness[replica] = observe_step(slowness[replica], line.costs, 0, decode, step_s)

    assert [one / slowness[0] for one in slowness] == pytest.approx(truth, rel=0.03)


def test_mixed_generations_need_no_weights() -> None:
    """What a batch costs at each, by lines that only saw steps."""
    lines = {name: StepLine() for name in ACCELERATORS}
    for name, line in lines.items():
        teach(line, ACCELERATORS[name])
    costs = token_costs([line.costs for line in lines.values()], np.ones(3), np.full(3, 2000.0))
    speeds = costs.tokens_per_s / costs.tokens_per_s[0]

    truth = [1 / (one.output_token_s + one.fixed_s / 2000) for one in ACCELERATORS.values()]
    assert speeds == pytest.approx([speed / truth[0] for speed in truth], rel=0.07)


def test_slowness_and_unknown_pools() -> None:
    one = StepCosts(0.01, 1e-5, 9e-5)
    costs = token_costs([one, one, None], np.array([1.0, 2.0, 1.0]), np.array([1000.0, 1000.0, 1000.0]))
    assert costs.output_token_s == pytest.approx([1e-4, 2e-4, 1.5e-4])
    assert costs.prompt_token_s == pytest.approx([1e-5, 2e-5, 1.5e-5])
    assert costs.step_s == pytest.approx([0.01, 0.02, 0.015])

    unknown = token_costs([None, None], np.ones(2), np.ones(2))
    assert unknown.tokens_per_s.tolist() == [1.0, 1.0]
