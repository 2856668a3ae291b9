"""One step as it happened, and the words for it: the same on a live host and in the World, so that runs can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.actor import Cell
from actors.ops import Code, Op, describe

# What kind of head moved.
THREAD, STORE_BUFFER, IPI, CHOICE = range(4)


class Step:
    """One transition: the head of channel `channel` moved.  `before` and `after` are the cell's value around it."""

    __slots__ = ("after", "before", "cell", "channel", "function", "kind", "n", "notes", "op", "posted", "result", "thread")

    def __init__(
        self,
        n: int,
        kind: int,
        channel: str,
        thread: str,
        op: Op,
        cell: Cell | None,
        before: Any,
        after: Any,
        result: Any,
        posted: bool,
    ) -> None:
        self.n = n
        self.kind = kind
        self.channel = channel
        self.thread = thread
        self.op = op
        self.cell = cell
        self.before = before
        self.after = after
        self.result = result
        self.posted = posted
        self.notes: Sequence[tuple[str, dict[str, Any]]] = ()
        self.function = ""

    @property
    def label(self) -> str:
        """What happened, with the value seen: what replay compares."""
        return label(self.kind, self.op, self.cell, self.after, self.result, self.posted)

    @property
    def writes(self) -> bool:
        """Did the cell change hands: a store, or an RMW that changed the value?"""
        return self.cell is not None and (self.before != self.after or (self.op.code == Code.STORE and not self.posted))

    def __repr__(self) -> str:
        return f"<step {self.n} {self.channel}: {self.label}>"


def label(kind: int, op: Op, cell: Cell | None, after: Any, result: Any, posted: bool) -> str:
    """The words of a step."""
    if kind == STORE_BUFFER:
        assert cell is not None
        return f"{cell.label} <- {after}"
    if kind == IPI:
        assert cell is not None
        return f"reschedule IPI arrives at {cell.owner.name}: {after}"
    code = op.code
    text = describe(op)
    if code == Code.STORE:
        return f"{text} posted" if posted else text
    if code == Code.FENCE or code == Code.SEND:
        return text
    return f"{text} = {result}"
