"""The World: one process, one step at a time; a strategy picks which head moves, and may go back to an earlier state."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from actors.actor import Cell
from actors.ops import Code, Order
from racevisor.channel import Channel as Channel
from racevisor.channel import Execution as Execution
from racevisor.channel import Leap as Leap
from racevisor.channel import Snapshot as Snapshot
from racevisor.channel import Strategy as Strategy
from racevisor.channel import Thread as Thread
from racevisor.channel import Undo as Undo
from racevisor.errors import Unhashable
from racevisor.memory import StoreBuffer
from racevisor.monitor import Monitor
from racevisor.step import CHOICE, IPI, STORE_BUFFER, THREAD, Step
from racevisor.stepper import MAX_STEPS as MAX_STEPS
from racevisor.stepper import Gate, Stepper
from racevisor.stepper import innermost_function as innermost_function
from racevisor.written import Written

_LOAD, _FENCE, _AWAIT, _SEND, _CHOOSE = Code.LOAD, Code.FENCE, Code.AWAIT, Code.SEND, Code.CHOOSE
_WRITE = Order.WRITE
_PROGRAM = (THREAD, CHOICE)
_NOTHING: dict[str, Any] = {}  # never the dict of a monitor, which may come to hold something


class World(Stepper):
    """A VM under control.  `check(vm)` judges states where nothing can move; `monitors` judge every step they declared."""

    #: where executions set out from, if not from the initial state
    start: Snapshot | None = None

    @cached_property
    def written(self) -> Written:
        """The cells that can change, as far as is known; needs a World made with automata=True."""
        assert self.automata is not None
        return Written(self.cells, self.automata.ops, self.landing)

    def reset(self) -> None:
        """Back to the state that executions set out from."""
        if self.start is None:
            super().reset()
        else:
            self._clear()
            self.rewind(self.start)

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

    # ---- back to an earlier state -----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The present state; needs a World made with automata=True."""
        cells = self.written.cells
        return Snapshot(
            len(self.steps),
            cells,
            [cell.value for cell in cells],
            [thread.history for thread in self.threads],
            [thread.buffer.copy() if thread.buffer is not None and thread.buffer.entries else None for thread in self.threads],
            [(channel, channel.queue) for channel in self.flying if channel.queue],
            [(dict(m.ghost) if m.ghost else _NOTHING, dict(m.where) if m.where else _NOTHING) for m in self.monitors],
        )

    def rewind(self, snapshot: Snapshot) -> None:
        """Back to a state of the present execution's prefix; threads are automata here, so nothing is executed again."""
        assert self.automata is not None
        del self.steps[snapshot.depth :]
        self.violations = []
        self.written.restore(snapshot.cells, snapshot.values)
        for thread in self.threads:
            if thread.op is not None and thread.op.code == _AWAIT:
                thread.op.cell.waiters.clear()  # type: ignore[union-attr]
        for monitor, (ghost, where) in zip(self.monitors, snapshot.ghosts, strict=True):
            if ghost or where or monitor.ghost or monitor.where:
                monitor.ghost, monitor.where = dict(ghost), dict(where)
        self._empty()
        for channel, queue in snapshot.queues:
            channel.queue = queue
            self._enable(channel)
        ops, gate = self.automata.ops, self.gate
        for thread, history, buffer in zip(self.threads, snapshot.histories, snapshot.buffers, strict=True):
            thread.history = history
            thread.answers = []
            op = thread.op = ops[history]
            if buffer is not None:
                thread.buffer = buffer.copy()
                self._refresh_buffer(thread)
            elif thread.buffer is not None and thread.buffer.entries:
                thread.buffer.entries = []  # how many barriers there were matters to nothing that is left
            if op is not None:
                if buffer is not None or gate is not None or op.code == _AWAIT or op.code == _CHOOSE:
                    self._arm(thread, op)
                else:
                    self._enable(thread.channel)

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

    # ---- a state, and less of a machine -----------------------------------------------------------------------------------

    def fingerprint(self) -> tuple[Any, ...]:
        """The present state as a value: equal values behave alike.  Needs a World made with automata=True."""
        parts = self.written.state()
        for thread in self.threads:
            parts.append(thread.history)
            if thread.buffer is not None and thread.buffer.entries:
                parts.append(thread.buffer.contents())
        for channel in self.flying:
            if channel.queue:
                parts.append((channel.number, channel.queue))
        for n, monitor in enumerate(self.monitors):
            if monitor.ghost:
                parts.append((n, monitor.state()))
        return tuple(parts)

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

    def narrow(
        self, threads: list[Thread], cells: list[Cell], monitors: list[Monitor], gate: Gate, start: Snapshot | None = None
    ) -> None:
        """From the next reset on only `threads` move; the others stay before their first step.

        `cells` and `monitors` are those that can change then: a state of this World is made of nothing else.  `gate(thread, op)`
        is asked before a thread gets its next op, and may keep it from going on as if it had ended.  Executions set out from
        `start`, if it is given.  Needs a World made with automata=True.
        """
        self.threads, self.cells, self.monitors, self.gate, self.start = threads, cells, monitors, gate, start
        self.__dict__.pop("written", None)
        self._empty()
