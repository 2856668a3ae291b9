"""A host: the process that holds many simulated actors, of one virtual machine or of several.  No Ray and no sockets in here.

Whoever drives a host hands it frames (`receive`) and turns (`turn`), in any mixture; the host hands frames to its transport.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster import gate
from cluster.accounts import Cuts, Said
from cluster.engine import Engine
from cluster.link import Link
from cluster.messages import (
    BEGIN,
    COLLECT,
    COUNTS,
    CUT,
    DRIVER,
    FAILURE,
    GRANT,
    HERE,
    IDLE,
    MEET,
    MET,
    NO_VM,
    PING,
    PROBE,
    REPORT,
    STOP,
    FrameError,
    Message,
    Part,
    name_of,
)
from racevisor.errors import RacevisorError


class Host:
    """Host number `link.me` of `hosts`, with one engine for each virtual machine.

    `introduce(host, address)` tells the transport where a replaced host is found.
    """

    def __init__(
        self,
        link: Link,
        hosts: int,
        engines: Sequence[Engine],
        introduce: Callable[[int, str], None] = lambda host, address: None,
    ) -> None:
        self.link = link
        self.me = link.me
        self.hosts = hosts
        self.engines = list(engines)
        self.introduce = introduce
        self.stopped = False
        self.failed = False
        self._waves: list[tuple[int, int]] = []  # (vm, wave) that the driver asked for
        self._driver: dict[int, list[Message]] = {}  # what it is told, by virtual machine
        self._besides: list[Said] = []  # reports of rounds that are over, and accounts of those that were given up
        self._cuts = Cuts(self.me, hosts, self.engines)
        self._takers = self._cuts.takers

    @property
    def busy(self) -> bool:
        """Is there a step that could be taken without another frame, or something left to say?"""
        if not self.failed:
            for engine in self.engines:  # asked before every turn: a generator would cost more than the answer
                if engine.busy:
                    return True
        return False

    def receive(self, data: bytes) -> None:
        """One frame, from anybody.  An error in it is the driver's to tell; it must not be lost, for nobody waits here."""
        try:
            frame = self.link.hear(data)
            if frame is None:
                return
            for part in frame.parts:
                if frame.sender == DRIVER:
                    self._obey(part)
                elif not self.failed:
                    self._hear(frame.sender, part)
        except Exception as error:
            self.fail(error)

    def turn(self) -> None:
        """One turn for every engine; then everything that came of it leaves, one frame to each peer."""
        frames: dict[int, list[tuple[int, int, int, list[Message]]]] = {}
        for vm, engine in enumerate(self.engines):
            if not engine.stirred and not engine.outbox and not engine.gated:
                continue
            busy = engine.busy
            if busy and not self.failed:
                try:
                    engine.turn()
                except Exception as error:
                    self.fail(error)
                busy = engine.busy
            if engine.gated:
                gate.tell(engine, self._driver.setdefault(vm, []))
            outbox = engine.outbox
            if outbox:
                for host, messages in self._leaving(engine).items():
                    # The clock of the part is the latest one, so it is not before any step that its messages follow from.
                    frames.setdefault(host, []).append((vm, engine.round, engine.clock, messages))
            if not busy and engine.stirred:
                engine.stirred = False
                if not outbox and not engine.gated:  # else what was sent is still in flight, and its receiver has the last word
                    self._driver.setdefault(vm, []).extend((self._counts(engine, 0), (IDLE,)))
        if self._waves:
            self._count()
        if self._besides:
            for peer, part in self._besides:
                frames.setdefault(peer, []).append(part)
            self._besides = []
        if self._driver:
            for vm, messages in self._driver.items():
                engine_round = self.engines[vm].round if vm >= 0 else 0
                frames.setdefault(DRIVER, []).append((vm, engine_round, 0, messages))
            self._driver = {}
        for peer, parts in frames.items():
            try:
                self.link.say(peer, parts)
            except FrameError as error:
                if peer == DRIVER:
                    self.link.say(DRIVER, [(NO_VM, 0, 0, [(FAILURE, "FrameError", str(error))])])
                else:
                    self.fail(error)

    def close(self) -> None:
        """Drop all coroutines."""
        for engine in self.engines:
            engine.close()

    # ---- inside ---------------------------------------------------------------------------------------------------------------

    def _leaving(self, engine: Engine) -> dict[int, list[Message]]:
        """What an engine has for other hosts; nothing when even its log cannot be written any more."""
        try:
            return engine.leaving()
        except RacevisorError as error:
            self.fail(error)
            return {}

    def _hear(self, sender: int, part: Part) -> None:
        if not 0 <= sender < self.hosts or sender == self.me:
            raise FrameError(f"a frame came from {name_of(sender)}, which is none of the other hosts")
        if 0 <= part.vm < len(self.engines):
            self._takers[part.vm](sender, part.round, part.clock, part.messages)
        elif part.vm == NO_VM:
            for one in part.messages:
                self._besides += self._cuts.hear(sender, one)
        else:
            raise FrameError(
                f"a frame of {name_of(sender)} is for machine {part.vm}; {name_of(self.me)} knows {len(self.engines)}"
            )

    def _obey(self, part: Part) -> None:
        vm = part.vm
        for one in part.messages:
            tag = one[0]
            if tag == BEGIN:
                self.failed = False
                engine = self.engines[vm]
                self._cuts.begin(vm, part.round)
                engine.begin(part.round)
                # Whatever was to be collected of earlier rounds has been: the driver's words come in their order.
                engine.kept = {number: report for number, report in engine.kept.items() if number >= part.round}
            elif tag == PROBE:
                self._waves.append((vm, one[1]))
            elif tag == COLLECT:
                self._besides.append((DRIVER, (vm, part.round, 0, [(REPORT, *self.engines[vm].collect(part.round))])))
            elif tag == CUT:
                self._besides += self._cuts.stop(vm, part.round, one[1])
            elif tag == GRANT:
                gate.grant(self.engines[vm], *one[1:])
            elif tag == MEET:
                _, host, incarnation, address = one
                self.link.meet(host, incarnation)
                self.introduce(host, address)
                self._driver.setdefault(NO_VM, []).append((MET, host, incarnation))
            elif tag == PING:
                self._driver.setdefault(NO_VM, []).append((HERE,))
            elif tag == STOP:
                self.stopped = True
            else:
                raise FrameError(f"a frame of the driver holds a message that only a host may send: {one!r:.80}")

    def _count(self) -> None:
        """Answer the waves now that all that was sent is counted."""
        waves, self._waves = self._waves, []
        for vm, wave in waves:
            self._driver.setdefault(vm, []).append(self._counts(self.engines[vm], wave))

    def _counts(self, engine: Engine, wave: int) -> Message:
        sent = tuple(engine.sent.get(host, 0) for host in range(self.hosts))
        received = tuple(engine.received.get(host, 0) for host in range(self.hosts))
        return (COUNTS, wave, engine.busy, sent, received)

    def fail(self, error: Exception) -> None:
        """Something went wrong here: the driver is told in the next turn, the first thing only."""
        if self.failed:
            return
        self.failed = True
        kind, text = type(error).__name__, str(error)
        if not isinstance(error, RacevisorError):
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = f"{where.tb_frame.f_code.co_name}, line {where.tb_lineno}" if where is not None else "?"
            at_fault = [engine.names[engine.moving] for engine in self.engines if engine.moving >= 0]
            who = at_fault[0] if at_fault else name_of(self.me)
            kind, text = "", f"{who} raised {type(error).__name__} in {line}: {error}"
        self._driver.setdefault(NO_VM, []).append((FAILURE, kind, text))
