"""The protocol of the live hosts without Ray: engines joined by queues, a seed picks which frame arrives next.

Hundreds of schedules a second, so this is where the protocol is tried; tests/test_live.py tries Ray.
"""

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PROGRAMS, Program, case_of, network

from actors.ops import READ_ONCE, WRITE_ONCE, Code, choose, clear_bit, set_bit, test_and_set_bit
from actors.thread import Thread
from actors.vm import Vm
from cluster.counts import Counts
from cluster.engine import Record
from cluster.messages import ACCESS, ANSWER, BEGIN, DRIVER, FLUSHED, IPI, Message, encode
from cluster.parity import Report
from racevisor.errors import ClusterError, NotDeterministic, RacevisorError, UsageError
from racevisor.scenario import Case, Scenario, Variant, load
from racevisor.world import Execution

MODELS = ("sc", "tso", "pso")


def outcomes(program: str, memory: str, rounds: int, noise: float = 0.3, hosts: int = 0) -> Counter[str]:
    with network(case_of(Program(program), memory), noise=noise, hosts=hosts) as net:
        return Counter(str(net.play(n).outcome) for n in range(rounds))


@settings(max_examples=300)
@given(PROGRAMS, st.sampled_from(MODELS), st.integers(0, 2**32), st.sampled_from([0.0, 0.3]), st.integers(0, 3))
def test_whatever_hosts_do_is_an_execution_of_the_world(program: str, memory: str, seed: int, noise: float, hosts: int) -> None:
    """The law of parity, for programs that nobody thought of, one actor to a host or many: every step, every end state."""
    with network(case_of(Program(program), memory), seed, noise, hosts) as net:
        for n in range(3):
            assert net.play(n).status == "terminal"


@settings(max_examples=60)
@given(PROGRAMS, st.integers(0, 2**32), st.integers(0, 3))
def test_machines_that_run_at_the_same_time_do_not_touch_each_other(program: str, seed: int, hosts: int) -> None:
    """They share hosts, frames and the driver; each round of each is an execution of its own."""
    with network(case_of(Program(program), "tso"), seed, 0.3, hosts, vms=3) as net:
        numbers = iter(range(999))

        def begin(vm: int) -> None:
            net.conductor.begin(vm, next(numbers))

        net.conductor.over = begin  # at once, while the reports of the last one are on their way
        for vm in range(3):
            begin(vm)
        played = []
        for _ in range(9):
            done = net.until_finished()
            assert net.judge(done).status == "terminal"
            played.append(done.number)
        assert len(set(played)) == 9
        assert all(len(engine.kept) <= 2 for host in net.hosts for engine in host.engines), "what was collected is not kept"


@pytest.mark.parametrize("hosts", [0, 2])
@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("setup", ["plain", "irq"])
@pytest.mark.parametrize("variant", ["before", "latch"])
def test_every_round_of_init_sipi_is_an_execution_of_the_world(variant: str, setup: str, memory: str, hosts: int) -> None:
    """The machine itself; and it shows what it is for: before the patch an INIT is lost, after it never."""
    scenario, source = load("init_sipi")
    with network(Case(scenario, source, variant, setup, memory), noise=0.1, hosts=hosts) as net:
        bad = sum(net.play(n).bad for n in range(30))
    if variant == "latch":
        assert bad == 0
    elif setup == "plain":  # the timer of the other set-up wakes vCPU1 and mostly heals it
        assert bad > 0


@pytest.mark.parametrize(
    ("program", "weak", "models"),
    [
        ("x=1 r0=y | y=1 r1=x", "r0=0 r1=0", {"tso", "pso"}),
        ("x=1 mb r0=y | y=1 mb r1=x", "r0=0 r1=0", set()),
        ("x=1 y=1 | r0=y r1=x", "r0=1 r1=0", {"pso"}),
        ("x=1 wmb y=1 | r0=y r1=x", "r0=1 r1=0", set()),
        ("x=1 y:=1 | r0=y r1=x", "r0=1 r1=0", set()),
        ("x=1 r0=x r1=y | y=1 r2=y r3=x", "r0=1 r1=0 r2=1 r3=0", {"tso", "pso"}),
    ],
)
def test_hosts_are_as_weak_as_their_memory_model_and_no_weaker(program: str, weak: str, models: set[str]) -> None:
    """Store buffering, message passing: if live hosts could not show them, a live run would prove nothing."""
    for hosts in (0, 1):
        shown = {memory for memory in MODELS if outcomes(program, memory, 200, hosts=hosts)[weak]}
        assert shown == models


