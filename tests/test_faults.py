"""What may die, hang or fill up, each with real processes: play goes on or ends clearly, and nothing finished is lost."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401 - brings psutil
import zmq

from cluster.conductor import Conductor
from cluster.hosts import Hosts
from cluster.live import LiveOptions, LiveRun, Round
from cluster.pulse import Pulse
from cluster.transport import LOOPBACK, SocketWire, make_secret
from racevisor.cli import main
from racevisor.errors import ClusterError, UsageError
from racevisor.scenario import Case, load

psutil = pytest.importorskip("psutil", reason="Ray's own, on the path once Ray is imported")

needs_ray = pytest.mark.usefixtures("embedded_ray")
ROOT = str(Path(__file__).resolve().parent.parent)
GCS, RAYLET = "gcs_server", "raylet"
PATIENT: Any = {"silence": 0.2, "give_up": 60.0}


def case_of(variant: str = "latch", vcpus: int = 2) -> Case:
    scenario, source = load("init_sipi")
    return Case(scenario, source, variant, "plain", "tso", vcpus)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def play(run: LiveRun, rounds: int, at: int, fault: Callable[[], None]) -> list[Round]:
    """All rounds; after `at` of them the fault happens, while the next one is played."""
    played = []
    for r in run.rounds():
        played.append(r)
        if len(played) == at:
            fault()
    assert len(played) == rounds
    numbers = [number for gone in run.aborted for number in gone.numbers]
    assert sorted([r.number for r in played] + numbers) == list(range(rounds + len(numbers))), "each number once"
    return played


def stop(monkeypatch: pytest.MonkeyPatch, run: LiveRun, name: str) -> None:
    """SIGSTOP to host `name`, which is given up as soon as it was asked whether it is there.

    All others, also its successor, have the minute of PATIENT: on a busy machine one that is well may be silent for seconds.
    """
    look, pid = Hosts._look, run.pids[name]

    def hasty(hosts: Hosts) -> tuple[int, str] | None:
        host = hosts.names.index(name)
        if hosts.pids[name] == pid and host in hosts._asked and hosts.conductor is not None:
            hosts._asked[host] = time.perf_counter() - 2 * hosts.give_up
            hosts.conductor.heard[host] = hosts._asked[host] - 1
        return look(hosts)

    monkeypatch.setattr(Hosts, "_look", hasty)
    os.kill(pid, signal.SIGSTOP)


# ---- hosts ------------------------------------------------------------------------------------------------------------------


@needs_ray
def test_two_hosts_at_once_and_a_new_one_that_dies_while_it_is_introduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a machine goes, and the next one is no better: every death is one more replacement, and no round is lost."""
    introduce, died = Hosts._introduce, list[int]()

    def dies_once(hosts: Hosts, host: int) -> Any:
        if not died and hosts._incarnations[host]:
            died.append(hosts.pids[hosts.names[host]])
            kill(died[0])
        return introduce(hosts, host)

    with LiveRun(case_of(vcpus=3), LiveOptions(rounds=9, placement="packed", hosts=3, vms=2)) as run:
        monkeypatch.setattr(Hosts, "_introduce", dies_once)
        before = dict(run.pids)
        play(run, 9, 2, lambda: [kill(pid) for pid in list(before.values())[:2]] and None)
        assert died and len({*before.values(), *run.pids.values()}) >= 5
        assert len(run.aborted) <= 3


