"""A report of a trace, of the rounds in a directory, or of a case that is searched for it; and its text in each format."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from racevisor import trace
from racevisor.api import replay
from racevisor.errors import NotDeterministic, TraceError, UsageError
from racevisor.explore import Witness, explore_case
from racevisor.reason import Wish, readable, reason
from racevisor.report.beside import other_case, same_schedule
from racevisor.report.mermaid import mermaid
from racevisor.report.page import page
from racevisor.report.perfetto import perfetto
from racevisor.report.rounds import rounds_of, traces_in
from racevisor.report.shiviz import shiviz
from racevisor.report.whole import Named, Report, describe, judge, tell
from racevisor.scenario import Case
from racevisor.trace import Trace
from racevisor.whole import write_whole

#: what a file is by the end of its name
ENDINGS = {
    ".html": "html",
    ".htm": "html",
    ".json": "perfetto",
    ".shiviz": "shiviz",
    ".log": "shiviz",
    ".txt": "shiviz",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".md": "mermaid",
}
FORMATS = {"html": ".html", "perfetto": ".json", "shiviz": ".shiviz", "mermaid": ".mmd"}
_MAKERS: dict[str, Callable[[Report], str]] = {"html": page, "perfetto": perfetto, "shiviz": shiviz, "mermaid": mermaid}
#: a browser draws no more steps than this with ease
MOST = 200_000
#: so many traces of a directory are listed
LISTED = 200
#: seconds for the search of each version
SEARCH = 5.0


@dataclass(frozen=True)
class Asked:
    """How it is to be made: shrunk in how many seconds; `search` seconds for each search, 0 for none; beside which variant.

    `scenario` is the file of a trace's scenario if that has moved.
    """

    wish: Wish = field(default_factory=Wish)
    search: float = SEARCH
    against: str | None = None
    scenario: str | None = None


def of_case(case: Case, asked: Asked) -> Report:
    """Search it; drawn is the bad execution that is met; if there is none, the simplest one.  UsageError without a search."""
    if not asked.search:
        raise UsageError("a scenario has to be searched for something to draw\n  leave out --search 0, or report a trace")
    other = other_case(case, asked.against)
    verdict = explore_case(case, budget=asked.search)
    shown = verdict.witness or (verdict.good and same_schedule(case, []))
    if shown is None:
        raise UsageError(f"{case}: no execution came to its end in {asked.search:g} s\n  longer:  --search {10 * asked.search:g}")
    report = Report(title=str(case))
    describe(report, case)
    report.facts = [
        ("found by", f"a search, {verdict.strategy}: {verdict.finding}, {verdict.verdict}"),
        ("steps", f"{len(shown.schedule):,}"),
        ("vCPUs", str(case.vcpus)),
        ("memory model", case.memory),
    ]
    told = reason(case, shown, asked.wish) if verdict.witness is not None else None
    tell(report, case, shown.schedule, live=False, told=told, other=other)
    judge(report, case, asked.search, other, verdict)
    cell = _arguments(case)
    report.commands = [
        ("find it", f"racevisor explore {cell}"),
        *([("compare", f"racevisor compare {_compared(case, other)}")] if other is not None else []),
        ("run it live", f"racevisor run {cell} --rounds 200"),
    ]
    return report


def of_directory(directory: Path, asked: Asked, *, judged: bool = True) -> Report:
    """What was played there, and the first trace that is bad, or the first there is; UsageError if there is nothing."""
    report = Report(title=f"{directory.resolve().name} rounds")
    report.rounds = rounds_of(directory)
    first: Path | None = None
    good: Path | None = None
    problem: TraceError | None = None
    for file in traces_in(directory)[:LISTED]:
        try:
            recorded = trace.load(file)
        except TraceError as error:
            problem = problem or error
            continue
        report.traces.append(Named(file.relative_to(directory).as_posix(), len(recorded.picks), recorded.bad, recorded.outcome))
        if recorded.bad:
            first = first or file
        good = good or file
    found = first or good
    if found is not None:
        of_trace(found, asked, report, judged=judged)
        report.drawn_trace = found.relative_to(directory).as_posix()
        return report
    if not report.rounds:
        if problem is not None:
            raise problem
        raise UsageError(
            f"there is no trace and no log of rounds in {directory}\n"
            f"  traces are saved in runs/ by explore and run:  racevisor explore init_sipi --variant before"
        )
    return report


def of_trace(file: Path, asked: Asked, report: Report | None = None, *, judged: bool = True) -> Report:
    """The run of a trace, why it went wrong, and, if it is to be `judged`, what is claimed and found of its case.

    Raises NotDeterministic if the run does not reproduce.
    """
    again = replay(file, asked.scenario)
    recorded, case = again.recorded, again.case
    if not again.identical:
        raise NotDeterministic(f"{file}: {again.difference}\n  see:  racevisor replay {shlex.quote(str(file))}")
    report = report or Report(title="")
    report.title = str(case)
    report.drawn_trace = file.name
    describe(report, case)
    report.facts = _facts(recorded, case, file)
    told = None
    if recorded.bad and asked.wish.shrink:
        found = Witness(recorded.picks, recorded.violations, recorded.outcome, recorded.status, 0)
        told = readable(case, found, asked.wish)
    other = other_case(case, asked.against)
    tell(report, case, recorded.picks, live=recorded.recorded_by == trace.LIVE, told=told, other=other)
    if judged:  # in the machine in which it was explained: a larger one is searched for longer than anybody waits
        small = case if told is None else told.case
        judge(report, small, asked.search, None if other is None else small.like(other.variant_name))
    name = shlex.quote(file.name)
    report.commands = [
        ("replay it", f"racevisor replay {name}"),
        ("explain it", f"racevisor explain {name}"),
        ("run it live", f"racevisor run {_arguments(case)} --rounds 200"),
    ]
    return report


def _facts(recorded: Trace, case: Case, file: Path) -> list[tuple[str, str]]:
    return [
        ("trace", file.name),
        ("recorded by", f"{recorded.recorded_by}, strategy {recorded.strategy}, seed {recorded.seed}"),
        ("steps", f"{len(recorded.picks):,}"),
        ("vCPUs", str(case.vcpus)),
        ("memory model", case.memory),
        ("machine", f"actors@{recorded.machine_sha256[:7]}, {recorded.scenario}@{recorded.source_sha256[:7]}"),
        ("racevisor", recorded.racevisor_version),
    ]


def _arguments(case: Case) -> str:
    return f"{shlex.quote(case.source.path)} --variant {case.variant_name}{_machine(case)}"


def _compared(case: Case, other: Case) -> str:
    return f"{shlex.quote(case.source.path)} {case.variant_name} {other.variant_name}{_machine(case)}"


def _machine(case: Case) -> str:
    vcpus = "" if case.vcpus == case.scenario.vcpus else f" --vcpus {case.vcpus}"
    return f" --setup {case.setup} --memory {case.memory}{vcpus}"


# ---- as a file ------------------------------------------------------------------------------------------------------------


def kind_of(output: Path, format_: str | None) -> str:
    """html, perfetto, shiviz or mermaid: what is asked for, or else what the file's name says; UsageError if neither does."""
    if output.is_dir():
        raise UsageError(f"{output} is a directory\n  name a file:  -o {output / 'report.html'}")
    kind = format_ or ENDINGS.get(output.suffix.lower())
    if kind not in FORMATS:
        raise UsageError(
            f"what shall {output} be?  {format_ or 'Its ending'} says nothing to racevisor\n"
            f"  name it {', '.join(f'*{ending} ({name})' for name, ending in FORMATS.items())}, or say:  --format html"
        )
    return kind


def text_of(report: Report, kind: str) -> str:
    """The report in one of FORMATS; UsageError where that format cannot show it."""
    if not report.runs and kind != "html":
        raise UsageError("there is no trace, so there is nothing to export\n  a page of the rounds:  -o out.html")
    if kind == "html" and any(len(run.events) > MOST for run in report.runs):
        raise UsageError(
            f"the run has {len(report.runs[0].events):,} steps, a page can show {MOST:,}\n"
            f"  what opens runs of any length:  --format perfetto"
        )
    return _MAKERS[kind](report)


def put(path: Path, text: str) -> None:
    """Write a file whole or not at all; UsageError where it cannot be written."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}\n  another place:  -o FILE") from error