def test_a_load_behind_its_own_store_in_flight_reads_what_memory_holds() -> None:
    """The store may have landed, and another's after it; forwarding it then would be a run that no machine has."""
    seen = outcomes("y=1 x=1 r0=y r1=y | y=2 y=3", "tso", 400)
    assert {"r0=1 r1=1", "r0=1 r1=3", "r0=3 r1=3"} <= set(seen)
    assert "r0=3 r1=1" not in seen


def test_waiters_are_served_in_their_order() -> None:
    """A lock is handed over: each release wakes one, the others wait on."""
    program = "lock w=1 unlock | lock w=2 unlock | lock w=3 unlock"
    with network(case_of(Program(program), "tso"), noise=0.3) as net:
        for n in range(50):
            assert net.play(n).status == "terminal"
            taken = [thread for _, _, thread, code, *_ in net.records if code == Code.AWAIT]
            assert len(taken) == len(set(taken)) == 3


def test_the_same_seed_makes_the_same_choices() -> None:
    """Noise and choices belong to (seed, round, host), not to how often something ran before."""
    case = case_of(Program("choose choose choose choose choose"), "sc")
    with network(case, seed=5) as one, network(case, seed=5) as other:
        first = [one.play(n).outcome for n in range(8)]
        assert [other.play(n).outcome for n in range(8)] == first
        assert len(set(first)) > 1


def test_a_livelock_ends_at_the_step_bound() -> None:
    """Two threads that wait for each other by spinning would keep a round busy for ever."""

    class Spin(Scenario):
        variants = {"only": Variant("as it is")}
        max_steps = 40

        def build(self, vm: Vm, setup: str) -> None:
            memory = vm.guest_memory(x=0)

            async def spin(_me: Any) -> None:
                while not await READ_ONCE(memory.x):  # type: ignore[attr-defined]
                    await choose(2)

            Thread(vm, "P0", spin)

    with network(case_of(Spin(), "sc")) as net:
        execution = net.play(0)
    assert execution.status == "bounded" and len(execution.steps) == 40


def test_an_error_in_a_thread_comes_home_with_its_name_and_line() -> None:
    """Nobody waits for what a frame does, so it has to be remembered."""

    class Broken(Scenario):
        variants = {"only": Variant("as it is")}

        def build(self, vm: Vm, setup: str) -> None:
            memory = vm.guest_memory(x=0)

            async def breaks(_me: Any) -> None:
                await WRITE_ONCE(memory.x, 1)  # type: ignore[attr-defined]
                raise KeyError("gone")

            Thread(vm, "P7", breaks)

    for hosts in (0, 1):
        with (
            network(case_of(Broken(), "tso"), hosts=hosts) as net,
            pytest.raises(UsageError, match="live round 0: P7 raised KeyError in breaks, line"),
        ):
            net.play(0)


class Two(Scenario):
    """Two threads that do nothing, each with a cell, and a memory with another one."""

    variants = {"only": Variant("as it is")}

    def build(self, vm: Vm, setup: str) -> None:
        async def nothing(_me: Any) -> None:
            return

        for i in range(2):
            Thread(vm, f"P{i}", nothing).cell("own")
        vm.guest_memory(x=0)


