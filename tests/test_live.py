"""Live rounds on Ray, each held against the World; what happens when something dies or does not answer."""

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
import ray

from cluster import session
from cluster.live import LiveOptions, LiveRun, Round
from cluster.session import Session
from racevisor.errors import ClusterError, NotDeterministic, UsageError
from racevisor.scenario import Case, Source, from_source, load
from racevisor.strategies.replay import Replay

needs_ray = pytest.mark.usefixtures("embedded_ray")


def case_of(variant: str = "before", setup: str = "plain", memory: str = "tso") -> Case:
    scenario, source = load("init_sipi")
    return Case(scenario, source, variant, setup, memory)


def play(case: Case, rounds: int, **options: object) -> list[Round]:
    with LiveRun(case, LiveOptions(rounds=rounds, **options)) as run:  # type: ignore[arg-type]
        return list(run.rounds())


@needs_ray
@pytest.mark.parametrize("memory", ["sc", "tso", "pso"])
@pytest.mark.parametrize("setup", ["plain", "irq"])
@pytest.mark.parametrize("variant", ["before", "latch"])
def test_every_outcome_seen_on_ray_is_one_the_world_can_reach(variant: str, setup: str, memory: str) -> None:
    """The law of parity: each round gives its steps, and the World takes the same ones to the same end."""
    case = case_of(variant, setup, memory)
    rounds = play(case, 4)
    assert [r.number for r in rounds] == [0, 1, 2, 3]
    for r in rounds:
        assert r.status == ("violated" if any(v.step is not None for v in r.violations) else "terminal")
        assert variant == "before" or not r.bad
        world = case.world()
        replay = Replay(r.schedule[: first_bad(r)])
        again = world.run(replay)
        replay.end(again)
        assert again.status == r.status
        world.close()


@needs_ray
@pytest.mark.parametrize(
    ("placement", "hosts", "transport", "vms"),
    [("packed", 2, "sockets", 3), ("packed", 1, "sockets", 1), ("packed", 2, "ray", 2), ("dedicated", None, "ray", 1)],
)
def test_placement_and_transport_do_not_change_what_the_machine_may_do(
    placement: str, hosts: int | None, transport: str, vms: int
) -> None:
    """The fix holds wherever its actors are, under the freest memory model; each round is held against the World."""
    rounds = play(case_of("latch", "plain", "pso"), 6, placement=placement, hosts=hosts, transport=transport, vms=vms)
    assert sorted(r.number for r in rounds) == [*range(6)]
    assert not any(r.bad for r in rounds)
    assert {r.status for r in rounds} == {"terminal"}
    assert all((r.crossed == r.messages) == (placement == "dedicated") and (r.crossed > 0) == (hosts != 1) for r in rounds)


def first_bad(r: Round) -> int:
    """A search stops at the first broken check, a live machine runs on."""
    return min((v.step + 1 for v in r.violations if v.step is not None), default=len(r.schedule))


STUCK = """
from actors.ops import await_eq
from racevisor import Scenario, Thread, Variant, Violation

class Stuck(Scenario):
    variants = {"only": Variant("P0 waits for what nobody does")}

    def build(self, vm, setup):
        memory = vm.guest_memory(x=0)

        async def waits(me):
            await await_eq(memory.x, 1)
            me.done = True

        Thread(vm, "P0", waits, done=False)

    def stuck(self, vm):
        return [] if vm.actors[1].done else [Violation("stuck", "P0 waits for x == 1")]

    def outcome(self, vm):
        return "done" if vm.actors[1].done else "stuck"
"""

LIVELOCK = """
from actors.ops import READ_ONCE
from racevisor import Scenario, Thread, Variant

class Livelock(Scenario):
    variants = {"only": Variant("P0 spins for ever")}
    max_steps = 25

    def build(self, vm, setup):
        memory = vm.guest_memory(x=0)

        async def spins(me):
            while not await READ_ONCE(memory.x):
                pass

        Thread(vm, "P0", spins)
"""

