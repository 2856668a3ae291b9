"""The stateful search shared out: whoever searches what, in whatever order it comes home, the same states and ends are met."""

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from programs import PROGRAMS, Case, by_brute_force, sparring, world
from test_stateful_search import Both, spinning

from actors.ops import Code
from racevisor.choose import Wanted
from racevisor.errors import NotDeterministic, Unhashable, UsageError
from racevisor.explore import cases
from racevisor.memory import MODELS
from racevisor.share.digest import encode
from racevisor.share.states import SharedStates, StatesPool, StatesWorker
from racevisor.share.states_pool import halve
from racevisor.strategies import states
from racevisor.strategies.states import StatefulSearch

ROOT = Path(__file__).resolve().parent.parent
WANTED = Wanted(strategy="states", to_the_end=True)


def wire(plain: Any) -> Any:
    """What is left of something that was sent."""
    return msgpack.unpackb(msgpack.packb(plain))


class Ticks:
    """A clock that goes on by one whenever it is asked: seconds are executions."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Team:
    """Workers of one process: who works how long, who vanishes, and in which order results come home is drawn from a seed."""

    def __init__(self, case: Any, workers: int, seed: int, slices: int = 20, lose: float = 0.0, save: float = 0.0) -> None:
        self.case = case
        self.random = Random(seed)
        self.slices, self.lose, self.save = slices, lose, save
        self.workers = [StatesWorker(case, WANTED, Ticks()) for _ in range(workers)]
        self.heard = [0] * workers
        self.results: dict[int, tuple[int, Any]] = {}  # worker -> (number, result) that is not home yet
        self.pool = StatesPool(case, WANTED)

    def run(self) -> StatesPool:
        while not self.pool.done:
            who = self.random.randrange(len(self.workers))
            if who in self.results:
                self.come_home(who)
            else:
                self.set_out(who)
            if self.random.random() < self.save:
                self.pool = StatesPool.load(self.case, WANTED, wire(self.pool.save()))
                self.heard = [0] * len(self.workers)  # results that are not home yet are of an earlier life
        for worker in self.workers:
            worker.close()
        return self.pool

    def set_out(self, who: int) -> None:
        given_ = self.pool.give()
        if given_ is not None:
            self.heard[who], news = self.pool.news(self.heard[who])
            self.workers[who].hear(wire(news))
            result = self.workers[who].work(wire(given_[1]), self.random.randint(1, self.slices))
            self.results[who] = given_[0], wire(result)

    def come_home(self, who: int) -> None:
        number, result = self.results.pop(who)
        if self.random.random() < self.lose:
            self.pool.lost(number)
            if self.random.random() < 0.5:  # a new process takes the place; what the old one did is never seen
                self.workers[who].close()
                self.workers[who], self.heard[who] = StatesWorker(self.case, WANTED, Ticks()), 0
                return
        self.pool.take(number, result)


def shown(pool: StatesPool) -> Any:
    """All that does not depend on who did what."""
    assert pool.exhausted
    certificate = pool.certificate()
    assert certificate is not None
    return str(certificate[0]), pool.states, dict(pool.outcomes()), sorted(pool.failed | pool.learned)


def alone(case: Any) -> tuple[StatesPool, Any]:
    """One worker that is never interrupted."""
    pool = Team(case, 1, 0, slices=1_000_000_000).run()
    return pool, shown(pool)


# ---- the same, however it was shared -----------------------------------------------------------------------------------------

TEAMS = st.tuples(st.integers(1, 4), st.integers(0, 1_000), st.sampled_from([1, 3, 20]))


@settings(max_examples=80)
@for_all(PROGRAMS, st.sampled_from(MODELS), TEAMS)
def test_a_shared_search_meets_the_end_states_of_brute_force(program: str, memory: str, team: tuple[int, int, int]) -> None:
    """Slices of few executions, results in any order, workers that vanish, checkpoints in between."""
    workers, seed, slices = team
    case = Case(lambda: world(program, memory, automata=True))
    found = shown(Team(case, workers, seed, slices, lose=0.2, save=0.1).run())
    assert found == alone(case)[1]
    assert set(found[2]) == {str(end) for end in by_brute_force(world(program, memory)).ends}


def sequential(case: Any) -> tuple[StatefulSearch, int, int]:
    """(strategy, complete executions, bad ones) of the search that is not shared."""
    strategy, of = StatefulSearch(), case.world(automata=True)
    complete = bad = run = 0
    again = True
    while again:
        execution = of.run(strategy, run)
        complete += execution.status in ("terminal", "violated")
        bad += execution.bad
        again = strategy.end(execution)
        run += 1
    of.close()
    assert strategy.exhausted
    return strategy, complete, bad


#: cells that are searched in a moment, with and without bad executions, and some in which beliefs prove wrong
CELLS = [
    ("init_sipi", "I-M12", "plain", "sc"),
    ("init_sipi", "today", "init_only", "tso"),
    ("init_sipi", "latch", "level_irq", "pso"),
    ("mmu_notifier", "after", "munmap", "tso"),
    ("mmu_notifier", "after", "aging", "sc"),
    ("mmu_notifier", "before", "twice", "pso"),
    ("synic_message", "S-M14", "full", "sc"),
    ("synic_message", "S-M7", "crash", "pso"),
]


@pytest.mark.parametrize(("scenario", "variant", "setup", "memory"), CELLS)
def test_cells_of_the_table_are_found_the_same_by_one_by_two_and_by_eight_workers(
    scenario: str, variant: str, setup: str, memory: str
) -> None:
    (case,) = cases(scenario, [variant], [setup], [memory])
    strategy, complete, bad = sequential(case)
    pool, expected = alone(case)
    assert (pool.states, pool.tally.complete, pool.tally.bad) == (strategy.states, complete, bad)
    for workers, seed in ((2, 1), (8, 2)):
        pool = Team(case, workers, seed, slices=600, lose=0.1, save=0.02).run()
        assert shown(pool) == expected
        assert (pool.tally.bad > 0, pool.tally.good is not None) == (bad > 0, complete > bad)


def test_checks_that_fail_on_the_way_are_the_same_for_all() -> None:
    """A violation ends an execution, so in which states it does depends on the order; which checks fail does not."""
    case = Case(lambda: world("x=1 x=0 | y=1 y=0 | w=1", "tso", lambda vm: [Both(vm.memory.x, vm.memory.y)], automata=True))  # type: ignore[union-attr]
    pool, expected = alone(case)
    assert pool.failed | pool.learned == {"both"}
    for seed in range(5):
        assert shown(Team(case, 3, seed, slices=2, lose=0.2, save=0.1).run()) == expected


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize(("length", "before"), [(1, 0), (7, 300)])
def test_a_busy_loop_is_found_by_whoever_comes_round(length: int, before: int, memory: str) -> None:
    """Where it closes is learned, and has to be known to all before they go on."""
    case = Case(lambda: spinning(length, before, memory))
    _, expected = alone(case)
    assert expected[3] == ["livelock"]
    assert shown(Team(case, 3, 5, slices=2, lose=0.2, save=0.05).run()) == expected


# ---- what may be believed ----------------------------------------------------------------------------------------------------


def test_a_belief_that_proves_wrong_begins_the_search_again_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "LEARN", 0)
    case = Case(lambda: sparring(8))
    _, expected = alone(case)
    restarts = 0
    for seed in range(8):
        pool = Team(case, 3, seed, slices=1, lose=0.2, save=0.05).run()
        restarts += pool.restarts
        assert shown(pool) == expected
    assert restarts


def begun(case: Any, slices: int = 3) -> tuple[StatesPool, StatesWorker]:
    """A pool whose first piece is home, and the worker that had it."""
    pool, worker = StatesPool(case, WANTED), StatesWorker(case, WANTED, Ticks())
    number, piece = given(pool)
    assert pool.give() is None, "the first piece is out alone"
    worker.hear(pool.news(0)[1])
    pool.take(number, worker.work(piece, slices))
    return pool, worker


def given(pool: StatesPool) -> tuple[int, Any]:
    found = pool.give()
    assert found is not None
    return found


def program() -> Any:
    return Case(lambda: world("x=1 r0=y z+=1 x=2 | y=1 r1=x z+=2 y=2 | z+=1 r2=x x+=1", "tso", automata=True))


def test_a_worker_does_not_rely_on_a_slice_of_its_own_that_was_not_committed() -> None:
    """What was left below its states is in nobody's stack."""
    pool, worker = begun(program())
    version, news = pool.news(0)
    number, piece = given(pool)
    worker.hear(news)
    first = worker.work(piece, 50)
    assert first["states"]
    pool.lost(number)
    pool.take(number, first)
    assert pool.news(version) == (version, pool.news(version)[1])
    assert worker.work(piece, 50)["states"] == first["states"]


