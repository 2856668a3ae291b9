"""How frames travel.  A wire keeps the order of frames between two peers and loses none; the Link counts them nevertheless.

Two kinds.  `sockets` (the default) joins the processes of the hosts and the driver directly, by ZeroMQ over TCP: a frame is there
in some 80 microseconds, so live CPUs interleave closely.  `ray` sends frames as arguments of Ray calls: slower, but it goes
wherever Ray goes.  Addresses and the run's secret are exchanged through Ray in both.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Protocol

import ray
import zmq

from racevisor.errors import ClusterError

KINDS = ("sockets", "ray")
LOOPBACK = "127.0.0.1"


class Secret(NamedTuple):
    """The run's key pair (CURVE).  Whoever does not have it gets no word through, and reads none."""

    public: bytes
    private: bytes


def make_secret() -> Secret:
    """A new one, for one run.  Both halves stay among the run's processes, so that knowing the public one proves membership."""
    return Secret(*zmq.curve_keypair())


class Wire(Protocol):
    """What a peer sends and receives with."""

    #: where others find it
    address: str

    def connect(self, peer: int, address: str) -> None:
        """From now on `peer` is found at `address`."""

    def send(self, peer: int, data: bytes) -> None:
        """Send, and do not wait."""

    def receive(self, seconds: float) -> list[bytes]:
        """The frames that are there; if there are none, wait for one, at most that long."""

    def close(self) -> None:
        """Release what it holds; what was not sent yet may be lost."""


class SocketWire:
    """Direct connections: one socket that all others send to, one to send to each other that something is sent to.

    Encrypted and authenticated with the run's secret; `ip` is the address to listen on, 127.0.0.1 unless others are elsewhere.
    """

    #: at most so many frames at once, so that own work is not put off for ever
    GULP = 64

    def __init__(self, secret: Secret, ip: str = LOOPBACK) -> None:
        self.secret = secret
        self.context = zmq.Context()
        self.inbox = self._socket(zmq.PULL)
        self.inbox.curve_server = True
        host = f"[{ip}]" if ":" in ip else ip
        try:
            self.inbox.bind(f"tcp://{host}:*")
        except zmq.ZMQError as error:
            self.close()
            raise ClusterError(f"cannot listen on {ip}: {error}\n  the other transport:  --transport ray") from error
        self.address: str = self.inbox.getsockopt_string(zmq.LAST_ENDPOINT)
        self._peers: dict[int, tuple[str, zmq.Socket[bytes] | None]] = {}

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = 0  # a round is finite, and a bound would be a deadlock
        socket.ipv6 = True
        socket.curve_publickey, socket.curve_secretkey = self.secret.public, self.secret.private
        return socket

    def connect(self, peer: int, address: str) -> None:
        """Remember where the peer is; the connection is made when there is something to say."""
        _, old = self._peers.pop(peer, ("", None))
        if old is not None:
            old.close()
        self._peers[peer] = (address, None)

    def send(self, peer: int, data: bytes) -> None:
        """Hand the frame to the socket's own thread."""
        address, socket = self._peers[peer]
        if socket is None:
            socket = self._socket(zmq.PUSH)
            socket.curve_serverkey = self.secret.public
            socket.connect(address)
            self._peers[peer] = (address, socket)
        socket.send(data)

    def receive(self, seconds: float) -> list[bytes]:
        """The frames that are there."""
        frames: list[bytes] = []
        inbox = self.inbox
        if seconds and not inbox.poll(int(seconds * 1000)):
            return frames
        # Asking costs less than half of what it costs to be told by an error.
        while len(frames) < self.GULP and int(inbox.get(zmq.EVENTS)) & zmq.POLLIN:
            frames.append(inbox.recv(zmq.NOBLOCK))
        return frames

    def close(self) -> None:
        """Close the sockets."""
        for _, socket in getattr(self, "_peers", {}).values():
            if socket is not None:
                socket.close()
        self.inbox.close()
        self.context.term()


class Desk:
    """Where hosts leave frames for a driver that is called by nobody: a Ray actor of its own, for the transport `ray`."""

    def __init__(self) -> None:
        import asyncio

        self.frames: list[bytes] = []
        self.early: dict[tuple[str, int], bytes] = {}
        self.counts: dict[str, int] = {}
        self.come = asyncio.Event()

    async def put(self, sender: str, number: int, data: bytes) -> None:
        """Frame `number` of a sender.  Calls of an asynchronous actor may overtake each other, frames may not."""
        self.early[sender, number] = data
        while (sender, self.counts.get(sender, 0) + 1) in self.early:
            self.counts[sender] = self.counts.get(sender, 0) + 1
            self.frames.append(self.early.pop((sender, self.counts[sender])))
            self.come.set()

    async def take(self, seconds: float) -> list[bytes]:
        """The frames that are there; if there are none, wait for one, at most that long."""
        import asyncio
        import contextlib

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.come.wait(), seconds)
        self.come.clear()
        frames, self.frames = self.frames, []
        return frames


_remote: Any = ray.remote  # its types know fewer options than it has
RayDesk: Any = _remote(num_cpus=0, enable_task_events=False)(Desk)


class RayWire:
    """Frames as arguments of Ray calls that nobody waits for.

    Ray keeps the order of calls from one caller to one actor that is synchronous and single-threaded, so frames to hosts are in
    order by construction.  The driver takes its frames from a Desk.
    """

    address = ""

    def __init__(self, me: str, handles: list[Any], desk: Any) -> None:
        self.me = me
        self.handles = handles  # a method of a handle does not keep the handle alive
        self.desk = desk
        self._deliver = [handle.deliver.remote for handle in handles]
        self._number = 0
        self._asked: Any = None

    def replace(self, peer: int, handle: Any) -> None:
        """Another actor is that host now."""
        self.handles[peer] = handle
        self._deliver[peer] = handle.deliver.remote

    def connect(self, peer: int, address: str) -> None:
        """Find the actor of that name: the host that took another one's place."""
        self.replace(peer, ray.get_actor(address))

    def send(self, peer: int, data: bytes) -> None:
        """Hand the frame to Ray."""
        if peer >= 0:
            self._deliver[peer](data)
        else:
            self._number += 1
            self.desk.put.remote(self.me, self._number, data)

    def receive(self, seconds: float) -> list[bytes]:
        """What the desk has; one question is always open there, so nothing is asked twice."""
        if self._asked is None:
            self._asked = self.desk.take.remote(5.0)
        begin = time.monotonic()
        ready, _ = ray.wait([self._asked], timeout=seconds)
        if not ready:
            return []
        frames: list[bytes] = ray.get(self._asked)
        self._asked = None
        left = seconds - (time.monotonic() - begin)
        return frames or (self.receive(left) if left > 0 else [])

    def close(self) -> None:
        """Nothing to release: Ray's actors are the run's."""
