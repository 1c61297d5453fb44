"""The sampler: exact when greedy, the same token in every batch, the right set and the right shares when random."""

import pytest
import torch
from nfold.kernels import ops


def sample(
    logits: torch.Tensor,
    *,
    temperature: float | list[float] = 1.0,
    top_k: int | list[int] = 0,
    top_p: float | list[float] = 1.0,
    seeds: list[int] | None = None,
    positions: list[int] | None = None,
) -> list[int]:
    """One token per row; a number counts for all rows."""
    rows = len(logits)

    def column(value: float | list[float] | list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(value if isinstance(value, list) else [value] * rows, dtype=dtype)

    return ops.sample_tokens(
        logits,
        column(temperature, torch.float32),
        column(top_k, torch.int32),
        column(top_p, torch.float32),
        torch.tensor(seeds or [0] * rows),
        torch.tensor(positions or list(range(rows))),
    ).tolist()


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def drawn(logits_V: torch.Tensor, draws: int, **settings: float) -> list[int]:
    """Tokens at `draws` positions with the same logits."""
    return sample(logits_V.repeat(draws, 1), seeds=[7] * draws, **settings)  # pyright: ignore[reportArgumentType]


def test_temperature_0_takes_the_highest_logit() -> None:
    logits = random_logits(20, 50)
    for temperature in (0.0, 1e-30, 1e-4):
        assert sample(logits, temperature=temperature, top_p=0.9) == logits.argmax(-1).tolist()


def test_greedy_and_sampled_rows_mix() -> None:
    logits = random_logits(6, 50)
    temperature = [0.0, 1.5, 0.0, 0.7, 1.0, 0.0]
    mixed = sample(logits, temperature=temperature)
    alone = [sample(logits[row : row + 1], temperature=[temperature[row]], positions=[row])[0] for row in range(6)]
    assert mixed == alone
    assert [mixed[row] for row in (0, 2, 5)] == [int(logits[row].argmax()) for row in (0, 2, 5)]


def test_a_row_draws_the_same_in_every_batch() -> None:
    logits = random_logits(40, 301)
    settings = {
        "temperature": [0.5 + row % 4 for row in range(40)],
        "top_k": [(0, 1, 5, 301)[row % 4] for row in range(40)],
        "top_p": [(1.0, 0.9, 0.2)[row % 3] for row in range(40)],
        "seeds": [row * 12345678901 - 5 for row in range(40)],
        "positions": [row * 3 for row in range(40)],
    }
    together = sample(logits, **settings)  # pyright: ignore[reportArgumentType]
    for order in ([39, 3, 17], list(range(39, -1, -1)), [8]):
        some = {name: [values[row] for row in order] for name, values in settings.items()}
        assert sample(logits[order], **some) == [together[row] for row in order]  # pyright: ignore[reportArgumentType]


def test_seed_and_position_both_matter() -> None:
    logits = torch.zeros(200, 1000)
    by_position = sample(logits, seeds=[1] * 200, positions=list(range(200)))
    by_seed = sample(logits, seeds=list(range(200)), positions=[1] * 200)
    high_bits = sample(logits, seeds=[row << 32 for row in range(200)], positions=[1] * 200)
    for ids in (by_position, by_seed, high_bits):
        assert len(set(ids)) > 150
    assert by_position != by_seed


def test_the_noise_stays_what_it_is() -> None:
    """A stream that continues on another version must go on with the same tokens."""
    assert sample(torch.zeros(4, 32000), seeds=[0, 1, 2, 2**63 - 1], positions=[0, 0, 5, 100]) == [
        10663,
        7490,
        18160,
        9845,
    ]


def test_shares_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    for temperature in (1.0, 0.5):
        counts = torch.bincount(torch.tensor(drawn(logits, 20000, temperature=temperature)), minlength=5)
        wanted = (logits / temperature).softmax(-1)
        torch.testing.assert_close(counts / 20000, wanted, atol=0.012, rtol=0)  # over 3 standard deviations


def test_uniform_draws_reach_the_whole_vocabulary_evenly() -> None:
    counts = torch.bincount(torch.tensor(drawn(torch.zeros(10), 20000)), minlength=10)
    assert counts.min() > 1800
    assert counts.max() < 2200


@pytest.mark.parametrize("k", [1, 3, 10])
def test_top_k_leaves_the_k_likeliest(k: int) -> None:
    logits = random_logits(1, 30)[0]
    assert set(drawn(logits, 3000, temperature=3.0, top_k=k)) == set(logits.topk(k).indices.tolist())


def nucleus(logits_V: torch.Tensor, p: float) -> set[int]:
    """The fewest likeliest tokens whose probabilities reach p."""
    probability, ids = logits_V.double().softmax(-1).sort(descending=True)
    before = probability.cumsum(-1) - probability
    return set(ids[before < p].tolist()) | {int(ids[0])}


@pytest.mark.parametrize("p", [0.0, 0.3, 0.8, 0.95])
def test_top_p_leaves_the_nucleus(p: float) -> None:
    logits = random_logits(1, 20)[0]
    assert set(drawn(logits, 5000, top_p=p)) == nucleus(logits, p)


def test_top_p_beyond_the_256_likeliest_of_a_flat_distribution() -> None:
    logits = random_logits(1, 2000)[0] / 20
    ids = drawn(logits, 3000, top_p=0.5)
    allowed = nucleus(logits, 0.5)
    assert len(allowed) > 500
    assert set(ids) <= allowed
    assert len(set(ids)) > 500


def test_temperature_comes_before_top_k_and_top_k_before_top_p() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    # At temperature 2 the three likeliest have shares 0.51, 0.31 and 0.19 of what top-k leaves.
    assert set(drawn(logits, 2000, temperature=2.0, top_k=3, top_p=0.8)) == {0, 1}
    assert set(drawn(logits, 2000, temperature=2.0, top_k=3, top_p=0.83)) == {0, 1, 2}