def test_of_two_sleep_sets_met_at_a_time_one_is_kept_and_not_what_is_in_both() -> None:
    """Nobody walked what may begin in either of the two heads, for each of the workers had one of them asleep."""
    pool, worker = begun(program())
    (one, piece), (two, other) = given(pool), given(pool)
    worker.hear(pool.news(0)[1])
    key = b"0123456789abcdef"
    results = [worker.work(at, 0) for at in (piece, other)]
    for result, number, names in zip(results, (one, two), (["P0", "P1"], ["P1", "P2"]), strict=True):
        result["states"] = [[names, key]]
        pool.take(number, result)
    assert [names for names, blob in pool.news(0)[1]["states"] if key in blob] == [["P0", "P1"]]


@pytest.mark.parametrize(("first", "second"), [("P0", "P1"), ("P0", ""), ("", "P1")])
def test_slices_that_believed_different_things_of_a_cell_do_not_both_count(first: str, second: str) -> None:
    """Each took the steps on it alone, or one did: what the other would do in between is in nobody's stack."""
    pool, worker = begun(program())
    worker.hear(pool.news(0)[1])
    pieces = [given(pool), given(pool)]
    for (number, piece), owner in zip(pieces, (first, second), strict=True):
        result = worker.work(piece, 0)
        result["owners"].append([99, owner])
        pool.take(number, result)
    assert (pool.restarts, pool.states, pool.owners[99]) == (1, 0, "")
    assert given(pool)[1]["stack"] == [[], [], []]