LOAD = (int(Code.LOAD), "", None, None)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((ACCESS, 0, 0, *LOAD), "wants cell 0, which host 2 does not hold"),
        ((ACCESS, 0, 9999, *LOAD), "wants cell 9999"),
        ((ACCESS, 1, 2, *LOAD), "speaks for thread 1"),
        ((ANSWER, 2, 1), "answers thread 2 of host 2, which asked nothing"),
        ((FLUSHED, 2, 2), "acknowledges a store that host 2 did not send"),
        ((IPI, 0, 2), "no physical CPU of host 2"),
        ((BEGIN,), "for, the driver only"),
        ((ACCESS, 0, 2, int(Code.RMW), "or", "x", None), "raised TypeError"),
    ],
)
def test_a_message_that_makes_no_sense_is_refused_and_its_sender_named(said: Message, why: str) -> None:
    """Well-formed is not enough: a host believes only what its peer may say."""
    with network(case_of(Two(), "tso")) as net:
        net.conductor.begin(0, 0)
        memory = net.hosts[2]
        memory.receive(net.queues[DRIVER, 2].popleft())
        memory.receive(encode("run", 0, 0, 1, [(0, 0, 1, [said])]))
        memory.turn()
        with pytest.raises(RacevisorError, match="host 2" if "raised" in why else "a frame of host 0") as caught:
            net.conductor.receive(net.queues[2, DRIVER].popleft())
        assert why in str(caught.value)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (encode("run", 0, 0, 3, []), "got frame 3 of host 0, expected 1"),
        (encode("run", 9, 0, 1, [(0, 0, 1, [])]), "came from host 9, which is none of the other hosts"),
        (encode("run", 0, 0, 1, [(5, 0, 1, [])]), "is for machine 5; host 2 knows 1"),
        (b"\xc1", "not msgpack"),
    ],
)
def test_a_frame_out_of_its_order_or_of_nobody_is_refused(frame: bytes, why: str) -> None:
    """A frame that was lost on the way would be a race that no machine has."""
    with network(case_of(Two(), "tso")) as net:
        net.conductor.begin(0, 0)
        net.hosts[2].receive(net.queues[DRIVER, 2].popleft())
        net.hosts[2].receive(frame)
        net.hosts[2].turn()
        with pytest.raises(ClusterError, match=why):
            net.conductor.receive(net.queues[2, DRIVER].popleft())


def test_frames_of_another_run_or_of_an_earlier_round_are_dropped() -> None:
    """They are late, or a stranger's: neither counted nor answered."""
    with network(case_of(Two(), "sc")) as net:
        net.play(3)
        memory = net.hosts[2]
        store = (ACCESS, 0, 2, int(Code.STORE), "", 9, None)
        memory.receive(encode("another", 0, 0, 1, [(0, 3, 1, [store])]))
        memory.receive(encode("run", 0, 0, 1, [(0, 2, 1, [store])]))
        memory.turn()
        assert memory.engines[0].received == {} and memory.engines[0].cells[0].value == 0
        assert not any(net.queues.values())


def test_waiting_costs_nothing() -> None:
    """Who is asked whether the round has ended, and how often, depends on what happens and not on how long it takes."""
    with network(case_of(Program("x=1 r0=y"), "sc")) as net:
        net.conductor.begin(0, 0)
        while not (between := [key for key, queue in net.queues.items() if queue and DRIVER not in key]):
            net.move()
        key = between[0]
        late = net.queues.pop(key)
        while net.move() is not None:
            pass
        before = net.conductor.asked
        for host in net.hosts:
            for _ in range(1000):
                host.turn()
        assert net.conductor.asked == before and not any(net.queues.values())
        net.queues[key] = late
        assert net.judge(net.until_finished()).status == "terminal"
        assert net.conductor.asked <= before + 3


def test_whoever_counted_too_early_is_named_by_the_counts_of_others() -> None:
    """Only he is asked again, so that the end of a round costs a few questions and not one for each host."""
    counts = Counts(3)
    assert counts.busy == counts.unheard == {0, 1, 2} and not counts.exchanged
    for host in range(3):
        counts.put(host, False, (0, 0, 0), (0, 0, 0))
    assert not counts.busy and not counts.early() and not counts.exchanged
    counts.put(1, False, (0, 0, 2), (1, 0, 0))  # got what host 0 has sent since, and sent what host 2 has got since, or will
    assert counts.early() == {0, 2} and counts.exchanged
    counts.put(0, True, (0, 1, 0), (0, 0, 0))
    counts.put(2, False, (0, 0, 0), (0, 2, 0))
    assert not counts.early() and counts.busy == {0}


