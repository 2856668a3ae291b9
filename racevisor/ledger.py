"""The ledger of a search: what was done, under which bounds, what was not done, and what may be concluded.

Every result carries one.  Its verdict is one of three words, and only the first of them is a proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol

from racevisor.budget import words
from racevisor.estimate import Estimate

#: All there is was searched: what was not found does not exist.
EXHAUSTED = "exhausted"
#: A bound other than the budget (steps, delays, "stop at the first bad one") left something out.
BOUND_REACHED = "bound reached"
#: Executions or time ran out.
BUDGET_SPENT = "budget spent"


class Guarantee(Protocol):
    """What PCT promises: see racevisor.strategies.pct."""

    @property
    def n(self) -> int:
        """Threads."""

    @property
    def k(self) -> int:
        """Steps."""

    @property
    def d(self) -> int:
        """Depth of the bugs that are spoken of."""

    @property
    def runs(self) -> int:
        """Executions."""

    @property
    def miss(self) -> float:
        """Upper limit on the probability that all runs missed a bug of that depth."""

    def words(self) -> str:
        """The guarantee in a sentence."""


@dataclass(frozen=True)
class Bounds:
    """What was allowed: steps of one execution, executions, seconds, delays or preemptions; None: no such bound."""

    steps: int
    runs: int | None = None
    seconds: float | None = None
    switches: int | None = None


@dataclass(frozen=True)
class Ledger:
    """How one case was searched.

    `executions` are complete ones; `cut` met the step bound, `blocked` were given up as redundant.  `classes` are Mazurkiewicz
    traces, if the strategy tells them apart.  `by_clock` says whether the clock decided anything: the result then depends on the
    speed of the machine.
    """

    strategy: str
    memory: str
    verdict: str
    #: why it is that verdict: what was covered, or what ended the search
    reason: str
    bounds: Bounds
    executions: int
    bad: int
    cut: int
    blocked: int
    states: int
    classes: int | None
    seconds: float
    #: why this strategy, if `auto` chose it
    why: str = ""
    remains: Estimate | None = None
    guarantee: Guarantee | None = None
    by_clock: bool = False
    #: how many workers shared it; 0: it was not shared out
    workers: int = 0
    #: of a search that was shared out and ended by itself: racevisor.classes.Certificate, and over what it is
    certificate: str = ""
    certified: str = ""

    @property
    def exhausted(self) -> bool:
        """May an absence be concluded?"""
        return self.verdict == EXHAUSTED

    def to_json(self) -> dict[str, Any]:
        """`ledger` of an entry of `explore --json`."""
        entry = {name: getattr(self, name) for name in self.__dataclass_fields__}
        entry["bounds"] = asdict(self.bounds)
        entry["remains"] = None if self.remains is None else self.remains.to_json()
        entry["guarantee"] = None if self.guarantee is None else _fields(self.guarantee)
        entry["sentence"] = self.sentence()
        return entry

    def sentence(self) -> str:
        """All of it in a few sentences; the terminal breaks the lines."""
        counts = [f"{short(self.executions)} executions"]
        counts += [f"{short(number)} {what}" for what, number in self._counts() if number]
        chosen = f" (auto: {self.why})" if self.why else ""
        shared = f", {self.workers} worker{'' if self.workers == 1 else 's'}" if self.workers else ""
        parts = [
            f"{self.verdict}: {self.reason}",
            f"strategy {self.strategy}{chosen}: {', '.join(counts)}, {words(self.seconds)}{shared}",
        ]
        if self.remains is not None:
            what = "an exhaustive search" if self.bounds.switches is None else "all that the bound admits"
            parts.append(f"{what} would take {_remains(self.remains)}")
        if self.guarantee is not None and not self.bad:
            parts.append(f"PCT: {self.guarantee.words()}")
        if not self.exhausted and not self.bad:
            parts.append("nothing bad was found, which proves nothing")
        return ". ".join(part[0].upper() + part[1:] if n else part for n, part in enumerate(parts)) + "."

    def _counts(self) -> list[tuple[str, int]]:
        return [
            ("bad", self.bad), ("classes", self.classes or 0), ("states", self.states), ("given up as redundant", self.blocked),
            (f"cut at {self.bounds.steps} steps", self.cut),
        ]  # fmt: skip


def _fields(value: Any) -> dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return {name: getattr(value, name) for name in ("n", "k", "d", "runs", "miss")}


def _remains(of: Estimate) -> str:
    whole = f"about {short(of.total)} executions ({short(of.low)} to {short(of.high)})"
    return f"{whole}, {_share(of.share)} are done" + (f", {words(of.seconds_left)} to go" if of.seconds_left else "")


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"


def judge(
    *,
    exhausted: bool,
    complete: int,
    settled: bool,
    stopped: str,
    cut: int,
    limit: str,
    steps: int,
    covers: str,
    runs: int,
) -> tuple[str, str]:
    """(verdict, reason) of a search that ended.

    `stopped` says what of the budget ran out, "" if nothing did; `limit` is a bounded strategy's bound, if something lay beyond
    it; `covers` is what the strategy has covered when it is exhausted, "" if it never is.
    """
    if exhausted and not limit:
        if not complete:
            return BOUND_REACHED, "no execution ends, all run for ever; what must not be left undone was not judged"
        return EXHAUSTED, covers
    if settled:
        return BOUND_REACHED, "stopped at the first bad and the first good execution, which settle it"
    if stopped or not covers:
        return BUDGET_SPENT, stopped or f"{runs:,} executions"
    reasons = [f"{cut} executions were cut at {steps} steps"] if cut else []
    reasons += [f"all executions with {limit}"] if limit else []
    return BOUND_REACHED, " and ".join(reasons) or "the search ended before it was complete"


def short(number: float) -> str:
    """1234567 as 1.2M."""
    for limit, unit in ((1e12, ""), (1e9, "G"), (1e6, "M"), (1e5, "k")):
        if number >= limit:
            if not unit:
                return f"{number:.0e}".replace("e+", "e")
            value = number / (1e3 if unit == "k" else limit)
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return f"{number:,.0f}"


#: The present state of a search, for whoever shows it: executions, states, seconds, and an estimate if it is asked for.
Look = Callable[[int, int, float, Callable[[], Estimate | None]], None]
