"""A state in 16 bytes that are the same in every process.

A World's fingerprint tells states apart in one process: it holds the numbers that Automata gave to local states in the order in
which it met them.  Here a local state is named by what it is: the private state at a checkpoint or at the end, or else the
state before and the value that was given.  Every part of a state (cells, local states, posted stores, IPIs in flight, what
monitors remember) has a digest that is made once; the state's own is a hash over those.
"""

from __future__ import annotations

from enum import Enum
from hashlib import blake2b
from operator import getitem
from typing import Any

from racevisor.errors import Unhashable
from racevisor.world import World

BYTES = 16


def encode(value: Any) -> bytes:
    """`value` as bytes, equal for values that are equal as keys of a dict (True and 1 are), and for no others.

    Raises Unhashable for a value that means nothing in another process.
    """
    if value is None:
        return b"N"
    if isinstance(value, int):
        return b"i%d;" % value
    if isinstance(value, str):
        text = str.encode(value)
        return b"s%d:" % len(text) + text
    if isinstance(value, tuple):
        return b"(" + b"".join(map(encode, value)) + b")"
    if isinstance(value, bytes):
        return b"b%d:" % len(value) + value
    if isinstance(value, float):
        return b"i%d;" % int(value) if value.is_integer() else b"f" + repr(value).encode() + b";"
    if isinstance(value, frozenset):
        return b"{" + b"".join(sorted(map(encode, value))) + b"}"
    if isinstance(value, Enum):
        return b"e" + encode((type(value).__qualname__, value.name))
    raise Unhashable(
        f"{value!r} is a {type(value).__name__}, by which another process cannot recognise a state\n"
        f"  keep ints, strings, bools, None and tuples of them in cells and private attributes, or search without --workers"
    )


def digest(*parts: Any) -> bytes:
    """16 bytes for some plain values."""
    return blake2b(encode(parts), digest_size=BYTES).digest()


class _Parts(dict[Any, bytes]):
    """The digests of one part of the state, by its value."""

    def __init__(self, *what: Any) -> None:
        super().__init__()
        self.what = what

    def __missing__(self, value: Any) -> bytes:
        found = self[value] = digest(*self.what, value)
        return found


class Digests:
    """The digests of the states of one World, whose threads are automata."""

    def __init__(self, world: World) -> None:
        assert world.automata is not None
        self.world = world
        self.automata = world.automata
        self._cells = [_Parts("cell", cell.index) for cell in world.cells]
        self._monitors = [_Parts("monitor", n) for n in range(len(world.monitors))]
        self._buffers = [_Parts("buffer", thread.actor.name) for thread in world.threads]
        self._flying = _Parts("flying")
        self._locals: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    # ---- local states -----------------------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        names = self._locals
        for key in self.automata.keys[len(names) :]:
            if len(key) == 3 and key[1] != "end":  # nothing but its past tells it from others
                name, before, value = key
                key = (name, names[before] if before >= 0 else None, value)
            name = digest("local", *key)
            self._numbers[name] = len(names)
            names.append(name)

    def local(self, history: int) -> bytes:
        """The digest of a thread's local state."""
        if history >= len(self._locals):
            self._catch_up()
        return self._locals[history]

    def history(self, local: bytes) -> int:
        """The number that a local state has in this process, -1 if it has not been met here."""
        if len(self._locals) < len(self.automata.keys):
            self._catch_up()
        return self._numbers.get(local, -1)

    # ---- the state --------------------------------------------------------------------------------------------------------

    def state(self) -> bytes:
        """The digest of the present state."""
        world = self.world
        try:
            parts = list(map(getitem, self._cells, [cell.value for cell in world.cells]))
            locals_ = self._locals
            for thread, buffers in zip(world.threads, self._buffers, strict=True):
                history = thread.history
                if history >= len(locals_):
                    self._catch_up()
                parts.append(locals_[history])
                if thread.buffer is not None and thread.buffer.entries:
                    parts.append(buffers[thread.buffer.contents()])
            flying = [(channel.name, channel.queue) for channel in world.flying if channel.queue]
            if flying:
                flying.sort()  # channels are made in the order in which this process met them
                parts.append(self._flying[tuple(flying)])
            for monitor, states in zip(world.monitors, self._monitors, strict=True):
                parts.append(states[monitor.state()])
        except TypeError as error:
            raise world.unhashable() from error
        return blake2b(b"".join(parts), digest_size=BYTES).digest()
