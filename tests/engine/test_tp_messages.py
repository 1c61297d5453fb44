from dataclasses import fields

import numpy as np
import pytest
from nfold.models.engine.protocol import SamplingParams, SubmitBatch
from nfold.models.engine.tp_messages import Message, MessageKind

BATCH = SubmitBatch.build(
    [1, 2**64 - 1],
    [[5, 6, 7], [8]],
    [
        SamplingParams(max_tokens=3, stop_token_ids=(1, 2), num_logprobs=20),
        SamplingParams(max_tokens=4, temperature=0.5, top_k=3, top_p=0.25, seed=2**64 - 1, ignore_eos=True),
    ],
)


def test_a_step_carries_its_commands_in_order() -> None:
    abort = np.array([3, 2**64 - 1], np.uint64)
    empty = SubmitBatch.build([], [], [])
    sent = Message(MessageKind.STEP, 2**40, 2**32 - 1, [abort, BATCH, empty, BATCH, abort[:0]])
    got = Message.decode(sent.encode())
    assert (got.kind, got.step, got.checksum) == (MessageKind.STEP, 2**40, 2**32 - 1)
    assert len(got.commands) == 5
    for ours, theirs in zip(sent.commands, got.commands, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, SubmitBatch):
            for field in fields(SubmitBatch):
                a, b = getattr(ours, field.name), getattr(theirs, field.name)
                assert a.dtype == b.dtype, field.name
                np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", [MessageKind.HEARTBEAT, MessageKind.STOP])
def test_other_kinds_are_a_header_alone(kind: MessageKind) -> None:
    assert Message.decode(Message(kind).encode()) == Message(kind, commands=[])
