"""A table of cells shared out without processes: seeds, whole cells, budgets, checkpoints; and the same verdicts as ever."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest

from racevisor.choose import Wanted
from racevisor.errors import UsageError
from racevisor.explore import Verdict, cases, explore
from racevisor.scenario import Case
from racevisor.share.checkpoint import FILE, Checkpoint, resume
from racevisor.share.protocol import Worker
from racevisor.share.search import KINDS, Sharing, make_worker, work
from racevisor.share.seeds import SeedPool
from racevisor.share.subtree_pool import SubtreePool
from racevisor.share.subtrees import SubtreeWorker
from racevisor.share.verdicts import plain, verdict_of


class Clock:
    """Every look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def packed(value: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(value))


class Office:
    """Workers that are called one after the other, in any order, and are killed now and then."""

    def __init__(self, sharing: Sharing, draw: Callable[[int, int], int], *, kills: bool = False) -> None:
        self.sharing = sharing
        self.draw = draw
        self.kills = kills
        self.workers: dict[tuple[int, int], Worker] = {}
        self.out: list[tuple[int, int, int, Any]] = []
        self.idle = list(range(sharing.workers))
        self.busiest = 0

    def step(self) -> None:
        """Everybody gets something to do, and one comes home."""
        sharing = self.sharing
        while self.idle and (given := sharing.give(self.idle[-1])) is not None:
            cell, number, piece = given
            self.out.append((self.idle.pop(), cell, number, packed(piece)))
        self.busiest = max(self.busiest, len(self.out))
        if sharing.done:
            return
        hand, cell, number, piece = self.out.pop(self.draw(0, len(self.out) - 1))
        self.idle.append(hand)
        if self.kills and self.draw(0, 9) == 0:
            for key in [key for key in self.workers if key[0] == hand]:
                self.workers.pop(key).close()
            sharing.lost(cell, number, hand)
            return
        worker = self.workers.get((hand, cell))
        if worker is None:
            worker = self.workers[hand, cell] = make_worker(sharing.cells[cell].case, sharing.wanted)
        worker.clock = Clock()  # type: ignore[attr-defined]
        sharing.take(cell, number, packed(work(worker, piece, self.draw(1, 20) / 1000)), hand)

    def run(self) -> list[Verdict]:
        while not self.sharing.done:
            self.step()
        self.close()
        return [verdict for _, verdict in self.sharing.verdicts()]

    def close(self) -> None:
        """Nobody is left, as when all were killed."""
        for worker in self.workers.values():
            worker.close()
        self.sharing.close()


def shared(wanted: list[Case], workers: int, order: int = 0, *, kills: bool = False, **options: Any) -> list[Verdict]:
    return Office(Sharing(wanted, Wanted(**options), workers), Random(order).randint, kills=kills).run()


def told(verdict: Verdict) -> tuple[Any, ...]:
    ledger = verdict.ledger
    return verdict.variant, verdict.setup, verdict.memory, verdict.found, verdict.finding, ledger.verdict, ledger.reason


# ---- tables ---------------------------------------------------------------------------------------------------------------


def test_a_table_is_the_same_whoever_searches_it() -> None:
    """Cells of the same code included: these are not searched."""
    wanted = cases("memslot_users", memories=("sc", "pso"))
    alone = [told(verdict) for verdict in explore(wanted)]
    for workers in (1, 3):
        assert [told(verdict) for verdict in shared(wanted, workers)] == alone


def test_traces_of_a_table_have_one_certificate_each_whoever_dies() -> None:
    """The certificate and the count of each cell, to the end, for 1, 2 and 4 workers of which one in ten pieces kills one."""
    wanted = cases("pfn_cache", ("before", "after"), ("first", "elsewhere"), ("tso", "pso"))
    alone = list(explore(wanted, strategy="optimal", to_the_end=True))
    met = set()
    for workers in (1, 2, 4):
        verdicts = shared(wanted, workers, kills=workers > 1, strategy="optimal", to_the_end=True)
        assert [told(verdict) for verdict in verdicts] == [told(verdict) for verdict in alone]
        assert [(v.executions, v.bad, v.outcomes) for v in verdicts] == [(v.executions, v.bad, v.outcomes) for v in alone]
        assert [bool(v.ledger.certificate) for v in verdicts] == [v.ledger.exhausted for v in verdicts]
        assert sum(v.ledger.certified == "Mazurkiewicz traces" for v in verdicts) >= 4
        met.add(tuple(v.ledger.certificate for v in verdicts))
    assert len(met) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_a_settled_search_claims_no_certificate(workers: int) -> None:
    """It has stopped where two executions were met, and which these are depends on who was first."""
    cell = cases("memslot_users", ("before",), ("marks",), ("tso",))
    (alone,) = explore(cell, strategy="optimal")
    (verdict,) = shared(cell, workers, strategy="optimal")
    assert verdict.finding == "Sometimes"
    assert told(verdict) == told(alone)
    assert not verdict.ledger.certificate
    assert workers > 1 or verdict.executions == alone.executions


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_number_of_runs_is_for_all_workers_together(workers: int) -> None:
    """Not one more, and not one less."""
    (verdict,) = shared(cases("init_sipi", ("latch",), ("plain",), ("sc",)), workers, strategy="optimal", runs=137)
    assert verdict.executions == 137
    assert (verdict.ledger.verdict, verdict.ledger.reason) == ("budget spent", "137 executions")
    assert not verdict.ledger.certificate


