"""`racevisor report TRACE|DIR`: one page that opens offline, or a file for another viewer."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from racevisor import trace
from racevisor.api import replay
from racevisor.commands.output import live_arguments, quiet_if
from racevisor.commands.output import print_json as print_object
from racevisor.errors import NotDeterministic, TraceError, UsageError
from racevisor.explore import Witness
from racevisor.reason import Wish, readable
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
#: a browser draws no more steps than this with ease
MOST = 200_000
#: so many traces of a directory are listed
LISTED = 200


def report_trace(
    source: Path, output: Path | None, format_: str | None, scenario: str | None, search: float, as_json: bool, wish: Wish
) -> int:
    """Returns the exit status: 0.  `search`: seconds for the search of this version and of the fix, 0 for none.

    Raises NotDeterministic if the run does not reproduce.
    """
    with quiet_if(as_json):
        target, kind = _target(source, output, format_)
        report = Report(title=source.name)
        file: Path | None = source
        if source.is_dir():
            report.title = f"{source.resolve().name} rounds"
            file = _directory(report, source)
        if file is not None:
            _trace(report, file, scenario, wish, search if kind == "html" else None)
        elif kind != "html":
            raise UsageError(
                f"there is no trace in {source}, so there is nothing to export\n  a page of its rounds:  -o out.html"
            )
        if kind == "html" and any(len(run.events) > MOST for run in report.runs):
            raise UsageError(
                f"the run has {len(report.runs[0].events):,} steps, a page can show {MOST:,}\n"
                f"  what opens runs of any length:  racevisor report {shlex.quote(str(source))} -o {target.stem}.json"
            )
        text = {"html": page, "perfetto": perfetto, "shiviz": shiviz, "mermaid": mermaid}[kind](report)
        if kind == "mermaid" and target.suffix == ".md":
            text = f"```mermaid\n{text}```\n"
        if target.exists() and file is not None and target.samefile(file):
            raise UsageError(f"{target} is the trace itself\n  another name:  -o {target.stem}-report{FORMATS[kind]}")
        put(target, text)
    told = {"output": str(target), "format": kind, "bytes": len(text.encode()), **_told(report)}
    if as_json:
        print_object(told)
    else:
        click.echo(f"{target}: {kind}, {told['bytes']:,} bytes, {told['steps']:,} steps of {told['lanes']:,} actors")
    return 0


def _told(report: Report) -> dict[str, Any]:
    run = report.runs[0] if report.runs else None
    return {
        "trace": report.drawn_trace,
        "steps": len(run.events) if run else 0,
        "lanes": len(run.lanes) if run else 0,
        "bad": bool(report.broken),
        "runs": [one.key for one in report.runs],
        "rounds": sum(one.rounds for one in report.rounds),
    }


def _target(source: Path, output: Path | None, format_: str | None) -> tuple[Path, str]:
    """Where it goes, and what it is."""
    if output is None:
        ending = FORMATS[format_ or "html"]
        output = source / f"report{ending}" if source.is_dir() else source.with_suffix(ending)
    if output.is_dir():
        raise UsageError(f"{output} is a directory\n  name a file:  -o {output / 'report.html'}")
    kind = format_ or ENDINGS.get(output.suffix.lower())
    if kind is None:
        raise UsageError(
            f"what shall {output} be?  Its ending says nothing to racevisor\n"
            f"  name it {', '.join(f'*{ending} ({name})' for name, ending in FORMATS.items())}, or say:  --format html"
        )
    return output, kind


def _directory(report: Report, directory: Path) -> Path | None:
    """What was played there; the first trace that is bad, or the first there is."""
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
        report.traces.append(Named(file.name, len(recorded.picks), recorded.bad, recorded.outcome))
        if recorded.bad:
            first = first or file
        good = good or file
    drawn = first or good
    if drawn is None and not report.rounds:
        if problem is not None:
            raise problem
        raise UsageError(
            f"there is no trace and no log of rounds in {directory}\n"
            f"  traces are saved in runs/ by explore and run:  racevisor explore init_sipi --variant before"
        )
    return drawn


def _trace(report: Report, file: Path, scenario: str | None, wish: Wish, search: float | None) -> None:
    again = replay(file, scenario)
    recorded, case = again.recorded, again.case
    live = recorded.recorded_by == trace.LIVE
    if not again.identical:
        raise NotDeterministic(f"{file}: {again.difference}\n  see:  racevisor replay {shlex.quote(str(file))}")
    report.title = str(case)
    report.drawn_trace = file.name
    describe(report, case)
    report.facts = _facts(recorded, case, file)
    told = None
    if recorded.bad and wish.shrink:
        told = readable(case, Witness(recorded.picks, recorded.violations, recorded.outcome, recorded.status, 0), wish)
    tell(report, case, recorded.picks, live=live, told=told)
    if search is not None:
        judge(report, case, search)
    report.commands = _commands(file, case)


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


def _commands(file: Path, case: Case) -> list[tuple[str, str]]:
    name = shlex.quote(file.name)
    return [
        ("replay it", f"racevisor replay {name}"),
        ("explain it", f"racevisor explain {name}"),
        ("run it live", f"racevisor run {live_arguments(case)}"),
    ]


def put(path: Path, text: str) -> None:
    """Write a file whole or not at all; UsageError where it cannot be written."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}\n  another place:  -o FILE") from error
