"""The tokenizer of a model directory, its chat template, and streaming with the real thing."""

from pathlib import Path

import pytest
import tiny_models
from nfold.models.errors import CheckpointError, RequestError
from nfold.models.text_stream import TextStream
from nfold.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(tiny_models.make_llama(tmp_path_factory.mktemp("model"), num_layers=1))


def test_text_goes_round(tokenizer: Tokenizer) -> None:
    text = "the and on Ω 😀"
    ids = tokenizer.encode(text)
    assert len(ids) < len(text.encode())
    assert tokenizer.decode(ids) == text


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<s>a</s>")[0] == 256
    assert tokenizer.decode([256, *tokenizer.encode("a"), 257]) == "a"
    assert tokenizer.eos_token_ids == (257,)


def test_chat_ends_where_the_answer_begins(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert ids == tokenizer.encode("<s><|turn|>user\nhi<|end|><|turn|>assistant\n")
    assert ids[:2] == [256, 258]


def test_messages_that_the_template_refuses(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="refuses the messages: unknown role wizard") as caught:
        tokenizer.encode_chat([{"role": "wizard", "content": "hi"}])
    assert caught.value.param == "messages"


def test_no_chat_template(tmp_path: Path) -> None:
    tiny_models.save_tokenizer(tmp_path, chat_template=False)
    with pytest.raises(RequestError, match="no chat template"):
        Tokenizer.load(tmp_path).encode_chat([{"role": "user", "content": "hi"}])


def test_streaming_token_by_token(tokenizer: Tokenizer) -> None:
    text = "on the 日本 and 😀 in"
    stream = TextStream(tokenizer, ["never"])
    out = [stream.push([token_id]) for token_id in tokenizer.encode(text)] + [stream.flush()]
    assert "".join(out) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in out)


def test_stop_string_across_tokens(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, ["and th"])
    out = [stream.push([token_id]) for token_id in tokenizer.encode("one and the two")]
    assert "".join(out) == "one "
    assert stream.stopped


def test_missing_and_broken_directories(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        Tokenizer.load(tmp_path)
    tiny_models.save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        Tokenizer.load(tmp_path)
