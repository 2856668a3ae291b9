"""What of a machine's memory can change at all: most cells are never written to, and no state is told from another by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from actors.actor import Cell
from actors.ops import Code, Op


class Written:
    """Those of `cells` that some op writes to, of ops that a thread is known to come to; in the order in which they became known.

    `ops` is a list that grows while threads turn out to do more, and `landing` the cell that an IPI to a CPU arrives at.
    """

    def __init__(self, cells: Iterable[Cell], ops: list[Op | None], landing: Callable[[str], Cell | None]) -> None:
        self._among = {cell.index: cell for cell in cells}
        self._ops = ops
        self._landing = landing
        self._looked = 0  # at so many ops
        self._cells: list[Cell] = []
        self._first: int | None = None  # how many were known when a state was first told from others

    @property
    def cells(self) -> list[Cell]:
        """One list, which grows."""
        if self._looked < len(self._ops):
            for op in self._ops[self._looked :]:
                if op is not None and op.code != Code.LOAD:
                    cell = self._landing(op.a) if op.code == Code.SEND else op.cell
                    if cell is not None and self._among.pop(cell.index, None) is not None:
                        self._cells.append(cell)
            self._looked = len(self._ops)
        return self._cells

    def state(self) -> list[Any]:
        """Their values, as what tells the present state from others.

        A state has to be the same value before and after it becomes known that one more cell is written to, which then still is
        as it was at first: so of the cells that became known late, the last ones are left out that are.
        """
        cells = self.cells
        first = self._first
        if first is None:
            first = self._first = len(cells)
        values = [cell.value for cell in cells]
        if len(values) > first:
            while len(values) > first and values[-1] == cells[len(values) - 1].init:
                values.pop()
            if len(values) > first:
                values[first:] = [("late", *values[first:])]
        return values

    def restore(self, cells: list[Cell], values: list[Any]) -> None:
        """Back to these values of the first of `cells`; if they are this list, the others are as they were at first."""
        for cell, value in zip(cells, values, strict=False):
            cell.value = value
        if cells is self.cells:  # all that is known by now
            for cell in cells[len(values) :]:
                cell.value = cell.init
