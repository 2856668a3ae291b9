"""A host under a gate: a thread, a posted store, an IPI moves when the driver says so, one step at a time.

That is how a trace that a search has found is played on real actors, in exactly its order.
"""

from __future__ import annotations

from cluster.engine import Engine
from cluster.messages import MOVED, Message
from racevisor import step


def grant(engine: Engine, kind: int, thread: int, where: int) -> None:
    """Let the head of one channel move: of a thread, of its posted stores (to cell `where`), of its IPIs to CPU `where`."""
    engine.granted = (kind, thread, where)
    _try(engine)


def tell(engine: Engine, said: list[Message]) -> None:
    """Tell the driver what has moved since it was last told, and what cannot."""
    if engine.granted is not None:
        _try(engine)  # what it waited for may have come
    for record in engine.log[engine.told :]:
        said.append((MOVED, record, ""))
    engine.told = len(engine.log)
    if engine.refused:
        said.append((MOVED, (), engine.refused))
        engine.refused = ""
    engine.ready.clear()  # nobody goes on by himself
    engine.draining.clear()


def _try(engine: Engine) -> None:
    """Do what is granted; or wait, where a message that belongs to an earlier step is still on its way here."""
    assert engine.granted is not None
    kind, thread, where = engine.granted
    name = engine.names[thread] if 0 <= thread < len(engine.names) else f"thread {thread}"
    if kind == step.IPI:
        flying = engine.flying.get((thread, where), 0)
        if not flying:
            return
        engine.flying[thread, where] = flying - 1
        engine.granted = None
        engine.interrupt(thread, where)
        return
    runner = engine.runners.get(thread)
    if runner is None:
        _refuse(engine, f"{name} is no thread of this host")
        return
    posted = runner.buffer.entries if runner.buffer is not None else []
    unanswered = runner.waiting or any(entry.sent for entry in posted)
    if kind == step.STORE_BUFFER:
        leaving = runner.buffer.movable() if runner.buffer is not None else []
        entry = next((entry for entry in leaving if not entry.sent and where in (-1, entry.cell.index)), None)
        if entry is not None:
            engine.granted = None
            engine.leave(runner, entry)
        elif not unanswered:
            _refuse(engine, f"{name} has no posted store that may leave")
    elif runner.waiting:
        return
    elif runner.op is None:
        _refuse(engine, f"{name} has ended")
    else:
        engine.answer = where if kind == step.CHOICE else -1
        taken = runner.taken
        engine.move(runner)
        if runner.taken > taken:
            engine.granted = None
        elif not unanswered:
            _refuse(engine, f"{name} waits for its posted stores")


def _refuse(engine: Engine, why: str) -> None:
    engine.granted = None
    engine.refused = why
