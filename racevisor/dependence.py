"""The dependence relation, in one place: which two steps do not commute, and what happens before what.

Two steps are dependent iff they touch the same cell and one of them writes it; a failed cmpxchg, or an RMW that changes
nothing, only reads.  A monitor sees the order of all steps on the cells that it watches, so these are dependent with each other,
reads and different cells included.  Everything else that orders two steps is cause and effect, and no race:

* the steps of one thread, in program order; a choice is a step of its thread;
* a posted store before it reaches memory, and what one FIFO carries in the order in which it was put in;
* stores on both sides of smp_wmb() or of a release store (under tso their FIFO already says it);
* a posted store reaching memory before an op of its own thread that had to wait for that;
* an IPI sent before the same IPI arriving.

One exception makes the relation smaller: a load commutes with its own thread's posted stores reaching memory.  Before, it is
served from the store buffer; after, from memory; the value is the same, and whoever else writes the cell is dependent with both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from typing import Any, NamedTuple

from actors.actor import Cell
from actors.ops import AWAIT, RMW, Code, Op, Order
from racevisor.step import CHOICE, IPI, STORE_BUFFER, THREAD, Step
from racevisor.world import Channel, Thread, World


class Access(NamedTuple):
    """What a step touches.  `own` is the thread if this is a load, or a flush, of a thread that has a store buffer."""

    cell: Cell | None
    writes: bool
    own: Thread | None


#: A step that a later one could overtake; whether the later one could then be the very first of the steps that stay; and the
#: steps that happen before the later one, a bitmask, the earlier one and what follows it not always left out.
Race = tuple[int, bool, int]

_NOTHING = Access(None, False, None)
_ALL = 1 << 62  # an epoch after every other


def access_of(channel: Channel, step: Step) -> Access:
    """What a step that was taken touched."""
    cell = step.cell
    if cell is None or step.posted:
        return _NOTHING
    kind = step.kind
    if kind == STORE_BUFFER:
        return Access(cell, True, channel.thread)
    code = step.op.code
    if code == Code.LOAD:
        return Access(cell, False, channel.thread if channel.thread.buffer is not None else None)
    if code == Code.RMW:
        return Access(cell, step.before != step.after, None)
    if code == Code.AWAIT:
        return Access(cell, step.op.b is not None, None)
    return Access(cell, True, None)


def independent(a: Access, b: Access) -> bool:
    """Do two steps of different channels commute?"""
    cell = a.cell
    other = b.cell
    if cell is None or other is None:
        return True
    if cell.watched:
        return not any(monitor in other.watched for monitor in cell.watched)
    if cell is not other:
        return True
    return not (a.writes or b.writes) or (a.own is not None and a.own is b.own)


def process(channel: Channel) -> Channel:
    """What the steps of a channel are ordered with: the answers of a choice are heads of their thread."""
    return channel if channel.kind != CHOICE else channel.thread.channel


class _Program:
    """What one thread has done so far, as numbers of steps."""

    __slots__ = ("flushed", "posted", "sent", "steps")

    def __init__(self) -> None:
        self.steps: list[int] = []
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
        self._before: list[Any] = []
        self._epochs: list[int] = []  # how many smp_wmb() and releases its thread had seen
        self._programs = {thread: _Program() for thread in world.threads}
        self._carried: dict[Channel, list[int]] = {}  # per store buffer or IPI channel
        # Where the accesses of a cell are listed: one list for the cell, or the lists of all monitors that watch it.
        watched: dict[Any, list[int]] = {monitor: [] for monitor in world.monitors}
        self._lists: list[tuple[list[int], ...]] = [
            tuple(watched[monitor] for monitor in dict.fromkeys(cell.watched)) or ([],) for cell in world.vm.cells
        ]
        self._journal: list[list[int]] = []
        self.channels: list[Channel] = []
        #: bitmasks of steps: by process (a thread with its choices, or another channel); by cell, all accesses and writes
        self.steps_of: dict[Channel, int] = dict.fromkeys(world.channels.values(), 0)
        self._touch = [0] * len(world.vm.cells)
        self._write = [0] * len(world.vm.cells)

    def cut(self, length: int) -> None:
        """Forget the steps from number `length` on."""
        keep = (1 << length) - 1
        for n in range(length, len(self.past)):
            self.steps_of[process(self.channels[n])] &= keep
            cell = self.accesses[n].cell
            if cell is not None:
                self._touch[cell.index] &= keep
                self._write[cell.index] &= keep
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
        n = len(self.past)
        kind = step.kind
        thread = channel.thread
        program = self._programs[thread]
        full = self.full
        epoch = 0
        if kind in (THREAD, CHOICE):
            steps = program.steps
            clock = 0
            if steps:
                clock = full[steps[-1]]
                epoch = self._epochs[steps[-1]]
            if thread.buffer is not None:
                op = step.op
                if step.posted:
                    assert op.cell is not None
                    epoch += op.order == Order.RELEASE
                    self._note(program.posted.setdefault(op.cell.index if thread.buffer.per_cell else -1, []), n)
                elif op.code == Code.FENCE and op.order == Order.WRITE:
                    epoch += 1
                else:
                    clock |= self._drained(thread, op, epoch)
            if kind == THREAD and step.op.code == Code.SEND:
                self._note(program.sent.setdefault(step.op.a, []), n)
            self._note(steps, n)
        else:
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
        who = channel if kind != CHOICE else thread.channel
        self.steps_of[who] = self.steps_of.get(who, 0) | bit
        races: list[Race] = []
        cell = access.cell
        if cell is not None:
            cause_and_effect = clock
            clock, earlier = self._conflicts(access, clock)
            if step.op.code == Code.AWAIT and kind == THREAD:
                races = self._overtaken(access, step.op, step.before, cause_and_effect, clock, earlier)
            else:
                # No step of a race's past lies behind the earlier step: then the later one can come first.
                races = [(e, clock < 2 << e, clock) for e in earlier]
            for where in self._lists[cell.index]:
                self._note(where, n)
            self._touch[cell.index] |= bit
            if access.writes:
                self._write[cell.index] |= bit
        self.past.append(clock)
        full.append(clock | 1 << n)
        return races

    def conflicting(self, access: Access) -> int:
        """The steps so far that do not commute with a step of another channel that does `access`, as a bitmask."""
        cell, writes, own = access
        if cell is None:
            return 0
        if not cell.watched:
            mask = self._touch[cell.index] if writes else self._write[cell.index]
            if own is None:
                return mask
        else:
            mask = (1 << len(self.accesses)) - 1
        accesses = self.accesses
        rest = mask
        while rest:
            low = rest & -rest
            rest ^= low
            if independent(accesses[low.bit_length() - 1], access):
                mask ^= low
        return mask

    def overtaking(self, earlier: int, op: Op, access: Access) -> Access:
        """What a step with `op` will touch if it comes right before the step `earlier`, in a race with which it did `access`.

        Only an RMW is another thing then: whether it changes anything depends on the value it meets.
        """
        if access.own is not None or op.code != Code.RMW or self.accesses[earlier].cell is not access.cell:
            return access
        value = self._before[earlier]
        return Access(access.cell, RMW[op.fn](value, op.a, op.b) != value, None)

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

    def _conflicts(self, access: Access, clock: int) -> tuple[int, list[int]]:
        """Happens-before of an access, and the earlier steps with which it is in direct conflict, latest first."""
        cell, writes, own = access
        assert cell is not None
        full = self.full
        races = []
        if cell.watched:
            for e in sorted((where[-1] for where in self._lists[cell.index] if where), reverse=True):
                if not clock >> e & 1:
                    races.append(e)
                    clock |= full[e]
            return clock, races
        accesses = self.accesses
        gate = None
        for e in reversed(self._lists[cell.index][0]):
            _, wrote, others = accesses[e]
            if not (writes or wrote) or (own is not None and others is own and not (writes and wrote)):
                continue
            if not clock >> e & 1:
                races.append(e)
                clock |= full[e]
            if wrote:
                # Everything earlier happens before this write, except loads of the thread whose posted store it was.
                if others is None or (gate is not None and gate is not others):
                    break
                gate = others
        return clock, races

    def _overtaken(self, access: Access, op: Op, value: Any, cause: int, clock: int, direct: list[int]) -> list[Race]:
        """The races of a blocking op, executed (`value` is what it saw) or still blocked on a cell that holds `value`.

        A write that let the op go on cannot be overtaken, but one before it may: the one that made the op wait.  So we look back
        for the latest write before which the condition held.  Earlier ones need not be looked at: in the execution where the op
        comes right before that write, they are met again.  What did not change the cell cannot have let the op go on.
        """
        cell, writes, _ = access
        assert cell is not None
        may_go: Callable[[Any, Any], bool] = AWAIT[op.fn]
        accesses = self.accesses
        lists = self._lists[cell.index]
        going = may_go(value, op.a)
        races = [(e, clock < 2 << e, clock) for e in direct if accesses[e].cell is not cell or not accesses[e].writes]
        loads: list[tuple[int, Thread]] = []
        for e in reversed(lists[0]) if len(lists) == 1 else _merged(lists):
            touched, wrote, own = accesses[e]
            if touched is not cell:
                continue
            if not wrote:
                if own is not None and writes:
                    loads.append((e, own))
                continue
            earlier = self._before[e]
            if not may_go(earlier, op.a):
                going = False
                continue
            if going:
                if e in direct:
                    races.append((e, clock < 2 << e, clock))
            elif not cause >> e & 1:
                # Steps on the cell after this write stay behind it, except loads that were served from the store buffer.
                stays = any(own is loader and not self.past[load] >> e & 1 for load, loader in loads)
                races.append((e, cause < 1 << e and not stays, cause))
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
        steps = self._programs[thread].steps
        cause = self.full[steps[-1]] if steps else 0
        if thread.buffer is not None:
            cause |= self._drained(thread, op, _ALL)
        return self._overtaken(Access(op.cell, op.b is not None, None), op, op.cell.value, cause, cause, [])


def _merged(lists: tuple[list[int], ...]) -> Iterator[int]:
    last = -1
    for e in merge(*map(reversed, lists), reverse=True):
        if e != last:
            yield e
        last = e
