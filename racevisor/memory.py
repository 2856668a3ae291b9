"""Memory models as ordering rules on the stores that a thread has posted and others cannot see yet.

| model | rule |
|---|---|
| sc  | a store is visible at once |
| tso | x86: one FIFO of posted stores per thread; own loads forward from it; every locked RMW and full barrier drains it |
| pso | one FIFO per thread and cell; smp_wmb() and release order them; set_bit() and clear_bit() are unordered |

Under pso an unordered set_bit may pass older stores to other cells, but no later store of the thread passes it, nor a release.
None of them reorders loads, so smp_rmb() orders nothing here, and a failed cmpxchg counts as a full barrier (Linux promises
none).  pso allows all that tso allows, tso all that sc allows.  The World and the live hosts use the same rules.
"""

from __future__ import annotations

from typing import Any

from actors.actor import Cell
from actors.ops import Code, Op, Order

MODELS = ("sc", "tso", "pso")


class Posted:
    """One store on its way to memory; `sent` tells a live host that it has left and is not acknowledged."""

    __slots__ = ("cell", "epoch", "sent", "value")

    def __init__(self, cell: Cell, value: Any, epoch: int) -> None:
        self.cell = cell
        self.value = value
        self.epoch = epoch
        self.sent = False


class StoreBuffer:
    """The posted stores of one thread under tso or pso."""

    __slots__ = ("entries", "epoch", "per_cell")

    def __init__(self, model: str) -> None:
        self.per_cell = model == "pso"
        self.entries: list[Posted] = []
        self.epoch = 0

    def clear(self) -> None:
        """Forget everything: the start of a run."""
        self.entries.clear()
        self.epoch = 0

    def copy(self) -> StoreBuffer:
        """The same posted stores, for a snapshot; entries are never changed under a World."""
        other = StoreBuffer.__new__(StoreBuffer)
        other.per_cell, other.entries, other.epoch = self.per_cell, self.entries[:], self.epoch
        return other

    def contents(self) -> tuple[tuple[int, Any, int], ...]:
        """The posted stores as a value; equal contents behave alike."""
        epoch = self.epoch
        return tuple([(e.cell.index, e.value, epoch - e.epoch) for e in self.entries])

    def post(self, op: Op) -> Posted:
        """Append a store; a release store is ordered after all earlier ones."""
        assert op.cell is not None
        if op.order == Order.RELEASE:
            self.epoch += 1
        entry = Posted(op.cell, op.a, self.epoch)
        self.entries.append(entry)
        return entry

    def wmb(self) -> None:
        """Order what is posted so far before what comes."""
        if self.entries:
            self.epoch += 1

    def unpost(self, op: Op) -> None:
        """Take back the latest `post`, of `op`."""
        self.entries.pop()
        if op.order == Order.RELEASE:
            self.epoch -= 1

    def unwmb(self) -> None:
        """Take back a `wmb`; what was posted then is posted now."""
        if self.entries:
            self.epoch -= 1

    def forward(self, cell: Cell) -> Posted | None:
        """The youngest posted store to `cell`, from which an own load is served."""
        for entry in reversed(self.entries):
            if entry.cell is cell:
                return entry
        return None

    def movable(self) -> list[Posted]:
        """The stores that may reach memory next: the head (tso), or each cell's head not held back by a barrier (pso)."""
        entries = self.entries
        if not entries:
            return []
        if not self.per_cell:
            return entries[:1]
        heads = entries[:1]
        if len(entries) == 1:
            return heads
        oldest = heads[0].epoch
        cells = {heads[0].cell.index}
        for entry in entries:
            if entry.epoch > oldest:
                break
            if entry.cell.index not in cells:
                cells.add(entry.cell.index)
                heads.append(entry)
        return heads

    def allows(self, op: Op) -> bool:
        """May the thread execute `op` now, as far as its own posted stores are concerned?"""
        entries = self.entries
        if not entries or op.order == Order.LOCAL:
            return True
        code = op.code
        if code == Code.LOAD or code == Code.STORE or code == Code.CHOOSE:
            return True
        if code == Code.FENCE:
            return op.order != Order.FULL
        if code == Code.RMW and op.order == Order.NONE and self.per_cell:
            # unordered in Linux's model: may pass older stores to other cells, unless a barrier stands between
            return entries[0].epoch == self.epoch and all(entry.cell is not op.cell for entry in entries)
        return False


def buffer_name(thread: str, entry_cell: Cell, model: str) -> str:
    """The name of the channel on which a posted store travels."""
    return f"{thread}~{entry_cell.label}" if model == "pso" else f"{thread}~stores"
