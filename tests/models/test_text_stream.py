"""Text in final pieces: no half characters, no half stop strings, whatever the split into tokens."""

import random
from collections.abc import Sequence

import pytest
from nfold.models.text_stream import TextStream


class Bytes:
    """Token id = byte; ids from 256 on are special and have no text."""

    def __init__(self) -> None:
        self.num_decoded = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.num_decoded += len(token_ids)
        return bytes(token_id for token_id in token_ids if token_id < 256).decode(errors="replace")


class Words:
    """As SentencePiece does it: a word's space belongs to the word, and is dropped at the beginning."""

    WORDS = (" a", " big", " dog", "s", " ", "")

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.WORDS[token_id] for token_id in token_ids).removeprefix(" ")


def pieces(text: str, stops: Sequence[str] = (), sizes: Sequence[int] = (1,)) -> tuple[list[str], TextStream]:
    stream = TextStream(Bytes(), stops)
    data = list(text.encode())
    out: list[str] = []
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        turn += 1
        out.append(stream.push(data[:size]))
        del data[:size]
    return [*out, stream.flush()], stream


def test_every_character_comes_with_its_last_byte() -> None:
    out, stream = pieces("aé€😀z")
    assert out == ["a", "", "é", "", "", "€", "", "", "", "😀", "z", ""]
    assert not stream.stopped


@pytest.mark.parametrize("sizes", [(1,), (2,), (3, 1), (7,), (100,)])
def test_pieces_make_the_text_and_end_between_characters(sizes: tuple[int, ...]) -> None:
    text = "naïve 日本語 👩‍👩‍👧 Ωmega — done\n"
    out, _ = pieces(text, sizes=sizes)
    assert "".join(out) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in out)


def test_bytes_that_are_not_utf_8_come_out_replaced_and_do_not_pile_up() -> None:
    tokenizer = Bytes()
    stream = TextStream(tokenizer, [])
    out = "".join(stream.push([0xFF]) for _ in range(2000))
    assert len(out) > 1900
    assert tokenizer.num_decoded < 2000 * 150
    assert stream.push([0x61]).endswith("a")


def test_half_a_character_at_the_end_is_replaced() -> None:
    stream = TextStream(Bytes(), [])
    assert stream.push(list("é".encode())[:1]) == ""
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"
    assert stream.flush() == ""


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    stream = TextStream(Bytes(), ["END"])
    assert [stream.push([byte]) for byte in b"xENyEEN"] == ["x", "", "", "ENy", "", "E", ""]
    assert stream.flush() == "EN"
    assert not stream.stopped


def test_a_stop_string_cuts_the_text_and_ends_the_stream() -> None:
    out, stream = pieces("one END two END", ["END"])
    assert "".join(out) == "one "
    assert stream.stopped
    assert stream.push(list(b"more")) == ""
    assert stream.flush() == ""


def test_the_first_of_several_stop_strings_counts() -> None:
    out, stream = pieces("a b\n\nc STOP", ["STOP", "\n\n"], sizes=(100,))
    assert "".join(out) == "a b"
    assert stream.stopped
    assert "".join(pieces("aabc", ["ab", "abc", "b"])[0]) == "a"


def test_stop_strings_in_characters_of_several_bytes() -> None:
    for sizes in ((1,), (2,), (5,)):
        out, stream = pieces("voilà 終わり！さて", ["終わり"], sizes=sizes)
        assert "".join(out) == "voilà "
        assert stream.stopped


def test_random_splits_equal_a_plain_search() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("abé") for _ in range(rng.randint(0, 30)))
        stops = ["".join(rng.choice("abé") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        out, stream = pieces(text, stops, sizes=[rng.randint(1, 5) for _ in range(5)])
        ends = [text.index(stop) for stop in stops if stop in text]
        # The stream learns of a stop string when it is complete, so an earlier end may decide first.
        wanted = min(ends, default=len(text))
        assert stream.stopped == bool(ends)
        assert text.startswith("".join(out))
        assert len("".join(out)) >= wanted


def test_special_tokens_have_no_text() -> None:
    stream = TextStream(Bytes(), [])
    assert stream.push([256, 0x61, 300, 0x62, 257]) == "ab"


def test_spaces_between_words_are_kept() -> None:
    stream = TextStream(Words(), [])
    assert "".join(stream.push([token]) for token in (0, 1, 2, 3, 5, 4, 0)) == "a big dogs  a"


def test_an_answer_that_continues_the_prompt_keeps_its_first_space() -> None:
    assert TextStream(Words(), [], prompt_ids=[0, 1]).push([2, 3]) == " dogs"
    assert TextStream(Words(), []).push([2, 3]) == "dogs"


def test_cost_per_token_does_not_grow() -> None:
    tokenizer = Bytes()
    stream = TextStream(tokenizer, ["never" * 3])
    for byte in b"plain text " * 200:
        stream.push([byte])
    assert tokenizer.num_decoded < 2200 * 20
