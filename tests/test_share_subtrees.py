"""Optimal DPOR shared out: whoever searches what, and in whatever order it comes home, each trace is met exactly once."""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import PROGRAMS, Case, world
from test_classes import watching

from racevisor.choose import Wanted
from racevisor.classes import Certificate, trace_key
from racevisor.memory import MODELS
from racevisor.oracles.programs import casrot, dining, inc, lastzero, popl, readers
from racevisor.share.subtree_pool import SubtreePool
from racevisor.share.subtrees import SubtreeWorker
from racevisor.strategies.optimal import OptimalDpor
from racevisor.world import World

WANTED = Wanted(strategy="optimal", to_the_end=True)


class Keys(OptimalDpor):
    """Names each trace from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[int] = []

    def learn(self, world: World) -> None:
        super().learn(world)
        if not world.movable:
            self.keys.append(trace_key(world))


def sequential(case: Case) -> tuple[Certificate, int, Counter[str]]:
    """(certificate, bad executions, outcomes) of one search from beginning to end."""
    of, strategy = case.world(), Keys()
    bad, run, outcomes = 0, 0, Counter[str]()
    again = True
    while again:
        execution = of.run(strategy, run)
        bad += execution.bad
        outcomes[str(execution.outcome)] += 1
        again = strategy.end(execution)
        run += 1
    of.close()
    assert len(set(strategy.keys)) == run
    return Certificate.of(strategy.keys), bad, outcomes


class Team:
    """Workers without processes: pieces are worked on when they are handed out, and their results come home in any order."""

    def __init__(self, case: Case, workers: int, draw: Callable[[int, int], int], *, faults: bool = True) -> None:
        self.case = case
        self.draw = draw
        self.faults = faults
        self.pool = SubtreePool(case, WANTED)  # type: ignore[arg-type]
        self.workers = [self.hire() for _ in range(workers)]
        self.out: list[tuple[int, int, Any]] = []  # (worker, number, result)
        self.pieces = self.resumed = self.kills = 0
        self.largest = 0

    def hire(self) -> SubtreeWorker:
        return SubtreeWorker(self.case, WANTED)  # type: ignore[arg-type]

    def search(self) -> SubtreePool:
        idle = list(range(len(self.workers)))
        late: list[tuple[int, Any]] = []
        while not self.pool.done:
            while idle:
                self.pool.quantum = self.draw(1, 4)
                given = self.pool.give()
                if given is None:
                    break
                number, piece = given
                packed = msgpack.packb(piece)
                self.largest = max(self.largest, len(packed))
                worker = idle.pop()
                result = self.workers[worker].work(msgpack.unpackb(packed), 1e9)
                self.pieces += 1
                self.out.append((worker, number, msgpack.unpackb(msgpack.packb(result))))
            assert self.out, "nobody works, and nothing is to be had"
            worker, number, result = self.out.pop(self.draw(0, len(self.out) - 1))
            idle.append(worker)
            chance = self.draw(0, 19) if self.faults else 19
            if chance == 0:  # killed before it could answer
                self.pool.lost(number)
                self.workers[worker].close()
                self.workers[worker] = self.hire()
                self.kills += 1
            elif chance == 1:  # taken for dead, and heard of later
                self.pool.lost(number)
                late.append((number, result))
            elif chance == 2:  # heard of twice
                self.pool.take(number, result)
                self.pool.take(number, result)
            else:
                self.pool.take(number, result)
            if late and self.faults and self.draw(0, 3) == 0:
                self.pool.take(*late.pop())
            if self.faults and self.draw(0, 24) == 0:  # everybody is killed, and somebody goes on
                saved = msgpack.unpackb(msgpack.packb(self.pool.save()))
                self.pool.close()
                self.pool = SubtreePool.load(self.case, WANTED, saved)  # type: ignore[arg-type]
                self.out, late, idle = [], [], list(range(len(self.workers)))
                self.resumed += 1
        for one in self.workers:
            one.close()
        self.pool.close()
        return self.pool


def whole(case: Case) -> SubtreePool:
    """One worker, one piece."""
    pool, worker = SubtreePool(case, WANTED), SubtreeWorker(case, WANTED)  # type: ignore[arg-type]
    given = pool.give()
    assert given is not None
    pool.take(given[0], worker.work(given[1], 1e9))
    assert pool.done
    pool.close()
    worker.close()
    return pool


def agree(case: Case, workers: int, *seeds: int) -> None:
    """One search, one worker with one piece, and a team for each seed: all meet the same traces."""
    one, bad, outcomes = sequential(case)
    teams = (Team(case, workers, Random(seed).randint).search() for seed in seeds)
    for pool in (whole(case), *teams):
        assert pool.exhausted
        assert pool.certificate() == (one, "Mazurkiewicz traces")
        assert (pool.tally.complete, pool.tally.bad, pool.blocked) == (one.count, bad, 0)
        if not bad:  # how a violated execution ends depends on which of its trace is taken
            assert pool.tally.outcomes == outcomes
        assert pool.share() == 1


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(
    "make", [lambda: lastzero(5, automata=True), lambda: casrot(5), lambda: inc(3), lambda: dining(4), popl, lambda: readers(4)]
)
def test_known_programs_have_one_certificate_whoever_searches_them(make: Callable[[], World], workers: int) -> None:
    """Whatever the slices, the order in which results come home, and who is killed meanwhile."""

    def automatic() -> World:
        of = make()
        return World(of.vm, automata=True)

    agree(Case(automatic), workers, *range(6))


@settings(max_examples=300)
@given(PROGRAMS, st.sampled_from(MODELS), st.sampled_from([lambda vm: [], watching]), st.integers(1, 5), st.integers(0, 99))
def test_random_programs_too(program: str, memory: str, monitors: Any, workers: int, seed: int) -> None:
    """Every kind of step, and violations, behind which the search goes on."""
    agree(Case(lambda: world(program, memory, monitors, automata=True)), workers, seed)


def test_a_reversal_leads_on_below_a_branch_that_was_taken_before_it_came() -> None:
    """P1's branch begins with y=1, past which P0's read still sleeps; that P2 may read before x=1 is found out below P0 alone.

    A pool that thinks of a branch that was taken as one that covers all meets three of the four traces.
    """
    agree(Case(lambda: world("r0=x | y=1 x=1 | r0=x", automata=True)), 2, *range(30))


def test_what_is_shared_is_little_and_forgotten() -> None:
    """What the pool keeps is what is still open: some leaves for each stack on the way, and at the end nothing."""
    team = Team(Case(lambda: world("x=1 y=1 x=2 | x=3 r0=y | y=2 r1=x | x=4", automata=True)), 2, Random(1).randint, faults=False)
    most = 0
    give = team.pool.give

    def watched() -> Any:
        nonlocal most
        most = max(most, sum(1 for _ in team.pool._preorder()))
        return give()

    team.pool.give = watched  # type: ignore[method-assign]
    pool = team.search()
    assert pool.met.count > 100
    assert most < pool.met.count
    assert [state for _, state in pool._preorder()] == [pool.root]
