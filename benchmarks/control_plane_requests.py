"""The requests of a control-plane run, as arrays made before it starts: no Python per request while it runs.

How long answers get stands in the seeds (`seeds_with_ends`), which a router cannot read; it knows max_tokens only.
"""

from dataclasses import dataclass

import numpy as np
from nfold.models.engine.protocol import I32, U64
from nfold.models.engine.simulated.answers import seeds_with_ends
from nfold.models.engine.simulated.lengths import WORKLOADS, Lengths
from nfold.models.engine.simulated.profile import StepTimeProfile
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_NOISE_VALUES = 1 << 28
_POOL_TOKENS = 1 << 22
_FIRST_ID = 10


@dataclass(frozen=True, slots=True)
class Requests:
    """N requests in the order in which they come.

    Attributes:
        due_s: [N] when each comes, after the start, growing.
        prompt_lens, answer_lens: [N] tokens.
        max_tokens: [N] as the client asks, and as the router sees it.
        seeds: [N] they carry `answer_lens`.
    """

    due_s: F64
    prompt_lens: I32
    answer_lens: I32
    max_tokens: I32
    seeds: U64

    def __len__(self) -> int:
        return len(self.due_s)

    def offered_tokens_per_s(self, begin_s: float, end_s: float) -> float:
        """Answer tokens of what comes in that time, per second."""
        due = (self.due_s >= begin_s) & (self.due_s < end_s)
        return float(self.answer_lens[due].sum()) / (end_s - begin_s)


class Prompts:
    """Prompts as neighbouring slices of one array of random ids: all differ, and none costs anything to make."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._ids = random.integers(_FIRST_ID, vocab_size, _POOL_TOKENS, dtype=np.int32)
        self._ids.setflags(write=False)  # so that the router need not copy what is taken
        self._next = self._num_rounds = 0

    def take(self, num_tokens: int) -> I32:
        """[num_tokens] ids; not to be written to."""
        assert num_tokens < len(self._ids) // 2, "more tokens at once than there are; submit fewer requests at once"
        if self._next + num_tokens > len(self._ids):
            self._num_rounds += 1
            self._next = self._num_rounds  # the next round begins elsewhere, so that its prompts are new
        begin, self._next = self._next, self._next + num_tokens
        return self._ids[begin : self._next]


def poisson(
    profile: StepTimeProfile,
    queries_per_s: float,
    seconds: float,
    *,
    prompt_tokens: int | None = None,
    answer_tokens: int | None = None,
    warm_tpot_s: float | None = None,
    ramp_s: float = 0.0,
    seed: int = 0,
) -> Requests:
    """Poisson arrivals with the lengths of the profile's data set.

    Args:
        prompt_tokens: every prompt has so many; None takes the data set's.
        answer_tokens: every answer has so many, and max_tokens is the same; None takes the data set's.
        warm_tpot_s: begin as if arrivals had come for ever, with so long between two tokens of an answer: what
            would be in flight comes within the first `ramp_s`, as it would then be. Near saturation an engine needs
            many minutes to settle by itself.
    """
    random = np.random.default_rng(seed)
    lengths, longest = WORKLOADS[profile.workload], None
    count = int(random.poisson(queries_per_s * seconds))
    due_s = np.sort(random.uniform(0.0, seconds, count))
    prompt_lens, answer_lens = _sample(lengths, count, random)
    if warm_tpot_s is not None:
        old = _in_flight_before(lengths, queries_per_s, warm_tpot_s, ramp_s, random)
        due_s, prompt_lens, answer_lens = (
            np.concatenate(pair) for pair in zip(old, (due_s, prompt_lens, answer_lens), strict=True)
        )
        order = np.argsort(due_s, kind="stable")
        due_s, prompt_lens, answer_lens = due_s[order], prompt_lens[order], answer_lens[order]
    if prompt_tokens is not None:
        prompt_lens = np.full(len(due_s), prompt_tokens, np.int32)
    if answer_tokens is not None:
        answer_lens, longest = np.full(len(due_s), answer_tokens, np.int32), answer_tokens
    return _requests(profile, due_s, prompt_lens, answer_lens, longest, random)


def _in_flight_before(
    lengths: Lengths, queries_per_s: float, tpot_s: float, ramp_s: float, random: np.random.Generator
) -> tuple[F64, I32, I32]:
    """Requests that came before the start and are not at their end yet: due, prompt + answer so far, rest of it.

    Each comes at some time of the ramp, as far on as it would be by then:

        came ------------ start ===== due ===== ramp_s --------- would end
             answer so far ............|.... rest ................|
    """
    longest_s = lengths.answer.high * tpot_s
    count = int(random.poisson(queries_per_s * longest_s))
    came_s = -random.uniform(0.0, longest_s, count)
    due_s = random.uniform(0.0, ramp_s, count)
    prompt_lens, answer_lens = _sample(lengths, count, random)
    given = np.floor((due_s - came_s) / tpot_s).astype(np.int32)
    goes_on = given < answer_lens
    given = given[goes_on]
    return due_s[goes_on], prompt_lens[goes_on] + given, answer_lens[goes_on] - given


def backlog(profile: StepTimeProfile, count: int, *, num_warm: int = 0, seed: int = 0) -> Requests:
    """All at once, as Offline.

    Args:
        num_warm: so many of the first are as found in an engine that has long been at work: their answers have been
            half given, on average. So a run settles once they are computed, not after some generations of answers.
    """
    random = np.random.default_rng(seed)
    lengths = WORKLOADS[profile.workload]
    prompt_lens, answer_lens = _sample(lengths, count, random)
    if num_warm:
        prompts, answers = _sample(lengths, num_warm, random)
        # Who looks at a random moment meets an answer with a chance in proportion to its length.
        met = random.choice(num_warm, num_warm, p=answers / answers.sum())
        given = (random.uniform(0.0, 1.0, num_warm) * answers[met]).astype(np.int32)
        prompt_lens[:num_warm], answer_lens[:num_warm] = prompts + given, answers[met] - given
    return _requests(profile, np.zeros(count), prompt_lens, answer_lens, None, random)


def _sample(lengths: Lengths, count: int, random: np.random.Generator) -> tuple[I32, I32]:
    return lengths.prompt.sample(count, random), lengths.answer.sample(count, random)


def _requests(
    profile: StepTimeProfile,
    due_s: F64,
    prompt_lens: I32,
    answer_lens: I32,
    max_tokens: int | None,
    random: np.random.Generator,
) -> Requests:
    count = len(due_s)
    longest = WORKLOADS[profile.workload].answer.high if max_tokens is None else max_tokens
    answer_lens = np.minimum(answer_lens, longest).clip(1)
    prompt_lens = np.minimum(prompt_lens, profile.max_model_len - answer_lens)
    limits = np.minimum(longest, profile.max_model_len - prompt_lens)
    noise = random.integers(0, _NOISE_VALUES, count, dtype=np.uint64)
    return Requests(
        due_s=due_s,
        prompt_lens=prompt_lens,
        answer_lens=answer_lens,
        max_tokens=limits.astype(np.int32),
        seeds=seeds_with_ends(noise, prompt_lens, answer_lens),
    )
