"""The commands that are about one bad execution: explain, step, report; and compare, which is about two versions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from racevisor.cli_options import as_json, in_full, not_shrunk, of_vcpus, shrink_budget, widely
from racevisor.errors import UsageError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--scenario", metavar="NAME", help="The scenario, if it is no longer where it was recorded.")
@shrink_budget
@in_full
@widely
@as_json
def explain(file: Path, scenario: str | None, shrink_budget: float, full: bool, as_json: bool) -> int:
    """Why the run of a trace went wrong: the steps whose order decides, and the nearest run that ends well."""
    from racevisor.commands.explain import explain_trace
    from racevisor.reason import Wish

    return explain_trace(file, scenario, full, as_json, Wish(True, shrink_budget))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--scenario", metavar="NAME", help="The scenario, if it is no longer where it was recorded.")
def step(file: Path, scenario: str | None) -> int:
    """Walk a trace in the terminal: on, back, to the fatal step, or another way."""
    if not sys.stdout.isatty() or not sys.stdin.isatty():
        raise UsageError(f"step needs a terminal\n  draw the trace instead:  racevisor replay {file}")
    from racevisor.commands.step import step_trace

    return step_trace(file, scenario)


@click.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="TRACE|DIR|NAME")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where it goes; its ending says what it is.  [default: TRACE.html, DIR/report.html, or NAME.html]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["html", "perfetto", "shiviz", "mermaid"]),
    help="html: a page.  perfetto: tracks and flows for ui.perfetto.dev.  shiviz: a log with vector clocks.  mermaid: a diagram "
    "for a README.  [default: by FILE's ending: .html .json .shiviz .mmd]",
)
@click.option("--against", metavar="V", help="The version that is shown beside it, under the same schedule.  [default: the fix]")
@click.option("--variant", metavar="V", help="Of NAME: the version of the code.  [default: the first variant]")
@click.option("--setup", metavar="S", help="Of NAME: who runs.  [default: the first set-up in which it is claimed to go wrong]")
@click.option("--memory", metavar="M", help="Of NAME: sc, tso (x86) or pso.  [default: tso]")
@of_vcpus
@click.option("--scenario", metavar="NAME", help="The scenario of a trace, if it is no longer where it was recorded.")
@click.option(
    "--search",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long this version, and the one beside it, are searched; 0: not at all.",
)
@not_shrunk
@shrink_budget
@as_json
def report(no_shrink: bool, shrink_budget: float, **options: Any) -> int:
    """A trace, the rounds in a directory of run or stress, or a scenario, as one page that opens offline; or for another viewer.

    The page has a lane for each actor, messages as arrows, cells with their values, the racing pair, the nearest good run, and
    the fix under the same schedule.  A scenario is searched; drawn is the bad execution that is met, or a good one.
    """
    from racevisor.commands.report import report_trace

    return report_trace(shrink=not no_shrink, shrink_seconds=shrink_budget, **options)


@click.command()
@click.argument("name")
@click.argument("one", metavar="V1")
@click.argument("other", metavar="V2")
@click.option("--setup", metavar="S", help="Who runs.  [default: the first set-up in which V1 is claimed to go wrong]")
@click.option("--memory", default="tso", show_default=True, metavar="M", help="Memory model: sc, tso (x86) or pso.")
@click.option("--budget", default="1m", show_default=True, metavar="TIME", help="For each version: to find, and again to count.")
@of_vcpus
@shrink_budget
@as_json
def compare(
    name: str,
    one: str,
    other: str,
    setup: str | None,
    memory: str,
    budget: str,
    vcpus: int | None,
    shrink_budget: float,
    as_json: bool,
) -> int:
    """Two versions side by side, as plain text for a mail: how many classes of executions are bad, and why."""
    from racevisor.commands.compare import compare_variants
    from racevisor.reason import Wish

    return compare_variants(name, one, other, setup, memory, vcpus, budget, as_json, Wish(True, shrink_budget))
