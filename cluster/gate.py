"""A host under a gate: a thread, a posted store, an IPI moves when the driver says so, one step at a time.

That is how a trace that a search has found is played on real actors, in exactly its order.
"""

from __future__ import annotations

from cluster.engine import Engine
from cluster.messages import MOVED, Message
from racevisor import step


def grant(engine: Engine, kind: int, thread: int, where: int) -> None:
    """Let the head of one channel move: of a thread, of its posted stores to cell `where`, of its IPIs to CPU `where`."""
    name = engine.names[thread] if 0 <= thread < len(engine.names) else f"thread {thread}"
    if kind == step.IPI:
        flying = engine.flying.get((thread, where), 0)
        if not flying:
            engine.refused = f"no IPI of {name} is on its way to {engine.names[where]}"
            return
        engine.flying[thread, where] = flying - 1
        engine.interrupt(thread, where)
        return
    runner = engine.runners.get(thread)
    if runner is None:
        engine.refused = f"{name} is no thread of this host"
    elif kind == step.STORE_BUFFER:
        entries = runner.buffer.movable() if runner.buffer is not None else []
        entry = next((entry for entry in entries if not entry.sent and where in (-1, entry.cell.index)), None)
        if entry is None:
            engine.refused = f"{name} has no posted store that may leave"
        else:
            engine.leave(runner, entry)
    elif runner.op is None or runner.waiting:
        engine.refused = f"{name} has ended" if runner.op is None else f"{name} waits for an answer"
    else:
        engine.answer = where if kind == step.CHOICE else -1
        engine.move(runner)
        if runner.stalled or runner.bounded:
            engine.refused = f"{name} {'waits for its posted stores' if runner.stalled else 'has reached the bound of steps'}"


def tell(engine: Engine, said: list[Message]) -> None:
    """Tell the driver what has moved since it was last told, and what could not."""
    for record in engine.log[engine.told :]:
        said.append((MOVED, record, ""))
    engine.told = len(engine.log)
    if engine.refused:
        said.append((MOVED, (), engine.refused))
        engine.refused = ""
