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
from test_share_search import Office, shared

from cluster.search import Crew
from racevisor.choose import Wanted
from racevisor.cli import main
from racevisor.errors import ClusterError
from racevisor.explore import cases, explore_case
from racevisor.scenario import Case
from racevisor.share.checkpoint import FILE, Checkpoint, resume
from racevisor.share.search import Sharing

psutil = pytest.importorskip("psutil", reason="Ray's own, on the path once Ray is imported")

needs_ray = pytest.mark.usefixtures("embedded_ray")
ROOT = Path(__file__).resolve().parent.parent
OPTIMAL = Wanted(strategy="optimal", to_the_end=True)


def cell() -> Case:
    """A few hundred traces."""
    return cases("pfn_cache", ("before",), ("first",), ("tso",))[0]


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
    """As many as a search that is not shared out meets."""
    alone = explore_case(cell(), strategy="optimal", to_the_end=True)
    found = [searched(cell(), workers)[0] for workers in (1, 2, 4)]
    assert found[0] == found[1] == found[2]
    assert found[0].startswith(f"{alone.executions}:")


@needs_ray
def test_workers_that_are_killed_at_twenty_moments_lose_nothing() -> None:
    """SIGKILL, after so many pieces as a die says; a piece takes a few milliseconds, so there are twenty moments."""
    whole, _ = searched(cell(), 1)
    random = Random(20)
    kills = []
    at = 0

    def fault(crew: Crew) -> None:
        nonlocal at
        if crew.pieces >= at and crew.pids and len(kills) < 20:
            worker = random.choice(sorted(crew.pids))
            kills.append(crew.pids.pop(worker))
            os.kill(kills[-1], signal.SIGKILL)
            at = crew.pieces + random.randint(1, 2)

    certificate, crew = searched(cell(), 3, (0.002, 0.001), fault)
    assert certificate == whole
    assert len(kills) == 20
    assert crew.deaths >= 15  # some were killed when they had nothing to do, at the very end


@needs_ray
def test_a_worker_that_hangs_is_given_up_and_its_piece_is_handed_out_again() -> None:
    """Ray does not notice that: the process is there, and its connections are."""
    whole, _ = searched(cell(), 1)
    stopped: list[Any] = []

    def fault(crew: Crew) -> None:
        if crew.pieces >= 2 and crew.pids and not stopped:
            stopped.append(psutil.Process(crew.pids[min(crew.pids)]))
            stopped[0].suspend()

    try:
        certificate, crew = searched(cell(), 2, (0.002, 0.001), fault, patience=(0.2, 1.0))
        assert certificate == whole
        assert crew.deaths >= 1
        stopped[0].wait(30)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            stopped[0].kill()


def test_driver_and_workers_that_are_killed_go_on_where_they_were(tmp_path: Path) -> None:
    """SIGKILL of the driver, which takes its Ray along; whoever resumes ends with the certificate of a whole search."""
    directory = tmp_path / "search"
    sharing = Sharing([cell()], OPTIMAL, 2)
    office = Office(sharing, Random(3).randint)
    for _ in range(4):
        office.step()  # so that there is something to lose
    Checkpoint(directory, sharing).save()
    office.close()
    command = [sys.executable, "-m", "racevisor.cli", "explore", "--resume", str(directory), "--workers", "2", "--json"]
    options: dict[str, Any] = {
        "cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL,
    }  # fmt: skip
    before = (directory / FILE).stat().st_mtime_ns
    with subprocess.Popen(command, **options) as driver:
        while driver.poll() is None and (directory / FILE).stat().st_mtime_ns == before:
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(0.01)
        driver.kill()
    resumed = subprocess.run([*command, "--trace-dir", str(tmp_path)], check=False, **options)
    (claim,) = json.loads(resumed.stdout)["claims"]
    (whole,) = shared([cell()], 1, strategy="optimal", to_the_end=True)
    assert claim["ledger"]["certificate"] == whole.ledger.certificate
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
