"""Shapes of programs on which a reduction goes wrong quietly: all strategies agree with brute force on each of them.

A thread that ends inside a critical section, a loop that spins, a thread that is long beside short ones, channels that first
exist in the middle of an execution, and that exist only if the data say so.
"""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import EXHAUSTIVE, End, body, by_brute_force, exhaust, interleavings, search, small_programs, world

from actors.actor import Cell
from actors.ops import READ_ONCE, WRITE_ONCE, await_eq, cmpxchg, send_ipi, smp_mb, smp_store_release
from actors.pcpu import Pcpu
from actors.sync import Lock
from actors.thread import Thread
from actors.vm import Vm
from racevisor.memory import MODELS
from racevisor.strategies.brute_force import BruteForce
from racevisor.strategies.states import StatefulSearch
from racevisor.world import World

Body = Callable[[Any], Any]
GAVE_UP = (("gave", "up"),)
bounded = settings(max_examples=80)


def machine(memory: str, *bodies: Body, automata: bool = False, max_steps: int = 500, **cells: Any) -> World:
    """Threads that share `cells` and two physical CPUs; each body finds the cells in `me.vm.memory`."""
    vm = Vm()
    vm.guest_memory(**cells)
    for n in (0, 1):
        vm.vcpus.append(SimpleNamespace(pcpu=Pcpu(vm, f"pcpu{n}")))  # type: ignore[arg-type]  # all that a World asks of a vCPU
    for i, one in enumerate(bodies):
        Thread(vm, f"P{i}", one, seen=())
    return World(vm, memory, automata=automata, max_steps=max_steps)


def agree(make: Callable[[bool], World]) -> set[End]:
    """The end states, if every strategy finds those of brute force and no other."""
    full = by_brute_force(make(False)).ends
    for name in EXHAUSTIVE:
        assert exhaust(name, make).ends == full, name
    return full


def agree_on(program: str, memory: str) -> set[End]:
    return agree(lambda automata: world(program, memory, automata=automata))


def blocked(ends: set[End]) -> set[tuple[str, ...]]:
    return {end.blocked for end in ends}


# ---- who ends while holding a lock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize(
    ("program", "waiters"),
    [
        ("lock | lock x=1 unlock", {(), ("P1",)}),
        ("lock x=1 | lock y=1", {("P0",), ("P1",)}),
        ("lock r0=x | lock x=1 unlock | lock x=2 unlock", {(), ("P1",), ("P2",), ("P1", "P2")}),
        ("x=1 lock | lock unlock x=2 lock", {("P0",), ("P1",)}),
        ("lock unlock lock | lock unlock", {(), ("P1",)}),
    ],
)
def test_whoever_ends_inside_a_mutex_keeps_the_others_out(program: str, waiters: set[tuple[str, ...]], memory: str) -> None:
    """The step that a waiter never takes races with the one that took the lock."""
    assert blocked(agree_on(program, memory)) == waiters


def spinlock(cell: Cell, tries: int) -> Callable[[Any], Awaitable[bool]]:
    """Take a lock word by cmpxchg, at most so many times; says whether it worked."""

    async def take(me: Any) -> bool:
        for _ in range(tries):
            if await cmpxchg(cell, "", me.name) == "":
                return True
        return False

    return take


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("who_keeps_it", [(), (0,), (1,), (0, 1)])
def test_whoever_ends_inside_a_spinlock_makes_the_others_spin_in_vain(who_keeps_it: tuple[int, ...], memory: str) -> None:
    """A spinlock blocks nobody: the others give up, in those executions in which the lock is never given back."""

    def critical(i: int) -> Body:
        async def run(me: Any) -> None:
            m = me.vm.memory
            if not await spinlock(m.lock, 3)(me):
                me.seen = GAVE_UP
                return
            value = await READ_ONCE(m.x)
            await WRITE_ONCE(m.x, 2 * value + i + 1)
            if i not in who_keeps_it:
                await smp_store_release(m.lock, "")

        return run

    ends = agree(lambda automata: machine(memory, critical(0), critical(1), automata=automata, lock="", x=0))
    last = {(end["x"], end["lock"]) for end in ends if GAVE_UP not in end.seen}
    keepers = {end["lock"] for end in ends}
    assert keepers == {"", *(f"P{i}" for i in who_keeps_it)} - ({""} if len(who_keeps_it) == 2 else set())
    assert last == {
        (value, "" if second not in who_keeps_it else f"P{second}")
        for first, second, value in ((0, 1, 4), (1, 0, 5))
        if first not in who_keeps_it
    }


# ---- loops that spin ------------------------------------------------------------------------------------------------------


