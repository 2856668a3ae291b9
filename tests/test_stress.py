"""`racevisor stress`: counts that outlive the driver, in a directory that does not grow without end."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray  # noqa: F401 - brings psutil

import racevisor.events
from racevisor.book import Book, seconds_of
from racevisor.cli import main
from racevisor.commands.stress import stress
from racevisor.errors import ClusterError, UsageError
from racevisor.events import EventLog
from racevisor.rounds import OTHERS, OUTCOMES, Tally
from racevisor.scenario import Case, load

LIVE = {"seed": 0, "noise": 0.1, "address": None, "placement": "auto", "hosts": None, "vms": 1, "transport": "sockets"}
WHAT = {"variant": "latch", "setup": "plain", "memory": "tso", "vcpus": None, "duration": None, "full": False, "json_": True}


class FakeLive:
    """A cluster without Ray: plays good rounds, and writes the log that a live run writes."""

    run = "0123456789ab"
    plan = "packed: 6 actors"
    alive = 2

    def __init__(self, options: Any, breaks: Callable[[int], BaseException | None]) -> None:
        self.options = options
        self.breaks = breaks
        self.aborted: list[Any] = []
        self.log = EventLog(options.log_dir, "driver", bounded=options.bounded_log)

    def __enter__(self) -> "FakeLive":
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def rounds(self) -> Iterator[Any]:
        for n in range(self.options.rounds):
            number, finished = self.options.first + n, self.options.finished + n + 1
            error = self.breaks(number)
            if error is not None:
                raise error
            self.log.info(
                "round", round=number, count=finished, outcome=f"end {number % 2}", violations=[], messages=5, crossed=2
            )
            self.log.flush()
            yield SimpleNamespace(
                number=number, outcome=f"end {number % 2}", violations=[], status="terminal", messages=5, crossed=2
            )


def play(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    breaks: Callable[[int], BaseException | None] = lambda number: None,
    **options: Any,
) -> tuple[int, dict[str, Any]]:
    asked = {**WHAT, **LIVE, "name": "init_sipi", "resume": None, "directory": directory, "rounds": None, **options}
    if asked["resume"] is not None:
        asked["name"] = None
    status = stress(SimpleNamespace, lambda case, options: FakeLive(options, breaks), **asked)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, found


def test_what_was_interrupted_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C, or a cluster that fails: the counts continue, no number is used twice, and the end is the end."""
    directory = tmp_path / "stress"
    status, found = play(directory, capsys, lambda n: KeyboardInterrupt() if n == 7 else None, rounds=20)
    assert (status, found["rounds"], found["interrupted"]) == (130, 7, True)
    status, found = play(directory, capsys, lambda n: ClusterError("gone") if n == 12 else None, resume=directory)
    assert (status, found["rounds"], found["error"]) == (4, 12, "gone")
    status, found = play(directory, capsys, resume=directory)
    assert (status, found["rounds"], found["outcomes"]) == (0, 20, {"end 0": 10, "end 1": 10})
    with pytest.raises(UsageError, match=r"is done: 20 rounds\n  more of it:  --duration or --rounds"):
        play(directory, capsys, resume=directory)
    status, found = play(directory, capsys, resume=directory, rounds=25)
    assert (found["rounds"], found["messages"], found["crossed"]) == (25, 125, 50)


