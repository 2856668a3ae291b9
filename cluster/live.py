"""Rounds of a scenario on real parallel hardware, each held against the World."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from cluster.host import HostSpec, RayHost
from cluster.parity import Report, merge, replay
from cluster.session import Session
from racevisor.errors import ClusterError, NotDeterministic, UsageError
from racevisor.events import EventLog
from racevisor.monitor import Violation
from racevisor.scenario import Case
from racevisor.world import Execution, World

#: How long a host may take to answer a probe.  It answers between two frames, so this is for machines that are gone.
ANSWER_TIMEOUT = 60.0
#: How often one host is asked before all are: a host elsewhere that died keeps this one waiting.
PATIENCE = 32


@dataclass
class LiveOptions:
    """How to run: see `racevisor run --help`."""

    rounds: int = 200
    seed: int = 0
    #: probability that a host lets others go first before it takes a step; None or 0: never
    noise: float | None = 0.1
    #: HOST:PORT of a Ray cluster, "auto", or None for RAY_ADDRESS or an embedded Ray
    address: str | None = None
    #: the run's directory, for its logs; None: no logs
    log_dir: Path | None = None
    #: log every step and tracepoint, on the hosts
    debug_steps: bool = False
    #: seconds that a cluster may take to answer, or hosts to start
    start_timeout: float = 20.0


@dataclass
class Round:
    """One round: how it ended, what is wrong with it, and its steps as (channel, label) in one order that the World repeats."""

    number: int
    outcome: str
    violations: list[Violation]
    status: str  # terminal | violated | bounded
    schedule: list[tuple[str, str]]
    seconds: float
    #: the same steps as the World took them when it checked the round
    execution: Execution = field(repr=False)

    @property
    def bad(self) -> bool:
        """Did it show the outcome that is hunted, or break a check?"""
        return bool(self.violations)


class LiveRun:
    """A context: Ray and one warm host for each simulated actor.  `rounds()` plays."""

    def __init__(self, case: Case, options: LiveOptions) -> None:
        self.case = case
        self.options = options
        self.log_dir = options.log_dir.resolve() if options.log_dir is not None else None
        self.run = ""
        self.number = -1
        self.names: list[str] = []
        self.threads: list[int] = []
        self.handles: list[Any] = []
        self.pids: dict[str, int] = {}
        self.world: World | None = None
        self.events: EventLog | None = None
        self.session = Session(options.address, start_timeout=options.start_timeout)

    def __enter__(self) -> LiveRun:
        try:
            if self.log_dir is not None:
                self.events = EventLog(self.log_dir, "driver", debug=self.options.debug_steps)
            self._know(self.case)
            self.session.open()
            self.handles = [RayHost.remote() for _ in self.names]
            self._prepare()
        except BaseException:
            self.close()
            raise
        return self

    def switch(self, case: Case) -> None:
        """Play another case on the same hosts, which are warm: it must have the same actors."""
        names = self.names
        self._know(case)
        if self.names != names:
            raise UsageError(f"{case} has the actors {', '.join(self.names)}, but the hosts are those of {', '.join(names)}")
        self._prepare()

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if kind is None and self.options.debug_steps and self.log_dir is not None and self.handles:
            self._ask([handle.close.remote() for handle in self.handles], "closing its log")
        self.close()

    def close(self) -> None:
        """End the hosts, and Ray if it was started or joined here.  Takes well under a second."""
        handles, self.handles = self.handles, []
        if self.session.reused or self.session.joined:  # an embedded Ray takes its actors with it
            for handle in handles:
                if ray.is_initialized():
                    ray.kill(handle)
        self.session.close()
        if self.world is not None:
            self.world.close()
        if self.events is not None:
            self.events.close()
            self.events = None

    # ---- hosts --------------------------------------------------------------------------------------------------------------

    def _know(self, case: Case) -> None:
        """Build the machine here too: for the names of its actors, and for the World that repeats the rounds."""
        if self.world is not None:
            self.world.close()
        self.case = case
        self.world = case.world()
        self.names = [actor.name for actor in self.world.vm.actors]
        running = {thread.actor.name for thread in self.world.threads}
        self.threads = [i for i, name in enumerate(self.names) if name in running]

    def _prepare(self) -> None:
        """Tell the hosts what they play, and each other."""
        case, options, source = self.case, self.options, self.case.source
        self.run = uuid.uuid4().hex[:12]  # what is still in flight from before is a stranger's from here on
        refs = []
        for name, handle in zip(self.names, self.handles, strict=True):
            spec = HostSpec(
                run=self.run,
                actor=name,
                path=source.path,
                text=source.text,
                digest=source.digest,
                variant=case.variant_name,
                setup=case.setup,
                memory=case.memory,
                seed=options.seed,
                noise=options.noise or 0.0,
                log_dir=str(self.log_dir) if self.log_dir is not None and options.debug_steps else "",
                vcpus=case.vcpus,
            )
            refs.append(handle.prepare.remote(spec))
        # A worker process takes up to half a second of one core, so a big machine takes longer than a cluster that answers.
        answers = self._ask(refs, "starting", options.start_timeout + 2 * len(refs))
        for name, (pid, wrong) in zip(self.names, answers, strict=True):
            if wrong:
                raise ClusterError(f"host of {name} cannot play {case}: {wrong}")
            self.pids[name] = pid
        self._ask([handle.connect.remote(self.handles) for handle in self.handles], "connecting")

    def _ask(self, refs: list[Any], doing: str, timeout: float = ANSWER_TIMEOUT, hosts: Sequence[int] | None = None) -> list[Any]:
        """The answers of hosts; ClusterError names the first that died, or that does not answer."""
        try:
            answers: list[Any] = ray.get(refs, timeout=timeout)
            return answers
        except RayError as error:
            raise self._lost(refs, doing, timeout, hosts or range(len(refs)), error) from error

    def _lost(self, refs: list[Any], doing: str, timeout: float, hosts: Sequence[int], error: RayError) -> ClusterError:
        late = []
        for host, ref in zip(hosts, refs, strict=True):
            name = self.names[host]
            try:
                ray.get(ref, timeout=0)
            except GetTimeoutError:
                late.append(name)
            except RayActorError as death:
                return ClusterError(f"host of {name} died {doing}\n  Ray says: {_why(death)}\n  finished rounds are kept")
            except RayError as other:
                return ClusterError(f"host of {name} failed {doing}: {other}")
        if late:
            return ClusterError(f"no answer from the host of {', '.join(late)} within {timeout:g} s, {doing}\n  see:  ray status")
        return ClusterError(f"Ray failed {doing}: {error}")

    # ---- rounds -------------------------------------------------------------------------------------------------------------

    def rounds(self) -> Iterator[Round]:
        """Play; a round is given out once it has been repeated by the World.  On any error everything is torn down first."""
        try:
            for number in range(self.options.rounds):
                yield self._round(number)
        except GeneratorExit:
            raise
        except BaseException:
            self.close()
            raise

    def _round(self, number: int) -> Round:
        self.number = number
        begin = time.perf_counter()
        for handle in self.handles:
            handle.begin.remote(number)
        reports = self._finish(number)
        schedule = merge(reports)
        assert self.world is not None
        try:
            execution = replay(self.case, self.world, number, reports, schedule)
        except NotDeterministic as error:
            raise self._unequal(number, reports, schedule, error) from error
        outcome = str(execution.outcome) if execution.outcome is not None else execution.status
        done = Round(number, outcome, execution.violations, execution.status, schedule, time.perf_counter() - begin, execution)
        if self.events is not None:
            self.events.info(
                "round",
                run=self.run,
                round=number,
                actor="",
                step=len(schedule),
                clock=max((report.log[-1][0] for report in reports if report.log), default=0),
                scenario=self.case.scenario.name,
                variant=self.case.variant_name,
                setup=self.case.setup,
                memory=self.case.memory,
                outcome=done.outcome,
                status=done.status,
                violations=[{"check": v.check, "text": v.text, "step": v.step} for v in done.violations],
                steps=len(schedule),
                messages=sum(report.said for report in reports),
                seconds=round(done.seconds, 6),
            )
            self.events.flush()
        return done

    def _finish(self, number: int) -> list[Report]:
        """Wait until nothing is in flight, and bring home what the hosts saw.

        Mattern's four counters: if as many frames were received in a second wave of probes as were sent in a first one that
        ended before, nothing was in flight in between; and a host acts only on frames.  The second wave brings the reports.
        """
        doing = f"in round {number}"
        while True:
            self._until_quiet(doing)
            first = self._probe_all(doing)
            if sum(probe[1] for probe in first) != sum(probe[2] for probe in first):
                continue
            answers = self._ask([handle.report.remote() for handle in self.handles], doing)
            if [probe for probe, _ in answers] == first:
                return [Report(*msgpack.unpackb(data, use_list=False)) for _, data in answers]

    def _until_quiet(self, doing: str) -> None:
        """Ask one host at a time until its thread has nothing to do: whole waves would take the hosts' CPUs away from them."""
        for host in self.threads:
            patience = PATIENCE
            while True:
                probe = self._ask([self.handles[host].probe.remote()], doing, hosts=(host,))[0]
                self._check(probe)
                if probe[3]:
                    break
                patience -= 1
                if not patience:
                    self._probe_all(doing)
                    patience = PATIENCE

    def _probe_all(self, doing: str) -> list[Any]:
        probes = self._ask([handle.probe.remote() for handle in self.handles], doing)
        for probe in probes:
            self._check(probe)
        return probes

    def _check(self, probe: tuple[Any, ...]) -> None:
        if probe[4] is None:
            return
        kind, text = probe[4]
        words = f"live round {self.number} of {self.case}: {text}"
        raise ClusterError(words) if kind == "FrameError" else UsageError(words)

    def _unequal(
        self, number: int, reports: list[Report], schedule: list[tuple[str, str]], error: NotDeterministic
    ) -> NotDeterministic:
        """Keep what is needed to look into a round that the World does not repeat."""
        directory = self.options.log_dir or Path()
        path = directory / f"parity-{self.run}-{number}.json"
        state = {
            name: {"cells": dict(report.cells), "state": dict(report.state), "bounded": report.bounded, "log": report.log}
            for name, report in zip(self.names, reports, strict=True)
        }
        what = {"case": str(self.case), "error": str(error), "schedule": schedule, "hosts": state}
        try:
            path.write_text(json.dumps(what, indent=1, default=repr), encoding="utf-8")
        except OSError as failed:
            return NotDeterministic(f"{error}\n  (its steps could not be saved to {path}: {failed})")
        return NotDeterministic(f"{error}\n  its steps are in {path}: please report it, this is an error of racevisor")


def _why(death: RayActorError) -> str:
    """The one line of Ray's message that says something."""
    lines = [line.strip() for line in str(death).splitlines()]
    said = next((line for line in lines if "exit" in line.lower() or "died" in line), "nothing")
    return said.partition(" Worker exit detail")[0][:200]
