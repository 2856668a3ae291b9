"""Small programs for the tests of memory models and searches, written as one line: `x=1 mb r0=y | y=1 mb r1=x`.

| word | op | word | op |
|---|---|---|---|
| `x=1` | WRITE_ONCE | `mb` `wmb` `rmb` | the barriers |
| `x:=1` | smp_store_release | `lock` `unlock` | of the one mutex; a thread may end inside |
| `r0=x` | READ_ONCE | `x==1` | wait until x is 1 |
| `x+=1` | atomic_fetch_add | `x==1>0` | wait until x is 1, and make it 0 in the same step |
| `x<>1` | xchg | `choose` | one of two answers |
| `x&1>2` | wait until bits 1 of x are set; clear them, set bits 2 | | |
| `x?0>1` | cmpxchg | `ipi` | send an IPI to the one physical CPU |
| `x@1` | set_bit of bit 1 | `cli` `sti` | IRQs of that CPU off and on |
"""

import math
import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

from hypothesis import strategies as st

from actors import ops
from actors.actor import Cell
from actors.pcpu import Pcpu
from actors.sync import Lock
from actors.thread import Thread
from actors.vm import Vm
from racevisor.dependence import HappensBefore
from racevisor.monitor import Monitor
from racevisor.strategies.brute_force import BruteForce
from racevisor.strategies.optimal import OptimalDpor
from racevisor.strategies.sleep_sets import SleepSets
from racevisor.strategies.source_dpor import SourceDpor
from racevisor.strategies.states import StatefulSearch
from racevisor.world import Channel, World

WORD = re.compile(r"(r\d+)=([a-z])|([a-z])(:=|==|=|\+=|<>|\?|@|&)(\d+)(?:>(\d+))?|mb|wmb|rmb|lock|unlock|choose|ipi|cli|sti")
ACCESS: dict[str, Callable[[Cell, int, Any], Any]] = {
    "=": lambda cell, a, _b: ops.WRITE_ONCE(cell, a),
    ":=": lambda cell, a, _b: ops.smp_store_release(cell, a),
    "+=": lambda cell, a, _b: ops.atomic_fetch_add(a, cell),
    "<>": lambda cell, a, _b: ops.xchg(cell, a),
    "?": lambda cell, a, b: ops.cmpxchg(cell, a, b),
    "@": lambda cell, a, _b: ops.set_bit(a, cell),
    "==": lambda cell, a, b: ops.await_eq(cell, a, b),
    "&": lambda cell, a, b: ops.await_masked(cell, a, a, a, b),
}

Make = Callable[[Vm], list[Monitor]]


def world(program: str, memory: str = "sc", monitors: Make = lambda vm: [], *, automata: bool = False) -> World:
    """A World in which P0, P1, ... run the threads of `program`."""
    vm = Vm()
    vm.guest_memory(**dict.fromkeys("wxyz", 0), mutex="")
    pcpu = Pcpu(vm, "pcpu0")
    vm.vcpus.append(SimpleNamespace(pcpu=pcpu))  # type: ignore[arg-type]  # all that a World asks of a vCPU
    for i, words in enumerate(program.split(" | ")):
        Thread(vm, f"P{i}", body(vm, pcpu, words.split()), seen=())
    return World(vm, memory, monitors=monitors(vm), automata=automata)


def body(vm: Vm, pcpu: Pcpu, words: list[str]) -> Callable[[Any], Any]:
    async def run(me: Any) -> None:
        mutex = Lock(vm.memory.mutex)
        plain = {
            "mb": ops.smp_mb, "wmb": ops.smp_wmb, "rmb": ops.smp_rmb, "lock": lambda: mutex.acquire(me), "unlock": mutex.release,
            "choose": lambda: ops.choose(2), "ipi": lambda: ops.send_ipi("pcpu0"),
            "cli": pcpu.local_irq_disable, "sti": pcpu.local_irq_enable,
        }  # fmt: skip
        for word in words:
            found = WORD.fullmatch(word)
            assert found, f"{word!r} is no word of a program"
            register, source, target, sign, a, b = found.groups()
            if register:
                result = await ops.READ_ONCE(getattr(vm.memory, source))
            elif target:
                result = await ACCESS[sign](getattr(vm.memory, target), int(a), None if b is None else int(b))
            else:
                result = await plain[word]()
            if result is not None:
                me.seen = (*me.seen, (register or word, result))

    return run


class End(NamedTuple):
    """A final state: all cells, all that was read, and who is blocked."""

    cells: tuple[tuple[str, Any], ...]
    seen: tuple[Any, ...]
    blocked: tuple[str, ...]

    def __getitem__(self, name: Any) -> Any:
        """The final value of a register or a cell."""
        return next(value for key, value in (*(pair for pairs in self.seen for pair in pairs), *self.cells) if key == name)


def end_state(of: World) -> End:
    return End(
        tuple((cell.name, cell.value) for cell in of.vm.cells),
        tuple(thread.actor.seen for thread in of.threads),
        tuple(thread.actor.name for thread in of.threads if thread.op is not None),
    )


class Search(NamedTuple):
    strategy: Any
    ends: set[End]  # of executions without a violation
    violations: set[str]
    classes: list[frozenset[Any]]  # the Mazurkiewicz trace of every complete execution


def search(of: World, strategy: Any, *, classes: bool = False) -> Search:
    """Run `strategy` until it is done."""
    found = Search(strategy, set(), set(), [])
    run = 0
    again = True
    while again:
        execution = of.run(strategy, run)
        if execution.status == "violated":
            found.violations.add(execution.violations[0].text)
        elif execution.status == "terminal":
            found.ends.add(end_state(of))
            if classes:
                found.classes.append(trace_class(of))
        again = strategy.end(execution)
        run += 1
    of.close()
    return found


