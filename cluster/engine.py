"""One virtual machine, live, as far as one host holds it: the cells, the threads and their posted stores.  No Ray in here.

An engine never waits.  It takes messages in, gives each of its threads that can go on one step at a time, in turn, and leaves
what there is to say to other hosts in its outbox.  An access to a cell that lives here takes effect at once; any other is a
message to the cell's host, and its answer lets the thread go on.  Every step is recorded by the host where it takes effect,
with a Lamport clock; sorted by (clock, host) the records of all hosts are one execution of the World.  The places where that
could break say so.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NoReturn

from actors.actor import Cell
from actors.ops import AWAIT, AWAITED, RMW, Code, Op, Order, is_void
from cluster.messages import ACCESS, ANSWER, FLUSH, FLUSHED, IPI, FrameError, Message, name_of
from cluster.runner import Runner
from cluster.words import fields
from racevisor import step
from racevisor.automata import resume
from racevisor.events import EventLog
from racevisor.scenario import Case

#: One step as it is recorded: (clock, kind, thread, code, cell or physical CPU, value left behind, result).
Record = tuple[int, int, int, int, int, Any, Any]

_LOAD, _STORE, _RMW, _FENCE, _AWAIT, _SEND, _CHOOSE = (
    int(Code.LOAD), int(Code.STORE), int(Code.RMW), int(Code.FENCE), int(Code.AWAIT), int(Code.SEND), int(Code.CHOOSE),
)  # fmt: skip
_WRITE = Order.WRITE
_THREAD = step.THREAD

#: With noise, how many turns at most a thread waits before it sets out.
STAGGER = 8


class Engine:
    """The actors of a case that are placed on host `me`: `place` tells the host of each actor of the machine, by number."""

    def __init__(
        self,
        case: Case,
        place: Sequence[int],
        me: int,
        *,
        seed: int | str = 0,
        noise: float = 0.0,
        recording: bool = True,
        gated: bool = False,
        events: EventLog | None = None,
    ) -> None:
        self.vm = case.vm()
        self.place = tuple(place)
        self.me = me
        self.seed = seed
        self.noise = noise
        self.recording = recording
        self.gated = gated
        self.events = events
        self.memory = case.memory
        self.max_steps = case.max_steps if not gated else sys.maxsize
        self.names = [actor.name for actor in self.vm.actors]
        numbers = {name: i for i, name in enumerate(self.names)}
        self.numbers = numbers
        self.actor_of = [numbers[cell.owner.name] for cell in self.vm.cells]
        self.host_of = [self.place[actor] for actor in self.actor_of]
        self.threads = dict(enumerate(self.place))  # a number on the wire may be any int, -1 too
        self.actors = [actor for actor, host in zip(self.vm.actors, self.place, strict=True) if host == me]
        self.cells = [cell for cell in self.vm.cells if self.host_of[cell.index] == me]
        self.cell_of = {cell.index: cell for cell in self.cells}
        self.deliver_ipi = {numbers[pcpu.name]: pcpu.deliver_ipi for pcpu in self.vm.pcpus}
        self.runners: dict[int, Runner] = {}
        for actor in self.actors:
            coroutine = actor.run()
            if coroutine is not None:
                coroutine.close()
                self.runners[numbers[actor.name]] = Runner(actor, numbers[actor.name], case.memory)
        self.round = -1
        self.collected = True  # is there nothing of the present round that the driver wants yet?
        self.kept: dict[int, Message] = {}  # reports of rounds that the next one has overtaken
        self._clear()

    def _clear(self) -> None:
        self.clock = 0
        self.said = 0  # messages between actors of this host
        self.log: list[Record] = []
        self._keep: Callable[[Record], None] = self.log.append if self.events is None else self._show
        self.ready: deque[Runner] = deque()
        self.draining: deque[Runner] = deque()
        self.outbox: defaultdict[int, list[Message]] = defaultdict(list)
        self.waiters: dict[int, list[tuple[int, str, Any, Any]]] = {}  # by cell: (thread, fn, a, b) in order of arrival
        self.flying: dict[tuple[int, int], int] = {}  # gated: IPIs that may arrive, by (thread, physical CPU)
        # By host, what was sent to it and what it has said, in parts and in messages; is there news for the driver's count?
        self.sent, self.received = defaultdict[int, int](int), defaultdict[int, int](int)
        self.spoken, self.heard = defaultdict[int, int](int), defaultdict[int, int](int)
        self.stirred = self.waking = False
        self.moving = -1  # the thread that runs, for errors
        # Gated: how much of the log the driver knows, the grant that waits, why it cannot move, the answer wanted of a choice.
        self.told = 0
        self.granted: tuple[int, int, int] | None = None
        self.refused = ""
        self.answer = -1

    # ---- one round ------------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Is there a step that could be taken now?"""
        return not self.gated and (len(self.ready) > 0 or len(self.draining) > 0)

    def begin(self, round_: int) -> None:
        """Start a round.  A message of that round that comes first has the same effect, so nobody waits for all to be ready."""
        if round_ <= self.round:
            return
        if not self.collected:
            self.kept[self.round] = self.report()
        self.collected = False
        self.close()
        for cell in self.cells:
            cell.value = cell.init
        for actor in self.actors:
            actor.reset()
        self._clear()
        self.round = round_
        self.random = Random(f"{self.seed}:{round_}:{self.me}")
        self._throw = self.random.random
        self.stirred = True
        for runner in self.runners.values():
            runner.clear()
            coroutine = runner.actor.run()
            runner.coroutine = coroutine
            runner.send = coroutine.send  # type: ignore[union-attr]
            if self.noise:  # in one host threads would otherwise set out in step
                runner.held, runner.rolled = self.random.randrange(STAGGER), True
            self._advance(runner, None)

    def take(self, sender: int, round_: int, clock: int, messages: Sequence[Message]) -> None:
        """What another host said.  A late round's words are dropped; FrameError if it says what it may not."""
        if round_ < self.round:
            return
        if round_ > self.round:
            self.begin(round_)
        self.stirred = True
        self.received[sender] += 1
        self.heard[sender] += len(messages)
        self.clock = max(self.clock, clock)
        threads, cells, runners = self.threads, self.cell_of, self.runners
        for one in messages:
            tag = one[0]
            if tag == ACCESS:
                _, thread, index, code, fn, a, b = one
                if threads.get(thread) != sender:
                    self._no_peer(sender, thread)
                if index not in cells:
                    self._not_mine(sender, index)
                self._serve(sender, thread, cells[index], code, fn, a, b)
            elif tag == ANSWER:
                runner = runners.get(one[1])
                if runner is None or not runner.waiting:
                    raise FrameError(
                        f"a frame of {name_of(sender)} answers thread {one[1]} of {name_of(self.me)}, which asked nothing"
                    )
                self._advance(runner, one[2])
            elif tag == FLUSH:
                _, thread, index, value = one
                if threads.get(thread) != sender:
                    self._no_peer(sender, thread)
                if index not in cells:
                    self._not_mine(sender, index)
                self._land(thread, cells[index], value)
                self.outbox[sender].append((FLUSHED, thread, index))
            elif tag == FLUSHED:
                self._flushed(sender, one[1], one[2])
            elif tag == IPI:
                _, thread, pcpu = one
                if threads.get(thread) != sender:
                    self._no_peer(sender, thread)
                self._arrive(sender, thread, pcpu)
            else:
                raise FrameError(f"a frame of {name_of(sender)} holds a message of, or for, the driver only: {one!r:.80}")

    def turn(self) -> None:
        """One step for each thread that can go on, one for each store buffer that something may leave."""
        # Stores posted in this turn stay until the next one: their thread may take a step past them first.
        ready, draining, move, drain = self.ready, self.draining, self.move, self._drain
        steps, stores = len(ready), len(draining)
        for _ in range(steps):
            move(ready.popleft())
        for _ in range(stores):
            drain(draining.popleft())

    def leaving(self) -> dict[int, list[Message]]:
        """What there is to say to other hosts, by host: counted as sent, and not kept."""
        outbox, self.outbox = self.outbox, defaultdict(list)
        for host, messages in outbox.items():
            self.sent[host] += 1
            self.spoken[host] += len(messages)
        return outbox

    def collect(self, round_: int) -> Message:
        """The report of a round that is over; FrameError if it is not known here, or not any more."""
        if round_ != self.round and round_ not in self.kept:
            raise FrameError(f"{name_of(self.me)} is asked for round {round_}, of which it knows nothing")
        self.collected = self.collected or round_ == self.round
        return self.report() if round_ == self.round else self.kept.pop(round_)

    def report(self) -> Message:
        """What this host saw and holds: (log, cells, state, bounded, said, crossed), cells and state where they changed."""
        cells = tuple((cell.index, cell.value) for cell in self.cells if cell.value != cell.init)
        state = tuple(
            (self.numbers[actor.name], name, getattr(actor, name))
            for actor in self.actors
            for name, value in actor.state.items()
            if getattr(actor, name) != value
        )
        bounded = any(runner.bounded for runner in self.runners.values())
        crossed = sum(self.spoken.values()) + sum(map(len, self.outbox.values()))
        return (self.log, cells, state, bounded, self.said + crossed, crossed)

    def close(self) -> None:
        """Drop the suspended coroutines."""
        for runner in self.runners.values():
            if runner.coroutine is not None:
                runner.coroutine.close()
                runner.coroutine = None
        for actor in self.actors:
            actor.close()

    # ---- what a peer may say --------------------------------------------------------------------------------------------------

    def _not_mine(self, sender: int, index: int) -> NoReturn:
        raise FrameError(f"a frame of {name_of(sender)} wants cell {index}, which {name_of(self.me)} does not hold")

    def _no_peer(self, sender: int, thread: int) -> NoReturn:
        raise FrameError(f"a frame of {name_of(sender)} speaks for thread {thread}, which it does not hold")

    def _record(self, kind: int, thread: int, code: int, where: int, after: Any, result: Any) -> None:
        self.clock += 1
        if self.recording:
            self._keep((self.clock, kind, thread, code, where, after, result))

    def _show(self, record: Record) -> None:
        """Keep a step, and log it for whoever reads along."""
        self.log.append(record)
        self._tell(record[2], "step", fields(self.vm, self.memory, record))

    def _tell(self, thread: int, event: str, fields: dict[str, Any]) -> None:
        assert self.events is not None
        where = {"round": self.round, "actor": self.names[thread], "step": len(self.log) - 1, "clock": self.clock}
        self.events.debug(event, **{**fields, **where})

    # ---- threads --------------------------------------------------------------------------------------------------------------

    def move(self, runner: Runner) -> None:
        """Let the thread take its next step, if it may."""
        op = runner.op
        assert op is not None
        if self.noise:
            if not runner.rolled:
                runner.rolled = True
                runner.held = 0 if self._throw() >= self.noise else self._turns()
            if runner.held:
                runner.held -= 1
                self.ready.append(runner)
                return
        buffer = runner.buffer
        if buffer is not None and buffer.entries and not buffer.allows(op):
            runner.stalled = True
            return
        if runner.taken >= self.max_steps:
            runner.bounded = True
            return
        runner.rolled = False
        runner.taken += 1
        code, cell = op.code.real, op.cell  # a plain int: the collector need not look at messages and records of such
        if cell is None:
            self._alone(runner, op)
            return
        if buffer is not None:
            if code == _STORE:
                buffer.post(op)
                self._record(step.THREAD, runner.index, _STORE, cell.index, op.a, None)
                if not runner.draining:
                    runner.draining = True
                    self.draining.append(runner)
                self._advance(runner, None)
                return
            if code == _LOAD and buffer.entries:
                entry = buffer.forward(cell)
                if entry is not None and not entry.sent:
                    # In flight it may have landed already, and another's store after it: then this load would have read the
                    # past.  Behind it on the same channel, the load arrives after the store and reads what memory holds.
                    self._record(step.THREAD, runner.index, _LOAD, cell.index, None, entry.value)
                    self._advance(runner, entry.value)
                    return
        runner.waiting = True
        host = self.host_of[cell.index]
        if host != self.me:
            self.outbox[host].append((ACCESS, runner.index, cell.index, code, op.fn, op.a, op.b))
            return
        self._serve(self.me, runner.index, cell, code, op.fn, op.a, op.b)

    def _alone(self, runner: Runner, op: Op) -> None:
        """An op without a cell: a choice, a barrier, an IPI sent."""
        code = op.code
        if code == _CHOOSE:
            if runner.choices is None:
                runner.choices = Random(f"{self.seed}:{self.round}:{runner.actor.name}")
            answer = self.answer if self.answer >= 0 else runner.choices.randrange(op.a)
            self._record(step.CHOICE, runner.index, _CHOOSE, -1, None, answer)
            self._advance(runner, answer)
            return
        if code == _FENCE:
            if op.order == _WRITE and runner.buffer is not None:
                runner.buffer.wmb()
            self._record(step.THREAD, runner.index, _FENCE, -1, int(op.order), None)
        else:
            pcpu = self.numbers.get(op.a, -1)
            if pcpu not in self.deliver_ipi:
                raise ValueError(f"{runner.actor.name} sends an IPI to {op.a!r}, which is no physical CPU")
            self._record(step.THREAD, runner.index, _SEND, pcpu, None, None)
            host = self.place[pcpu]
            if host == self.me:
                self.said += 1
                self._arrive(host, runner.index, pcpu)
            else:
                self.outbox[host].append((IPI, runner.index, pcpu))
        self._advance(runner, None)

    def _advance(self, runner: Runner, value: Any) -> None:
        """Give the thread its result; it runs to its next op."""
        runner.waiting = False
        actor = runner.actor
        self.moving = runner.index
        op = runner.op = resume(actor, runner.send, None if is_void(runner.op) else value)
        self.moving = -1
        if op is None:
            runner.coroutine = None
        else:
            self.ready.append(runner)
        if actor.notes:
            if self.events is not None:
                for event, fields in actor.notes:
                    self._tell(runner.index, event, fields)
            actor.notes.clear()

    # ---- posted stores --------------------------------------------------------------------------------------------------------

    def _drain(self, runner: Runner) -> None:
        """Let one posted store leave, if one may."""
        buffer = runner.buffer
        assert buffer is not None
        if buffer.per_cell:
            entries = [entry for entry in buffer.movable() if not entry.sent]
        else:
            entries = [entry for entry in buffer.entries[:1] if not entry.sent]
        if not entries:
            runner.draining = False  # until an acknowledgement makes another one the head
            return
        if self.noise:
            if not runner.rolled_store:
                runner.rolled_store = True
                runner.held_store = 0 if self._throw() >= self.noise else self._turns()
            if runner.held_store:
                runner.held_store -= 1
                self.draining.append(runner)
                return
            runner.rolled_store = False
        # pso: stores to several cells may leave in any order
        self.leave(runner, entries[0] if len(entries) == 1 else self.random.choice(entries))
        if buffer.entries:
            self.draining.append(runner)
        else:
            runner.draining = False

    def leave(self, runner: Runner, entry: Any) -> None:
        cell = entry.cell
        host = self.host_of[cell.index]
        if host == self.me:
            runner.buffer.entries.remove(entry)  # type: ignore[union-attr]
            if self.actor_of[cell.index] != runner.index:
                self.said += 2
            self._land(runner.index, cell, entry.value)
            self._unstall(runner)
        else:
            entry.sent = True
            self.outbox[host].append((FLUSH, runner.index, cell.index, entry.value))

    def _flushed(self, sender: int, thread: int, index: int) -> None:
        runner = self.runners.get(thread)
        entries = runner.buffer.entries if runner is not None and runner.buffer is not None else []
        for entry in entries:
            if entry.sent and entry.cell.index == index:
                entries.remove(entry)
                break
        else:
            raise FrameError(
                f"a frame of {name_of(sender)} acknowledges a store that {name_of(self.me)} did not send:"
                f" thread {thread}, cell {index}"
            )
        assert runner is not None
        if entries and not runner.draining:
            runner.draining = True
            self.draining.append(runner)
        self._unstall(runner)

    def _unstall(self, runner: Runner) -> None:
        if runner.stalled:
            runner.stalled = False
            self.ready.append(runner)

    # ---- the cells ------------------------------------------------------------------------------------------------------------

    def _serve(self, sender: int, thread: int, cell: Cell, code: int, fn: str, a: Any, b: Any) -> None:
        """Execute an op on a cell of this host for a thread of host `sender`, now or when its condition holds."""
        value = cell.value
        kept: Any = None
        result: Any = value
        if code == _LOAD:
            after = value
        elif code == _RMW:
            kept = after = RMW[fn](value, a, b)
        elif code == _STORE:
            kept, after, result = a, a, None
        else:
            if not AWAIT[fn](value, a):
                if self.gated:
                    self.refused = f"{self.names[thread]} waits at {cell.label}, which is {value!r}"
                self.waiters.setdefault(cell.index, []).append((thread, fn, a, b))
                return
            kept = after = AWAITED[fn](value, b)
        self.clock += 1
        if self.recording:
            self._keep((self.clock, _THREAD, thread, code, cell.index, kept, result))
        if sender == self.me:
            if self.actor_of[cell.index] != thread:
                self.said += 2
            self._advance(self.runners[thread], result)
        else:
            self.outbox[sender].append((ANSWER, thread, result))
        if code != _LOAD:
            if cell.index in self.waiters:
                self._write(cell, after)
            else:
                cell.value = after

    def _land(self, thread: int, cell: Cell, value: Any) -> None:
        self._record(step.STORE_BUFFER, thread, _STORE, cell.index, value, None)
        self._write(cell, value)

    def _arrive(self, sender: int, thread: int, pcpu: int) -> None:
        """An IPI is there; it takes effect at once, unless somebody else says when."""
        op = self.deliver_ipi.get(pcpu)
        if op is None or op.cell is None or self.place[pcpu] != self.me:
            raise FrameError(
                f"a frame of {name_of(sender)} sends an IPI to {pcpu}, which is no physical CPU of {name_of(self.me)}"
            )
        if self.gated:
            self.flying[thread, pcpu] = self.flying.get((thread, pcpu), 0) + 1
            return
        self.interrupt(thread, pcpu)

    def interrupt(self, thread: int, pcpu: int) -> None:
        op = self.deliver_ipi[pcpu]
        cell = op.cell
        assert cell is not None
        after = RMW[op.fn](cell.value, None, None)
        self._record(step.IPI, thread, _RMW, pcpu, after, None)
        self._write(cell, after)

    def _write(self, cell: Cell, value: Any) -> None:
        """The cell holds `value`; whoever waits for it goes on, first come, first served."""
        cell.value = value
        queue = self.waiters.get(cell.index)
        if not queue or self.gated or self.waking:
            return
        self.waking, i = True, 0  # a thousand readers may go on at once: no recursion
        while i < len(queue):
            thread, fn, a, b = queue[i]
            if AWAIT[fn](cell.value, a):
                del queue[i]
                self._serve(self.place[thread], thread, cell, _AWAIT, fn, a, b)  # it writes: the queue is looked at again
                i = -1
            i += 1
        self.waking = False

    def _turns(self) -> int:
        """For how many turns to stay: geometric, and 1 at least."""
        times = 1
        while self._throw() < 0.5:
            times += 1
        return times

    def __repr__(self) -> str:
        return f"<engine of {len(self.actors)} actors on host {self.me}, round {self.round}>"
