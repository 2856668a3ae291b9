"""Why did it go wrong?  A bad execution, the pairs of steps whose order decides, and who waits for what, in kernel words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from actors.actor import Cell
from actors.ops import Code, Op, masked
from racevisor.explore import Witness
from racevisor.linear import bits
from racevisor.monitor import Violation
from racevisor.picture import Picture, sentences
from racevisor.reenact import reenact
from racevisor.reversals import Pair, Pick, Races, Reversal, reversals
from racevisor.scenario import Always, Case
from racevisor.shrink import SECONDS, first_broken
from racevisor.step import STORE_BUFFER, Step
from racevisor.words import cell_name, value_name, words
from racevisor.world import Execution, World

#: so many decisive pairs are told; there may be as many as races
TOLD = 5


@dataclass(frozen=True)
class Told:
    """One step in words."""

    n: int
    thread: str
    function: str
    words: str

    def __str__(self) -> str:
        return f"{self.function}(): {self.words}" if self.function else self.words

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {"step": self.n, "thread": self.thread, "function": self.function, "words": self.words}


class Enacted:
    """One execution with its World, and words for its steps."""

    def __init__(self, case: Case, picks: Sequence[Pick], *, past_violations: bool = False) -> None:
        self.world: World
        self.execution: Execution
        self.world, self.execution = reenact(case, list(picks), past_violations=past_violations)
        self._names = {function.__name__: name for name, function in case.variant.replaces.items()}
        self._actors = {thread.actor.name: thread.actor for thread in self.world.threads}

    @property
    def steps(self) -> list[Step]:
        """All of them."""
        return self.execution.steps

    def tell(self, n: int) -> Told:
        """Step `n`."""
        step = self.steps[n]
        function = step.function
        text = words(step, self._actors[step.thread])[0]
        if step.kind == STORE_BUFFER:
            posts = [s for s in self.steps[:n] if s.posted and s.cell is step.cell and s.thread == step.thread]
            function = posts[-1].function if posts else ""
            if posts and any(s.thread != step.thread for s in self.steps[posts[-1].n : n]):
                text += " reaches memory"
        return Told(n, step.thread, self._names.get(function, function), text)


@dataclass(frozen=True)
class ToldPair:
    """A pair that decides.  `second` is None for a thread that waits for ever; `good_first` for a step that does not happen."""

    first: Told
    second: Told | None
    good_first: Told | None
    good_second: Told
    pair: Pair
    reversal: Reversal

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        parts = {name: getattr(self, name) for name in ("first", "second", "good_first", "good_second")}
        return {
            **{name: told and told.to_json() for name, told in parts.items()},
            "lock": self.pair.lock,
            "reversals": self.reversal.turns,
            "good_outcome": self.reversal.outcome,
            "good_schedule": [list(pick) for pick in self.reversal.good],
            "parts_at": self.reversal.common,
        }


@dataclass(frozen=True)
class Wait:
    """A thread that waits for ever: for what, what is there instead since when, and what lets it go on in the good execution."""

    thread: str
    wants: str
    held: str
    since: Told | None
    wakes: Told | None

    def sentences(self) -> list[str]:
        """What to print."""
        found = [f"{self.thread} waits for ever: it wants {self.wants}, and there is {self.held}"]
        if self.since is not None:
            found.append(f"  that was written by {self.since.thread} in step {self.since.n}: {self.since}")
        if self.wakes is not None:
            found.append(f"  in the good order {self.wakes.thread} lets it go on: {self.wakes}")
        return found


@dataclass
class Explanation:
    """All that is known of why one execution is bad."""

    case: Case
    broken: Violation
    bad: Enacted
    races: Races
    pairs: list[ToldPair]
    waits: list[Wait]
    good: Enacted | None

    def why(self, width: int = 78) -> list[str]:
        """One paragraph: the pair, both orders, what happens in each."""
        lines = ["Why:"]
        if not self.pairs:
            lines += _wrapped(self._no_pair(), width)
        else:
            lines += self.pair(self.pairs[0], width)
        for wait in self.waits:
            for sentence in wait.sentences():
                lines += _wrapped(sentence.strip(), width, 2 if sentence.startswith(" ") else 0)
        return lines

    def pair(self, pair: ToldPair, width: int = 78) -> list[str]:
        """Both steps, both orders."""
        first, second = pair.first, pair.second
        named = pair.pair
        if second is not None and named.first == named.second:
            return [
                *_wrapped(f"the answer of {first.thread} at step {first.n} decides: {first}", width, 2),
                *_wrapped(f"with {pair.good_second.words} it ends well: {pair.reversal.outcome}", width),
            ]
        lines = self._row(first, width)
        lines += (
            self._row(second, width)
            if second
            else _wrapped(f"        {pair.good_second.thread} {pair.good_second}, which never comes here", width, 8)
        )
        what = "These are two critical sections, whose order decides" if named.lock else "These two race, and their order decides"
        lines += _wrapped(f"{what}.  In this order: {self._bad_words()}.", width)
        rest = (
            "the other way round"
            if pair.reversal.turns == 1
            else f"with {pair.reversal.turns} races turned, of which this is one,"
        )
        lost = "" if pair.good_first or not second else f" ({first.thread}'s step does not happen then)"
        lines += _wrapped(f"{rest[0].upper()}{rest[1:]} it ends well{lost}: {pair.reversal.outcome}.", width)
        return lines

    def whole(self, width: int = 78) -> list[str]:
        """All decisive pairs, where the good execution parts, what was ordered and what was not."""
        lines = self.why(width)
        for pair in self.pairs[1:TOLD]:
            lines += ["", "Also:", *self.pair(pair, width)]
        more = len(self.races.decisive) - len(self.pairs)
        if more > 0:
            lines += ["", f"... and {more} more races whose reversal ends well, by the same pairs or by others"]
        lines += ["", "What is ordered:", *self.chain(width)]
        if self.pairs and self.good is not None:
            lines += ["", "Where they part:", *self._parting(width)]
        return lines

    def chain(self, width: int = 78) -> list[str]:
        """Happens-before around the pair: what of the other column comes before each step, what the second leads to."""
        if not self.pairs or self.pairs[0].second is None:
            return _wrapped(f"{self.races.races} races, {len(self.pairs)} of them decide", width)
        lines: list[str] = []
        named = self.pairs[0].pair
        assert named.second is not None
        steps, past = self.bad.steps, self.races.past
        for n, other in ((named.first, named.second), (named.second, named.first)):
            thread = steps[other].thread
            own = [m for m in range(n) if steps[m].thread == steps[n].thread]
            before = past[own[-1]] if own else 0
            seen = [m for m in bits(before) if steps[m].thread == thread and m != other]
            what = f"step {seen[-1]}, {self.bad.tell(seen[-1])}" if seen else "nothing"
            lines += _wrapped(f"of {thread}, before step {n} has to come: {what}", width)
        last = max(self.broken.fatal, default=len(steps) - 1) if self.broken.step is None else self.broken.step
        way = [m for m in bits(past[last]) if past[m] >> named.second & 1] if past[last] >> named.second & 1 else []
        crossing = [
            m
            for i, m in enumerate(way)
            if steps[m].cell is not None
            and any(steps[k].cell is steps[m].cell and steps[k].thread != steps[m].thread for k in way[:i])
        ]
        for m in [*crossing[:6], *([last] if last != named.second and last not in crossing[:6] else [])]:
            told = self.bad.tell(m)
            lines += _wrapped(f"after step {named.second}: step {m}, {told.thread}: {told}", width)
        return lines

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "check": self.broken.check,
            "text": self.broken.text,
            "races": self.races.races,
            "decisive": [pair.to_json() for pair in self.pairs],
            "waits": [
                {
                    "thread": wait.thread,
                    "wants": wait.wants,
                    "held": wait.held,
                    "since": wait.since and wait.since.to_json(),
                    "wakes": wait.wakes and wait.wakes.to_json(),
                }
                for wait in self.waits
            ],
        }

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _row(self, told: Told, width: int) -> list[str]:
        lead = f"step {told.n:<4} {told.thread}  "
        return wrap(lead + str(told), width, initial_indent="  ", subsequent_indent=" " * (len(lead) + 4), break_on_hyphens=False)

    def _bad_words(self) -> str:
        return self.broken.text.rstrip(".") or sentences([self.broken])[0]

    def _no_pair(self) -> str:
        if self.case.claimed == Always:
            return "no order of steps helps: every execution is bad, as claimed (Always)."
        if not self.races.races:
            return "no two steps race here: it goes wrong in any order of what the threads do."
        return f"none of the {self.races.races} races decides alone: each was reversed, and it went wrong as well."

    def _parting(self, width: int) -> list[str]:
        reversal = self.pairs[0].reversal
        assert self.good is not None
        n = reversal.common
        lines = _wrapped(f"the first {n} steps are the same" if n else "they part at once", width)
        for what, run in (("bad", self.bad), ("good", self.good)):
            if n < len(run.steps):
                told = run.tell(n)
                lines += _wrapped(f"then, in the {what} one, {told.thread}: {told}", width)
        return lines


def explain(case: Case, witness: Witness, *, seconds: float = SECONDS) -> Explanation:
    """Explain a bad execution of `case`, best one that was shrunk: its races are reversed, and who waits is asked for what.

    At most about `seconds` are spent on reversing races, those that the broken check names first.
    """
    broken = first_broken(witness.violations)
    races = reversals(case, [channel for channel, _ in witness.schedule], broken, seconds=seconds)
    bad = Enacted(case, [*witness.schedule, *races.late], past_violations=bool(races.late))
    pairs: list[ToldPair] = []
    good: Enacted | None = None
    told: set[tuple[int, int | None]] = set()
    for reversal in races.decisive:
        named = next((pair for pair in reversal.pairs if (pair.first, pair.second) not in told), None)
        if named is None or len(pairs) == TOLD:
            continue
        told.add((named.first, named.second))
        one = Enacted(case, reversal.good)
        good = good or one
        pairs.append(
            ToldPair(
                bad.tell(named.first),
                None if named.second is None else bad.tell(named.second),
                None if named.good_first is None else one.tell(named.good_first),
                one.tell(named.good_second),
                named,
                reversal,
            )
        )
    waits = [] if broken.step is not None else _waits(bad, good)
    return Explanation(case, broken, bad, races, pairs, waits, good)


def good_picture(explanation: Explanation) -> tuple[Picture, int] | None:
    """The nearest good execution with the pair marked, and how many steps of its end are left out; None if there is none."""
    good = explanation.good
    if good is None:
        return None
    pair = explanation.pairs[0].pair
    marked = {n for n in (pair.good_first, pair.good_second) if n is not None}
    run = good.execution
    if explanation.broken.step is not None:  # the bad one ends where it breaks: what comes much later here tells nothing more
        end = max(*marked, explanation.broken.step) + 1
        run = Execution(0, run.steps[:end], run.status, [], run.outcome)
    picture = Picture(explanation.case, good.world, run)
    picture.marked = marked
    return picture, len(good.steps) - len(run.steps)


def _waits(bad: Enacted, good: Enacted | None) -> list[Wait]:
    """Who is left in an await that the good execution gets out of, or that it does not come to."""
    found = []
    for thread in bad.world.threads:
        op = thread.op
        if op is None or op.code != Code.AWAIT or op.cell is None:
            continue
        name = thread.actor.name
        nth = sum(step.thread == name and step.op.code == Code.AWAIT and step.cell is op.cell for step in bad.steps)
        writers = [step.n for step in bad.steps if step.cell is op.cell and step.writes]
        wakes = None
        if good is not None:
            cell = next(cell for cell in good.world.vm.cells if cell.label == op.cell.label)
            passed = [s.n for s in good.steps if s.thread == name and s.op.code == Code.AWAIT and s.cell is cell]
            if len(passed) <= nth:
                continue  # it waits there as well, or never has to: not what is wrong
            let = [s.n for s in good.steps[: passed[nth]] if s.cell is cell and s.writes and s.thread != name]
            wakes = good.tell(let[-1]) if let else None
        since = bad.tell(writers[-1]) if writers else None
        found.append(Wait(name, wanted(op, op.cell), value_name(op.cell, op.cell.value), since, wakes))
    return found


def wanted(op: Op, cell: Cell) -> str:
    """What an await waits for, in words."""
    if op.fn == "await_masked":
        return f"{cell_name(cell)} {masked(op)}"
    sign = "&" if op.fn == "await_bits" else "=="
    return f"{cell_name(cell)} {sign} {value_name(cell, op.a)}"


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    return wrap(text, width, initial_indent="  " + " " * indent, subsequent_indent="    " + " " * indent, break_on_hyphens=False)