def waits(wait: Callable[[Any], Awaitable[Any]]) -> tuple[Body, Body]:
    """Message passing: P0 waits for the flag in its own way and reads what came with it, after a store of its own."""

    async def reader(me: Any) -> None:
        m = me.vm.memory
        await WRITE_ONCE(m.y, 1)
        if await wait(me) is False:
            me.seen = GAVE_UP
            return
        me.seen = (("r0", await READ_ONCE(m.x)),)

    async def writer(me: Any) -> None:
        m = me.vm.memory
        await WRITE_ONCE(m.x, 1)
        await WRITE_ONCE(m.flag, 1)
        me.seen = (("r1", await READ_ONCE(m.y)),)
        await WRITE_ONCE(m.x, 2)

    return reader, writer


async def blocking(me: Any) -> None:
    await await_eq(me.vm.memory.flag, 1)


def busy(tries: int) -> Callable[[Any], Awaitable[bool]]:
    async def wait(me: Any) -> bool:
        await smp_mb()  # a blocking op waits for the thread's posted stores, a load does not
        for _ in range(tries):
            if await READ_ONCE(me.vm.memory.flag) == 1:
                return True
        return False

    return wait


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("tries", [1, 2])
def test_a_busy_loop_that_gets_through_ends_as_the_blocking_op_does(tries: int, memory: str) -> None:
    """A loop that sees the flag at last is a blocking op that was executed then; a loop that gives up is told apart."""

    def ends(wait: Callable[[Any], Awaitable[Any]]) -> set[End]:
        return agree(lambda automata: machine(memory, *waits(wait), automata=automata, x=0, y=0, flag=0))

    waited, spun = ends(blocking), ends(busy(tries))
    assert {end for end in spun if end.seen[0] != GAVE_UP} == waited
    assert any(end.seen[0] == GAVE_UP for end in spun)
    assert {end["r0"] for end in waited} == ({0, 1, 2} if memory == "pso" else {1, 2})


def endless(*, checkpoint: bool) -> Callable[[Any], Awaitable[None]]:
    async def wait(me: Any) -> None:
        await smp_mb()
        while True:
            if checkpoint:
                me.checkpoint("spins")
            if await READ_ONCE(me.vm.memory.flag) == 1:
                return

    return wait


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_a_loop_that_the_step_bound_cuts_is_no_complete_search(name: str, memory: str) -> None:
    """Nobody knows what an execution would have done behind the bound, so the search says that it was bounded."""
    kind = EXHAUSTIVE[name]
    of = machine(memory, *waits(endless(checkpoint=False)), automata=kind.automata, max_steps=14, x=0, y=0, flag=0)
    strategy = search(of, kind.make()).strategy
    assert strategy.bounded
    assert not strategy.exhausted


@pytest.mark.parametrize("memory", MODELS)
def test_a_loop_that_ends_before_the_step_bound_is_searched_to_the_end(memory: str) -> None:
    """The spinner starts when the flag is on its way to memory already: the loop could be endless and is not."""

    async def spinner(me: Any) -> None:
        m = me.vm.memory
        await await_eq(m.started, 1)
        while await READ_ONCE(m.flag) != 1:
            pass
        me.seen = (("r0", await READ_ONCE(m.x)),)

    async def starter(me: Any) -> None:
        m = me.vm.memory
        await WRITE_ONCE(m.x, 1)
        await WRITE_ONCE(m.flag, 1)
        await smp_store_release(m.started, 1)
        await WRITE_ONCE(m.x, 2)

    def make(automata: bool) -> World:
        return machine(memory, spinner, starter, automata=automata, max_steps=20, x=0, flag=0, started=0)

    assert {end["r0"] for end in agree(make)} == {1, 2}


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("name", [name for name, kind in EXHAUSTIVE.items() if kind.make is StatefulSearch])
def test_an_endless_loop_that_says_checkpoint_ends_as_the_blocking_op_does(name: str, memory: str) -> None:
    """Its states close, so there is no bound to meet; this is what a search over executions cannot do."""

    def ends(wait: Callable[[Any], Awaitable[Any]]) -> set[End]:
        return exhaust(name, lambda automata: machine(memory, *waits(wait), automata=automata, x=0, y=0, flag=0)).ends

    assert ends(endless(checkpoint=True)) == ends(blocking)


# ---- threads of unequal lengths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize(
    "program",
    [
        "x=1 r0=y x+=1 y=2 r1=x y+=1 | y=1",
        "y=1 | x=1 r0=y x+=1 y=2 r1=x y+=1",
        "r0=x x=1 r1=y x=2 | y=1 | x==1",
        "x=1 |  | r0=x",
        " | x=1 y=1 lock | lock r0=x",
        "mb wmb rmb | x=1 x=2 x=3 | r0=x",
    ],
)
def test_a_long_thread_beside_short_ones(program: str, memory: str) -> None:
    """Also one that has ended before it began: it has no step to race with, and none to wait for."""
    agree_on(program, memory)


