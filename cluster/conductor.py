"""The driver's end of a live run: begins rounds, notices that they have ended, brings home what the hosts saw.  No Ray in here.

A round has ended when nothing is in flight and no host has a step to take.  Nobody asks for that while it is not so: a host
speaks up when it runs out of work without having sent anything in that turn, for the last thing that happens in a round is that
some host does.  It says then how many parts it has sent to and got from each other; these counts are kept.  Channels keep their
order, so if what each got is what was sent to it, and all were idle when they counted, the counts are one consistent cut, all
channels in it are empty, and the round is over (Mattern, "Algorithms for distributed termination detection", 1987): a host of
which another has got more than it knew to have sent, or which was busy, has counted too early and is asked again.  If it has,
although it was asked after somebody had spoken up, then that was not the last thing that happened, and somebody else will.
What that costs depends on what happened, not on how long it took: a machine that waits for a slow host, or for ever, costs
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cluster.accounts import Accounts
from cluster.counts import Counts
from cluster.link import Link
from cluster.messages import (
    ARRIVED,
    BEGIN,
    COLLECT,
    COUNTS,
    CUT,
    FAILURE,
    HERE,
    IDLE,
    MEET,
    MET,
    MOVED,
    NO_VM,
    PING,
    PROBE,
    REPORT,
    STOP,
    STOPPED,
    FrameError,
    Message,
    name_of,
)
from cluster.parity import Report
from racevisor.errors import ClusterError, RacevisorError, UsageError


class Finished(NamedTuple):
    """A round that has ended: on which machine, its number, what each host saw, and how long it was played, in seconds."""

    vm: int
    number: int
    reports: list[Report]
    seconds: float


class _Play:
    """A round that is being played."""

    def __init__(self, number: int, hosts: int) -> None:
        self.number = number
        self.begun = time.perf_counter()
        self.wave = 0
        self.seconds = 0.0  # from its begin until it was over
        self.counts = Counts(hosts)
        self.asking = False  # whether it is over
        self.again = False  # somebody ran out of work since that began
        self.width = 1  # how many of those that are taken to be busy are asked at once
        self.fresh: set[int] = set()  # who has answered since that began
        self.waiting: set[int] = set()  # who has to answer yet
        self.reports: dict[int, Report] = {}


class Conductor:
    """Plays rounds on `vms` virtual machines, each spread over hosts 0 to `hosts` - 1."""

    def __init__(self, link: Link, hosts: int, vms: int = 1) -> None:
        self.link = link
        self.hosts = hosts
        self.vms = vms
        self.plays: dict[int, _Play] = {}  # by machine
        self.collecting: dict[tuple[int, int], _Play] = {}  # by machine and number: over, and their reports on the way
        self.accounts: Accounts | None = None  # of the rounds that were given up, while they are made
        self.over: Callable[[int], None] = lambda vm: None  # called when a machine may play the next round
        self.asked = 0  # how many questions it took to know what was over
        self.heard: dict[int, float] = dict.fromkeys(range(hosts), time.perf_counter())  # when each host spoke last
        self.met: set[tuple[int, int, int]] = set()  # (host, replaced host, incarnation)
        self.moved: list[Message] = []  # gated: what the hosts say of what was granted

    def begin(self, vm: int, number: int) -> None:
        """Start round `number` on a machine that plays none.  Numbers grow."""
        self.plays[vm] = _Play(number, self.hosts)
        self._all(vm, number, (BEGIN,))

    def abort(self) -> list[tuple[int, int]]:
        """Forget the rounds that are being played; (machine, number) of each.  A round begun later drops what is in flight."""
        lost = sorted([*self.collecting, *((vm, play.number) for vm, play in self.plays.items())])
        self.plays.clear()
        self.collecting.clear()
        return lost

    def give_up(self, lost: int) -> tuple[list[tuple[int, int]], Accounts]:
        """A host is lost: abort, and have those that are left account for what was played; (machine, number) of each round."""
        playing = {(vm, play.number): play.counts for vm, play in self.plays.items()}
        over = [play.counts for play in self.collecting.values()]
        accounts = self.accounts = Accounts(self.hosts, lost, playing, over)
        left = tuple(accounts.left)
        for host in left:
            self.link.say(host, [(vm, number, 0, [(CUT, left)]) for vm, number in playing])
        return self.abort(), accounts

    def stop(self) -> None:
        """Tell the hosts that this was all."""
        self._all(NO_VM, 0, (STOP,))

    def ping(self, host: int) -> None:
        """Ask one host whether it is there."""
        self.link.say(host, [(NO_VM, 0, 0, [(PING,)])])

    def say(self, host: int, vm: int, number: int, one: Message) -> None:
        """One message to one host."""
        self.link.say(host, [(vm, number, 0, [one])])

    def introduce(self, host: int, incarnation: int, address: str) -> None:
        """Tell the others where the replaced host is found; `met` collects who knows."""
        for other in range(self.hosts):
            if other != host:
                self.link.say(other, [(NO_VM, 0, 0, [(MEET, host, incarnation, address)])])

    def all_met(self, host: int, incarnation: int) -> bool:
        """Does every other host know the replaced one?"""
        return all(other == host or (other, host, incarnation) in self.met for other in range(self.hosts))

    def receive(self, data: bytes) -> list[Finished]:
        """One frame of a host; the rounds that it completes.  Raises what went wrong on a host."""
        frame = self.link.hear(data)
        if frame is None:
            return []
        sender = frame.sender
        if not 0 <= sender < self.hosts:
            raise FrameError(f"a frame came from {name_of(sender)}; there are {self.hosts} hosts")
        self.heard[sender] = time.perf_counter()
        done: list[Finished] = []
        for part in frame.parts:
            for one in part.messages:
                self._hear(sender, part.vm, part.round, one, done)
        return done

    def _hear(self, sender: int, vm: int, round_: int, one: Message, done: list[Finished]) -> None:
        tag = one[0]
        if tag == FAILURE:
            raise self._failure(sender, vm, one[1], one[2])
        if tag == MET:
            self.met.add((sender, one[1], one[2]))
            return
        if tag == HERE:
            return
        if tag == MOVED:
            self.moved.append(one)
            return
        if tag == REPORT:
            self._report(sender, vm, round_, one, done)
            return
        play = self.plays.get(vm)
        if play is None or play.number != round_:  # of a round that was given up
            if self.accounts is not None and tag in (STOPPED, ARRIVED):
                self.accounts.hear(sender, vm, round_, one)
            return
        if tag == IDLE:
            if play.asking:
                play.again = True
            # At first those speak up that have nothing to do of themselves.  Whoever has been silent until then will yet, or he
            # has sent something; and what comes of that makes somebody speak up who has got something.
            elif play.counts.exchanged or not play.counts.unheard:
                self._ask(vm, play)
        elif tag == COUNTS:
            _, wave, busy, sent, received = one
            if len(sent) != self.hosts or len(received) != self.hosts:
                raise FrameError(
                    f"a frame of {name_of(sender)} counts {len(sent)} and {len(received)} hosts; there are {self.hosts}"
                )
            play.counts.put(sender, busy, sent, received)
            if sender in play.waiting and wave == play.wave:
                play.waiting.discard(sender)
                play.fresh.add(sender)
                if not play.waiting:
                    self._judge(vm, play)
        else:
            raise FrameError(f"a frame of {name_of(sender)} holds a message that only the driver may send: {one!r:.80}")

    def _report(self, sender: int, vm: int, number: int, one: Message, done: list[Finished]) -> None:
        play = self.collecting.get((vm, number))
        if play is None:
            return  # of a round that was given up
        play.reports[sender] = Report(*one[1:])
        if len(play.reports) == self.hosts:
            del self.collecting[vm, number]
            reports = [play.reports[host] for host in range(self.hosts)]
            done.append(Finished(vm, number, reports, play.seconds))

    def _ask(self, vm: int, play: _Play) -> None:
        """Somebody ran out of work: is it over?"""
        play.asking, play.again, play.width = True, False, 1
        play.fresh.clear()
        self._judge(vm, play)

    def _judge(self, vm: int, play: _Play) -> None:
        """As far as is known, is it over; and if not, who has to be asked?"""
        early, busy = play.counts.early(), play.counts.busy
        if not early and not busy:
            play.asking = False
            self.collect(vm, play.number)
        elif not play.fresh.isdisjoint(early | busy):  # something has happened since, so somebody will speak up again, or has
            play.asking = False
            if play.again:
                self._ask(vm, play)
        else:
            # One of those that were busy most often still is, and one answer is enough to know: so few at first, then more.
            some = early or sorted(busy)[: play.width]
            play.width *= 2
            play.wave += 1
            play.waiting = set(some)
            for host in sorted(some):
                self.asked += 1
                self.link.say(host, [(vm, play.number, 0, [(PROBE, play.wave)])])

    def collect(self, vm: int, number: int) -> None:
        """The round is over: have its reports sent; the machine may play on meanwhile."""
        play = self.collecting[vm, number] = self.plays.pop(vm)
        play.seconds = time.perf_counter() - play.begun
        self._all(vm, number, (COLLECT,))
        self.over(vm)

    def _all(self, vm: int, number: int, one: Message) -> None:
        for host in range(self.hosts):
            self.link.say(host, [(vm, number, 0, [one])])

    def _failure(self, sender: int, vm: int, kind: str, text: str) -> RacevisorError:
        play: Any = self.plays.get(vm) or next(iter(self.plays.values()), None)
        words = f"live round {play.number}: {text}" if play is not None else f"{name_of(sender)}: {text}"
        return ClusterError(words) if kind in ("FrameError", "ClusterError") else UsageError(words)
