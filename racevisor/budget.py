"""What a search of one cell may cost: executions, and time by a clock that is looked at every so many executions."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from racevisor.errors import UsageError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?")


def parse(text: str) -> float:
    """Seconds of "90", "90s", "2m", "1.5h"; raises UsageError for anything else."""
    found = _LENGTH.fullmatch(text.strip())
    length = float(found[1]) * _UNITS[found[2] or ""] if found else 0.0
    if not length:
        raise UsageError(f"--budget {text!r} is no length of time\n  for instance: --budget 60s, --budget 2m, --budget 1.5h")
    return length


def words(seconds: float) -> str:
    """A length of time for people: "12.3 s", "3 min 20 s", "5 h 10 min", "12 days"."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    if seconds < 6000:
        rest = round(seconds % 60)
        return f"{seconds // 60:.0f} min" + (f" {rest} s" if 0 < rest < 60 and seconds < 1200 else "")
    if seconds < 360_000:
        return f"{seconds / 3600:.1f} h"
    if seconds < 3.15e9:
        return f"{seconds / 86_400:.0f} days"
    return "centuries"


class Budget:
    """At most `runs` executions and `seconds` of time, None for no such limit.  `clock` returns seconds and only grows.

    Between two calls of `look` no time passes: what is decided by `share` and `spent` depends on nothing else.
    """

    def __init__(
        self, seconds: float | None = None, runs: int | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds = seconds
        self.runs = runs
        self.executions = 0
        self.elapsed = 0.0
        self._clock = clock
        self._began = clock()

    def look(self, executions: int) -> None:
        """So many executions are done now; what does the clock say?"""
        self.executions = executions
        self.elapsed = self._clock() - self._began

    @property
    def by_clock(self) -> bool:
        """Is it time rather than executions that is nearer to its end?"""
        return self.seconds is not None and self.elapsed / self.seconds >= self._of_runs()

    @property
    def share(self) -> float:
        """How much of the budget was spent when it was last looked at: 0, ..., 1 and more."""
        return max(self.elapsed / self.seconds if self.seconds is not None else 0.0, self._of_runs())

    @property
    def spent(self) -> bool:
        """Is nothing left?"""
        return self.share >= 1

    def _of_runs(self) -> float:
        return self.executions / self.runs if self.runs is not None else 0.0

    def spent_words(self) -> str:
        """What was spent, in words."""
        return words(self.elapsed) if self.by_clock else f"{self.executions:,} executions"
