"""PCT: random priorities and a few random changes of them, so that a run finds a bug of a given depth with a known probability.

Burckhardt, Kothari, Musuvathi, Nagarakatte: A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010.

Of the movable channels the one with the highest priority moves.  Initial priorities are a random permutation; d-1 change points
are drawn from the steps 1..k, independently; before the step that the i-th of them names, who would move gets the i-th of the
priorities below all initial ones.  *Depth*: a bug has depth d if there is a channel t such that, whatever the order of the other
priorities, t being the lowest and some choice of d-1 change points show the bug.  Then one run shows it with probability at least
1/n * 1/k^(d-1).  Depth 1 is one step before another; 2 an atomicity violation, or a deadlock of two locks.

Where this differs from the page:

* what has a priority is a channel, not only a thread: a store buffer and the IPIs from one thread to one CPU are entities of
  their own, so that a bug that needs a store or an IPI to be late is an ordering like any other;
* a priority changes before a step, not after it: the first step of a channel can be put off, and a posted store has no other;
* a channel draws its priority when it can first move.  These are independent uniform numbers, and a run meets at most n: t is
  the lowest of them with probability at least 1/n, whichever they are;
* the answers of a choice are data: one is drawn uniformly, whatever the priorities, and the probability is divided by the number
  of combinations of answers that a run comes to.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from heapq import heappop, heappush, heapreplace
from math import ceil, exp, log, log1p
from random import Random

from racevisor.errors import UsageError
from racevisor.step import CHOICE
from racevisor.world import Channel, Execution, World

#: How many runs measure k if nobody says what it is.  Other than these, runs count.
CALIBRATION = 8


@dataclass(frozen=True)
class Guarantee:
    """What PCT promises of the runs so far about a bug of depth `d` that needs at most n channels, k steps and `choices`.

    It is a theorem about these numbers.  That no run of the program needs more is what was seen, and is not proved.
    """

    n: int  #: most channels in one run
    k: int  #: steps from which the change points of the runs that count were drawn
    d: int  #: depth: how many orderings between steps make the bug happen
    choices: int  #: most combinations of answers in one run: the product of the numbers of answers
    runs: int  #: all runs so far
    counted: int  #: those that the guarantee is about
    cut: int  #: those that met the step bound, which are not counted
    longest: int  #: most steps of a run that came to its end; at most k
    restarts: int  #: how often k was raised, and counting began anew
    hit: float  #: a counted run finds the bug with at least this probability
    miss: float  #: that all counted runs missed it has at most this probability

    @property
    def odds(self) -> int:
        """1/hit, exactly."""
        return odds(self.n, self.k, self.d, self.choices)

    def runs_needed(self, miss: float) -> int:
        """How many counted runs push the probability of missing the bug down to `miss`."""
        return runs_needed(self.n, self.k, self.d, miss / (1 + self.restarts), choices=self.choices)

    def words(self) -> str:
        """One sentence."""
        text = (
            f"of a depth-{self.d} bug among {self.n} channels and {self.k} steps, "
            f"a run finds at least {_one_in(self.odds)}; "
            f"that all {self.counted:,} counted runs missed it has probability at most {_rounded_up(self.miss)}"
        )
        uncounted = self.runs - self.counted - self.cut
        if uncounted:
            text += f" ({uncounted:,} more measured k)"
        if self.cut:
            text += f" ({self.cut:,} met the step bound and do not count)"
        return text


def odds(n: int, k: int, d: int, choices: int = 1) -> int:
    """A run finds a bug of depth `d` at least once in so many: n * k^(d-1) * choices."""
    power: int = k ** (d - 1)
    return n * power * choices


def runs_needed(n: int, k: int, d: int, miss: float, *, choices: int = 1) -> int:
    """How many runs until a bug of depth `d` was missed by all of them with probability at most `miss`."""
    if not 0 < miss <= 1:
        raise UsageError(f"no number of runs makes {miss} the probability of missing a bug\n  ask for one above 0 and up to 1")
    one_in = odds(n, k, d, choices)
    if one_in == 1:
        return 1 if miss < 1 else 0
    if one_in < 1 << 40:
        runs = max(0, ceil(log(miss) / log1p(-1 / one_in)))
        return runs if _missed(one_in, runs) <= miss else runs + 1
    return ceil(Fraction(-log(miss)) * one_in)  # -log1p(-h) >= h, so this is enough; and no float can overflow


def _missed(one_in: int, runs: int) -> float:
    """(1 - 1/one_in)**runs, also where the fraction is below what 1 - x can show."""
    if not runs:
        return 1.0
    if one_in == 1:
        return 0.0
    return max(exp(runs * log1p(-1 / one_in)), sys.float_info.min)


def _rounded_up(probability: float) -> str:
    # an upper limit is rounded up
    return f"{Context(prec=2, rounding=ROUND_CEILING).create_decimal(Decimal(probability)).normalize():g}"


def _one_in(odds: int) -> str:
    if odds < 10**9:
        return f"1 in {odds:,}"
    # a lower limit is rounded down
    return f"{Context(prec=2, rounding=ROUND_FLOOR).divide(Decimal(1), Decimal(odds)):g} of 1"


class _Movable(list[Channel]):
    """The World's movable heads, telling who joins them: PCT need not look at those that stay where they are."""

    def __init__(self, channels: list[Channel], pct: Pct) -> None:
        super().__init__(channels)
        self.pct = pct

    def append(self, channel: Channel) -> None:
        """The World enables a channel."""
        super().append(channel)
        self.pct.enter(channel)


