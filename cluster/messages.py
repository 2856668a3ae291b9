"""What hosts and the driver say to each other: tuples with numbered wire tags, in msgpack frames.

A frame is `[magic, version, run, sender, incarnation, seq, [[vm, round, clock, [[tag, field, ...], ...]], ...]]`: all that one
host had to say to another after one turn, a part for each virtual machine.  A tag is never reused and a message never changes
its fields; what changes gets a new tag.  Nothing here is ever unpickled, so the worst that a stranger's bytes can do is to be
refused, by the name of whoever sent them.

Messages stay plain tuples on both sides, because a host handles some hundred thousand of them a second.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from actors.ops import AWAIT, RMW, Code
from racevisor.errors import ClusterError

MAGIC = "racevisor"
VERSION = 2

#: The driver's number among the peers; hosts count from 0.
DRIVER = -1
#: The number of no virtual machine: what is said to the host itself.
NO_VM = -1

Message = tuple[Any, ...]

# ---- between hosts ------------------------------------------------------------------------------------------------------------

#: Execute one op of `thread` on a cell of yours: (thread, cell, code, fn, a, b); answered by ANSWER.
ACCESS = 0x11
#: The op of `thread` took effect with this result: (thread, value).
ANSWER = 0x12
#: A posted store of `thread` reaches memory: (thread, cell, value); answered by FLUSHED.
FLUSH = 0x13
#: The posted store of `thread` to this cell is visible to all: (thread, cell).
FLUSHED = 0x14
#: A reschedule IPI that `thread` sent arrives at a physical CPU: (thread, pcpu); no answer.
IPI = 0x15
#: I have stopped this round, which is given up, and say no more of it: (vm, round, hosts that are left); see cluster.accounts.
MARK = 0x16

# ---- from the driver to a host ------------------------------------------------------------------------------------------------

#: Begin the round that the part names.
BEGIN = 0x21
#: Say how many parts you sent to and got from each host: (wave); answered by COUNTS.
PROBE = 0x22
#: The round has ended: bring home what you saw; answered by REPORT.
COLLECT = 0x23
#: Gated: let the head of one channel move: (kind, thread, where); answered by MOVED.
GRANT = 0x24
#: A host was replaced: (host, incarnation, address); answered by MET.
MEET = 0x25
#: There will be no more rounds.
STOP = 0x26
#: Are you there?  Answered by HERE.
PING = 0x27
#: The round is given up: stop it, and account for it to the driver and with these hosts, which are left: (hosts).
CUT = 0x28

# ---- from a host to the driver ------------------------------------------------------------------------------------------------

#: Nothing is left to do here, and nothing was sent in the turn in which that came about; COUNTS of wave 0 go before it.
IDLE = 0x31
#: (wave, busy, sent, received): parts by host number, since the round began; wave 0: unasked.
COUNTS = 0x32
#: (log, cells, state, bounded, said, crossed): see cluster.parity.Report.
REPORT = 0x33
#: The first thing that went wrong: (kind, text).
FAILURE = 0x34
#: Gated: what the granted head did, as in a log; () if it cannot move: (record, why).
MOVED = 0x35
#: The replaced host is known: (host, incarnation).
MET = 0x36
#: Still there.
HERE = 0x37
#: What was sent to each host of a round that is given up, and got from it, until it was stopped here: parts by host number, and
#: messages: (sent, received, spoken, heard).
STOPPED = 0x38
#: What was still on its way from that host then, all of which is here now: (host, parts, messages).
ARRIVED = 0x39

_ANY = None
#: Names and types of the fields, by tag.
FIELDS: dict[int, tuple[str, tuple[tuple[str, type[Any] | None], ...]]] = {
    ACCESS: ("ACCESS", (("thread", int), ("cell", int), ("code", int), ("fn", str), ("a", _ANY), ("b", _ANY))),
    ANSWER: ("ANSWER", (("thread", int), ("value", _ANY))),
    FLUSH: ("FLUSH", (("thread", int), ("cell", int), ("value", _ANY))),
    FLUSHED: ("FLUSHED", (("thread", int), ("cell", int))),
    IPI: ("IPI", (("thread", int), ("pcpu", int))),
    MARK: ("MARK", (("vm", int), ("round", int), ("hosts", tuple))),
    BEGIN: ("BEGIN", ()),
    PROBE: ("PROBE", (("wave", int),)),
    COLLECT: ("COLLECT", ()),
    GRANT: ("GRANT", (("kind", int), ("thread", int), ("where", int))),
    MEET: ("MEET", (("host", int), ("incarnation", int), ("address", str))),
    STOP: ("STOP", ()),
    PING: ("PING", ()),
    CUT: ("CUT", (("hosts", tuple),)),
    IDLE: ("IDLE", ()),
    COUNTS: ("COUNTS", (("wave", int), ("busy", bool), ("sent", tuple), ("received", tuple))),
    REPORT: (
        "REPORT",
        (("log", tuple), ("cells", tuple), ("state", tuple), ("bounded", bool), ("said", int), ("crossed", int)),
    ),
    FAILURE: ("FAILURE", (("kind", str), ("text", str))),
    MOVED: ("MOVED", (("record", tuple), ("why", str))),
    MET: ("MET", (("host", int), ("incarnation", int))),
    HERE: ("HERE", ()),
    STOPPED: ("STOPPED", (("sent", tuple), ("received", tuple), ("spoken", tuple), ("heard", tuple))),
    ARRIVED: ("ARRIVED", (("host", int), ("parts", int), ("messages", int))),
}
_KINDS = {tag: tuple(kind for _, kind in fields) for tag, (_, fields) in FIELDS.items()}

#: What an ACCESS may do: the names it may use, by code.
_NAMES: dict[int, Any] = {int(Code.LOAD): ("",), int(Code.STORE): ("",), int(Code.RMW): RMW, int(Code.AWAIT): AWAIT}
_OPS = {(code, name) for code, names in _NAMES.items() for name in names}


class FrameError(ClusterError):
    """Bytes that are not a frame of ours; says who sent them, as far as that can be read."""


class Part(NamedTuple):
    """What one frame says about one virtual machine.  `clock` is the sender's Lamport clock when it had said all this."""

    vm: int
    round: int
    clock: int
    messages: tuple[Message, ...]


