"""Threads as automata, found out as they run.

What a thread does next depends on nothing but the values it has been given so far.  So its coroutine is run once for every
(local state, value) that a search meets; the move is remembered, and from then on the thread is a lookup.  Local states are
numbered by history, and a checkpoint (`Actor.checkpoint`) merges all histories that lead to the same private state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from actors.actor import Actor
from actors.ops import Op
from racevisor.errors import Unhashable, UsageError

if TYPE_CHECKING:
    from racevisor.channel import Thread


def resume(actor: Actor, send: Callable[[Any], Op] | None, value: Any) -> Op | None:
    """Run a suspended thread with the result of its op, up to its next op; None if it ended."""
    try:
        op = send(value)  # type: ignore[misc]
    except StopIteration:
        return None
    if type(op) is not Op:
        raise TypeError(
            f"{actor.name} awaited {op!r}, which is not an op of the machine; only actors.ops may suspend a thread\n"
            f"  instead of asyncio.sleep or a future await an op: READ_ONCE(cell), await_eq(cell, value), choose(n), ..."
        )
    return op


#: Machines of more actors with private state are not looked after: it would cost more than the moves themselves.
_GUARDED = 16


class Automata:
    """The local states and moves of all threads of one World."""

    def __init__(self, threads: list[Thread]) -> None:
        self.ops: list[Op | None] = []
        self.private: list[tuple[Any, ...]] = []
        self.keys: list[tuple[Any, ...]] = []  # what tells a local state from the others: history, checkpoint or end
        self.moves: dict[Any, int] = {}
        self.leads: list[dict[Any, int]] = []  # per local state: where it leads to, by the value that was given
        self.anchors: set[int] = set()  # local states without a past: checkpoints and ends, where histories merge
        self.learned: list[tuple[Thread, int, Any, int]] = []  # every move in the order found: (thread, before, value, after)
        self._numbers: dict[Any, int] = {}
        self._origin: list[tuple[int, Any]] = []  # how a local state was first reached: (local state, value)
        self._live: dict[Thread, tuple[Any, int]] = {}  # a coroutine of the thread and the local state it stands in
        self.threads = threads
        self.resuming = False  # does a thread run now?
        private = [actor for actor in threads[0].actor.vm.actors if actor.state] if threads else []
        self._private = private if len(private) <= _GUARDED else []  # whose private state nobody else may change

    def move(self, thread: Thread, value: Any, before: int) -> int:
        """The local state after `thread` got `value` in local state `before` (-1: not started)."""
        key = (before, value) if before >= 0 else thread.actor.name
        try:
            after = self.moves.get(key)
        except TypeError as error:
            raise Unhashable(
                f"{thread.actor.name} was given {value!r}, which cannot be hashed; a stateful search must remember it\n"
                f"  keep ints, strings, bools, None and tuples of them in cells"
            ) from error
        if after is None:
            after = self.moves[key] = self._learn(thread, before, value)
            self.learned.append((thread, before, value, after))
        return after

    def _learn(self, thread: Thread, before: int, value: Any) -> int:
        actor = thread.actor
        self.resuming = True
        coroutine, at = self._live.get(thread, (None, -2))
        if before < 0 or at != before:
            coroutine = self._drive(thread, before)
        elif before >= 0:  # restore_private_state may have set the attributes of another state
            for name, known in zip(actor.state, self.private[before], strict=True):
                setattr(actor, name, known)
        actor.checkpoint_seen = None
        others = [(other, _attributes(other)) for other in self._private if other is not actor]
        op = resume(actor, coroutine.send, value)
        self.resuming = False
        for other, was in others:
            if _attributes(other) != was:
                raise _not_its_own(actor, other, was)
        seen: tuple[Any, ...] | None = actor.checkpoint_seen
        if op is None:
            key: Any = (actor.name, "end", actor.local_state())
        elif seen is not None:
            key = (actor.name, seen)
        else:
            key = (actor.name, before, value)
        try:
            after = self._numbers.setdefault(key, len(self.ops))
        except TypeError as error:
            raise _unhashable(actor, "at its end" if op is None else f"at checkpoint {seen and seen[0]!r}") from error
        if after == len(self.ops):
            self.ops.append(op)
            self.keys.append(key)
            self.private.append(tuple(getattr(actor, name) for name in actor.state))
            self._origin.append((before, value))
            self.leads.append({})
            if op is None or seen is not None:
                self.anchors.add(after)
        if before >= 0:
            self.leads[before][value] = after
        self._live[thread] = (coroutine, after if op is not None else -2)
        return after

    def _drive(self, thread: Thread, state: int) -> Any:
        """A fresh coroutine of the thread, brought to `state` (-1: not started) by the values that led there first."""
        values = []
        while state >= 0:
            state, value = self._origin[state]
            values.append(value)
        actor = thread.actor
        old, _ = self._live.pop(thread, (None, 0))
        if old is not None:
            old.close()
        actor.close()
        actor.reset()
        coroutine: Any = actor.run()
        for value in reversed(values):
            coroutine.send(value)
        return coroutine

    def restore_private_state(self, threads: list[Thread]) -> None:
        """Private attributes as they are in the present local states, for checks that look at them."""
        for thread in threads:
            for name, value in zip(thread.actor.state, self.private[thread.history], strict=True):
                setattr(thread.actor, name, value)

    def forget(self, thread: Thread) -> None:
        """Drop the thread's coroutine: its private attributes are about to change under it."""
        live, _ = self._live.pop(thread, (None, 0))
        if live is not None:
            live.close()

    def close(self) -> None:
        """Drop every coroutine."""
        for thread in self.threads:
            self.forget(thread)


def _attributes(actor: Actor) -> list[Any]:
    """Its private state as it is, also where a decomposition has taken it away."""
    return [actor.__dict__.get(name) for name in actor.state]


def _not_its_own(actor: Actor, other: Actor, was: list[Any]) -> UsageError:
    for name, before, after in zip(other.state, was, _attributes(other), strict=True):
        if before != after:
            return UsageError(
                f"{actor.name} changed {other.name}.{name} from {before!r} to {after!r}, which is private state of {other.name}\n"
                f"  what another actor's thread may change is shared: make it a cell of {other.name}, and use ops on it"
            )
    raise AssertionError("nothing was changed")


def _unhashable(actor: Actor, when: str) -> Unhashable:
    for name in actor.state:
        value = getattr(actor, name)
        try:
            hash(value)
        except TypeError:
            return Unhashable(
                f"{actor.name}.{name} is {value!r} {when}: a {type(value).__name__}, which cannot be hashed; "
                f"a stateful search must remember it\n  keep a tuple instead of a list, a sorted tuple of pairs instead of a dict"
            )
    return Unhashable(f"{actor.name} has a private state {when} that cannot be hashed: {actor.local_state()!r}")