@needs_ray
@pytest.mark.parametrize(
    ("transport", "how"), [("sockets", signal.SIGKILL), ("ray", signal.SIGKILL), ("sockets", signal.SIGSTOP)]
)
def test_a_host_that_dies_while_others_account_for_the_aborted_rounds_is_lost_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, how: int
) -> None:
    """What was sent between the two that are left adds up all the same, and what went to the lost is lost with them."""
    give_up, died = Conductor.give_up, list[int]()

    def dies(conductor: Conductor, lost: int) -> Any:
        if not died:
            died.append(run.pids["host2"])
            kill(died[0]) if how == signal.SIGKILL else stop(monkeypatch, run, "host2")
        return give_up(conductor, lost)

    monkeypatch.setattr(Conductor, "give_up", dies)
    options = LiveOptions(rounds=8, placement="packed", hosts=4, vms=3, transport=transport, log_dir=tmp_path, **PATIENT)
    with LiveRun(case_of(vcpus=16), options) as run:
        play(run, 8, 2, lambda: kill(run.pids["host1"]))
        (gone,) = run.aborted
        assert gone.replaced and gone.host == "host1, host2" and gone.account is not None
        assert gone.account.gone == 2
        for amounts in (gone.account.parts, gone.account.messages):
            assert amounts.sent == amounts.delivered + amounts.in_flight + amounts.lost and amounts.sent > 0
    told = [line for line in map(json.loads, (tmp_path / "driver.jsonl").read_text().splitlines()) if line["event"] == "aborted"]
    assert [(line["host"], line["account"]) for line in told] == [("host1", str(gone.account)), ("host2", str(gone.account))]
    assert told[0]["parts"] == gone.account.parts._asdict() and told[0]["rounds"] == list(gone.numbers)


@needs_ray
def test_a_host_that_dies_before_the_first_round_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while the hosts start costs a second, and is no end."""
    introduce, killed = Hosts._introduce, list[int]()

    def dies_once(hosts: Hosts, host: int) -> Any:
        if host == 1 and not killed:
            killed.append(hosts.pids[hosts.names[host]])
            kill(killed[0])
        return introduce(hosts, host)

    monkeypatch.setattr(Hosts, "_introduce", dies_once)
    with LiveRun(case_of(), LiveOptions(rounds=3, placement="packed", hosts=2)) as run:
        assert killed and killed[0] not in run.pids.values()
        assert [r.number for r in run.rounds()] == [0, 1, 2] and not run.aborted


@needs_ray
@pytest.mark.parametrize("transport", ["sockets", "ray"])
def test_a_host_that_hangs_is_given_up_killed_and_replaced(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    """SIGSTOP: it lives, as far as Ray can tell, and says nothing."""
    options = LiveOptions(rounds=6, placement="packed", hosts=2, transport=transport, **PATIENT)
    with LiveRun(case_of(), options) as run:
        victim = run.pids["host1"]
        play(run, 6, 2, lambda: stop(monkeypatch, run, "host1"))
        (gone,) = run.aborted
        assert gone.host == "host1" and "it has not answered" in gone.why
        assert ended([victim])


@needs_ray
def test_a_host_that_is_slow_only_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP, and SIGCONT when it is asked whether it is there: the round is finished, by the same process."""
    look, stopped, asked = Hosts._look, list[int](), list[int]()

    def wakes(hosts: Hosts) -> tuple[int, str] | None:
        if stopped and not asked and hosts.names.index("host1") in hosts._asked:
            asked.append(stopped[0])
            os.kill(stopped[0], signal.SIGCONT)
        return look(hosts)

    def fault() -> None:
        stopped.append(run.pids["host1"])
        os.kill(stopped[0], signal.SIGSTOP)

    monkeypatch.setattr(Hosts, "_look", wakes)
    with LiveRun(case_of(), LiveOptions(rounds=6, placement="packed", hosts=2, **PATIENT)) as run:
        play(run, 6, 2, fault)
        assert asked and not run.aborted and run.pids["host1"] == stopped[0]


