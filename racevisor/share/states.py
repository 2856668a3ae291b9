"""A worker's side of the stateful search: slices of it, each from a stack to the stack that is left.

Why what several workers do in this way is a search of everything, see racevisor/share/states_pool.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from racevisor.errors import NotDeterministic
from racevisor.share.digest import BYTES, Digests
from racevisor.share.states_pool import Stack
from racevisor.share.states_pool import StatesPool as StatesPool
from racevisor.step import IPI, THREAD
from racevisor.strategies.leaps import Leaps
from racevisor.strategies.states import SHARED, Frame, StatefulSearch, accessor_of, domains
from racevisor.tally import Tally
from racevisor.twins import Recorder
from racevisor.world import Channel, Execution, World

if TYPE_CHECKING:
    from racevisor.choose import Wanted
    from racevisor.scenario import Case

_LATE = 1 << 32  # the number of the first execution that does not only learn


class _Rounds(set[int]):
    """Local states at which a thread came round, by number; others know them by digest, and of some before they are met here."""

    def __init__(self, digests: Digests, known: set[bytes]) -> None:
        super().__init__()
        self.digests = digests
        self.known = known

    def __contains__(self, history: object) -> bool:
        return bool(self.known) and self.digests.local(history) in self.known  # type: ignore[arg-type]

    def add(self, history: int) -> None:
        self.known.add(self.digests.local(history))


class SharedStates(StatefulSearch):
    """The stateful search with a table that others have a share in, of digests instead of fingerprints.

    `visited` is what was expanded in this slice, `committed` what the pool has told; names of channels stand for what slept.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.digests = Digests(world)
        self.committed: dict[bytes, frozenset[str]] = {}
        self.known_rounds: set[bytes] = set()
        self.learns = self.broken = False
        self.turn: Callable[[], float] | None = None  # 0 to 1: with which head to begin; None: as if nothing were shared
        super().__init__()
        self.domains.extend(domains(world))
        self.forget()

    def forget(self) -> None:
        """Everything but what was learned of the threads as automata."""
        self.committed.clear()
        self.known_rounds.clear()
        self.owners.clear()
        self.settled.clear()
        self.noted.clear()
        self.rounds = _Rounds(self.digests, self.known_rounds)
        self._restart()

    # ---- what is different ------------------------------------------------------------------------------------------------

    def begin(self, world: World, run: int) -> None:
        super().begin(world, run if self.learns else run + _LATE)

    def _restart(self) -> None:
        super()._restart()
        self.broken = True

    def _expand(self, movable: list[Channel]) -> Channel | None:
        if self.turn is not None and len(movable) > 1:
            # Neighbours that begin with the same head would meet the same states at the same time.
            first = int(self.turn() * len(movable))
            movable = movable[first:] + movable[:first]
        return super()._expand(movable)

    def _known(self) -> tuple[Any, frozenset[Any] | None]:
        key = self.digests.state()
        slept = self.visited.get(key)
        return key, self.committed.get(key) if slept is None else slept

    def _name(self, channel: Channel) -> Any:
        return channel.name

    # ---- to and from plain data -------------------------------------------------------------------------------------------

    def hear(self, owners: list[list[Any]], rounds: list[bytes]) -> None:
        """What the pool knows of the machine: who touches what, and where threads go round."""
        if not self.known_rounds.issuperset(rounds):
            self.known_rounds.update(rounds)
            self.leaps = Leaps(self.domains, self.owners, self.rounds)
        for share, name in owners:
            owner = self._accessor(name)
            if self.owners.setdefault(share, owner) not in (owner, SHARED):
                self.owners[share] = SHARED
                self.leaps = Leaps(self.domains, self.owners, self.rounds)
        self.settled.clear()

    def _accessor(self, name: str) -> int:
        if not name:
            return SHARED
        channel = self.world.channels.get(name)
        if channel is None:  # an IPI, which nobody has sent here yet
            sender, _, pcpu = name.partition("=>")
            channel = self.world._channel(name, IPI, self.world.channels[sender].thread, pcpu)
        return accessor_of(channel)

    def told_owners(self) -> list[list[Any]]:
        """The same for the pool."""
        names = {accessor_of(channel): channel.name for channel in self.world.channels.values() if channel.kind in (THREAD, IPI)}
        return [[share, "" if owner == SHARED else names[owner]] for share, owner in self.owners.items()]

    def set_out(self, stack: Stack) -> None:
        """Go to the states of a stack; raises NotDeterministic where the machine does not follow."""
        world = self.world
        names, path, frames = stack
        world.reset()
        self.frames = []
        at = 0
        for depth, asleep, todo in frames:
            for n in path[at:depth]:
                world.step(self._head(names[n]))
            at = depth
            heads = [self._head(names[n]) for n in asleep]
            sleep = {head: self._access(head) for head in heads if not self._private(head)}  # those never do, see _leave
            self.frames.append(Frame(world.snapshot(), [self._head(names[n]) for n in todo], sleep))

    def _head(self, name: str) -> Channel:
        channel = self.world.channels.get(name)
        if channel is None or channel.at < 0:
            raise NotDeterministic(
                f"a piece of the search wants {name} after {len(self.world.steps)} steps, but only "
                f"{', '.join(c.name for c in self.world.movable) or 'nothing'} can move\n"
                f"  do all workers run the same version?  racevisor selfcheck says whether a scenario is deterministic"
            )
        return channel

    def stack(self) -> Stack | None:
        """What is left, between two executions."""
        if not self.frames:
            return None
        numbers: dict[str, int] = {}

        def number(name: str) -> int:
            return numbers.setdefault(name, len(numbers))

        path = [number(step.channel) for step in self.world.steps[: self.frames[-1].snapshot.depth]]
        frames = [
            [frame.snapshot.depth, [number(c.name) for c in frame.sleep], [number(c.name) for c in frame.todo]]
            for frame in self.frames
            if frame.todo
        ]
        return [list(numbers), path, frames]

    def expanded(self) -> list[list[Any]]:
        """The states of this slice, by what slept in them."""
        by: dict[frozenset[str], list[bytes]] = {}
        for key, slept in self.visited.items():
            by.setdefault(slept, []).append(key)
        return [[sorted(slept), b"".join(keys)] for slept, keys in by.items()]


