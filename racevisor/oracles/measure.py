"""The rows of known numbers, run: by `racevisor selfcheck`."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

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


def results(jobs: int = 1, progress: Callable[[int], None] = lambda done: None) -> list[Result]:
    """Every row, in `jobs` processes; `progress` is told how many are done."""
    number = len(table())
    if jobs == 1:
        return [_nth(n) for n in range(number)]
    found: list[Result] = []
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(_nth, range(number)):
            found.append(result)
            progress(len(found))
    return [result._replace(row=row) for result, row in zip(found, table(), strict=True)]


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
