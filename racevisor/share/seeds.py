"""Random walks and PCT shared out: a piece is a range of run numbers, and run i is the same whoever runs it.

A walk depends on nothing but its number.  A run of PCT depends on k as well, the number of steps that its change points are drawn
from, which the runs before it have measured.  So that this does not depend on who is how fast, k changes only between rounds:
the first round measures it, and each round after that is twice as long as the one before; nobody begins a round before the last
one is over.  A round in which a run took more than k steps raises k, and counting begins anew, as in racevisor/strategies/pct.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from racevisor import choose
from racevisor.classes import Certificate
from racevisor.estimate import Estimate, from_share
from racevisor.strategies.pct import CALIBRATION, Pct
from racevisor.strategies.random_walk import RandomWalk
from racevisor.tally import Tally
from racevisor.twins import Recorder
from racevisor.world import Execution

if TYPE_CHECKING:
    from racevisor.choose import Wanted
    from racevisor.scenario import Case

#: Runs of a piece, at most; whoever has it comes home earlier with the rest.
_MOST = 4096
#: Runs of the first round of PCT after those that measure.
_ROUND = 1000


def _sampler(wanted: Wanted, k: int) -> Any:
    if wanted.strategy == "random":
        return RandomWalk(wanted.seed, sys.maxsize)
    pct = Pct(wanted.seed, sys.maxsize, depth=wanted.depth or choose.DEPTH, steps=k or None)
    pct.learns = False  # k changes between rounds only
    return pct


class SeedPool:
    """Of strategy random or pct."""

    states = 0
    exhausted = False

    def __init__(self, case: Case, wanted: Wanted) -> None:
        self.wanted = wanted
        self.tally = Tally()
        self.met = Certificate()
        self.calls: set[str] = set()
        self.runs = choose.run_bound(wanted) or sys.maxsize
        #: keeps the books of all runs; None for random walks
        self.pct: Pct | None = _sampler(wanted, 0) if wanted.strategy == "pct" else None
        self.next = 0  # the first run that nobody has been given
        self.end = self.runs  # of this round
        if self.pct is not None and self.pct.depth > 1:
            self.end = min(self.runs, CALIBRATION)
        self.waiting: list[tuple[int, int, int]] = []  # (number or 0, first run, end), the one that came home last is at the end
        self.given: dict[int, tuple[int, int]] = {}
        self.numbers = 0
        self.asked = 1

    @property
    def done(self) -> bool:
        """Were all runs run?"""
        return not self.given and not self.waiting and self.next >= self.runs

    def give(self) -> tuple[int, Any] | None:
        """The next runs; none where a round has to end first."""
        self.asked = max(self.asked, len(self.given) + 1)
        if self.waiting:
            number, begin, end = self.waiting.pop()
        else:
            number, begin = 0, self.next
            end = min(self.end, begin + max(1, min(_MOST, (self.end - begin) // self.asked)))
            if begin >= end:
                return None
            self.next = end
        if not number:
            self.numbers += 1
            number = self.numbers
        self.given[number] = begin, end
        return number, [begin, end, 0 if self.pct is None else self.pct.k]

    def take(self, number: int, result: Any) -> None:
        """What they showed; what is left of them waits."""
        if number not in self.given:
            kept = [one for one in self.waiting if one[0] == number]
            if not kept:
                return
            self.waiting.remove(kept[0])
            self.given[number] = kept[0][1:]
        _, end = self.given.pop(number)
        if result["next"] < end:
            self.waiting.append((0, result["next"], end))
        self.tally.merge(Tally.of(result["tally"]))
        self.met = self.met.merge(Certificate.of_plain(result["certificate"]))
        self.calls.update(result["calls"])
        pct = self.pct
        if pct is None:
            return
        pct.take(result["books"])
        if self.given or self.waiting or self.next < self.end or self.next >= self.runs:
            return
        if pct.depth > 1:
            pct.raise_k()
        self.end = min(self.runs, self.end + max(_ROUND, self.end))

    def lost(self, number: int) -> None:
        """They are run again."""
        if number in self.given:
            self.waiting.append((number, *self.given.pop(number)))

    def news(self, since: int) -> tuple[int, Any]:
        """None: each piece says all that has to be known."""
        return 0, None

    def certificate(self) -> tuple[Certificate, str] | None:
        """Of all runs, if they were run."""
        return (self.met, "schedules of the runs") if self.done else None

    def estimate(self, seconds: float) -> Estimate | None:
        """Of the runs that were asked for."""
        return from_share(self.tally.runs, self.tally.runs / self.runs, seconds) if self.runs < sys.maxsize else None

    def facts(self) -> dict[str, Any]:
        """What PCT promises."""
        return {"guarantee": None if self.pct is None else self.pct.guarantee()}

    def close(self) -> None:
        """There is nothing to close."""

    def save(self) -> Any:
        """What is handed out is handed out again."""
        return {
            "tally": self.tally.plain(),
            "certificate": self.met.plain(),
            "calls": sorted(self.calls),
            "next": self.next,
            "end": self.end,
            "waiting": [[begin, end] for begin, end in (*(one[1:] for one in self.waiting), *self.given.values())],
            "books": None if self.pct is None else self.pct.books(),
        }

    @classmethod
    def load(cls, case: Case, wanted: Wanted, saved: Any) -> Self:
        """As it was."""
        pool = cls(case, wanted)
        pool.tally = Tally.of(saved["tally"])
        pool.met = Certificate.of_plain(saved["certificate"])
        pool.calls = set(saved["calls"])
        pool.next, pool.end = saved["next"], saved["end"]
        pool.waiting = [(0, begin, end) for begin, end in saved["waiting"]]
        if pool.pct is not None:
            pool.pct.take(saved["books"])
            pool.pct.k = saved["books"][1]
        return pool


class SeedWorker:
    """Runs them."""

    def __init__(self, case: Case, wanted: Wanted, clock: Callable[[], float] = time.perf_counter) -> None:
        self.wanted = wanted
        self.world = case.world(max_steps=wanted.max_steps, calls=Recorder)
        recorder = self.world.vm.calls
        assert isinstance(recorder, Recorder)
        self.recorder = recorder
        self.clock = clock

    def hear(self, news: Any) -> None:
        """There is none."""

    def work(self, piece: Any, seconds: float) -> dict[str, Any]:
        """The runs of the piece, or the first of them."""
        world, clock = self.world, self.clock
        stop = clock() + seconds
        begin, end, k = piece
        sampler = _sampler(self.wanted, k)
        tally, met = Tally(), Certificate()
        run = begin
        while run < end:
            execution = world.run(sampler, run)
            tally.add(execution)
            met = met.add(_key(run, execution))
            sampler.end(execution)
            run += 1
            if clock() >= stop:
                break
        return {
            "tally": tally.plain(),
            "next": run,
            "certificate": met.plain(),
            "calls": sorted(self.recorder.names),
            "books": sampler.books() if isinstance(sampler, Pct) else None,
        }

    def close(self) -> None:
        """Drop the World."""
        self.world.close()


def _key(run: int, execution: Execution) -> int:
    """A name for what a run did: its number, and the channels it moved."""
    text = " ".join([str(run), execution.status, *(step.channel for step in execution.steps)])
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")
