"""What the search of one case is to whoever shares it out: a pool on the driver's side, and a worker that takes its pieces.

Whatever goes from one to the other, or into a checkpoint, is plain data that msgpack can write: None, bools, ints of 64 bits,
floats, strings, bytes, lists, and dicts with strings as keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

from racevisor.classes import Certificate
from racevisor.estimate import Estimate
from racevisor.tally import Tally

if TYPE_CHECKING:
    from racevisor.choose import Wanted
    from racevisor.scenario import Case


class Pool(Protocol):
    """The driver's side of the search of one case.

    A piece is handed out under a number.  Who gets it may vanish: `lost` has it handed out again, under the same number, and of
    two results for one number the first counts and the other is ignored.  A result is taken whole or not at all.
    """

    #: what all results so far showed
    tally: Tally
    #: is nothing left, neither to be handed out nor to be waited for?
    done: bool
    #: is it done because everything was searched?
    exhausted: bool
    #: of a search that counts them, else 0
    states: int

    def give(self) -> tuple[int, Any] | None:
        """(number, piece); None: nothing to hand out now, ask again after the next `take`."""

    def take(self, number: int, result: Any) -> None:
        """The result of a piece; ignored if that number has one."""

    def lost(self, number: int) -> None:
        """Whoever had the piece is gone; ignored if there is a result."""

    def news(self, since: int) -> tuple[int, Any]:
        """(version, what every worker has to know that knows what there was at version `since`); (0, None): there is none."""

    def certificate(self) -> tuple[Certificate, str] | None:
        """What the search met, and what that is; None if it says nothing about the search."""

    def estimate(self, seconds: float) -> Estimate | None:
        """How much there is to do, after so many seconds; None where nobody can tell."""

    def facts(self) -> dict[str, Any]:
        """What else a ledger says of the search: fields of racevisor.ledger.Ledger; `limit` and `covers` are those of `judge`."""

    def save(self) -> Any:
        """All of it for a checkpoint, as plain data; what is handed out is handed out again by whoever loads it."""

    @classmethod
    def load(cls, case: Case, wanted: Wanted, saved: Any) -> Self:
        """As it was when it was saved."""

    def close(self) -> None:
        """It is no longer needed."""


class Worker(Protocol):
    """Works on the pieces of one case; what it has learned of the machine it keeps from piece to piece."""

    def __init__(self, case: Case, wanted: Wanted) -> None:
        """Make a World of the case."""

    def hear(self, news: Any) -> None:
        """What every worker has to know."""

    def work(self, piece: Any, seconds: float) -> Any:
        """Work for about so long, or until the piece is done; the result, for Pool.take."""

    def close(self) -> None:
        """Drop the World."""
