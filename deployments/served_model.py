"""What a gateway knows of a model: its tokenizer and its limits."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from ..models.config import ModelConfig
from ..models.errors import ContextLengthError, RequestError
from ..models.tokenizer import Tokenizer
from .config import ServedModelConfig
from .simulated_config import SimulatedConfig

# Text of this many characters takes about a millisecond; what is longer leaves the event loop alone.
LONG_TEXT_CHARS = 4096

_tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokenise")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as a gateway sees it.

    Attributes:
        max_model_len: most tokens of prompt + answer.
        vocab_size: token ids that clients send lie below it.
        is_simulated: its tokens are computed by nobody.
        created: seconds since the epoch, for `/v1/models`.
    """

    name: str
    tokenizer: Tokenizer
    max_model_len: int
    vocab_size: int
    is_simulated: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    _token_texts: dict[int, str] = field(default_factory=dict[int, str], repr=False)

    @classmethod
    def load(cls, config: ServedModelConfig) -> "ServedModel":
        """Read config.json and the tokenizer.

        Raises:
            CheckpointError: either is missing or damaged.
        """
        if config.simulated is not None:
            return cls._load_simulated(config, config.simulated)
        model = ModelConfig.from_directory(config.directory)
        max_model_len = config.engine.max_model_len or model.max_position_embeddings
        return cls(config.name, Tokenizer.load(config.directory), max_model_len, model.vocab_size)

    @classmethod
    def _load_simulated(cls, config: ServedModelConfig, simulated: SimulatedConfig) -> "ServedModel":
        """Its text is that of the model that comes with nfold; clients may send ids of the profile's vocabulary."""
        profiles = [simulated.profile(pool.accelerator) for pool in config.pools]
        max_model_len = config.engine.max_model_len or min(profile.max_model_len for profile in profiles)
        vocab_size = min(profile.vocab_size for profile in profiles)
        return cls(config.name, Tokenizer.load(config.directory), max_model_len, vocab_size, is_simulated=True)

    async def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt; ids that clients send are checked.

        Raises:
            RequestError: the prompt is empty, or an id is not in the vocabulary.
        """
        if isinstance(prompt, str):
            ids = await _off_loop(len(prompt), partial(self.tokenizer.encode, prompt))
        else:
            ids = list(prompt)
            unknown = next((id for id in ids if id >= self.vocab_size), None)
            if unknown is not None:
                raise RequestError(
                    f"prompt: {unknown} is no token id; the vocabulary has {self.vocab_size}", "prompt"
                )
        if not ids:
            raise RequestError("prompt is empty", "prompt")
        return ids

    async def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins. Raises RequestError."""
        size = sum(len(message["content"]) for message in messages)
        return await _off_loop(size, partial(self.tokenizer.encode_chat, messages))

    def room_for(self, prompt_ids: Sequence[int], wanted_tokens: int | None, param: str) -> int:
        """Most tokens that the answer may have: what is wanted, else the rest of the context.

        Raises:
            ContextLengthError: prompt and answer do not fit; `param` names the prompt in the request.
        """
        room = self.max_model_len - len(prompt_ids)
        if room < 1:
            raise ContextLengthError(
                f"{param}: {len(prompt_ids)} tokens; the context of {self.name} holds {self.max_model_len} tokens "
                f"of prompt and answer together",
                param,
            )
        if wanted_tokens is not None and wanted_tokens > room:
            raise ContextLengthError(
                f"max_tokens: {wanted_tokens} with a prompt of {len(prompt_ids)} tokens; the context of "
                f"{self.name} holds {self.max_model_len}, so it may be at most {room}",
                "max_tokens",
            )
        return wanted_tokens or room

    def token_text(self, token_id: int) -> str:
        """Text of one token by itself, for logprobs."""
        text = self._token_texts.get(token_id)
        if text is None:
            text = self._token_texts[token_id] = self.tokenizer.decode([token_id])
        return text


async def _off_loop(num_chars: int, work: "partial[list[int]]") -> list[int]:
    if num_chars < LONG_TEXT_CHARS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_tokenising, work)
