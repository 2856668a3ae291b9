"""What remains of a search, estimated while it runs: how good the estimate is was measured, and these tests keep it that good."""

import math
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racevisor.estimate import Estimate, Estimator
from racevisor.explore import LOOK, cases
from racevisor.oracles import programs as p
from racevisor.oracles.rows import automata
from racevisor.strategies import states
from racevisor.strategies.brute_force import BruteForce
from racevisor.strategies.optimal import OptimalDpor
from racevisor.strategies.sleep_sets import SleepSets
from racevisor.strategies.source_dpor import SourceDpor
from racevisor.strategies.states import StatefulSearch
from racevisor.world import World

Frontier = list[tuple[int, int]]


def walked(of: World, strategy: Any) -> list[Frontier]:
    """The frontier after every execution but the last."""
    frontiers: list[Frontier] = []
    while strategy.end(of.run(strategy, len(frontiers))):
        frontiers.append(list(strategy.frontier()))
    of.close()
    return frontiers


def estimate_at(done: int, frontiers: list[Frontier], *, every: int = 1, recognises_states: bool = False) -> Estimate | None:
    """The estimate when so many executions are done, if the search was looked at after `every` so many."""
    estimator = Estimator(recognises_states=recognises_states)
    for n, frontier in enumerate(frontiers[:done], 1):
        if n % every == 0:
            estimator.observe(n, frontier, n * 0.5)
    return estimator.estimate()


def init_sipi(variant: str, setup: str, memory: str) -> World:
    (case,) = cases("init_sipi", [variant], [setup], [memory])
    return case.world(automata=True)


#: The programs of racevisor.oracles with known numbers of classes, where 10 % of the executions is more than two.
ORACLES: dict[Callable[[int], World], tuple[int, ...]] = {
    p.readers: (5, 6, 7, 8, 9, 10),
    p.lastzero: (4, 5, 6, 7, 8, 9),
    p.inc: (3, 4),
    p.ainc: (4, 5, 6),
    p.cas: (40,),
    p.casrot: (5, 6, 7, 8),
    p.lockinc: (4, 5, 6),
    p.dining: (5, 6, 7, 8),
    p.wainc: (3, 4, 5),
    p.filesystem: (18, 19, 20),
    p.indexer: (13, 14),
}
#: The same for a search that recognises states: it has more executions, the first of which learn.
ORACLES_BY_STATES: dict[Callable[[int], World], tuple[int, ...]] = {
    p.readers: (4, 5, 6, 7, 8),
    p.lastzero: (4, 5, 6),
    p.inc: (3, 4),
    p.ainc: (4, 5, 6),
    p.cas: (10,),
    p.casrot: (5, 6, 7, 8),
    p.lockinc: (5, 6),
    p.dining: (4, 5, 6),
    p.wainc: (3, 4, 5),
    p.filesystem: (16,),
    p.indexer: (13,),
}
STATES: list[Callable[[], World]] = [
    *(
        partial(automata, partial(make, n))
        for make, n in [(p.readers, 8), (p.lastzero, 6), (p.inc, 5), (p.wainc, 6), (p.dining, 6)]
    ),
    partial(init_sipi, "latch", "plain", "tso"),
    partial(init_sipi, "latch", "migration", "sc"),
    partial(init_sipi, "today", "bsp_init", "sc"),
    partial(init_sipi, "seed", "edge_irqs", "sc"),
    partial(init_sipi, "before", "level_irq", "tso"),
]


def held(share: float, searches: dict[str, list[Frontier]], *, learning: int = 0, every: int = 1) -> tuple[float, float]:
    """(how often the interval held the number of executions, the median of high / low); prints the table.

    The share is of the executions after the first `learning`, which only learn.
    """
    hits, ratios = [], []
    for name, frontiers in searches.items():
        total = len(frontiers) + 1
        done = learning + math.ceil(share * (total - learning))
        if done // every < 2 and every > 1:
            continue  # it was not looked at twice
        guess = estimate_at(done, frontiers, every=every, recognises_states=learning > 0)
        assert guess is not None, name
        hits.append(guess.low <= total <= guess.high)
        ratios.append(guess.high / guess.low)
        words = f"{done:6,} of {total:6,} done: {guess.total:9,.0f}, {guess.low:7,.0f} to {guess.high:9,.0f}"
        print(f"{name:14} {words}  x{ratios[-1]:5.1f}  {'' if hits[-1] else 'missed'}")  # noqa: T201  the table
    print(f"{share:.0%} done: held {sum(hits)} of {len(hits)}, median high / low {median(ratios):.1f}\n")  # noqa: T201
    return sum(hits) / len(hits), median(ratios)


@pytest.mark.parametrize(("strategy", "widest", "looked"), [(OptimalDpor, 11, 16), (SourceDpor, 21, 28)])
def test_after_a_tenth_the_interval_holds_the_total_of_four_of_five_oracles(
    strategy: Callable[[], Any], widest: float, looked: float
) -> None:
    """It says 80 %, and is to say something: a median ratio of its ends that is bounded.  The table: pytest -rP.

    A DPOR finds children out as it goes, which is what makes it hard; `looked`: the ratio if it is looked at as seldom as
    `racevisor explore` does.
    """
    searches = {f"{make.__name__}({n})": walked(make(n), strategy()) for make, sizes in ORACLES.items() for n in sizes}
    for share in (0.1, 0.3, 0.9):
        often, ratio = held(share, searches)
        assert often >= 0.8 and ratio <= widest
        often, ratio = held(share, searches, every=LOOK)
        assert often >= 0.8 and ratio <= looked


