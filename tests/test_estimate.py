"""What remains of a search, estimated while it runs: how good the estimate is was measured, and these tests keep it that good."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racevisor.estimate import Estimate, Estimator
from racevisor.explore import cases
from racevisor.oracles import programs as p
from racevisor.oracles.rows import automata
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


def estimate_at(share: float, frontiers: list[Frontier], recognises_states: bool = False) -> Estimate | None:
    """The estimate when this share of the executions is done."""
    estimator = Estimator(recognises_states=recognises_states)
    every = len(frontiers) // 300 + 1
    for done, frontier in enumerate(frontiers[: math.ceil(share * len(frontiers))], 1):
        if done % every == 0:
            estimator.observe(done, frontier, done * 0.5)
    return estimator.estimate()


def init_sipi(variant: str, setup: str, memory: str) -> World:
    (case,) = cases("init_sipi", [variant], [setup], [memory])
    return case.world(automata=True)


SIZES: dict[Callable[[int], World], tuple[int, ...]] = {
    p.readers: (6, 8),
    p.lastzero: (5, 6, 7),
    p.inc: (4,),
    p.ainc: (5,),
    p.casrot: (6, 7),
    p.wainc: (4, 5),
    p.lockinc: (5,),
    p.dining: (6, 7),
    p.filesystem: (20,),
    p.indexer: (13, 14),
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


def holds(of: World, strategy: Any) -> list[bool]:
    """Does the interval hold the number of executions when 10 %, 30 % and 90 % of them are done?"""
    frontiers = walked(of, strategy)
    guesses = [estimate_at(share, frontiers, isinstance(strategy, StatefulSearch)) for share in (0.1, 0.3, 0.9)]
    return [guess is not None and guess.low <= len(frontiers) + 1 <= guess.high for guess in guesses]


@pytest.mark.parametrize("strategy", [SourceDpor, OptimalDpor])
def test_the_interval_holds_the_total_of_four_of_five_dpor_searches(strategy: Callable[[], Any]) -> None:
    """It says 80 %.  A DPOR finds children out as it goes, which is what makes it hard."""
    held = [holds(make(n), strategy()) for make, sizes in SIZES.items() for n in sizes]
    for at_share in zip(*held, strict=True):
        assert sum(at_share) >= 0.8 * len(held)


def test_the_interval_holds_the_total_of_four_of_five_stateful_searches() -> None:
    """Estimates by equal shares are wrong by up to fifty powers of two here."""
    held = [holds(make(), StatefulSearch()) for make in STATES]
    for at_share in zip(*held, strict=True):
        assert sum(at_share) >= 0.8 * len(held)


@pytest.mark.parametrize("make", [partial(p.ainc, 5), partial(p.cas, 5)])
def test_in_a_tree_whose_children_are_alike_the_estimate_is_right_at_once(make: Callable[[], World]) -> None:
    """The weighted backtrack estimator is exact where every leaf stands for its share."""
    frontiers = walked(make(), BruteForce())
    for share in (0.1, 0.5, 0.9):
        guess = estimate_at(share, frontiers)
        assert guess is not None
        assert guess.total == pytest.approx(len(frontiers) + 1)


def test_a_tree_that_gains_children_is_estimated_with_those_still_to_be_found() -> None:
    """Two finished nodes had 4 children each, though 2 were known when the first of them was done."""
    estimator = Estimator()
    path: list[Frontier] = [[(0, 3), (1, 2)], [(0, 3), (2, 4)], [(0, 3), (3, 4)]]
    path += [[(1, 3), (finished, known)] for finished, known in ((1, 2), (2, 4), (3, 4))]
    for done, frontier in enumerate(path, 1):
        estimator.observe(done, frontier)
    estimator.observe(len(path) + 1, [(2, 3), (1, 2)])
    guess = estimator.estimate()
    assert guess is not None
    plain = 7 / (2 / 3 + 1 / 3 / 2)
    assert guess.total > plain


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


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
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
