"""The driver's side of optimal DPOR in slices: which parts of the tree are whose, and what is planned where they meet.

As long as nobody is idle there is one stack for each worker, which goes to and fro whole, and nothing is shared.  If more pieces
are wanted, a stack that comes home is cut at its topmost state with something left: that state and those above it become
*shared*, and each leaf of the wakeup tree there is a piece of its own.  So what is shared is little, and so is what is kept here:
the shared states that something is still open below, and one stack for each piece.

A wakeup tree is kept whole here until nothing can be inserted into it any more: the branches that were taken, too.  A reversal
that comes home from below one child of a state may lead on below a later child, between two steps of the way to its leaf, where
something may still sleep; only at the leaf of a valid wakeup tree nothing sleeps, and the search below it needs to be told
nothing.  (Inserting nothing below what was taken loses traces: tests/test_share_subtrees.py has the smallest program.)
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from racevisor.classes import Certificate
from racevisor.dependence import NOTHING, Access, independent
from racevisor.estimate import Estimate, from_share
from racevisor.share.wire import Names
from racevisor.strategies.optimal import Branch, gap
from racevisor.tally import Tally

if TYPE_CHECKING:
    from racevisor.choose import Wanted
    from racevisor.scenario import Case


#: Leaves that are handed out at a time, at most.
_BUNDLE = 64


class State(Branch[str]):
    """A state that pieces lie below, or begin at, or will: reached by its head from the state above it.

    `kids` are what was and will be taken here, in their order: each sleeps on those before it, whenever it is explored.  On the
    way to a leaf of a wakeup tree they are the `tree` that is seen from above.  Below a leaf they are not: nothing is inserted
    there from above.  Those of the first kids that nothing is left of are only `gone`.
    """

    __slots__ = ("asleep", "depth", "done", "gone", "kids", "open", "parent", "piece")

    def __init__(self, parent: State | None, head: str, access: Access) -> None:
        super().__init__(head, access)
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.kids: list[State] = []
        self.asleep: list[Any] | None = None  # as its piece had it, packed; None: to be worked out from the state above
        self.gone: list[Any] = []  # kids that are no longer here, packed
        self.done = 0  # how many kids were done when it became shared
        self.open = 0  # leaves at or below it that were not taken, and pieces
        self.piece: Piece | None = None

    def count(self, leaves: int) -> None:
        """So many more are open below it, or fewer."""
        state: State | None = self
        while state is not None:
            state.open += leaves
            state = state.parent

    def path(self) -> list[State]:
        """From the root to it."""
        path: list[State] = []
        state: State | None = self
        while state is not None:
            path.append(state)
            state = state.parent
        return path[::-1]

    @property
    def fixed(self) -> bool:
        """Can nothing be inserted at it from above any more?"""
        state = self
        while state.parent is not None and state.kids is state.tree:
            if state.parent.kids[0] is not state:
                return False
            state = state.parent
        return True


class Piece:
    """What is left below a state: a stack, and what is planned at its end."""

    __slots__ = ("at", "below", "own")

    def __init__(self, at: State, own: list[Any], below: list[Any]) -> None:
        self.at = at
        self.own = own
        self.below = below

    def cut(self) -> int | None:
        """The topmost state of the stack with something left; None if there is none."""
        return next((n for n, (_, _, tree, _) in enumerate(self.own) if tree), None)


class Given(NamedTuple):
    """What is handed out under a number: one stack, or some leaves; and the executions that are set apart for it."""

    pieces: list[Piece]
    runs: int


class SubtreePool:
    """Of optimal DPOR; `quantum` bounds the executions of a slice, for those who cannot use a clock."""

    states = 0

    def __init__(self, case: Case, wanted: Wanted) -> None:
        self.wanted = wanted
        self.world = case.world(automata=True)  # for its cells and monitors; it does not run
        self.names = Names(self.world)
        self.tally = Tally()
        self.met = Certificate()
        self.blocked = 0
        self.bounded = False  # was an execution cut, be it past a violation?
        self.calls: set[str] = set()
        self.quantum: int | None = None
        self.root = State(None, "", NOTHING)
        self.root.open = 1
        self.leaves: list[tuple[int, int, State]] = []  # not taken; a heap, the topmost first
        self._seen = 0
        self.waiting = [self._piece(self.root, [], [])]  # the one that came home last is handed out first
        self.given: dict[int, Given] = {}
        self.lost_ones: dict[int, Given] = {}  # to be handed out again, under the same number
        self.numbers = 0
        self.bundle = 1  # leaves that are handed out at a time: more where they keep nobody busy
        self.asked = 1  # so many pieces were asked for at a time

    @property
    def done(self) -> bool:
        """Is the tree searched, or as many executions run as were asked for?"""
        return not self.root.open or (not self.given and self._left() == 0)

    @property
    def exhausted(self) -> bool:
        """Is the tree searched, and was no execution cut?"""
        return not self.root.open and not self.bounded

    # ---- out and in -------------------------------------------------------------------------------------------------------

    def give(self) -> tuple[int, Any] | None:
        """The stack that came home last; if there is none, the topmost leaves."""
        left = self._left()
        if left == 0:
            return None
        if self.lost_ones:
            number, (pieces, _) = self.lost_ones.popitem()
        else:
            pieces = [self.waiting.pop()] if self.waiting else self._leaves()
            if not pieces:
                self.asked = max(self.asked, len(self.given) + 1)
                return None
            self.numbers += 1
            number = self.numbers
        self.asked = max(self.asked, len(self.given) + 1)
        given = self.given[number] = Given(pieces, 0 if left is None else -(-left // self.asked))
        runs = [bound for bound in (given.runs, self.quantum) if bound]
        return number, {**self._plain(pieces), "channels": self.names.channels, "runs": min(runs) if runs else 0}

    def _left(self) -> int | None:
        """Executions of the budget that nobody has been given."""
        runs = self.wanted.runs
        return None if runs is None else max(0, runs - self.tally.runs - sum(given.runs for given in self.given.values()))

    def _leaves(self) -> list[Piece]:
        """Some leaves, but not more than everybody's share."""
        some = min(len(self.leaves), max(1, min(self.bundle, len(self.leaves) // self.asked)))
        return [self._piece(heappop(self.leaves)[2], [], []) for _ in range(some)]

    def _piece(self, at: State, own: list[Any], below: list[Any]) -> Piece:
        piece = at.piece = Piece(at, own, below)
        return piece

    def _plain(self, pieces: list[Piece]) -> dict[str, Any]:
        """Each state once, with its kids in their order, and the paths as (state, which kid)."""
        names = self.names
        states: list[Any] = []
        numbers: dict[State, int] = {}
        paths = []
        for piece in pieces:
            path = []
            for state, kid in pairwise(piece.at.path()):
                if state not in numbers:
                    numbers[state] = len(states)
                    states.append([state.asleep, state.gone, names.pack_tree(state.kids)])
                path.append([numbers[state], state.kids.index(kid)])
            paths.append({"path": path, "own": piece.own, "below": piece.below})
        return {"states": states, "paths": paths}

    def take(self, number: int, result: Any) -> None:
        """First the reversals of shared states, then what is left of the pieces."""
        given = self.given.pop(number, None) or self.lost_ones.pop(number, None)
        if given is None:
            return
        self.tally.merge(Tally.of(result["tally"]))
        self.met = self.met.merge(Certificate.of_plain(result["certificate"]))
        self.blocked += result["blocked"]
        self.bounded = self.bounded or result["bounded"]
        self.calls.update(result["calls"])
        self.names.channels.update(result["channels"])
        ends = result["ends"]
        for piece, (sent, _) in zip(given.pieces, ends, strict=False):
            path = piece.at.path() if sent else []
            for depth, steps in sent:
                self._insert(path[depth], path[depth + 1], steps)
        for piece in given.pieces[len(ends) :]:  # nobody has come to these
            piece.at.piece = None
            self._plant(piece.at)
        for piece, (_, rest) in zip(given.pieces, ends, strict=False):
            if rest is None:
                self._finish(piece.at)
            else:
                piece.own, piece.below = rest["own"], rest["below"]
                self.waiting.append(piece)
        if result["early"]:
            self.bundle = min(_BUNDLE, 2 * self.bundle)
        elif len(ends) < len(given.pieces):
            self.bundle = max(1, self.bundle // 2)
        self._split()

    def lost(self, number: int) -> None:
        """It is handed out again as it was."""
        given = self.given.pop(number, None)
        if given is not None:
            self.lost_ones[number] = given

    def news(self, since: int) -> tuple[int, Any]:
        """None: each piece says all that has to be known."""
        return 0, None

    # ---- the shared states ------------------------------------------------------------------------------------------------

    def _split(self) -> None:
        """Are there pieces for all who ask, and one to spare?  If not, cut the largest stack that is at home."""
        while self.asked > 1 and len(self.waiting) + len(self.leaves) + len(self.given) + len(self.lost_ones) <= self.asked:
            cuts = [(piece.at.depth + cut, cut, n) for n, piece in enumerate(self.waiting) if (cut := piece.cut()) is not None]
            if not cuts:
                return
            _, cut, n = min(cuts)
            self._cut(self.waiting[n], cut)

    def _cut(self, piece: Piece, to: int) -> None:
        """Make the states of its stack down to that number shared."""
        names = self.names
        for (name, cell, flags), asleep, tree, done in piece.own[: to + 1]:
            at = piece.at
            at.piece = None
            at.asleep, at.done = asleep, done
            at.kids = [State(at, name, names.access(name, cell, flags))]
            own = at.kids[0]
            own.open = 1
            own.piece, piece.at = piece, own
            for branch in names.unpack_tree(tree):
                self._grow(at, at.kids, branch)
        piece.own = piece.own[to + 1 :]

    def _grow(self, at: State, kids: list[State], branch: Branch[str]) -> None:
        """Put a branch behind the kids of a state, with all that is planned below it."""
        stack = [(at, kids, branch)]
        while stack:
            at, kids, branch = stack.pop()
            state = State(at, branch.channel, branch.access)
            kids.append(state)
            if branch.tree:
                state.tree = state.kids  # type: ignore[assignment]  # a list of states is one of branches to whoever reads it
                stack += [(state, state.kids, below) for below in reversed(branch.tree)]
            else:
                state.count(1)
                self._plant(state)

    def _plant(self, leaf: State) -> None:
        self._seen += 1
        heappush(self.leaves, (leaf.depth, self._seen, leaf))

    def _insert(self, at: State, own: State, steps: list[Any]) -> None:
        """Plan a reversal, [name, cell, flags, what it follows] of each step, that comes from below a kid: at a later one.

        What sleeps on its way there, and the kids before its own, did not cover it: whoever sent it knows them all.
        """
        names = self.names
        told = [(name, names.process(name), names.access(name, cell, flags)) for name, cell, flags, _ in steps]
        before = [int.from_bytes(mask, "little") for _, _, _, mask in steps]
        later = len(steps) - 1

        def first(head: str, touched: Access, way: int, last: bool) -> int | None:
            who = names.process(head)
            rest = way
            apart = True
            while rest:
                low = rest & -rest
                rest ^= low
                n = low.bit_length() - 1
                name, process, access = told[n]
                if process == who:
                    return None if name != head or before[n] & way else low
                apart = apart and independent(access, touched)
            if last:
                name, process, access = told[later]
                if process == who:
                    return -1 if name == head and not before[later] & way else None
                apart = apart and independent(access, touched)
            return 0 if apart else None

        after: list[Any] = at.kids[at.kids.index(own) + 1 :]
        found = gap((), after, (1 << later) - 1, first)
        if found is None:
            return
        kids: list[Any] = found[0]  # of states
        _, way, last = found
        branch: Branch[str] | None = None
        for n in reversed([*(n for n in range(later) if way >> n & 1), *([later] if last else [])]):
            name, _, access = told[n]
            above = Branch(name, access)
            above.tree = [branch] if branch is not None else []
            branch = above
        assert branch is not None
        if kids is after:
            self._grow(at, at.kids, branch)
        else:
            self._grow(kids[0].parent, kids, branch)

    def _finish(self, state: State) -> None:
        """Nothing is left below it: forget it, and what else can be forgotten now."""
        state.piece = None
        state.kids, state.tree = [], []
        state.count(-1)
        at = state.parent
        while at is not None and at.fixed:
            self._sweep(at)
            if at.kids:
                return
            at = at.parent

    def _sweep(self, at: State) -> None:
        """Forget the first kids that nothing is left of, and those of the kid that is the first now: it is fixed, too."""
        while True:
            while at.kids and not at.kids[0].open:
                gone = at.kids.pop(0)
                at.gone.append(self.names.pack(gone.channel, gone.access))
            if not at.kids or at.kids[0].kids is not at.kids[0].tree:
                return
            at = at.kids[0]

    # ---- how it stands ----------------------------------------------------------------------------------------------------

    def certificate(self) -> tuple[Certificate, str] | None:
        """Of all traces, if the tree is searched."""
        return (self.met, "Mazurkiewicz traces") if self.exhausted else None

    def share(self) -> float:
        """How much of the tree is done, if all children of a state are alike."""
        share = 0.0
        stack = [(self.root, 1.0)]
        while stack:
            state, weight = stack.pop()
            if not state.open:
                share += weight
            elif state.kids:
                finished = state.done + len(state.gone)
                weight /= finished + len(state.kids)
                share += weight * finished
                stack += [(kid, weight) for kid in state.kids]
            elif state.piece is not None:
                for _, _, tree, done in state.piece.own:
                    weight /= done + 1 + sum(branch[0] == 0 for branch in tree)
                    share += weight * done
        return share

    def estimate(self, seconds: float) -> Estimate | None:
        """By the share of the tree."""
        return from_share(self.tally.runs, self.share(), seconds)

    def facts(self) -> dict[str, Any]:
        """Each complete execution is a class."""
        return {"blocked": self.blocked, "classes": self.tally.complete}

    def close(self) -> None:
        """Drop the World."""
        self.world.close()

    # ---- a checkpoint -----------------------------------------------------------------------------------------------------

    def _preorder(self) -> Iterator[tuple[int, State]]:
        """(number of the state above it, state)."""
        stack = [(-1, self.root)]
        n = 0
        while stack:
            above, state = stack.pop()
            yield above, state
            stack += [(n, kid) for kid in reversed(state.kids)]
            n += 1

    def save(self) -> dict[str, Any]:
        """The shared states, each after the one above it; what is handed out is handed out again."""
        states = []
        for above, state in self._preorder():
            piece = None if state.piece is None else [state.piece.own, state.piece.below]
            head = self.names.pack(state.channel, state.access)
            inner = state.kids is state.tree
            states.append([above, *head, inner, state.asleep, state.gone, state.done, state.open, piece])
        return {
            "tally": self.tally.plain(),
            "certificate": self.met.plain(),
            "blocked": self.blocked,
            "bounded": self.bounded,
            "calls": sorted(self.calls),
            "channels": self.names.channels,
            "states": states,
        }

    @classmethod
    def load(cls, case: Case, wanted: Wanted, saved: Any) -> Self:
        """The tree again; every piece waits."""
        pool = cls(case, wanted)
        names = pool.names
        pool.tally = Tally.of(saved["tally"])
        pool.met = Certificate.of_plain(saved["certificate"])
        pool.blocked, pool.bounded = saved["blocked"], saved["bounded"]
        pool.calls = set(saved["calls"])
        names.channels = dict(saved["channels"])
        pool.waiting = []
        states: list[State] = []
        for above, name, cell, flags, inner, asleep, gone, done, still, piece in saved["states"]:
            state = State(states[above] if states else None, name, names.access(name, cell, flags))
            if states:
                states[above].kids.append(state)
            if inner:
                state.tree = state.kids  # type: ignore[assignment]
            state.asleep, state.gone, state.done, state.open = asleep, gone, done, still
            states.append(state)
            if piece is not None and any(piece):
                pool.waiting.append(pool._piece(state, *piece))
        pool.root = states[0]
        for state in states:
            if state.open and not state.kids and state.piece is None:
                pool._plant(state)
        return pool
