"""What the executions of one search showed: how many, how they ended, and the ones to keep.  Two searches add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from racevisor.monitor import Violation
from racevisor.world import Execution


@dataclass
class Witness:
    """One execution that shows something: its schedule as (channel, label) pairs, and how it was judged."""

    schedule: list[tuple[str, str]]
    violations: list[Violation]
    outcome: str
    status: str
    run: int

    def plain(self) -> list[Any]:
        """As plain data."""
        violations = [[v.check, v.text, list(v.fatal), v.step] for v in self.violations]
        return [[list(pick) for pick in self.schedule], violations, self.outcome, self.status, self.run]

    @classmethod
    def of(cls, plain: list[Any]) -> Self:
        """From plain data."""
        schedule, broken, outcome, status, run = plain
        violations = []
        for check, text, fatal, step in broken:
            violations.append(Violation(check, text, tuple(fatal)))
            violations[-1].step = step
        return cls([(channel, label) for channel, label in schedule], violations, outcome, status, run)


def witness(execution: Execution) -> Witness:
    """Keep an execution."""
    schedule = [(step.channel, step.label) for step in execution.steps]
    return Witness(schedule, list(execution.violations), str(execution.outcome), execution.status, execution.run)


class Tally:
    """What the executions of one search showed."""

    def __init__(self) -> None:
        self.runs = self.complete = self.bad = self.cut = 0
        self.outcomes: dict[str, int] = {}
        self.worst: Witness | None = None
        self.good: Witness | None = None

    def add(self, execution: Execution) -> None:
        """Count it, and keep it if it is the first good one or the shortest bad one."""
        self.runs += 1
        if execution.status in ("terminal", "violated"):
            self.complete += 1
            self.outcomes[str(execution.outcome)] = self.outcomes.get(str(execution.outcome), 0) + 1
            if execution.bad:
                self.bad += 1
                if self.worst is None or len(execution.steps) < len(self.worst.schedule):
                    self.worst = witness(execution)
            elif self.good is None:
                self.good = witness(execution)
        elif execution.status == "bounded":
            self.cut += 1

    @property
    def settled(self) -> bool:
        """Is there a bad and a good one?  Then it is Sometimes."""
        return self.bad > 0 and self.good is not None

    def merge(self, later: Tally) -> None:
        """Add what another one counted."""
        for kept in (later.worst, later.good):
            if kept is not None:
                kept.run += self.runs
        self.runs += later.runs
        self.complete += later.complete
        self.bad += later.bad
        self.cut += later.cut
        for outcome, count in later.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        worst = later.worst
        if worst is not None and (self.worst is None or len(worst.schedule) < len(self.worst.schedule)):
            self.worst = worst
        self.good = self.good or later.good

    def plain(self) -> list[Any]:
        """As plain data."""
        kept = [None if one is None else one.plain() for one in (self.worst, self.good)]
        return [self.runs, self.complete, self.bad, self.cut, self.outcomes, *kept]

    @classmethod
    def of(cls, plain: list[Any]) -> Self:
        """From plain data."""
        tally = cls()
        tally.runs, tally.complete, tally.bad, tally.cut, outcomes, worst, good = plain
        tally.outcomes = dict(outcomes)
        tally.worst, tally.good = (None if one is None else Witness.of(one) for one in (worst, good))
        return tally