def test_a_budget_of_time_ends_a_search_that_would_go_on() -> None:
    """When it is over nothing more is handed out, and what is on its way home still counts."""
    sharing = Sharing(cases("init_sipi", ("latch",), ("plain",), ("sc",)), Wanted(strategy="optimal", budget=0.1), 2, Clock())
    (verdict,) = Office(sharing, Random(0).randint).run()
    assert verdict.ledger.verdict == "budget spent"
    assert verdict.ledger.by_clock
    assert verdict.ledger.remains is not None


def test_nobody_idles_at_the_end_of_a_cell() -> None:
    """Three workers on cells that are one piece each: the next cells are begun."""
    sharing = Sharing(cases("init_sipi", ("latch",), ("init_only",)), Wanted(), 3)
    office = Office(sharing, Random(0).randint)
    office.step()
    assert office.busiest == 3
    office.close()


def test_strategies_that_check_the_others_are_not_shared_out() -> None:
    """A clear word instead of a search that is wrong."""
    for strategy in ("source", "sleep", "audit"):
        with pytest.raises(UsageError, match=r"--workers goes with --strategy optimal"):
            Sharing(cases("init_sipi", ("latch",)), Wanted(strategy=strategy), 2)


class Gossip(SubtreePool):
    """Tells every worker how many results there were."""

    results = 0

    def take(self, number: int, result: Any) -> None:
        super().take(number, result)
        self.results += 1

    def news(self, since: int) -> tuple[int, Any]:
        return self.results, [since, self.results]


class Listener(SubtreeWorker):
    """Misses nothing that it was not there for."""

    heard = 0

    def hear(self, news: Any) -> None:
        since, version = news
        assert since == self.heard < version
        self.heard = version

    def work(self, piece: Any, seconds: float) -> dict[str, Any]:
        return {**super().work(piece, seconds), "heard": self.heard}