class Pct:
    """Probabilistic concurrency testing: `runs` runs of which each finds a bug of depth `depth` with a probability that is known.

    The channel with the highest priority moves.  Before the steps at `depth` - 1 random places, the one that would move falls
    behind all others.  `steps` is k, from which these places are drawn; without it the first runs measure it, with no change
    of priorities.  A run that takes more than k steps raises k for those after it.

    Which runs count: those whose places were drawn from the present k.  A run drawn from a smaller one could not have put
    off a late step, however short that run turned out to be, so counting begins anew when k is raised, and each new beginning
    adds once to the limit `miss` (the present one was chosen by what the runs showed).  A run that is cut by the step bound does
    not raise k, since its length says nothing about the program, and does not count, since it was not judged at its end; a bug
    that shows only in runs that long is not covered.  A run in which a channel spins for what a lower one would do is of
    this kind.  n and the answers of choices decide nothing about how a run is drawn: their maxima hold for all runs.

    Run i is the same without the runs before it if `steps` is what k was for it (`ks[i]`).
    """

    def __init__(self, seed: int | str, runs: int, depth: int = 2, *, steps: int | None = None) -> None:
        if depth < 1:
            raise UsageError(f"there is no bug of depth {depth}\n  depth 1: one step before another; 2: an atomicity violation")
        if steps is not None and steps < 1:
            raise UsageError(f"a run of {steps} steps has no place for a change\n  leave the steps out to have them measured")
        self.seed = seed
        self.runs = runs
        self.depth = depth
        self.n = 0
        self.k = steps or 0  # 0: not known yet
        self.choices = 1
        self.executions = 0
        self.counted = 0
        self.cut_short = 0
        self.longest = 0
        self.restarts = 0
        self.learns = True  # False: somebody else says when k is raised
        self.ks: list[int] = []  # per run: what its change points were drawn from; 0: it had none
        self._shortest = sys.maxsize
        self._cut_at = 0
        self._ranks: dict[Channel, float] = {}

    @property
    def bounded(self) -> bool:
        """Did a run meet the step bound?"""
        return self.cut_short > 0

    # ---- the three verbs --------------------------------------------------------------------------------------------------

    def begin(self, world: World, run: int) -> None:
        """Draw the change points; every channel draws its priority when it can first move."""
        self.world = world
        self.run = run
        random = Random(f"{self.seed}:{run}")
        self.random = random.random
        k = self.k
        self.ks.append(k)
        # (step, what becomes of the channel's rank there); of several at one step the later ones fall further
        points = [(random.randrange(k) + 1, change) for change in range(1, self.depth)] if k else []
        self._points = sorted(points, reverse=True)
        self._next = self._points[-1][0] if points else 0
        self._step = 0
        self._answers = 1
        self._ranks = {}  # the lowest rank moves: below 1 at first, 1, 2, ... after a change
        self._heap: list[tuple[float, int, Channel]] = []  # may hold channels that cannot move now
        self._queued: set[Channel] = set()
        world.movable = _Movable(world.movable, self)
        for channel in world.movable:
            self.enter(channel)

    def enter(self, channel: Channel) -> None:
        """A channel can move that could not; of a choice the first answer stands for the thread."""
        if channel in self._queued:
            return
        entity = channel
        if channel.kind == CHOICE:
            if channel.payload:
                return
            entity = channel.thread.channel
        rank = self._ranks.get(entity)
        if rank is None:
            rank = self._ranks[entity] = self.random()
        self._queued.add(channel)
        heappush(self._heap, (rank, channel.number, channel))

    def pick(self, _movable: list[Channel]) -> Channel:
        """The movable channel with the highest priority."""
        heap = self._heap
        channel = heap[0][2]
        while channel.at < 0:
            heappop(heap)
            self._queued.remove(channel)
            channel = heap[0][2]
        self._step = step = self._step + 1
        if step == self._next:
            channel = self._change(step)
        if channel.kind == CHOICE:
            # Its answers leave together.  It must not stay behind with a rank that its thread may lose meanwhile.
            heappop(heap)
            self._queued.remove(channel)
            answers = channel.thread.answers
            self._answers *= len(answers)
            channel = answers[int(self.random() * len(answers))]
        return channel

    def end(self, execution: Execution) -> bool:
        """Count the run, and learn n and k from it."""
        self.world.movable = list(self.world.movable)
        self.executions += 1
        self.n = max(self.n, len(self._ranks))
        self.choices = max(self.choices, self._answers)
        length = len(execution.steps)
        if execution.status == "bounded":
            self.cut_short += 1
            self._cut_at = length
        else:
            self.longest = max(self.longest, length)
            if execution.status == "terminal":
                self._shortest = min(self._shortest, length)
            if self.depth == 1 or self.ks[-1]:
                self.counted += 1
        if self.depth > 1 and self.learns:
            self.raise_k()
        return self.run + 1 < self.runs

    def guarantee(self) -> Guarantee | None:
        """What the runs so far promise; None before the first."""
        if not self.executions:
            return None
        k = self.k or max(self.longest, 1)
        one_in = odds(max(self.n, 1), k, self.depth, self.choices)
        miss = min(1.0, (1 + self.restarts) * _missed(one_in, self.counted))
        return Guarantee(
            max(self.n, 1), k, self.depth, self.choices, self.executions, self.counted, self.cut_short, self.longest,
            self.restarts, 1 / one_in, miss,
        )  # fmt: skip

    def books(self) -> list[int]:
        """What its runs have measured and counted, for `take` of another one."""
        return [
            self.n, self.k, self.choices, self.executions, self.counted, self.cut_short, self.longest, self.restarts,
            self._shortest, self._cut_at,
        ]  # fmt: skip

    def take(self, books: list[int]) -> None:
        """Add what another one has measured and counted, in runs that drew from the present k."""
        n, _, choices, executions, counted, cut_short, longest, restarts, shortest, cut_at = books
        self.n, self.choices = max(self.n, n), max(self.choices, choices)
        self.executions += executions
        self.counted += counted
        self.cut_short += cut_short
        self.longest, self._shortest = max(self.longest, longest), min(self._shortest, shortest)
        self.restarts += restarts
        self._cut_at = max(self._cut_at, cut_at)

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _change(self, step: int) -> Channel:
        """Lower who would move; at each change point of this step, whoever that is by then."""
        heap = self._heap
        points = self._points
        while points and points[-1][0] == step:
            _, change = points.pop()
            _, number, channel = heap[0]
            self._ranks[channel.thread.channel if channel.kind == CHOICE else channel] = change
            heapreplace(heap, (change, number, channel))
            while heap[0][2].at < 0:
                self._queued.remove(heappop(heap)[2])
        self._next = points[-1][0] if points else 0
        return heap[0][2]

    def raise_k(self) -> None:
        """Draw the change points of the runs from here on from as many steps as the longest one took."""
        # Where runs differ in length, some room above the longest: each time that k is raised, the runs before are lost.
        if self.k:
            if self.longest <= self.k:
                return
            self.restarts += 1
            self.counted = 0
        elif self.executions < CALIBRATION:
            return
        longest = self.longest or self._cut_at
        self.k = max(1, longest + (longest - min(self._shortest, longest)) // 4)
