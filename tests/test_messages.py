"""The wire between hosts: what was said arrives as it was said, and anything else is refused by the name of whoever sent it."""

import contextlib
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.ops import AWAIT, RMW, Code
from cluster import messages
from cluster.link import Link
from cluster.messages import (
    ACCESS,
    ANSWER,
    ARRIVED,
    COUNTS,
    DRIVER,
    FIELDS,
    FLUSH,
    FLUSHED,
    IPI,
    MAGIC,
    MARK,
    STOPPED,
    VERSION,
    FrameError,
    decode,
    encode,
)

SMALL = st.integers(0, 2**31)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=20))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
OPS = st.one_of(
    st.tuples(st.sampled_from([int(Code.LOAD), int(Code.STORE)]), st.just("")),
    st.tuples(st.just(int(Code.RMW)), st.sampled_from([*RMW])),
    st.tuples(st.just(int(Code.AWAIT)), st.sampled_from([*AWAIT])),
)
MESSAGES = st.one_of(
    st.builds(lambda thread, cell, op, a, b: (ACCESS, thread, cell, *op, a, b), SMALL, SMALL, OPS, VALUES, VALUES),
    st.tuples(st.just(ANSWER), SMALL, VALUES),
    st.tuples(st.just(FLUSH), SMALL, SMALL, VALUES),
    st.tuples(st.just(FLUSHED), SMALL, SMALL),
    st.tuples(st.just(IPI), SMALL, SMALL),
    st.tuples(st.just(COUNTS), SMALL, st.booleans(), st.lists(SMALL).map(tuple), st.lists(SMALL).map(tuple)),
    st.tuples(st.just(MARK), SMALL, SMALL, st.lists(SMALL).map(tuple)),
    st.tuples(st.just(STOPPED), *[st.lists(SMALL).map(tuple)] * 4),
    st.tuples(st.just(ARRIVED), SMALL, SMALL, SMALL),
)
PARTS = st.lists(st.tuples(SMALL, SMALL, SMALL, st.lists(MESSAGES, max_size=4).map(tuple)), max_size=3)


@given(st.text(max_size=20), st.integers(DRIVER, 999), SMALL, SMALL, PARTS)
def test_a_frame_arrives_as_it_was_sent(run: str, sender: int, incarnation: int, seq: int, parts: list[Any]) -> None:
    """Tuples stay tuples and False is not 0: a value that changes on the way is a step that the World does not repeat."""
    frame = decode(encode(run, sender, incarnation, seq, parts))
    assert (frame.run, frame.sender, frame.incarnation, frame.seq) == (run, sender, incarnation, seq)
    assert repr([tuple(part) for part in frame.parts]) == repr(parts)


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_are_refused(data: bytes) -> None:
    """A host is a port that others can reach; it must not fall over, and nothing is ever unpickled."""
    with pytest.raises(FrameError):
        decode(data)


def damaged(random: Random, frame: bytes) -> bytes:
    """The frame cut off, lengthened, or with some bytes changed; often to what msgpack takes for a length of gigabytes."""
    data = bytearray(frame)
    for _ in range(random.randint(1, 3)):
        kind = random.randrange(4)
        at = random.randrange(len(data) + 1)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = random.choice(
                [b"\xdd\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01"]
            )
        elif kind == 2 and data:
            data[at % len(data)] = random.randrange(256)
        else:
            data[at : at + random.randrange(9)] = random.randbytes(random.randrange(9))
    return bytes(data)


@settings(max_examples=200)
@given(PARTS.filter(bool), st.integers(0, 2**32), st.integers(DRIVER, 99))
def test_of_100_000_damaged_frames_none_does_harm(parts: list[Any], seed: int, sender: int) -> None:
    """Each is refused, or is another sound frame by chance: no other exception, no hang, no gigabytes.  200 times 500 frames."""
    frame = encode("run", sender, 0, 1, parts)
    random = Random(seed)
    for _ in range(500):
        with contextlib.suppress(FrameError):
            decode(damaged(random, frame))


