"""How frames travel.  A transport keeps the order of frames between two hosts, loses none, and calls nobody back."""

from __future__ import annotations

from typing import Any, Protocol


class Transport(Protocol):
    """What an engine needs of the world around it; a socket can stand in for Ray here."""

    def send(self, host: int, frame: bytes) -> None:
        """Send, and do not wait: hosts are numbered like the actors of the machine, a host may send to itself."""


class RayTransport:
    """Frames as arguments of Ray calls that nobody waits for.

    Ray keeps the order of calls from one caller to one actor that is synchronous and single-threaded.  That promise is what a
    channel is made of.
    """

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles  # a method of a handle does not keep the handle alive
        self.deliver = [handle.deliver.remote for handle in handles]

    def send(self, host: int, frame: bytes) -> None:
        """Hand the frame to Ray."""
        self.deliver[host](frame)