WORDS = ["r0=x", "r1=y", "x=1", "x=2", "y=1", "x+=1", "x?1>2", "y==1", "y==1>0", "lock", "unlock", "mb", "wmb", "x:=3"]
LONG = st.lists(st.sampled_from(WORDS), min_size=4, max_size=7).map(" ".join)
SHORT = st.lists(st.sampled_from(WORDS), max_size=1).map(" ".join)


@bounded
@given(LONG, st.lists(SHORT, min_size=1, max_size=2), st.integers(0, 2), st.sampled_from(MODELS))
def test_a_random_long_thread_beside_short_ones(long: str, short: list[str], place: int, memory: str) -> None:
    """Wherever the long one stands: the first thread is the one that a search runs first."""
    threads = [*short[:place], long, *short[place:]]
    program = " | ".join(threads)
    if interleavings(program) <= 2_000:
        agree_on(program, memory)


# ---- channels that come into being ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize(
    ("program", "bits"),
    [
        ("ipi | cli", {1, 5}),
        ("ipi | ipi | cli", {1, 5}),
        ("ipi ipi | cli sti", {0}),
        ("ipi | ipi | cli sti cli", {1, 5}),
        ("x=1 ipi | r0=x ipi | cli r1=x", {1, 5}),
        ("choose ipi | cli choose", {1, 5}),
        ("cli x=1 | x==1 ipi | x==1 ipi", {5}),
    ],
)
def test_several_senders_to_one_cpu(program: str, bits: set[int], memory: str) -> None:
    """Each sender has a channel of its own to the CPU, and it does not exist before the first IPI."""
    assert {end["cpu"] for end in agree_on(program, memory)} == bits


@pytest.mark.parametrize("memory", MODELS)
def test_the_data_decide_who_gets_an_ipi(memory: str) -> None:
    """In some executions a channel is never made, and in others it is another one."""

    async def sender(me: Any) -> None:
        await send_ipi(f"pcpu{await READ_ONCE(me.vm.memory.target)}")

    async def other(_me: Any) -> None:
        await send_ipi("pcpu1")

    async def mover(me: Any) -> None:
        await WRITE_ONCE(me.vm.memory.target, 1)

    async def masked(me: Any) -> None:
        for vcpu in me.vm.vcpus:
            await vcpu.pcpu.local_irq_disable()

    def make(automata: bool) -> World:
        return machine(memory, sender, other, mover, masked, automata=automata, target=0)

    cpus = {tuple(value for name, value in end.cells if name == "cpu") for end in agree(make)}
    assert cpus == {(a, b) for a in (1, 5) for b in (1, 5)}


def deciding(vm: Vm, words: list[str]) -> Body:
    """The words of tests/programs.py; `x>ipi` is `if (READ_ONCE(x)) ipi`."""

    async def run(me: Any) -> None:
        for word in words:
            asked, _, then = word.rpartition(">")
            if not asked or await READ_ONCE(getattr(vm.memory, asked)):
                await body(vm, vm.vcpus[0].pcpu, [then])(me)

    return run


DECIDING = [
    "x>ipi",
    "y>ipi",
    "x>y=1",
    "y>x=2",
    "x>choose",
    "x>cli",
    "y>lock",
    "x>unlock",
    "ipi",
    "cli",
    "sti",
    "x=1",
    "y=1",
    "x=0",
]


@bounded
@given(small_programs(DECIDING).filter(lambda p: interleavings(p.replace(">", " ")) <= 800), st.sampled_from(MODELS))
def test_channels_that_exist_only_if_the_data_say_so(program: str, memory: str) -> None:
    """IPIs, posted stores and choices behind a condition that another thread decides."""

    def make(automata: bool) -> World:
        async def thread(me: Any) -> None:
            await deciding(me.vm, programs[int(me.name[1:])].split())(me)

        programs = program.split(" | ")
        return machine(memory, *[thread] * len(programs), automata=automata, w=0, x=0, y=0, z=0, mutex="")

    agree(make)


def test_brute_force_is_bounded_as_the_others_are() -> None:
    """The reference is held to the same rule: a bound that was met is no complete enumeration."""
    of = machine("sc", *waits(endless(checkpoint=False)), max_steps=12, x=0, y=0, flag=0)
    strategy = search(of, BruteForce()).strategy
    assert strategy.bounded
    assert not strategy.exhausted


def test_a_lock_that_is_held_for_ever_by_nobody_alive_is_a_deadlock_of_all_waiters() -> None:
    """Two locks, taken in opposite order by threads that never give back: one of the two, or both, wait for ever."""

    def taking(*names: str) -> Body:
        async def run(me: Any) -> None:
            for name in names:
                await Lock(getattr(me.vm.memory, name)).acquire(me)

        return run

    ends = agree(lambda automata: machine("sc", taking("a", "b"), taking("b", "a"), automata=automata, a="", b=""))
    assert blocked(ends) == {("P0",), ("P1",), ("P0", "P1")}
