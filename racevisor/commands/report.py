"""`racevisor report TRACE|DIR|NAME`: one page that opens offline, or a file for another viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from racevisor import api
from racevisor.commands.output import print_json, quiet_if
from racevisor.report.make import FORMATS
from racevisor.report.whole import Report


def report_trace(source: Path, output: Path | None, format_: str | None, as_json: bool, **options: Any) -> int:
    """Returns the exit status: 0.  `options` are the others of `racevisor.api.report`."""
    with quiet_if(as_json):
        target = output or _beside(source, FORMATS[format_ or "html"])
        made = api.report(source, output=target, format=format_, **options)
    told = {"output": str(target), "format": made.format, "bytes": len(made.text.encode()), **_told(made.report)}
    if as_json:
        print_json(told)
    else:
        click.echo(f"{target}: {made.format}, {told['bytes']:,} bytes, {told['steps']:,} steps of {told['lanes']:,} actors")
    return 0


def _beside(source: Path, ending: str) -> Path:
    """The name of what nobody named: beside the trace, in the directory, or for a scenario here."""
    if source.is_dir():
        return source / f"report{ending}"
    return source.with_suffix(ending) if source.suffix == ".trace" else Path(f"{source.stem}{ending}")


def _told(report: Report) -> dict[str, Any]:
    run = report.runs[0] if report.runs else None
    beside = report.beside
    return {
        "trace": report.drawn_trace,
        "steps": len(run.events) if run else 0,
        "lanes": len(run.lanes) if run else 0,
        "bad": bool(report.broken),
        "runs": [one.key for one in report.runs],
        "beside": beside and {"variant": beside.variant, "bad": beside.bad, "outcome": beside.outcome, "finding": beside.finding},
        "rounds": sum(one.rounds for one in report.rounds),
    }