def test_a_round_that_is_given_up_leaves_no_trace_in_the_next() -> None:
    """That is what happens when a host dies: what was in flight arrives, and is dropped."""
    with network(case_of(Program("x=1 mb r0=y | y=1 mb r1=x"), "tso"), noise=0.3) as net:
        for number in range(0, 60, 2):
            net.conductor.begin(0, number)
            for _ in range(net.random.randrange(40)):
                net.move()
            net.conductor.abort()
            assert net.play(number + 1).outcome != "r0=0 r1=0"


def test_a_round_that_the_world_does_not_repeat_is_not_deterministic() -> None:
    """A check that cannot fail is no check: change one value, one cell, one private value, or cut the end off."""
    with network(case_of(Program("x=1 r0=y | y=1"), "sc")) as net:
        net.play(0)
        reports, records = net.reports, net.records
        first = records[0]
        where = next(i for i, report in enumerate(reports) if report.state)
        actor, name, _ = reports[where].state[0]

        def again(changed: list[Report], steps: list[Record]) -> Execution:
            return net.parity.replay(0, changed, steps)

        def at(**changed: Any) -> list[Report]:
            return [report._replace(**changed) if i == where else report for i, report in enumerate(reports)]

        assert again(reports, records).status == "terminal"
        with pytest.raises(NotDeterministic, match=r"step 0 of P\d was .*, but in the World it is"):
            again(reports, [(*first[:5], 55, 55), *records[1:]])
        with pytest.raises(NotDeterministic, match=r"step 0 was pcpu0"):
            again(reports, [(1, 0, 0, int(Code.LOAD), 0, None, 0), *records])
        with pytest.raises(NotDeterministic, match=r"in the World .* can still move"):
            again(reports, records[:-1])
        with pytest.raises(NotDeterministic, match=r"is 'x' live and"):
            again(at(state=[(actor, name, "x")]), records)
        with pytest.raises(NotDeterministic, match=r"is 77 live and"):
            again(at(cells=[(0, 77)]), records)


@settings(max_examples=100)
@given(PROGRAMS, st.sampled_from(MODELS), st.integers(0, 2**32), st.integers(0, 60))
def test_a_replay_that_looks_at_waiters_only_when_they_are_picked_sees_the_same(
    program: str, memory: str, seed: int, steps: int
) -> None:
    """A lock opens and closes for all that wait at each hand-over; what is settled beforehand need not follow that."""
    random = Random(seed)
    case = case_of(Program(program), memory)
    eager, lazy = case.world(), case.world()
    eager.reset()
    lazy.reset()
    lazy.follow(True)
    for _ in range(steps):
        assert eager.channels.keys() == lazy.channels.keys()
        assert {name for name, channel in lazy.channels.items() if lazy.may_move(channel)} == {c.name for c in eager.movable}
        if not eager.movable:
            break
        name = random.choice(sorted(channel.name for channel in eager.movable))
        assert eager.step(eager.channels[name]).label == lazy.step(lazy.channels[name]).label
    lazy.follow(False)
    assert {channel.name for channel in lazy.movable} == {channel.name for channel in eager.movable}
    eager.close()
    lazy.close()


@pytest.mark.parametrize("hosts", [1, 2])
def test_set_bit_and_clear_bit_tell_their_thread_nothing(hosts: int) -> None:
    """As in the kernel; what a thread is not told need not be told apart, so a search has fewer states."""

    class Bits(Program):
        def build(self, vm: Vm, setup: str) -> None:
            async def bits(me: Any) -> None:
                told = [await set_bit(1, vm.memory.y), await clear_bit(0, vm.memory.y), await test_and_set_bit(1, vm.memory.y)]
                me.seen = tuple(told)

            vm.guest_memory(y=1)
            Thread(vm, "P0", bits, seen=())

        def outcome(self, vm: Vm) -> str:
            return str(vm.actors[-1].seen)  # type: ignore[attr-defined]

    with network(case_of(Bits(""), "tso"), hosts=hosts) as net:
        assert net.play(0).outcome == "(None, None, 1)"  # play() holds what the threads know against the World
