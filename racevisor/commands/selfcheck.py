"""`racevisor selfcheck`: the searches of this installation against numbers that are known from elsewhere."""

from __future__ import annotations

import time

from rich.table import Table
from rich.text import Text

from racevisor.commands.output import Meter, console, print_json, processors
from racevisor.oracles.measure import Result, measure, results
from racevisor.oracles.rows import Row, table


def check(jobs: int | None, as_json: bool, rows: list[Row] | None = None) -> int:
    """Run every row (or `rows`, in this process) and print the table; returns the exit status: 1 if a number differs."""
    out = console()
    began = time.perf_counter()
    with Meter("selfcheck", len(rows or table()), "rows") as meter:
        done = [measure(row) for row in rows] if rows is not None else results(jobs or processors(), meter.update)
    wrong = sum(not result.agrees for result in done)
    seconds = time.perf_counter() - began
    if as_json:
        print_json({"rows": [_entry(result) for result in done], "wrong": wrong, "seconds": seconds})
        return 1 if wrong else 0
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("program", "counted", "strategy"):
        shown.add_column(heading)
    for heading in ("known", "got", "seconds"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row, got, took in done:
        good = isinstance(got, int) and row.agrees(got)
        words = Text(f"{got:,}" if isinstance(got, int) else got, style="" if good else "bold red")
        shown.add_row(row.program, row.counted, row.strategy, row.known, words, f"{took:.2f}")
    out.print(shown)
    out.print()
    verdict = f"all {len(done)} numbers agree"
    if wrong:
        verdict = f"{wrong} of {len(done)} numbers differ: do not trust this installation"
    out.print(Text(f"{verdict}  ({seconds:.1f} s)", style="bold red" if wrong else "green"))
    return 1 if wrong else 0


def _entry(result: Result) -> dict[str, object]:
    row, got, seconds = result
    own = {name: getattr(row, name) for name in ("program", "counted", "strategy", "known")}
    return {**own, "got": got, "agrees": result.agrees, "seconds": seconds}
