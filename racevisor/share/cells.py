"""A search that cannot be shared out: the whole of it is one piece.  A table of cells still keeps all workers busy."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from racevisor.classes import Certificate
from racevisor.estimate import Estimate
from racevisor.explore import Verdict, explore_case
from racevisor.share.verdicts import plain, verdict_of
from racevisor.tally import Tally

if TYPE_CHECKING:
    from racevisor.choose import Wanted
    from racevisor.scenario import Case


class CellPool:
    """One piece, which says nothing; its result is a verdict."""

    states = 0
    exhausted = False

    def __init__(self, case: Case, wanted: Wanted) -> None:
        self.tally = Tally()
        self.verdict: Verdict | None = None
        self._given = False

    @property
    def done(self) -> bool:
        """Is there a verdict?"""
        return self.verdict is not None

    def give(self) -> tuple[int, Any] | None:
        """All of it, once."""
        if self._given or self.done:
            return None
        self._given = True
        return 1, None

    def take(self, number: int, result: Any) -> None:
        """The verdict."""
        if not self.done:
            self.verdict = verdict_of(result)
            self.tally.complete = self.tally.runs = self.verdict.executions

    def lost(self, number: int) -> None:
        """All of it again."""
        self._given = False

    def news(self, since: int) -> tuple[int, Any]:
        """None: there is one piece."""
        return 0, None

    def certificate(self) -> tuple[Certificate, str] | None:
        """A single worker needs none."""
        return None

    def estimate(self, seconds: float) -> Estimate | None:
        """Nobody tells before it is over."""
        return None

    def facts(self) -> dict[str, Any]:
        """The verdict has all of them."""
        return {}

    def close(self) -> None:
        """There is nothing to close."""

    def save(self) -> Any:
        """Nothing: a verdict is kept by whoever asked for it."""
        return None

    @classmethod
    def load(cls, case: Case, wanted: Wanted, saved: Any) -> Self:
        """From the beginning."""
        return cls(case, wanted)


class CellWorker:
    """Searches it as if it were alone."""

    def __init__(self, case: Case, wanted: Wanted) -> None:
        self.case = case
        self.wanted = wanted

    def hear(self, news: Any) -> None:
        """There is none."""

    def work(self, piece: Any, seconds: float) -> Any:
        """To the end, however long that takes."""
        return plain(explore_case(self.case, **asdict(self.wanted)))

    def close(self) -> None:
        """There is nothing to close."""
