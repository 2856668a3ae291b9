"""The options of `racevisor analyze`, of which there are many; what it does is in `racevisor.commands.analyze`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option("--scenario", multiple=True, metavar="NAME", help="Only rounds of this scenario; may be repeated.")
@click.option("--variant", multiple=True, metavar="V", help="Only this variant; may be repeated.")
@click.option("--setup", multiple=True, metavar="S", help="Only this set-up; may be repeated.")
@click.option("--memory", multiple=True, metavar="M", help="Only this memory model; may be repeated.")
@click.option(
    "--table",
    "tables",
    multiple=True,
    type=click.Choice(["cases", "outcomes", "compare", "rate", "first", "orders", "messages", "events", "stuck"]),
    help="Answer only this; may be repeated.  [default: all but events]",
)
@click.option("--against", metavar="V", help="The variant that others are held against.  [default: before, or the worst]")
@click.option("--bad", metavar="TEXT", help="Bad is what has this in a violation or the outcome.  [default: any violation]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Rows of each table.  [default: 10 in the text, else all]")
@click.option(
    "--parquet",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all events, merged in causal order, for queries of your own; docs/logs.md has the columns.",
)
@click.option("--csv", "as_csv", is_flag=True, help="The one --table as CSV.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, and nothing else there.")
def analyze(
    places: tuple[Path, ...],
    tables: tuple[str, ...],
    against: str | None,
    bad: str | None,
    limit: int | None,
    parquet: Path | None,
    as_csv: bool,
    as_json: bool,
    **wanted: tuple[str, ...],
) -> int:
    """What the logs of runs say: DIR... are directories with logs in or below them, of any number of runs and hosts.

    \b
    outcomes  how rounds ended, by scenario, variant, memory model, vCPUs, ...
    compare   the variants side by side, with the difference
    rate      bad rounds over time
    first     the first bad round, and the step that broke the check
    orders    which order of two accesses goes with bad rounds, (--log-steps)
    messages  messages between hosts: counts and latencies        (--log-steps)
    stuck     what was in flight at the end of stuck and aborted rounds
    cases     one line each; events: the kinds of events, counted

    All intervals are 95 % intervals.  Damaged lines are named and left out.  Logs may still be growing.
    """
    from racevisor.commands.analyze import analyze as analyze_logs

    return analyze_logs(places, tables, against, bad, limit, parquet, as_csv, as_json, wanted)