class StatesWorker:
    """Keeps its World, what it has learned of the threads as automata, and what the pool has told, from piece to piece."""

    def __init__(self, case: Case, wanted: Wanted, clock: Callable[[], float] = time.perf_counter) -> None:
        self.world = case.world(max_steps=wanted.max_steps, automata=True, calls=Recorder)
        recorder = self.world.vm.calls
        assert isinstance(recorder, Recorder)
        self.recorder = recorder
        self.search = SharedStates(self.world)
        self.epoch = -1
        self.heard = 0  # the version of the pool's news that it knows all of; part of each result, for whoever sends the next
        self.clock = clock

    def hear(self, news: Any) -> None:
        """States that are done with; in a new epoch no others are."""
        self._enter(news["epoch"])
        if news["since"] <= self.heard:  # else something is missing, and all has to be told again
            self.heard = news["version"]
        committed = self.search.committed
        for names, blob in news["states"]:
            slept = frozenset(names)
            for at in range(0, len(blob), BYTES):
                committed[blob[at : at + BYTES]] = slept

    def _enter(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self.search.forget()

    def work(self, piece: Any, seconds: float) -> dict[str, Any]:
        """Search on for so long, or for so many executions as the piece says."""
        slice_, search = _Slice(), self.search
        self._enter(piece["epoch"])
        search.hear(piece["owners"], piece["rounds"])
        search.visited, search.broken = {}, False
        stack = self._search(slice_, piece, self.clock() + seconds)
        return {
            "epoch": piece["epoch"],
            "heard": self.heard,
            "broken": search.broken,
            "tally": slice_.tally.plain(),
            "blocked": slice_.blocked,
            "ends": [[outcome, b"".join(keys)] for outcome, keys in slice_.ends.items()],
            "bounded": slice_.bounded,
            "failed": sorted(slice_.failed),
            "learned": sorted(slice_.learned),
            "owners": search.told_owners(),
            "rounds": sorted(search.known_rounds),
            "states": search.expanded(),
            "rest": stack,
            "calls": sorted(self.recorder.names),
        }

    def _search(self, slice_: _Slice, piece: Any, end: float) -> Stack | None:
        """Executions until the end of the slice; what is left."""
        world, search, clock, runs, tally = self.world, self.search, self.clock, piece["runs"], slice_.tally
        search.set_out(piece["stack"])
        is_root = not search.frames
        search.learns = is_root and piece["learn"]
        search.turn = None if is_root else Random(piece["order"]).random
        before = search.blocked
        while True:
            execution = world.run(search, tally.runs)
            learning = search.learning is not None
            slice_.add(execution, search.digests, learning)
            more = search.end(execution)
            if search.broken and is_root:
                # nobody else is at work, and nobody has to hear of what was done before
                search.broken = False
                slice_.failed.clear()
                slice_.bounded = False
            if not more or search.broken or tally.runs == runs or (not learning and clock() >= end):
                break
        slice_.blocked = search.blocked - before
        return piece["stack"] if more and not search.frames else search.stack()

    def close(self) -> None:
        """Drop the World."""
        self.world.close()


class _Slice:
    """What was met in it, besides states."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.blocked = 0
        self.ends: dict[str, set[bytes]] = {}
        self.bounded = False  # was an execution cut that does not only learn?
        self.failed: set[str] = set()
        self.learned: set[str] = set()

    def add(self, execution: Execution, digests: Digests, learning: bool) -> None:
        """The World still stands where the execution ended."""
        self.tally.add(execution)
        self.bounded = self.bounded or (execution.status == "bounded" and not learning)
        if execution.status == "terminal":
            self.ends.setdefault(str(execution.outcome), set()).add(digests.state())
        elif execution.status == "violated":
            (self.learned if learning else self.failed).update(violation.check for violation in execution.violations)
