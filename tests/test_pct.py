"""PCT hits a bug of depth d with at least the probability that it promises, and promises nothing that it does not keep.

Sampling alone cannot tell a rate a little below the bound from bad luck.  So the bound is checked twice: by taking every order of
priorities and every tuple of change points once, and by seeded runs.
"""

from collections.abc import Callable, Iterator
from itertools import permutations, product
from math import factorial, isclose, sqrt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import PROGRAMS, End, by_brute_force, end_state, search, world

from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, cmpxchg
from actors.thread import Thread
from actors.vm import Vm
from racevisor.errors import UsageError
from racevisor.memory import MODELS
from racevisor.strategies import pct
from racevisor.strategies.pct import CALIBRATION, Guarantee, Pct, runs_needed
from racevisor.world import Channel, World

Bad = Callable[[End], bool]


def padded(steps: int, *threads: str) -> str:
    """The same threads with steps on both sides that touch nothing shared, `steps` in all."""
    wanted = [steps // len(threads)] * len(threads)
    out = []
    for i, (words, length) in enumerate(zip(threads, wanted, strict=True)):
        pad = ["r9=" + "zw"[i % 2]] * (length - len(words.split()))
        out.append(" ".join([*pad[: len(pad) // 2], words, *pad[len(pad) // 2 :]]))
    return " | ".join(out)


ORDER = "x=1 | r0=x"
ATOMICITY = padded(20, "r0=x r1=x", "x=1")
ABBA = padded(28, "x==0>1 y==0>1 y:=0 x:=0", "y==0>1 x==0>1 x:=0 y:=0")
TWO_SWITCHES = padded(12, "x=1 x=2", "r0=x r1=x")
LATE_STORES = "x=1 r0=y | y=1 r1=x"


def deadlock(end: End) -> bool:
    return end.blocked == ("P0", "P1")


def torn(end: End) -> bool:
    return end["r0"] != end["r1"]


def four_in_a_row(end: End) -> bool:
    return (end["r0"], end["r1"]) == (1, 2)


def both_missed(end: End) -> bool:
    return end["r0"] == end["r1"] == 0


def stale(end: End) -> bool:
    return end["r0"] == 0


def hits(of: World, strategy: Pct, bad: Bad) -> list[bool]:
    """Per run: did it show the bug?"""
    found = []
    again = True
    while again:
        execution = of.run(strategy, len(found))
        found.append(execution.status == "terminal" and bad(end_state(of)))
        again = strategy.end(execution)
    of.close()
    return found


class Scripted:
    """Stands for random.Random: the change points first, then the priority of each channel as it turns up."""

    script: Iterator[tuple[tuple[int, ...], tuple[int, ...]]]

    def __init__(self, _seed: str) -> None:
        points, order = next(self.script)
        self.points, self.order = iter(points), iter(order)

    def randrange(self, _k: int) -> int:
        return next(self.points)

    def random(self) -> float:
        return next(self.order) / 100


def exact_rate(monkeypatch: pytest.MonkeyPatch, of: World, n: int, k: int, d: int, bad: Bad) -> float:
    """The probability that one run hits: of all orders of n priorities with all tuples of d-1 change points, how many do."""
    space = list(product(product(range(k), repeat=d - 1), permutations(range(n))))
    monkeypatch.setattr(Scripted, "script", iter(space), raising=False)
    monkeypatch.setattr(pct, "Random", Scripted)
    found = hits(of, Pct(0, len(space), d, steps=k), bad)
    assert len(found) == factorial(n) * k ** (d - 1)
    return sum(found) / len(found)


BUGS = pytest.mark.parametrize(
    ("program", "memory", "n", "k", "d", "bad"),
    [
        pytest.param(ORDER, "sc", 2, 2, 1, stale, id="order violation"),
        pytest.param(ATOMICITY, "sc", 2, 20, 2, torn, id="atomicity violation"),
        pytest.param(ABBA, "sc", 2, 28, 2, deadlock, id="two locks in opposite order"),
        pytest.param(TWO_SWITCHES, "sc", 2, 12, 3, four_in_a_row, id="two switches"),
        pytest.param(LATE_STORES, "tso", 4, 6, 2, both_missed, id="two late stores"),
    ],
)


@BUGS
def test_a_run_hits_with_at_least_the_probability_of_the_paper(
    monkeypatch: pytest.MonkeyPatch, program: str, memory: str, n: int, k: int, d: int, bad: Bad
) -> None:
    """1/(n k^(d-1)), without sampling; and the numbers that the strategy reports for it are those of the program."""
    of = world(program, memory)
    assert exact_rate(monkeypatch, of, n, k, d, bad) >= 1 / (n * k ** (d - 1))


@BUGS
def test_seeded_runs_hit_as_often_and_measure_n_and_k(program: str, memory: str, n: int, k: int, d: int, bad: Bad) -> None:
    """The draws of a real generator are as even as the theorem wants them, within four standard deviations."""
    strategy = Pct(0, 3000, d)
    found = hits(world(program, memory), strategy, bad)
    said = strategy.guarantee()
    assert said is not None
    assert (said.n, said.k, said.d, said.choices, said.restarts, said.cut) == (n, k, d, 1, 0, 0)
    assert said.counted == 3000 - (CALIBRATION if d > 1 else 0)
    assert isclose(said.hit, 1 / (n * k ** (d - 1)))
    counted = found[-said.counted :]
    wanted = said.counted * said.hit
    assert sum(counted) >= wanted - 4 * sqrt(wanted)


@pytest.mark.parametrize(
    ("program", "d", "bad", "runs", "limit"),
    [
        pytest.param(ORDER, 1, stale, 20, 0.5**20, id="order violation"),
        pytest.param(ATOMICITY, 2, torn, 300, 1e-3, id="atomicity violation"),
        pytest.param(ABBA, 2, deadlock, 400, 1e-3, id="two locks in opposite order"),
    ],
)
def test_as_many_runs_as_promised_find_the_bug(program: str, d: int, bad: Bad, runs: int, limit: float) -> None:
    """The figures are the literature's: 20, 300 and 400 runs, each time enough with more than 99.9 %."""
    steps = sum(len(words.split()) for words in program.split(" | "))
    for seed in range(8):
        strategy = Pct(seed, runs, d, steps=steps)
        assert any(hits(world(program), strategy, bad))
        said = strategy.guarantee()
        assert said is not None and said.counted == runs
        assert said.miss <= limit
        assert said.runs_needed(limit) <= runs


def test_a_bug_of_depth_three_is_out_of_reach_of_depth_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps in turn need two switches back and forth; priorities and one change give only one."""
    assert exact_rate(monkeypatch, world(TWO_SWITCHES), 2, 12, 2, four_in_a_row) == 0
    assert exact_rate(monkeypatch, world(TWO_SWITCHES), 2, 12, 3, four_in_a_row) >= 1 / (2 * 12**2)


def test_what_only_store_buffers_allow_is_not_seen_without_them() -> None:
    """The strategy adds no behaviour of its own."""
    assert not any(hits(world(LATE_STORES), Pct(0, 500, 3), both_missed))
    assert any(hits(world(LATE_STORES, "tso"), Pct(0, 500, 2), both_missed))


def test_a_bug_behind_a_choice_is_promised_as_often_as_its_answers_come() -> None:
    """Two choices of two answers make the promise four times weaker, and it is kept: here it is met exactly."""

    def behind(end: End) -> bool:
        return stale(end) and end.seen[0] == (("choose", 1), ("choose", 1))

    strategy = Pct(0, 4000, 1)
    found = hits(world("choose choose x=1 | r0=x"), strategy, behind)
    said = strategy.guarantee()
    assert said is not None
    assert (said.n, said.d, said.choices, said.odds) == (2, 1, 4, 8)
    assert abs(sum(found) - 500) < 4 * sqrt(500)


def test_answers_do_not_follow_priorities() -> None:
    """All four pairs of answers come with either order of the threads, about equally often."""
    of = world("choose r0=x | choose x=1")
    strategy = Pct(3, 1600, 1)
    count: dict[Any, int] = {}
    for run in range(1600):
        strategy.end(of.run(strategy, run))
        end = end_state(of)
        count[end.seen] = count.get(end.seen, 0) + 1
    of.close()
    assert len(count) == 8
    assert all(abs(times - 200) < 4 * sqrt(200) for times in count.values())


@settings(max_examples=60)
@given(PROGRAMS, st.sampled_from(MODELS), st.integers(1, 3))
def test_every_end_state_is_one_of_brute_force(program: str, memory: str, depth: int) -> None:
    """Locks, waits, IPIs, choices, store buffers: what moves is always something that can."""
    found = search(world(program, memory), Pct(1, 40, depth))
    assert found.ends <= by_brute_force(world(program, memory)).ends


@settings(max_examples=60)
@given(PROGRAMS, st.sampled_from(MODELS), st.integers(1, 4))
def test_the_channel_that_moves_is_the_one_with_the_highest_priority(program: str, memory: str, depth: int) -> None:
    """The heap is kept up by what joins it; here all movable channels are looked at, at every step."""

    class Checked(Pct):
        def pick(self, movable: list[Channel]) -> Channel:
            chosen = super().pick(movable)
            assert chosen in movable
            assert self.rank(chosen) == min(map(self.rank, movable))
            return chosen

        def rank(self, channel: Channel) -> float:
            return self._ranks[channel if channel not in channel.thread.answers else channel.thread.channel]

    search(world(program, memory), Checked(2, 30, depth, steps=6))


def test_a_run_is_the_same_without_those_before_it() -> None:
    """A bug in run 900 is looked at again without 900 runs; all that has to be known is the k it was drawn from."""
    program = "x=1 lock y=1 unlock choose | r0=x lock r1=y unlock ipi | y=2 x==1"
    strategy = Pct("s", 40, 3)
    of = world(program, "pso")
    schedules = []
    for run in range(40):
        execution = of.run(strategy, run)
        schedules.append([step.channel for step in execution.steps])
        strategy.end(execution)
    of.close()
    assert strategy.ks[:CALIBRATION] == [0] * CALIBRATION
    assert len({tuple(one) for one in schedules}) > 10
    for run in (CALIBRATION, 20, 39):
        alone = world(program, "pso")
        execution = alone.run(Pct("s", 40, 3, steps=strategy.ks[run]), run)
        assert [step.channel for step in execution.steps] == schedules[run]
        alone.close()


def test_a_run_longer_than_its_k_starts_the_count_again() -> None:
    """Runs drawn from fewer steps could not put off a late step, so they promise nothing about one."""
    strategy = Pct(0, 10, 2, steps=3)
    of = world("x=1 x=2 | r0=x r1=x r2=x")
    strategy.end(of.run(strategy, 0))
    said = strategy.guarantee()
    assert said is not None
    assert (said.k, said.runs, said.counted, said.restarts, said.miss) == (5, 1, 0, 1, 1.0)
    for run in range(1, 10):
        strategy.end(of.run(strategy, run))
    of.close()
    said = strategy.guarantee()
    assert said is not None and strategy.ks == [3, *[5] * 9]
    assert (said.k, said.counted, said.restarts) == (5, 9, 1)
    assert isclose(said.miss, 2 * (1 - said.hit) ** 9)


def spinning(limit: int) -> World:
    """P0 takes a lock with a loop; P1 holds it for a while.  If P1 is preempted by P0, P0 never lets it go on."""
    vm = Vm()
    memory: Any = vm.guest_memory(held=0)

    async def spin(_me: Any) -> None:
        while await cmpxchg(memory.held, 0, 1):
            pass
        await WRITE_ONCE(memory.held, 0)

    Thread(vm, "P0", spin)
    Thread(vm, "P1", spin)
    return World(vm, max_steps=limit)


def test_a_run_that_the_step_bound_cuts_neither_counts_nor_stretches_k() -> None:
    """Its length is the bound's, not the program's; and what it would have come to was not judged."""
    of = spinning(60)
    strategy = Pct(0, 100, 2)
    statuses = []
    for run in range(100):
        execution = of.run(strategy, run)
        statuses.append(execution.status)
        strategy.end(execution)
    of.close()
    cut = statuses.count("bounded")
    said = strategy.guarantee()
    assert said is not None and 10 < cut < 90
    assert said.k == said.longest < 60
    assert said.cut == cut
    assert said.counted == 100 - cut - statuses[:CALIBRATION].count("terminal")
    assert f"({cut} met the step bound and do not count)" in said.words()


def test_where_every_run_is_cut_nothing_is_promised() -> None:
    """Not even that the runs were many."""

    async def spin(me: Any) -> None:
        while not await READ_ONCE(me.vm.memory.x):
            pass

    vm = Vm()
    vm.guest_memory(x=0)
    Thread(vm, "P0", spin)
    strategy = Pct(0, 20, 2)
    search(World(vm, max_steps=30), strategy)
    said = strategy.guarantee()
    assert said is not None
    assert (said.cut, said.counted, said.miss) == (20, 0, 1.0)


def test_idle_threads_are_not_looked_at_again() -> None:
    """With 300 threads that wait, a step asks only for those that join or leave, however many could move or cannot."""

    class Counting(Pct):
        entered = 0

        def enter(self, channel: Channel) -> None:
            self.entered += 1
            super().enter(channel)

        def pick(self, movable: list[Channel]) -> Channel:
            return super().pick(None)  # type: ignore[arg-type]  # the list itself is never walked

    vm = Vm()
    memory: Any = vm.guest_memory(x=0, never=0)

    async def work(_me: Any) -> None:
        for i in range(200):
            await WRITE_ONCE(memory.x, i)

    async def wait(_me: Any) -> None:
        await await_eq(memory.never, 1)

    Thread(vm, "P0", work)
    Thread(vm, "P1", work)
    for i in range(300):
        Thread(vm, f"idle{i}", wait)
    of = World(vm)
    strategy = Counting(0, 1, 2, steps=400)
    assert len(of.run(strategy).steps) == 400
    assert strategy.entered == 2
    of.close()


def test_the_guarantee_is_one_sentence() -> None:
    """What the command line prints: the promise, and what was left out of it."""
    said = Guarantee(2, 10, 2, 1, 308, 300, 0, 10, 0, 1 / 20, (19 / 20) ** 300)
    assert said.words() == (
        "of a depth-2 bug among 2 channels and 10 steps, a run finds at least 1 in 20; "
        "that all 300 counted runs missed it has probability at most 2.1e-7 (8 more measured k)"
    )


@pytest.mark.parametrize(
    ("n", "k", "d", "choices", "miss"), [(2, 20, 2, 1, 1e-3), (2, 1, 1, 1, 0.5), (5, 218, 3, 4, 0.05), (1, 1, 1, 1, 0.1)]
)
def test_runs_needed_are_enough_and_one_less_is_not(n: int, k: int, d: int, choices: int, miss: float) -> None:
    """The answer to `how long shall it run`."""
    hit = 1 / (n * k ** (d - 1) * choices)
    runs = runs_needed(n, k, d, miss, choices=choices)
    assert (1 - hit) ** runs <= miss < (1 - hit) ** (runs - 1)


def test_promises_too_small_for_a_float_are_still_right() -> None:
    """With many steps and depth 1 - hit is 1 in floating point, and a limit must not come out as 0."""
    runs = runs_needed(10, 5000, 6, 0.5)
    assert isclose(runs, 0.6931471805599453 * 10 * 5000**5, rel_tol=1e-9)
    assert runs_needed(2, 10**200, 3, 0.5) > 10**400
    strategy = Pct(0, 1000, 6, steps=10**5)
    hits(world(ORDER), strategy, stale)
    said = strategy.guarantee()
    assert said is not None
    assert 0 < 1 - said.miss < 1e-15 or said.miss == 1.0
    assert said.hit == 1 / (2 * 10**25)
    assert "at least 5e-26 of 1" in said.words()
    often = Pct(0, 3000, 1)
    hits(world(ORDER), often, stale)
    limit = often.guarantee()
    assert limit is not None and 0 < limit.miss < 1e-300


def test_before_the_first_run_there_is_no_guarantee() -> None:
    """Nothing was measured."""
    assert Pct(0, 10).guarantee() is None


@pytest.mark.parametrize("arguments", [{"depth": 0}, {"depth": 2, "steps": 0}])
def test_a_depth_or_a_length_below_one_is_refused(arguments: dict[str, int]) -> None:
    """Before anything runs, with what to type instead."""
    with pytest.raises(UsageError):
        Pct(0, 10, **arguments)
    with pytest.raises(UsageError):
        runs_needed(2, 10, 2, 0.0)
