"""The dependence relation, in one place: which two steps do not commute, and what happens before what.

Two steps are dependent iff they touch the same cell and one of them writes it; a failed cmpxchg, or an RMW that changes
nothing, only reads.  A monitor sees the order of all steps on the cells that it watches, so these are dependent with each other,
reads and different cells included; at each of them it may look at the cells that it reads, so a write to one of those is
dependent with every step on a watched one, and with nothing more than without the monitor: not with a write to another read
cell, for nobody looks in between.  Everything else that orders two steps is cause and effect, and no race:

* the steps of one thread, in program order; a choice is a step of its thread;
* a posted store before it reaches memory, and what one FIFO carries in the order in which it was put in;
* stores on both sides of smp_wmb() or of a release store (under tso their FIFO already says it);
* a posted store reaching memory before an op of its own thread that had to wait for that;
* an IPI sent before the same IPI arriving.

One exception makes the relation smaller: a load commutes with its own thread's posted stores reaching memory.  Before, it is
served from the store buffer; after, from memory; the value is the same, and whoever else writes the cell is dependent with both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from actors.actor import Cell
from actors.ops import AWAIT, AWAITED, RMW, Code, Op, Order, may_write
from racevisor.step import CHOICE, IPI, STORE_BUFFER, THREAD, Step
from racevisor.world import Channel, Thread, World


class Access(NamedTuple):
    """What a step touches.  `own` is the thread if this is a load, or a flush, of a thread that has a store buffer."""

    cell: Cell | None
    writes: bool
    own: Thread | None


#: A step that a later one could overtake, and the steps that the later one follows by cause and effect, a bitmask.  What it
#: conflicts with is not in there: that depends on what it does when it comes first, see `overtaking`.
Race = tuple[int, int]

NOTHING = Access(None, False, None)
_AWAIT, _FENCE, _RMW, _SEND = Code.AWAIT, Code.FENCE, Code.RMW, Code.SEND  # looked up once: an enum's attribute is slow
_PROGRAM = (THREAD, CHOICE)
_ALL = 1 << 62  # an epoch after every other


def access_of(channel: Channel, step: Step) -> Access:
    """What a step that was taken touched."""
    cell = step.cell
    if cell is None or step.posted:
        return NOTHING
    kind = step.kind
    if kind == STORE_BUFFER:
        return Access(cell, True, channel.thread)
    code = step.op.code
    if code == Code.LOAD:
        return Access(cell, False, channel.thread if channel.thread.buffer is not None else None)
    if code == Code.RMW or code == Code.AWAIT:
        return Access(cell, step.before != step.after, None)
    return Access(cell, True, None)


def independent(a: Access, b: Access) -> bool:
    """Do two steps of different channels commute?"""
    cell = a.cell
    other = b.cell
    if cell is None or other is None:
        return True
    if cell.judges and _told_apart(cell, a.writes, other, b.writes):
        return False
    if cell is not other:
        return True
    return not (a.writes or b.writes) or (a.own is not None and a.own is b.own)


def _told_apart(cell: Cell, writes: bool, other: Cell, other_writes: bool) -> bool:
    """May a monitor see which of two steps came first?"""
    for monitor in cell.watched:
        if monitor in (other.judges if other_writes else other.watched):
            return True
    return writes and any(monitor in other.watched for monitor in cell.judges)


def process(channel: Channel) -> Channel:
    """What the steps of a channel are ordered with: the answers of a choice are heads of their thread."""
    return channel if channel.kind != CHOICE else channel.thread.channel


class _Program:
    """What one thread has done so far, as numbers of steps."""

    __slots__ = ("flushed", "posted", "sent")

    def __init__(self) -> None:
        self.posted: dict[int, list[int]] = {}  # by cell (pso), or all under -1 (tso)
        self.flushed: list[int] = []
        self.sent: dict[str, list[int]] = {}  # by physical CPU


class HappensBefore:
    """Happens-before of one execution, a bitmask per step, and the races in it.

    It grows by `extend`, step by step, and shrinks by `cut`; what two executions have in common is worked out once.
    """

    def __init__(self, world: World) -> None:
        self.past: list[int] = []  # per step: the steps that happen before it
        self.full: list[int] = []  # the same and the step itself
        self.accesses: list[Access] = []
        self.channels: list[Channel] = []
        self._before: list[Any] = []
        self._epochs: list[int] = []  # how many smp_wmb() and releases its thread had seen
        self._programs = {thread: _Program() for thread in world.threads}
        self._carried: dict[Channel, list[int]] = {}  # per store buffer or IPI channel
        self._journal: list[list[int]] = []  # the lists that got a step, for cut
        #: bitmasks of steps: by process (a thread with its choices, or another channel); by cell, all accesses and writes
        self.steps_of: dict[Channel, int] = {}
        self._touch = [0] * len(world.vm.cells)
        self._write = [0] * len(world.vm.cells)
        self._ways: dict[int, int] = {}
        self._judged = [_judged(cell) for cell in world.vm.cells]

    def cut(self, length: int) -> None:
        """Forget the steps from number `length` on."""
        keep = (1 << length) - 1
        self._ways.clear()
        steps_of, touch, write = self.steps_of, self._touch, self._write
        for channel, (cell, _, _) in zip(self.channels[length:], self.accesses[length:], strict=True):
            steps_of[channel if channel.kind != CHOICE else channel.thread.channel] &= keep
            if cell is not None:
                touch[cell.index] &= keep
                write[cell.index] &= keep
        journal = self._journal
        while journal and journal[-1][-1] >= length:
            journal.pop().pop()
        for column in (self.past, self.full, self.accesses, self.channels, self._before, self._epochs):
            del column[length:]

    def _note(self, where: list[int], n: int) -> None:
        where.append(n)
        self._journal.append(where)

    # ---- cause and effect -------------------------------------------------------------------------------------------------

    def extend(self, channel: Channel, step: Step) -> list[Race]:
        """Add the next step; returns the races in which it is the later step."""
        full = self.full
        n = len(full)
        kind = step.kind
        thread = channel.thread
        steps_of = self.steps_of
        who = channel if kind != CHOICE else thread.channel
        earlier = steps_of.get(who, 0)
        clock = epoch = 0
        if kind in _PROGRAM:
            if earlier:
                last = earlier.bit_length() - 1
                clock = full[last]
                epoch = self._epochs[last]
            op = step.op
            if thread.buffer is not None:
                program = self._programs[thread]
                if step.posted:
                    assert op.cell is not None
                    epoch += op.order == Order.RELEASE
                    self._note(program.posted.setdefault(op.cell.index if thread.buffer.per_cell else -1, []), n)
                elif op.code == _FENCE and op.order == Order.WRITE:
                    epoch += 1
                else:
                    clock |= self._drained(thread, op, epoch)
            if op.code == _SEND and kind == THREAD:
                self._note(self._programs[thread].sent.setdefault(op.a, []), n)
        else:
            program = self._programs[thread]
            carried = self._carried.setdefault(channel, [])
            if kind == IPI:
                clock = full[program.sent[channel.payload][len(carried)]]
            else:
                cause = program.posted[-1 if channel.payload is None else channel.payload.index][len(carried)]
                epoch = self._epochs[cause]
                clock = full[cause]
                if channel.payload is not None:
                    clock |= self._flushed(program, epoch)
                self._note(program.flushed, n)
            if carried:
                clock |= full[carried[-1]]
            self._note(carried, n)
        access = access_of(channel, step)
        self._epochs.append(epoch)
        self._before.append(step.before)
        self.accesses.append(access)
        self.channels.append(channel)
        bit = 1 << n
        steps_of[who] = earlier | bit
        races: list[Race] = []
        cell, writes, _ = access
        if cell is not None:
            effect = clock
            direct = []
            rivals = self.conflicting(access) & ~clock
            while rivals:
                e = rivals.bit_length() - 1
                direct.append(e)
                clock |= full[e]
                rivals &= ~clock
            if step.op.code == _AWAIT and kind == THREAD:
                races = self._overtaken(access, step.op, step.before, effect, direct)
            elif direct:
                races = [(e, effect) for e in direct]
            index = cell.index
            self._touch[index] |= bit
            if writes:
                self._write[index] |= bit
        self.past.append(clock)
        full.append(clock | bit)
        return races

    def _drained(self, thread: Thread, op: Op, epoch: int) -> int:
        """The stores of `thread` that had to reach memory before `op`: the other side of StoreBuffer.allows."""
        code = op.code
        program = self._programs[thread]
        if not program.flushed or op.order == Order.LOCAL or code == Code.LOAD or code == Code.CHOOSE:
            return 0
        if code == Code.FENCE and op.order != Order.FULL:
            return 0
        assert thread.buffer is not None
        if not thread.buffer.per_cell:
            return self.full[program.flushed[-1]]
        if code == Code.RMW and op.order == Order.NONE:
            assert op.cell is not None
            clock = self._flushed(program, epoch)
            flushes = thread.flushes.get(op.cell.index)
            carried = self._carried.get(flushes) if flushes is not None else None
            return clock | self.full[carried[-1]] if carried else clock
        return self._flushed(program, _ALL)

    def _flushed(self, program: _Program, below: int) -> int:
        """The stores of epochs before `below`.  Each epoch waits for the one before it, so the last one speaks for all."""
        clock = 0
        last = -1
        for flush in reversed(program.flushed):
            epoch = self._epochs[flush]
            if epoch < last:
                break
            if epoch < below:
                last = epoch
                clock |= self.full[flush]
        return clock

    # ---- conflicts and races ----------------------------------------------------------------------------------------------

    def conflicting(self, access: Access) -> int:
        """The steps so far that do not commute with a step of another channel that does `access`, as a bitmask."""
        cell, writes, own = access
        if cell is None:
            return 0
        index = cell.index
        mask = self._touch[index] if writes else self._write[index]
        if own is not None:
            rest = mask
            accesses = self.accesses
            while rest:
                low = rest & -rest
                rest ^= low
                _, wrote, owner = accesses[low.bit_length() - 1]
                if owner is own and not (writes and wrote):
                    mask ^= low
        judged = self._judged[index]
        if judged is not None:
            for other in judged.touch:
                mask |= self._touch[other]
            for other in judged.write:
                mask |= self._write[other]
            if writes:
                for other in judged.touch_if_written:
                    mask |= self._touch[other]
        return mask

    def way(self, earlier: int) -> int:
        """All that does not follow the step `earlier` of a complete execution, though it came later: a bitmask of steps."""
        way = self._ways.get(earlier)
        if way is None:
            way = 0
            mask = bit = 1 << earlier
            for past in self.past[earlier + 1 :]:
                bit <<= 1
                if not past & mask:
                    way |= bit
            self._ways[earlier] = way
        return way

    def overtaking(self, earlier: int, op: Op, access: Access) -> Access:
        """What a step with `op` will touch if it comes right before the step `earlier`, in a race with which it did `access`.

        Only an RMW or an await is another thing then, and only before a write to its cell: whether it changes anything depends on
        the value it meets.  What a load saw tells nothing of that: it may have been served from a store buffer.
        """
        if op.code != _RMW and op.code != _AWAIT:
            return access
        met = self.accesses[earlier]
        if not met.writes or met.cell is not access.cell:
            return access
        value = self._before[earlier]
        after = RMW[op.fn](value, op.a, op.b) if op.code == _RMW else AWAITED[op.fn](value, op.b)
        return Access(access.cell, after != value, None)

    def _overtaken(self, access: Access, op: Op, value: Any, cause: int, direct: list[int]) -> list[Race]:
        """The races of a blocking op, executed (`value` is what it saw) or still blocked on a cell that holds `value`.

        A write that let the op go on cannot be overtaken, but one before it may: the one that made the op wait.  So we look back
        for the latest write before which the condition held.  Earlier ones need not be looked at: in the execution where the op
        comes right before that write, they are met again.  What did not change the cell cannot have let the op go on.
        """
        cell = access.cell
        assert cell is not None
        may_go: Callable[[Any, Any], bool] = AWAIT[op.fn]
        accesses = self.accesses
        going = may_go(value, op.a)
        races = [(e, cause) for e in direct if accesses[e].cell is not cell or not accesses[e].writes]
        rest = self._write[cell.index]
        while rest:
            e = rest.bit_length() - 1
            rest ^= 1 << e
            if not may_go(self._before[e], op.a):
                going = False
                continue
            if e in direct if going else not cause >> e & 1:
                races.append((e, cause))
            break
        return races

    def blocked(self, thread: Thread) -> list[Race]:
        """The races of a thread that is left in an await: its op takes part as if it were executed now."""
        op = thread.op
        if op is None or op.code != Code.AWAIT or (thread.buffer is not None and not thread.buffer.allows(op)):
            return []
        assert op.cell is not None
        if AWAIT[op.fn](op.cell.value, op.a):
            return []
        steps = self.steps_of.get(thread.channel, 0)
        cause = self.full[steps.bit_length() - 1] if steps else 0
        if thread.buffer is not None:
            cause |= self._drained(thread, op, _ALL)
        return self._overtaken(Access(op.cell, may_write(op), None), op, op.cell.value, cause, [])


class _Judged(NamedTuple):
    """What else is dependent with an access of a cell that monitors look at, by cell."""

    touch: tuple[int, ...]  # every access of these
    write: tuple[int, ...]  # writes to these
    touch_if_written: tuple[int, ...]  # every access of these, if the access writes


def _judged(cell: Cell) -> _Judged | None:
    if not cell.judges:
        return None
    watching = {c.index: 0 for monitor in cell.watched for c in monitor.watches}
    reading = {c.index: 0 for monitor in cell.watched for c in monitor.reads}
    read_by = {c.index: 0 for monitor in cell.judges if monitor not in cell.watched for c in monitor.watches}
    return _Judged(tuple(watching), tuple(reading), tuple(read_by))