@needs_ray
def test_a_driver_that_is_busy_does_not_take_its_hosts_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A big round may take the World a minute; in which nobody listened to the hosts."""
    clock, late = time.perf_counter, [0.0]
    with LiveRun(case_of(), LiveOptions(rounds=6, placement="packed", hosts=2)) as run:
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])
        for _ in run.rounds():
            late[0] += 100.0
        assert not run.aborted


@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process can be set on Linux only")
@pytest.mark.parametrize("transport", ["sockets", "ray"])
def test_a_disk_that_is_full_on_a_host_is_told_and_no_line_is_half_written(tmp_path: Path, transport: str) -> None:
    """In the middle of a run with --log-steps; a limit on the size of files stands for the disk."""
    import resource

    options = LiveOptions(rounds=50, placement="packed", hosts=2, transport=transport, log_dir=tmp_path, debug_steps=True)
    file = tmp_path / "host1.jsonl"
    done = []

    def plays() -> None:
        with LiveRun(case_of(), options) as run:
            for r in run.rounds():
                done.append(r.number)
                if len(done) == 2:
                    resource.prlimit(run.pids["host1"], resource.RLIMIT_FSIZE, (file.stat().st_size + 3000,) * 2)

    with pytest.raises(UsageError, match=r"cannot write the log .*host1.jsonl: File too large\n  choose another place"):
        plays()
    assert len(done) >= 2
    assert [line["run"] for line in map(json.loads, (tmp_path / "driver.jsonl").read_text().splitlines())]


# ---- strangers --------------------------------------------------------------------------------------------------------------


def test_who_does_not_have_the_secret_is_not_received_and_who_has_it_is_named_when_it_talks_garbage() -> None:
    """The socket of a host is open to all on its machine; what it lets through is of its run."""
    from cluster.link import Link
    from cluster.messages import FrameError, encode

    secret = make_secret()
    wire = SocketWire(secret)
    assert wire.address.rpartition(":")[0].strip("[]").endswith(LOOPBACK)
    with zmq.Context() as context:
        strangers = []
        for their in (None, make_secret()):
            stranger = context.socket(zmq.PUSH)
            stranger.linger = 0
            if their is not None:
                stranger.curve_serverkey = their.public
                stranger.curve_publickey, stranger.curve_secretkey = their.public, their.private
            stranger.connect(wire.address)
            stranger.send(b"garbage")
            strangers.append(stranger)
        friend = SocketWire(secret)
        friend.connect(0, wire.address)
        frames = [b"garbage", *(encode("run", 3, 0, seq, []) for seq in range(1, 200)), encode("run", 3, 0, 9, [(0,)])]
        for frame in frames:
            friend.send(0, frame)
        got: list[bytes] = []
        while len(got) < len(frames):
            got += wire.receive(5.0)
        assert got == frames, "in order, and nothing of the strangers"
        link = Link("run", 0, wire.send)
        with pytest.raises(FrameError, match="unknown sender is not"):
            link.hear(frames[0])
        with pytest.raises(FrameError, match="host 3"):
            link.hear(frames[-1])
        friend.close()
        for stranger in strangers:
            stranger.close()
    wire.close()


# ---- the whole command, with a Ray of its own -------------------------------------------------------------------------------


class Stress:
    """`racevisor stress` in a process group of its own; ended, with all that it started, when the test is over."""

    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        self.directory = directory
        self.log = directory / "driver.jsonl"
        self.temp = tempfile.mkdtemp(prefix="r", dir="/tmp")  # paths of sockets are short
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "racevisor.cli", "stress", *arguments, "--dir", str(directory), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**own, "PYTHONPATH": ROOT, "TMPDIR": self.temp, **environment},
            start_new_session=True,
        )
        self.seen: dict[int, Any] = {}

    def lines(self) -> list[dict[str, Any]]:
        """What the log has."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def until(self, holds: Callable[[], Any]) -> Any:
        """Wait for something that is seen from outside."""
        while not (found := holds()):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
                raise AssertionError(self.process.communicate())
        self.family()
        return found

    def family(self) -> list[Any]:
        """All processes that it has started."""
        with suppress(psutil.NoSuchProcess):
            self.seen.update({one.pid: one for one in psutil.Process(self.process.pid).children(recursive=True)})
        return list(self.seen.values())

    def pids(self, name: str) -> list[int]:
        """Its processes of that name that live."""
        found = []
        for one in self.family():
            with suppress(psutil.Error):
                if name in one.name() and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one.pid)
        return found

    def end(self) -> tuple[int, dict[str, Any], str]:
        """(exit status, the JSON, what was said on standard error), when it ends; nothing is left of it."""
        out, said = self.process.communicate(timeout=120)
        assert ended(list(self.seen)), "no process is left"
        names = {path.name for path in self.directory.iterdir()} if self.directory.exists() else set()
        assert not {name for name in names if name.startswith(".")} and not list(Path(self.temp).glob("racevisor-*")), (
            "no temporary file is left"
        )
        return self.process.returncode, json.loads(out), said


