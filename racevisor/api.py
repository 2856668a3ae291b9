"""What the command line does, for programs: values instead of prints, exceptions instead of exit statuses.

    from racevisor import api

    found = api.explore("init_sipi", "before", memory="sc")
    found.verdict.finding                  # 'Sometimes'
    found.reason.explanation.why()         # the two steps whose order decides, as lines of text

    all(verdict.confirmed for verdict in api.check("my_race.py"))
    api.run("init_sipi", "before", rounds=50).outcomes

Names are those of built-in scenarios or paths of files.  Options of a search are the fields of `racevisor.choose.Wanted`:
strategy, runs, seed, budget (seconds), depth, bound, max_steps, to_the_end, symmetry, decompose.  Whatever cannot be done raises
a `racevisor.errors.RacevisorError`, whose text says what, where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from racevisor import trace
from racevisor.errors import NotDeterministic, RacevisorError, UsageError
from racevisor.explore import Verdict, cases, explore_case, witness
from racevisor.explore import explore as explore_cases
from racevisor.ledger import Look
from racevisor.reason import Reason, Wish, reason
from racevisor.reenact import reenact
from racevisor.scenario import Case, default_setup, load, require
from racevisor.shrink import SECONDS
from racevisor.sides import Side, study
from racevisor.trace import Trace
from racevisor.world import Execution, World

if TYPE_CHECKING:
    from racevisor.rounds import Tally


def case(name: str, variant: str | None = None, setup: str | None = None, memory: str = "tso", vcpus: int | None = None) -> Case:
    """One cell of a scenario's table.

    `variant` None is the scenario's first, `setup` None the one in which its race is met most easily, `vcpus` None the scenario's
    own number.
    """
    scenario, source = load(name)
    variant = require("variant", variant or next(iter(scenario.variants)), scenario.variants, scenario.name)
    return Case(scenario, source, variant, setup or default_setup(scenario, variant, memory), memory, vcpus)


def check(
    name: str,
    variants: Sequence[str] = (),
    setups: Sequence[str] = (),
    memories: Sequence[str] = (),
    vcpus: int | None = None,
    *,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Verdict]:
    """Search every cell asked for, by default the whole table, in `jobs` processes: a verdict each, in the table's order.

    `on_progress(done, of)` is called with every cell that is done.  See `Verdict.confirmed`, `.finding` and `.ledger`.
    """
    return list(explore_cases(cases(name, variants, setups, memories, vcpus), jobs=jobs, on_progress=on_progress, **options))


@dataclass(frozen=True)
class Found:
    """A cell, what the search says of it, and the reason for the bad execution that it met; None if it met none."""

    case: Case
    verdict: Verdict
    reason: Reason | None
    seed: int = 0

    def save(self, path: Path) -> None:
        """Keep the bad execution as a trace, which `replay` and `explain` read.  UsageError if there is none."""
        if self.reason is None:
            raise UsageError(f"{self.case}: nothing bad was found, so there is nothing to save")
        shown = trace.of(
            self.reason.case, self.reason.witness, seed=self.seed, strategy=self.verdict.strategy, recorded_by=trace.EXPLORE
        )
        trace.save(shown, path)


def explore(
    name: str,
    variant: str | None = None,
    setup: str | None = None,
    memory: str = "tso",
    vcpus: int | None = None,
    *,
    shrink: bool = True,
    shrink_seconds: float = SECONDS,
    on_look: Look | None = None,
    **options: Any,
) -> Found:
    """Search one cell; a bad execution is shrunk, for at most `shrink_seconds`, and explained when that is asked for."""
    wanted = case(name, variant, setup, memory, vcpus)
    verdict = explore_case(wanted, on_look=on_look, **options)
    if verdict.witness is None:
        return Found(wanted, verdict, None)
    told = reason(wanted, verdict.witness, Wish(shrink, shrink_seconds))
    return Found(wanted, verdict, told, options.get("seed", 0))


@dataclass(frozen=True)
class Replayed:
    """A trace that was run again.  `difference` says where it is not what was recorded, "" if it is, step for step.

    `world` and `execution` are None if it could not be followed to its end.
    """

    recorded: Trace
    case: Case
    world: World | None
    execution: Execution | None
    difference: str

    @property
    def identical(self) -> bool:
        """Did every step, every check and the end agree?"""
        return not self.difference


def replay(file: Path | str, scenario: str | None = None) -> Replayed:
    """Run a trace again and compare; `scenario` names its file if that has moved.  TraceError for what is no sound trace."""
    path = Path(file)
    recorded = trace.load(path)
    of = trace.case_of(recorded, path, scenario)
    try:
        world, execution = reenact(of, recorded.picks, past_violations=recorded.recorded_by == trace.LIVE)
    except NotDeterministic as error:
        return Replayed(recorded, of, None, None, str(error).rstrip())
    return Replayed(recorded, of, world, execution, _difference(recorded, execution))


def explain(file: Path | str, scenario: str | None = None, *, seconds: float = SECONDS) -> Reason:
    """Why the run of a trace went wrong: `Reason.shrunk`, `.witness` and `.explanation`.

    Raises NotDeterministic if it does not replay, and UsageError if nothing is wrong in it.
    """
    again = replay(file, scenario)
    if again.execution is None or again.difference:
        raise NotDeterministic(f"{file}: {again.difference}\n  see: racevisor replay {file}")
    if not again.execution.bad:
        raise UsageError(
            f"nothing is wrong in the run of {file}, so there is nothing to explain\n  draw it:  racevisor replay {file}"
        )
    live = again.recorded.recorded_by == trace.LIVE
    told = reason(again.case, witness(again.execution), Wish(True, seconds), past_violations=live)
    if told.shrunk is None:
        raise UsageError(
            f"the run of {file} cannot be shrunk by itself, so it is not explained\n  draw it:  racevisor replay {file}"
        )
    return told


def compare(
    name: str,
    one: str,
    other: str,
    setup: str | None = None,
    memory: str = "tso",
    vcpus: int | None = None,
    *,
    budget: float = 60.0,
    on_look: Look | None = None,
) -> tuple[Side, Side]:
    """Two variants in one set-up: verdict, bad classes of all classes, random walks, reason; `budget` seconds for each search."""
    first, second = case(name, one, setup, memory, vcpus), case(name, other, setup, memory, vcpus)
    if setup is None:
        second = Case(first.scenario, first.source, other, first.setup, memory, vcpus)
    return study(first, budget, Wish(), on_look), study(second, budget, Wish(), on_look)


def run(
    name: str,
    variant: str | None = None,
    setup: str | None = None,
    memory: str = "tso",
    vcpus: int | None = None,
    *,
    trace_dir: Path | None = None,
    log_dir: Path | None = None,
    on_round: Callable[[Any], None] = lambda played: None,
    **options: Any,
) -> Tally:
    """Play rounds on Ray; `options` are the fields of `cluster.live.LiveOptions`, `on_round` is called with each `Round`.

    The first bad rounds are saved as traces under `trace_dir`.  What ended the run early, as a cluster that failed, is in
    `Tally.problem`, so that what was played before is not lost.
    """
    from cluster.live import LiveOptions, LiveRun
    from racevisor.rounds import Tally, logs_of

    wanted = case(name, variant, setup, memory, vcpus)
    where = log_dir or logs_of(wanted, trace_dir)
    asked = LiveOptions(log_dir=where, **options)
    tally = Tally(wanted, asked.seed, trace_dir, where)
    try:
        with LiveRun(wanted, asked) as live:
            for played in tally.rounds_of(live):
                on_round(played)
    except RacevisorError as error:
        tally.problem = error
    return tally


def _difference(recorded: Trace, execution: Execution) -> str:
    """What differs between the recorded end and this one, or nothing; the steps were compared one by one."""
    steps = len(execution.steps)
    if steps != len(recorded.picks):
        return f"the run ended after {steps} steps, {len(recorded.picks)} were recorded"
    here, there = ([(v.check, v.text, v.step) for v in ran.violations] for ran in (execution, recorded))
    if here != there:
        return f"the checks said {_told(there)} when it was recorded, and say {_told(here)} now"
    if execution.outcome is not None and str(execution.outcome) != recorded.outcome:
        return f"the run ended with {recorded.outcome!r} when it was recorded, and with {execution.outcome!r} now"
    return ""


def _told(violations: list[tuple[str, str, int | None]]) -> str:
    return "; ".join(f"{check}: {text}" for check, text, _ in violations) or "nothing"
