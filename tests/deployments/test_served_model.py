"""Tokenising beside the event loop, and what a replica's process imports."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from nfold.deployments.served_model import LONG_TEXT_CHARS, ServedModel
from nfold.models.errors import ContextLengthError


class NotingTokenizer:
    """Notes in which threads it works."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def encode(self, text: str) -> list[int]:
        self.threads.append(threading.current_thread())
        return [len(text)]

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))


@pytest.mark.parametrize(("num_chars", "in_loop"), [(10, True), (LONG_TEXT_CHARS, False)])
def test_long_texts_leave_the_event_loop_alone(num_chars: int, in_loop: bool) -> None:
    tokenizer: Any = NotingTokenizer()
    model = ServedModel("m", tokenizer, 100, 100)
    text = "x" * num_chars
    assert asyncio.run(model.encode(text)) == [num_chars]
    assert asyncio.run(model.encode_chat([{"role": "user", "content": text}])) == [num_chars]
    assert [thread is threading.main_thread() for thread in tokenizer.threads] == [in_loop, in_loop]


def test_room() -> None:
    model = ServedModel("m", NotingTokenizer(), 10, 100)  # pyright: ignore[reportArgumentType]
    assert model.room_for([1, 2], None, "prompt") == 8
    assert model.room_for([1, 2], 8, "prompt") == 8
    with pytest.raises(ContextLengthError, match="at most 8"):
        model.room_for([1, 2], 9, "prompt")
    with pytest.raises(ContextLengthError, match="10 tokens of prompt and answer") as error:
        model.room_for(range(10), None, "messages")
    assert error.value.param == "messages"


def test_a_replicas_process_imports_torch_only_after_it_has_proven_its_device() -> None:
    code = "import sys; import nfold.deployments.replica; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).strip() == "False"
