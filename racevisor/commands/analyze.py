"""`racevisor analyze`: what the logs of runs say.  How it is told is in `analyze_text`; the answers are `racevisor.analysis`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from racevisor.analysis import table
from racevisor.analysis.read import Logs, read
from racevisor.analysis.report import SLOTS, Report, report
from racevisor.analysis.rounds import Rounds, rounds
from racevisor.commands.analyze_text import print_report
from racevisor.commands.output import console, print_json, quiet_if
from racevisor.errors import UsageError

#: Rows of each table in the text.
ROWS = 10


def analyze(
    places: Sequence[Path],
    tables: Sequence[str],
    against: str | None,
    bad: str | None,
    limit: int | None,
    parquet: Path | None,
    as_csv: bool,
    as_json: bool,
    wanted: Mapping[str, Sequence[str]],
) -> int:
    """Returns the exit status: 0, whatever the logs say."""
    if as_csv and as_json:
        raise UsageError("--csv and --json both want standard output\n  ask for one of them")
    if as_csv and len(tables) != 1:
        raise UsageError("--csv prints one table\n  say which:  --table outcomes --csv")
    with quiet_if(as_json):
        logs = read(places)
        asked = rounds(logs, bad, **wanted)
        done = report(logs, asked, tables, against, limit or SLOTS)
        written = table.write(asked, parquet) if parquet is not None else None
    if as_csv:
        frame = done.tables[tables[0]]
        click.echo((frame if limit is None else frame.head(limit)).write_csv(), nl=False)
        return 0
    if as_json:
        print_json(_json(done, limit, parquet, written))
        return 0
    out = console()
    print_report(out, done, limit or ROWS)
    if parquet is not None:
        out.print()
        out.print(f"  {written:,} events in causal order:  {parquet}", soft_wrap=True)
    return 0


def _json(done: Report, limit: int | None, parquet: Path | None, written: int | None) -> dict[str, Any]:
    logs, asked = done.logs, done.rounds
    about = {**_about(logs, asked), "parquet": {"file": str(parquet), "rows": written} if parquet is not None else None}
    said = done.orders
    if said is not None:
        about["orders_rest_on"] = {
            "rounds": said.rounds,
            "bad": said.bad,
            "pairs_in_both_orders": said.both,
            "pairs": said.pairs,
            "left_out": said.left_out,
            "notes": said.notes,
        }
    rows = {name: frame if limit is None else frame.head(limit) for name, frame in done.tables.items()}
    tables = {
        name: [{key: _plain(value) for key, value in row.items()} for row in frame.to_dicts()] for name, frame in rows.items()
    }
    return {**about, **tables}


def _about(logs: Logs, asked: Rounds) -> dict[str, Any]:
    return {
        "files": logs.files,
        "lines": logs.lines,
        "runs": asked.played["run"].n_unique(),
        "rounds": asked.played.height,
        "bad": int(asked.played["bad"].sum()),
        "aborted": asked.aborted.height,
        "copies": asked.copies,
        "events": asked.events.height,
        "damaged": {"lines": logs.damage, "where": [str(damage) for damage in logs.damaged]},
        "growing": logs.growing,
        "foreign": logs.foreign,
    }


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
