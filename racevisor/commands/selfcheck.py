"""`racevisor selfcheck`: the searches of this installation against numbers that are known from elsewhere."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from racevisor.commands.output import Meter, console, print_json, processors
from racevisor.oracles.rows import Row, table


class Result(NamedTuple):
    """What came out of a row."""

    row: Row
    got: int | str
    seconds: float

    @property
    def agrees(self) -> bool:
        """Is it as known?  An error is not."""
        return isinstance(self.got, int) and self.row.agrees(self.got)


def check(jobs: int | None, as_json: bool, rows: list[Row] | None = None) -> int:
    """Run every row (or `rows`, in this process) and print the table; returns the exit status: 1 if a number differs."""
    out = console()
    began = time.perf_counter()
    with Meter("selfcheck", len(rows or table()), "rows") as meter:
        results = [measure(row) for row in rows] if rows is not None else _everything(jobs or processors(), meter)
    wrong = sum(not result.agrees for result in results)
    seconds = time.perf_counter() - began
    if as_json:
        print_json({"rows": [_entry(result) for result in results], "wrong": wrong, "seconds": seconds})
        return 1 if wrong else 0
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("program", "counted", "strategy"):
        shown.add_column(heading)
    for heading in ("known", "got", "seconds"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row, got, took in results:
        good = isinstance(got, int) and row.agrees(got)
        words = Text(f"{got:,}" if isinstance(got, int) else got, style="" if good else "bold red")
        shown.add_row(row.program, row.counted, row.strategy, row.known, words, f"{took:.2f}")
    out.print(shown)
    out.print()
    verdict = f"all {len(results)} numbers agree"
    if wrong:
        verdict = f"{wrong} of {len(results)} numbers differ: do not trust this installation"
    out.print(Text(f"{verdict}  ({seconds:.1f} s)", style="bold red" if wrong else "green"))
    return 1 if wrong else 0


def _everything(jobs: int, meter: Meter) -> list[Result]:
    number = len(table())
    if jobs == 1:
        return [_nth(n) for n in range(number)]
    results = []
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(_nth, range(number)):
            results.append(result)
            meter.update(len(results))
    return [result._replace(row=row) for result, row in zip(results, table(), strict=True)]


def _nth(n: int) -> Result:
    return measure(table()[n])


def measure(row: Row) -> Result:
    """Run a row; an exception is a result, and a wrong one."""
    began = time.perf_counter()
    got: int | str
    try:
        got = row.measure()
    except Exception as error:  # whatever it is, the other rows are still worth running
        got = f"{type(error).__name__}: {error}"
    return Result(row, got, time.perf_counter() - began)


def _entry(result: Result) -> dict[str, object]:
    row, got, seconds = result
    own = {name: getattr(row, name) for name in ("program", "counted", "strategy", "known")}
    return {**own, "got": got, "agrees": result.agrees, "seconds": seconds}
