"""A search shared out over Ray: one actor for each worker, pieces handed out, results taken, whoever dies replaced.

What is in the pieces is the affair of racevisor/share/.  A worker that dies has lost the piece that it had, and nothing else: it
is handed out again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import msgpack
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.nodes import machines
from cluster.session import Session
from racevisor.choose import Wanted
from racevisor.collector import settle
from racevisor.errors import ClusterError
from racevisor.scenario import Case, Source, from_source
from racevisor.share.checkpoint import Checkpoint
from racevisor.share.protocol import Worker
from racevisor.share.search import Sharing, make_worker, work
from racevisor.table import where

#: Seconds of work between two results, while everybody has something to do, and while somebody waits for a piece.
SLICE, SHORT = 0.5, 0.05
#: How often the driver looks up while it waits for results, in seconds: for the clock, the cluster and Ctrl-C.
LOOK_UP = 0.2
#: Seconds beyond its slice after which a worker is asked whether it is there, and for which it is given time to answer.
SILENCE, GIVE_UP = 20.0, 40.0
#: So many deaths in a row without a result, and it is no accident.
DEATHS = 5
#: Cells of which a worker keeps the World; those that it worked on last.
_WORLDS = 4


class Hand:
    """A process that works on pieces."""

    def __init__(self, path: str, text: str, digest: str, cells: list[list[Any]], wanted: dict[str, Any]) -> None:
        self.told = path, text, digest
        self.cells = cells
        self.wanted = Wanted(**wanted)
        self.scenario: Any = None
        self.workers: dict[int, Worker] = {}

    def work(self, cell: int, given: bytes, seconds: float) -> tuple[str, int, float, bytes]:
        """(machine, process id, CPU seconds, result) of what was handed out."""
        began = time.process_time()
        result = work(self._worker(cell), msgpack.unpackb(given), seconds)
        packed = msgpack.packb(result)
        return ray.get_runtime_context().get_node_id(), os.getpid(), time.process_time() - began, packed

    @ray.method(concurrency_group="beat")
    def beat(self) -> None:
        """Still there; a thread of its own says so while another one works."""

    def _worker(self, cell: int) -> Worker:
        worker = self.workers.pop(cell, None)
        if worker is None:
            path, text, digest = self.told
            source = Source(path, text)
            if source.digest != digest:
                raise ClusterError(f"the scenario's text arrived damaged: SHA-256 {source.digest}, expected {digest}")
            if self.scenario is None:
                self.scenario = from_source(source)
            worker = make_worker(Case(self.scenario, source, *self.cells[cell]), self.wanted)
            while len(self.workers) >= _WORLDS:
                self.workers.pop(next(iter(self.workers))).close()
            settle()
        self.workers[cell] = worker
        return worker


_remote: Any = ray.remote  # its types know fewer options than it has
RayHand: Any = _remote(num_cpus=0, max_restarts=0, max_task_retries=0, enable_task_events=False, concurrency_groups={"beat": 1})(
    Hand
)


class Crew:
    """A context: Ray, and the workers of one search.  `run` searches; what was found is in `sharing`, whatever ends it.

    `slices` are seconds of work between two results: while nobody waits, and while somebody does.  A worker that is silent for
    the first of `patience` beyond them, and for the second after it was asked, is given up like one that died.
    """

    def __init__(
        self,
        sharing: Sharing,
        *,
        address: str | None = None,
        checkpoint: Checkpoint | None = None,
        slices: tuple[float, float] = (SLICE, SHORT),
        patience: tuple[float, float] = (SILENCE, GIVE_UP),
        on_look: Callable[[Crew], None] | None = None,
        start_timeout: float = 20.0,
    ) -> None:
        self.sharing = sharing
        self.checkpoint = checkpoint
        self.slices = slices
        self.silence, self.give_up = patience
        self.on_look = on_look
        self.session = Session(address, start_timeout=start_timeout)
        self.hands: list[Any] = []
        self.out: dict[Any, tuple[int, int, int]] = {}  # by what Ray owes us: (worker, cell, number)
        self.idle: list[int] = []
        #: the process of each worker on the driver's machine, once it has given a result
        self.pids: dict[int, int] = {}
        self.due: dict[Any, float] = {}  # by what Ray owes us: when it should be there
        self.begun: set[int] = set()  # who has given a result: to start one may take long
        self.asked: dict[int, tuple[Any, float]] = {}  # by worker: what it is to answer, and since when
        self.cpus = 0
        self.deaths = self.deaths_in_a_row = self.pieces = 0
        self.cpu_seconds = 0.0  # of all results

    def __enter__(self) -> Self:
        try:
            self.session.open()
            self.cpus = sum(machine.cpus for machine in self.session.pulse.call(machines))
            self.hands = [self.session.pulse.call(self._hire) for _ in range(self.sharing.workers)]
            self.idle = list(range(len(self.hands)))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> int:
        """How many workers there are."""
        return len(self.hands)

    def _hire(self) -> Any:
        case = self.sharing.cells[0].case
        cells = [[c.case.variant_name, c.case.setup, c.case.memory, c.case.vcpus] for c in self.sharing.cells]
        source = case.source
        hand = RayHand.options(scheduling_strategy="SPREAD")
        return hand.remote(source.path, source.text, source.digest, cells, asdict(self.sharing.wanted))

    def close(self) -> None:
        """End the workers, and Ray if it was started or joined here."""
        hands, self.hands = self.hands, []
        if (self.session.reused or self.session.joined) and ray.is_initialized() and not self.session.pulse.lost:
            for hand in hands:
                ray.kill(hand)
        self.session.close()

    # ---- the search ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until every cell has its verdict.  On any error a last checkpoint is written first, as on Ctrl-C."""
        try:
            self._run()
        except (RayError, ConnectionError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterError(f"the cluster failed: {said[0][:200]}\n  what was found is kept; see:  ray status") from error
        finally:
            if self.checkpoint is not None:
                self.checkpoint.save()

    def _run(self) -> None:
        while not self.sharing.done:
            self._employ()
            if not self.out:
                continue  # the last cell was settled without anybody's help
            ready, _ = ray.wait(list(self.out), num_returns=1, timeout=LOOK_UP)
            for ref in ready:
                self._home(ref)
            self.session.pulse.check()
            self._listen()
            if self.checkpoint is not None:
                self.checkpoint.save(now=False)
            if self.on_look is not None:
                self.on_look(self)

    def _employ(self) -> None:
        """Hand out what there is to those who have nothing."""
        while self.idle:
            given = self.sharing.give(self.idle[-1])
            if given is None:
                break
            self._hand_out(*given)
        if not self.out and not self.sharing.done:
            raise RuntimeError("a search waits for results, and nobody works")  # an error of ours

    def _hand_out(self, cell: int, number: int, piece: Any) -> None:
        worker = self.idle.pop()
        long, short = self.slices
        seconds = short if self.idle else long
        left = self.sharing.left(cell)
        ref = self.hands[worker].work.remote(cell, msgpack.packb(piece), seconds if left is None else min(seconds, left))
        self.out[ref] = worker, cell, number
        self.due[ref] = time.perf_counter() + seconds

    def _home(self, ref: Any) -> None:
        worker, cell, number = self.out.pop(ref)
        del self.due[ref]
        try:
            machine, pid, cpu, packed = ray.get(ref)
        except RayActorError as death:
            self.sharing.lost(cell, number, worker)
            self._replace(worker, str(death))
            return
        except RayTaskError as error:
            cause = error.cause
            cause.add_note(where(self.sharing.cells[cell].case))
            raise cause from error
        self.deaths_in_a_row = 0
        self.begun.add(worker)
        self.pieces += 1
        self.cpu_seconds += cpu
        if machine == ray.get_runtime_context().get_node_id():
            self.pids[worker] = pid
        self.idle.append(worker)
        self.sharing.take(cell, number, msgpack.unpackb(packed), worker)

    def _listen(self) -> None:
        """Who is late is asked whether it is there: it may be at a long step, or hang, and then it does not answer."""
        now = time.perf_counter()
        for ref, (worker, cell, number) in list(self.out.items()):
            if now - self.due[ref] < self.silence or worker not in self.begun:
                continue
            beat, since = self.asked.get(worker, (None, 0.0))
            if beat is None:
                self.asked[worker] = self.hands[worker].beat.remote(), now
            elif ray.wait([beat], timeout=0)[0]:
                del self.asked[worker]
                self.due[ref] = now
            elif now - since > self.give_up:
                del self.out[ref], self.due[ref]
                self.sharing.lost(cell, number, worker)
                self._kill_here(worker)
                self._replace(worker, f"no answer for {now - since:.0f} s")

    def _kill_here(self, worker: int) -> None:
        """A process that is stopped does not hear Ray; it is there, so its number is its own."""
        pid = self.pids.get(worker)
        if pid is not None:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _replace(self, worker: int, death: str) -> None:
        self.deaths += 1
        self.deaths_in_a_row += 1
        self.asked.pop(worker, None)
        self.begun.discard(worker)
        self.pids.pop(worker, None)
        if self.deaths_in_a_row > DEATHS:
            said = (death.strip().splitlines() or ["no reason given"])[0][:200]
            raise ClusterError(
                f"workers died {self.deaths_in_a_row} times in a row without a result in between: {said}\n"
                f"  what was found is kept; see:  ray status"
            )
        with contextlib.suppress(RayError):
            ray.kill(self.hands[worker])
        self.hands[worker] = self.session.pulse.call(self._hire)
        self.idle.append(worker)
