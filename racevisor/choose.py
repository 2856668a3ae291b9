"""The strategies by name: what each is, which options it takes, how it is made.

A strategy's module is imported when it is asked for, so that `--help` costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from racevisor.errors import UsageError

if TYPE_CHECKING:
    from racevisor.scenario import Case

#: PCT's depth and the bound of delay and preemption bounding where nothing is said
DEPTH, BOUND = 2, 2
#: seconds that `auto` gives a cell where nothing is said
AUTO_BUDGET = 300.0


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None is what was not said.

    `runs` is a number of executions, `budget` seconds, `depth` PCT's, `bound` a number of delays or preemptions, `max_steps` the
    step bound of one execution.
    """

    strategy: str = "auto"
    runs: int | None = None
    seed: int = 0
    budget: float | None = None
    depth: int | None = None
    bound: int | None = None
    max_steps: int | None = None
    to_the_end: bool = False
    symmetry: bool = False
    decompose: bool | None = None

    def wants_parts(self, vcpus: int) -> bool:
        """Is the machine to be searched part by part, if it can be taken apart?  Not said: if it has more than two vCPUs."""
        whole = self.strategy not in ("auto", "states") or self.runs is not None or self.symmetry
        return not whole and (vcpus > 2 if self.decompose is None else self.decompose)


@dataclass(frozen=True)
class Kind:
    """One row of the table of strategies."""

    about: str
    make: Callable[[Wanted, Case], Any]
    #: the options that only some strategies take
    takes: frozenset[str] = frozenset()
    #: what it has covered once it says that it is exhausted; "" if it never is
    covers: str = ""
    #: does it go through executions by plan, so that a bad and a good one are reason enough to stop?
    systematic: bool = False
    #: does it need threads that are automata (racevisor.automata)?
    automata: bool = False
    #: is every complete execution of it a Mazurkiewicz trace of its own?
    one_per_class: bool = False
    #: executions where nothing is said; None: until it is done
    runs: int | None = None


def _auto(wanted: Wanted, case: Case) -> Any:
    from racevisor.auto import Auto

    def sampler(runs: int | None) -> Any:
        return KINDS["pct"].make(Wanted(runs=runs or sys.maxsize, seed=wanted.seed, depth=wanted.depth), case)

    return Auto(KINDS["states"].make(wanted, case), sampler)


def _states(wanted: Wanted, _case: Case) -> Any:
    from racevisor.strategies.states import StatefulSearch

    search: Any = StatefulSearch
    return search(symmetry=True) if wanted.symmetry else search()


def _optimal(_wanted: Wanted, _case: Case) -> Any:
    from racevisor.strategies.optimal import OptimalDpor

    return OptimalDpor()


def _source(_wanted: Wanted, _case: Case) -> Any:
    from racevisor.strategies.source_dpor import SourceDpor

    return SourceDpor()


def _sleep(_wanted: Wanted, _case: Case) -> Any:
    from racevisor.strategies.sleep_sets import SleepSets

    return SleepSets()


def _pct(wanted: Wanted, _case: Case) -> Any:
    from racevisor.strategies.pct import Pct

    return Pct(wanted.seed, run_bound(wanted) or sys.maxsize, depth=wanted.depth or DEPTH)


def _random(wanted: Wanted, _case: Case) -> Any:
    from racevisor.strategies.random_walk import RandomWalk

    return RandomWalk(wanted.seed, run_bound(wanted) or sys.maxsize)


def _delay(wanted: Wanted, _case: Case) -> Any:
    from racevisor.strategies.bounded import DelayBounded

    return DelayBounded(BOUND if wanted.bound is None else wanted.bound)


def _preemption(wanted: Wanted, _case: Case) -> Any:
    from racevisor.strategies.bounded import PreemptionBounded

    return PreemptionBounded(BOUND if wanted.bound is None else wanted.bound)


def _audit(wanted: Wanted, case: Case) -> Any:
    from racevisor.strategies.audit import Audit
    from racevisor.strategies.random_walk import RandomWalk

    return Audit(RandomWalk(wanted.seed, run_bound(wanted) or sys.maxsize), case.world)


_STATES = "every reachable state"
_CLASSES = "one execution per Mazurkiewicz trace"
_ALL = "every execution"
_DPOR = (True, True, True)  # systematic, automata, one_per_class
_NONE: frozenset[str] = frozenset()

KINDS: dict[str, Kind] = {
    "auto": Kind(
        "states if the budget is enough to exhaust them, else pct",
        _auto, frozenset({"depth", "symmetry"}), _STATES, systematic=True, automata=True,
    ),
    "states": Kind("every reachable state once", _states, frozenset({"symmetry"}), _STATES, systematic=True, automata=True),
    "optimal": Kind("one execution per Mazurkiewicz trace (optimal DPOR)", _optimal, _NONE, _CLASSES, *_DPOR),
    "source": Kind("the same, but some executions are given up half way", _source, _NONE, _CLASSES, *_DPOR),
    "sleep": Kind("sleep sets alone; to check the others", _sleep, _NONE, _CLASSES, *_DPOR),
    "pct": Kind("random priorities, with a guarantee for bugs of a given depth", _pct, frozenset({"depth"}), runs=1000),
    "random": Kind("random walks", _random, runs=1000),
    "delay": Kind("all executions with at most --bound delays", _delay, frozenset({"bound"}), _ALL, True),
    "preemption": Kind("all executions with at most --bound preemptions", _preemption, frozenset({"bound"}), _ALL, True),
    "audit": Kind("random walks, run again twice: does a schedule decide all?", _audit, runs=100),
}  # fmt: skip

STRATEGIES = tuple(KINDS)


def run_bound(wanted: Wanted) -> int | None:
    """At most so many executions: what was asked for, else the strategy's default; a budget of time alone leaves it open."""
    return wanted.runs if wanted.runs is not None or wanted.budget is not None else KINDS[wanted.strategy].runs


def seconds(wanted: Wanted) -> float | None:
    """At most so long: what was asked for, else the default of `auto`, if no number of executions was asked for either."""
    if wanted.budget is None and wanted.runs is None and wanted.strategy == "auto":
        return AUTO_BUDGET
    return wanted.budget


def kind(wanted: Wanted) -> Kind:
    """The row that `wanted` names; raises UsageError where there is none, or where its options do not go together."""
    name = wanted.strategy
    if name == "dpor":
        raise UsageError("strategy dpor is now two\n  --strategy optimal, or --strategy source as before")
    if name not in KINDS:
        raise UsageError(f"there is no strategy {name!r}\n  strategies: {', '.join(STRATEGIES)}")
    found = KINDS[name]
    for option in ("depth", "bound", "symmetry"):
        value = getattr(wanted, option)
        if value is not None and value is not False and option not in found.takes:
            those = " or ".join(n for n, k in KINDS.items() if option in k.takes)
            raise UsageError(f"--{option} means nothing to strategy {name}\n  it goes with --strategy {those}")
    return found


def help_text() -> str:
    """The table for --help."""
    return "\n".join(f"  {name:<11} {row.about}" for name, row in KINDS.items())
