"""The Ray actor: one simulated actor in a process of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.engine import Engine
from cluster.transport import RayTransport
from racevisor.errors import ClusterError
from racevisor.events import EventLog
from racevisor.scenario import Case, Source, from_source


@dataclass(frozen=True)
class HostSpec:
    """All that a host is told: plain values, and the scenario as source text with its hash."""

    run: str
    actor: str
    path: str
    text: str
    digest: str
    variant: str
    setup: str
    memory: str
    seed: int | str
    noise: float
    log_dir: str  # "" for none
    vcpus: int | None = None  # None: the scenario's own number


class Host:
    """Hosts one simulated actor.  Its methods are what the driver and other hosts may call; none of them ever waits.

    What `begin` and `deliver` do is not answered, because nobody may wait for it; what went wrong in them is in the next probe.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.events: EventLog | None = None

    def prepare(self, spec: HostSpec) -> tuple[int, str]:
        """Load the scenario; (process id, what is wrong with it or "").  A host that is warm may be told to play another case."""
        self.close()
        self.spec = spec
        try:
            source = Source(spec.path, spec.text)
            if source.digest != spec.digest:
                raise ClusterError(f"the scenario's text arrived damaged: SHA-256 {source.digest}, expected {spec.digest}")
            self.case = Case(from_source(source), source, spec.variant, spec.setup, spec.memory, spec.vcpus)
            if spec.log_dir:
                self.events = EventLog(Path(spec.log_dir), spec.actor, debug=True, run=spec.run)
        except Exception as error:  # told by the driver, in one line, with the name of the actor
            return os.getpid(), f"{type(error).__name__}: {error}"
        return os.getpid(), ""

    def connect(self, handles: list[Any]) -> None:
        """Meet the other hosts, numbered like the machine's actors."""
        spec = self.spec
        transport = RayTransport(handles)
        self.engine = Engine(self.case, spec.actor, spec.run, transport, seed=spec.seed, noise=spec.noise, events=self.events)

    @ray.method(num_returns=0)
    def begin(self, number: int) -> None:
        """Start a round."""
        assert self.engine is not None
        self.engine.begin(number)

    @ray.method(num_returns=0)
    def deliver(self, frame: bytes) -> None:
        """A frame from another host, or from this one."""
        if self.engine is not None:
            self.engine.deliver(frame)

    def probe(self) -> tuple[Any, ...]:
        """How far is it: see Engine.probe."""
        assert self.engine is not None
        return self.engine.probe()

    def report(self) -> tuple[tuple[Any, ...], bytes]:
        """The same, and all that was seen and is held."""
        assert self.engine is not None
        if self.events is not None:
            self.events.flush()
        return self.engine.probe(), self.engine.report()

    def close(self) -> None:
        """Drop the coroutine and close the log."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None
        if self.events is not None:
            self.events.close()
            self.events = None


#: max_restarts=0: a host that died has lost its cells, and no second one may pretend to be it.
#: Ray's own events, one for every call, would cost more than what they could tell.
_remote: Any = ray.remote  # its types know fewer options than it has
RayHost: Any = _remote(num_cpus=0, max_restarts=0, max_task_retries=0, enable_task_events=False)(Host)
