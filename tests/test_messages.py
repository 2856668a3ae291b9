"""The wire between hosts: what was said arrives as it was said, and anything else is refused by the name of whoever sent it."""

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.ops import AWAIT, RMW, Code, Order
from cluster import messages
from cluster.messages import MAGIC, VERSION, Access, Answer, Continue, Flush, Flushed, FrameError, Ipi, decode, encode

SMALL = st.integers(0, 2**31)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=20))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
ACCESSES = st.one_of(
    st.builds(
        Access,
        SMALL,
        SMALL,
        st.sampled_from([int(Code.LOAD), int(Code.STORE)]),
        st.just(""),
        VALUES,
        VALUES,
        st.sampled_from([*map(int, Order)]),
    ),
    st.builds(Access, SMALL, SMALL, st.just(int(Code.RMW)), st.sampled_from([*RMW]), VALUES, VALUES, st.just(int(Order.FULL))),
    st.builds(
        Access, SMALL, SMALL, st.just(int(Code.AWAIT)), st.sampled_from([*AWAIT]), VALUES, VALUES, st.just(int(Order.FULL))
    ),
)
MESSAGES = st.one_of(
    ACCESSES,
    st.builds(Answer, SMALL, VALUES),
    st.builds(Flush, SMALL, SMALL, VALUES),
    st.builds(Flushed, SMALL, SMALL),
    st.builds(Ipi, SMALL, SMALL),
    st.builds(Continue, SMALL),
)


@given(st.text(max_size=20), SMALL, st.text(max_size=20), SMALL, st.lists(MESSAGES, max_size=5))
def test_a_frame_arrives_as_it_was_sent(run: str, round_: int, sender: str, clock: int, said: list[Any]) -> None:
    """Tuples stay tuples and False is not 0: a value that changes on the way is a step that the World does not repeat."""
    frame = decode(encode(run, round_, sender, clock, said))
    assert (frame.run, frame.round, frame.sender, frame.clock, frame.messages) == (run, round_, sender, clock, said)
    assert repr(frame.messages) == repr(said)


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_are_refused(data: bytes) -> None:
    """A host is a port that anybody on the cluster can reach; it must not fall over, and nothing is ever unpickled."""
    with pytest.raises(FrameError):
        decode(data)


@given(st.lists(MESSAGES, min_size=1, max_size=3), st.data())
def test_a_damaged_frame_is_a_frame_error_or_another_sound_frame(said: list[Any], data: st.DataObject) -> None:
    """No other exception gets out: the host that got it goes on, and its next probe says who sent it."""
    frame = bytearray(encode("run", 1, "vcpu1", 7, said))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        decode(bytes(frame))


def packed(*body: Any, version: int = VERSION, sender: Any = "vcpu1") -> bytes:
    data: bytes = msgpack.packb([MAGIC, version, "run", 0, sender, 1, list(body)])
    return data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (packed([0x7F, 1]), "not a message"),
        (packed([0x04, 1]), "Flushed with 1 fields instead of 2"),
        (packed([0x04, 1, "2"]), "Flushed whose cell is '2'"),
        (packed([0x04, True, 2]), "Flushed whose thread is True"),
        (packed([0x01, 0, 1, 9, "", None, None, 0]), "op that no host knows: code 9"),
        (packed([0x01, 0, 1, int(Code.RMW), "__import__", None, None, 0]), "op that no host knows: code 3, '__import__'"),
        (packed([0x01, 0, 1, int(Code.LOAD), "", None, None, 77]), "order 77"),
        (packed(version=99), "version 99, this host speaks 1"),
        (packed(3), "not a message: 3"),
    ],
)
def test_a_malformed_frame_is_refused_and_its_sender_named(data: bytes, why: str) -> None:
    """With a hundred hosts, "a frame is malformed" without a name is no help."""
    with pytest.raises(FrameError, match="vcpu1") as caught:
        decode(data)
    assert why in str(caught.value)


def test_a_sender_without_a_name_is_refused() -> None:
    """Whoever does not say who he is gets no answer either."""
    with pytest.raises(FrameError, match="not a name"):
        decode(packed(sender=7))


def test_a_value_that_cannot_travel_is_an_error_of_its_sender() -> None:
    """A scenario may put anything into a cell of its own; it hears of it with the value and the types that travel."""
    with pytest.raises(FrameError, match=r"vcpu0 has a value that cannot travel.*\n.*tuples of them"):
        encode("run", 0, "vcpu0", 1, [Answer(0, {1, 2})])


def test_a_tag_is_never_reused() -> None:
    """A host of another version would take the message for the one it knows."""
    with pytest.raises(ValueError, match="0x1 is Access already"):
        messages.message(tag=0x01)(type("Other", (), {"__annotations__": {}}))


def test_the_tags_are_what_they_were() -> None:
    """The numbers are the wire format."""
    assert {tag: kind.__name__ for tag, kind in messages.TAGS.items()} == {
        1: "Access",
        2: "Answer",
        3: "Flush",
        4: "Flushed",
        5: "Ipi",
        6: "Continue",
    }
