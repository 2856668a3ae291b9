"""`auto`: exhaust the states if that fits into the budget, else sample with PCT.

The stateful search runs first.  Once it has had its share of the budget, what remains of it is estimated, again and again, and it
goes on as long as it may be finished in time.  If it cannot be, the rest of the budget goes to PCT (Burckhardt et al., ASPLOS
2010), which promises less and says how much.  What the search has found by then is kept.

The search is not deterministic where the clock decides; with a budget in executions it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from racevisor.budget import Budget
from racevisor.estimate import Estimate
from racevisor.world import Channel, Execution, World

PROBE = 0.1  # of the budget, before anything is decided
HALF = 0.5  # of the budget: from here on the estimate has to fit, not only the optimistic end of its interval
LATE = 0.9  # what is left then is not worth a change
_STATES = 5_000  # the probe is not over before it has seen so many, as long as that costs less than half of the budget
_STEP = 0.01  # of the budget, between two estimates


class Auto:
    """A strategy made of two: `search`, then perhaps what `sampler` makes for a number of executions (None: no such limit)."""

    def __init__(self, search: Any, sampler: Callable[[int | None], Any]) -> None:
        self.search = search
        self.sampler = sampler
        self.picker = search
        #: the verb, as the present one of the two picks
        self.pick: Callable[[list[Channel]], Channel | None] = search.pick
        self.changed_at: int | None = None
        self.why = "the states can be exhausted within the budget"
        #: what the search had left when it was given up
        self.given_up: Estimate | None = None
        #: did the clock have a say in the change?
        self.by_clock = False
        self._decided = 0.0
        self._run = 0

    # ---- the verbs --------------------------------------------------------------------------------------------------------

    def resume(self, world: World) -> bool:
        """The stateful search sets out from an earlier state; PCT begins at the beginning."""
        resume = getattr(self.picker, "resume", None)
        return resume is not None and bool(resume(world))

    def begin(self, world: World, run: int) -> None:
        """PCT counts its own runs."""
        self._run = run
        self.picker.begin(world, run - (self.changed_at or 0))

    def end(self, execution: Execution) -> bool:
        """As the present one of the two says."""
        return bool(self.picker.end(execution))

    # ---- the decision -----------------------------------------------------------------------------------------------------

    def decide(self, budget: Budget, estimate: Callable[[], Estimate | None]) -> None:
        """Called between two executions, after the budget was looked at: change to PCT if the states cannot be exhausted."""
        share = budget.share
        if self.changed_at is not None or not PROBE <= share < LATE or share < self._decided + _STEP:
            return
        if self.search.states < _STATES and share < HALF:
            return
        self._decided = share
        guess = estimate()
        if guess is None:
            if share >= HALF:
                self._change(budget, None, "the search was still learning when half of the budget was spent")
            return
        needs = share * guess.total / guess.done
        at_least = share * guess.low / guess.done
        if needs <= 1 or (at_least <= 1 and share < HALF):
            self.why = f"the states are estimated to take {_percent(needs)} of the budget"
            return
        spent = f"after {budget.spent_words()} the states were estimated to take {_times(needs)} the budget"
        self._change(budget, guess, spent)

    def _change(self, budget: Budget, guess: Estimate | None, why: str) -> None:
        self.why = why
        self.given_up = guess
        self.by_clock = budget.by_clock
        self.changed_at = self._run + 1
        self.picker = self.sampler(None if budget.runs is None else budget.runs - self.changed_at)
        self.pick = self.picker.pick

    # ---- what the ledger asks ---------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What ran."""
        return "states" if self.changed_at is None else "states, then pct"

    @property
    def exhausted(self) -> bool:
        """Only the stateful search can be."""
        return self.changed_at is None and bool(self.search.exhausted)

    @property
    def bounded(self) -> bool:
        """Did the search meet the step bound?"""
        return bool(self.search.bounded)

    @property
    def blocked(self) -> int:
        """Executions that the search gave up as redundant."""
        return int(self.search.blocked)

    @property
    def states(self) -> int:
        """States that the search has seen."""
        return int(self.search.states)

    def frontier(self) -> list[tuple[int, int]]:
        """Of the search; none once PCT samples, which has no end to come nearer to."""
        path: list[tuple[int, int]] = self.search.frontier() if self.changed_at is None else []
        return path

    def guarantee(self) -> Any:
        """PCT's, if it came to that."""
        return self.picker.guarantee() if self.changed_at is not None else None


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "under 1%"


def _times(share: float) -> str:
    return f"{share:.1f} times" if share < 100 else f"{share:,.0f} times" if share < 1e6 else "over a million times"
