"""How much of a depth-first search remains: the size of its tree, estimated while it is walked.

Two estimators, for two kinds of tree:

* **by share** (Kilby, Slaney, Thiebaux, Walsh: Estimating Search Tree Size, AAAI 2006, the weighted backtrack estimator; after
  Knuth: Estimating the Efficiency of Backtrack Programs, 1975): every child of a node counts for an equal share of the node;
  what is done divided by its share is the whole.  A DPOR finds children of a node out as it goes on, which makes the share
  look larger than it is; so every node is given the children that finished nodes turned out to have after as many of
  theirs were done.
* **by level**, for a search that recognises states: the first child of a node finds nearly everything, and its siblings little
  that is new, so equal shares are wrong by many powers of two.  Here the children that wait at each level are counted, and each
  is given the mean size of the *later* children that were finished at that level; where none was, the trend of the levels
  below is carried on upwards.

The interval is wide on purpose.  Its width was measured, not derived: see tests/test_estimate.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: per node of the present path, from the root: (children finished, children known so far)
Frontier = Sequence[tuple[int, int]]

#: The upper end of the 80 % interval is so many powers of two above the estimate of what remains; the lower end is that much
#: and three more below it, for both estimators err towards too much once most is done.
_BY_SHARE = 1.7
_BY_LEVEL = 2.0
_UNMEASURED = 3.0  # by level, if none of the levels where children wait has been measured
# On searches that these widths were not fitted to, the interval held the total, when 10 % was done, 17 of 19 times by share and
# 20 of 24 by level (the other four were too small to have left learning behind); when 30 % was done, always.
_MOST = 1e30  # executions; whatever is more is called this


@dataclass(frozen=True)
class Estimate:
    """Executions done and in total; `low` to `high` is meant to hold the total in 80 of 100 searches.

    `seconds_left` is what `total - done` executions take at the rate so far, in seconds; None if no time has passed.
    """

    done: int
    total: float
    low: float
    high: float
    seconds_left: float | None

    @property
    def share(self) -> float:
        """How much of the search is done, 0 to 1."""
        return self.done / self.total

    def seconds(self, executions: float) -> float | None:
        """How long the search takes until it has done so many executions in all, from now on."""
        if self.seconds_left is None or self.total <= self.done:
            return self.seconds_left
        return self.seconds_left * max(0.0, executions - self.done) / (self.total - self.done)

    def to_json(self) -> dict[str, Any]:
        """For `explore --json`; executions are rounded."""
        entry = asdict(self)
        for name in ("total", "low", "high"):
            entry[name] = round(entry[name])
        return entry


class _Level:
    """What is known of one position on the path: when its present child began, and how the finished ones went."""

    __slots__ = ("began", "known_after")

    def __init__(self, began: int, finished: int, known: int) -> None:
        self.began = began  # executions when the child that is being explored was begun
        self.known_after = {finished: known}  # children known when so many were finished


class Estimator:
    """Watches a search: `observe` after an execution (not necessarily after every one), `estimate` at any time.

    `recognises_states` says which of the two estimators fits.
    """

    def __init__(self, *, recognises_states: bool = False) -> None:
        self.recognises_states = recognises_states
        self.executions = 0
        self.seconds = 0.0
        self._forget(0)

    def _forget(self, executions: int) -> None:
        self._began = executions
        self._path: list[tuple[int, int]] = []
        self._levels: list[_Level] = []
        self._later: dict[int, list[int]] = {}  # level -> [executions under later children, such children]
        self._more: dict[int, list[int]] = {}  # children finished -> [children found after that, nodes]

    # ---- watching ---------------------------------------------------------------------------------------------------------

    def observe(self, executions: int, frontier: Frontier, seconds: float = 0.0) -> None:
        """After `executions` executions, which took so many seconds, the search stands at `frontier`."""
        self.executions = executions
        self.seconds = seconds
        before = self._path
        path = list(frontier)
        levels = self._levels
        same = 0
        while same < len(path) and same < len(before) and path[same][0] <= before[same][0]:
            if path[same][0] < before[same][0]:
                # Nobody takes a finished child back.
                if self.recognises_states:
                    path = []  # the search has started again
                    break
                before.insert(same, path[same])  # a second child was found where there was one
                levels.insert(same, _Level(executions, *path[same]))
            same += 1
        if not path:
            self._forget(executions)
            self._path = list(frontier)
            levels = self._levels
            before, path, same = [], self._path, 0
        keep = same
        if same < len(path) and same < len(before) and path[same][0] > before[same][0]:
            keep = same + 1
            self._child_finished(same, before[same][0], path[same][0])
        for n in range(keep, len(before)):
            self._node_finished(levels[n], before[n][1])
        del levels[keep:]
        for n, (finished, known) in enumerate(path):
            if n < len(levels):
                levels[n].known_after.setdefault(finished, known)
            else:
                levels.append(_Level(executions, finished, known))
        self._path = path

    def _child_finished(self, n: int, before: int, after: int) -> None:
        level = self._levels[n]
        size = self.executions - level.began
        level.began = self.executions
        if before:
            total = self._later.setdefault(n, [0, 0])
            total[0] += size
            total[1] += after - before

    def _node_finished(self, level: _Level, known: int) -> None:
        for finished, then in level.known_after.items():
            more = self._more.setdefault(finished, [0, 0])
            more[0] += max(0, known - then)
            more[1] += 1

    # ---- estimating -------------------------------------------------------------------------------------------------------

    def estimate(self) -> Estimate | None:
        """None while the search has no tree yet."""
        if not self._path:
            return None
        done = self.executions
        deepest = len(self._path) - 1
        waiting = {n: w for n, (f, known) in enumerate(self._path) if (w := known - f - (n < deepest))}
        least = done + max(1, sum(waiting.values()))  # nothing that waits costs less than one execution
        if self.recognises_states:
            total, width = self._by_level(waiting)
        else:
            total, width = self._by_share(), _BY_SHARE
        total = min(_MOST, max(least, total))
        low = least + (total - least) / 2 ** (width + 3)
        high = done + (total - done) * 2**width
        left = self.seconds / done * (total - done) if self.seconds else None
        return Estimate(done, total, low, high, left)

    def _by_share(self) -> float:
        share, weight = 0.0, 1.0
        for finished, known in self._path:
            found, nodes = self._more.get(finished, (0, 1))
            weight /= known + found / nodes
            share += finished * weight
        done = self.executions - self._began
        return self._began + (done / share if share else done * 2.0 / weight)

    def _by_level(self, waiting: dict[int, int]) -> tuple[float, float]:
        trend = _Trend(self._later)
        rest = sum(count * trend.size(n) for n, count in waiting.items())
        measured = sum(n in self._later for n in waiting) / max(1, len(waiting))
        if measured < 0.5:  # most of what waits is larger than all that was finished: no trend can see that
            rest = max(rest, self.executions - self._began)
        return self.executions + rest, _BY_LEVEL + _UNMEASURED * (1 - measured)


class _Trend:
    """The size of a later child by level: the mean where there are some, a line through the logarithms elsewhere."""

    def __init__(self, later: dict[int, list[int]]) -> None:
        self.means = {n: max(1.0, size / count) for n, (size, count) in later.items()}
        self.slope = self.middle = self.height = 0.0
        if self.means:
            weights = {n: math.sqrt(later[n][1]) for n in self.means}
            everything = sum(weights.values())
            self.middle = sum(n * weights[n] for n in self.means) / everything
            self.height = sum(math.log(mean) * weights[n] for n, mean in self.means.items()) / everything
            spread = sum(weights[n] * (n - self.middle) ** 2 for n in self.means)
            if spread:
                along = sum(weights[n] * (n - self.middle) * (math.log(m) - self.height) for n, m in self.means.items())
                self.slope = min(0.0, along / spread)  # a child further down is not larger
            self.top = min(self.means)

    def size(self, n: int) -> float:
        """Executions under a later child at level `n`."""
        if n in self.means:
            return self.means[n]
        if not self.means:
            return 1.0
        if n < self.top:
            grown = math.log(self.means[self.top]) + self.slope * (n - self.top)
        else:
            grown = self.height + self.slope * (n - self.middle)
        return math.exp(min(60.0, max(0.0, grown)))
