"""Optimal DPOR in slices: the part of its search tree below a path, walked for a while, and what is left of it.

A piece is a *path* of heads from the initial state, in two parts.  The states of its first part are *shared*: other pieces lie
below them too, and the pool keeps their wakeup trees.  Those of its second part belong to the piece alone: it is the stack of
the depth-first search, as it stood when the last slice ended.  With every state goes what sleeps there.

A reversal that belongs to a state of the second part is planned as ever.  One that belongs to a shared state is held against
what sleeps there, which is known for good, and against a copy of what the pool has planned there to come after this path.  If
neither covers it, it is sent home, where the pool inserts it.  Nothing is put into the copy meanwhile: the pool may find that
what was sent is covered by something newer, which need not cover what relied on it.

Why every trace is met (Abdulla et al., JACM 64(4), 2017, theorem 5): the proof asks one thing of a state once all below it is
done: every reversal that came to it from below one of its children has a weak initial among the heads that slept there or were
taken, and was inserted below that one if the way there did not end with it.  When the children are explored does not matter.
Why each trace is met once: each child sleeps on all that come before it in the order of the state's wakeup tree, done or not;
that is one sequential order.  Why nothing is given up: pieces begin at leaves of wakeup trees, where nothing sleeps any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from racevisor.classes import Certificate, TraceKeys
from racevisor.dependence import NOTHING, Access
from racevisor.errors import NotDeterministic
from racevisor.share.wire import Heads
from racevisor.strategies.dpor import Reversal, Sleep, inherited
from racevisor.strategies.optimal import Branch, OptimalDpor, WakeupNode, gap
from racevisor.tally import Tally
from racevisor.twins import Recorder
from racevisor.world import Channel, World

if TYPE_CHECKING:
    from racevisor.choose import Wanted
    from racevisor.scenario import Case

#: A slice ends when so many reversals of shared states are not covered by what the piece knows: then it should know more.
_NEWS = 300


class _State(NamedTuple):
    """A shared state: what slept there if that was told, the kids that are gone, and the others with what is planned below."""

    asleep: Sleep | None
    gone: Sleep
    kids: list[Branch[Channel]]


class SubtreeDpor(OptimalDpor):
    """Searches below a path.  `world` is brought to its end by taking its steps again."""

    def __init__(self, world: World, codec: Heads, states: list[_State], piece: dict[str, Any]) -> None:
        super().__init__()
        self.codec = codec
        self.world = world
        self.enter(world)
        self.keys = TraceKeys(self.order)
        self.met = Certificate()
        shared = [(states[number], kid) for number, kid in piece["path"]]
        own = piece["own"]
        #: how many states of the path are shared; of each, the part of its wakeup tree that comes after this path
        self.root = len(shared)
        self.later = [state.kids[kid + 1 :] for state, kid in shared]
        self.sent: dict[bytes, list[Any]] = {}
        self.unknown = 0
        self.ahead = NOTHING  # what the head of the last node will touch
        heads = [(state.kids[kid].channel, state.kids[kid].access) for state, kid in shared]
        self._walk([*heads, *((codec.head(one[0][0]), codec.access(*one[0])) for one in own)])
        for depth, (state, kid) in enumerate(shared):
            node = self.nodes[depth]
            if state.asleep is not None:
                node.sleep = state.asleep
            elif depth:
                above = self.nodes[depth - 1]
                node.sleep = inherited(above.sleep, above.channel, self.order.accesses[depth - 1])
            node.sleep = {**node.sleep, **state.gone, **{branch.channel: branch.access for branch in state.kids[:kid]}}
        for node, (_, asleep, tree, done) in zip(self.nodes[self.root :], own, strict=True):
            node.sleep, node.tree, node.done = codec.unpack_all(asleep), codec.unpack_tree(tree), done
        if self.nodes:
            self.nodes[-1].below = codec.unpack_tree(piece["below"])

    def _walk(self, heads: list[tuple[Channel, Access]]) -> None:
        """Take the steps of the path but the last, which the first execution takes."""
        world = self.world
        assert world is not None
        world.journal = []
        world.reset()
        sound = None
        for n, (channel, access) in enumerate(heads):
            self.nodes.append(WakeupNode(channel, {}, [], []))
            if n == len(heads) - 1:
                self.ahead = access
                break
            if channel.at < 0:
                raise NotDeterministic(
                    f"a piece of the search wants {channel.name} at step {n}, where it could move in another process\n"
                    "  now it cannot: an actor depends on something that is no cell and no private state\n"
                    "  find the first difference:  Audit(RandomWalk(0, 100), case.world) in racevisor.strategies.audit"
                )
            world.step(channel)
            if world.violations and sound is None:
                sound = n
        if self.nodes:
            last = self.nodes.pop()
            self.extend()
            self.nodes.append(last)
            self.kept = len(self.nodes) - 1
        self.sound = len(world.steps) if sound is None else sound

    # ---- what is added to the search --------------------------------------------------------------------------------------

    def learn(self, world: World) -> None:
        """The execution is over, past any violation: note which trace it was."""
        super().learn(world)
        keys = self.keys
        for step in world.steps[len(keys) :]:
            keys.extend(step)
        if not world.movable:
            self.met = self.met.add(keys.key())

    def forget(self, depth: int) -> None:
        super().forget(depth)
        self.keys.cut(depth)

    def leave(self, node: WakeupNode, depth: int) -> Channel | None:
        if node.tree:
            self.ahead = node.tree[0].access
        return super().leave(node, depth)

    def reverse(self, reversal: Reversal) -> None:
        if reversal.earlier >= self.root:
            return super().reverse(reversal)
        way, past, first = self.wanted(reversal)
        depth = reversal.earlier
        if gap(self.nodes[depth].sleep.items(), self.later[depth], way, first) is not None:
            self.unknown += 1
            self._send(reversal, way, past)

    def _send(self, reversal: Reversal, way: int, past: int) -> None:
        """Tell the pool: [depth, steps], each step with those among them that it has to follow, as a little-endian bitmask."""
        order, pack = self.order, self.codec.pack
        numbers = [n for n in range(way.bit_length()) if way >> n & 1]
        steps = [(order.channels[n], order.accesses[n], order.past[n]) for n in numbers]
        told = []
        for channel, access, before in (*steps, (reversal.channel, reversal.access, past)):
            mask = sum(1 << i for i, n in enumerate(numbers) if before >> n & 1)
            told.append([*pack(channel, access), mask.to_bytes(len(numbers) // 8 + 1, "little")])
        plain = [reversal.earlier, told]
        self.sent.setdefault(msgpack.packb(plain), plain)

    # ---- the end of a slice -----------------------------------------------------------------------------------------------

    def rest(self) -> dict[str, Any]:
        """What is left of the piece, between two executions: its own part of the path, and what is planned at its end."""
        own = []
        accesses = [*self.order.accesses, self.ahead]
        for node, access in zip(self.nodes[self.root :], accesses[self.root :], strict=True):
            pack = self.codec.pack
            asleep = self.codec.pack_all(node.sleep.items())
            own.append([pack(node.channel, access), asleep, self.codec.pack_tree(node.tree), node.done])
        return {"own": own, "below": self.codec.pack_tree(self.nodes[-1].below)}


class SubtreeWorker:
    """Keeps its World, and what it has learned of the threads' local states, from piece to piece."""

    def __init__(self, case: Case, wanted: Wanted, clock: Callable[[], float] = time.perf_counter) -> None:
        self.world = case.world(max_steps=wanted.max_steps, automata=True, calls=Recorder)
        recorder = self.world.vm.calls
        assert isinstance(recorder, Recorder)
        self.recorder = recorder
        self.codec = Heads(self.world)
        self.to_the_end = wanted.to_the_end
        self.clock = clock

    def hear(self, news: Any) -> None:
        """There is none."""

    def work(self, piece: Any, seconds: float) -> dict[str, Any]:
        """Execute for so long, or so often as the piece says: below one path after the other."""
        world, clock = self.world, self.clock
        began = clock()
        end = began + seconds
        self.codec.channels.update(piece["channels"])
        tally, met = Tally(), Certificate()
        blocked, bounded = 0, False
        ends: list[Any] = []
        over = False
        states = [self._state(*state) for state in piece["states"]]
        for path in piece["paths"]:
            search = SubtreeDpor(world, self.codec, states, path)
            more = True
            while more and not over:
                execution = world.run(search, tally.runs)
                tally.add(execution)
                more = search.end(execution)
                over = clock() >= end or tally.runs == piece["runs"] or search.unknown >= _NEWS
                over = over or (tally.settled and not self.to_the_end)  # as a search that is not shared out
            met = met.merge(search.met)
            blocked += search.blocked
            bounded = bounded or search.bounded
            ends.append([list(search.sent.values()), search.rest() if more else None])
            if over:
                break
        return {
            "tally": tally.plain(),
            "blocked": blocked,
            "bounded": bounded,
            "certificate": met.plain(),
            "ends": ends,
            "early": not over and clock() - began < seconds / 2,
            "channels": self.codec.learned(piece["channels"]),
            "calls": sorted(self.recorder.names),
        }

    def _state(self, asleep: list[Any] | None, gone: list[Any], kids: list[Any]) -> _State:
        codec = self.codec
        return _State(None if asleep is None else codec.unpack_all(asleep), codec.unpack_all(gone), codec.unpack_tree(kids))

    def close(self) -> None:
        """Drop the World."""
        self.world.close()
