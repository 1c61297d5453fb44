import hypothesis.extra.numpy as hnp
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nfold.deployments import wire
from nfold.deployments.wire_loops import REQUEST_ID_BITS
from nfold.models.engine.protocol import EngineStats, SamplingParams, StepOutputs, StepRecord, SubmitBatch

STATS = EngineStats(1, 2, 30, 4, 5, 6, 7, 8, 9, 10, 11.5)
STATUS = wire.ReplicaStatus(
    stats=STATS,
    idle_s=1.5,
    busy_s=2.5,
    overhead_s=0.25,
    draining=True,
    num_gateways=2,
    num_messages_in=3,
    num_messages_out=4,
    num_rejected_messages=1,
)
PLAIN = [
    wire.Hello(wire.WIRE_VERSION, "router"),
    wire.Welcome(wire.WIRE_VERSION, "replica"),
    wire.Goodbye(wire.WIRE_VERSION, "because"),
    wire.Ping(12.5),
    wire.Pong(12.5, 0.25),
    wire.Status(STATUS),
    wire.Draining(),
]

request_ids = st.lists(st.integers(0, (1 << REQUEST_ID_BITS) - 1), unique=True, max_size=9)
token_ids = st.integers(0, (1 << 31) - 1)


def sampling() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 1 << 30),
        temperature=st.floats(0, 5, width=32),
        top_k=st.integers(0, 1000),
        top_p=st.floats(0, 1, width=32),
        seed=st.integers(0, (1 << 64) - 1),
        ignore_eos=st.booleans(),
        stop_token_ids=st.lists(token_ids, max_size=3).map(tuple),
        num_logprobs=st.integers(-1, 20),
    )


@st.composite
def batches(draw: st.DrawFn) -> SubmitBatch:
    ids = draw(request_ids)
    prompts = [draw(st.lists(token_ids, min_size=1, max_size=5)) for _ in ids]
    return SubmitBatch.build(ids, prompts, [draw(sampling()) for _ in ids])


@st.composite
def step_outputs(draw: st.DrawFn) -> StepOutputs:
    r, k = draw(st.integers(0, 9)), draw(st.integers(0, 3))
    floats = st.floats(width=32)
    return StepOutputs(
        request_ids=draw(hnp.arrays(np.uint64, r)),
        token_ids=draw(hnp.arrays(np.int32, r)),
        finish=draw(hnp.arrays(np.uint8, r)),
        logprobs=draw(hnp.arrays(np.float32, r, elements=floats)),
        top_ids=draw(hnp.arrays(np.int32, (r, k))),
        top_logprobs=draw(hnp.arrays(np.float32, (r, k), elements=floats)),
        step=StepRecord(draw(st.floats(0, 1e3)), 1, 2, 3),
    )


def assert_same_arrays(one: object, other: object, names: list[str]) -> None:
    for name in names:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("message", PLAIN, ids=lambda message: type(message).__name__)
def test_plain_messages_come_back(message: wire.Message) -> None:
    frames = wire.encode(message)

    assert len(frames) == 1
    assert wire.decode(frames) == message


@given(batches())
@settings(max_examples=60)
def test_submit_comes_back(batch: SubmitBatch) -> None:
    message = wire.decode(wire.encode(wire.Submit(batch)))

    assert isinstance(message, wire.Submit)
    assert_same_arrays(message.batch, batch, list(SubmitBatch.__slots__))


@given(step_outputs())
@settings(max_examples=60)
def test_output_comes_back(outputs: StepOutputs) -> None:
    message = wire.decode(wire.encode(wire.Output(outputs, 17, 3.5, wire.Intake(0.25, 0.5))))

    assert isinstance(message, wire.Output)
    assert (message.num_in_flight, message.sent_s, message.intake) == (17, 3.5, wire.Intake(0.25, 0.5))
    assert message.outputs.step == outputs.step
    names = ["request_ids", "token_ids", "finish", "logprobs"]
    if not np.isnan(outputs.logprobs).all():
        names += ["top_ids", "top_logprobs"]
    assert_same_arrays(message.outputs, outputs, names)


@given(request_ids)
@settings(max_examples=30)
def test_id_lists_come_back(ids: list[int]) -> None:
    for kind in (wire.Abort, wire.Refused):
        message = wire.decode(wire.encode(kind(np.array(ids, np.uint64))))
        assert isinstance(message, kind)
        assert message.request_ids.tolist() == ids


def test_decoding_copies_nothing() -> None:
    frames = wire.encode(wire.Abort(np.arange(5, dtype=np.uint64)))

    message = wire.decode(frames)

    assert isinstance(message, wire.Abort)
    assert np.shares_memory(message.request_ids, np.frombuffer(frames[1], np.uint8))


def test_without_logprobs_a_row_costs_13_bytes() -> None:
    r = 64
    outputs = StepOutputs(
        np.arange(r, dtype=np.uint64),
        np.arange(r, dtype=np.int32),
        np.zeros(r, np.uint8),
        np.full(r, np.nan, np.float32),
        np.zeros((r, 0), np.int32),
        np.zeros((r, 0), np.float32),
        StepRecord(0.1, 0, r, 0),
    )

    header, payload = wire.encode(wire.Output(outputs, r, 0.0))

    assert len(payload) == 13 * r
    assert len(header) < 64


@given(st.lists(st.binary(max_size=200), max_size=4))
@settings(max_examples=200)
def test_garbage_is_a_wire_error(frames: list[bytes]) -> None:
    try:
        wire.decode(frames)
    except wire.WireError:
        pass
    else:  # a few short byte strings are messages, such as Draining
        assert len(frames) >= 1


@given(batches(), st.data())
@settings(max_examples=100)
def test_damaged_submit_is_a_wire_error_or_well_formed(batch: SubmitBatch, data: st.DataObject) -> None:
    header, payload = wire.encode(wire.Submit(batch))
    cut = data.draw(st.integers(0, len(payload)))
    damaged = payload[:cut] + data.draw(st.binary(max_size=8)) + payload[cut:]
    try:
        message = wire.decode([header, damaged])
    except wire.WireError:
        return

    assert isinstance(message, wire.Submit)
    assert message.batch.prompt_lens.sum() == len(message.batch.prompt_ids)
    assert message.batch.stop_lens.sum() == len(message.batch.stop_ids)


def test_submit_with_ids_that_clash_is_refused() -> None:
    batch = SubmitBatch.build([3, 3], [[1], [2]], [SamplingParams(1), SamplingParams(1)])

    with pytest.raises(wire.WireError, match="come twice"):
        wire.decode(wire.encode(wire.Submit(batch)))


def test_submit_with_an_id_beyond_40_bits_is_refused() -> None:
    batch = SubmitBatch.build([1 << REQUEST_ID_BITS], [[1]], [SamplingParams(1)])

    with pytest.raises(wire.WireError, match="too large"):
        wire.decode(wire.encode(wire.Submit(batch)))


def test_hello_of_a_later_version_can_still_be_read() -> None:
    """A later version may add fields behind those that every version keeps."""
    hello = wire.decode([msgspec.msgpack.encode([1, 99, "router", {"new": "field"}])])

    assert hello == wire.Hello(99, "router")
