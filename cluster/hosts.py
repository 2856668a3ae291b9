"""The hosts of a live run as the driver sees them: started, told what they play, watched, replaced when they die."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.conductor import Conductor
from cluster.link import Link
from cluster.messages import DRIVER
from cluster.nodes import home, machines
from cluster.placement import Machine, Plan
from cluster.pulse import Pulse
from cluster.ray_host import HostSpec, RayHost
from cluster.session import later
from cluster.transport import LOOPBACK, RayDesk, RayWire, SocketWire, Wire, make_secret
from racevisor.errors import ClusterError
from racevisor.scenario import Case

#: How long a host may take to answer a call.  It answers between two turns, so this is for machines that are gone.
ANSWER_TIMEOUT = 60.0
#: How often Ray is asked whether a host died, in seconds.
LOOK = 0.5


class HostLost(ClusterError):
    """Host number `host` died while it was told something, or (`late`) did not answer in time."""

    def __init__(self, host: int, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.host = host
        self.late = late


class Hosts:
    """The hosts of a plan.  `start` makes them, `prepare` tells them what to play; `wire`, `conductor` are the driver's ends."""

    def __init__(self, plan: Plan, names: list[str], transport: str, start_timeout: float, pulse: Pulse | None = None) -> None:
        self.plan = plan
        self.names = [plan.name(host, names) for host in range(plan.hosts)]
        self.transport = transport
        self.start_timeout = start_timeout
        self.pulse = pulse or Pulse()
        self.silence = self.give_up = 0.0
        self.handles: list[Any] = []
        self.pids: dict[str, int] = {}
        self.wire: Wire | None = None
        self.conductor: Conductor | None = None
        self.run = ""
        self._home = self.pulse.call(home)
        #: every process is reached by 127.0.0.1, so nobody else needs to
        self._loopback = {machine.ip for machine in self.pulse.call(machines)} == {self._home.ip}
        self._left: set[str] = set()  # machines on which a host did not come up again
        self._desk: Any = None
        self._said: Callable[[int], HostSpec]
        self._serving: list[Any] = []  # what Ray owes us of each host: it fails when the host dies
        self._incarnations = [0] * plan.hosts
        self._looked = 0.0
        self._asked: dict[int, float] = {}
        self._gone: set[int] = set()  # lost, and not replaced yet

    def start(self) -> None:
        """Make the Ray actors; Ray starts their processes meanwhile."""
        self.handles = [self._make(host) for host in range(self.plan.hosts)]

    def _make(self, host: int, name: str | None = None) -> Any:
        machine = self.plan.machines[host]
        return RayHost.options(scheduling_strategy=_on(machine), name=name).remote()

    def prepare(self, case: Case, options: Any, log_dir: str) -> None:
        """Tell the hosts what they play, and each other.  Hosts that played something else are warm, and are told anew."""
        self.stop()
        self.run = uuid.uuid4().hex[:12]  # what is still in flight from before is a stranger's from here on
        self.silence, self.give_up = options.silence, options.give_up
        secret = make_secret() if self.transport == "sockets" else None
        self._said = lambda host: HostSpec(
            run=self.run,
            number=host,
            incarnation=self._incarnations[host],
            name=self.names[host],
            hosts=self.plan.hosts,
            place=self.plan.place,
            vms=options.vms,
            path=case.source.path,
            text=case.source.text,
            digest=case.source.digest,
            variant=case.variant_name,
            setup=case.setup,
            memory=case.memory,
            vcpus=case.vcpus,
            seed=options.seed,
            noise=options.noise or 0.0,
            recording=options.recording,
            gated=options.gated,
            log_dir=log_dir,
            secret=secret,
            ip=LOOPBACK if self._loopback else self.plan.machines[host].ip,
        )
        # A worker process takes up to half a second of one core, so a big machine takes longer than a cluster that answers.
        everyone = range(self.plan.hosts)
        answers = self._ask([self._tell(host) for host in everyone], everyone, self.start_timeout + 2 * self.plan.hosts)
        self._addresses = {host: self._answer(host, case, answer) for host, answer in zip(everyone, answers, strict=True)}
        if secret is not None:
            self.wire = SocketWire(secret, LOOPBACK if self._loopback else self._home.ip)
            for host, address in self._addresses.items():
                self.wire.connect(host, address)
        else:
            self._desk = RayDesk.options(scheduling_strategy=_on(self._home)).remote()  # not on a machine that may go
            self.wire = RayWire("", list(self.handles), self._desk)
        self._ask([self._introduce(host) for host in everyone], everyone, ANSWER_TIMEOUT)
        self._serving = [self._serve(host) for host in everyone]
        self.conductor = Conductor(Link(self.run, DRIVER, self.wire.send), self.plan.hosts, options.vms)

    def _tell(self, host: int) -> Any:
        return self.handles[host].prepare.remote(self._said(host))

    def _answer(self, host: int, case: Case, answer: tuple[int, str, str]) -> str:
        pid, address, wrong = answer
        if wrong:
            raise ClusterError(f"host {self.names[host]} cannot play {case}: {wrong}")
        self.pids[self.names[host]] = pid
        return address

    def _introduce(self, host: int) -> Any:
        assert self.wire is not None
        if self._desk is not None:
            return self.handles[host].meet.remote({}, self.handles, self._desk)
        others = {other: address for other, address in self._addresses.items() if other != host}
        return self.handles[host].meet.remote({**others, DRIVER: self.wire.address}, [], None)

    def _serve(self, host: int) -> Any:
        handle = self.handles[host]
        return handle.beat.remote() if self._desk is not None else handle.serve.remote()

    def _ask(self, refs: list[Any], hosts: Any, timeout: float) -> list[Any]:
        """The answers of hosts; ClusterError names the first that died, or that does not answer."""
        try:
            answers: list[Any] = self.pulse.call(lambda: ray.get(refs, timeout=timeout))
            return answers
        except RayError as error:
            late = []
            for host, ref in zip(hosts, refs, strict=True):
                try:
                    ray.get(ref, timeout=0)
                except GetTimeoutError:
                    late.append(host)
                except RayActorError as death:
                    text = f"host {self.names[host]} died while it was told what to play\n  Ray says: {why(death)}"
                    raise HostLost(host, text) from death
                except RayError as other:
                    raise ClusterError(f"host {self.names[host]} failed: {other}") from other
            if late:
                names = ", ".join(self.names[host] for host in late)
                raise HostLost(
                    late[0], f"no answer from host {names} within {timeout:g} s\n  see:  ray status", late=True
                ) from error
            raise ClusterError(f"Ray failed: {error}") from error

    # ---- while they play ------------------------------------------------------------------------------------------------------

    def lost(self) -> tuple[int, str] | None:
        """A host that died since, or that does not answer any more, and why; asked of Ray now and then only.

        It is told once, until it is replaced.
        """
        found = self._look()
        if found is not None:
            self._gone.add(found[0])
        return found

    def _look(self) -> tuple[int, str] | None:
        now = time.perf_counter()
        if now - self._looked < LOOK:
            return None
        assert self.conductor is not None
        # The driver was busy with a round, or whoever takes them from it was: nobody listened, so that was no silence.
        away = now - self._looked - 2 * LOOK if self._looked else 0.0
        self._looked = now
        if away > 0:
            for times in (self.conductor.heard, self._asked):
                times.update({host: min(since + away, now) for host, since in times.items()})
        self.pulse.check()
        ready, _ = ray.wait(self._serving, num_returns=len(self._serving), timeout=0)
        for ref in ready:
            host = self._serving.index(ref)
            if host in self._gone:
                continue
            try:
                ray.get(ref)
            except RayActorError as death:
                self._looked = 0.0  # where one was found there may be more, as when a machine goes
                return host, why(death)
            except RayError as error:
                self._looked = 0.0
                return host, str(error).strip().splitlines()[0][:200]
            self._serving[host] = self._serve(host)
        for host, heard in self.conductor.heard.items():
            asked = self._asked.get(host, 0.0)
            if asked and heard > asked:  # it has answered
                del self._asked[host]
                asked = 0.0
            if now - heard < self.silence or host in self._gone:
                continue
            if not asked:
                self._asked[host] = now
                self.conductor.ping(host)
            elif now - asked > self.give_up:
                return host, f"it has not answered for {now - heard:.0f} s"
        return None

    def replace(self, host: int, case: Case) -> None:
        """Put a new process in the place of a host that is gone.  No round may be playing.

        It is made on the same machine; on another one, if Ray knows that the machine is gone.  That takes Ray some 15 s, in which
        it goes on starting processes there; so where the new one dies too, the machine is taken for gone as well.  Raises
        HostLost if that was the last one.
        """
        self._end(host)
        while True:
            self._move(host)
            try:
                return self._replace(host, case)
            except HostLost:
                self._end(host)
                if len(self._others()) <= 1:
                    raise  # the machine is ours, or the last one: whoever asks for it knows how often it was tried
                self._left.add(self.plan.machines[host].id)

    def _replace(self, host: int, case: Case) -> None:
        wire, conductor = self.wire, self.conductor
        assert wire is not None and conductor is not None
        self._incarnations[host] += 1
        incarnation = self._incarnations[host]
        name = f"{self.run}-{host}-{incarnation}"
        self._put(host, self.pulse.call(lambda: self._make(host, name)))
        (answer,) = self._ask([self._tell(host)], [host], self.start_timeout + 2)
        address = self._answer(host, case, answer) or name
        self._addresses[host] = address
        if isinstance(wire, RayWire):
            wire.replace(host, self.handles[host])
        else:
            wire.connect(host, address)
        self._ask([self._introduce(host)], [host], ANSWER_TIMEOUT)
        self._serving[host] = self._serve(host)
        self._asked.pop(host, None)
        self._gone.discard(host)
        conductor.link.meet(host, incarnation)
        conductor.heard[host] = time.perf_counter()
        conductor.introduce(host, incarnation, address)

    def _others(self) -> list[Machine]:
        """The machines that a host can be made on; with loopback sockets, those that are reached so."""
        return [
            machine
            for machine in self.pulse.call(machines)
            if machine.id not in self._left and (not self._loopback or machine.ip == self._home.ip)
        ]

    def _move(self, host: int) -> None:
        """If a host's machine is gone, choose the one that holds the fewest for its CPUs."""
        rest = {machine.id: machine for machine in self._others()}
        if not rest:
            raise ClusterError("the cluster has no machine left\n  finished rounds are kept; see:  ray status")
        chosen = list(self.plan.machines)
        if chosen[host].id in rest:
            return
        held = Counter(machine.id for machine in chosen)
        chosen[host] = min(rest.values(), key=lambda machine: held[machine.id] / max(1, machine.cpus))
        self.plan = Plan(self.plan.kind, self.plan.place, tuple(chosen))

    def again(self, host: int) -> None:
        """A host died before it could play: make another one, which `prepare` tells what to play."""
        self._end(host)
        self._put(host, self._make(host))

    def _put(self, host: int, handle: Any) -> None:
        """Another handle in the place of one that goes: a Ctrl-C within Ray's __del__ of that would be lost."""
        with later():
            self.handles[host] = handle

    def _end(self, host: int) -> None:
        """See to it that a host that is given up is gone: one that hangs does not do what Ray asks of it, which is to leave."""
        lives = bool(self._serving) and not ray.wait([self._serving[host]], timeout=0)[0]
        self.pulse.call(lambda: ray.kill(self.handles[host]))
        if lives:
            self._kill_here(host)

    def _kill_here(self, host: int) -> None:
        """Without Ray, where that is possible: on our own machine."""
        pid = self.pids.get(self.names[host])
        if pid is not None and self.plan.machines[host].id == self._home.id:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # ---- the end --------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the run that is played: hosts stay, warm, to be told another one."""
        if self.conductor is not None and self._desk is None and self._serving:
            self.conductor.stop()
            ray.wait(self._serving, num_returns=len(self._serving), timeout=ANSWER_TIMEOUT)
        if self.wire is not None:
            self.wire.close()
            self.wire = None
        if self._desk is not None:
            ray.kill(self._desk)
            self._desk = None
        self._serving = []
        self._gone.clear()
        self.conductor = None

    def close_logs(self) -> None:
        """Have the hosts write out what they have."""
        self.stop()
        self._ask([handle.close.remote() for handle in self.handles], range(self.plan.hosts), ANSWER_TIMEOUT)

    def kill(self, *, there: bool) -> None:
        """End the processes, unless they go with the Ray that was started for them (`there`: it stays)."""
        handles, self.handles = self.handles, []
        if there and ray.is_initialized() and not self.pulse.lost:
            for handle in handles:
                ray.kill(handle)
            if self._desk is not None:
                ray.kill(self._desk)
        elif there and self.pulse.lost:  # a raylet that waits for its GCS would keep them
            for host in range(len(handles)):
                self._kill_here(host)
        if self.wire is not None:
            self.wire.close()
            self.wire = None
        self.conductor = None
        self._desk = None


def _on(machine: Machine) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id=machine.id, soft=False)


def why(death: RayActorError) -> str:
    """The one line of Ray's message that says something."""
    lines = [line.strip() for line in str(death).splitlines()]
    said = next((line for line in lines if " because " in line), lines[0] if lines else "nothing")
    said = said.rpartition(" is unavailable: ")[2]
    return said.partition(" Worker exit detail")[0].partition(" The task may ")[0][:200]