def by_source_dpor(of: World, **options: Any) -> Search:
    found = search(of, SourceDpor(), **options)
    assert found.strategy.exhausted
    return found


def by_brute_force(of: World, **options: Any) -> Search:
    found = search(of, BruteForce(), **options)
    assert found.strategy.exhausted
    return found


class Exhaustive(NamedTuple):
    """An exhaustive search, and whether its World has to run threads as automata."""

    make: Callable[[], Any]
    automata: bool


#: What has to agree with brute force.  A new exhaustive strategy takes part in all such tests by a line here.
EXHAUSTIVE = {
    "source DPOR": Exhaustive(SourceDpor, automata=False),
    "optimal DPOR": Exhaustive(OptimalDpor, automata=True),
    "sleep sets": Exhaustive(SleepSets, automata=True),
    "states": Exhaustive(StatefulSearch, automata=True),
}


def exhaust(name: str, make: Callable[[bool], World]) -> Search:
    """Search the World that `make(automata)` makes to the end, with the exhaustive strategy of that name."""
    kind = EXHAUSTIVE[name]
    found = search(make(kind.automata), kind.make())
    assert found.strategy.exhausted
    return found


def small_programs(words: Iterable[str], most: int = 600) -> st.SearchStrategy[str]:
    """Two threads of up to four words, or three of up to two, with at most `most` interleavings even if stores are posted."""
    word = st.sampled_from(list(words))
    two = st.lists(st.lists(word, min_size=1, max_size=4), min_size=2, max_size=2)
    three = st.lists(st.lists(word, min_size=1, max_size=2), min_size=3, max_size=3)
    return (two | three).map(lambda threads: " | ".join(map(" ".join, threads))).filter(lambda p: interleavings(p) <= most)


def interleavings(program: str) -> int:
    """How many there are at most: a store may be two steps, an IPI is, and a choice has two answers."""
    threads = [words.split() for words in program.split(" | ")]
    steps = [len(words) + sum(word == "ipi" or ("=" in word and word[0] != "r") for word in words) for words in threads]
    return math.factorial(sum(steps)) // math.prod(map(math.factorial, steps)) << program.count("choose")


def trace_class(of: World) -> frozenset[Any]:
    """What two interleavings have in common that differ only by swapped independent steps: each step and what is before it."""
    order = HappensBefore(of)
    names: list[tuple[str, int]] = []
    count: dict[Channel, int] = {}
    for step in of.steps:
        channel = of.channels[step.channel]
        count[channel] = count.get(channel, 0) + 1
        order.extend(channel, step)
        names.append((channel.name, count[channel]))
    return frozenset((name, members(order.past[n], names)) for n, name in enumerate(names))


def members(mask: int, names: list[tuple[str, int]]) -> frozenset[tuple[str, int]]:
    return frozenset(name for n, name in enumerate(names) if mask >> n & 1)


def valuations(ends: Iterable[End], names: str) -> set[tuple[Any, ...]]:
    """The distinct values of some registers and cells: `valuations(ends, "r0 r1 x")`."""
    return {tuple(end[name] for name in names.split()) for end in ends}


#: Words of random programs, two or three threads of them, and few enough steps for brute force: a posted store is two.
_WORDS = (
    *("x=1", "x=2", "y=1", "y=2", "x:=1", "y:=2", "r0=x", "r1=y", "r2=x", "x+=1", "y+=2", "x<>3", "x?0>4", "x@1", "w=1", "r3=w"),
    *("z+=1", "mb", "wmb", "lock", "unlock", "x==1", "y==2", "x==1>0", "choose", "ipi", "cli", "sti"),
)
PROGRAMS = (
    st.lists(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=3), min_size=2, max_size=3)
    .filter(lambda threads: sum(1 + bool(re.fullmatch(r"[a-z]:?=\d", word)) for words in threads for word in words) <= 7)
    .map(lambda threads: " | ".join(" ".join(words) for words in threads))
)


def diaries(of: World, strategy: Any) -> set[Any]:
    """End states with the ghost states of the monitors, over all executions of an exhaustive search."""
    seen = set()
    run = 0
    again = True
    while again:
        execution = of.run(strategy, run)
        if execution.status == "terminal":
            seen.add((end_state(of), *(monitor.state() for monitor in of.monitors)))
        again = strategy.end(execution)
        run += 1
    of.close()
    return seen


class Case:
    """What a pool and a worker ask of a case: a World, made anew each time."""

    def __init__(self, make: Callable[[], World]) -> None:
        self.make = make

    def world(self, calls: Any = lambda inner: inner, **_options: Any) -> World:
        made = self.make()
        made.vm.calls = calls(made.vm.calls)
        made.outcome = made.outcome or (lambda _vm: str(end_state(made)))
        return made


def sparring(rounds: int) -> World:
    """D and B keep each other busy so long that random executions do not show that B waits for what A stores."""
    vm = Vm()
    m: Any = vm.guest_memory(g=0, c=0, k=0)

    async def a(_me: Any) -> None:
        await ops.await_eq(m.g, 1)
        await ops.WRITE_ONCE(m.c, 1)

    async def e(_me: Any) -> None:
        await ops.WRITE_ONCE(m.g, 1)

    def spar(n: int, then_wait: bool) -> Any:
        async def body(_me: Any) -> None:
            for i in range(rounds):
                if await ops.cmpxchg(m.k, 2 * i + n, 2 * i + n + 1) != 2 * i + n:
                    return
            if then_wait:
                await ops.await_eq(m.c, 1)

        return body

    for name, body in (("A", a), ("E", e), ("B", spar(1, True)), ("D", spar(0, False))):
        Thread(vm, name, body, seen=())
    return World(vm, "sc", automata=True)
