"""How much of a depth-first search remains: the size of its tree, estimated while it is walked.

Three estimators, for two kinds of tree.  For a search whose children are alike, a DPOR, two of Kilby, Slaney, Thiebaux, Walsh:
Estimating Search Tree Size, AAAI 2006:

* **by share** (their weighted backtrack estimator; after Knuth: Estimating the Efficiency of Backtrack Programs, 1975): every
  child of a node counts for an equal share of the node; what is done divided by its share is the whole.
* **by siblings** (their recursive estimator): a child that waits is as large as its finished siblings are in the mean; the child
  that is being explored is estimated in the same way, first.

A DPOR finds children of a node out as it goes on, the more the larger the node; by share that is missed, and by siblings it is
found late, but then exaggerated.  So what remains is the geometric mean of the two.  For the other kind:

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
#: and some more below it, for all estimators err towards too much once most is done.
_ALIKE = 2.0
_BY_LEVEL = 2.0
_UNMEASURED = 3.0  # by level, if none of the levels where children wait has been measured
_LOWER_ALIKE = 2.0
_BY_SHARE, _LOWER_BY_SHARE = 1.7, 3.0  # the weighted backtrack estimator alone, of a search that is shared out
_LOWER_BY_LEVEL = 3.0
# How often the interval held the total when 10 % was done, and how wide it was: tests/test_estimate.py, with a table.
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


def from_share(done: int, share: float, seconds: float) -> Estimate | None:
    """After `done` executions in so many seconds, which were such a share of all, 0 to 1; None if that cannot be told yet."""
    if not done or not 0 < share <= 1:
        return None
    total = min(_MOST, max(done, done / share))
    low = done + (total - done) / 2 ** (_BY_SHARE + _LOWER_BY_SHARE)
    high = done + (total - done) * 2**_BY_SHARE
    return Estimate(done, total, low, high, seconds / done * (total - done) if seconds else None)


class _Level:
    """What is known of one position on the path: when its present child began, and how the finished ones went."""

    __slots__ = ("began", "born")

    def __init__(self, born: int, began: int) -> None:
        self.born = born  # executions when the node was come to
        self.began = began  # executions when the child that is being explored was begun


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

    # ---- watching ---------------------------------------------------------------------------------------------------------

    def observe(self, executions: int, frontier: Frontier, seconds: float = 0.0) -> None:
        """After `executions` executions, which took so many seconds, the search stands at `frontier`."""
        last = self.executions
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
                levels.insert(same, _Level(last, executions))
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
        del levels[keep:]
        levels += [_Level(last, executions) for _ in path[len(levels) :]]
        self._path = path

    def _child_finished(self, n: int, before: int, after: int) -> None:
        level = self._levels[n]
        size = self.executions - level.began
        level.began = self.executions
        if before:
            total = self._later.setdefault(n, [0, 0])
            total[0] += size
            total[1] += after - before

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
            lower = _LOWER_BY_LEVEL
        else:
            rest = [max(1.0, total - done) for total in (self._by_share(), self._by_siblings())]
            total, width, lower = done + math.sqrt(rest[0]) * math.sqrt(rest[1]), _ALIKE, _LOWER_ALIKE
        total = min(_MOST, max(least, total))
        low = least + (total - least) / 2 ** (width + lower)
        high = done + (total - done) * 2**width
        left = self.seconds / done * (total - done) if self.seconds else None
        return Estimate(done, total, low, high, left)

    def _by_share(self) -> float:
        share, weight = 0.0, 1.0
        for finished, known in self._path:
            weight /= known
            share += finished * weight
        done = self.executions - self._began
        return self._began + done / max(share or weight / 2.0, 1 / _MOST)

    def _by_siblings(self) -> float:
        size = 0.0  # of the child that is being explored: none at the deepest node, all of whose present children are finished
        under_way = 0
        for (finished, known), level in zip(reversed(self._path), reversed(self._levels), strict=True):
            size += level.began - level.born if finished else 0
            begun = finished + under_way
            size = max(1.0, size + (known - begun) * (size / begun if begun else 1.0))
            under_way = 1
        return self._began + size

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
