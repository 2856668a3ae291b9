"""Rounds of a scenario on real parallel hardware, each held against the World."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray.exceptions import RayError

from actors.ops import describe
from cluster.accounts import Account, Accounts
from cluster.conductor import Conductor, Finished
from cluster.engine import Record
from cluster.hosts import HostLost, Hosts
from cluster.nodes import machines
from cluster.parity import Parity, Report, merge, schedule_of
from cluster.placement import AUTO, Plan, make_plan
from cluster.session import Session
from racevisor import __version__
from racevisor.errors import ClusterError, NotDeterministic, UsageError
from racevisor.events import EventLog
from racevisor.monitor import Violation
from racevisor.scenario import Case
from racevisor.world import Execution, World

#: How long the driver waits for a frame before it looks after the hosts, in seconds.
LOOK_UP = 0.25
#: Of rounds whose end nobody has accounted for.
UNKNOWN = "not accounted for"
#: So often may one host die in a row without a finished round in between.
DEATHS = 5


@dataclass
class LiveOptions:
    """How to run: see `racevisor run --help`."""

    rounds: int = 200
    seed: int = 0
    #: probability that a thread lets others go first before it takes a step; None or 0: never
    noise: float | None = 0.1
    #: HOST:PORT of a Ray cluster, "auto", or None for RAY_ADDRESS or an embedded Ray
    address: str | None = None
    #: the run's directory, for its logs; None: no logs
    log_dir: Path | None = None
    #: log every step and tracepoint, on the hosts
    debug_steps: bool = False
    #: seconds that a cluster may take to answer, or hosts to start
    start_timeout: float = 20.0
    #: seconds that a host may be silent before it is asked whether it is there, and then before it is given up
    silence: float = 5.0
    give_up: float = 20.0
    #: auto, dedicated, packed, or a JSON file
    placement: str = AUTO
    #: processes that packed actors share; None: one for each CPU
    hosts: int | None = None
    #: independent virtual machines that play at the same time
    vms: int = 1
    #: sockets or ray; always ray through Ray Client, where no socket finds its way back to the driver for certain
    transport: str = "sockets"
    #: number of the first round, and how many rounds were finished before
    first: int = 0
    finished: int = 0
    #: seconds after which no more rounds begin; None: `rounds` decides
    duration: float | None = None
    #: bound the size of the driver's log: older rounds are dropped
    bounded_log: bool = False
    #: keep what is needed to hold a round against the World; False only to measure what that costs: rounds have no outcome then
    recording: bool = True
    #: steps are granted one by one
    gated: bool = False


@dataclass
class Round:
    """One round: how it ended, what is wrong with it, and its steps."""

    number: int
    #: how it ended, in the scenario's words; "" if it was not judged
    outcome: str
    violations: list[Violation]
    status: str  # terminal | violated | bounded | unjudged
    #: seconds from its begin until it was over
    seconds: float
    #: messages between actors, and those of them that left a host
    messages: int
    crossed: int
    #: the same steps as the World took them when it checked the round, valid until the next round is checked; None: unjudged
    execution: Execution | None = field(repr=False)
    #: of a bad round, the threads that wait at its end, and for what
    waiting: tuple[str, ...] = ()

    @property
    def bad(self) -> bool:
        """Did it show the outcome that is hunted, or break a check?"""
        return bool(self.violations)

    @property
    def schedule(self) -> list[tuple[str, str]]:
        """(channel, label) of its steps in one order that the World repeats; none if it was not judged."""
        return schedule_of(self.execution) if self.execution is not None else []


@dataclass(frozen=True)
class Aborted:
    """Rounds that were given up because a host was lost: no outcome, and counted by themselves."""

    numbers: tuple[int, ...]
    #: the host, or several with commas, as when a machine goes
    host: str
    #: what is known of the first
    why: str
    #: what became of all that was sent in them; None: play ended before that was known
    account: Account | None = None
    #: is there another process in the place of each?
    replaced: bool = False


def unjudged(done: Finished) -> Round:
    """A round of which nobody can say how it ended, for its steps were not kept: it is counted, and claims nothing."""
    messages = sum(report.said for report in done.reports)
    crossed = sum(report.crossed for report in done.reports)
    return Round(done.number, "", [], "unjudged", done.seconds, messages, crossed, None)


class LiveRun:
    """A context: Ray, and warm hosts for the simulated actors.  `rounds()` plays."""

    def __init__(self, case: Case, options: LiveOptions) -> None:
        self.case = case
        self.options = options
        self.log_dir = options.log_dir.resolve() if options.log_dir is not None else None
        self.names: list[str] = []
        self.world: World | None = None
        self.parity: Parity | None = None
        self.events: EventLog | None = None
        self.plan: Plan | None = None
        self.hosts: Hosts | None = None
        self.aborted: list[Aborted] = []
        self.session = Session(options.address, start_timeout=options.start_timeout)

    @property
    def run(self) -> str:
        """The run's id: in its logs, and in the names of its traces."""
        return self.hosts.run if self.hosts is not None else ""

    @property
    def pids(self) -> dict[str, int]:
        """The process of each host, by name."""
        return self.hosts.pids if self.hosts is not None else {}

    @property
    def alive(self) -> int:
        """How many hosts there are."""
        return self.plan.hosts if self.plan is not None else 0

    def __enter__(self) -> Self:
        try:
            if self.log_dir is not None:
                self.events = EventLog(self.log_dir, "driver", debug=self.options.debug_steps, bounded=self.options.bounded_log)
            self._know(self.case)
            self.session.open()
            options = self.options
            self.plan = make_plan(self.names, self.session.pulse.call(machines), options.placement, options.hosts, options.vms)
            transport = "ray" if self.session.client else options.transport
            self.hosts = Hosts(self.plan, self.names, transport, options.start_timeout, self.session.pulse)
            self.hosts.start()
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
        if (
            kind is None
            and self.options.debug_steps
            and self.log_dir is not None
            and self.hosts is not None
            and self.hosts.handles
        ):
            self.hosts.close_logs()
        self.close()

    def close(self) -> None:
        """End the hosts, and Ray if it was started or joined here.  Takes well under a second."""
        if self.hosts is not None:
            self.hosts.kill(there=self.session.reused or self.session.joined)
        self.session.close()
        if self.world is not None:
            self.world.close()
        if self.events is not None:
            self.events.close()
            self.events = None

    def _know(self, case: Case) -> None:
        """Build the machine here too: for the names of its actors, and for the World that repeats the rounds."""
        if self.world is not None:
            self.world.close()
        self.case = case
        self.world = case.world()
        self.parity = Parity(case, self.world)
        self.names = [actor.name for actor in self.world.vm.actors]

    def _prepare(self) -> None:
        assert self.hosts is not None
        log_dir = str(self.log_dir) if self.log_dir is not None and self.options.debug_steps else ""
        deaths = 0
        while True:
            try:
                self.hosts.prepare(self.case, self.options, log_dir)
                return self._say_what_is_played()
            except HostLost as death:  # no round is lost yet
                deaths += 1
                if death.late or deaths > DEATHS:
                    raise
                self.hosts.again(death.host)

    def _say_what_is_played(self) -> None:
        """The first line of a run's log: all that one would ask of its rounds later."""
        hosts, options = self.hosts, self.options
        if self.events is None or hosts is None:
            return
        self.events.info(
            "run",
            run=self.run,
            round=options.first,
            actor="",
            step=0,
            clock=0,
            **self._case_fields(),
            claimed=self.case.claimed,
            digest=self.case.source.digest,
            seed=options.seed,
            noise=options.noise or 0.0,
            transport=hosts.transport,
            vms=options.vms,
            hosts=hosts.names,
            machines=[machine.ip for machine in hosts.plan.machines],
            racevisor=__version__,
        )
        self.events.flush()

    def _case_fields(self) -> dict[str, Any]:
        """What is played, and where: part of each round, for the line of the run may be dropped from a bounded log."""
        case = self.case
        return {
            "scenario": case.scenario.name,
            "variant": case.variant_name,
            "setup": case.setup,
            "memory": case.memory,
            "vcpus": case.vcpus,
            "placement": self.hosts.plan.kind if self.hosts is not None else "",
        }

    # ---- rounds -------------------------------------------------------------------------------------------------------------

    def rounds(self) -> Iterator[Round]:
        """Play; a round is given out once it has been repeated by the World.  On any error everything is torn down first."""
        try:
            yield from self._play()
        except GeneratorExit:
            raise
        except (RayError, ConnectionError) as error:  # Ray itself, not a host of ours: those are replaced
            self.close()
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterError(f"the cluster failed: {said[0][:200]}\n  finished rounds are kept; see:  ray status") from error
        except BaseException:
            self.close()
            raise

    def _play(self) -> Iterator[Round]:
        hosts, options = self.hosts, self.options
        assert hosts is not None and hosts.conductor is not None and hosts.wire is not None
        conductor, wire = hosts.conductor, hosts.wire
        self._next, self._left = options.first, options.rounds
        self._deadline = time.perf_counter() + options.duration if options.duration is not None else math.inf
        self._finished = options.finished
        deaths: Counter[int] = Counter()  # of each host, since the last finished round
        conductor.abort()  # of an earlier call that was left
        conductor.over = lambda vm: self._begin(conductor, vm)  # while the reports of the one before come home
        for vm in range(options.vms):
            self._begin(conductor, vm)
        while conductor.plays or conductor.collecting:
            for data in wire.receive(LOOK_UP):
                for done in self._receive(conductor, data):
                    deaths.clear()
                    yield self._judge(done)
            lost = hosts.lost() if conductor.plays or conductor.collecting else None
            if lost is not None:
                self._replace(hosts, conductor, lost, deaths)

    def _receive(self, conductor: Conductor, data: bytes) -> list[Finished]:
        try:
            return conductor.receive(data)
        except (UsageError, ClusterError) as error:
            raise type(error)(f"{error}\n  in {self.case}") from error

    def _begin(self, conductor: Conductor, vm: int) -> None:
        late = time.perf_counter() >= self._deadline and self._next > self.options.first
        if self._left > 0 and not late:
            self._left -= 1
            conductor.begin(vm, self._next)
            self._next += 1

    def _replace(self, hosts: Hosts, conductor: Conductor, lost: tuple[int, str], deaths: Counter[int]) -> None:
        """A host is lost: its cells are gone, so every round that it was part of is.  Another takes its place.

        So do others for those that are found to be lost meanwhile, as when a machine goes with all that it held.
        """
        rounds, accounts = conductor.give_up(lost[0])
        numbers = tuple(sorted(number for _, number in rounds))
        self.aborted.append(Aborted(numbers, hosts.names[lost[0]], lost[1]))
        todo = [lost]
        try:
            self._account(hosts, conductor, accounts, todo)
        finally:  # also where that is interrupted
            for one in todo:
                self._tell(hosts, one)
        host = lost[0]
        while todo:
            while todo:
                host, reason = todo.pop(0)
                deaths[host] += 1
                if deaths[host] > DEATHS:
                    raise ClusterError(
                        f"host {hosts.names[host]} died in round {numbers[0]}: {reason}\n"
                        f"  it died {deaths[host]} times in a row without a finished round in between; finished rounds are kept"
                    )
                try:
                    hosts.replace(host, self.case)
                except HostLost as death:
                    todo.append((death.host, "it died while it was told what to play"))
                    self._tell(hosts, todo[-1])
            # What they are told of each other comes in its order, so who knows the last one knows all.
            more = self._met(hosts, conductor, host)
            if more is not None:
                todo.append(more)
                self._tell(hosts, more)
        self.aborted[-1] = replace(self.aborted[-1], replaced=True)
        self.plan = hosts.plan
        self._left += len(numbers)
        for vm in range(self.options.vms):
            self._begin(conductor, vm)

    def _account(self, hosts: Hosts, conductor: Conductor, accounts: Accounts, todo: list[tuple[int, str]]) -> None:
        """Wait until those that are left have accounted for the aborted rounds; whoever is lost meanwhile is added to `todo`."""
        assert hosts.wire is not None
        deadline = time.perf_counter() + self.options.silence + self.options.give_up + self.options.start_timeout
        while not accounts.closed():
            for data in hosts.wire.receive(LOOK_UP):
                self._receive(conductor, data)
            lost = hosts.lost() if not accounts.closed() else None
            if lost is not None:
                accounts.drop(lost[0])
                todo.append(lost)
            elif time.perf_counter() > deadline and not accounts.closed():
                names = ", ".join(hosts.names[host] for host in accounts.waiting)
                raise ClusterError(f"the messages of aborted rounds are not accounted for: {names} not done\n  see:  ray status")
        conductor.accounts = None
        self.aborted[-1] = replace(self.aborted[-1], account=accounts.settle())

    def _tell(self, hosts: Hosts, lost: tuple[int, str]) -> None:
        """Note and log that a host was lost in the rounds that were aborted last."""
        host, reason = lost
        gone, name = self.aborted[-1], hosts.names[host]
        names = gone.host.split(", ")
        if name not in names:
            gone = self.aborted[-1] = replace(gone, host=", ".join([*names, name]))
        if self.events is not None:
            account = gone.account
            amounts = {"parts": account.parts._asdict(), "messages": account.messages._asdict()} if account is not None else {}
            said = str(account) if account is not None else UNKNOWN
            rounds = list(gone.numbers)
            self.events.info("aborted", run=self.run, rounds=rounds, host=name, why=reason, account=said, **amounts)
            self.events.flush()

    def _met(self, hosts: Hosts, conductor: Conductor, host: int) -> tuple[int, str] | None:
        """Wait until all others know the new host; or until one of them is found to be lost as well."""
        assert hosts.wire is not None
        deadline = time.perf_counter() + self.options.silence + self.options.give_up + self.options.start_timeout
        while not conductor.all_met(host, conductor.link.incarnations[host]):
            for data in hosts.wire.receive(LOOK_UP):
                self._receive(conductor, data)
            lost = hosts.lost()
            if lost is not None:
                return lost
            if time.perf_counter() > deadline:
                raise ClusterError(f"host {hosts.names[host]} was replaced, but not all others answer\n  see:  ray status")
        return None

    def _judge(self, done: Finished) -> Round:
        assert self.parity is not None
        if not self.options.recording:
            return unjudged(done)
        records = merge(done.reports)
        number = done.number
        try:
            execution = self.parity.replay(number, done.reports, records)
        except NotDeterministic as error:
            raise self._unequal(number, done.reports, records, error) from error
        outcome = str(execution.outcome) if execution.outcome is not None else execution.status
        messages = sum(report.said for report in done.reports)
        crossed = sum(report.crossed for report in done.reports)
        self._finished += 1
        played = Round(number, outcome, execution.violations, execution.status, done.seconds, messages, crossed, execution)
        played.waiting = self._waiting() if played.bad and execution.status != "bounded" else ()
        if self.events is not None:
            self.events.info(
                "round",
                run=self.run,
                round=number,
                count=self._finished,
                actor="",
                step=len(records),
                clock=records[-1][0] if records else 0,
                **self._case_fields(),
                outcome=played.outcome,
                status=played.status,
                waiting=[*played.waiting],
                violations=[{"check": v.check, "text": v.text, "step": v.step} for v in played.violations],
                steps=len(records),
                messages=messages,
                crossed=crossed,
                seconds=round(played.seconds, 6),
            )
            self.events.flush()
        return played

    def _waiting(self) -> tuple[str, ...]:
        """Who waits for what where nothing can move any more: the thread, and the op that holds it."""
        assert self.world is not None
        return tuple(f"{thread.actor.name}: {describe(thread.op)}" for thread in self.world.threads if thread.op is not None)

    def _unequal(
        self, number: int, reports: Sequence[Report], records: list[Record], error: NotDeterministic
    ) -> NotDeterministic:
        """Keep what is needed to look into a round that the World does not repeat."""
        directory = self.options.log_dir or Path()
        path = directory / f"parity-{self.run}-{number}.json"
        hosts = [report._asdict() for report in reports]
        what = {"case": str(self.case), "error": str(error), "records": records, "actors": self.names, "hosts": hosts}
        try:
            path.write_text(json.dumps(what, indent=1, default=repr), encoding="utf-8")
        except OSError as failed:
            return NotDeterministic(f"{error}\n  (its steps could not be saved to {path}: {failed})")
        return NotDeterministic(f"{error}\n  its steps are in {path}: please report it, this is an error of racevisor")