def ended(pids: list[int]) -> bool:
    """Are they all gone?  They may take a moment."""
    _, rest = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    return not [one for one in rest if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Stress]]:
    started: list[Stress] = []

    def start(*arguments: str, **environment: str) -> Stress:
        started.append(Stress(tmp_path / "stress", *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.family()
        one.process.kill()
        one.process.communicate()
        shutil.rmtree(one.temp, ignore_errors=True)
        for child in one.seen.values():
            with suppress(psutil.Error):
                child.kill()


ENDLESS = ("init_sipi", "--variant", "latch", "--vcpus", "3", "--rounds", "100000", "--vms", "2", "--hosts", "2")


def test_stress_goes_on_after_a_kill_and_tells_of_it_when_it_is_interrupted(begin: Callable[..., Stress]) -> None:
    """End to end: SIGKILL to a host, the next host, the next; then Ctrl-C while yet another one is replaced: status 130."""
    stress = begin(*ENDLESS)
    for times in range(1, 4):
        stress.until(lambda: stress.lines() and stress.lines()[-1]["event"] == "round")
        kill(stress.pids("ray::Seat")[-1])
        stress.until(lambda times=times: sum(line["event"] == "aborted" for line in stress.lines()) >= times)
    os.killpg(stress.process.pid, signal.SIGINT)
    status, found, _ = stress.end()
    lines = stress.lines()
    aborted = [number for line in lines if line["event"] == "aborted" for number in line["rounds"]]
    rounds = [line["round"] for line in lines if line["event"] == "round"]
    assert (status, found["interrupted"]) == (130, True)
    assert (found["rounds"], found["aborted"]) == (len(rounds), len(aborted)) and len(aborted) >= 3
    assert not set(rounds) & set(aborted)
    assert [number for loss in found["losses"] for number in loss["rounds"]] == aborted
    for loss in found["losses"]:
        for amounts in (loss.get("parts"), loss.get("messages")):  # there is none where Ctrl-C came before it was known
            assert amounts is None or amounts["sent"] == amounts["delivered"] + amounts["in_flight"] + amounts["lost"]


@pytest.mark.parametrize("moment", [GCS, "ray::Seat"])
def test_ctrl_c_while_things_start_leaves_nothing(begin: Callable[..., Stress], moment: str) -> None:
    """While Ray starts, and while the hosts do."""
    stress = begin(*ENDLESS)
    stress.until(lambda: stress.pids(moment))
    os.killpg(stress.process.pid, signal.SIGINT)
    status, found, said = stress.end()
    assert (status, found["rounds"], found["interrupted"]) == (130, found["rounds"], True)
    assert "Traceback" not in said


def test_an_embedded_ray_that_loses_its_gcs_ends_clearly(begin: Callable[..., Stress]) -> None:
    """Ray would go on for a minute, and then end the driver without a word: all results would be lost."""
    stress = begin(*ENDLESS)
    stress.until(lambda: len(stress.lines()) >= 5)
    kill(stress.pids(GCS)[0])
    status, found, said = stress.end()
    assert status == 4 and "the Ray cluster is gone: its " in said and "Traceback" not in said
    assert found["rounds"] == sum(line["event"] == "round" for line in stress.lines())


class Head:
    """A cluster like one that `ray start` makes, of this test alone: its address, its processes, its users' environment."""

    def __init__(self) -> None:
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.directory = tempfile.mkdtemp(prefix="rv-", dir="/tmp")  # paths of sockets are short
        ports = ["--port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port", "--metrics-export-port"]
        free = [socket.create_server((LOOPBACK, 0)) for _ in ports]
        self.port = free[0].getsockname()[1]
        numbered = [f"{name}={one.getsockname()[1]}" for name, one in zip(ports, free, strict=True)]
        for one in free:
            one.close()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={self.directory}"]
        plain = ["--include-dashboard=false", "--num-cpus=2", "--object-store-memory=80000000", "--disable-usage-stats"]
        local = ["--min-worker-port=0", "--max-worker-port=0", f"--node-ip-address={LOOPBACK}"]
        self.process = subprocess.Popen(
            [*command, *plain, *numbered, *local],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        self.address = f"{LOOPBACK}:{self.port}"
        self.members: dict[int, Any] = {}

    def family(self) -> list[Any]:
        """All its processes."""
        with suppress(psutil.NoSuchProcess):
            self.members.update({one.pid: one for one in psutil.Process(self.process.pid).children(recursive=True)})
        return list(self.members.values())

    def wait(self) -> None:
        """Until it is up."""
        up = False
        while not up:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
                raise AssertionError("ray start has ended")
            with suppress(OSError):
                socket.create_connection((LOOPBACK, self.port)).close()
                up = any(one.name() == RAYLET for one in self.family())

    def close(self) -> None:
        """End all of it, by its pids."""
        self.family()
        self.process.kill()
        self.process.wait()
        for one in self.members.values():
            with suppress(psutil.Error):
                one.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture
def head() -> Iterator[Head]:
    started = Head()
    yield started
    started.close()


def test_a_cluster_that_is_stopped_ends_it_clearly_and_another_one_resumes_it(
    begin: Callable[..., Stress], head: Head, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `ray stop` does: SIGTERM to the raylet and to the GCS.  The driver ends by itself, its hosts too."""
    head.wait()
    stress = begin(*ENDLESS, "--address", head.address, **head.environment)
    stress.until(lambda: len(stress.lines()) >= 5)
    hosts = [one.pid for one in head.family() if "ray::Seat" in one.name()]
    for one in head.family():
        if one.name() in (GCS, RAYLET):
            one.terminate()
    status, found, said = stress.end()
    finished = sum(line["event"] == "round" for line in stress.lines())
    assert status == 4 and "Traceback" not in said and found["rounds"] == finished
    assert len(hosts) == 2 and ended(hosts)
    request.getfixturevalue("embedded_ray")
    with pytest.raises(SystemExit) as ending:
        main(["stress", "--resume", str(stress.directory), "--rounds", str(finished + 3), "--json"])
    assert (ending.value.code, json.loads(capsys.readouterr().out)["rounds"]) == (0, finished + 3)


def test_a_pulse_is_patient_with_somebody_elses_cluster() -> None:
    """A GCS with a store of its own may be started again within seconds; what we started ourselves is not."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        there = Pulse([("GCS", LOOPBACK, port)], patience=0.0)
        there.check()
    patient, hasty = Pulse([("GCS", LOOPBACK, port)], patience=60.0), Pulse([("GCS", LOOPBACK, port)], patience=0.0)
    patient.check()
    with pytest.raises(ClusterError, match=rf"its GCS at {LOOPBACK}:{port} does not answer"):
        hasty.check()
    with pytest.raises(ClusterError, match="what was finished is kept"):
        hasty.call(lambda: signal.pause())
    with pytest.raises(KeyError):
        patient.call(lambda: {}["nothing"])
    assert patient.call(lambda: 7) == 7
