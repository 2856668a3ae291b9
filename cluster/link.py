"""The end of all channels of one peer: frames go out numbered, and come in in their order or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.messages import Frame, FrameError, decode, encode, name_of


class Link:
    """Packs and unpacks the frames of the peer `me`; `send(peer, data)` hands them to a transport.

    A channel is a pair of peers.  Its frames are counted, and the receiver holds the count against its own, so that a frame that
    a transport lost, doubled or overtook with another is an error and not a race.
    """

    def __init__(self, run: str, me: int, send: Callable[[int, bytes], None], incarnation: int = 0) -> None:
        self.run = run
        self.me = me
        self.send = send
        self.incarnation = incarnation
        self.incarnations: dict[int, int] = {}  # of peers that were replaced
        self._sent: dict[int, int] = {}
        self._got: dict[int, int] = {}

    def say(self, peer: int, parts: list[Any]) -> None:
        """One frame to `peer`."""
        seq = self._sent[peer] = self._sent.get(peer, 0) + 1
        self.send(peer, encode(self.run, self.me, self.incarnation, seq, parts))

    def hear(self, data: bytes) -> Frame | None:
        """The frame; None if it is from another run, or from a host that was replaced.  FrameError if one is missing."""
        frame = decode(data)
        sender = frame.sender
        if frame.run != self.run or frame.incarnation < self.incarnations.get(sender, 0):
            return None
        expected = self._got.get(sender, 0) + 1
        if frame.seq != expected:
            raise FrameError(
                f"{name_of(self.me)} got frame {frame.seq} of {name_of(sender)}, expected {expected}:"
                " the transport lost or reordered one"
            )
        self._got[sender] = expected
        return frame

    def meet(self, peer: int, incarnation: int) -> None:
        """A host was replaced: what it said before is void, and both directions count from one again."""
        self.incarnations[peer] = incarnation
        self._sent.pop(peer, None)
        self._got.pop(peer, None)
