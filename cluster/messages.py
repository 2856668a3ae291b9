"""What hosts say to each other: frozen values with numbered wire tags, in msgpack frames.

A frame is `[magic, version, run, round, sender, clock, [[tag, field, ...], ...]]`: all that one host had to say to another after
it handled one frame.  A tag is never reused and a message never changes its fields; what changes gets a new tag.  Nothing here
is ever unpickled, so the worst that a stranger's bytes can do is to be refused, by the name of whoever sent them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform

import msgpack

from actors.ops import AWAIT, RMW, Code, Order
from racevisor.errors import ClusterError

MAGIC = "racevisor"
VERSION = 1

#: Message classes by wire tag.
TAGS: dict[int, type[Any]] = {}
_FIELDS: dict[int, tuple[tuple[str, type[Any] | None], ...]] = {}
_PARTS: dict[type[Any], Callable[[Any], list[Any]]] = {}
_TYPES: dict[str, type[Any] | None] = {"int": int, "str": str, "Any": None}

T = TypeVar("T")


class FrameError(ClusterError):
    """Bytes that are not a frame of ours; says who sent them, as far as that can be read."""


@dataclass_transform(frozen_default=True)
def message(*, tag: int) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen message with this wire tag."""

    def decorate(cls: type[T]) -> type[T]:
        if tag in TAGS:
            raise ValueError(f"tag {tag:#x} is {TAGS[tag].__name__} already; a tag is never reused")
        made = dataclass(frozen=True, slots=True)(cls)
        names = [f.name for f in fields(made)]  # type: ignore[arg-type]  # a dataclass since the line above
        TAGS[tag] = made
        _FIELDS[tag] = tuple((f.name, _TYPES[str(f.type)]) for f in fields(made))  # type: ignore[arg-type]
        if len(names) == 1:
            only = attrgetter(names[0])
            _PARTS[made] = lambda m: [tag, only(m)]
        else:
            get = attrgetter(*names)
            _PARTS[made] = lambda m: [tag, *get(m)]
        return made

    return decorate


@message(tag=0x01)
class Access:
    """Execute one op of `thread` on a cell of yours.  thread's host -> owner of the cell, answered by Answer."""

    thread: int
    cell: int
    code: int
    fn: str
    a: Any
    b: Any
    order: int


@message(tag=0x02)
class Answer:
    """The op of `thread` took effect with this result.  owner -> thread's host."""

    thread: int
    value: Any


@message(tag=0x03)
class Flush:
    """A posted store of `thread` reaches memory.  thread's host -> owner, answered by Flushed."""

    thread: int
    cell: int
    value: Any


@message(tag=0x04)
class Flushed:
    """The posted store of `thread` to this cell is visible to all.  owner -> thread's host."""

    thread: int
    cell: int


@message(tag=0x05)
class Ipi:
    """A reschedule IPI that `thread` sent.  thread's host -> physical CPU, no answer."""

    thread: int
    pcpu: int


@message(tag=0x06)
class Continue:
    """Noise: let what has arrived meanwhile go first.  a host -> itself."""

    thread: int


Message = Access | Answer | Flush | Flushed | Ipi | Continue


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame."""

    run: str
    round: int
    sender: str
    clock: int
    messages: list[Any]


def encode(run: str, round_: int, sender: str, clock: int, messages: list[Message]) -> bytes:
    """The frame as bytes."""
    body = [_PARTS[type(m)](m) for m in messages]
    try:
        data: bytes = msgpack.packb([MAGIC, VERSION, run, round_, sender, clock, body])
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(
            f"{sender} has a value that cannot travel: {error}\n"
            f"  values of cells are int (64 bits), str, bool, None, and tuples of them: {messages}"
        ) from error
    return data


def decode(data: bytes) -> Frame:
    """The frame in `data`, or a FrameError that names the sender."""
    try:
        parts = msgpack.unpackb(data, use_list=False, strict_map_key=True)
    except Exception as error:  # msgpack raises a dozen kinds, among them bare ValueError and RecursionError
        raise FrameError(f"a frame of an unknown sender is not msgpack: {error} ({len(data)} bytes)") from error
    if type(parts) is not tuple or len(parts) < 2 or parts[0] != MAGIC:
        raise FrameError(f"a frame of an unknown sender is not one of racevisor's ({len(data)} bytes)")
    if parts[1] != VERSION:
        raise FrameError(
            f"a frame of {parts[4]!r} has version {parts[1]!r}, this host speaks {VERSION}"
            if len(parts) > 4
            else f"a frame of an unknown sender has version {parts[1]!r}, this host speaks {VERSION}"
        )
    if len(parts) != 7:
        raise FrameError(f"a frame of an unknown sender has {len(parts)} parts instead of 7")
    _, _, run, round_, sender, clock, body = parts
    if type(sender) is not str:
        raise FrameError("a frame has a sender that is not a name")
    if type(run) is not str or type(round_) is not int or type(clock) is not int or type(body) is not tuple:
        raise FrameError(f"a frame of {sender} has a malformed head")
    return Frame(run, round_, sender, clock, [_message(sender, item) for item in body])


def _message(sender: str, item: Any) -> Any:
    if type(item) is not tuple or not item or type(item[0]) is not int or item[0] not in TAGS:
        raise FrameError(f"a frame of {sender} holds something that is not a message: {item!r:.80}")
    tag, *values = item
    wanted = _FIELDS[tag]
    if len(values) != len(wanted):
        raise FrameError(f"a frame of {sender} holds a {TAGS[tag].__name__} with {len(values)} fields instead of {len(wanted)}")
    for (name, kind), value in zip(wanted, values, strict=True):
        if kind is not None and type(value) is not kind:
            raise FrameError(f"a frame of {sender} holds a {TAGS[tag].__name__} whose {name} is {value!r:.80}")
    if tag == 0x01:
        _check_access(sender, *values)
    return TAGS[tag](*values)


#: What an Access may do: the names it may use by code, and the orders there are.
_NAMES: dict[int, Any] = {Code.LOAD: ("",), Code.STORE: ("",), Code.RMW: RMW, Code.AWAIT: AWAIT}
_ORDERS = frozenset(int(order) for order in Order)


def _check_access(sender: str, _thread: int, _cell: int, code: int, fn: str, _a: Any, _b: Any, order: int) -> None:
    if code not in _NAMES or fn not in _NAMES[code] or order not in _ORDERS:
        raise FrameError(f"a frame of {sender} asks for an op that no host knows: code {code}, {fn!r}, order {order}")
