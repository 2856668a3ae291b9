"""One of two versions that are compared: what searches say of it, how many of its classes are bad, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from racevisor.explore import Verdict, explore_case
from racevisor.ledger import Look
from racevisor.reason import Reason, Wish, reason
from racevisor.scenario import Case

#: random walks, for how often it happens by chance
WALKS = 1_000


@dataclass
class Side:
    """One version: its verdict, its classes, and why it goes wrong if it does."""

    case: Case
    verdict: Verdict
    counted: Verdict
    walks: Verdict
    reason: Reason | None

    @property
    def classes(self) -> str:
        """Bad ones of all; `>=` where the count came to no end."""
        counted = self.counted
        least = "" if counted.ledger.exhausted else ">= "
        return f"{least}{counted.bad:,} of {least}{counted.executions:,}"

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            **self.verdict.to_json(),
            "classes": {
                "bad": self.counted.bad,
                "all": self.counted.executions,
                "exhausted": self.counted.ledger.exhausted,
                "reason": self.counted.ledger.reason,
            },
            "random_walks": {"bad": self.walks.bad, "all": self.walks.executions},
            **(self.reason.to_json() if self.reason is not None else {}),
        }


def study(case: Case, seconds: float, wish: Wish, on_look: Look | None = None) -> Side:
    """Search it, count its classes, walk it at random, each for at most so many seconds."""
    verdict = explore_case(case, budget=seconds, on_look=on_look)
    counted = explore_case(case, strategy="optimal", to_the_end=True, decompose=False, budget=seconds, on_look=on_look)
    walks = explore_case(case, strategy="random", to_the_end=True, decompose=False, runs=WALKS, budget=seconds)
    found = verdict.witness or counted.witness or walks.witness
    return Side(case, verdict, counted, walks, None if found is None else reason(case, found, wish))
