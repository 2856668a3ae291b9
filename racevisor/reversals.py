"""Which order decides?  The races of a bad execution, each reversed and judged.

Two steps race if they do not commute and nothing but their own conflict orders them; then there is an execution in which the
later one comes first (C. Flanagan, P. Godefroid: Dynamic Partial-Order Reduction for Model Checking Software, POPL 2005): what
came before the first step, what came after it and does not follow from it, the second step.  How that execution ends is left
to the rest of the bad one, as far as it can still be followed, or to a simple scheduler.  If it ends well the order decides.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from actors.actor import Cell
from actors.ops import Code, Op, may_write
from racevisor.dependence import HappensBefore
from racevisor.deviations import Played, Player
from racevisor.guard import unguarded
from racevisor.linear import bits
from racevisor.monitor import Violation
from racevisor.scenario import Case
from racevisor.step import CHOICE, Step
from racevisor.world import World

#: good executions that are looked for where no single reversal leads to one: how many executions that may take
MORE = 400

Pick = tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """Two steps that do not commute and come in one order in the bad execution, in the other in the good one.

    Steps are numbers: `first` and `second` in the bad execution, `good_first` and `good_second` in the good one.  `second` is
    None for a thread that waits for ever, `good_first` where that step does not happen in the good one.  For a choice, `first`
    and `second` are the same step, and `good_second` is the other answer.
    """

    first: int
    second: int | None
    good_first: int | None
    good_second: int
    lock: bool
    fatal: int  # how many of the two the broken check names
    same_cell: bool

    @property
    def rank(self) -> tuple[object, ...]:
        """What explains most comes first: what the check names, data before locks, the closest."""
        distance = 0 if self.second is None else self.second - self.first
        return -self.fatal, self.lock, not self.same_cell, self.second is None, distance, -self.first


@dataclass(frozen=True)
class Reversal:
    """A race of the bad execution, reversed, and the execution that this led to.

    `pairs` are those whose order is another one there, the one to be named first; the race itself is among them.
    """

    race: Pair | None
    pairs: tuple[Pair, ...]
    good: tuple[Pick, ...]
    outcome: str
    #: how many steps both executions begin with, and how many of the bad one's steps the other has not
    common: int
    changed: int
    #: how many races were reversed one after the other; `race` is None if it was more than one
    turns: int = 1

    @property
    def named(self) -> Pair:
        """The pair that tells what happens."""
        return self.pairs[0]

    @property
    def rank(self) -> tuple[object, ...]:
        """The best named pair first, then the nearest good execution."""
        named = self.named
        return -named.fatal, named.lock, not named.same_cell, named.second is None, self.changed, len(self.pairs), -self.common


@dataclass(frozen=True)
class Races:
    """What reversing found: the reversals after which the end is good, the best one first; how many races there were.

    `past` has for each step those that happen before it, as a bitmask.  `late` is how the bad execution would go on after its
    end, where a step that comes too late decides: the numbers of steps count on there.
    """

    decisive: tuple[Reversal, ...]
    races: int
    executions: int
    past: tuple[int, ...]
    late: tuple[Pick, ...] = ()


def reversals(case: Case, schedule: Sequence[str], broken: Violation, *, executions: int = MORE, seconds: float = 10.0) -> Races:
    """Reverse every race of an execution of `case` that breaks the check of `broken`.

    `schedule` are names of channels; `executions` bounds those that are run where one reversal is not enough, `seconds` is for
    all.  Races between steps that the check names are reversed first.
    """
    world = case.world(max_steps=max(case.max_steps, len(schedule) + 1), automata=True)
    world.judge = unguarded
    try:
        return _Reversing(world, broken, executions, time.perf_counter() + seconds).run(schedule)
    finally:
        world.close()


@dataclass(frozen=True)
class _Race:
    first: int
    second: int | None
    channel: str  # of the step that is to come first
    way: tuple[str, ...]  # the channels up to it
    op: Op


class _Reversing:
    def __init__(self, world: World, broken: Violation, executions: int, until: float) -> None:
        self.world = world
        self.broken = broken
        self.executions = executions
        self.until = until
        self.end = 0  # how many steps the bad execution has
        self.player = Player(world, broken.check)

    def run(self, schedule: Sequence[str]) -> Races:
        """All decisive pairs; if there are none, a row of reversals that ends well."""
        bad = self.player.follow(schedule)
        steps, fatal = list(bad.execution.steps), self._fatal(bad)
        self.end = len(steps)
        races, order = self._races(steps)
        decisive = self._decisive(races, steps, fatal)
        late: list[Step] = []
        here = steps
        if not decisive and self.broken.step is not None:
            # What the others would have done may have come too late.
            here = self._whole(schedule)
            races, order = self._races(here)
            decisive = self._decisive(races, here, fatal)
            late = here[len(steps) :]
        if not decisive:
            decisive = self._in_a_row(here, fatal)
            late = here[len(steps) :] if decisive else []
        told = tuple((step.channel, step.label) for step in late)
        return Races(tuple(decisive), len(races), self.player.executions, tuple(order.past[: len(steps) + len(late)]), told)

    def _decisive(self, races: Sequence[_Race], steps: Sequence[Step], fatal: frozenset[int]) -> list[Reversal]:
        found = []
        for race in sorted(races, key=lambda race: -len({race.first, race.second} & fatal)):
            if time.perf_counter() >= self.until:
                break
            reversal, _ = self._reverse(race, steps, fatal)
            if reversal is not None:
                found.append(reversal)
        return sorted(found, key=lambda one: one.rank)

    def _whole(self, schedule: Sequence[str]) -> list[Step]:
        """The bad execution, also beyond the step at which a check broke."""
        world = self.world
        steps = self.player.follow(schedule).execution.steps
        column = world.channels[steps[-1].channel].thread
        while world.movable and len(world.steps) < world.max_steps:
            channel = self.player.default(column)
            column = channel.thread
            world.step(channel)
        return list(world.steps)

    def _fatal(self, played: Played) -> frozenset[int]:
        return frozenset(n for v in played.execution.violations if v.check == self.broken.check for n in v.fatal)

    def _races(self, steps: Sequence[Step]) -> tuple[list[_Race], HappensBefore]:
        """The races of the World's present execution, which has these steps."""
        world = self.world
        order = HappensBefore(world)
        names = [step.channel for step in steps]
        races: list[_Race] = []
        found = []
        for n, step in enumerate(steps):
            channel = world.channels[step.channel]
            found += [(earlier, n, step.channel, step.op) for earlier, _ in order.extend(channel, step)]
            if channel.kind == CHOICE:
                others = [f"{step.thread}?{i}" for i in range(step.op.a)]
                races += [_Race(n, n, other, tuple(names[:n]), step.op) for other in others if other != step.channel]
        for earlier, n, name, op in found:
            between = bits(order.way(earlier) & (1 << n) - 1)
            races.append(_Race(earlier, n, name, (*names[:earlier], *(names[m] for m in between)), op))
        if not world.movable:
            for thread in world.threads:
                waits = thread.op
                if waits is not None and thread.channel.at < 0:
                    for earlier, _ in order.blocked(thread):
                        between = bits(order.way(earlier))
                        way = (*names[:earlier], *(names[m] for m in between))
                        races.append(_Race(earlier, None, thread.channel.name, way, waits))
        return races, order

    def _reverse(self, race: _Race, steps: Sequence[Step], fatal: frozenset[int]) -> tuple[Reversal | None, Played | None]:
        """The reversal if it ends well; an execution in which it was made, however that ends."""
        names = [step.channel for step in steps]
        head = (*race.way, race.channel)
        left = Counter(head)
        rest = []
        for name in names:
            if left[name]:
                left[name] -= 1
            else:
                rest.append(name)
        made = None
        for completion in (rest, ()):
            played = self.player.follow((*head, *completion))
            taken = played.execution.steps
            if [step.channel for step in taken[: len(head)]] != list(head):
                if not played.bad and len(taken) < len(head):
                    continue
                return None, None  # the second step cannot come first after all
            if made is None or played.bad:
                made = played
            if played.execution.status == "terminal" and not played.execution.violations:
                return self._told(race, steps, fatal, played), played
        return None, made

    def _told(self, race: _Race | None, steps: Sequence[Step], fatal: frozenset[int], played: Played) -> Reversal:
        taken = played.execution.steps
        common = 0
        for a, b in zip(steps, taken, strict=False):
            if a.channel != b.channel or a.label != b.label:
                break
            common += 1
        again = _again(steps, taken)
        locks = {step.cell for step in steps if step.op.code == Code.AWAIT and may_write(step.op)}
        pairs: dict[tuple[int, int | None], Pair] = {}
        itself = None
        if race is not None:
            first = steps[race.first]
            itself = pairs[race.first, race.second] = Pair(
                first=race.first,
                second=race.second,
                good_first=again.get(race.first) if race.first != race.second else None,
                good_second=len(race.way),
                lock=race.op.cell in locks or first.cell in locks,
                fatal=len({race.first, race.second} & fatal),
                same_cell=first.cell is race.op.cell,
            )
        for pair in _turned(steps, again, fatal, locks):
            if pair.first < self.end:  # two steps that both come after the bad end explain nothing of it
                pairs.setdefault((pair.first, pair.second), pair)
        mine = Counter((step.channel, step.label) for step in steps)
        changed = sum((mine - Counter((step.channel, step.label) for step in taken)).values())
        return Reversal(
            race=itself,
            pairs=tuple(sorted(pairs.values(), key=lambda pair: pair.rank)),
            good=tuple((step.channel, step.label) for step in taken),
            outcome=str(played.execution.outcome),
            common=common,
            changed=changed,
        )

    def _in_a_row(self, steps: Sequence[Step], fatal: frozenset[int]) -> list[Reversal]:
        """Reversals one after the other, breadth first, until an execution ends well; as one, with the pairs that it turned."""
        begin = tuple(step.channel for step in steps)
        seen = {begin}
        waiting: list[tuple[tuple[str, ...], int]] = [(begin, 1)]
        while waiting:
            schedule, turns = waiting.pop(0)
            here = self._whole(schedule)
            for race in self._races(here)[0]:
                if self.player.executions >= self.executions or time.perf_counter() >= self.until:
                    return []
                good, made = self._reverse(race, here, fatal)
                if good is not None:
                    assert made is not None
                    told = self._told(None, steps, fatal, made)
                    if told.pairs:
                        return [replace(told, turns=turns)]
                elif made is not None:
                    names = tuple(step.channel for step in made.execution.steps)
                    if names not in seen:
                        seen.add(names)
                        waiting.append((names, turns + 1))
        return []