class Frame(NamedTuple):
    """A decoded frame.  `incarnation` counts how often the host of that number was replaced, `seq` its frames to the receiver."""

    run: str
    sender: int
    incarnation: int
    seq: int
    parts: tuple[Part, ...]


def name_of(peer: int) -> str:
    """What a peer is called in messages to the user."""
    return "the driver" if peer == DRIVER else f"host {peer}"


def encode(run: str, sender: int, incarnation: int, seq: int, parts: list[Any]) -> bytes:
    """The frame as bytes; `parts` are (vm, round, clock, messages)."""
    try:
        data: bytes = msgpack.packb((MAGIC, VERSION, run, sender, incarnation, seq, parts))
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(
            f"{name_of(sender)} has a value that cannot travel: {error}\n"
            f"  values of cells are int (64 bits), str, bool, None, and tuples of them: {parts!r:.400}"
        ) from error
    return data


def decode(data: bytes) -> Frame:
    """The frame in `data`, or a FrameError that names the sender."""
    try:
        whole = msgpack.unpackb(data, use_list=False, strict_map_key=True)
    except Exception as error:  # msgpack raises a dozen kinds, among them bare ValueError and RecursionError
        raise FrameError(f"a frame of an unknown sender is not msgpack: {error} ({len(data)} bytes)") from error
    if type(whole) is not tuple or len(whole) < 2 or whole[0] != MAGIC:
        raise FrameError(f"a frame of an unknown sender is not one of racevisor's ({len(data)} bytes)")
    who = name_of(whole[3]) if len(whole) > 3 and type(whole[3]) is int and whole[3] >= DRIVER else "an unknown sender"
    if whole[1] != VERSION or type(whole[1]) is not int:
        raise FrameError(f"a frame of {who} has version {whole[1]!r:.80}, this host speaks {VERSION}")
    if len(whole) != 7:
        raise FrameError(f"a frame of {who} has {len(whole)} elements instead of 7")
    _, _, run, sender, incarnation, seq, parts = whole
    if type(run) is not str or type(incarnation) is not int or type(seq) is not int or type(parts) is not tuple:
        raise FrameError(f"a frame of {who} has a malformed head")
    if type(sender) is not int or sender < DRIVER:
        raise FrameError(f"a frame has the sender {sender!r:.80}, which is no number of a host")
    return Frame(run, sender, incarnation, seq, tuple([_part(who, part) for part in parts]))


def _is_common(item: Any) -> bool:
    """Is it a sound message of one of the kinds that nearly all are?  What is not is looked at more closely."""
    if type(item) is not tuple:
        return False
    size = len(item)
    if size == 3:
        tag, thread, value = item
        return type(tag) is int and type(thread) is int and (tag == ANSWER or (tag == FLUSHED and type(value) is int))
    if size == 7:
        tag, thread, cell, code, fn, _, _ = item
        return (
            type(tag) is int
            and tag == ACCESS
            and type(thread) is int
            and type(cell) is int
            and type(code) is int
            and type(fn) is str
            and (code, fn) in _OPS
        )
    return size == 4 and type(item[0]) is int and item[0] == FLUSH and type(item[1]) is int and type(item[2]) is int


def _part(who: str, part: Any) -> Part:
    if type(part) is not tuple or len(part) != 4:
        raise FrameError(f"a frame of {who} holds something that is not a part: {part!r:.80}")
    vm, round_, clock, messages = part
    if type(vm) is not int or type(round_) is not int or type(clock) is not int or type(messages) is not tuple:
        raise FrameError(f"a frame of {who} holds a part with a malformed head")
    for item in messages:
        if _is_common(item):
            continue
        if type(item) is not tuple or not item or type(item[0]) is not int or item[0] not in _KINDS:
            raise FrameError(f"a frame of {who} holds something that is not a message: {item!r:.80}")
        tag = item[0]
        kinds = _KINDS[tag]
        if len(item) != len(kinds) + 1:
            raise FrameError(
                f"a frame of {who} holds the message {FIELDS[tag][0]} with {len(item) - 1} fields instead of {len(kinds)}"
            )
        for at, kind in enumerate(kinds, 1):
            if kind is not None and type(item[at]) is not kind:
                field = FIELDS[tag][1][at - 1][0]
                raise FrameError(f"a frame of {who} holds the message {FIELDS[tag][0]} whose {field} is {item[at]!r:.80}")
        if tag == ACCESS and (item[3], item[4]) not in _OPS:
            raise FrameError(f"a frame of {who} asks for an op that no host knows: code {item[3]}, {item[4]!r:.80}")
    return Part(vm, round_, clock, messages)
