"""The wire format between routers and replicas, and its version. No other file knows it.

A message is one frame of msgpack, `[kind, ...fields]`, and for messages with arrays a second frame with their raw
little-endian bytes, widest items first so that each array is aligned. Decoding copies nothing: the arrays are views
of the frame. Request ids on the wire are the router's own, below 2**40.

    router   ── Hello, Ping, Submit, Abort, Goodbye ─────────────────────────────>  replica
             <── Welcome, Pong, Output, Refused, Status, Draining, Goodbye ──────

Hello, Welcome and Goodbye keep `kind` and `version` as their first two items in every version, so that two
versions can always tell each other why they part.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from ..models.engine.protocol import U64, EngineStats, StepOutputs, StepRecord, SubmitBatch
from .array_frame import ArrayFrame, Arrays, WireError, pack
from .step_account import NO_STEPS, StepTotals
from .wire_loops import (
    BAD_IDS,
    BAD_MAX_TOKENS,
    BAD_PROMPTS,
    BAD_SAMPLING,
    BAD_STOPS,
    FITS,
    check_submit,
    has_numbers,
)

WIRE_VERSION = 6

Frames = list[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """What a replica tells about once a second. Totals only grow; the three times sum to its time in service.

    Attributes:
        stats: the engine's.
        idle_s: seconds without work.
        busy_s: seconds inside `engine.step`.
        overhead_s: seconds with work present, outside `engine.step` (messages, bookkeeping).
        draining: finishes what it has and takes nothing new.
        num_gateways: routers connected.
        num_messages_in, num_messages_out: wire messages, totals.
        num_rejected_messages: of those in, the malformed or unwelcome.
        steps: what its steps add up to, for the ledger.
    """

    stats: EngineStats
    idle_s: float
    busy_s: float
    overhead_s: float
    draining: bool
    num_gateways: int
    num_messages_in: int
    num_messages_out: int
    num_rejected_messages: int
    steps: StepTotals = NO_STEPS


class _Plain(msgspec.Struct, frozen=True, array_like=True):
    """A message without arrays: its own header."""


class Hello(_Plain, frozen=True, tag=1):
    """A router opens its session; whatever it had at this replica before is aborted."""

    version: int
    router_id: str


class Welcome(_Plain, frozen=True, tag=2):
    """The replica's answer: the session is open."""

    version: int
    replica_id: str


class Goodbye(_Plain, frozen=True, tag=3):
    """The sender ends the session, or refuses it; `reason` is for people."""

    version: int
    reason: str


class Ping(_Plain, frozen=True, tag=4):
    """The router lives, and wants to know how far away the replica is. `sent_s`: the router's clock."""

    sent_s: float


class Pong(_Plain, frozen=True, tag=7):
    """The answer to a Ping.

    Attributes:
        sent_s: as it came.
        away_s: the longest that the Ping may have waited at the replica, which reads between steps only.
    """

    sent_s: float
    away_s: float


class Status(_Plain, frozen=True, tag=5):
    """The replica lives, and how it does."""

    status: ReplicaStatus


class Draining(_Plain, frozen=True, tag=6):
    """The replica finishes what it has and refuses new requests."""


@dataclass(frozen=True, slots=True)
class Submit:
    """New requests, all that one router has for this replica in one tick."""

    batch: SubmitBatch


@dataclass(frozen=True, slots=True)
class Abort:
    """Requests to forget."""

    request_ids: U64


@dataclass(frozen=True, slots=True)
class Refused:
    """Submitted requests that a draining replica does not take; they are untouched."""

    request_ids: U64


class Intake(msgspec.Struct, frozen=True, array_like=True):
    """When an engine takes in new requests.

    Attributes:
        in_s: until the next time.
        every_s: from one time to the next.
    """

    in_s: float
    every_s: float


@dataclass(frozen=True, slots=True)
class Output:
    """What one step brought for one router.

    Attributes:
        num_in_flight: requests of all routers at the replica.
        sent_s: when the step ended, on the replica's clock.
        intake: when the engine takes in requests next, seconds from `sent_s`; None when it does not know.
    """

    outputs: StepOutputs
    num_in_flight: int
    sent_s: float
    intake: Intake | None = None


Message = Hello | Welcome | Goodbye | Ping | Pong | Status | Draining | Submit | Abort | Refused | Output


Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class _SubmitHeader(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Counts: N requests, P prompt tokens, S stop ids."""

    n: Count
    p: Count
    s: Count


class _AbortHeader(msgspec.Struct, frozen=True, array_like=True, tag=11):
    n: Count


class _RefusedHeader(msgspec.Struct, frozen=True, array_like=True, tag=12):
    n: Count


class _OutputHeader(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Counts: R rows, K top logprobs; without `has_logprobs` none were asked for and none travel."""

    r: Count
    k: Annotated[int, msgspec.Meta(ge=0, le=1000)]
    has_logprobs: bool
    num_in_flight: int
    sent_s: float
    intake: Intake | None
    step_s: float
    num_prefill_tokens: int
    num_decode_tokens: int
    num_recomputed_tokens: int


_WithArrays = _SubmitHeader | _AbortHeader | _RefusedHeader | _OutputHeader
_Header = Hello | Welcome | Goodbye | Ping | Pong | Status | Draining | _WithArrays

_FAULTS = {
    BAD_PROMPTS: "prompt_lens do not fit prompt_ids",
    BAD_STOPS: "stop_lens do not fit stop_ids",
    BAD_MAX_TOKENS: "max_tokens below 1",
    BAD_SAMPLING: "temperature or top_p is not finite",
    BAD_IDS: "request ids are too large or come twice",
}

# Of steps without logprobs, most of which have fewer rows.
_NANS = np.full(1024, np.nan, np.float32)
_NANS.flags.writeable = False

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Header] = msgspec.msgpack.Decoder(_Header)


