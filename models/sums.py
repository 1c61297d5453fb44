"""The task of the embedded model: sums of two whole numbers, asked in chat form, whose answers can be checked.

    question   What is 347 + 582?
    reply      7+2=9, 4+8=12, 3+5+1=9. The answer is 929.

The reply works through the columns from the right, "+1" being the carry, and then states the answer. A tenth of all
pairs of operands is held out: `questions` draws from one side of that split only, so training never sees the other.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

CHECKPOINT = Path(__file__).parent / "embedded" / "nfold-sums"
"""The directory of the embedded model, an ordinary Hugging Face checkpoint."""

PHRASINGS = (
    "What is {} + {}?",
    "What is {} plus {}?",
    "What's {}+{}?",
    "Add {} and {}.",
    "add {} and {}",
    "Add {} to {}.",
    "{}+{}=",
    "{} + {} = ?",
    "{} plus {}",
    "How much is {} plus {}?",
    "Compute {} + {}.",
    "Please add {} and {}.",
    "Can you tell me the sum of {} and {}?",
)
_NUM_DIGITS = (1, 2, 3, 4)
_DIGIT_WEIGHTS = (1, 2, 3, 3)
_HELD_OUT_IN = 10


@dataclass(frozen=True)
class Question:
    """One sum: `text` is what the user writes, `left` and `right` are the operands, 0 to 9999."""

    text: str
    left: int
    right: int

    @property
    def answer(self) -> int:
        return self.left + self.right

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a chat of one user message, in the form that chat templates and the OpenAI API take."""
        return [{"role": "user", "content": self.text}]

    @property
    def reply(self) -> str:
        """The reply that the model is trained to give: 23 to 57 ASCII characters."""
        columns: list[str] = []
        carry = 0
        for upper, lower in zip_longest(reversed(str(self.left)), reversed(str(self.right)), fillvalue="0"):
            total = int(upper) + int(lower) + carry
            columns.append(f"{upper}+{lower}{'+1' if carry else ''}={total}")
            carry = total // 10
        return f"{', '.join(columns)}. The answer is {self.answer}."


def is_held_out(left: int, right: int) -> bool:
    """Whether this pair of operands, in either order, is kept from training: the same on every machine."""
    pair = f"{min(left, right)}+{max(left, right)}".encode()
    return int.from_bytes(hashlib.blake2b(pair, digest_size=8).digest()) % _HELD_OUT_IN == 0


def questions(num: int, *, seed: int, held_out: bool) -> Iterator[Question]:
    """`num` random questions from one side of the split, the same for the same arguments. Pairs may repeat."""
    rng = random.Random(seed)
    while num > 0:
        left, right = (
            rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)
            for digits in rng.choices(_NUM_DIGITS, _DIGIT_WEIGHTS, k=2)
        )
        if is_held_out(left, right) == held_out:
            num -= 1
            yield Question(rng.choice(PHRASINGS).format(left, right), left, right)


def is_right(reply: str, answer: int) -> bool:
    """Whether a reply ends by stating exactly this answer. The working before it is not judged."""
    return reply.strip().endswith(f"The answer is {answer}.")
