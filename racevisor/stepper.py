"""The machine, one step at a time: what can move, and what happens when it does.

Everything that may happen next is the head of a FIFO channel: the next op of a thread, the oldest posted store of a store
buffer, an IPI in flight, one answer of a choice.  The set of movable heads is kept up to date step by step; only what a step
can have enabled or disabled is looked at again, so idle actors cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.actor import Cell
from actors.ops import AWAIT, AWAITED, RMW, VOID, Code, Op, Order, may_write
from actors.vm import Vm
from racevisor.automata import Automata, resume
from racevisor.channel import Channel, Thread, Undo
from racevisor.guard import Guard
from racevisor.memory import StoreBuffer, buffer_name
from racevisor.monitor import Monitor, Violation
from racevisor.step import CHOICE, IPI, STORE_BUFFER, THREAD, Step

MAX_STEPS = 5_000

#: Asked before a thread gets its next op: is it to stay where it is?
Gate = Callable[[Thread, Op], bool]

# Looked up once: the attribute of an enum costs more than the comparison.
_LOAD, _STORE, _RMW, _FENCE, _AWAIT, _SEND, _CHOOSE = (
    Code.LOAD, Code.STORE, Code.RMW, Code.FENCE, Code.AWAIT, Code.SEND, Code.CHOOSE,
)  # fmt: skip
_WRITE, _NONE = Order.WRITE, Order.NONE


class Stepper:
    """Knows what can move, and moves it; that it can also go back, and be run by a strategy, is World's part."""

    def __init__(
        self,
        vm: Vm,
        memory: str = "sc",
        *,
        monitors: list[Monitor] | None = None,
        check: Callable[[Vm], list[Violation]] | None = None,
        outcome: Callable[[Vm], Any] | None = None,
        max_steps: int = MAX_STEPS,
        automata: bool = False,
        functions: bool = False,
    ) -> None:
        self.vm = vm
        self.memory = memory
        self.monitors = monitors or []
        self.check = check
        self.outcome = outcome
        self.max_steps = max_steps
        self.functions = functions
        self.channels: dict[str, Channel] = {}
        self.movable: list[Channel] = []
        self.steps: list[Step] = []
        self.violations: list[Violation] = []
        self.threads: list[Thread] = []
        self.journal: list[Undo] | None = None  # what undo() needs of each step; a search that goes back asks for it
        self.flying: list[Channel] = []  # the IPI channels that were ever used
        self.cells = vm.cells  # those that can change: fewer in a World that `narrow` made small
        self.gate: Gate | None = None
        self.follows = False  # see follow()
        vm.fingerprints = automata
        for actor in vm.actors:
            coroutine = actor.run()
            if coroutine is None:
                continue
            coroutine.close()
            thread = Thread(actor)
            thread.channel = self._channel(actor.name, THREAD, thread)
            if memory != "sc":
                thread.buffer = StoreBuffer(memory)
            self.threads.append(thread)
        self.automata = Automata(self.threads) if automata else None
        for monitor in self.monitors:
            if not monitor.watches:
                raise ValueError(f"check {monitor.check or type(monitor).__name__} watches no cell, so it would see nothing")
        self._deliver = {pcpu.name: pcpu.deliver_ipi for pcpu in vm.pcpus}
        for monitor in self.monitors:
            for cell in monitor.watches:
                cell.watched = (*cell.watched, monitor)
            for cell in (*monitor.watches, *monitor.reads):
                cell.judges = (*cell.judges, monitor)
        #: how a monitor is called: guarded, so that what it looks at without having declared it is an error
        self.guard = Guard(vm)
        self.judge: Callable[[Monitor, Step], Violation | None] = self.guard.judge

    # ---- channels ---------------------------------------------------------------------------------------------------------

    def _channel(self, name: str, kind: int, thread: Thread, payload: Any = None) -> Channel:
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name, kind, len(self.channels), thread, payload)
            if kind == IPI:
                self.flying.append(channel)
        return channel

    def _enable(self, channel: Channel) -> None:
        if channel.at < 0:
            channel.at = len(self.movable)
            self.movable.append(channel)

    def _disable(self, channel: Channel) -> None:
        at = channel.at
        if at >= 0:
            last = self.movable.pop()
            if last is not channel:
                self.movable[at] = last
                last.at = at
            channel.at = -1

    def _empty(self) -> None:
        """No head can move."""
        for channel in self.movable:
            channel.at = -1
        self.movable.clear()
        for channel in self.flying:
            channel.queue = 0

    # ---- one step ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Drop the coroutines of an unfinished execution."""
        if self.automata is not None:
            self.automata.close()
        for thread in self.threads:
            if thread.coroutine is not None:
                thread.coroutine.close()
                thread.coroutine = None
            thread.actor.close()

    def _clear(self) -> None:
        """Values, buffers and checks as at the start; no thread has begun, and no head can move."""
        if self.automata is None:
            self.close()
            self.vm.reset()
        else:
            for cell in self.cells:
                cell.value = cell.init
                cell.waiters.clear()
        self._empty()
        self.steps = []
        self.violations = []
        if self.journal is not None:
            self.journal = []
        for monitor in self.monitors:
            monitor.reset()

    def reset(self) -> None:
        """Back to the initial state; every thread runs up to its first op."""
        self._clear()
        for thread in self.threads:
            if thread.buffer is not None:
                thread.buffer.clear()
            thread.answers = []
            thread.history = -1
            if self.automata is None:
                thread.coroutine = thread.actor.run()
                thread.send = thread.coroutine.send
            if self.automata is None:
                op = resume(thread.actor, thread.send, None)
            else:
                thread.history = self.automata.move(thread, None, thread.history)
                op = self.automata.ops[thread.history]
            thread.op = op
            if op is not None:
                self._arm(thread, op)

    def step(self, channel: Channel) -> Step:
        """Move the head of `channel`."""
        kind = channel.kind
        thread = channel.thread
        before = after = result = None
        posted = False
        history = thread.history
        entry = where = ghosts = None
        if kind == THREAD:
            op = thread.op
            assert op is not None
            cell = op.cell
            code = op.code
            if code == _LOAD:
                assert cell is not None
                buffer = thread.buffer
                own = buffer.forward(cell) if buffer is not None and buffer.entries else None
                before = after = result = cell.value if own is None else own.value
            elif code == _STORE:
                assert cell is not None
                before = cell.value
                if thread.buffer is None:
                    after = op.a
                else:
                    posted = True
                    after = before
                    thread.buffer.post(op)
                    self._refresh_buffer(thread)
            elif code == _RMW:
                assert cell is not None
                before = result = cell.value
                after = RMW[op.fn](before, op.a, op.b)
            elif code == _AWAIT:
                assert cell is not None
                before = result = cell.value
                after = AWAITED[op.fn](before, op.b)
            elif code == _SEND:
                if op.a not in self._deliver:
                    raise ValueError(f"{thread.actor.name} sends an IPI to {op.a!r}; the CPUs are {', '.join(self._deliver)}")
                ipi = self._channel(f"{thread.actor.name}=>{op.a}", IPI, thread, op.a)
                ipi.queue += 1
                self._enable(ipi)
            elif op.order == _WRITE and thread.buffer is not None:
                thread.buffer.wmb()
        elif kind == STORE_BUFFER:
            assert thread.buffer is not None
            entry = thread.buffer.entries[0] if channel.payload is None else self._head(thread.buffer, channel.payload)
            where = thread.buffer.entries.index(entry)
            del thread.buffer.entries[where]
            cell = entry.cell
            op = cell.load  # stands for the store that was posted; the words come from the cell and its new value
            before, after = cell.value, entry.value
        elif kind == IPI:
            channel.queue -= 1
            if not channel.queue:
                self._disable(channel)
            op = self._deliver[channel.payload]
            cell = op.cell
            assert cell is not None
            before = cell.value
            after = RMW[op.fn](before, None, None)
        else:
            op = thread.op
            assert op is not None
            cell = None
            result = channel.payload
            for answer in thread.answers:
                self._disable(answer)
            thread.answers = []
        step = Step(len(self.steps), kind, channel.name, thread.actor.name, op, cell, before, after, result, posted)
        self.steps.append(step)
        if cell is not None and not posted:
            if kind != THREAD or op.code != _LOAD:
                cell.value = after
                if cell.waiters and not self.follows:
                    for waiter in cell.waiters[:]:
                        self._refresh(waiter)
            if cell.watched and self.journal is not None:
                ghosts = [(monitor, dict(monitor.ghost), dict(monitor.where)) for monitor in cell.watched]
            for monitor in cell.watched:
                violation = self.judge(monitor, step)
                if violation is not None:
                    violation.step = step.n
                    self.violations.append(violation)
        if kind == THREAD or kind == CHOICE:  # noqa: SIM109  a tuple costs more
            if op.code == _AWAIT:
                cell.waiters.remove(thread)  # type: ignore[union-attr]
            if self.functions:
                step.function = innermost_function(thread.coroutine)
            if op.code == _RMW and op.order == _NONE and op.fn in VOID:
                result = None  # see actors.ops.is_void; two values that nobody is told would be two local states
            if self.automata is None:
                op = resume(thread.actor, thread.send, result)
            else:
                thread.history = self.automata.move(thread, result, thread.history)
                op = self.automata.ops[thread.history]
            thread.op = op
            if op is None:
                thread.coroutine = None
                self._disable(thread.channel)
            elif (
                channel.at < 0
                or (thread.buffer is not None and thread.buffer.entries)
                or op.code == _AWAIT
                or op.code == _CHOOSE
                or self.gate is not None
            ):
                self._arm(thread, op)  # else the next op may go on like this one
            if thread.actor.notes:
                step.notes = thread.actor.notes[:]
                thread.actor.notes.clear()
        elif kind == STORE_BUFFER:
            self._refresh_buffer(thread)
            if thread.op is not None and thread.op.code != _CHOOSE:  # the heads of a choice are its answers
                self._refresh(thread)
        if self.journal is not None:
            self.journal.append((channel, history, entry, where, ghosts))
        return step

    @staticmethod
    def _head(buffer: StoreBuffer, cell: Cell) -> Any:
        for entry in buffer.entries:
            if entry.cell is cell:
                return entry
        raise AssertionError(f"no posted store to {cell.label}")

    def _arm(self, thread: Thread, op: Op) -> None:
        """The thread stands before `op`: which heads does that make?"""
        if self.gate is not None and self.gate(thread, op):
            thread.op = None
            self._disable(thread.channel)
            return
        if op.code == _AWAIT:
            op.cell.waiters.append(thread)  # type: ignore[union-attr]
        elif op.code == _CHOOSE:
            self._disable(thread.channel)
            thread.answers = [self._channel(f"{thread.actor.name}?{i}", CHOICE, thread, i) for i in range(op.a)]
            for answer in thread.answers:
                self._enable(answer)
            return
        self._refresh(thread)

    def _refresh(self, thread: Thread) -> None:
        """May the thread's next op execute now?"""
        op = thread.op
        assert op is not None
        if (thread.buffer is None or thread.buffer.allows(op)) and (
            op.code != _AWAIT or AWAIT[op.fn](op.cell.value, op.a)  # type: ignore[union-attr]
        ):
            self._enable(thread.channel)
        else:
            self._disable(thread.channel)

    def _refresh_buffer(self, thread: Thread) -> None:
        """Which of the thread's posted stores may reach memory now?"""
        buffer = thread.buffer
        assert buffer is not None
        if not buffer.per_cell and -1 in thread.flushes:  # one FIFO: its head may always leave
            channel = thread.flushes[-1]
            if not buffer.entries:
                self._disable(channel)
            elif channel.at < 0:
                self._enable(channel)
            return
        if not buffer.entries:
            for channel in thread.flushes.values():
                if channel.at >= 0:
                    self._disable(channel)
            return
        wanted = []
        flushes = thread.flushes
        for entry in buffer.movable():
            key = entry.cell.index if buffer.per_cell else -1
            head = flushes.get(key)
            if head is None:
                name = buffer_name(thread.actor.name, entry.cell, self.memory)
                head = self._channel(name, STORE_BUFFER, thread, entry.cell if buffer.per_cell else None)
                flushes[key] = head
            wanted.append(head)
            if head.at < 0:
                self._enable(head)
        for channel in flushes.values():
            if channel.at >= 0 and channel not in wanted:
                self._disable(channel)

    # ---- what a replay asks -----------------------------------------------------------------------------------------------

    def follow(self, on: bool) -> None:
        """While this is on, each step is settled beforehand: `movable` is not kept up to date, and `may_move` is asked instead.

        A lock that a thousand threads wait for opens and closes for all of them at each hand-over, and one of them goes on.
        """
        self.follows = on
        if not on:
            for thread in self.threads:
                if thread.op is not None and thread.op.code == _AWAIT:
                    self._refresh(thread)

    def may_move(self, channel: Channel) -> bool:
        """May its head move now?"""
        op = channel.thread.op
        if self.follows and op is not None and op.code == _AWAIT and channel.kind == THREAD:
            self._refresh(channel.thread)
        return channel.at >= 0

    # ---- what a search asks -----------------------------------------------------------------------------------------------

    def access(self, channel: Channel) -> tuple[Cell | None, bool]:
        """(cell, does it write?) of the channel's head in the present state; (None, False) if it touches nothing shared."""
        kind = channel.kind
        if kind == THREAD:
            op = channel.thread.op
            assert op is not None
            code = op.code
            cell = op.cell
            if cell is None or (code == _STORE and channel.thread.buffer is not None):
                return None, False
            if code == _LOAD:
                return cell, False
            if code == _RMW:
                return cell, RMW[op.fn](cell.value, op.a, op.b) != cell.value
            if code == _AWAIT:
                if not AWAIT[op.fn](cell.value, op.a):
                    return cell, may_write(op)
                return cell, AWAITED[op.fn](cell.value, op.b) != cell.value
            return cell, True
        if kind == STORE_BUFFER:
            buffer = channel.thread.buffer
            assert buffer is not None
            return (buffer.entries[0].cell if channel.payload is None else channel.payload), True
        if kind == IPI:
            op = self._deliver[channel.payload]
            assert op.cell is not None
            return op.cell, RMW[op.fn](op.cell.value, None, None) != op.cell.value
        return None, False

    def landing(self, pcpu: str) -> Cell | None:
        """The cell that an IPI to this physical CPU arrives at; None if there is no such CPU."""
        op = self._deliver.get(pcpu)
        return None if op is None else op.cell


def innermost_function(coroutine: Any) -> str:
    """The name of the kernel function that a suspended coroutine is in."""
    name = ""
    while coroutine is not None:
        code = getattr(coroutine, "cr_code", None)
        if code is None:
            break
        if code.co_name not in ("__aenter__", "__aexit__"):
            name = code.co_name
        coroutine = coroutine.cr_await
    return name
