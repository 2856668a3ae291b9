"""The Ray actor around a host, and what it is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.engine import Engine
from cluster.host import Host
from cluster.link import Link
from cluster.logged import LoggedEngine
from cluster.transport import LOOPBACK, RayWire, Secret, SocketWire, Wire
from racevisor.collector import settle
from racevisor.errors import ClusterError, RacevisorError
from racevisor.events import EventLog
from racevisor.scenario import Case, Source, from_source

#: How often a host without frames looks up from its socket, in seconds: Ray's own signals are handled in between.
LOOK_UP = 1.0
#: Turns that a host takes in one Ray call before it lets other calls go first.
TURNS = 32


@dataclass(frozen=True)
class HostSpec:
    """All that a host is told: plain values, and the scenario as source text with its hash."""

    run: str
    number: int
    incarnation: int
    name: str
    hosts: int
    place: tuple[int, ...]
    vms: int
    path: str
    text: str
    digest: str
    variant: str
    setup: str
    memory: str
    vcpus: int
    seed: int | str
    noise: float
    recording: bool
    gated: bool
    log_dir: str  # "" for none
    secret: Secret | None = None  # None: frames travel by Ray calls
    ip: str = LOOPBACK


class Seat:
    """A process with a host in it.  With sockets, `serve` lasts as long as the run; with Ray calls, `deliver` is called."""

    def __init__(self) -> None:
        self.host: Host | None = None
        self.wire: Wire | None = None
        self.events: EventLog | None = None
        self.going_on = False

    def prepare(self, spec: HostSpec) -> tuple[int, str, str]:
        """Load the scenario; (process id, address, what is wrong or "").  A warm host may be told to play another case."""
        self.close()
        self.spec = spec
        try:
            source = Source(spec.path, spec.text)
            if source.digest != spec.digest:
                raise ClusterError(f"the scenario's text arrived damaged: SHA-256 {source.digest}, expected {spec.digest}")
            case = Case(from_source(source), source, spec.variant, spec.setup, spec.memory, spec.vcpus)
            if spec.log_dir:
                self.events = EventLog(Path(spec.log_dir), spec.name, debug=True, run=spec.run)
            if spec.secret is not None:
                self.wire = SocketWire(spec.secret, spec.ip)
            make = Engine if self.events is None else LoggedEngine
            self.engines = [
                make(
                    case,
                    spec.place,
                    spec.number,
                    seed=f"{spec.seed}:{vm}" if vm else spec.seed,
                    noise=spec.noise,
                    recording=spec.recording,
                    gated=spec.gated,
                    events=self.events,
                )
                for vm in range(spec.vms)
            ]
        except Exception as error:  # told by the driver, in one line, with the name of the host
            return os.getpid(), "", f"{type(error).__name__}: {error}"
        settle()
        return os.getpid(), self.wire.address if self.wire is not None else "", ""

    def meet(self, peers: dict[int, str], handles: list[Any], desk: Any) -> None:
        """Learn where the others are: addresses by number (the driver's too), or handles and the driver's desk."""
        spec = self.spec
        if self.wire is None:
            self.wire = RayWire(f"{spec.run}:{spec.number}:{spec.incarnation}", handles, desk)
            self.again = ray.get_runtime_context().current_actor.go_on.remote
        wire = self.wire
        for peer, address in peers.items():
            wire.connect(peer, address)
        link = Link(spec.run, spec.number, wire.send, spec.incarnation)
        self.host = Host(link, spec.hosts, self.engines, wire.connect)

    def serve(self) -> None:
        """Handle frames until the driver says that this was all."""
        host, wire = self.host, self.wire
        assert host is not None and wire is not None
        while not host.stopped:
            for data in wire.receive(0 if host.busy else LOOK_UP):
                host.receive(data)
            host.turn()
            self._write()

    def _write(self) -> None:
        """Write the log out while there is nothing else to do; the driver is told if that fails, as when the disk is full."""
        host = self.host
        if self.events is not None and host is not None and not host.busy and not host.failed:
            try:
                self.events.flush()
            except RacevisorError as error:
                host.fail(error)
                host.turn()

    @ray.method(num_returns=0)
    def deliver(self, data: bytes) -> None:
        """A frame from another host, or from the driver."""
        if self.host is not None:
            self.host.receive(data)
            self._work()

    @ray.method(num_returns=0)
    def go_on(self) -> None:
        """Own work that was put off so that frames could arrive."""
        self.going_on = False
        if self.host is not None:
            self._work()

    def _work(self) -> None:
        host = self.host
        assert host is not None
        for _ in range(TURNS):
            host.turn()
            if not host.busy:
                break
            if self.spec.noise:
                break  # whoever is held lets others go first: their frames wait in Ray's queue
        if host.busy and not self.going_on:
            self.going_on = True
            self.again()
        self._write()

    def beat(self) -> int:
        """Still there."""
        return os.getpid()

    def close(self) -> None:
        """Drop the coroutines, close the sockets and the log."""
        if self.host is not None:
            self.host.close()
            self.host = None
        if self.wire is not None:
            self.wire.close()
            self.wire = None
        if self.events is not None:
            self.events.close()
            self.events = None


#: max_restarts=0: a host that died has lost its cells, and no second one may pretend to be it.
#: Ray's own events, one for every call, would cost more than what they could tell.
_remote: Any = ray.remote  # its types know fewer options than it has
RayHost: Any = _remote(num_cpus=0, max_restarts=0, max_task_retries=0, enable_task_events=False)(Seat)
