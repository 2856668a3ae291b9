"""Is the bad outcome reachable?  Search one case, or a whole table of them, and hold the answer against the claim."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from actors.vm import Calls
from racevisor.errors import UsageError
from racevisor.memory import MODELS
from racevisor.monitor import Violation
from racevisor.scenario import Always, Case, Never, Scenario, Sometimes, Source, from_source, load
from racevisor.strategies.random_walk import RandomWalk
from racevisor.strategies.states import StatefulSearch
from racevisor.world import Execution

STRATEGIES = ("states", "dpor", "random", "audit")

EXHAUSTIVE = ("states", "dpor")


@dataclass
class Witness:
    """One execution that shows something: its schedule as (channel, label) pairs, and how it was judged."""

    schedule: list[tuple[str, str]]
    violations: list[Violation]
    outcome: str
    status: str
    run: int


@dataclass
class Verdict:
    """What was found for one case, how it was searched, and what the search did not do."""

    scenario: str
    variant: str
    setup: str
    memory: str
    claimed: str
    found: str
    verdict: str  # exhausted | bound reached | budget spent
    executions: int
    bad: int
    blocked: int
    states: int
    strategy: str
    bound: str
    seconds: float
    outcomes: dict[str, int] = field(default_factory=dict)
    witness: Witness | None = None
    good: Witness | None = None
    #: names of the replaceable functions that were ever called
    calls: frozenset[str] = frozenset()

    @property
    def confirmed(self) -> bool:
        """Does the finding bear the claim out?  Never and Always need a complete search, Sometimes two witnesses."""
        return self.found == self.claimed and (self.verdict == "exhausted" or self.claimed == Sometimes)

    def to_json(self) -> dict[str, Any]:
        """One entry of `claims` in `explore --json`."""
        entry = asdict(self)
        del entry["witness"], entry["good"], entry["calls"]
        entry["confirmed"] = self.confirmed
        entry["violations"] = [v.check for v in self.witness.violations] if self.witness else []
        return entry


def witness(execution: Execution) -> Witness:
    """Keep an execution."""
    schedule = [(step.channel, step.label) for step in execution.steps]
    return Witness(schedule, list(execution.violations), str(execution.outcome), execution.status, execution.run)


class _Recorder(Calls):
    """vm.calls, noting what is called."""

    def __init__(self, calls: Calls) -> None:
        self.names: set[str] = set()
        self.inner = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.names.add(name)
        return getattr(self.inner, name)  # type: ignore[no-any-return]


def _strategy(name: str, case: Case, seed: int, runs: int | None) -> Any:
    if name == "states":
        return StatefulSearch()
    if name == "dpor":
        from racevisor.strategies.source_dpor import SourceDpor

        return SourceDpor()
    if name == "random":
        return RandomWalk(seed, runs or 1000)
    if name == "audit":
        from racevisor.strategies.audit import Audit

        return Audit(RandomWalk(seed, runs or 100), case.world)
    raise UsageError(f"there is no strategy {name!r}\n  strategies: {', '.join(STRATEGIES)}")


def explore_case(
    case: Case,
    *,
    strategy: str = "states",
    runs: int | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    to_the_end: bool = False,
    should_stop: Callable[[int], bool] | None = None,
) -> Verdict:
    """Search one case.

    `runs` bounds the number of executions (default: no bound for exhaustive strategies, 1000 for random).  A search that has
    met a bad and a good execution has settled on Sometimes and stops there, unless it is asked to go on `to_the_end`.
    """
    started = time.perf_counter()
    picker = _strategy(strategy, case, seed, runs)
    world = case.world(max_steps=max_steps, automata=strategy == "states")
    recorder = world.vm.calls = _Recorder(world.vm.calls)
    complete = bad = bounded = run = 0
    bad_witness = good_witness = None
    outcomes: dict[str, int] = {}
    stopped = settled = False
    try:
        while True:
            execution = world.run(picker, run)
            if execution.status in ("terminal", "violated"):
                complete += 1
                outcomes[str(execution.outcome)] = outcomes.get(str(execution.outcome), 0) + 1
                if execution.bad:
                    bad += 1
                    if bad_witness is None or len(execution.steps) < len(bad_witness.schedule):
                        bad_witness = witness(execution)
                elif good_witness is None:
                    good_witness = witness(execution)
            elif execution.status == "bounded":
                bounded += 1
            run += 1
            settled = bad > 0 and good_witness is not None and not to_the_end and strategy in EXHAUSTIVE
            if settled or not picker.end(execution):
                break
            if (runs is not None and run >= runs) or (should_stop is not None and should_stop(run)):
                stopped = True
                break
    finally:
        world.close()
    exhausted = getattr(picker, "exhausted", False)
    if exhausted and not complete:
        verdict, bound = "bound reached", "no execution ends, all run for ever; what must not be left undone was not judged"
    elif exhausted:
        verdict, bound = "exhausted", "every reachable state" if strategy == "states" else "one execution per Mazurkiewicz trace"
    elif settled:
        verdict, bound = "bound reached", "stopped at the first bad and the first good execution, which settle it"
    elif bounded and not stopped and strategy in EXHAUSTIVE:
        verdict, bound = "bound reached", f"{bounded} executions were cut at {world.max_steps} steps"
    else:
        verdict, bound = "budget spent", f"{run} executions"
    # only a complete search can say Always: a good execution may be among those that were not run
    found = Never if not bad else Always if exhausted and good_witness is None else Sometimes
    return Verdict(
        case.scenario.name, case.variant_name, case.setup, case.memory, case.claimed, found, verdict, complete, bad,
        getattr(picker, "blocked", 0), getattr(picker, "states", 0), strategy, bound, time.perf_counter() - started,
        outcomes, bad_witness, good_witness, frozenset(recorder.names),
    )  # fmt: skip


def clearest(case: Case, found: Witness, *, runs: int = 300) -> Witness:
    """A bad execution with fewer context switches than `found`, if some lazy random walks meet one."""
    world = case.world(automata=True)
    walk = RandomWalk("clearest", runs, stay=0.9)
    best, fewest = found, _switches([channel for channel, _ in found.schedule])
    try:
        for run in range(runs):
            execution = world.run(walk, run)
            if {v.check for v in execution.violations} & {v.check for v in found.violations}:
                cost = _switches([step.channel for step in execution.steps])
                if cost < fewest:
                    best, fewest = witness(execution), cost
    finally:
        world.close()
    return best


def _switches(channels: list[str]) -> tuple[int, int]:
    return sum(a != b for a, b in pairwise(channels)), len(channels)


def cases(name: str, variants: Iterable[str] = (), setups: Iterable[str] = (), memories: Iterable[str] = ()) -> list[Case]:
    """The cells asked for; nothing asked for means all of that dimension."""
    scenario, source = load(name)
    return [
        Case(scenario, source, variant, setup, memory)
        for variant in tuple(variants) or tuple(scenario.variants)
        for setup in tuple(setups) or tuple(scenario.setups)
        for memory in tuple(memories) or MODELS
    ]


def explore(
    wanted: list[Case],
    *,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[Verdict]:
    """Verdicts in the order of `wanted`; `on_progress(done, of)` after each.  Several processes if `jobs` > 1.

    A variant that replaces only functions that are never called in a set-up is the same code there as the reference variant
    (the one that replaces nothing); it gets the reference's verdict, and its bound says so.
    """
    pool = ProcessPoolExecutor(jobs, initializer=_ignore_interrupts) if jobs > 1 and len(wanted) > 1 else None
    table = _Table(wanted, pool, options)
    try:
        for n in range(len(wanted)):
            verdict = table.settle(n)
            if on_progress:
                on_progress(n + 1, len(wanted))
            yield verdict
    finally:
        if pool is not None:
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # a cell that is half searched is worth nothing, and Ctrl-C must not wait for it
                worker.terminate()


class _Table:
    """Cells being searched: references first, then what is not the same code."""

    def __init__(self, wanted: list[Case], pool: ProcessPoolExecutor | None, options: dict[str, Any]) -> None:
        self.wanted = wanted
        self.pool = pool
        self.options = options
        self.done: dict[int, Verdict] = {}
        self.asked: dict[int, Future[Verdict]] = {}
        self.references: dict[tuple[str, str], int] = {}
        for n, case in enumerate(wanted):
            if not case.variant.replaces and not case.variant.exempt:
                self.references.setdefault((case.setup, case.memory), n)
        if pool is not None:
            for n in self.references.values():
                self._ask(n)
            for n in range(len(wanted)):
                if n not in self.asked and self._same_code(n) is None:
                    self._ask(n)

    def _ask(self, n: int) -> None:
        case = self.wanted[n]
        assert self.pool is not None
        task = (case.source.path, case.source.text, case.variant_name, case.setup, case.memory, self.options)
        self.asked[n] = self.pool.submit(_in_worker, *task)

    def settle(self, n: int) -> Verdict:
        """The verdict of one cell."""
        if n not in self.done:
            if n in self.asked:
                self.done[n] = self.asked[n].result()
            else:
                self.done[n] = self._same_code(n) or explore_case(self.wanted[n], **self.options)
        return self.done[n]

    def _same_code(self, n: int) -> Verdict | None:
        case = self.wanted[n]
        of = self.references.get((case.setup, case.memory))
        if of is None or of == n or case.variant.exempt:
            return None
        verdict = self.settle(of)
        if verdict.verdict != "exhausted" or case.variant.replaces.keys() & verdict.calls:
            return None
        bound = f"the same code as {verdict.variant}: nothing that {case.variant_name} replaces is called here"
        return replace(verdict, variant=case.variant_name, claimed=case.claimed, bound=bound, seconds=0.0)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop


_loaded: dict[str, Scenario] = {}


def _in_worker(path: str, text: str, variant: str, setup: str, memory: str, options: dict[str, Any]) -> Verdict:
    source = Source(path, text)
    scenario = _loaded.get(source.digest)
    if scenario is None:
        scenario = _loaded[source.digest] = from_source(source)
    return explore_case(Case(scenario, source, variant, setup, memory), **options)
