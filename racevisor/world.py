"""The World: one process, one step at a time; a strategy picks which channel's head moves.

Everything that may happen next is the head of a FIFO channel: the next op of a thread, the oldest posted store of a store
buffer, an IPI in flight, one answer of a choice.  The set of movable heads is kept up to date step by step; only what a step
can have enabled or disabled is looked at again, so idle actors cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.actor import Cell
from actors.ops import AWAIT, AWAITED, RMW, Code, Op, Order, may_write
from actors.vm import Vm
from racevisor.automata import Automata, resume
from racevisor.channel import Channel as Channel
from racevisor.channel import Execution as Execution
from racevisor.channel import Leap as Leap
from racevisor.channel import Snapshot as Snapshot
from racevisor.channel import Strategy as Strategy
from racevisor.channel import Thread as Thread
from racevisor.channel import Undo as Undo
from racevisor.errors import Unhashable
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
_WRITE = Order.WRITE
_PROGRAM = (THREAD, CHOICE)


class World:
    """A VM under control.  `check(vm)` judges states where nothing can move; `monitors` judge every step they declared."""

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
        self.start: Snapshot | None = None
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
        self._deliver = {vcpu.pcpu.name: vcpu.pcpu.deliver_ipi for vcpu in vm.vcpus}
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

    def narrow(
        self, threads: list[Thread], cells: list[Cell], monitors: list[Monitor], gate: Gate, start: Snapshot | None = None
    ) -> None:
        """From the next reset on only `threads` move; the others stay before their first step.

        `cells` and `monitors` are those that can change then: a state of this World is made of nothing else.  `gate(thread, op)`
        is asked before a thread gets its next op, and may keep it from going on as if it had ended.  Executions set out from
        `start`, if it is given.  Needs a World made with automata=True.
        """
        self.threads, self.cells, self.monitors, self.gate, self.start = threads, cells, monitors, gate, start
        self._empty()

    def _empty(self) -> None:
        """No head can move."""
        for channel in self.movable:
            channel.at = -1
        self.movable.clear()
        for channel in self.flying:
            channel.queue = 0

    # ---- one execution ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Drop the coroutines of an unfinished execution."""
        if self.automata is not None:
            self.automata.close()
        for thread in self.threads:
            if thread.coroutine is not None:
                thread.coroutine.close()
                thread.coroutine = None
            thread.actor.close()

    def reset(self) -> None:
        """Back to the initial state; every thread runs up to its first op."""
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
        if self.start is not None:
            self.rewind(self.start)
            return
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

    def run(self, strategy: Strategy, run: int = 0) -> Execution:
        """One execution under `strategy`, which may set out from an earlier state instead of the initial one."""
        resume = getattr(strategy, "resume", None)
        if resume is None or not resume(self):
            self.reset()
        strategy.begin(self, run)
        pick, step, movable = strategy.pick, self.step, self.movable
        status = "terminal"
        limit = self.max_steps
        while movable:
            if len(self.steps) >= limit:
                status = "bounded"
                break
            channel = pick(movable)
            if channel is None:
                if movable:
                    status = "violated" if self.violations else "pruned"
                break  # a strategy that leaps may have come to the end by itself
            step(channel)
            if self.violations:
                status = "violated"
                break
        outcome = None
        if status in ("terminal", "violated"):
            if self.automata is not None:
                self.automata.restore_private_state(self.threads)
            if status == "terminal" and self.check is not None:
                self.violations.extend(self.check(self.vm))
            if self.outcome is not None:
                outcome = self.outcome(self.vm)
        return Execution(run, self.steps, status, self.violations, outcome)

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
                if cell.waiters:
                    for waiter in cell.waiters[:]:
                        self._refresh(waiter)
            if cell.watched and self.journal is not None:
                ghosts = [(monitor, dict(monitor.ghost), dict(monitor.where)) for monitor in cell.watched]
            for monitor in cell.watched:
                violation = self.judge(monitor, step)
                if violation is not None:
                    violation.step = step.n
                    self.violations.append(violation)
        if kind in _PROGRAM:
            if op.code == _AWAIT:
                cell.waiters.remove(thread)  # type: ignore[union-attr]
            if self.functions:
                step.function = innermost_function(thread.coroutine)
            if self.automata is None:
                op = resume(thread.actor, thread.send, result)
            else:
                thread.history = self.automata.move(thread, result, thread.history)
                op = self.automata.ops[thread.history]
            thread.op = op
            if op is None:
                thread.coroutine = None
                self._disable(thread.channel)
            elif channel.at < 0 or thread.buffer is not None or op.code == _AWAIT or op.code == _CHOOSE or self.gate is not None:
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
        wanted = set()
        for entry in buffer.movable():
            key = entry.cell.index if buffer.per_cell else -1
            wanted.add(key)
            channel = thread.flushes.get(key)
            if channel is None:
                name = buffer_name(thread.actor.name, entry.cell, self.memory)
                channel = self._channel(name, STORE_BUFFER, thread, entry.cell if buffer.per_cell else None)
                thread.flushes[key] = channel
            self._enable(channel)
        for key, channel in thread.flushes.items():
            if key not in wanted:
                self._disable(channel)

    # ---- back to an earlier state -----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The present state; needs a World made with automata=True."""
        return Snapshot(
            len(self.steps),
            [cell.value for cell in self.cells],
            [thread.history for thread in self.threads],
            [thread.buffer.copy() if thread.buffer is not None else None for thread in self.threads],
            [(channel, channel.queue) for channel in self.flying if channel.queue],
            [(dict(m.ghost), dict(m.where)) for m in self.monitors],
        )

    def rewind(self, snapshot: Snapshot) -> None:
        """Back to a state of the present execution's prefix; threads are automata here, so nothing is executed again."""
        assert self.automata is not None
        del self.steps[snapshot.depth :]
        self.violations = []
        for cell, value in zip(self.cells, snapshot.values, strict=True):
            cell.value = value
            if cell.waiters:
                cell.waiters.clear()
        for monitor, (ghost, where) in zip(self.monitors, snapshot.ghosts, strict=True):
            monitor.ghost, monitor.where = dict(ghost), dict(where)
        self._empty()
        for channel, queue in snapshot.queues:
            channel.queue = queue
            self._enable(channel)
        for thread, history, buffer in zip(self.threads, snapshot.histories, snapshot.buffers, strict=True):
            thread.history = history
            thread.answers = []
            if buffer is not None:
                thread.buffer = buffer.copy()
                self._refresh_buffer(thread)
            thread.op = self.automata.ops[history]
            if thread.op is not None:
                self._arm(thread, thread.op)

    def undo(self, depth: int) -> None:
        """Take back the latest steps until `depth` are left; needs a journal, and a World made with automata=True.

        It costs what the steps cost that are taken back, where `rewind` costs what the machine is large.
        """
        assert self.automata is not None
        assert self.journal is not None
        self.violations = []
        steps, journal, ops = self.steps, self.journal, self.automata.ops
        while len(steps) > depth:
            step = steps.pop()
            channel, history, entry, where, ghosts = journal.pop()
            thread = channel.thread
            kind = step.kind
            cell = step.cell
            op = thread.op
            if kind in _PROGRAM:
                if op is not None and op.code == _AWAIT:
                    op.cell.waiters.remove(thread)  # type: ignore[union-attr]
                elif thread.answers:
                    for answer in thread.answers:
                        self._disable(answer)
                    thread.answers = []
                thread.history = history
                op = thread.op = ops[history]
                assert op is not None
                buffer = thread.buffer
                if buffer is not None:
                    if step.posted:
                        buffer.unpost(op)
                        self._refresh_buffer(thread)
                    elif op.code == _FENCE and op.order == _WRITE:
                        buffer.unwmb()
                if op.code == _SEND:
                    ipi = self.channels[f"{thread.actor.name}=>{op.a}"]
                    ipi.queue -= 1
                    if not ipi.queue:
                        self._disable(ipi)
            elif kind == STORE_BUFFER:
                thread.buffer.entries.insert(where, entry)  # type: ignore[union-attr]
                self._refresh_buffer(thread)
            else:
                channel.queue += 1
                self._enable(channel)
            if cell is not None and not step.posted and cell.value is not step.before:
                if kind != THREAD or op.code != _LOAD:  # type: ignore[union-attr]  # a load may have been served from the store buffer
                    cell.value = step.before
                    for waiter in cell.waiters:
                        self._refresh(waiter)
            if ghosts is not None:
                for monitor, ghost, place in ghosts:
                    monitor.ghost, monitor.where = ghost, place
            if kind == STORE_BUFFER:
                if op is not None and op.code != _CHOOSE:
                    self._refresh(thread)
            elif kind != IPI:
                if kind == CHOICE or thread.buffer is not None or op.code == _AWAIT:  # type: ignore[union-attr]
                    self._arm(thread, op)  # type: ignore[arg-type]
                elif channel.at < 0:
                    self._enable(channel)

    def leap(
        self, thread: Thread, steps: list[Step], values: list[tuple[Cell, Any]], history: int, buffer: StoreBuffer | None
    ) -> None:
        """Take a run of steps at once that was taken before from an equal state, and touched nothing but what is given here."""
        assert self.automata is not None
        if thread.op is not None and thread.op.code == _AWAIT:
            thread.op.cell.waiters.remove(thread)  # type: ignore[union-attr]  # it is armed again below
        self.steps.extend(steps)
        for cell, value in values:
            cell.value = value
            for waiter in cell.waiters[:]:
                self._refresh(waiter)
        thread.history = history
        if buffer is not None:
            thread.buffer = buffer.copy()
            self._refresh_buffer(thread)
        thread.op = self.automata.ops[history]
        if thread.op is None:
            self._disable(thread.channel)
        else:
            self._arm(thread, thread.op)

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

    def unhashable(self) -> Unhashable:
        """The error for a state that cannot be hashed: which value of it, and where it is kept."""
        kept = [(cell.label, cell.value) for cell in self.vm.cells]
        for thread in self.threads:
            for entry in thread.buffer.entries if thread.buffer is not None else ():
                kept.append((f"a store to {entry.cell.label} posted by {thread.actor.name}", entry.value))
        for monitor in self.monitors:
            name = monitor.check or type(monitor).__name__
            kept += [(f"ghost variable {key!r} of check {name}", value) for key, value in monitor.ghost.items()]
        for where, value in kept:
            try:
                hash(value)
            except TypeError:
                return Unhashable(
                    f"{where} is {value!r}: a {type(value).__name__}, which cannot be hashed\n"
                    f"  a stateful search must remember it: keep ints, strings, bools, None and tuples of them there"
                )
        return Unhashable("the state() of a monitor cannot be hashed; a stateful search must remember it")

    def fingerprint(self) -> tuple[Any, ...]:
        """The present state as a value: equal values behave alike.  Needs a World made with automata=True."""
        parts: list[Any] = [cell.value for cell in self.cells]
        for thread in self.threads:
            parts.append(thread.history)
            if thread.buffer is not None and thread.buffer.entries:
                parts.append(thread.buffer.contents())
        for channel in self.flying:
            if channel.queue:
                parts.append((channel.number, channel.queue))
        for monitor in self.monitors:
            parts.append(monitor.state())
        return tuple(parts)


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