def packed(*said: Any, version: Any = VERSION, sender: Any = 7, **head: Any) -> bytes:
    parts = head.get("parts", [[0, 0, 1, list(said)]])
    data: bytes = msgpack.packb([MAGIC, version, head.get("run", "run"), sender, 0, head.get("seq", 1), parts])
    return data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (packed([0x7F, 1]), "not a message"),
        (packed([FLUSHED, 1]), "FLUSHED with 1 fields instead of 2"),
        (packed([FLUSHED, 1, "2"]), "FLUSHED whose cell is '2'"),
        (packed([FLUSHED, True, 2]), "FLUSHED whose thread is True"),
        (packed([ACCESS, 0, 1, 9, "", None, None]), "op that no host knows: code 9"),
        (packed([ACCESS, 0, 1, int(Code.RMW), "__import__", None, None]), "op that no host knows: code 3, '__import__'"),
        (packed(version=99), f"version 99, this host speaks {VERSION}"),
        (packed(version=True), f"version True, this host speaks {VERSION}"),
        (packed(3), "not a message: 3"),
        (packed(parts=[[0, 0, 1]]), "not a part"),
        (packed(parts=[["0", 0, 1, []]]), "a part with a malformed head"),
        (packed(parts=3), "a malformed head"),
        (packed(seq="1"), "a malformed head"),
    ],
)
def test_a_malformed_frame_is_refused_and_its_sender_named(data: bytes, why: str) -> None:
    """With a hundred hosts, "a frame is malformed" without a name is no help."""
    with pytest.raises(FrameError, match="host 7") as caught:
        decode(data)
    assert why in str(caught.value)


@pytest.mark.parametrize("sender", ["vcpu1", -2, None, 1.5])
def test_a_sender_without_a_number_is_refused(sender: Any) -> None:
    """Whoever does not say who he is gets no answer either."""
    with pytest.raises(FrameError, match=r"no number of a host"):
        decode(packed(sender=sender))


def test_a_value_that_cannot_travel_is_an_error_of_its_sender() -> None:
    """A scenario may put anything into a cell of its own; it hears of it with the value and the types that travel."""
    with pytest.raises(FrameError, match=r"host 0 has a value that cannot travel.*\n.*tuples of them"):
        encode("run", 0, 0, 1, [(0, 0, 1, [(ANSWER, 0, {1, 2})])])


def test_the_tags_are_what_they_were() -> None:
    """The numbers are the wire format: a host of another version would take a message for the one it knows."""
    assert {tag: name for tag, (name, _) in FIELDS.items()} == {
        0x11: "ACCESS",
        0x12: "ANSWER",
        0x13: "FLUSH",
        0x14: "FLUSHED",
        0x15: "IPI",
        0x16: "MARK",
        0x21: "BEGIN",
        0x22: "PROBE",
        0x23: "COLLECT",
        0x24: "GRANT",
        0x25: "MEET",
        0x26: "STOP",
        0x27: "PING",
        0x28: "CUT",
        0x31: "IDLE",
        0x32: "COUNTS",
        0x33: "REPORT",
        0x34: "FAILURE",
        0x35: "MOVED",
        0x36: "MET",
        0x37: "HERE",
        0x38: "STOPPED",
        0x39: "ARRIVED",
    }
    assert messages.DRIVER == -1


def links() -> tuple[Link, Link, list[bytes]]:
    sent: list[bytes] = []
    return Link("run", 0, lambda peer, data: sent.append(data)), Link("run", 1, lambda peer, data: None), sent


def test_a_lost_a_doubled_and_an_overtaken_frame_are_errors() -> None:
    """A channel keeps its order by construction; should a transport not, that is an error of the transport and not a race."""
    for order, wrong in (
        ([0, 2], "got frame 3 of host 0, expected 2"),
        ([0, 0], "got frame 1 of host 0, expected 2"),
        ([1], "expected 1"),
    ):
        one, other, sent = links()
        for _ in range(3):
            one.say(1, [])
        for at in order[:-1]:
            assert other.hear(sent[at]) is not None
        with pytest.raises(FrameError, match=wrong):
            other.hear(sent[order[-1]])


def test_a_host_that_was_replaced_is_not_heard_any_more() -> None:
    """What it said before it died may arrive after its successor has spoken."""
    one, other, sent = links()
    one.say(1, [])
    one.say(1, [])
    assert other.hear(sent[0]) is not None
    other.meet(0, 1)
    assert other.hear(sent[1]) is None
    new = Link("run", 0, lambda peer, data: sent.append(data), incarnation=1)
    new.say(1, [])
    heard = other.hear(sent[2])
    assert heard is not None and heard.incarnation == 1
