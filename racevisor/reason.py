"""One bad execution, shrunk and explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from racevisor.errors import NotDeterministic
from racevisor.explain import Explanation, explain
from racevisor.explore import Witness, explore_case
from racevisor.scenario import Case
from racevisor.shrink import SECONDS, Shrunk, first_broken, shrink

#: a live round with more steps than this is looked for in a smaller machine first
LONG = 2_000


@dataclass(frozen=True)
class Wish:
    """Is a bad execution to be shrunk and explained, and in how many seconds?"""

    shrink: bool = True
    seconds: float = SECONDS


@dataclass
class Reason:
    """A bad execution as it is to be shown; `shrunk` is None if it was not to be shrunk, or could not be."""

    case: Case
    witness: Witness
    shrunk: Shrunk | None
    seconds: float
    past_violations: bool = False
    _explanation: Explanation | None = None

    @property
    def explanation(self) -> Explanation | None:
        """Made when it is asked for; None for an execution that was not shrunk."""
        if self._explanation is None and self.shrunk is not None:
            self._explanation = explain(self.case, self.witness, seconds=self.seconds)
        return self._explanation

    @property
    def pair(self) -> set[int]:
        """The steps whose order decides: the picture marks them with those that the check names."""
        if self.explanation is None or not self.explanation.pairs:
            return set()
        pair = self.explanation.pairs[0].pair
        return {n for n in (pair.first, pair.second) if n is not None and n < len(self.witness.schedule)}

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        if self.shrunk is None:
            return {}
        assert self.explanation is not None
        return {"shrunk": self.shrunk.to_json(), "why": self.explanation.to_json()}


def reason(case: Case, found: Witness, wish: Wish, *, past_violations: bool = False) -> Reason:
    """Shrink what was found, if that is wished.

    What breaks no check any more when it is run alone, as where a part stands for a whole machine, is shown as it is.
    """
    if wish.shrink and found.violations:
        schedule = [channel for channel, _ in found.schedule]
        broken = first_broken(found.violations)
        try:
            shrunk = shrink(case, schedule, broken, seconds=wish.seconds)
        except NotDeterministic:
            pass
        else:
            shrunk.witness.run = found.run  # of the search, by which it can be met again
            return Reason(case, shrunk.witness, shrunk, wish.seconds)
    return Reason(case, found, None, wish.seconds, past_violations)


def readable(case: Case, found: Witness, wish: Wish) -> Reason:
    """A live round, shrunk; a long one of a large machine at the scenario's own size, if the same check fails there."""
    if wish.shrink and found.violations and case.vcpus > case.scenario.vcpus and len(found.schedule) > LONG:
        small = Case(case.scenario, case.source, case.variant_name, case.setup, case.memory)
        met = explore_case(small, budget=wish.seconds).witness
        if met is not None and first_broken(met.violations).check == first_broken(found.violations).check:
            return reason(small, met, wish)
    return reason(case, found, wish, past_violations=True)