def test_rounds_that_only_the_log_knows_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A driver that is killed has written the line of each finished round, and the counts perhaps a second before."""
    directory = tmp_path / "stress"
    play(directory, capsys, lambda n: KeyboardInterrupt() if n == 10 else None, rounds=30)
    file = directory / "stress.json"
    state = json.loads(file.read_text())
    state["counts"].update(rounds=4, messages=20, crossed=8)
    state["outcomes"], state["next"] = {"end 0": 2, "end 1": 2}, 4
    file.write_text(json.dumps(state))
    with (directory / "driver.jsonl").open("a") as log:
        log.write('{"event": "round", "count": 11, "rou')  # the kill came in the middle of a line
    _, found = play(directory, capsys, resume=directory)
    assert (found["rounds"], found["messages"], found["outcomes"]) == (30, 150, {"end 0": 15, "end 1": 15})


def test_aborted_rounds_are_counted_by_themselves(tmp_path: Path) -> None:
    """They are no outcomes, and their numbers are not used again."""
    scenario, source = load("init_sipi")
    tally = Tally(Case(scenario, source, "latch", "plain", "tso"), 0, tmp_path, tmp_path)
    book = Book(tmp_path, tally, {})
    with (tmp_path / "driver.jsonl").open("w") as log:
        log.write('{"event": "aborted", "rounds": [3, 4], "host": "host1", "why": "killed"}\n')
    book.load({**book.state(1.0, False), "next": 3})
    assert (book.aborted, book.next, tally.rounds) == (2, 5, 0)


def test_a_directory_is_not_used_for_two_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts of two machines do not add up."""
    directory = tmp_path / "stress"
    play(directory, capsys, rounds=3)
    with pytest.raises(UsageError, match=r"holds a stress already\n  go on with it:  racevisor stress --resume"):
        play(directory, capsys, rounds=3)
    file = directory / "stress.json"
    good = file.read_text()
    for text, why in (
        ("", "it is not one of racevisor's"),
        ('{"format": "racevisor-stress", "version": 99}', "of another version"),
        (good.replace('"what"', '"that"'), "is damaged"),
        (good.replace('"sha256": "', '"sha256": "0'), "has changed since"),
        (good.replace('"counts"', '"accounts"'), "is damaged"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=why):
            play(directory, capsys, resume=directory, rounds=9)
    with pytest.raises(UsageError, match="No such file"):
        play(directory, capsys, resume=tmp_path / "nothing")
    with pytest.raises(UsageError, match="what shall be stressed"):
        play(directory, capsys, name=None, rounds=3)


def test_a_full_disk_ends_it_clearly_and_results_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log cannot grow any more: what was found is printed, nothing half written stays."""
    directory = tmp_path / "stress"
    directory.mkdir()
    (directory / "driver.jsonl").symlink_to("/dev/full")
    status, found = play(directory, capsys, rounds=9)
    assert status == 2 and "cannot write the log" in found["error"] and "No space left" in found["error"]
    assert found["rounds"] == 0
    assert sorted(path.name for path in directory.iterdir()) == ["driver.jsonl", "stress.json"]


def test_a_bounded_log_drops_its_oldest_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A week of rounds must not fill the disk."""
    monkeypatch.setattr(racevisor.events, "FILE_BYTES", 2_000)
    monkeypatch.setattr(racevisor.events, "OLDER", 2)
    log = EventLog(tmp_path, "driver", bounded=True)
    for n in range(200):
        log.info("round", number=n)
        log.flush()
    log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["driver.jsonl", "driver.jsonl.1", "driver.jsonl.2"]
    lines = [json.loads(line) for name in reversed(names) for line in (tmp_path / name).read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(200 - len(lines), 200)) and len(lines) < 100


def test_outcomes_without_number_are_counted_together(tmp_path: Path) -> None:
    """Hundreds of vCPUs may end in as many ways as there are rounds."""
    scenario, source = load("init_sipi")
    tally = Tally(Case(scenario, source, "latch", "plain", "tso"), 0, tmp_path, tmp_path)
    for n in range(OUTCOMES + 50):
        tally.count(f"end {n}", False, False, 0, 0)
    assert len(tally.outcomes) == OUTCOMES + 1 and tally.outcomes[OTHERS] == 50 and tally.rounds == OUTCOMES + 50


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2 h", 7200), ("1d", 86400)])
def test_durations_are_said_as_people_do(text: str, seconds: float) -> None:
    """60s is what the help says, and 10m what one types."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0", "-1s", "1 week", "1h30m", "nan"])
def test_what_is_no_duration_is_told(text: str) -> None:
    """With what would be one."""
    with pytest.raises(UsageError, match="no duration\n  like this:  --duration 90s"):
        seconds_of(text)


KILLED = """
import sys
from racevisor.cli import main
asked = "stress init_sipi --variant latch --vcpus 2 --rounds 100000 --vms 2 --dir".split()
sys.exit(main([*asked, sys.argv[1]]))
"""


def test_a_driver_that_is_killed_loses_no_finished_round_and_leaves_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """SIGKILL, on a Ray of its own, which ends too: the log has every finished round, and --resume counts on, on another Ray."""
    psutil = pytest.importorskip("psutil", reason="Ray's own, on the path once Ray is imported")
    directory = tmp_path / "stress"
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, "PYTHONPATH": root}
    log = directory / "driver.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(directory)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        while not log.exists() or log.read_text().count("\n") < 20:
            with suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"it has ended: {process.wait(0.02)}")
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, left = psutil.wait_procs(family, timeout=30)
    assert family and not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    finished = max(line["count"] for line in lines if line["event"] == "round")
    request.getfixturevalue("embedded_ray")
    with pytest.raises(SystemExit) as ended:
        main(["stress", "--resume", str(directory), "--rounds", str(finished + 5), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (ended.value.code, found["rounds"], found["bad"]) == (0, finished + 5, 0)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    counts = [line["count"] for line in lines if line["event"] == "round"]
    assert counts == list(range(1, finished + 6))
    assert -process.returncode == signal.SIGKILL
