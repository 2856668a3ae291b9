"""The rules of the store buffer, one by one, and that each memory model allows all that a stronger one allows."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import by_brute_force, by_source_dpor, valuations, world

from actors import ops
from actors.actor import Cell
from actors.ops import Op
from actors.vm import Vm
from racevisor.memory import MODELS, Posted, StoreBuffer

STORE_BUFFERS = ("tso", "pso")


@pytest.fixture
def cells() -> tuple[Cell, Cell]:
    memory: Any = Vm().guest_memory(x=0, y=0)
    return memory.x, memory.y


def contents(entries: list[Posted]) -> list[tuple[str, Any]]:
    return [(entry.cell.name, entry.value) for entry in entries]


@pytest.mark.parametrize("model", STORE_BUFFERS)
def test_a_load_is_served_from_the_youngest_posted_store_to_its_cell(cells: tuple[Cell, Cell], model: str) -> None:
    """A CPU sees its own stores in order, whatever others see."""
    x, y = cells
    buffer = StoreBuffer(model)
    for op in (ops.WRITE_ONCE(x, 1), ops.WRITE_ONCE(x, 2), ops.WRITE_ONCE(y, 3)):
        buffer.post(op)
    found = buffer.forward(x)
    assert found is not None and found.value == 2
    buffer.clear()
    assert buffer.forward(x) is None


def test_under_tso_only_the_oldest_store_may_reach_memory(cells: tuple[Cell, Cell]) -> None:
    """One FIFO per thread."""
    x, y = cells
    buffer = StoreBuffer("tso")
    buffer.post(ops.WRITE_ONCE(x, 1))
    buffer.post(ops.WRITE_ONCE(y, 1))
    assert contents(buffer.movable()) == [("x", 1)]


def test_under_pso_the_oldest_store_to_each_cell_may_reach_memory(cells: tuple[Cell, Cell]) -> None:
    """One FIFO per thread and cell: two stores to one cell keep their order."""
    x, y = cells
    buffer = StoreBuffer("pso")
    for op in (ops.WRITE_ONCE(x, 1), ops.WRITE_ONCE(x, 2), ops.WRITE_ONCE(y, 1)):
        buffer.post(op)
    assert contents(buffer.movable()) == [("x", 1), ("y", 1)]


def test_smp_wmb_holds_later_stores_back_until_earlier_ones_have_left(cells: tuple[Cell, Cell]) -> None:
    """Otherwise the reader of the flag would not find the data."""
    x, y = cells
    buffer = StoreBuffer("pso")
    buffer.post(ops.WRITE_ONCE(x, 1))
    buffer.wmb()
    buffer.post(ops.WRITE_ONCE(y, 1))
    buffer.post(ops.WRITE_ONCE(x, 2))
    assert contents(buffer.movable()) == [("x", 1)]
    del buffer.entries[0]
    assert contents(buffer.movable()) == [("y", 1), ("x", 2)]


def test_a_release_store_waits_for_earlier_stores_and_later_ones_may_pass_it(cells: tuple[Cell, Cell]) -> None:
    """A one-way barrier: what follows an unlock may move into the critical section, what precedes it may not move out."""
    x, y = cells
    early = StoreBuffer("pso")
    early.post(ops.WRITE_ONCE(x, 1))
    early.post(ops.smp_store_release(y, 1))
    assert contents(early.movable()) == [("x", 1)]
    late = StoreBuffer("pso")
    late.post(ops.smp_store_release(y, 1))
    late.post(ops.WRITE_ONCE(x, 1))
    assert contents(late.movable()) == [("y", 1), ("x", 1)]


@pytest.mark.parametrize("model", STORE_BUFFERS)
def test_what_must_wait_for_the_posted_stores_waits_and_nothing_else(cells: tuple[Cell, Cell], model: str) -> None:
    """Full barriers, locked RMWs, waits and IPIs wait; loads, stores, weaker barriers and what is local to the CPU do not."""
    x, y = cells
    buffer = StoreBuffer(model)
    waiting = [
        ops.smp_mb(), ops.xchg(y, 1), ops.cmpxchg(y, 0, 1), ops.atomic_fetch_add(1, y), ops.await_eq(y, 0), ops.send_ipi("pcpu0"),
    ]  # fmt: skip
    going: list[Op] = [
        ops.READ_ONCE(y), ops.READ_ONCE(x), ops.WRITE_ONCE(y, 1), ops.smp_store_release(y, 1), ops.smp_wmb(), ops.smp_rmb(),
        ops.choose(2), ops.local_rmw(y, "or", 1), ops.local_load(y),
    ]  # fmt: skip
    assert all(buffer.allows(op) for op in waiting + going)
    buffer.post(ops.WRITE_ONCE(x, 1))
    assert not any(buffer.allows(op) for op in waiting)
    assert all(buffer.allows(op) for op in going)


def test_set_bit_passes_posted_stores_to_other_cells_only_under_pso(cells: tuple[Cell, Cell]) -> None:
    """Unordered for Linux, a locked instruction on x86: a missing smp_wmb() before it shows on one and not on the other."""
    x, y = cells
    tso, pso = StoreBuffer("tso"), StoreBuffer("pso")
    for buffer in (tso, pso):
        buffer.post(ops.WRITE_ONCE(x, 1))
    assert not tso.allows(ops.set_bit(0, y))
    assert pso.allows(ops.set_bit(0, y))
    assert not pso.allows(ops.set_bit(0, x))
    pso.wmb()
    assert not pso.allows(ops.set_bit(0, y))


@pytest.mark.parametrize("memory", STORE_BUFFERS)
def test_a_thread_before_a_choice_is_not_moved_by_its_posted_stores(memory: str) -> None:
    """A store that reached memory made the thread itself movable, and the choice was then taken without an answer."""
    found = by_brute_force(world("x=1 choose | r0=x", memory))
    assert {end.seen[0] for end in found.ends} == {(("choose", 0),), (("choose", 1),)}


@pytest.mark.parametrize("memory", MODELS)
def test_a_thread_alone_notices_no_memory_model(memory: str) -> None:
    """Program order is what a thread sees of itself."""
    found = by_brute_force(world("x=1 r0=x x=2 y=1 r1=x r2=y wmb x:=3 r3=x mb x+=1 r4=x", memory))
    assert valuations(found.ends, "r0 r1 r2 r3 r4 x y") == {(1, 2, 1, 3, 4, 4, 1)}


PLAIN = ["x=1", "y=1", "x=2", "r0=x", "r1=y", "x+=1"]
WORDS = [*PLAIN, "y:=2", "z=1", "r2=z", "y?0>3", "x@1", "mb", "wmb", "rmb", "lock", "unlock", "x==1"]


@settings(max_examples=120)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), min_size=2, max_size=3))
def test_tso_allows_what_sc_allows_and_pso_what_tso_allows(threads: list[list[str]]) -> None:
    """A weaker model adds outcomes and takes none away: Never under pso is Never under all three."""
    program = " | ".join(" ".join(words) for words in threads)
    sc, tso, pso = (by_source_dpor(world(program, memory)).ends for memory in MODELS)
    assert sc <= tso <= pso


@settings(max_examples=30)
@given(st.lists(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=3), min_size=2, max_size=2))
def test_full_barriers_everywhere_bring_sequential_consistency_back(threads: list[list[str]]) -> None:
    """The models differ in when stores become visible, and in nothing else."""
    program = " | ".join(" mb ".join(words) for words in threads)
    sc, tso, pso = (by_source_dpor(world(program, memory)).ends for memory in MODELS)
    assert sc == tso == pso