BROKEN = """
from actors.ops import READ_ONCE
from racevisor import Scenario, Thread, Variant

class Broken(Scenario):
    variants = {"only": Variant("P0 raises")}

    def build(self, vm, setup):
        memory = vm.guest_memory(x=0)

        async def breaks(me):
            await READ_ONCE(memory.x)
            raise KeyError("gone")

        Thread(vm, "P0", breaks)
"""


def own_case(text: str, memory: str = "tso") -> Case:
    source = Source("/nowhere/own.py", text)
    return Case(from_source(source), source, "only", "default", memory)


@needs_ray
def test_a_stuck_machine_is_a_result_and_not_a_hang() -> None:
    """And a user's own scenario travels as text: no host could import it from /nowhere."""
    rounds = play(own_case(STUCK), 2)
    assert [r.outcome for r in rounds] == ["stuck", "stuck"]
    assert [v.text for r in rounds for v in r.violations] == ["P0 waits for x == 1"] * 2
    assert [r.messages for r in rounds] == [1, 1]
    assert [r.waiting for r in rounds] == [("P0: await_eq(memory.x, 1)",)] * 2, "who waits for what"


@needs_ray
def test_a_round_whose_steps_were_not_kept_claims_nothing() -> None:
    """It is there to measure what keeping them costs: played and counted, and neither good nor bad."""
    rounds = play(own_case(STUCK), 2, recording=False)
    assert [(r.status, r.outcome, r.bad, r.schedule, r.messages) for r in rounds] == [("unjudged", "", False, [], 1)] * 2


@needs_ray
def test_a_livelock_ends_bounded() -> None:
    """A bounded round claims nothing: no outcome, no violation."""
    (only,) = play(own_case(LIVELOCK), 1, noise=None)
    assert (only.status, only.outcome, only.violations, len(only.schedule)) == ("bounded", "bounded", [], 25)


@needs_ray
def test_an_error_in_a_scenario_names_round_actor_and_line() -> None:
    """It happened on another machine: what is not in this message is not seen."""
    with pytest.raises(
        UsageError, match=r"live round 0: P0 raised KeyError in breaks, line 13: 'gone'\n  in own only/default/tso"
    ):
        play(own_case(BROKEN), 1)


@needs_ray
@pytest.mark.parametrize(("placement", "transport"), [("dedicated", "sockets"), ("packed", "sockets"), ("packed", "ray")])
def test_a_host_that_is_killed_is_replaced_and_its_round_is_no_outcome(tmp_path: Path, placement: str, transport: str) -> None:
    """Finished rounds stay, the broken one counts as aborted and as nothing else, and all that were asked for are played."""
    options = LiveOptions(
        rounds=8, placement=placement, transport=transport, log_dir=tmp_path, vms=2 if placement == "packed" else 1
    )
    with LiveRun(case_of(), options) as run:
        played = []
        for r in run.rounds():
            played.append(r)
            if len(played) == 2:
                victim, pid = next(reversed(run.pids.items()))
                os.kill(pid, signal.SIGKILL)
    (gone,) = run.aborted
    assert gone.host == victim and gone.numbers and gone.replaced
    assert gone.account is not None and gone.account.gone == 1
    assert len(played) == 8
    assert not {r.number for r in played} & set(gone.numbers)
    assert {r.number for r in played} | set(gone.numbers) == set(range(8 + len(gone.numbers)))
    logged = [json.loads(line) for line in (tmp_path / "driver.jsonl").read_text().splitlines()]
    assert [line["rounds"] for line in logged if line["event"] == "aborted"] == [list(gone.numbers)]


