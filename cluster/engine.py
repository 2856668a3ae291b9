"""One simulated actor, live: the cells that it owns, its coroutine, the stores that it has posted.  No Ray in here.

An engine reacts to frames and never waits: it applies the messages, runs its own thread as far as that goes without an answer
from elsewhere, and sends what came of it, one frame to each host.  Every step is logged by the host where it takes effect,
with a Lamport clock, under the channel and in the words of the World; sorted by (clock, host) the logs of all hosts are one
execution of the World.  The places where that could break say so.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgpack

from actors.actor import Actor, Cell
from actors.ops import AWAIT, RMW, Code, Op, Order, apply, describe
from cluster.messages import Access, Answer, Continue, Flush, Flushed, Frame, FrameError, Ipi, Message, decode, encode
from cluster.transport import Transport
from racevisor.automata import resume
from racevisor.errors import RacevisorError
from racevisor.events import EventLog
from racevisor.memory import Posted, StoreBuffer, buffer_name
from racevisor.scenario import Case
from racevisor.step import CHOICE, IPI, STORE_BUFFER, THREAD, label


class Engine:
    """The live runtime of the actor `name` of a case.  Every engine builds the whole machine, and believes its own cells only."""

    def __init__(
        self,
        case: Case,
        name: str,
        run: str,
        transport: Transport,
        *,
        seed: int | str = 0,
        noise: float = 0.0,
        events: EventLog | None = None,
    ) -> None:
        self.vm = case.vm()
        self.run = run
        self.transport = transport
        self.seed = seed
        self.noise = noise
        self.events = events
        self.memory = case.memory
        self.max_steps = case.max_steps
        self.hosts = {actor.name: i for i, actor in enumerate(self.vm.actors)}
        self.names = [actor.name for actor in self.vm.actors]
        self.owner = [self.hosts[cell.owner.name] for cell in self.vm.cells]
        self.actor: Actor = self.vm.by_name[name]
        self.name = name
        self.me = self.hosts[name]
        self.cells = [cell for cell in self.vm.cells if cell.owner is self.actor]
        self.deliver_ipi = {self.hosts[pcpu.name]: pcpu.deliver_ipi for pcpu in self.vm.pcpus}
        self.buffer = StoreBuffer(case.memory) if case.memory != "sc" else None
        self.coroutine: Any = None
        self.round = -1
        self._clear()

    def _clear(self) -> None:
        self.send: Callable[[Any], Op] | None = None
        self.op: Op | None = None
        self.waiting = False  # for the answer to `op`
        self.bounded = False
        self.failure: tuple[str, str] | None = None  # (kind, text) of the first thing that went wrong
        self.taken = 0  # ops that the own thread executed
        self.sent = self.received = 0  # frames of this round, those to itself among them
        self.said = 0  # messages in the frames sent
        self.clock = 0
        self.log: list[tuple[int, str, str]] = []
        self.outbox: dict[int, list[Message]] = {}
        self.waiters: dict[int, list[tuple[int, Op]]] = {}  # by cell: (thread, op) in order of arrival
        # Noise: how often to go round before the next own step, or before the next posted store leaves; and whether the dice
        # were thrown for it already.
        self.hold_step = self.hold_flush = 0
        self.rolled_step = self.rolled_flush = False
        self.going_round = False

    # ---- what a host asks ---------------------------------------------------------------------------------------------------

    def begin(self, round_: int) -> None:
        """Start a round.  A frame of that round that comes first has the same effect, so nobody waits for all to be ready."""
        if round_ > self.round:
            self._guard(self._start, round_)

    def deliver(self, data: bytes) -> None:
        """Handle one frame."""
        self._guard(self._handle, data)

    def probe(self) -> tuple[int, int, int, bool, tuple[str, str] | None]:
        """(round, frames sent, frames received, does nothing seem to be left to do here?, failure)."""
        at_rest = self.op is None or self.bounded or (self.waiting and self.op.code == Code.AWAIT)
        in_buffer = self.buffer is not None and bool(self.buffer.entries)
        return self.round, self.sent, self.received, at_rest and not in_buffer, self.failure

    def report(self) -> bytes:
        """What this host saw and holds, as `cluster.parity.Report`: the log, the cells, the actor's private state."""
        cells = [(cell.index, cell.value) for cell in self.cells]
        state = [(name, getattr(self.actor, name)) for name in self.actor.state]
        try:
            data: bytes = msgpack.packb([self.log, cells, state, self.bounded, self.said])
        except (TypeError, ValueError, OverflowError) as error:
            raise FrameError(f"{self.name} has a value that cannot travel: {error}: {cells} {state}") from error
        return data

    def close(self) -> None:
        """Drop the suspended coroutine."""
        if self.coroutine is not None:
            self.coroutine.close()
            self.coroutine = None
        self.actor.close()

    # ---- one round ----------------------------------------------------------------------------------------------------------

    def _guard(self, action: Callable[[Any], None], argument: Any) -> None:
        # Nobody waits for what a frame does, so an error must not be lost: the next probe takes it home.
        try:
            action(argument)
            self._settle()
        except RacevisorError as error:
            self.failure = self.failure or (type(error).__name__, str(error))
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = f"{where.tb_frame.f_code.co_name}, line {where.tb_lineno}" if where is not None else "?"
            self.failure = self.failure or ("", f"{self.name} raised {type(error).__name__} in {line}: {error}")

    def _start(self, round_: int) -> None:
        self.close()
        self.vm.reset()
        self._clear()
        if self.buffer is not None:
            self.buffer.clear()
        self.round = round_
        self.random = Random(f"{self.seed}:{round_}:{self.name}")
        coroutine = self.actor.run()
        if coroutine is not None:
            self.coroutine = coroutine
            self.send = coroutine.send
            self._advance(None)

    def _handle(self, data: bytes) -> None:
        frame = decode(data)
        if frame.run != self.run or frame.round < self.round:
            return  # a stranger's, or late
        if frame.round > self.round:
            self._start(frame.round)
        self.received += 1
        self.clock = max(self.clock, frame.clock)
        for one in frame.messages:
            self._receive(frame, one)

    def _receive(self, frame: Frame, one: Message) -> None:
        match one:
            case Access(thread, cell, code, fn, a, b, order):
                op = Op(Code(code), self._mine(frame, cell), fn, a, b, Order(order))
                self._access(self._peer(frame, thread), op)
            case Answer(_, value):
                if not self.waiting:
                    raise FrameError(f"a frame of {frame.sender} answers {self.name}, which asked nothing")
                self._advance(value)
            case Flush(thread, cell, value):
                self._flush(self._peer(frame, thread), self._mine(frame, cell), value)
                self._post(thread, Flushed(thread, cell))
            case Flushed(_, cell):
                self._flushed(frame, cell)
            case Ipi(thread, _):
                self._ipi(self._peer(frame, thread))
            case Continue():
                self._continue()

    def _mine(self, frame: Frame, cell: int) -> Cell:
        if not 0 <= cell < len(self.owner) or self.owner[cell] != self.me:
            raise FrameError(f"a frame of {frame.sender} wants cell {cell}, which {self.name} does not own")
        return self.vm.cells[cell]

    def _peer(self, frame: Frame, thread: int) -> int:
        if not 0 <= thread < len(self.names) or self.names[thread] != frame.sender:
            raise FrameError(f"a frame of {frame.sender} speaks for thread {thread}")
        return thread

    def _settle(self) -> None:
        """Run the own thread and its posted stores as far as they go, then send."""
        while self.failure is None:
            self._run_thread()
            if not self._pump():
                break
        outbox, self.outbox = self.outbox, {}
        for host, messages in outbox.items():
            # The clock of the frame is the latest one, so it is not before any step that its messages follow from.
            frame = encode(self.run, self.round, self.name, self.clock, messages)
            self.sent += 1
            self.said += len(messages)
            self.transport.send(host, frame)

    def _post(self, host: int, one: Message) -> None:
        self.outbox.setdefault(host, []).append(one)

    def _log(self, kind: int, channel: str, op: Op, cell: Cell | None, after: Any, result: Any, posted: bool = False) -> None:
        self.clock += 1
        words = label(kind, op, cell, after, result, posted)
        self.log.append((self.clock, channel, words))
        if self.events is not None and self.events.debugging:
            self._event("step", channel=channel, label=words)

    def _event(self, event: str, **fields: Any) -> None:
        assert self.events is not None
        where = {"round": self.round, "actor": self.name, "step": len(self.log) - 1, "clock": self.clock}
        self.events.debug(event, **{**fields, **where})

    # ---- the own thread -----------------------------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        while self.op is not None and not self.waiting and not self.bounded and self.failure is None:
            if self.hold_step or self._defer_step():
                return
            op = self.op
            if self.buffer is not None and not self.buffer.allows(op):
                return  # until the stores it has to wait for are acknowledged
            if self.taken >= self.max_steps:
                self.bounded = True
                return
            self.rolled_step = False
            self.taken += 1
            self._execute(op)

    def _execute(self, op: Op) -> None:
        code, cell, buffer = op.code, op.cell, self.buffer
        if code == Code.CHOOSE:
            answer = self.random.randrange(op.a)
            self._log(CHOICE, f"{self.name}?{answer}", op, None, None, answer)
            self._advance(answer)
        elif code == Code.FENCE:
            if op.order == Order.WRITE and buffer is not None:
                buffer.wmb()
            self._log(THREAD, self.name, op, None, None, None)
            self._advance(None)
        elif code == Code.SEND:
            self._log(THREAD, self.name, op, None, None, None)
            self._post(self.hosts[op.a], Ipi(self.me, self.hosts[op.a]))
            self._advance(None)
        else:
            assert cell is not None
            if code == Code.STORE and buffer is not None:
                buffer.post(op)
                self._log(THREAD, self.name, op, cell, None, None, posted=True)
                self._advance(None)
                return
            entry = buffer.forward(cell) if code == Code.LOAD and buffer is not None and buffer.entries else None
            if entry is not None and not entry.sent:
                # In flight it may have landed already, and another's store after it: then this load would have read the past.
                # Behind it on the same channel, the load arrives after the store and reads what memory holds.
                self._log(THREAD, self.name, op, cell, entry.value, entry.value)
                self._advance(entry.value)
                return
            self.waiting = True
            owner = self.owner[cell.index]
            if owner == self.me:
                self._access(self.me, op)
            else:
                self._post(owner, Access(self.me, cell.index, int(code), op.fn, op.a, op.b, int(op.order)))

    def _advance(self, value: Any) -> None:
        """Give the thread its result; it runs to its next op."""
        self.waiting = False
        self.op = resume(self.actor, self.send, value)
        if self.op is None:
            self.coroutine = None
        if self.actor.notes:
            if self.events is not None and self.events.debugging:
                for event, fields in self.actor.notes:
                    self._event(event, **fields)
            self.actor.notes.clear()

    # ---- the posted stores of the own thread ------------------------------------------------------------------------------

    def _pump(self) -> bool:
        """Send the posted stores that may go; True if one landed in an own cell, so that the thread may go on."""
        buffer = self.buffer
        if buffer is None or not buffer.entries or self.hold_flush:
            return False
        landed = False
        for entry in buffer.movable():
            if entry.sent:
                continue
            if self._defer_flush():
                return landed
            self.rolled_flush = False
            if self.owner[entry.cell.index] == self.me:
                buffer.entries.remove(entry)
                self._flush(self.me, entry.cell, entry.value)
                landed = True
            else:
                entry.sent = True
                self._post(self.owner[entry.cell.index], Flush(self.me, entry.cell.index, entry.value))
        return landed

    def _flushed(self, frame: Frame, index: int) -> None:
        buffer = self.buffer
        entries: list[Posted] = buffer.entries if buffer is not None else []
        for entry in entries:
            if entry.sent and entry.cell.index == index:
                entries.remove(entry)
                return
        raise FrameError(f"a frame of {frame.sender} acknowledges a store that {self.name} did not send: cell {index}")

    # ---- the owner of cells -------------------------------------------------------------------------------------------------

    def _access(self, thread: int, op: Op) -> None:
        cell = op.cell
        assert cell is not None
        if op.code == Code.AWAIT and not AWAIT[op.fn](cell.value, op.a):
            self.waiters.setdefault(cell.index, []).append((thread, op))
            return
        after, result = apply(op, cell.value)
        self._log(THREAD, self.names[thread], op, cell, after, result)
        if thread == self.me:
            self._advance(result)
        else:
            self._post(thread, Answer(thread, result))
        if op.code != Code.LOAD:
            self._write(cell, after)

    def _flush(self, thread: int, cell: Cell, value: Any) -> None:
        self._log(STORE_BUFFER, buffer_name(self.names[thread], cell, self.memory), cell.load, cell, value, None)
        self._write(cell, value)

    def _ipi(self, thread: int) -> None:
        op = self.deliver_ipi.get(self.me)
        if op is None or op.cell is None:
            raise FrameError(f"{self.names[thread]} sent an IPI to {self.name}, which is no physical CPU")
        after = RMW[op.fn](op.cell.value, None, None)
        self._log(IPI, f"{self.names[thread]}=>{self.name}", op, op.cell, after, None)
        self._write(op.cell, after)

    def _write(self, cell: Cell, value: Any) -> None:
        """The cell holds `value`; whoever waits for it goes on, first come, first served."""
        cell.value = value
        queue = self.waiters.get(cell.index)
        if not queue:
            return
        for i, (thread, op) in enumerate(queue):
            if AWAIT[op.fn](value, op.a):
                del queue[i]
                self._access(thread, op)  # writes in its turn, which looks at the rest of the queue again
                return

    # ---- noise --------------------------------------------------------------------------------------------------------------

    def _defer_step(self) -> bool:
        if self.noise and not self.rolled_step:
            self.rolled_step = True
            self.hold_step = self._dice()
            self._go_round()
        return self.hold_step > 0

    def _defer_flush(self) -> bool:
        if self.noise and not self.rolled_flush:
            self.rolled_flush = True
            self.hold_flush = self._dice()
            self._go_round()
        return self.hold_flush > 0

    def _dice(self) -> int:
        """How many times to go round: mostly 0, else geometric."""
        if self.random.random() >= self.noise:
            return 0
        times = 1
        while self.random.random() < 0.5:
            times += 1
        return times

    def _go_round(self) -> None:
        if (self.hold_step or self.hold_flush) and not self.going_round:
            self.going_round = True
            self._post(self.me, Continue(self.me))

    def _continue(self) -> None:
        self.going_round = False
        self.hold_step = max(0, self.hold_step - 1)
        self.hold_flush = max(0, self.hold_flush - 1)
        self._go_round()

    def __repr__(self) -> str:
        return f"<engine of {self.name}, round {self.round}: {describe(self.op) if self.op is not None else 'no thread'}>"