def test_after_a_tenth_the_interval_holds_the_states_of_four_of_five_oracles() -> None:
    """For a search that recognises states the interval is wider: most of its work lies under the last children."""
    searches = {
        f"{make.__name__}({n})": walked(automata(partial(make, n)), StatefulSearch())
        for make, sizes in ORACLES_BY_STATES.items()
        for n in sizes
    }
    for share in (0.1, 0.3, 0.9):
        often, ratio = held(share, searches, learning=states.LEARN)
        assert often >= 0.8 and ratio <= 36


def test_the_interval_holds_the_total_of_four_of_five_stateful_searches() -> None:
    """Estimates by equal shares are wrong by up to fifty powers of two here."""
    searches = {str(n): walked(make(), StatefulSearch()) for n, make in enumerate(STATES)}
    for share in (0.1, 0.3, 0.9):
        often, _ = held(share, searches, learning=states.LEARN)
        assert often >= 0.8


@pytest.mark.parametrize("make", [partial(p.ainc, 5), partial(p.cas, 5)])
def test_in_a_tree_whose_children_are_alike_the_estimate_is_right_at_once(make: Callable[[], World]) -> None:
    """The weighted backtrack estimator is exact where every leaf stands for its share."""
    frontiers = walked(make(), BruteForce())
    for share in (0.1, 0.5, 0.9):
        guess = estimate_at(math.ceil(share * len(frontiers)), frontiers)
        assert guess is not None
        assert guess.total == pytest.approx(len(frontiers) + 1)


def test_what_waits_counts_by_its_share_and_by_its_siblings() -> None:
    """The second of three children is half done; the first had 6 executions, of the second 4 are done, as many are left."""
    estimator = Estimator()
    path: list[Frontier] = [[(0, 3), (n, 6)] for n in range(1, 6)] + [[(1, 3)]] + [[(1, 3), (n, 8)] for n in range(1, 5)]
    for done, frontier in enumerate(path, 1):
        estimator.observe(done, frontier)
    guess = estimator.estimate()
    assert guess is not None
    by_share = 10 / (1 / 3 + 1 / 6)
    by_siblings = (6 + 8) / 2 * 3
    assert guess.total == pytest.approx(10 + math.sqrt((by_share - 10) * (by_siblings - 10)))


def test_a_search_that_starts_again_is_not_measured_by_what_it_did_before() -> None:
    """A stateful search does when it learns that a cell is shared; the root then has fewer finished children than before."""
    estimator = Estimator(recognises_states=True)
    estimator.observe(10, [])
    assert estimator.estimate() is None
    estimator.observe(50, [(2, 4)])
    estimator.observe(60, [(0, 4), (1, 2)])
    estimator.observe(62, [(1, 4)])
    estimator.observe(64, [(2, 4)])
    guess = estimator.estimate()
    assert guess is not None
    assert guess.total == pytest.approx(60 + 2 * 4)


def test_the_time_that_is_left_follows_the_rate_so_far() -> None:
    """An ETA, and what the ends of the interval would take."""
    guess = Estimate(done=100, total=400, low=200, high=1300, seconds_left=60.0)
    assert guess.share == 0.25
    assert guess.seconds(1300) == pytest.approx(240)
    assert guess.seconds(200) == pytest.approx(20)
    estimator = Estimator()
    estimator.observe(10, [(1, 4)], seconds=5.0)
    made = estimator.estimate()
    assert made is not None and made.seconds_left == pytest.approx(15.0)
    assert Estimate(10, 40.4, 20.6, 90.5, None).to_json() == {
        "done": 10, "total": 40, "low": 21, "high": 90, "seconds_left": None,
    }  # fmt: skip


class Tree:
    """A depth-first search over a made-up tree: at each node the number of children is what `shape` says next."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = shape
        self.frontiers: list[Frontier] = []
        self.path: Frontier = []
        self.walk(iter(shape), 0)

    def walk(self, shape: Any, depth: int) -> None:
        children = next(shape, 0) if depth < 6 else 0
        if not children:
            self.frontiers.append(list(self.path))
            return
        for child in range(children):
            self.path.append((child, children))
            self.walk(shape, depth + 1)
            self.path.pop()


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.booleans(), st.integers(1, 5))
def test_any_tree_gives_an_ordered_interval_ahead_of_what_is_done(shape: list[int], recognises_states: bool, every: int) -> None:
    """Whatever is walked, and however seldom it is looked at."""
    estimator = Estimator(recognises_states=recognises_states)
    frontiers = Tree(shape).frontiers
    for done, frontier in enumerate(frontiers[1:], 1):
        if done % every == 0:
            estimator.observe(done, frontier, done * 1.0)
            guess = estimator.estimate()
            if guess is not None:
                assert done < guess.low <= guess.total <= guess.high < math.inf


@pytest.mark.parametrize("strategy", [BruteForce, SourceDpor, OptimalDpor, SleepSets])
def test_a_frontier_counts_finished_children_that_are_known(strategy: Callable[[], Any]) -> None:
    """The contract between a search and the estimate."""
    for frontier in walked(p.inc(3), strategy()):
        assert frontier, "a search that is not done has something left somewhere"
        assert all(0 <= finished < known for finished, known in frontier)
