"""The picture is what people come for: it must be small, fit the terminal, and hold the steps that matter."""

from collections.abc import Callable
from typing import Any

import pytest

from racevisor import Scenario, Thread, Variant
from racevisor.explore import cases
from racevisor.picture import ASCII, FATAL, LINES, UNICODE, Picture, plain, sentences
from racevisor.scenario import Case, Source
from racevisor.strategies.random_walk import RandomWalk
from racevisor.world import Channel, Execution, World


class Fixed:
    """The schedule that is given."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def begin(self, world: World, _run: int) -> None:
        self.world = world
        self.left = iter(self.names)

    def pick(self, _movable: list[Channel]) -> Channel | None:
        name = next(self.left, None)
        return None if name is None else self.world.channels[name]

    def end(self, _execution: Execution) -> bool:
        return False


def found(variant: str, setup: str, memory: str) -> Picture:
    """The shortest of the bad runs that a few random walks meet."""
    case = cases("init_sipi", [variant], [setup], [memory])[0]
    world = case.world(functions=True)
    walk = RandomWalk(0, 400)
    runs = (world.run(walk, run) for run in range(400))
    best = min((run for run in runs if run.bad), key=lambda run: len(run.steps))
    world.close()
    return Picture(case, world, best)


@pytest.fixture(scope="module")
def lost_init() -> Picture:
    return found("before", "plain", "tso")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("full", [False, True])
def test_no_line_is_wider_than_the_terminal(lost_init: Picture, width: int, full: bool) -> None:
    """A wrapped line breaks the columns."""
    for glyphs in (ASCII, UNICODE):
        lines = plain(lost_init.draw(width, full=full, glyphs=glyphs)).splitlines()
        assert max(map(len, lines)) <= width


def test_a_lost_init_is_told_in_a_few_lines(lost_init: Picture) -> None:
    """The two stores to mp_state, in the columns and under the kernel functions that made them; the rest is folded."""
    text = plain(lost_init.draw(80))
    assert text.isascii()
    assert len(text.splitlines()) <= LINES // 2
    header = text.splitlines()[0]
    assert "vcpu0" in header and "vcpu1" in header
    assert "apic_dm_init()" in text, "the kernel's name, not that of the scenario's Python function"
    assert "dm_init_before" not in text
    assert "vcpu1.mp_state = INIT_RECEIVED" in text
    assert "... " in text and "kvm_exit(icr)" in text, "what is folded is counted, with its last tracepoints"
    assert sentences(lost_init.violations)[0].startswith("I-I2: vcpu1's INIT")


def test_the_fatal_steps_are_marked(lost_init: Picture) -> None:
    """With a sign in the margin where there is no colour, and a style where there is."""
    fatal = {n for violation in lost_init.violations for n in violation.fatal}
    lines = lost_init.draw(80)
    marked = [line for line in plain(lines).splitlines() if line.startswith(">")]
    assert {int(line[1:].split()[0]) for line in marked} == fatal
    assert sum(any(style == FATAL for _, style in line) for line in lines) == len(fatal)


def test_full_shows_every_step(lost_init: Picture) -> None:
    """Folding is a help, and whoever doubts it must be able to look."""
    text = plain(lost_init.draw(120, full=True))
    margins = [line.split("|")[0].strip("> ") for line in text.splitlines()[2:]]
    numbers = [int(margin) for margin in margins if margin]
    assert numbers == list(range(len(lost_init.steps)))


def test_cells_of_ones_own_lose_their_prefix(lost_init: Picture) -> None:
    """In vcpu1's column mp_state is its own; in vcpu0's it is vcpu1's."""
    rows = [line.split("|") for line in plain(lost_init.draw(120)).splitlines()[2:]]
    assert any("vcpu1.mp_state" in row[1] for row in rows)
    assert any(" mp_state" in row[2] for row in rows if len(row) > 2)
    assert all("vcpu1.mp_state" not in row[2] for row in rows if len(row) > 2)


def drawn(schedule: list[str], memory: str, *bodies: Callable[[Any], Any], width: int = 80, full: bool = False) -> list[str]:
    """The picture of one schedule of threads P0, P1, ... over the cells x and y."""

    class Small(Scenario):
        name = "small"
        variants = {"v": Variant("v")}

        def build(self, vm: Any, setup: str) -> None:
            vm.guest_memory(x=0, y=0)
            for i, body in enumerate(bodies):
                Thread(vm, f"P{i}", body)

    world = (case := Case(Small(), Source("small", ""), "v", "default", memory)).world(functions=True)
    execution = world.run(Fixed(schedule))
    world.close()
    return plain(Picture(case, world, execution).draw(width, full=full)).splitlines()


async def store_x(me: Any) -> None:
    from actors.ops import WRITE_ONCE

    await WRITE_ONCE(me.vm.memory.x, 1)


async def load_x(me: Any) -> None:
    from actors.ops import READ_ONCE

    await READ_ONCE(me.vm.memory.x)


def test_a_store_that_waits_in_a_buffer_is_drawn_twice() -> None:
    """The reader that sees the old value stands between the store and its arrival: that is the whole race."""
    assert drawn(["P0", "P1", "P0~stores"], "tso", store_x, load_x) == [
        " step | P0                              | P1",
        "------+---------------------------------+---------------------------------",
        "      | store_x()                       |",
        "    0 |  memory.x = 1 (posted)          | load_x()",
        "    1 |                                 |  memory.x == 0",
        "    2 |  ~ memory.x = 1                 |",
    ]


def test_a_store_that_nobody_could_see_waiting_is_drawn_once() -> None:
    """A store buffer that changes nothing is no part of the story."""
    lines = drawn(["P0", "P0~stores", "P1"], "tso", store_x, load_x)
    assert [line.split("|")[1].strip() for line in lines if "memory.x" in line] == ["memory.x = 1", ""]
    assert not any("posted" in line or "~" in line for line in lines)


def test_an_overwritten_value_is_shown() -> None:
    """A lost update is seen at the store that lost it."""

    async def store_two(me: Any) -> None:
        from actors.ops import WRITE_ONCE

        await WRITE_ONCE(me.vm.memory.x, 2)

    lines = drawn(["P0", "P1"], "sc", store_x, store_two)
    assert lines[-1].endswith("memory.x = 2 (was 1)")


def test_repeated_loads_are_told_once() -> None:
    """A spinning loop is one line, the last one."""

    async def spin(me: Any) -> None:
        for _ in range(30):
            await load_x(me)

    lines = drawn(["P1"] * 20 + ["P0"] + ["P1"] * 10, "sc", store_x, spin)
    assert sum("memory.x ==" in line for line in lines) == 2
    assert sum("memory.x ==" in line for line in drawn(["P1"] * 30, "sc", store_x, spin, full=True)) == 30


def test_more_actors_than_columns_become_a_list() -> None:
    """Eight columns of eight characters are read by nobody."""
    names = [f"P{i}" for i in range(8)]
    lines = drawn(names, "sc", store_x, *[load_x] * 7)
    assert any(line.split()[:2] == ["0", "P0"] for line in lines)
    assert all("|" not in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_long_story_keeps_its_end() -> None:
    """Twice as long as a screen: the beginning is folded, the end is what went wrong."""

    async def many(me: Any) -> None:
        from actors.ops import WRITE_ONCE

        for i in range(100):
            await WRITE_ONCE(me.vm.memory.x, i)

    lines = drawn(["P0", "P1"] * 100, "sc", many, many)
    assert len(lines) <= LINES
    assert lines[-1].split("|")[0].strip() == "199"
