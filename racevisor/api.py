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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from racevisor import table, trace
from racevisor.errors import NotDeterministic, RacevisorError, UsageError
from racevisor.explore import Verdict, cases, claimed_cells, explore_case, witness
from racevisor.explore import explore as explore_cases
from racevisor.ledger import Look
from racevisor.reason import Reason, Wish, reason
from racevisor.reenact import reenact
from racevisor.scenario import Case, built_in, default_setup, load, require
from racevisor.shrink import SECONDS
from racevisor.sides import Side, study
from racevisor.trace import Trace
from racevisor.world import Execution, World

if TYPE_CHECKING:
    from racevisor.analysis.report import Report as Analysis
    from racevisor.conform.agreement import Agreement
    from racevisor.oracles.measure import Result
    from racevisor.report.whole import Report
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


def verify(
    names: Sequence[str] = (),
    variants: Sequence[str] = (),
    setups: Sequence[str] = (),
    memories: Sequence[str] = (),
    *,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[Verdict]:
    """The same for several scenarios, by default all that are built in: minutes.  Each verdict is given out when it is there."""
    return table.verdicts(claimed_cells(names or built_in(), variants, setups, memories), jobs, on_progress, options)


def selfcheck(*, jobs: int = 1) -> list[Result]:
    """The searches of this installation against numbers that are known from elsewhere; see `Result.agrees`."""
    from racevisor.oracles.measure import results

    return results(jobs)


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


@dataclass(frozen=True)
class Reported:
    """A report: its text, which `format` that is, where it was written, and what it was drawn from."""

    text: str
    format: str
    output: Path | None
    report: Report


def report(
    source: Path | str,
    variant: str | None = None,
    setup: str | None = None,
    memory: str | None = None,
    vcpus: int | None = None,
    *,
    output: Path | str | None = None,
    format: str | None = None,
    against: str | None = None,
    scenario: str | None = None,
    search: float = 5.0,
    shrink: bool = True,
    shrink_seconds: float = SECONDS,
) -> Reported:
    """A trace, a directory of rounds, or a scenario by name or path, as a page (`html`) or for `perfetto`, `shiviz`, `mermaid`.

    A file is written if `output` names one, whose ending says the format unless it is given.  Of a scenario the cell is searched
    for at most `search` seconds, and so is the variant `against`, by default the fix; 0: no searches, and no table of verdicts.
    """
    from racevisor.report import make

    path = Path(source)
    target = None if output is None else Path(output)
    kind = make.kind_of(target or Path("report.html"), format)
    asked = make.Asked(Wish(shrink, shrink_seconds), search, against, scenario)
    trace_file = path.is_file() and path.suffix != ".py"
    if trace_file and target is not None and target.exists() and target.samefile(path):
        raise UsageError(
            f"{target} is the trace itself\n  another name:  -o {target.with_name(f'{target.stem}-report{make.FORMATS[kind]}')}"
        )
    if trace_file or path.is_dir() or path.suffix == ".trace":
        if any(one is not None for one in (variant, setup, memory, vcpus)):
            raise UsageError(f"{path} is of one variant, set-up, memory model and size already\n  leave out what asks for one")
        make_one = make.of_directory if path.is_dir() else make.of_trace
        done = make_one(path, asked, judged=kind == "html")
    else:
        if not path.exists() and str(source) not in built_in():
            raise UsageError(
                f"there is no trace, no directory and no scenario {source}\n  scenarios: {', '.join(built_in())}\n"
                f"  traces are saved in runs/ by explore and run:  racevisor explore init_sipi --variant before"
            )
        done = make.of_case(case(str(source), variant, setup, memory or "tso", vcpus), asked)
    text = make.text_of(done, kind)
    if target is not None:
        if kind == "mermaid" and target.suffix == ".md":
            text = f"```mermaid\n{text}```\n"
        make.put(target, text)
    return Reported(text, kind, target, done)


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
    trace_dir: Path | str | None = None,
    log_dir: Path | str | None = None,
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
    folder = _path(trace_dir)
    where = _path(log_dir) or logs_of(wanted, folder)
    asked = LiveOptions(log_dir=where, **options)
    tally = Tally(wanted, asked.seed, folder, where)
    _play(on_round, LiveRun(wanted, asked), tally)
    return tally


@dataclass(frozen=True)
class Stressed:
    """A stress so far: its directory, its counts since it was begun, how long it was played, and is all done that is wanted?"""

    directory: Path
    tally: Tally
    aborted: int
    seconds: float
    done: bool


def stress(
    name: str | None = None,
    variant: str | None = None,
    setup: str | None = None,
    memory: str = "tso",
    vcpus: int | None = None,
    *,
    duration: str | None = None,
    rounds: int | None = None,
    directory: Path | str | None = None,
    resume: Path | str | None = None,
    on_round: Callable[[Any], None] = lambda played: None,
    **options: Any,
) -> Stressed:
    """Play rounds until `duration` ("90s", "10m") or `rounds` are up; or go on with the stress in the directory `resume`.

    `options` are those of `run`.  What ended it early is in `Stressed.tally.problem`; what was played is kept in the directory.
    """
    from cluster.live import LiveOptions, LiveRun
    from racevisor.book import begun, carry_out, resumed

    if (name is None) == (resume is None):
        raise UsageError("a stress is of a scenario, or goes on in a directory\n  say one of the two:  name=..., resume=...")
    if resume is not None:
        book = resumed(Path(resume), duration, rounds, options.get("address"))
    else:
        live = {"seed": 0, "vms": 1, **options}
        book = begun(str(name), variant, setup, memory, vcpus, duration, rounds, _path(directory), live)
    done = carry_out(book, LiveOptions, LiveRun, partial(_play, on_round))
    return Stressed(book.directory, book.tally, book.aborted, book.before + book.tally.seconds, done)


def _path(named: Path | str | None) -> Path | None:
    return None if named is None else Path(named)


def _play(
    on_round: Callable[[Any], None],
    live: Any,
    tally: Tally,
    rounds: int | None = None,
    after: Callable[[Any], None] = lambda played: None,
) -> None:
    try:
        with live:
            for played in tally.rounds_of(live):
                after(played)
                on_round(played)
    except RacevisorError as error:
        tally.problem = error


def analyze(
    *places: Path | str,
    tables: Sequence[str] = (),
    against: str | None = None,
    bad: str | None = None,
    slots: int = 12,
    parquet: Path | str | None = None,
    **wanted: Sequence[str],
) -> Analysis:
    """What the logs in and below `places` say: `Analysis.tables` has a polars.DataFrame by the name of each table.

    `tables` asks for some of them, `wanted` for some of the rounds (scenario, variant, setup, memory: lists of values); `bad` is
    the text that makes a round a bad one, `slots` how many there are for the rate over time.  All events, in causal order, are
    written to `parquet`.  Damaged lines are in `Analysis.logs.damaged`.
    """
    from racevisor.analysis import read, report, rounds
    from racevisor.analysis import table as merged

    if not places:
        raise UsageError('there is nothing to analyze\n  name directories with logs in or below them:  api.analyze("runs")')
    logs = read.read([Path(place) for place in places])
    asked = rounds.rounds(logs, bad, **wanted)
    done = report.report(logs, asked, tables, against, slots)
    if parquet is not None:
        merged.write(asked, Path(parquet))
    return done


def conform(
    *files: Path | str,
    features: Sequence[str] = (),
    numbers: Sequence[int] = (),
    first: int | None = None,
    kernel: str = "6.18",
    progress: Callable[[int], None] = lambda done: None,
) -> Agreement:
    """Recorded operations of real APICs on the simulated machine: how many sequences agree, and where each other first differs.

    `files` are those of `racevisor conform`, by default the one that comes with racevisor; `features` and `numbers` choose among
    its sequences, `first` takes only so many.
    """
    from racevisor.conform.agreement import Wanted, agreement, select

    wanted = Wanted(tuple(map(Path, files)), tuple(features), tuple(numbers), first)
    return agreement(list(select(wanted)), kernel, progress)


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
