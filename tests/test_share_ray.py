"""Searches shared out over real processes on Ray: who is killed costs nothing but time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import ray
from test_share_search import shared

from cluster.search import Crew
from racevisor.choose import Wanted
from racevisor.cli import main
from racevisor.errors import ClusterError
from racevisor.explore import cases, explore_case
from racevisor.scenario import Case
from racevisor.share.checkpoint import Checkpoint, resume
from racevisor.share.search import Sharing

psutil = pytest.importorskip("psutil", reason="Ray's own, on the path once Ray is imported")

needs_ray = pytest.mark.usefixtures("embedded_ray")
ROOT = Path(__file__).resolve().parent.parent
OPTIMAL = Wanted(strategy="optimal", to_the_end=True)
KILLS = 20


def cell() -> Case:
    """A few hundred traces."""
    return cases("pfn_cache", ("before",), ("first",), ("tso",))[0]


def whole() -> str:
    """The certificate of that cell."""
    (verdict,) = shared([cell()], 1, strategy="optimal", to_the_end=True)
    return str(verdict.ledger.certificate)


def searched(
    case: Case,
    workers: int,
    slices: tuple[float, float] = (0.01, 0.005),
    on_look: Callable[[Crew], None] | None = None,
    **options: Any,
) -> tuple[str, Crew]:
    sharing = Sharing([case], OPTIMAL, workers)
    with Crew(sharing, slices=slices, on_look=on_look, **options) as crew:
        crew.run()
    ((_, verdict),) = sharing.verdicts()
    assert verdict.ledger.exhausted
    return verdict.ledger.certificate, crew


@needs_ray
def test_one_two_and_four_workers_certify_the_same_traces() -> None:
    """Those that workers without processes meet, and as many as a search that is not shared out."""
    alone = explore_case(cell(), strategy="optimal", to_the_end=True)
    certificate = whole()
    assert certificate.startswith(f"{alone.executions}:")
    assert [searched(cell(), workers)[0] for workers in (1, 2, 4)] == [certificate] * 3


@needs_ray
def test_workers_that_are_killed_at_twenty_moments_lose_nothing() -> None:
    """SIGKILL, after so many pieces as a die says; a piece takes a few milliseconds, so there are twenty moments."""
    random = Random(20)
    kills = []
    at = 0

    def fault(crew: Crew) -> None:
        nonlocal at
        if crew.pieces >= at and crew.pids and len(kills) < KILLS:
            worker = random.choice(sorted(crew.pids))
            kills.append(crew.pids.pop(worker))
            os.kill(kills[-1], signal.SIGKILL)
            at = crew.pieces + random.randint(1, 2)

    certificate, crew = searched(cell(), 3, (0.002, 0.001), fault)
    assert certificate == whole()
    assert len(kills) == KILLS
    assert crew.deaths >= KILLS - 3  # some were killed when they had nothing to do, at the very end


@needs_ray
def test_a_worker_that_hangs_is_given_up_and_its_piece_is_handed_out_again() -> None:
    """Ray does not notice that: the process is there, and its connections are."""
    stopped: list[Any] = []

    def fault(crew: Crew) -> None:
        if crew.pieces >= 2 and crew.pids and not stopped:
            stopped.append(psutil.Process(crew.pids[min(crew.pids)]))
            stopped[0].suspend()

    try:
        certificate, crew = searched(cell(), 2, (0.002, 0.001), fault, patience=(0.2, 1.0))
        assert certificate == whole()
        assert crew.deaths >= 1
        stopped[0].wait(30)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            stopped[0].kill()


#: A driver that searches what it finds in a directory, and stops with pieces handed out, having said who its workers are.
DRIVER = """
import sys
from pathlib import Path
from cluster.search import Crew
from racevisor.share.checkpoint import resume

def look(crew):
    if crew.pieces >= 3:
        kept.save()
        print(*crew.pids.values(), flush=True)
        sys.stdin.read()

kept = resume(Path(sys.argv[1]), 2)
with Crew(kept.sharing, slices=(0.002, 0.001), on_look=look) as crew:
    crew.run()
"""


def test_driver_and_workers_that_are_killed_go_on_where_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """SIGKILL of a driver, which takes its Ray along; whoever resumes, on another Ray, ends with the whole certificate."""
    directory = tmp_path / "search"
    begun = Sharing([cell()], OPTIMAL, 2)
    Checkpoint(directory, begun).save()
    begun.close()
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(directory)],
        env={**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in driver.stdout.readline().split()]
        driver.kill()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert workers and not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not resume(directory, 1).sharing.done
    request.getfixturevalue("embedded_ray")
    with pytest.raises(SystemExit):
        main(["explore", "--resume", str(directory), "--workers", "2", "--json", "--trace-dir", str(tmp_path)])
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    assert claim["ledger"]["certificate"] == whole()
    assert resume(directory, 1).sharing.done


@needs_ray
def test_workers_that_die_again_and_again_end_the_search_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six in a row without a result are no accident."""
    sharing = Sharing([cell()], OPTIMAL, 1)
    hire = Crew._hire

    def stillborn(crew: Crew) -> Any:
        hand = hire(crew)
        ray.kill(hand)
        return hand

    monkeypatch.setattr(Crew, "_hire", stillborn)
    with Crew(sharing) as crew, pytest.raises(ClusterError, match="workers died 6 times in a row"):
        crew.run()
    sharing.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume", "nowhere"], "cannot resume nowhere: nowhere/search.msgpack: No such file"),
        (["init_sipi", "--resume", "nowhere"], "nowhere knows what is searched there"),
        (["init_sipi", "--workers", "2", "--jobs", "2"], "--jobs is for a search without --workers"),
        (["init_sipi", "--workers", "2", "--strategy", "source"], "--workers goes with --strategy optimal"),
        ([], "explore what?"),
    ],
)
def test_what_cannot_be_shared_out_or_resumed_is_said_in_a_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any Ray is started."""
    with pytest.raises(SystemExit) as ended:
        main(["explore", *arguments])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