def encode(message: Message) -> Frames:
    """The frames of one message."""
    match message:
        case Submit():
            return _encode_submit(message.batch)
        case Output():
            return _encode_output(message)
        case Abort():
            return [
                _encoder.encode(_AbortHeader(len(message.request_ids))),
                pack([(message.request_ids, np.uint64)]),
            ]
        case Refused():
            return [
                _encoder.encode(_RefusedHeader(len(message.request_ids))),
                pack([(message.request_ids, np.uint64)]),
            ]
        case _:
            return [_encoder.encode(message)]


def decode(frames: Frames) -> Message:
    """The message of these frames. Raises WireError on anything else; arrays in the result are read-only."""
    if not frames:
        raise WireError("got no frame")
    try:
        header = _decoder.decode(frames[0])
    except msgspec.DecodeError as error:
        raise WireError(f"no message: {error}") from error
    match header:
        case _OutputHeader():
            return _decode_output(header, ArrayFrame(frames))
        case _SubmitHeader():
            return _decode_submit(header, ArrayFrame(frames))
        case _AbortHeader():
            return Abort(_ids(header.n, ArrayFrame(frames)))
        case _RefusedHeader():
            return Refused(_ids(header.n, ArrayFrame(frames)))
        case _:
            return header


def _ids(count: int, frame: ArrayFrame) -> U64:
    request_ids = frame.u64(count)
    frame.end()
    return request_ids


def _encode_output(message: Output) -> Frames:
    outputs = message.outputs
    has_logprobs = has_numbers(outputs.logprobs)
    step = outputs.step
    header = _OutputHeader(
        r=len(outputs),
        k=outputs.top_ids.shape[1],
        has_logprobs=has_logprobs,
        num_in_flight=message.num_in_flight,
        sent_s=message.sent_s,
        intake=message.intake,
        step_s=step.step_s,
        num_prefill_tokens=step.num_prefill_tokens,
        num_decode_tokens=step.num_decode_tokens,
        num_recomputed_tokens=step.num_recomputed_tokens,
    )
    arrays: Arrays = [(outputs.request_ids, np.uint64), (outputs.token_ids, np.int32)]
    if has_logprobs:
        arrays += [(outputs.logprobs, np.float32), (outputs.top_ids, np.int32), (outputs.top_logprobs, np.float32)]
    return [_encoder.encode(header), pack([*arrays, (outputs.finish, np.uint8)])]


def _decode_output(header: _OutputHeader, frame: ArrayFrame) -> Output:
    r, k = header.r, header.k
    request_ids, token_ids = frame.u64(r), frame.i32(r)
    if header.has_logprobs:
        logprobs = frame.f32(r)
        top_ids, top_logprobs = frame.i32(r * k).reshape(r, k), frame.f32(r * k).reshape(r, k)
    else:
        logprobs = _NANS[:r] if r <= len(_NANS) else np.full(r, np.nan, np.float32)
        top_ids, top_logprobs = np.zeros((r, 0), np.int32), np.zeros((r, 0), np.float32)
    finish = frame.u8(r)
    frame.end()
    step = StepRecord(
        header.step_s, header.num_prefill_tokens, header.num_decode_tokens, header.num_recomputed_tokens
    )
    outputs = StepOutputs(request_ids, token_ids, finish, logprobs, top_ids, top_logprobs, step)
    return Output(outputs, header.num_in_flight, header.sent_s, header.intake)


def _encode_submit(batch: SubmitBatch) -> Frames:
    header = _SubmitHeader(n=len(batch), p=len(batch.prompt_ids), s=len(batch.stop_ids))
    arrays: Arrays = [
        (batch.request_ids, np.uint64),
        (batch.seed, np.uint64),
        (batch.prompt_lens, np.int32),
        (batch.prompt_ids, np.int32),
        (batch.max_tokens, np.int32),
        (batch.temperature, np.float32),
        (batch.top_k, np.int32),
        (batch.top_p, np.float32),
        (batch.stop_lens, np.int32),
        (batch.stop_ids, np.int32),
        (batch.ignore_eos, np.uint8),
        (batch.num_logprobs, np.int8),
    ]
    return [_encoder.encode(header), pack(arrays)]


def _decode_submit(header: _SubmitHeader, frame: ArrayFrame) -> Submit:
    n = header.n
    request_ids, seed = frame.u64(n), frame.u64(n)
    prompt_lens, prompt_ids = frame.i32(n), frame.i32(header.p)
    max_tokens, temperature, top_k, top_p = frame.i32(n), frame.f32(n), frame.i32(n), frame.f32(n)
    stop_lens, stop_ids = frame.i32(n), frame.i32(header.s)
    ignore_eos, num_logprobs = frame.u8(n), frame.i8(n)
    frame.end()
    batch = SubmitBatch(
        request_ids=request_ids,
        prompt_lens=prompt_lens,
        prompt_ids=prompt_ids,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        ignore_eos=ignore_eos,
        num_logprobs=num_logprobs,
        stop_lens=stop_lens,
        stop_ids=stop_ids,
    )
    _check_submit(batch)
    return Submit(batch)


def _check_submit(batch: SubmitBatch) -> None:
    """The engine trusts what comes out of here: counts must agree and ids must differ."""
    fault = check_submit(
        batch.request_ids,
        batch.prompt_lens,
        len(batch.prompt_ids),
        batch.stop_lens,
        len(batch.stop_ids),
        batch.max_tokens,
        batch.temperature,
        batch.top_p,
    )
    if fault == FITS and len(set(batch.request_ids.tolist())) < len(batch):
        fault = BAD_IDS
    if fault != FITS:
        raise WireError(_FAULTS[fault])
