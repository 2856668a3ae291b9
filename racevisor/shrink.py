"""From a bad execution to one that a person can read: the same broken check, with few context switches, actors and steps.

First what did not matter is left out: where a check broke at a step, all that does not happen before that step.  Then the same
trace is written down with few switches (racevisor.linear), and its deviations from a simple scheduler are taken back one after
the other (racevisor.deviations).  Last, a shortest path through the states says whether fewer switches are possible at all
(racevisor.fewest); where that comes to its end, the result is provably minimal, for this case and memory model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from racevisor.deviations import Cost, Deviation, Played, Player, Spent, reduced, switches
from racevisor.errors import NotDeterministic
from racevisor.explore import Witness, witness
from racevisor.fewest import Fewest, FewestSwitches
from racevisor.guard import unguarded
from racevisor.linear import causes, linearized, needed, posts_late
from racevisor.monitor import Violation
from racevisor.scenario import Case
from racevisor.world import World

#: seconds that shrinking may take, unless it is asked for other; executions; states of the search for the fewest switches
SECONDS, EXECUTIONS, STATES = 10.0, 500, 20_000
#: with more threads the last search comes to no end, and is given only so many seconds
WIDE, WIDE_SECONDS = 8, 1.0


@dataclass(frozen=True)
class Size:
    """How long an execution is."""

    steps: int
    switches: int
    actors: int

    @classmethod
    def of(cls, played: Played) -> Size:
        """Of one that was played."""
        steps = played.execution.steps
        return cls(len(steps), switches(steps), len({step.thread for step in steps}))


@dataclass(frozen=True)
class Shrunk:
    """A bad execution and what it was before; what is known of how far it could still be shrunk."""

    witness: Witness
    check: str
    before: Size
    after: Size
    deviations: tuple[Deviation, ...]
    #: no execution that breaks this check has fewer switches than so many
    at_least: int
    #: none of the deviations can be taken back without losing the bug or taking more switches
    one_minimal: bool
    executions: int
    states: int
    seconds: float

    @property
    def minimal(self) -> bool:
        """Is it proved that there is no execution with fewer switches?"""
        return self.at_least >= self.after.switches

    @property
    def worth(self) -> str:
        """How good it is, in words."""
        if self.minimal:
            return "provably the fewest"
        if self.one_minimal:
            return f"1-minimal, {self.at_least} at least" if self.at_least > 1 else "1-minimal"
        return "the best within the budget"

    def sentence(self) -> str:
        """One line for people."""
        old, new = self.before, self.after
        same = (old.steps, old.switches) == (new.steps, new.switches)
        change = f"{_size(new)}, as it was found" if same else f"from {_size(old)} to {_size(new)}"
        actors = f", {old.actors} actors to {new.actors}" if old.actors != new.actors else ""
        return f"shrunk {change}{actors} ({self.worth})" if not same else f"{change} ({self.worth})"

    def to_json(self) -> dict[str, object]:
        """For --json."""
        return {
            "check": self.check,
            "steps": [self.before.steps, self.after.steps],
            "switches": [self.before.switches, self.after.switches],
            "actors": [self.before.actors, self.after.actors],
            "deviations": len(self.deviations),
            "provably_minimal": self.minimal,
            "at_least": self.at_least,
            "one_minimal": self.one_minimal,
            "executions": self.executions,
            "states": self.states,
            "seconds": round(self.seconds, 3),
        }


def _size(size: Size) -> str:
    return f"{size.steps} step{'' if size.steps == 1 else 's'} and {size.switches} switch{'' if size.switches == 1 else 'es'}"


def first_broken(violations: Sequence[Violation]) -> Violation:
    """What an execution is shrunk for: the first check that broke at a step, else the first of those at the end."""
    return next((v for v in violations if v.step is not None), violations[0])


def shrink(
    case: Case,
    schedule: Sequence[str],
    broken: Violation,
    *,
    seconds: float = SECONDS,
    executions: int = EXECUTIONS,
    states: int = STATES,
    clock: Callable[[], float] = time.perf_counter,
) -> Shrunk:
    """The smallest execution of `case` that breaks the check of `broken`, as `schedule` (names of channels) does.

    The budgets are of wall-clock seconds, executions, and states of the last search; what was reached when one is spent is the
    result, and says so.  What the schedule does after that check broke, as a live machine may go on, is left out.
    Raises NotDeterministic if `schedule` does not break that check here.
    """
    world = case.world(max_steps=max(case.max_steps, len(schedule) + 1), automata=True)
    world.judge = unguarded
    try:
        return _Shrinking(world, schedule, broken, seconds, executions, states, clock).run()
    finally:
        world.close()


class _Shrinking:
    def __init__(
        self,
        world: World,
        schedule: Sequence[str],
        broken: Violation,
        seconds: float,
        executions: int,
        states: int,
        clock: Callable[[], float],
    ) -> None:
        self.world = world
        self.schedule = schedule
        self.broken = broken
        self.clock = clock
        self.begun = clock()
        self.seconds = seconds
        self.until = self.begun + seconds
        self.executions = executions
        self.states = states
        self.player = Player(world, broken.check)

    def run(self) -> Shrunk:
        found = self.player.follow(self.schedule)
        if not found.bad:
            raise NotDeterministic(f"the execution to be shrunk does not break check {self.broken.check} when it is run again")
        before = self._size_of_schedule()
        best, whole = self._reduced(self._simpler(found))
        fewest = Fewest(None, 0, 0)
        if whole:
            if len(self.world.threads) > WIDE:
                self.until = min(self.until, self.clock() + WIDE_SECONDS)
            until = self.until
            search = FewestSwitches(
                self.world,
                self.broken.check,
                at_end=self.broken.step is None,
                most=best.cost.switches,
                most_states=self.states,
                enough=lambda: self.clock() >= until,
            )
            search.learn(best.execution.steps)
            fewest = search.search()
            self.world.journal = None
            if fewest.schedule is not None:
                shorter = self._simpler(self.player.follow(fewest.schedule))
                self.until = self.begun + self.seconds
                if shorter.bad and (*_length(shorter), shorter.cost) < (*_length(best), best.cost):
                    best, whole = self._reduced(shorter)
        violations = list(best.execution.violations)
        violations.sort(key=lambda v: v.check != self.broken.check)
        best.execution.violations = violations
        return Shrunk(
            witness=witness(best.execution),
            check=self.broken.check,
            before=before,
            after=Size.of(best),
            deviations=best.deviations,
            at_least=min(fewest.at_least, best.cost.switches),
            one_minimal=whole,
            executions=self.player.executions,
            states=fewest.states,
            seconds=self.clock() - self.begun,
        )

    def _size_of_schedule(self) -> Size:
        """Of what was found, also where it goes on after the check broke."""
        known = self.world.channels
        columns = [known[name].thread for name in self.schedule if name in known]
        return Size(len(self.schedule), sum(a is not b for a, b in pairwise(columns)), len(set(columns)))

    def _look(self) -> None:
        if self.player.executions >= self.executions or self.clock() >= self.until:
            raise Spent

    def _reduced(self, played: Played) -> tuple[Played, bool]:
        try:
            return reduced(self.player, played, self._look, self._simpler), True
        except Spent as spent:
            return spent.args[0], False

    def _simpler(self, played: Played) -> Played:
        """Without the steps that do not matter, and the rest in an order with few switches."""
        steps = list(played.execution.steps)
        past = causes(self.world, steps)
        last = next((v.step for v in played.execution.violations if v.check == self.broken.check), None)
        if last is not None:
            steps, past = needed(steps, past, last)
        ordered = linearized(steps, past)
        names = [ordered[n].channel for n in posts_late(ordered, causes(self.world, ordered))]
        if names == [step.channel for step in played.execution.steps]:
            return played
        other = self.player.follow(names)
        return min(played, other, key=lambda one: one.cost) if other.bad else played


def _length(played: Played) -> tuple[int, int]:
    cost: Cost = played.cost
    return cost.switches, cost.steps