@needs_ray
def test_a_round_that_the_world_does_not_repeat_is_saved(tmp_path: Path) -> None:
    """Exit status 3: either the protocol or the World is wrong, and the steps are what one needs to find out which."""

    def play_in_another_world() -> None:
        with LiveRun(own_case(STUCK), LiveOptions(rounds=1, log_dir=tmp_path)) as run:
            assert run.world is not None
            run.world.vm.cells[0].init = 1
            list(run.rounds())

    with pytest.raises(NotDeterministic, match=r"(?s)in the World P0 can still move.* its steps are in .*parity-") as caught:
        play_in_another_world()
    assert caught.value.exit_status == 3
    (saved,) = tmp_path.glob("parity-*.json")
    assert json.loads(saved.read_text())["case"] == "own only/default/tso"


@needs_ray
def test_hosts_do_not_switch_to_a_machine_with_other_actors() -> None:
    """A host is one actor: it has no place for another's cells."""
    with (
        LiveRun(own_case(STUCK), LiveOptions()) as run,
        pytest.raises(UsageError, match=r"has the actors pcpu0, .* of memory, P0"),
    ):
        run.switch(case_of())


@needs_ray
def test_logs_of_all_hosts_merge_into_the_rounds(tmp_path: Path) -> None:
    """(clock, host) is the order; every step of the schedule is in exactly one file, tracepoints have the kernel's names."""
    with LiveRun(case_of("latch"), LiveOptions(rounds=2, log_dir=tmp_path, debug_steps=True)) as run:
        rounds = list(run.rounds())
        names = run.names
    lines = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in (*names, "driver")
    }
    for r in rounds:
        steps = [
            (line["clock"], host, line["channel"])
            for host, name in enumerate(names)
            for line in lines[name]
            if line["event"] == "step" and line["round"] == r.number
        ]
        assert [channel for _, _, channel in sorted(steps)] == [channel for channel, _ in r.schedule]
    events = [line["event"] for line in lines["driver"]]
    assert events == ["run", "round", "round"]
    assert {line["outcome"] for line in lines["driver"] if line["event"] == "round"} == {r.outcome for r in rounds}
    every = [line for some in lines.values() for line in some]
    assert {"run", "round", "actor", "step", "clock", "level", "time"} <= set.intersection(*(set(line) for line in every))
    assert {"kvm_entry", "kvm_exit", "kvm_apic_accept_irq"} <= {line["event"] for line in every}


@needs_ray
def test_without_debug_only_the_driver_logs(tmp_path: Path) -> None:
    """One event per round is what a night of rounds can afford."""
    play(own_case(STUCK), 3, log_dir=tmp_path / "new" / "dir")
    (file,) = (tmp_path / "new" / "dir").iterdir()
    assert file.name == "driver.jsonl" and len(file.read_text().splitlines()) == 1 + 3


@needs_ray
def test_a_log_directory_that_cannot_be_written_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    """Not after the 5 seconds that Ray takes; and a Ray that somebody else has started stays."""
    (tmp_path / "file").write_text("")
    run = LiveRun(case_of(), LiveOptions(log_dir=tmp_path / "file" / "logs"))
    with pytest.raises(UsageError, match=r"cannot write the log .*\n.*--log-dir"), run:
        pass
    assert run.hosts is None and ray.is_initialized()


def test_an_address_where_nobody_is_says_so_and_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """ray.init() would try for a minute."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"no Ray cluster at {address}: .*refused(?s:.*)unset RAY_ADDRESS"):
            Session(address).open()
    with pytest.raises(ClusterError, match="'nonsense' is no address"):
        Session("nonsense").open()


@needs_ray
def test_who_has_lost_a_cluster_does_not_wait_for_ray_until_another_one_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """ray.shutdown() asks a cluster that is gone for seconds: results are told before that is done, the next Ray comes after."""
    leaves, waits = threading.Event(), threading.Event()

    def shutdown() -> None:
        waits.set()
        leaves.wait()

    monkeypatch.setattr("ray.shutdown", shutdown)
    monkeypatch.setattr("atexit.unregister", lambda function: None)
    session._leave()
    (thread,) = session._leaving
    assert waits.is_set() and thread.is_alive()
    leaves.set()
    Session().open()
    assert not thread.is_alive() and not session._leaving