def test_a_result_of_an_epoch_that_is_over_only_teaches() -> None:
    pool, worker = begun(program())
    number, piece = given(pool)
    worker.hear(pool.news(0)[1])
    result = worker.work(piece, 5)
    share, owner = next((share, owner) for share, owner in result["owners"] if owner == "")
    pool._restart()
    pool.owners[share], before = "P9", pool.states
    pool.take(number, result)
    assert (pool.states, pool.owners[share], owner) == (before, "", "")
    assert not pool.done


def test_a_worker_that_hears_no_news_errs_in_nothing() -> None:
    """A piece says all that has to be believed; the news only spare work."""
    case = program()
    _, expected = alone(case)
    pool, worker = begun(case)
    deaf = StatesWorker(case, WANTED, Ticks())
    n = 0
    while not pool.done:
        number, piece = given(pool)
        n += 1
        if n % 3:
            worker.hear(pool.news(0)[1])
        pool.take(number, (worker if n % 3 else deaf).work(piece, 50))
    assert n > 6
    assert shown(pool) == expected
    deaf.close()
    worker.close()


def test_a_result_says_which_news_its_worker_knows_all_of() -> None:
    """A worker whose process was made anew has missed what the one before it has heard."""
    pool, worker = begun(program())
    number, piece = given(pool)
    version, news = pool.news(0)
    worker.hear(news)
    result = worker.work(piece, 5)
    assert result["heard"] == version == 1
    pool.take(number, result)
    _, piece = given(pool)
    later, news = pool.news(version)
    anew = StatesWorker(program(), WANTED, Ticks())
    for one, heard in ((worker, later), (anew, 0)):
        one.hear(news)
        assert one.work(piece, 0)["heard"] == heard
        one.close()


# ---- pieces ------------------------------------------------------------------------------------------------------------------


