"""Text to token ids and back, through transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import CheckpointError, RequestError


class Tokenizer:
    """The tokenizer and chat template of a model directory. Use `load`."""

    def __init__(self, pretrained: Any) -> None:
        self._pretrained = pretrained
        self._backend = pretrained.backend_tokenizer

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Reads the tokenizer of a local model directory. CheckpointError when it is missing or damaged."""
        from transformers import AutoTokenizer  # takes a second, and not every process tokenises

        if not Path(directory).is_dir():
            raise CheckpointError(f"{directory}: not a directory")
        try:
            pretrained = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:  # the Rust tokenizers raise bare Exception
            raise CheckpointError(f"{directory}: its tokenizer cannot be read: {error}") from error
        if not hasattr(pretrained, "backend_tokenizer"):
            raise CheckpointError(
                f"{directory}: expected a tokenizer that the tokenizers library runs (tokenizer.json)"
            )
        return cls(pretrained)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own end-of-sequence id, if it has one (the model's are in ModelConfig)."""
        token_id = self._pretrained.eos_token_id
        return () if token_id is None else (token_id,)

    def encode(self, text: str) -> list[int]:
        """With the special tokens that the model expects around plain text."""
        return self._pretrained.encode(text)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The conversation in the model's chat template, up to where the assistant's answer begins.

        RequestError when the model has no chat template or the template refuses the messages.
        """
        import jinja2

        if not self._pretrained.chat_template:
            raise RequestError("this model has no chat template; use /v1/completions", "messages")
        try:
            return self._pretrained.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise RequestError(f"the model's chat template refuses the messages: {error}", "messages") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(list(token_ids), skip_special_tokens=True)