def test_every_worker_hears_the_news_once_and_a_new_one_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pool tells everybody is told by what each worker knows, and who was made anew knows nothing."""
    monkeypatch.setitem(KINDS, "optimal", (Gossip, Listener))
    (verdict,) = shared(cases("pfn_cache", ("before",), ("first",), ("tso",)), 3, kills=True, strategy="optimal", to_the_end=True)
    assert verdict.ledger.exhausted


# ---- seeds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"strategy": "random"}, {"strategy": "pct"}, {"strategy": "pct", "depth": 1}])
def test_runs_by_number_are_the_same_whoever_runs_them(options: dict[str, Any]) -> None:
    """The schedules of all runs, what they showed, and what PCT promises: k is measured in rounds, whoever is how fast."""
    wanted = cases("memslot_users", ("before",), ("marks",), ("tso",))
    found = []
    for workers in (1, 2, 4):
        (verdict,) = shared(wanted, workers, workers, kills=workers > 1, runs=1500, **options)
        assert verdict.executions == 1500
        found.append((verdict.ledger.certificate, verdict.bad, verdict.outcomes, verdict.ledger.guarantee))
    assert found[0] == found[1] == found[2]
    assert found[0][0].startswith("1500:")


def test_walks_are_those_of_a_search_that_is_not_shared_out() -> None:
    """Run 17 of a seed is the same everywhere."""
    wanted = cases("memslot_users", ("before",), ("marks",), ("tso",))
    (alone,) = explore(wanted, strategy="random", runs=300, seed=7)
    (verdict,) = shared(wanted, 3, strategy="random", runs=300, seed=7)
    assert (verdict.bad, verdict.outcomes) == (alone.bad, alone.outcomes)


def test_a_longer_run_raises_k_for_the_next_round_and_counting_begins_anew() -> None:
    """As PCT does run by run; the promise is about the runs that drew from the present k."""
    case = cases("memslot_users", ("before",), ("marks",), ("tso",))[0]
    pool = SeedPool(case, Wanted(strategy="pct", runs=5000))

    def round_of(longest: int) -> None:
        until = pool.end
        while pool.next < until:
            given = pool.give()
            assert given is not None
            number, (begin, end, k) = given
            runs = end - begin
            books = [4, k, 1, runs, runs if k else 0, 0, longest, 0, longest, 0]
            tally = [runs, runs, 0, 0, {}, None, None]
            pool.take(number, {"tally": tally, "next": end, "certificate": [runs, bytes(16)], "calls": [], "books": books})

    round_of(20)
    assert pool.pct is not None
    assert (pool.pct.k, pool.end) == (20, 1008)
    round_of(30)
    assert (pool.pct.k, pool.pct.restarts, pool.pct.counted) == (30 + (30 - 20) // 4, 1, 0)


# ---- checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"strategy": "optimal", "to_the_end": True}, {"strategy": "pct", "runs": 300}, {}])
def test_a_search_goes_on_after_everybody_was_killed(options: dict[str, Any], tmp_path: Path) -> None:
    """Again and again, with other numbers of workers: the verdicts and certificates of a search that nobody stopped."""
    wanted = cases("pfn_cache", ("before", "after"), ("first", "elsewhere"), ("sc",))
    whole = shared(wanted, 1, **options)
    random = Random(5)
    checkpoint = Checkpoint(tmp_path, Sharing(wanted, Wanted(**options), 2))
    resumed = 0
    while not checkpoint.sharing.done:
        office = Office(checkpoint.sharing, random.randint, kills=True)
        for _ in range(random.randint(1, 8)):
            office.step()
            if checkpoint.sharing.done:
                break
        checkpoint.save()
        office.close()
        checkpoint = resume(tmp_path, random.randint(1, 4))
        resumed += 1
    verdicts = [verdict for _, verdict in checkpoint.sharing.verdicts()]
    assert resumed > 1 or not options
    assert [told(verdict) for verdict in verdicts] == [told(verdict) for verdict in whole]
    assert [v.ledger.certificate for v in verdicts] == [v.ledger.certificate for v in whole]


def test_a_checkpoint_is_written_every_three_seconds_and_whole(tmp_path: Path) -> None:
    """What is asked for more often is not written, and what is written replaces what was there."""
    clock = Clock()
    checkpoint = Checkpoint(tmp_path, Sharing(cases("init_sipi", ("latch",)), Wanted(), 1), clock)
    checkpoint.save(now=False)
    assert not list(tmp_path.iterdir())
    clock.now += 3
    checkpoint.save(now=False)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_a_foreign_or_damaged_directory_is_refused(tmp_path: Path) -> None:
    """In one line that says what to do; and nothing in it is executed."""
    with pytest.raises(UsageError, match=r"cannot resume .*No such file"):
        resume(tmp_path, 1)
    checkpoint = Checkpoint(tmp_path, Sharing(cases("init_sipi", ("latch",)), Wanted(), 1))
    checkpoint.save()
    whole = (tmp_path / FILE).read_bytes()
    for damaged in (b"", b"{}", whole[:-1], whole[:40] + b"x" + whole[41:]):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(UsageError, match="is damaged, or none of racevisor's"):
            resume(tmp_path, 1)


def test_a_scenario_that_has_changed_is_refused(tmp_path: Path) -> None:
    """Half of the traces would be those of another machine."""
    file = tmp_path / "own.py"
    text = (Path(__file__).parent.parent / "scenarios" / "memslot_users.py").read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    directory = tmp_path / "search"
    Checkpoint(directory, Sharing(cases(str(file)), Wanted(), 1)).save()
    assert not resume(directory, 2).sharing.done
    file.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="has changed since"):
        resume(directory, 2)


def test_a_disk_that_is_full_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    """And leaves no half file behind."""
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(tmp_path / "file" / "below", Sharing(cases("init_sipi", ("latch",)), Wanted(), 1))
    with pytest.raises(UsageError, match="choose another place:  --dir"):
        checkpoint.save()


def test_a_verdict_is_the_same_after_a_journey() -> None:
    """With its witnesses, its estimate and what PCT promises."""
    for options in ({"strategy": "pct", "runs": 50}, {"strategy": "optimal", "runs": 20}, {}):
        (verdict,) = explore(cases("memslot_users", ("before",), ("marks",), ("tso",)), **options)  # type: ignore[arg-type]
        again = verdict_of(packed(plain(verdict)))
        assert again.to_json() == verdict.to_json()
        assert again.ledger == verdict.ledger
        assert (again.calls, again.good and again.good.schedule) == (verdict.calls, verdict.good and verdict.good.schedule)