def test_a_stack_that_is_cut_in_two_has_each_head_once_and_the_later_ones_sleep_on_the_earlier() -> None:
    """What is tried at the deeper end counts as tried first: otherwise both of two independent heads would be tried twice."""
    stack = [["a", "b", "c", "d"], [0, 1, 2, 3, 0], [[0, [0], [1, 2, 3]], [3, [], [2]], [5, [], [0, 1]]]]
    rest = halve(stack)
    assert rest == [["a", "b", "c", "d"], [], [[0, [0], [1, 2, 3]]]]
    assert stack[2] == [[3, [], [2]], [5, [], [0, 1]]]
    assert halve(rest) == [["a", "b", "c", "d"], [], [[0, [0, 2, 3], [1]]]]
    assert rest[2] == [[0, [0], [2, 3]]]
    assert halve([["a"], [0], [[1, [], [0]]]]) is None


def test_sleep_sets_are_the_same_after_a_stack_has_travelled() -> None:
    """What a sleeping head touches is not sent: it is asked for again where the stack is unpacked."""
    case = program()
    of = case.world()
    search = SharedStates(of)
    search.learns = True
    asleep = run = 0
    while search.end(of.run(search, run)):
        run += 1
        before = [(frame.snapshot.depth, frame.sleep, frame.todo) for frame in search.frames if frame.todo]
        if before:
            search.set_out(wire(search.stack()))
            assert [(frame.snapshot.depth, frame.sleep, frame.todo) for frame in search.frames] == before
            asleep += sum(len(sleep) for _, sleep, _ in before)
    assert asleep > 100
    of.close()


def test_a_piece_of_another_machine_is_refused_with_what_can_move_there() -> None:
    of = program().world()
    search = SharedStates(of)
    with pytest.raises(NotDeterministic, match=r"wants P7 after 1 steps, but only P0.* can move\n  do all workers"):
        search.set_out([["P0", "P7"], [0, 1], [[2, [], [0]]]])
    of.close()


def test_as_many_executions_as_were_asked_for_are_run_and_no_more() -> None:
    case = program()
    pool = StatesPool(case, Wanted(strategy="states", to_the_end=True, runs=90))
    worker = StatesWorker(case, WANTED, Ticks())
    while not pool.done:
        number, piece = given(pool)
        worker.hear(pool.news(0)[1])
        pool.take(number, worker.work(piece, 1_000))
    assert pool.tally.runs == 90
    assert not pool.exhausted
    assert pool.certificate() is None
    worker.close()


def test_a_search_up_to_permutation_is_not_shared() -> None:
    with pytest.raises(UsageError, match="--symmetry and --workers do not go together"):
        StatesPool(program(), Wanted(strategy="states", symmetry=True))


# ---- digests -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"), [(1, True), (0, False), (1.0, 1), ((1, "x"), (True, "x")), (frozenset("ab"), frozenset("ba")), (Code.LOAD, 1)]
)
def test_values_that_are_one_value_to_a_dict_are_one_to_a_digest(a: Any, b: Any) -> None:
    assert a == b
    assert encode(a) == encode(b)


def test_values_that_differ_have_different_digests() -> None:
    values = [
        None,
        0,
        1,
        -1,
        10,
        "",
        "1",
        "i1;",
        b"1",
        (),
        (1,),
        (1, 2),
        ((1,), 2),
        (1, (2,)),
        ("ab",),
        ("a", "b"),
        0.5,
        frozenset([1]),
    ]
    assert len({encode(value) for value in values}) == len(values)


def test_a_value_that_means_nothing_elsewhere_is_refused() -> None:
    with pytest.raises(Unhashable, match=r"a object, by which another process.*\n  keep ints"):
        encode((1, object()))


_CERTIFICATE = """
import sys
sys.path.insert(0, "tests")
from test_share_states import alone, cases
for cell in (("init_sipi", "today", "init_only", "pso"), ("mmu_notifier", "after", "munmap", "tso")):
    (case,) = cases(cell[0], [cell[1]], [cell[2]], [cell[3]])
    print(alone(case)[1])
"""


def test_a_certificate_does_not_depend_on_the_hash_seed() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", _CERTIFICATE],
            env={"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "4711")
    }
    assert len(said) == 1
    assert len(said.pop().splitlines()) == 2
