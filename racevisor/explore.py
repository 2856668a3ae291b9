"""Is the bad outcome reachable?  Search one case and hold the answer against the claim; tables of cases are racevisor.table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from racevisor import choose
from racevisor.budget import Budget, words
from racevisor.choose import STRATEGIES as STRATEGIES
from racevisor.choose import Kind, Wanted
from racevisor.errors import UsageError
from racevisor.estimate import Estimate, Estimator
from racevisor.ledger import Bounds, Ledger, Look, judge
from racevisor.memory import MODELS
from racevisor.scenario import Always, Case, Never, Sometimes, in_table, load, require
from racevisor.tally import Tally
from racevisor.tally import Witness as Witness
from racevisor.tally import witness as witness
from racevisor.twins import Recorder, Twins
from racevisor.world import World

LOOK = 16  # executions between two looks at the clock and at the tree


@dataclass
class Verdict:
    """What was found for one case; `ledger` says how it was searched, and what the search did not do."""

    scenario: str
    variant: str
    setup: str
    memory: str
    claimed: str
    #: Never, Sometimes or Always, as far as it was looked; `finding` is the word to show
    found: str
    ledger: Ledger
    outcomes: dict[str, int] = field(default_factory=dict)
    witness: Witness | None = None
    good: Witness | None = None
    #: names of the replaceable functions that were ever called
    calls: frozenset[str] = frozenset()
    vcpus: int = 2

    @property
    def verdict(self) -> str:
        """exhausted, bound reached or budget spent."""
        return self.ledger.verdict

    @property
    def executions(self) -> int:
        """Complete ones."""
        return self.ledger.executions

    @property
    def bad(self) -> int:
        """How many of them were bad."""
        return self.ledger.bad

    @property
    def states(self) -> int:
        """Of a search that counts them, else 0."""
        return self.ledger.states

    @property
    def bound(self) -> str:
        """What was covered, or what ended the search."""
        return self.ledger.reason

    @property
    def strategy(self) -> str:
        """What ran."""
        return self.ledger.strategy

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ledger.seconds

    @property
    def finding(self) -> str:
        """`found` if it is proved, else what was seen: a search that left something out shows no Never."""
        if self.ledger.exhausted or (self.bad and self.good is not None):
            return self.found
        return "found" if self.bad else "not found"

    @property
    def confirmed(self) -> bool:
        """Does the finding bear the claim out?  Never and Always need a complete search, Sometimes two witnesses."""
        return self.found == self.claimed == self.finding

    def to_json(self) -> dict[str, Any]:
        """One entry of `claims` in `explore --json`."""
        own = ("scenario", "variant", "setup", "memory", "vcpus", "claimed", "found", "outcomes")
        of_ledger = ("verdict", "executions", "bad", "blocked", "states", "strategy", "seconds")
        return {
            **{name: getattr(self, name) for name in own},
            **{name: getattr(self.ledger, name) for name in of_ledger},
            "bound": self.bound,
            "finding": self.finding,
            "confirmed": self.confirmed,
            "violations": [v.check for v in self.witness.violations] if self.witness else [],
            "ledger": self.ledger.to_json(),
        }


class _Watch:
    """Looks at a search now and then: at the clock, and at how much of the tree is done."""

    def __init__(self, picker: Any, budget: Budget, on_look: Look | None) -> None:
        self.picker = picker
        self.budget = budget
        self.on_look = on_look
        self.decide = getattr(picker, "decide", None)
        self.frontier = getattr(picker, "frontier", None)
        self.estimator = Estimator(recognises_states=hasattr(picker, "states"))

    def look(self, run: int) -> None:
        """So many executions have been run."""
        self.budget.look(run)
        if self.frontier is not None:
            self.estimator.observe(run, self.frontier(), self.budget.elapsed)
        if self.decide is not None:
            self.decide(self.budget, self.estimator.estimate)
        if self.on_look is not None:
            self.on_look(run, getattr(self.picker, "states", 0), self.budget.elapsed, self.estimator.estimate)

    def remains(self, *, ended: bool) -> Estimate | None:
        """What a search had left that was given up, or that did not come to its end (`ended`), which may be that of its bound."""
        given_up: Estimate | None = getattr(self.picker, "given_up", None)
        return given_up if given_up is not None or ended else self.estimator.estimate()


def explore_case(
    case: Case,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_look: Look | None = None,
    twins: Twins | None = None,
    **options: Any,
) -> Verdict:
    """Search one case; `options` are the fields of racevisor.choose.Wanted, by default strategy `auto`.

    `runs` bounds the number of executions and `budget` the seconds; where neither is said, `auto` has a budget, samplers have a
    number of runs, and exhaustive strategies go on until they are done.  A search that has met a bad and a good execution has
    settled on Sometimes and stops there, unless it is asked to go on `to_the_end`; samplers go on.  Every so many executions
    `on_look` is told how far the search is.  `twins` are other variants of the same machine, searched with the same options: if
    this one turns out to behave like one of them, it gets that one's verdict.  Raises UsageError for options that do not go
    together.
    """
    wanted = Wanted(**options)
    kind = choose.kind(wanted)
    refused, before, left = "", 0.0, choose.seconds(wanted)
    if wanted.wants_parts(case.vcpus):
        from racevisor.apart import verdict_by_parts

        by_parts = verdict_by_parts(case, wanted, clock, on_look)
        if isinstance(by_parts, Verdict):
            if twins is not None:
                twins.add(case, by_parts)
            return by_parts
        before = by_parts.seconds
        took = f", which took {words(before)} of the budget to find out" if before >= 1 else ""
        refused = f"; not decomposed: {by_parts.why}{took}"
        left = None if left is None else left - before
    picker = kind.make(wanted, case)
    budget = Budget(left, wanted.runs, clock)
    watch = _Watch(picker, budget, on_look)
    world = case.world(max_steps=wanted.max_steps, automata=kind.automata, calls=Recorder)
    recorder = world.vm.calls
    assert isinstance(recorder, Recorder)
    recorder.ready(world.automata)
    tally = Tally()
    try:
        if twins is not None and (twin := twins.same_behaviour(case, world, recorder)) is not None:
            return twin
        run, settled, stopped = _search(world, picker, tally, watch, stops_when_settled=kind.systematic and not wanted.to_the_end)
    finally:
        world.close()
    budget.look(run)
    ledger = _ledger(wanted, kind, picker, world, tally, watch, settled, stopped)
    bounds = replace(ledger.bounds, seconds=choose.seconds(wanted))
    ledger = replace(ledger, reason=ledger.reason + refused, bounds=bounds, seconds=before + ledger.seconds)
    # only a complete search can say Always: a good execution may be among those that were not run
    found = Never if not tally.bad else Always if ledger.exhausted and tally.good is None else Sometimes
    verdict = Verdict(
        case.scenario.name, case.variant_name, case.setup, case.memory, case.claimed, found, ledger,
        tally.outcomes, tally.worst, tally.good, frozenset(recorder.names), case.vcpus,
    )  # fmt: skip
    if twins is not None:
        twins.add(case, verdict, world, recorder)
    return verdict


def _search(world: World, picker: Any, tally: Tally, watch: _Watch, *, stops_when_settled: bool) -> tuple[int, bool, bool]:
    """(executions run, did a bad and a good one settle it, did the budget end it)."""
    runs = watch.budget.runs
    run = 0
    while True:
        execution = world.run(picker, run)
        tally.add(execution)
        run += 1
        settled = stops_when_settled and tally.bad > 0 and tally.good is not None
        if settled or not picker.end(execution):
            return run, settled, False
        if run % LOOK == 0 or run == runs:
            watch.look(run)
            if watch.budget.spent:
                return run, False, True


def _ledger(
    wanted: Wanted, kind: Kind, picker: Any, world: World, tally: Tally, watch: _Watch, settled: bool, stopped: bool
) -> Ledger:
    budget = watch.budget
    exhausted = bool(getattr(picker, "exhausted", False))
    limit = picker.limit_words() if getattr(picker, "cut", False) is True else ""
    covers = kind.covers if getattr(picker, "changed_at", None) is None else ""
    verdict, reason = judge(
        exhausted=exhausted, complete=tally.complete, settled=settled, stopped=budget.spent_words() if stopped else "",
        cut=tally.cut, limit=limit, steps=world.max_steps, covers=covers, runs=budget.executions,
    )  # fmt: skip
    guarantee = getattr(picker, "guarantee", None)
    bound = (choose.BOUND if wanted.bound is None else wanted.bound) if "bound" in kind.takes else None
    return Ledger(
        strategy=getattr(picker, "name", wanted.strategy),
        memory=world.memory,
        verdict=verdict,
        reason=reason,
        bounds=Bounds(world.max_steps, choose.run_bound(wanted), budget.seconds, bound),
        executions=tally.complete,
        bad=tally.bad,
        cut=tally.cut,
        blocked=getattr(picker, "blocked", 0),
        states=getattr(picker, "states", 0),
        classes=tally.complete if kind.one_per_class else getattr(picker, "classes", 0) or None,
        seconds=budget.elapsed,
        why="" if settled else getattr(picker, "why", ""),
        remains=watch.remains(ended=not (stopped or settled)),
        guarantee=guarantee() if guarantee is not None else None,
        by_clock=(stopped and budget.by_clock) or getattr(picker, "by_clock", False),
    )


def cases(
    name: str,
    variants: Iterable[str] = (),
    setups: Iterable[str] = (),
    memories: Iterable[str] = (),
    vcpus: int | None = None,
) -> list[Case]:
    """The cells asked for; nothing asked for means all of that dimension, and the scenario's own number of vCPUs.

    A set-up that is there for other variants is left out, unless set-up and variant are both asked for.
    """
    scenario, source = load(name)
    variants, setups, memories = tuple(variants), tuple(setups), tuple(memories)
    for kind, asked, known in (("variant", variants, scenario.variants), ("set-up", setups, scenario.setups)):
        for one in asked:
            require(kind, one, known, scenario.name)
    return [
        Case(scenario, source, variant, setup, memory, vcpus)
        for variant in variants or tuple(scenario.variants)
        for setup in setups or tuple(scenario.setups)
        if (variants and setups) or in_table(scenario, variant, setup)
        for memory in memories or MODELS
    ]


def claimed_cells(
    names: Iterable[str], variants: Sequence[str] = (), setups: Sequence[str] = (), memories: Sequence[str] = ()
) -> list[Case]:
    """The cells of several scenarios; what is asked for has to be there in one of them."""
    scenarios = {name: load(name)[0] for name in dict.fromkeys(names)}
    for kind, asked, known in (
        ("variant", variants, [v for scenario in scenarios.values() for v in scenario.variants]),
        ("set-up", setups, [s for scenario in scenarios.values() for s in scenario.setups]),
    ):
        for one in asked:
            if one not in known:
                raise UsageError(f"no scenario of {', '.join(scenarios)} has a {kind} {one!r}\n  see: racevisor show NAME")
    found = []
    for name, scenario in scenarios.items():
        those = [v for v in variants if v in scenario.variants], [s for s in setups if s in scenario.setups]
        if (variants and not those[0]) or (setups and not those[1]):
            continue
        found += cases(name, *those, memories)
    if not found:
        raise UsageError("no claim is left: no scenario has such a variant in such a set-up\n  see: racevisor show NAME")
    return found


def explore(
    wanted: list[Case],
    *,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[Verdict]:
    """Verdicts in the order of `wanted`, each as explore_case(case, **options) gives it; several processes if `jobs` > 1.

    `on_progress(done, of)` is called whenever a cell is done, in whatever order they are.
    """
    from racevisor.table import verdicts

    return verdicts(wanted, jobs, on_progress, options)
