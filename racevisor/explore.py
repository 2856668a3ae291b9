"""Is the bad outcome reachable?  Search one case, or a whole table of them, and hold the answer against the claim."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from actors.vm import Calls
from racevisor.errors import UsageError
from racevisor.memory import MODELS
from racevisor.monitor import Violation
from racevisor.scenario import Always, Case, Never, Scenario, Sometimes, Source, from_source, load
from racevisor.strategies.random_walk import RandomWalk
from racevisor.strategies.states import StatefulSearch
from racevisor.world import Execution

STRATEGIES = ("states", "dpor", "random")


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
    if strategy not in STRATEGIES:
        raise UsageError(f"there is no strategy {strategy!r}\n  strategies: {', '.join(STRATEGIES)}")
    started = time.perf_counter()
    world = case.world(max_steps=max_steps, automata=strategy == "states")
    recorder = world.vm.calls = _Recorder(world.vm.calls)
    picker: Any
    if strategy == "states":
        picker = StatefulSearch()
    elif strategy == "dpor":
        from racevisor.strategies.source_dpor import SourceDpor

        picker = SourceDpor()
    else:
        picker = RandomWalk(seed, runs or 1000)
    complete = bad = bounded = run = 0
    bad_witness = good_witness = None
    outcomes: dict[str, int] = {}
    stopped = settled = False
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
        if bad and good_witness is not None and not to_the_end and strategy != "random":
            settled = True
            break
        if not picker.end(execution):
            break
        if (runs is not None and run >= runs) or (should_stop is not None and should_stop(run)):
            stopped = True
            break
    world.close()
    exhausted = getattr(picker, "exhausted", False)
    if exhausted:
        verdict, bound = "exhausted", "every reachable state" if strategy == "states" else "one execution per Mazurkiewicz trace"
    elif settled:
        verdict, bound = "bound reached", "stopped at the first bad and the first good execution, which settle it"
    elif bounded and not stopped and strategy != "random":
        verdict, bound = "bound reached", f"{bounded} executions were cut at {world.max_steps} steps"
    else:
        verdict, bound = "budget spent", f"{run} executions"
    found = Never if not bad else Sometimes if good_witness else Always
    return Verdict(
        case.scenario.name, case.variant_name, case.setup, case.memory, case.claimed, found, verdict, complete, bad,
        getattr(picker, "blocked", 0), getattr(picker, "states", 0), strategy, bound, time.perf_counter() - started,
        outcomes, bad_witness, good_witness, frozenset(recorder.names),
    )  # fmt: skip


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
    strategy: str = "states",
    seed: int = 0,
    runs: int | None = None,
    max_steps: int | None = None,
    to_the_end: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Verdict]:
    """Verdicts in the order of `wanted`; `on_progress(done, of)` after each.  Several processes if `jobs` > 1."""
    options = {"strategy": strategy, "seed": seed, "runs": runs, "max_steps": max_steps, "to_the_end": to_the_end}
    pool = ProcessPoolExecutor(jobs) if jobs > 1 and len(wanted) > 1 else None
    references: dict[tuple[str, str], Any] = {}
    asked: dict[int, Any] = {}
    try:
        for n, case in sorted(enumerate(wanted), key=lambda pair: bool(pair[1].variant.replaces)):
            if not case.variant.replaces and not case.variant.exempt:
                references.setdefault((case.setup, case.memory), n)
            if pool is not None:
                task = (case.source.path, case.source.text, case.variant_name, case.setup, case.memory, options)
                if n in references.values():
                    asked[n] = pool.submit(_in_worker, *task)
        done: dict[int, Verdict] = {}

        def settle(n: int) -> Verdict:
            if n not in done:
                done[n] = asked[n].result() if n in asked else explore_case(wanted[n], **options)  # type: ignore[arg-type]
            return done[n]

        def same_code(case: Case) -> Verdict | None:
            """The reference's verdict, if this variant replaces nothing that is ever called in this set-up."""
            n = references.get((case.setup, case.memory))
            if n is None or not case.variant.replaces or case.variant.exempt or case.variant.replaces.keys() & settle(n).calls:
                return None
            verdict = settle(n)
            reference = f"the code that runs is {verdict.variant}'s: nothing that {case.variant_name} replaces is called here"
            return replace(verdict, variant=case.variant_name, claimed=case.claimed, bound=reference, seconds=0.0)

        if pool is not None:
            for n, case in enumerate(wanted):
                if n not in asked and same_code(case) is None:
                    task = (case.source.path, case.source.text, case.variant_name, case.setup, case.memory, options)
                    asked[n] = pool.submit(_in_worker, *task)
        for n, case in enumerate(wanted):
            verdict = same_code(case) or settle(n)
            if on_progress:
                on_progress(n + 1, len(wanted))
            yield verdict
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


_loaded: dict[str, Scenario] = {}


def _in_worker(path: str, text: str, variant: str, setup: str, memory: str, options: dict[str, Any]) -> Verdict:
    source = Source(path, text)
    scenario = _loaded.get(source.digest)
    if scenario is None:
        scenario = _loaded[source.digest] = from_source(source)
    return explore_case(Case(scenario, source, variant, setup, memory), **options)