def _again(steps: Sequence[Step], taken: Sequence[Step]) -> dict[int, int]:
    """Which step of the second execution is which of the first: the same access to the same cell, for the same time."""

    def names(run: Sequence[Step]) -> Iterator[tuple[object, int]]:
        count: Counter[object] = Counter()
        for step in run:
            key = (step.channel, step.op.code, step.op.fn, step.cell)
            count[key] += 1
            yield (key, count[key]), step.n

    there = dict(names(taken))
    return {n: there[key] for key, n in names(steps) if key in there}


def _turned(steps: Sequence[Step], again: dict[int, int], fatal: frozenset[int], locks: set[Cell | None]) -> Iterator[Pair]:
    """Accesses of two columns to one cell, one of them a write, whose order is another one there."""
    by_cell: dict[Cell, list[int]] = {}
    for step in steps:
        if step.cell is not None and not step.posted and step.n in again:
            by_cell.setdefault(step.cell, []).append(step.n)
    for cell, numbers in by_cell.items():
        for i, second in enumerate(numbers):
            for first in numbers[:i]:
                a, b = steps[first], steps[second]
                if a.thread != b.thread and (a.writes or b.writes) and again[first] > again[second]:
                    yield Pair(first, second, again[first], again[second], cell in locks, len({first, second} & fatal), True)
