"""One thread that runs alone: a kernel function is driven to its end, each access done at once."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from actors.actor import Actor
from actors.ops import AWAIT, Code, Op, apply, describe
from actors.pcpu import Pcpu


class WouldBlock(Exception):
    """The thread waits for somebody else, and there is nobody."""


def run_alone(coroutine: Coroutine[Op, Any, Any], actors: dict[str, Actor] | None = None) -> Any:
    """Drive `coroutine` to its end with nobody else running, and return what it returns.

    Stores are visible at once: one thread alone cannot tell.  An IPI arrives in the step that sends it, at the physical CPU of
    that name in `actors`.  Raises WouldBlock if it waits for what only another thread can do, or for a choice.
    """
    send, result = coroutine.send, None
    load = Code.LOAD
    while True:
        try:
            op = send(result)
        except StopIteration as end:
            return end.value
        cell = op.cell
        if cell is not None:
            if op.code is load:
                result = cell.value
                continue
            if op.code == Code.AWAIT and not AWAIT[op.fn](cell.value, op.a):
                coroutine.close()
                raise WouldBlock(f"{describe(op)} with {cell.label} = {cell.value!r}, and nobody else runs")
            cell.value, result = apply(op, cell.value)
        elif op.code == Code.FENCE:
            result = None
        elif op.code == Code.SEND:
            pcpu = (actors or {}).get(op.a)
            if isinstance(pcpu, Pcpu):
                arrival = pcpu.deliver_ipi
                pcpu.cpu.value, _ = apply(arrival, pcpu.cpu.value)
            result = None
        else:
            coroutine.close()
            raise WouldBlock(f"{describe(op)}: there is nobody to choose")
