"""Under Triton's interpreter: the same tokens as the reference draws."""

import pytest
import torch
from nfold.kernels.reference import sample_tokens as reference
from nfold.kernels.triton import sample_tokens


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def settings(
    temperature: list[float], top_k: list[int], top_p: list[float], seeds: list[int] | None = None
) -> tuple[torch.Tensor, ...]:
    rows = len(temperature)
    return (
        torch.tensor(temperature),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(top_p),
        torch.tensor(seeds or [row * 12345678901 - 5 for row in range(rows)]),
        torch.tensor([3 * row for row in range(rows)]),
    )


def test_the_noise_stays_what_it_is() -> None:
    """As in the reference's own test."""
    rest = settings([1.0] * 4, [0] * 4, [1.0] * 4, [0, 1, 2, 2**63 - 1])[:4]
    got = sample_tokens.sample_tokens(torch.zeros(4, 32000), *rest, torch.tensor([0, 0, 5, 100]))
    assert got.tolist() == [10663, 7490, 18160, 9845]


@pytest.mark.parametrize("vocabulary", [1, 2, 1023, 1024, 2500])
def test_equals_the_reference_in_a_mixed_batch(vocabulary: int) -> None:
    temperature = [0.0, 1e-6, 1.0, 0.7, 2.0, 1.0, 1.0, 1.3]
    top_k = [0, 5, 0, 0, 1, min(7, vocabulary), vocabulary, 40]
    top_p = [1.0, 0.5, 1.0, 0.9, 1.0, 1.0, 0.0, 0.6]
    logits, rest = random_logits(8, vocabulary), settings(temperature, top_k, top_p)
    got = sample_tokens.sample_tokens(logits, *rest)
    assert got.tolist() == reference.sample_tokens(logits, *rest).tolist()


def test_equals_of_the_last_kept_are_kept_too() -> None:
    logits = torch.tensor([[3.0, 1.0, -0.0, 0.0, 1.0, float("-inf"), -2.0]]).repeat(12, 1)
    rest = settings([1.0, 4.0] * 6, [2, 2, 4, 4, 0, 0] * 2, [1.0] * 4 + [0.9] * 8, list(range(12)))
    got = sample_tokens.sample_tokens(logits, *rest)
    assert got.tolist() == reference.sample_tokens(logits, *rest).tolist()


def test_minus_infinities_are_never_drawn() -> None:
    logits = torch.full((6, 200), float("-inf"))
    logits[:, [3, 150]] = torch.tensor([0.0, 1.0])
    rest = settings([1.0, 5.0] * 3, [0, 0, 5, 5, 0, 0], [1.0] * 4 + [0.99] * 2)
    got = sample_tokens.sample_tokens(logits, *rest)
    assert set(got.tolist()) <= {3, 150}
    assert got.tolist() == reference.sample_tokens(logits, *rest).tolist()


@pytest.mark.parametrize("vocabulary", [1, 15, 1024, 1025, 2200])
def test_argmax_takes_the_lowest_id_of_equals(vocabulary: int) -> None:
    logits = random_logits(9, vocabulary).round()
    assert sample_tokens.argmax(logits).tolist() == [row.index(max(row)) for row in logits.tolist()]


def test_argmax_of_minus_infinities_and_of_parts_of_rows() -> None:
    logits = torch.full((2, 40), float("-inf"))
    logits[1, 39] = -1e30
    assert sample_tokens.argmax(logits).tolist() == [0, 39]
    wide = random_logits(5, 1300)
    assert sample_tokens.argmax(wide[:, :1131]).tolist() == wide[:, :1131].argmax(-1).tolist()


def test_no_rows() -> None:
    logits = torch.zeros(0, 10)
    assert sample_tokens.argmax(logits).shape == (0,)
    assert sample_tokens.sample_tokens(logits, *(x[:0] for x in settings([0.0], [0], [1.0]))).shape == (0,)
